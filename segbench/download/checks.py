"""Is a download the right one, whole, and is there room for it?"""

import hashlib
import os
import shutil
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from segbench.download.sources import Source
from segbench.errors import UserError


def require_space(folder: Path, wanted: int, why: str) -> None:
    """Raise a `UserError` where the disk of ``folder`` has fewer than ``wanted`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise UserError(f"{folder} has {decimal(free)} free, {decimal(wanted)} are needed to {why}; make room there")


def wrong_md5(archive: Path, wanted: str, console: Console) -> str:
    """What is wrong with the archive's checksum, or ``""``."""
    if not wanted:
        return ""
    with console.status(f"checking {archive.name}"), open(archive, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return "" if found == wanted else f"the file ({decimal(archive.stat().st_size)}) has MD5 {found}, wanted {wanted}"


def wrong_lists(source: Source, target: Path) -> str:
    """What is wrong with the list files of a folder that should hold the data, or ``""``."""
    for name, wanted in source.lists.items():
        path = target / name
        if not path.is_file():
            return f"it has no {name}"
        found = sum(bool(line.strip()) for line in path.read_bytes().splitlines())
        if found != wanted:
            return f"its {name} names {found} images, wanted {wanted}"
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
