"""Two sweeps side by side: what differs in their configs, and in their numbers."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segbench.errors import UserError
from segbench.report.across import task_of
from segbench.report.analysis import HOLE, Analysis
from segbench.report.effort import tuned_how
from segbench.report.metrics import available, choose
from segbench.report.runs import Group, Sweep, read_sweep
from segbench.report.table import Table, version_note
from segbench.runs import grid_names, spelled, spelled_variant

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
    """Join two sweeps by decoder, and by what both of them vary; what one of them varies is compared value by value.

    A difference is made where both were counted alike on the same images, and has an interval where they have the same
    seeds: it is paired by image, and by seed, for which a pair of trainings need not be alike.

    Raises:
        UserError: a folder without a sweep, no decoder in both under the same settings, or an unknown metric.
    """
    sweeps = [read_sweep(folder) for folder in (first, second)]
    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    pairs = [(a, b) for a, b in itertools.product(*(sweep.groups for sweep in sweeps)) if _alike(a, b)]
    shared = [d for d in sweeps[0].decoders if any(d in a.decoders and d in b.decoders for a, b in pairs)]
    if not shared:
        told = (f"{', '.join(s.decoders)}{_varied(s)}" for s in sweeps)
        raise UserError(f"no decoder is in both: {' and '.join(told)}")
    keys = grid_names((key for sweep in sweeps for group in sweep.groups for key in group.variant), ["decoder"])
    chosen = choose([*sweeps[0].results, *sweeps[1].results], metrics)
    rows: list[dict[str, Any]] = []
    notes = [f"Δ: {names[1]} minus {names[0]}; no correction for the number of decoders."]
    for a, b in pairs:
        variant = b.variant | a.variant
        label = f" ({', '.join(spelled_variant(variant))})" if variant else ""
        why, own = _counted_differently(a, b), [d for d in a.decoders if d in b.decoders]
        same = [] if why else [d for d in own if _same_runs(a, b, d)]
        for decoder in own:
            row: dict[str, Any] = {"decoder": decoder, **{keys[k]: spelled(variant[k]) for k in keys}}
            pair = _pair(a, b, decoder, names)
            for metric in chosen:
                there = [metric.name in {m.name for m in available(list(g.results.values()))} for g in (a, b)]
                for name, group, has in zip(names, (a, b), there, strict=True):
                    row[f"{metric.column} in {name}"] = Analysis(group, metric).cell(decoder) if has else None
                row[f"Δ {metric.column}"] = (
                    HOLE
                    if why or decoder in same or not all(there)
                    else Analysis(pair, metric).against(names[0]).delta(names[1])
                )
            rows.append(row)
        notes += [f"No difference is made{label}: {why}."] if why else []
        if same:
            seeds = ", ".join(str(s) for s in a.seeds if s in b.seeds)
            notes.append(f"The very same runs{label}, so that nothing can differ (seeds {seeds}): {', '.join(same)}.")
        if a.seeds != b.seeds and not why:
            notes.append(f"Other seeds{label} ({a.seeds} and {b.seeds}): differences are over those in both, if any.")
    for sweep, name in zip(sweeps, names, strict=True):
        notes += [f"Only in {name}: {', '.join(sorted(only))}."] if (only := set(sweep.decoders) - set(shared)) else []
        notes += [f"Tuned in {name}: {how}."] if (how := tuned_how(sweep)) else []
        notes += [f"Missing in {name}: {hole}" for hole in sweep.holes]
    blocks = [
        ["decoder", *keys.values()],
        *([*(f"{m.column} in {name}" for name in names), f"Δ {m.column}"] for m in chosen),
    ]
    measures = {heading: m.measure for m, block in zip(chosen, blocks[1:], strict=True) for heading in block}
    table = Table(f"{names[1]} against {names[0]}", blocks, rows, [*notes, version_note(sweeps[0].results)], measures)
    return Comparison(list(_changes(_plain(sweeps[0].config), _plain(sweeps[1].config))), table)


def _alike(a: Group, b: Group) -> bool:
    """Whether two groups have one task, and the same value of each key that both sweeps vary."""
    return task_of(a) == task_of(b) and all(a.variant[key] == b.variant[key] for key in a.variant.keys() & b.variant)


def _varied(sweep: Sweep) -> str:
    """What sets a sweep's groups apart, in brackets; empty where it has one."""
    return f" ({'; '.join(', '.join(spelled_variant(g.variant)) for g in sweep.groups)})" if sweep.groups[1:] else ""


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
