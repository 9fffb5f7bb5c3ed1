"""The table of `segbench evaluate`: the same weights under several evaluations, and differences from the runs' own."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segbench import store
from segbench.columns import measure_counts_regions
from segbench.config import EvaluationConfig
from segbench.data.base import Dataset
from segbench.measures.base import CountMeasure, Ints
from segbench.report import stats
from segbench.report.analysis import HOLE, Cell, Delta
from segbench.report.table import Table, units, version_note
from segbench.vary import title

if TYPE_CHECKING:
    from segbench.export import Trained
    from segbench.training.evaluation import Evaluation

Key = tuple[str, int]  # what a decoder is called, and the seed
Counted = list[dict[Key, "Evaluation"]]  # by evaluation, the runs' own first


class Evaluated(Table):
    """A table in which no score is marked as the best: evaluations are not rivals."""

    @property
    def scores(self) -> list[str]:
        return []


@dataclass(frozen=True)
class Runs:
    """Runs that share data and encoder, ready to predict."""

    results: dict[Key, store.Result]
    trained: dict[Key, "Trained"]
    data: Dataset  # the images to count
    places: Sequence[int]  # of these images in the split

    @property
    def decoders(self) -> dict[str, list[int]]:
        """What each is called -> its seeds."""
        found: dict[str, list[int]] = {}
        for name, seed in sorted(self.results, key=lambda key: key[1]):
            found.setdefault(name, []).append(seed)
        return {name: found[name] for name in dict.fromkeys(name for name, _ in self.results)}

    @property
    def any_trained(self) -> "Trained":
        return next(iter(self.trained.values()))


def table_of(
    runs: Runs,
    evaluations: Sequence[EvaluationConfig],
    counted: Counted,
    measures: Sequence[CountMeasure],
    unfinished: Sequence[str],
) -> Table:
    """A row for each evaluation and decoder: score, its interval, and the difference from the runs' own evaluation.

    Args:
        evaluations: the runs' own first.
        counted: of each of these what every run counts.
        measures: that were counted; one that failed anywhere is left out, and a note says why.
        unfinished: runs that a note names.
    """
    broken = {why for by_run in counted for found in by_run.values() for why in found.broken.values()}
    measures = [m for m in measures if not any(m.name in f.broken for by_run in counted for f in by_run.values())]
    sizes = [_sizes_counted(by_run) for by_run in counted]
    headings: dict[str, CountMeasure] = {}
    for measure in measures:
        heading = f"{measure.short}{measure.suffix(np.concatenate(sizes))}"
        headings[f"{heading} [{measure.name}]" if heading in headings else heading] = measure
    cells = {
        (name, h): _cells(counted, name, seeds, m) for name, seeds in runs.decoders.items() for h, m in headings.items()
    }
    rows: list[dict[str, Any]] = []
    for i, evaluation in enumerate(evaluations):
        for name, seeds in runs.decoders.items():
            row: dict[str, Any] = {
                "evaluation": title(evaluation) + (" (own)" if i == 0 else ""),
                "counted at": _spelled(sizes[i]),
            }
            row |= {"decoder": name, "n": sum(counted[i][name, seed].failure is None for seed in seeds)}
            for heading in headings:
                cell, delta = cells[name, heading][i]
                row |= {heading: cell, f"{heading} 95 %": (cell.low, cell.high), f"Δ {heading}": delta}
            rows.append(row)
    blocks = [["evaluation", "counted at", "decoder", "n"], *([h, f"{h} 95 %", f"Δ {h}"] for h in headings)]
    of = {text: m for h, m in headings.items() for text in (h, f"{h} 95 %", f"Δ {h}")}
    notes = [*_notes(runs, evaluations, counted, units(rows, of)), *(f"Left out: {why}." for why in sorted(broken))]
    notes += [f"Not finished, so not here: {', '.join(unfinished)}."] if unfinished else []
    notes.append(version_note(list(runs.results.values())))
    return Evaluated(_title(runs, evaluations), blocks, rows, notes, of)


def _counts(found: "Evaluation", measure: CountMeasure) -> Ints:
    """(N, C, K), image by image."""
    return np.stack(found.counts["region" if measure_counts_regions(measure) else measure.name])


def _sizes_counted(by_run: Mapping[Key, "Evaluation"]) -> Ints:
    """(N, 2) of the images of one evaluation, by a run that did not fail where there is one."""
    return np.array(max((found.counts["sizes"] for found in by_run.values()), key=len), np.int64).reshape(-1, 2)


def _spelled(sizes: Ints) -> str:
    if not len(sizes):
        return ""
    height, width = np.median(sizes, 0).round().astype(int)
    return f"{height}x{width}" + (" (median)" if (sizes != sizes[0]).any() else "")


def _cells(
    counted: Counted, decoder: str, seeds: Sequence[int], measure: CountMeasure
) -> list[tuple[Cell, Delta | None]]:
    """Score and difference from the runs' own evaluation, by evaluation; holes where a seed failed."""
    wanted = len(seeds)
    whole = [i for i, by_run in enumerate(counted) if all(by_run[decoder, s].failure is None for s in seeds)]
    there = [sum(by_run[decoder, s].failure is None for s in seeds) for by_run in counted]
    found: list[tuple[Cell, Delta | None]] = [
        (Cell(math.nan, math.nan, math.nan, math.nan, n, wanted), HOLE if i else None) for i, n in enumerate(there)
    ]
    if not whole:
        return found
    counts = np.stack([np.stack([_counts(counted[i][decoder, s], measure) for s in seeds]) for i in whole])
    several = counts.shape[2] > 1  # images; of one there is no spread
    scores = stats.with_mean(measure.score(counts.sum(2)))[..., -1]  # (evaluations, seeds)
    measured = stats.measure(counts, measure.score) if several else None
    intervals = stats.intervals(measured, measure.bounds) if measured else []
    differences = stats.differences(measured, 0, measure.bounds) if measured and whole[0] == 0 else {}
    for place, i in enumerate(whole):
        sd = float(scores[place].std(ddof=1)) if wanted > 1 else math.nan
        low, high = (intervals[place][-1].low, intervals[place][-1].high) if intervals else (math.nan, math.nan)
        delta: Delta | None = HOLE if i else None
        if place in differences:
            d = differences[place][-1]
            delta = Delta(d.value, d.low, d.high, d.p, d.p_holm, _verdict(d))
        found[i] = Cell(float(scores[place].mean()), sd, low, high, wanted, wanted), delta
    return found


def _verdict(d: stats.Difference) -> str:
    """Of two ways to count the same weights: none is better, and one seed is enough."""
    if math.isnan(d.value):
        return ""
    if d.p >= stats.ALPHA:
        return "within noise"
    return "inconclusive" if d.p_holm >= stats.ALPHA else "higher" if d.value > 0 else "lower"


def _title(runs: Runs, evaluations: Sequence[EvaluationConfig]) -> str:
    results, data = list(runs.results.values()), runs.any_trained.dataset
    said = {name: " and ".join(sorted({str(r.row[name]) for r in results})) for name in ("data", "encoder", "steps")}
    sweeps = ", ".join(sorted({r.folder.resolve().parent.name for r in results}))
    images = f"{len(runs.data)} images" if len(runs.data) == len(data) else f"{len(runs.data)} of {len(data)} images"
    how = "fine-tuned" if results[0].row["encoder_trainable"] else "frozen"
    return (
        f"{sweeps}: {said['data']} {data.split}, {images}, {how} {said['encoder']}, {said['steps']} steps; the same "
        f"weights under {len(evaluations)} evaluations"
    )


def _notes(runs: Runs, evaluations: Sequence[EvaluationConfig], counted: Counted, unit: str) -> Iterator[str]:
    few, many = (f(len(seeds) for seeds in runs.decoders.values()) for f in (min, max))
    seeds = str(many) if few == many else f"{few} to {many}"
    about = "these trained models" if many == 1 else "the recipe"
    means = "One seed" if many == 1 else f"Mean ± sd over {seeds} seeds"
    yield f"{means}, {unit}; last checkpoint. [95 % interval] about {about} on such images."
    yield (
        "Δ: from the same weights under the evaluation that the runs were trained with (own), paired by image and "
        "seed; higher, lower: p < 0.05 after Holm's correction over a decoder's evaluations. Of other label sizes and "
        "crops higher is not better: they ask another question."
    )
    if len(runs.data) < len(runs.any_trained.dataset):
        yield f"{len(runs.data)} of the {len(runs.any_trained.dataset)} images, evenly spread over the split."
    if len(runs.data) < 2:
        yield "One image: no interval can be made."
    yield _as_counted(runs, counted[0])
    names = runs.data.classes
    missing = [_absent(by_run) for by_run in counted]
    for evaluation, absent in zip(evaluations[1:], missing[1:], strict=True):
        if absent != missing[0]:
            said = ", ".join(names[k] for k in absent) or "no class"
            yield f"Under '{title(evaluation)}' the labels lack {said}: out of its means, or 0 there where predicted."
    for evaluation, by_run in zip(evaluations, counted, strict=True):
        for (name, seed), found in by_run.items():
            if found.failure is not None:
                yield f"{name}-s{seed} fails under '{title(evaluation)}': {found.failure.reason}."


def _as_counted(runs: Runs, own: Mapping[Key, "Evaluation"]) -> str:
    """Whether the runs' own evaluation gives the counts that they have."""
    if any(run.counted is None for run in runs.trained.values()):
        return "These are not the images that the runs were evaluated on."
    differ = 0
    for key, result in runs.results.items():
        if own[key].failure is None:
            then, now = result.counts["region"][list(runs.places)], np.stack(own[key].counts["region"])
            differ += int((then != now).any((1, 2)).sum())
    if not differ:
        return "Predicted anew, the runs' own evaluation gives the counts that they have."
    return (
        f"Predicted anew, the runs' own evaluation differs in {differ} of {len(runs.results) * len(runs.data)} images "
        "from what they counted (another processor or library version); all rows here are of this machine."
    )


def _absent(by_run: Mapping[Key, "Evaluation"]) -> list[int]:
    """Classes of which the truth has no pixel."""
    found = [np.sum(f.counts["region"], 0) for f in by_run.values() if f.failure is None]
    return np.flatnonzero(found[0][2] == 0).tolist() if found else []
