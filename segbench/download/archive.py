"""Unpack a zip or tar of somebody else's: all of it, or nothing where a member would leave its folder."""

import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from rich.console import Console
from rich.progress import track as progress_over

from segbench.download.checks import require_space

Member = tarfile.TarInfo | zipfile.ZipInfo
BROKEN_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


def extract(archive: Path, scratch: Path, console: Console) -> str:
    """Extract everything; what is wrong with the archive, or ``""``. Nothing is written where a member is hostile.

    Raises:
        UserError: the disk is too small.
        BROKEN_ARCHIVE: one of these, where the archive cannot be read.
    """
    with zipfile.ZipFile(archive) if archive.suffix == ".zip" else tarfile.open(archive) as opened:
        with console.status(f"looking through {archive.name}"):
            found = opened.infolist() if isinstance(opened, zipfile.ZipFile) else opened.getmembers()
            members: list[Member] = [*found]
            hostile = _first_hostile(members)
        if hostile:
            return f"the archive is refused, nothing of it was unpacked: its member '{hostile}' leads out of its folder"
        unpacked_bytes = sum(m.size if isinstance(m, tarfile.TarInfo) else m.file_size for m in members)
        require_space(archive.parent, unpacked_bytes, f"unpack {archive.name}")
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
