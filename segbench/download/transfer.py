"""One file over HTTP, over a bad line too: it goes on from what is there and never joins two versions of a file."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from segbench import __version__
from segbench.download.checks import require_space
from segbench.download.sources import MIRROR
from segbench.errors import UserError, brief

BACKOFF_S = (1.0, 2.0, 4.0, 8.0)  # waits between attempts that bring no further byte
TIMEOUT_S = 30.0  # of silence
CHUNK_BYTES = 1 << 16


class BrokeOff(Exception):
    """The connection failed or ended early; trying again may help."""


def say(console: Console, text: str) -> None:
    """Print text of any length as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def fetch(url: str, part: Path, console: Console) -> None:
    """Fill ``part``, going on from what it holds, until it is whole or nothing more comes.

    Raises:
        UserError: the server refuses, nothing more comes after several attempts, or the disk is too small.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    quiet = not console.is_terminal  # no bar is drawn there, but empty lines would be
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task(part.stem, total=None)
        failures, most = 0, _size(part)
        while True:
            try:
                return _request(url, part, lambda done, of: progress.update(task, completed=done, total=of))
            except BrokeOff as error:
                have = _size(part)
                # A server without Range starts anew each time: only what goes further than before is progress.
                failures, most = (1, have) if have > most else (failures + 1, most)
                if failures > len(BACKOFF_S):
                    kept = f"{decimal(have)} are kept in {part} and " if have else ""
                    more = f"{kept}the same command goes on from there; {MIRROR}"
                    raise UserError(f"{url}: {error}, {failures} times in a row; {more}") from None
                say(console, f"{error}; trying again in {BACKOFF_S[failures - 1]:g} s")
                time.sleep(BACKOFF_S[failures - 1])


def _request(url: str, part: Path, report: Callable[[int, int | None], object]) -> None:
    """One request for what ``part`` lacks; the server's answer decides whether it is added or starts anew."""
    validator, have = validator_of(part), _size(part)
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
            raise BrokeOff("the server does not give the range that was asked for")
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
            require_space(part.parent, 2 * total - have, "download and unpack it")
        with open(part, "ab") as file:
            report(have, total)
            for chunk in _chunks(response):
                file.write(chunk)
                have += len(chunk)
                report(have, total)
    if total is not None and have < total:
        raise BrokeOff(f"the connection ended after {decimal(have)} of {decimal(total)}")


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
            raise BrokeOff(answer) from None
        raise UserError(f"{request.full_url}: {answer}; {MIRROR}") from None
    except (OSError, HTTPException) as error:
        raise BrokeOff(f"no connection ({getattr(error, 'reason', None) or brief(error)})") from None


def _chunks(response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)  # `read` would lose what came before a timeout
        except (OSError, HTTPException) as error:
            raise BrokeOff(f"the connection broke off ({brief(error)})") from None
        if not chunk:
            return
        yield chunk


def validator_of(part: Path) -> Path:
    """Where the ETag or the date that goes with ``part`` is kept."""
    return part.with_name(f"{part.name}.validator")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
