"""Get a published data set: download with resume, check, unpack, and say which sweep uses it. Imports no torch."""

import fcntl
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from segbench.download.archive import BROKEN_ARCHIVE, extract
from segbench.download.checks import git_hash, wrong_lists, wrong_md5
from segbench.download.sources import BY_HAND, MIRROR, NAMES, SOURCES, Source
from segbench.download.transfer import fetch, say, validator_of
from segbench.errors import UserError, brief, unknown
from segbench.store import explained


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
        say(console, BY_HAND[name].format(folder=shlex.quote(str(folder))))
        return
    source, target = SOURCES[name], folder / SOURCES[name].inside
    url = _checked_url(url or source.url)
    with explained(folder):
        there = target.exists()
        if not there:
            _bring(source, url, folder, console)
        elif wrong := wrong_lists(source, target):
            raise UserError(f"{target} is there, but {wrong}; move it away, then the same command gets it anew")
    say(console, f"{source.title} is {'already ' if there else ''}in {target}")
    say(console, source.usage.format(target=shlex.quote(str(target)), folder=shlex.quote(str(folder))))


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
                fetch(url, part, console)
            except KeyboardInterrupt:
                say(console, f"stopped; {part} is kept, the same command goes on from there")
                raise
            os.replace(part, archive)
            validator_of(part).unlink(missing_ok=True)
        if wrong := wrong_md5(archive, source.md5, console) or _unpack(source, archive, folder, console):
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


def _unpack(source: Source, archive: Path, folder: Path, console: Console) -> str:
    """Unpack beside the archive, check, then move into place at once; what is wrong with the archive, or ``""``."""
    scratch = archive.with_name(f"{archive.name}.unpacked")
    shutil.rmtree(scratch, ignore_errors=True)  # of a call that was killed
    try:
        if wrong := extract(archive, scratch, console):
            return wrong
        inside = next((f for f in (scratch, *scratch.iterdir()) if (f / source.inside).is_dir()), None)
        if inside is None:
            return f"the archive holds no folder {source.inside}"
        found = inside / source.inside
        if wrong := wrong_lists(source, found):
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
