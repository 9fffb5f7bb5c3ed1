"""Two sweeps side by side: what differs in their configs, and in their numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segbench.errors import UserError
from segbench.report.analysis import HOLE, Analysis
from segbench.report.metrics import choose
from segbench.report.runs import Group, read_sweep
from segbench.report.table import Table, version_note

IGNORED = ("name", "runs_dir", "launch", "baseline")  # change no number


@dataclass(frozen=True)
class Comparison:
    """Decoders that both sweeps have, and what else there is to know.

    Attributes:
        changes: key, its value in the first sweep and in the second, for each that differs.
        table: rows are decoders, with the score in each sweep and the difference, second minus first.
    """

    changes: list[tuple[str, str, str]]
    table: Table


def compare(first: Path, second: Path, metrics: Sequence[str] = ()) -> Comparison:
    """Join two sweeps by decoder.

    A difference is made where both were counted alike on the same images, and has an interval where they have the same
    seeds: it is paired by image, and by seed, for which a pair of trainings need not be alike.

    Raises:
        UserError: a folder without a sweep, a sweep with a grid, no decoder in both, or an unknown metric.
    """
    sweeps = [read_sweep(folder) for folder in (first, second)]
    for sweep in sweeps:
        if len(sweep.groups) != 1:
            raise UserError(
                f"{sweep.folder} has {len(sweep.groups)} variants; sweeps with a grid or tune cannot be compared yet"
            )
    a, b = (sweep.groups[0] for sweep in sweeps)
    shared = [d for d in a.decoders if d in b.decoders]
    if not shared:
        raise UserError(f"no decoder is in both: {', '.join(a.decoders)} and {', '.join(b.decoders)}")
    why = _counted_differently(a, b)
    chosen = choose([*sweeps[0].results, *sweeps[1].results], metrics)
    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    same = [] if why else [d for d in shared if _same_runs(a, b, d)]
    rows: list[dict[str, Any]] = []
    for decoder in shared:
        row: dict[str, Any] = {"decoder": decoder}
        pair = _pair(a, b, decoder, names)
        for metric in chosen:
            for name, group in zip(names, (a, b), strict=True):
                row[f"{metric.column} in {name}"] = Analysis(group, metric).cell(decoder)
            row[f"Δ {metric.column}"] = (
                HOLE if why or decoder in same else Analysis(pair, metric).against(names[0]).delta(names[1])
            )
        rows.append(row)
    blocks = [["decoder"], *([*(f"{m.column} in {name}" for name in names), f"Δ {m.column}"] for m in chosen)]
    notes = [f"Δ: {names[1]} minus {names[0]}; no correction for the number of decoders."]
    notes += [f"No difference is made: {why}."] if why else []
    if same:
        seeds = ", ".join(str(s) for s in a.seeds if s in b.seeds)
        notes.append(f"The very same runs, so that nothing can differ (seeds {seeds}): {', '.join(same)}.")
    if a.seeds != b.seeds and not why:
        notes.append(f"Other seeds ({a.seeds} and {b.seeds}): differences are over those in both, if any.")
    for only, of in ((set(a.decoders) - set(shared), names[0]), (set(b.decoders) - set(shared), names[1])):
        notes += [f"Only in {of}: {', '.join(sorted(only))}."] if only else []
    notes += [f"Missing in {name}: {hole}" for name, sweep in zip(names, sweeps, strict=True) for hole in sweep.holes]
    measures = {heading: m.measure for m, block in zip(chosen, blocks[1:], strict=True) for heading in block}
    table = Table(f"{names[1]} against {names[0]}", blocks, rows, [*notes, version_note(sweeps[0].results)], measures)
    return Comparison(list(_changes(_plain(sweeps[0].config), _plain(sweeps[1].config))), table)


def _counted_differently(a: Group, b: Group) -> str:
    """Why a difference of scores would mean nothing, in words; empty where it means something."""
    one, other = (next(iter(g.results.values())) for g in (a, b))
    for name, called in (("classes", "classes"), ("evaluation", "evaluation protocols")):
        if one.row[name] != other.row[name]:
            return f"the {called} differ"
    same = one.row["data_fingerprints"][-1] == other.row["data_fingerprints"][-1]
    return "" if same and np.array_equal(one.ids, other.ids) else "the evaluated images differ"


def _same_runs(a: Group, b: Group, decoder: str) -> bool:
    """Whether what both have of a decoder are the very same runs, found in two folders."""
    both = [
        (a.results[decoder, s], b.results[decoder, s]) for s in a.seeds if (decoder, s) in a.results.keys() & b.results
    ]
    return bool(both) and all(
        one.row["key"] == other.row["key"]
        and all(np.array_equal(one.counts[name], other.counts[name]) for name in one.counts)
        for one, other in both
    )


def _pair(a: Group, b: Group, decoder: str, names: tuple[str, str]) -> Group:
    """One decoder of both sweeps as a group of two, over the seeds that both have."""
    seeds = [s for s in a.seeds if s in b.seeds]
    results = {
        (name, s): group.results[decoder, s]
        for name, group in zip(names, (a, b), strict=True)
        for s in seeds
        if (decoder, s) in group.results
    }
    return Group("", {}, list(names) if seeds else [], seeds, results)


def _plain(config: dict[str, Any]) -> dict[str, str]:
    """Dotted key -> value, of what changes numbers."""
    found: dict[str, str] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{place}.{key}" if place else key)
        else:
            found[place] = str(value)

    walk({k: v for k, v in config.items() if k not in (*IGNORED, "decoders")}, "")
    for decoder in config["decoders"]:
        title = decoder["label"] or decoder["name"].rpartition(":")[2]
        found[f"decoders.{title}"] = f"{decoder['name']} {decoder['params'] or ''}".strip()
    return found


def _changes(first: dict[str, str], second: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    for key in dict.fromkeys([*first, *second]):
        values = first.get(key, "-"), second.get(key, "-")
        if values[0] != values[1]:
            yield key, *values
