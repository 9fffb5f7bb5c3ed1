"""Run folders: locked, written atomically, read back. Imports no torch.

`result.json` comes last and alone means done; it holds the checksums of what stands beside it, and one of itself.
"""

import errno
import fcntl
import hashlib
import json
import os
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import yaml
from filelock import FileLock, Timeout

from segbench.config import MOST_RUNS
from segbench.errors import Failure, UserError
from segbench.schema import check_counts, check_manifest, check_row

CHECKPOINTS = "checkpoint-????????-*.pt"
RESULT, COUNTS, STATUS, TRACEBACK = "result.json", "counts.npz", "status.json", "traceback.txt"
OUTPUT, TURN = "output.txt", ".turn.tmp"  # what its code printed; whether it is at work in its cohort's process
CONFIG, ENVIRONMENT, HISTORY, WEIGHTS = "config.yaml", "environment.json", "history.csv", "decoder.safetensors"
SOURCE = "source"  # a folder: that of its plug-ins
CHECKSUMMED = (CONFIG, ENVIRONMENT, HISTORY, COUNTS, WEIGHTS)  # by checksums in the result
MANIFEST = "sweep.json"
SEARCH = "search"  # in a sweep's folder, that of the sweep that tries its settings (``tune``)
RESULT_VERSION = 10  # raise when the same config would give other numbers
LAYOUT = 2  # raise when a run's folder holds other things


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a failure to write below ``path`` into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full: cannot write {path}; what was finished is kept, make room and start again"
            ) from error
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_atomic(path: Path, write: Callable[[IO[bytes]], object], durable: bool = True) -> None:
    """Write a file whole or not at all: to a temporary name, synced, then renamed.

    Args:
        durable: whether it has to outlive a power cut, for which the disk is waited for.

    Raises:
        UserError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, default=str) + "\n"
    write_atomic(path, lambda file: file.write(text.encode("utf-8")), durable)


def write_yaml(path: Path, value: Any) -> None:
    write_text(path, yaml.safe_dump(json.loads(json.dumps(value, default=str)), sort_keys=False))


def read_json(path: Path) -> Any:
    """The parsed file, or None where there is none.

    Raises:
        Damaged: it is not JSON.
        UserError: it cannot be read.
    """
    return None if (data := _read(path)) is None else _parsed(path, data)


def _parsed(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({error})") from None


@dataclass(frozen=True)
class Result:
    """A finished run, read back.

    Attributes:
        row: of ``result.json``.
        ids: of the N evaluated images.
        counts: ``region`` (N, 3, K): pixels of each class that are right, predicted and there; ``confusion`` (K, K);
            ``sizes`` (N, 2), height and width; and by the name of a measure its own, (N, C, K).
    """

    row: dict[str, Any]
    ids: npt.NDArray[np.str_]
    counts: dict[str, npt.NDArray[np.int64]]
    folder: Path


class Damaged(UserError):
    """A file that is not as it was written."""


def is_done(folder: Path) -> bool:
    return (folder / RESULT).is_file()


def write_result(folder: Path, row: dict[str, Any]) -> None:
    """Write ``result.json``, with the checksums of the run's other files: from here on the run is done."""
    names = [*CHECKSUMMED, *(path.relative_to(folder).as_posix() for path in folder.glob(f"{SOURCE}/**/*.py"))]
    files = {name: _sha256(folder / name) for name in names if (folder / name).exists()}
    row = row | {"layout": LAYOUT, "files": files}
    write_json(folder / RESULT, row | {"checksum": _checksum(row)})


def read_row(folder: Path) -> dict[str, Any] | None:
    """The row of the finished run in ``folder``, its files checked; None where it is not finished.

    Raises:
        Damaged: ``result.json`` or a file that it vouches for was cut short or changed, or holds something else than a
            run writes, or the counts are missing.
        UserError: another version made it, or a file cannot be read.
    """
    path = folder / RESULT
    if (data := _read(path)) is None:
        return None
    row = _parsed(path, data)
    if not isinstance(row, dict) or "result_version" not in row:
        raise Damaged(f"{path} is damaged (it is no result)")
    if row.pop("checksum", None) != _checksum(row):
        raise Damaged(f"{path} is damaged or was edited (its checksum differs)")
    if row["result_version"] != RESULT_VERSION or row.get("layout") != LAYOUT:
        raise UserError(f"{folder} was made by another version of segbench; running its sweep again makes it anew")
    files = row.get("files")
    if not isinstance(files, dict) or any(n not in CHECKSUMMED and not _is_source(n) for n in files):
        raise Damaged(f"{path} is damaged (it vouches for other files than segbench writes)")
    for name, checksum in row["files"].items():
        found = _sha256(folder / name)
        if found is None and name == COUNTS:  # a copy may leave out what tables do without, such as the weights
            raise Damaged(f"{folder / name} is missing")
        if found not in (checksum, None):
            raise Damaged(f"{folder / name} is damaged or was edited (its checksum differs)")
    if wrong := check_row(row):
        raise Damaged(f"{path} is damaged ({wrong})")
    return row


def _is_source(name: str) -> bool:
    path = PurePosixPath(name)
    return path.parts[0] == SOURCE and ".." not in path.parts and path.suffix == ".py"


def read_result(folder: Path) -> Result | None:
    """The finished run in ``folder``, or None.

    Raises:
        Damaged: its files are not those that were written.
        UserError: another version made them, or one cannot be read.
    """
    row = read_row(folder)
    if row is None:
        return None
    try:
        with np.load(folder / COUNTS) as arrays:
            counts = dict(arrays)
        ids = counts.pop("ids")
        check_counts(row, ids, counts)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(f"{folder / COUNTS} cannot be read ({error})") from None
    return Result(row, ids, counts, folder)


def read_finished(folder: Path) -> Result:
    """As `read_result`; a `UserError` where nothing is finished."""
    if (result := read_result(folder)) is None:
        raise UserError(f"{folder} holds no finished run ({RESULT} is missing)")
    return result


def set_aside(folder: Path) -> Path:
    """Move a run's folder to ``damaged/`` of its sweep, where nothing reads it; returns its new place."""
    place = folder.parent / "damaged"
    with explained(place):
        place.mkdir(exist_ok=True)
        number = next(n for n in range(1, 10**6) if not (place / f"{folder.name}-{n}").exists())
        return folder.rename(place / f"{folder.name}-{number}")


def write_checkpoint(folder: Path, step: int, data: memoryview) -> None:
    """Write a checkpoint, whose name holds its checksum, and remove the older ones."""
    path = folder / f"checkpoint-{step:08d}-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    write_atomic(path, lambda file: file.write(data))
    for older in folder.glob(CHECKPOINTS):
        if older != path:
            older.unlink(missing_ok=True)


def newest_checkpoint(folder: Path) -> tuple[int, Path | None]:
    """The last step that was saved whole and its file; 0 and None where there is none."""
    whole = (path for path in sorted(folder.glob(CHECKPOINTS), reverse=True) if _is_whole(path))
    path = next(whole, None)
    return (int(path.stem.split("-")[1]), path) if path else (0, None)


def damaged_checkpoints(folder: Path) -> list[Path]:
    """Set checkpoints aside whose contents do not fit their names; returns their new places."""
    with explained(folder):
        damaged = [path for path in folder.glob(CHECKPOINTS) if not _is_whole(path)]
        return [path.rename(path.with_name(f"damaged-{path.name}")) for path in damaged]


def _is_whole(checkpoint: Path) -> bool:
    return (_sha256(checkpoint) or "").startswith(checkpoint.stem.split("-")[2])


def tidy(folder: Path) -> None:
    """Remove what a killed process left: temporary files and, once the run is done, checkpoints.

    For the holder of the lock.
    """
    patterns = [".*.tmp", "live/.*.tmp"] + [f"*{CHECKPOINTS}"] * is_done(folder)
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        path.unlink(missing_ok=True)


def tidy_sweep(folder: Path) -> None:
    """Remove the temporary files of a sweep's own folder that processes of this machine left which are gone."""
    for path in folder.glob(".*.tmp"):
        name, _, pid = path.name.removesuffix(".tmp").rpartition("-")
        if name.endswith(f".{socket.gethostname()}") and pid.isdigit() and not _lives(int(pid)):
            path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


@contextmanager
def locked(folder: Path, timeout_s: float = 0.0) -> Iterator[bool]:
    """Hold the lock of a run's folder, or of a sweep's manifest: True, or False where another process has it so long.

    That may be one of another machine that shares the disk. The system gives the lock of a dead process free.
    """
    place = folder.parent / ".locks"
    with explained(folder):
        place.mkdir(parents=True, exist_ok=True)
    path = place / folder.name.rpartition("-")[2]  # the key: labels may differ
    lock = FileLock(path, timeout=timeout_s, thread_local=False)
    with explained(path), suppress(Timeout):  # which is an OSError too
        lock.acquire()
    if not lock.is_locked:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for it sees that, and makes another
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process works on the run; writes nothing."""
    try:
        file = os.open(folder.parent / ".locks" / folder.name.rpartition("-")[2], os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def set_status(folder: Path, state: str, **details: Any) -> None:
    """``state`` is one of running, stopped, failed, done.

    Read by `segbench status`, and by a search (``tune``), to which a run that diverged has ended.
    """
    value = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), **details}
    write_json(folder / STATUS, value, durable=False)


def in_turn(folder: Path) -> bool:
    """Whether the run's own code was at work, or is, where its cohort's process ended without a word."""
    with suppress(OSError):
        return (folder / TURN).read_bytes() == b"1"
    return False


def fail(folder: Path, failure: Failure) -> None:
    """Mark a run as failed: never done, tried again by the next call."""
    write_text(folder / TRACEBACK, failure.traceback or failure.reason + "\n")
    set_status(folder, "failed", reason=failure.reason, diverged=failure.diverged)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the sweep in ``folder`` planned: runs that have a folder, of which another version may say less.

    Raises:
        Damaged: it is not as segbench writes it.
        UserError: no sweep there, or a file that cannot be read.
    """
    path = folder / MANIFEST
    damaged = Damaged(f"{path} is damaged; the sweep's command makes it again")
    try:
        manifest = read_json(path)
    except Damaged:
        raise damaged from None
    if manifest is None and (folder.parent / MANIFEST).is_file():
        raise UserError(f"{folder} holds no sweep; its sweep is {folder.parent}")
    if manifest is None:
        raise UserError(f"{folder} holds no sweep ({MANIFEST} is missing)")
    runs = manifest.get("runs") if isinstance(manifest, dict) else None
    if not isinstance(runs, list):
        raise damaged
    if len(runs) > MOST_RUNS:
        raise UserError(f"{path} lists {len(runs):,} runs; a sweep has at most {MOST_RUNS:,}")
    names = [planned["folder"] for planned in runs if isinstance(planned, dict) and "folder" in planned]
    if len(names) < len(runs) or not all(isinstance(name, str) for name in names):
        raise damaged
    if any(name in ("", ".", "..") or "/" in name or "\0" in name for name in names):
        raise Damaged(f"{path} names folders outside of the sweep's")
    return dict(manifest)


def read_plan(folder: Path) -> dict[str, Any]:
    """As `read_manifest`, and all is there that a table or a status shows.

    Raises:
        Damaged: something is not.
        UserError: no sweep there, or a file that cannot be read.
    """
    manifest = read_manifest(folder)
    if wrong := check_manifest(manifest):
        raise Damaged(f"{folder / MANIFEST} is damaged ({wrong}); the sweep's command makes it again")
    return manifest


def _checksum(row: dict[str, Any]) -> str:
    """Of a row as JSON holds it."""
    plain = json.loads(json.dumps(row, default=str))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str | None:
    """None where there is no such file; a `UserError` where it cannot be read."""
    found: str | None = _read(path, lambda file: hashlib.file_digest(file, "sha256").hexdigest())
    return found


def _read(path: Path, read: Callable[[Any], Any] = methodcaller("read")) -> Any:
    """What ``read`` makes of the file; None where there is no such file."""
    try:
        with open(path, "rb") as file:
            return read(file)
    except FileNotFoundError:
        return None
    except OSError as error:  # which says nothing of what is in it
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
