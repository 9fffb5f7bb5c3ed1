"""Where a sweep stands, from its folder, while it runs or after it stopped. Imports no torch."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segbench import store
from segbench.errors import UserError
from segbench.sweep.estimate import duration


@dataclass(frozen=True)
class Standing:
    """Of one run.

    Attributes:
        state: done, running, stopped, killed, failed, damaged, unreadable or waiting.
        more: what else is known.
    """

    decoder: str
    seed: int
    variant: dict[str, Any]
    state: str
    more: str = ""


def standings(folder: Path) -> list[Standing]:
    """Every run of a sweep's folder, in the order of the sweep.

    Raises:
        UserError: no sweep there.
    """
    manifest = store.read_manifest(folder)
    return [
        Standing(planned["decoder"], planned["seed"], planned["variant"], *_standing(folder / planned["folder"]))
        for planned in manifest["runs"]
    ]


def _standing(folder: Path) -> tuple[str, str]:
    held = store.is_locked(folder)  # before the files, or a run that ends in between would look killed
    try:
        row = store.read_row(folder)
        status = store.read_json(folder / store.STATUS) or {}
        step = store.newest_checkpoint(folder)[0]
    except store.Damaged as error:
        return "damaged", str(error)
    except UserError as error:
        return "unreadable", str(error)
    if row is not None:
        return "done", f"at {row['finished']}"
    saved = f"saved at step {step}" if step else "nothing saved"
    if held or store.is_locked(folder):
        return "running", _progress(status) if status.get("state") == "running" else "starting"
    state = status.get("state", "waiting")
    if state == "running":
        return "killed", saved
    if state == "failed":
        return "failed", f"{status.get('reason', '')} ({folder / store.TRACEBACK})"
    return (state, saved) if state == "stopped" else ("waiting", "" if not step else saved)


def _progress(status: dict[str, Any]) -> str:
    done, total = status.get("done", 0), status.get("total", 0)
    ago = duration(max(0.0, time.time() - status.get("time", 0.0)))
    what = "step" if status.get("phase") == "train" else "image"
    return f"{what} {done} of {total}, {ago} ago, by process {status.get('pid')} on {status.get('host')}"


def summary(folder: Path, found: list[Standing]) -> str:
    """How many runs stand where, in a line."""
    states = [standing.state for standing in found]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
    return f"{folder.name}: {len(found)} runs: {counts}"
