"""Run folders: written atomically, read back. `result.json` comes last and alone means done. Imports no torch."""

import errno
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import yaml

from segbench.errors import Failure, UserError

RESULT, COUNTS, STATUS, TRACEBACK = "result.json", "counts.npz", "status.json", "traceback.txt"
MANIFEST = "sweep.json"
RESULT_VERSION = 3  # raise when the same config would give other numbers, or a result holds other things
COUNT_NAMES = ("region", "boundary", "contour", "trimap", "widths_px", "confusion")


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


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all: to a temporary name, synced, then renamed.

    Raises:
        UserError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def write_yaml(path: Path, value: Any) -> None:
    write_text(path, yaml.safe_dump(json.loads(json.dumps(value, default=str)), sort_keys=False))


def read_json(path: Path) -> Any:
    """The parsed file, or None where there is none.

    Raises:
        UserError: the file is there and is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it to have it made again") from None


@dataclass(frozen=True)
class Result:
    """A finished run, read back: the row of ``result.json`` and its image ids and integer counts."""

    row: dict[str, Any]
    ids: npt.NDArray[np.str_]
    counts: dict[str, npt.NDArray[np.int64]]
    folder: Path


def is_done(folder: Path) -> bool:
    return (folder / RESULT).is_file()


def read_result(folder: Path) -> Result | None:
    """The finished run in ``folder``, or None.

    Raises:
        UserError: its files cannot be read, or another version made them.
    """
    row = read_json(folder / RESULT)
    if row is None:
        return None
    if row.get("result_version") != RESULT_VERSION:
        raise UserError(f"{folder} was made by another version of segbench; running its sweep again makes it anew")
    try:
        with np.load(folder / COUNTS) as arrays:
            counts = {name: arrays[name] for name in COUNT_NAMES}
            ids = arrays["ids"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder / COUNTS} cannot be read ({error}); remove {folder} to have it made again") from None
    return Result(row, ids, counts, folder)


def checkpoint(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:08d}.pt"


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint file, oldest first."""
    return {int(path.stem.rpartition("-")[2]): path for path in sorted(folder.glob("checkpoint-*.pt"))}


def set_status(folder: Path, state: str, **details: Any) -> None:
    """``state`` is one of running, stopped, failed, done."""
    write_json(folder / STATUS, {"state": state, **details})


def fail(folder: Path, failure: Failure) -> None:
    """Mark a run as failed: never done, tried again by the next call."""
    write_text(folder / TRACEBACK, failure.traceback or failure.reason + "\n")
    set_status(folder, "failed", reason=failure.reason)


def newest_sweep(runs_dir: Path) -> Path:
    """The sweep folder that was planned last.

    Raises:
        UserError: there is none.
    """
    found = sorted(runs_dir.glob(f"*/{MANIFEST}"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserError(f"no sweep in {runs_dir}; `make sweep` (or `segbench sweep`) runs one")
    return found[-1].parent
