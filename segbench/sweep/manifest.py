"""Write `sweep.json`, the list of a sweep's runs that table, report and `segbench status` go by. Imports no torch."""

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from segbench import checkout, store
from segbench.config import DecoderConfig, SweepConfig
from segbench.errors import UserError
from segbench.runs import Run, run_key

NAMED = 3  # runs that a message names; the rest is counted
LOCK_S = 60.0  # it is held for as long as it takes to write a small file


@dataclass(frozen=True)
class Listed:
    """What was written.

    Attributes:
        manifest: as `store.read_plan` gives it. Another command may have written its own meanwhile.
        damage: in one line, what was damaged and is made anew; else empty.
        replaced: in one line, which runs of another command were listed before and are no longer; else empty.
    """

    manifest: dict[str, Any]
    damage: str = ""
    replaced: str = ""


def write_manifest(config: SweepConfig, runs: Sequence[Run], awaited: Sequence[Run] = (), why: str = "") -> Listed:
    """List ``runs`` and, of what was listed before, the finished runs that may stand in one table with them.

    Args:
        awaited: runs of which the setting is not chosen; they are listed as missing.
        why: it is not.

    Raises:
        UserError: it cannot be read or written.
    """
    path = runs[0].folder.parent / store.MANIFEST
    with store.locked(path, LOCK_S) as mine:
        if not mine:
            raise UserError(f"another process has held the lock of {path} for {LOCK_S:.0f} s; end it and start again")
        listed = make_manifest(config, runs, awaited, why)
        store.write_json(path, listed.manifest)
    return listed


def make_manifest(config: SweepConfig, runs: Sequence[Run], awaited: Sequence[Run] = (), why: str = "") -> Listed:
    """What `write_manifest` writes; this writes nothing.

    Raises:
        UserError: what was listed before cannot be read.
    """
    folder, damage = runs[0].folder.parent, ""
    before: list[dict[str, Any]] = []
    configured: dict[str, Any] = {}
    try:
        if (folder / store.MANIFEST).exists():
            there = store.read_manifest(folder)
            before, configured = there["runs"], there.get("config", {})
    except store.Damaged as error:
        damage = f"{error}; finished runs that only an earlier command names are listed once that is given again"
    rows = _merged(runs, before, awaited)
    listed = {_place(row["decoder"], row["seed"], row["variant"]) for row in rows}
    missing = [run for run in awaited if _place(run.title, run.seed, run.variant) not in listed]
    rows += [_row(run) | {"awaited": why} for run in missing]
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    called = {"command": command, "commit": checkout.of_folder(Path.cwd())}
    manifest = {"config": _config(config, rows, configured), "runs": rows, "called": called}
    return Listed(json.loads(json.dumps(manifest, default=str)), damage, _replaced(folder, before, rows))


def _replaced(folder: Path, before: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    kept = {row["folder"] for row in rows}
    gone = [row["folder"] for row in before if row["folder"] not in kept]
    if not gone:
        return ""
    named = ", ".join(gone[:NAMED]) + (f" and {len(gone) - NAMED} more" if len(gone) > NAMED else "")
    return (
        f"{folder / store.MANIFEST} listed {named}: made otherwise, or not finished. What is done of them is kept, and "
        "the command that asked for them lists them again"
    )


def _config(config: SweepConfig, rows: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with the decoders and seeds of all ``rows``, so that as a sweep file it makes the whole table."""
    decoders = {decoder.title: decoder for decoder in config.decoders}
    with contextlib.suppress(ValidationError, TypeError, KeyError):  # edited by hand; then it is this call's alone
        decoders = {d.title: d for d in map(DecoderConfig.model_validate, before["decoders"])} | decoders
    titles = list(dict.fromkeys(row["decoder"] for row in rows))
    return config.model_dump() | {
        "decoders": [decoders[title].model_dump() for title in titles if title in decoders],
        "seeds": list(dict.fromkeys(row["seed"] for row in rows)),
        "baseline": [title for title in config.baseline or () if title in titles] or None,
    }


def _merged(
    runs: Sequence[Run], before: Sequence[Mapping[str, Any]], awaited: Sequence[Run] = ()
) -> list[dict[str, Any]]:
    """The rows of ``runs``, and those of ``before`` that are done and were made under the same conditions.

    What was there keeps its place. A title stands for one decoder: where ``runs`` give it to another one (a plug-in
    was edited), the old one's rows go; where they call a decoder otherwise, its old rows are called so too.
    """
    folder = runs[0].folder.parent
    decoders = {(run.title, _text(run.variant)): run for run in [*runs, *awaited]}.values()
    new = {_place(run.title, run.seed, run.variant): run for run in runs}
    merged: list[dict[str, Any]] = []
    for row in before:
        title, seed, variant, key = (row.get(name) for name in ("decoder", "seed", "variant", "key"))
        shared = (_text(variant), row.get("conditions"))
        beside = [run for run in decoders if (_text(run.variant), run.conditions) == shared]
        if not beside:
            continue
        same = [run.title for run in beside if run_key(run.config, run.facts, run.decoder, seed) == key]  # type: ignore[arg-type]
        title = same[0] if same else title
        if (place := _place(title, seed, variant)) in new:
            merged.append(_row(new.pop(place)))
        elif (same or title not in [run.title for run in beside]) and store.is_done(folder / row["folder"]):
            merged.append({**row, "decoder": title})
    return merged + [_row(run) for run in new.values()]


def _row(run: Run) -> dict[str, Any]:
    own = {"key": run.key, "decoder": run.title, "seed": run.seed, "variant": run.variant, "folder": run.folder.name}
    return own | {"conditions": run.conditions, **run.found}


def _place(title: Any, seed: Any, variant: Any) -> str:
    return _text([title, seed, variant])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
