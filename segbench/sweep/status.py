"""The status of each run, read from its folder. Imports no torch."""

import contextlib
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segbench import store
from segbench.errors import UserError
from segbench.runs import spelled_variant


@dataclass(frozen=True)
class RunStatus:
    """How far a run is."""

    state: str  # done, running, stopped, killed, failed, damaged, unreadable or waiting
    more: str = ""  # what else is known
    step: int = 0  # that it goes on from
    diverged: bool = False  # it failed as its loss became infinite


def newest_sweep(runs_dir: Path) -> Path:
    """The sweep folder that was planned last.

    Raises:
        UserError: there is none.
    """
    found = sorted(runs_dir.glob(f"*/{store.MANIFEST}"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserError(f"no sweep in {runs_dir}; `make sweep` (or `segbench sweep`) runs one")
    return found[-1].parent


def read_status(folder: Path) -> list[tuple[dict[str, Any], RunStatus]]:
    """Every row of a sweep's manifest with the status of its run, in the order of the sweep.

    Raises:
        UserError: no sweep there.
    """
    rows = store.read_plan(folder)["runs"]
    return [
        (r, RunStatus("waiting", r["awaited"]) if r.get("awaited") else run_status(folder / r["folder"])) for r in rows
    ]


def print_status(folder: Path, called: str, console: Console) -> None:
    """A line of how many runs are in which state, and a line for each run."""
    found = read_status(folder)
    grid = Table(box=None, pad_edge=False)
    for heading in ("decoder", "seed", "state", ""):
        grid.add_column(heading, no_wrap=heading != "")
    for run, status in found:
        name = " ".join([run["decoder"], *spelled_variant(run["variant"])])
        grid.add_row(escape(name), str(run["seed"]), status.state, escape(status.more))
    states = sorted(status.state for _, status in found)
    print(f"{called}: {len(found)} runs: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))
    console.print(grid)


def run_status(folder: Path) -> RunStatus:
    """Of the run in ``folder``, which need not be there yet."""
    held = store.is_locked(folder)  # before the files, or a run that ends in between would look killed
    try:
        if (row := store.read_row(folder)) is not None:
            return RunStatus("done", _done(row))
        status, step = last_said(folder), store.newest_checkpoint(folder)[0]
    except store.Damaged as error:
        return RunStatus("damaged", str(error))
    except UserError as error:
        return RunStatus("unreadable", str(error))
    saved = f"saved at step {step}" if step else "nothing saved"
    if held or store.is_locked(folder):
        return RunStatus("running", _progress(status) if status.get("state") == "running" else "starting", step)
    failed = f"{status.get('reason', '')} ({folder / store.TRACEBACK})"
    ended = {"running": ("killed", saved), "failed": ("failed", failed), "stopped": ("stopped", saved)}
    state, more = ended.get(str(status.get("state")), ("waiting", saved if step else ""))
    return RunStatus(state, more, step, state == "failed" and status.get("diverged") is True)


def last_said(folder: Path) -> dict[str, Any]:
    """What the process that had the run last said of it; empty where nothing, or nothing that can be read."""
    with contextlib.suppress(UserError):
        if isinstance(said := store.read_json(folder / store.STATUS), dict):
            return said
    return {}


def _progress(status: dict[str, Any]) -> str:
    try:
        done, total, said_s = int(status["done"]), int(status["total"]), float(status["time"])
        began_s, first = status["since"]
        left = duration((total - done) * (said_s - began_s) / (done - first)) if done > first else ""
    except (KeyError, TypeError, ValueError, OverflowError):  # edited by hand
        return "which does not say how far it is"
    ago = duration(max(0.0, time.time() - said_s))
    eta = left and f", about {left} of this phase to go"
    said = progress(status.get("phase"), done, total)
    return f"{said}, {ago} ago, by process {status.get('pid')} on {status.get('host')}{eta}"


def _done(row: dict[str, Any]) -> str:
    own, shared = row["values"].get("train", 0.0), row["train_shared_s"]
    took = f"trained for {duration(own)}, beside {duration(shared)} that its cohort shares"
    with contextlib.suppress(ValueError):
        return f"{datetime.fromisoformat(row.get('finished', '')).astimezone():%Y-%m-%d %H:%M}, {took}"
    return took


def progress(phase: Any, done: int, total: int) -> str:
    """Such as ``step 85 of 400``, or of the evaluation ``image 10 of 61``."""
    return f"{'step' if phase == 'train' else 'image'} {done} of {total}"


def duration(seconds: float) -> str:
    """Such as ``2 h 5 min``, ``3 min 20 s`` or ``12 s``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
