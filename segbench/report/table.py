"""The metric table: rows are decoders, cells carry their spread. Made from run folders alone."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from segbench import store
from segbench.errors import UserError, unknown
from segbench.measures.base import Measure, RunMeasure
from segbench.report import effort, stats
from segbench.report.analysis import Analysis, Cell, Delta, PValue
from segbench.report.metrics import Metric, available, choose, lost, of_runs, thin_bands, value
from segbench.report.ranking import Rank
from segbench.report.runs import Group, Sweep, read_sweep
from segbench.report.words import unanswered, unequal_starts, upsampled
from segbench.runs import grid_names, spelled

COLUMNS = {
    "n": "finished seeds",
    "score": "mean ± sd over seeds",
    "ci": "95 % interval of the mean",
    "delta": "difference from each baseline, with interval and verdict",
    "p": "p-value of the difference, after Holm's correction",
    "seeds": "seeds that would settle a difference of the size seen, on these images",
    "images": "images that would settle it, with these seeds",
    "rank": "rank with its 95 % interval, and the chance to be the best",
}  # and the name of each measure that is measured once of a run
DEFAULT = ("n", "score", "delta")  # and of those measures the ones that have a place in the table
PER_CLASS = ("n", "score")
CONTRASTS = ("delta", "p", "seeds", "images")  # one column for each baseline
FEW_IMAGES = 10  # with a class in fewer, its interval covers less than it says


@dataclass(frozen=True)
class Table:
    """Columns of cells by row; ``notes`` says what a reader must know.

    Attributes:
        title: what was compared on what.
        blocks: headings in order, by what belongs together; the first block says what a row is.
        rows: heading -> text, number, `Cell`, `Delta`, ``(low, high)``, `segbench.report.ranking.Rank`, or None.
        notes: in sentences.
        measures: heading -> the measure whose values stand below it.
    """

    title: str
    blocks: list[list[str]]
    rows: list[dict[str, Any]]
    notes: list[str]
    measures: Mapping[str, Measure]

    @property
    def headings(self) -> list[str]:
        return [heading for block in self.blocks for heading in block]

    @property
    def scores(self) -> list[str]:
        """The headings of columns that hold a score's `Cell`."""
        return [h for h in self.headings if any(isinstance(row[h], Cell) for row in self.rows)]


@dataclass(frozen=True)
class _Column:
    """A heading, the block it is in, and what stands below it: of a group's analyses (by metric) and a decoder."""

    heading: str
    block: str
    cell: Callable[[Group, dict[str, Analysis], str], Any]
    measure: Measure | None = None


def make_table(
    folder: Path,
    metrics: Sequence[str] = (),
    classes: bool = False,
    columns: Sequence[str] = (),
    sort: str | None = None,
    allow_mixed: bool = False,
    only: Sequence[str] = (),
    manifest: dict[str, Any] | None = None,
) -> Table:
    """The table of a sweep's folder, made from its run folders alone.

    Args:
        folder: ``runs/<sweep>``.
        metrics: names such as ``miou``, ``biou@0.02``, ``bf1@3``, ``trimap@4``, ``accuracy``; default: see `choose`.
        classes: each class of the first of ``metrics`` in place of the means.
        columns: names in `COLUMNS` or of measures, in the order wanted; default: see `DEFAULT`, or `PER_CLASS`.
        sort: heading to sort by: measures from the best, names from the lowest; default: the sweep's order.
        allow_mixed: show runs that must not be compared, in groups.
        only: decoders; differences, corrections and ranks are then among these. Default: all.
        manifest: which runs; default: those that ``sweep.json`` lists now.

    Raises:
        UserError: no sweep there, no finished run, an unknown metric, column or decoder, or runs that must not be
            compared.
    """
    return table_of(read_sweep(folder, allow_mixed, only, manifest), metrics, classes, columns, sort)


def table_of(
    sweep: Sweep,
    metrics: Sequence[str] = (),
    classes: bool = False,
    columns: Sequence[str] = (),
    sort: str | None = None,
) -> Table:
    """`make_table` of a sweep that has been read."""
    costs = {m.name: m for m in of_runs(sweep.results)}
    columns = columns or (
        PER_CLASS if classes else (*DEFAULT, *(n for n, m in costs.items() if m.table_place is not None))
    )
    for name in columns:
        if name not in (*COLUMNS, *costs):
            raise unknown("column", name, [*COLUMNS, *costs])
    chosen = choose(sweep.results, metrics)
    if classes and len({tuple(r.row["classes"]) for r in sweep.results}) > 1:
        raise UserError(f"{sweep.folder} holds runs with different classes, which no table per class can hold")
    if classes and not chosen[0].measure.per_class:
        raise UserError(f"{chosen[0].name} is not made of classes; --per-class needs another --metric")
    made = list(_columns(sweep, chosen[:1] if classes else chosen, classes, columns))
    rows = []
    analyses: dict[str, dict[str, Analysis]] = {}
    for group, decoder in effort.side_by_side(sweep.groups):
        if (place := f"{group.label} {group.variant}") not in analyses:
            own = {m.name: m for m in available(list(group.results.values()))}  # a mixed sweep has several protocols
            analyses[place] = {m.name: Analysis(group, own[m.name]) for m in chosen if m.name in own}
        rows.append({c.heading: c.cell(group, analyses[place], decoder) for c in made})
    blocks = [[c.heading for c in block] for _, block in groupby(made, lambda c: c.block)]
    headings = [c.heading for c in made]
    measures = {c.heading: c.measure for c in made if c.measure is not None}
    if sort:
        rows = _sorted(rows, headings, measures, sort)
    notes = list(_notes(sweep, headings, rows, columns, measures))
    return Table(_title(sweep, chosen, classes), blocks, rows, notes, measures)


def _columns(sweep: Sweep, metrics: Sequence[Metric], classes: bool, names: Sequence[str]) -> Iterator[_Column]:
    told = list(_told(sweep, metrics, classes, names))
    yield _Column("decoder", "row", lambda group, found, decoder: decoder)
    others = ["decoder", "group", "as shipped", "collapsed", *(c.heading for c in told)]
    for key, heading in grid_names((key for group in sweep.groups for key in group.variant), others).items():
        yield _Column(heading, "row", lambda group, found, decoder, k=key: _grid_value(group.variant.get(k, "")))  # type: ignore[misc]
    if len({group.label for group in sweep.groups}) > max(1, len({str(g.variant) for g in sweep.groups})):
        yield _Column("group", "row", lambda group, found, decoder: group.label)
    if any(group.shipped(decoder) for group in sweep.groups for decoder in group.decoders):
        yield _Column("as shipped", "row", lambda group, found, decoder: group.shipped(decoder))
    if any(group.collapsed for group in sweep.groups):
        yield _Column("collapsed", "row", lambda group, found, decoder: sum(d == decoder for d, _ in group.collapsed))
    yield from told


def _told(sweep: Sweep, metrics: Sequence[Metric], classes: bool, names: Sequence[str]) -> Iterator[_Column]:
    """The columns that say something of a row."""
    baselines = [b for b in sweep.baselines if any(b in g.whole and len(g.decoders) > 1 for g in sweep.groups)]
    of_scores = [n for n in names if n in ("score", "ci", "rank") or (n in CONTRASTS and baselines)]
    labels = sweep.results[0].row["classes"]
    costs = {m.name: m for m in of_runs(sweep.results)}
    for name in names:
        if name == "n":
            yield _Column("n", "row", lambda group, found, decoder: len(group.of(decoder)))
        elif name in costs:
            yield _cost_column(costs[name])
        elif of_scores and name == of_scores[0]:  # what belongs to one score stands together
            for metric in metrics:
                for place, heading in list(enumerate(labels)) if classes else [(-1, metric.column)]:
                    for part in of_scores:
                        compared = metric.measure.per_class or metric.measure.verdict_place is not None
                        if compared or part in ("score", "ci"):
                            for baseline in baselines if part in CONTRASTS else [""]:
                                title = f"{heading}{_from(sweep, baseline)}"
                                yield _score_column(part, title, metric, place, baseline)
    if "delta" in names and not classes:
        yield from _searched(sweep, metrics[0])


def _searched(sweep: Sweep, metric: Metric) -> Iterator[_Column]:
    """What was searched for a row: the setting of ``tune``, and the width for a ``budget``."""
    found = {name for group in sweep.groups for of in group.found.values() for name in of}
    if "choice" in found:
        gains = {str(group.variant): effort.gains(sweep, group, metric) for group in sweep.groups}
        yield _Column(
            f"Δ {metric.column} tuned from fixed",
            "tune",
            lambda group, _, decoder: gains[str(group.variant)].get(decoder),
            metric.measure,
        )
        yield _Column("chosen", "tune", lambda group, _, decoder: effort.chosen(sweep, group, decoder))
        for heading, cell in (("trials", effort.trials), ("best − median", effort.flatness)):
            yield _Column(heading, "tune", lambda group, _, decoder, cell=cell: cell(group, decoder))  # type: ignore[misc]
    if "budget" in found:
        yield _Column("width", "budget", lambda group, _, decoder: effort.width(group, decoder))
        yield _Column("of budget", "budget", lambda group, _, decoder: effort.of_budget(group, decoder))


def _from(sweep: Sweep, baseline: str) -> str:
    """What a heading adds where there are two baselines."""
    return f" from {baseline}" if baseline and len(sweep.baselines) > 1 else ""


def _grid_value(value: Any) -> Any:
    return value if isinstance(value, int | float) else spelled(value)


def _score_column(name: str, heading: str, metric: Metric, place: int, baseline: str) -> _Column:
    def needed(what: str, a: Analysis, decoder: str) -> str | None:
        return _needed(what, a.against(baseline).difference(decoder, place), len(a.decoders) - 1)

    title, cell = {
        "score": ("{}", lambda a, d: a.cell(d, place)),
        "ci": ("{} 95 %", lambda a, d: (a.cell(d, place).low, a.cell(d, place).high)),
        "rank": ("rank by {}", lambda a, d: a.ranks.get(d)),
        "delta": ("Δ {}", lambda a, d: None if d == baseline else a.against(baseline).delta(d, place)),
        "p": ("p {}", lambda a, d: None if d == baseline else PValue(a.against(baseline).delta(d, place).p_holm)),
        "seeds": ("seeds for Δ {}", lambda a, d: needed("seeds", a, d)),
        "images": ("images for Δ {}", lambda a, d: needed("images", a, d)),
    }[name]
    return _Column(
        title.format(heading),
        f"{metric.name} {place}",
        lambda group, found, decoder: cell(found[metric.name], decoder) if metric.name in found else None,
        metric.measure,
    )


def _cost_column(measure: RunMeasure) -> _Column:
    heading = f"{measure.short}{measure.suffix(np.empty((0, 2), np.int64))}"
    return _Column(heading, "cost", lambda group, found, decoder: value(measure, group.of(decoder)), measure)


def _needed(what: str, found: stats.Difference | None, comparisons: int) -> str | None:
    """How many would find a difference of the size that was seen, with power 0.8 and after Holm's correction."""
    if found is None or math.isnan(found.value) or found.value == 0 or found.spread.seeds == 1:
        return None
    number = getattr(stats.needed(found.spread, abs(found.value), comparisons=comparisons), what)
    return "no number" if number is None else str(number)


def _sorted(
    rows: list[dict[str, Any]], headings: Sequence[str], measures: Mapping[str, Measure], by: str
) -> list[dict[str, Any]]:
    if by not in headings:
        raise unknown("column to sort by", by, headings)
    sign = -1 if by in measures and measures[by].higher_is_better else 1

    def key(row: dict[str, Any]) -> tuple[bool, bool, Any]:
        value = row[by]
        if isinstance(value, Cell | Delta):
            return math.isnan(value.mean), False, sign * value.mean
        if isinstance(value, Rank):
            return False, False, value.rank
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        if not missing and isinstance(value, float) and not isinstance(value, PValue):
            return False, False, sign * value
        return missing, isinstance(value, str), 0 if missing else value  # a grid may hold numbers and words

    holes = [row for row in rows if key(row)[0]]
    return sorted((row for row in rows if not key(row)[0]), key=key) + holes


def _title(sweep: Sweep, chosen: Sequence[Metric], classes: bool) -> str:
    there = sweep.results
    what = {name: sorted({str(r.row[name]) for r in there}) for name in ("data", "images", "encoder", "steps")}
    said = {name: values[0] if len(values) == 1 else "several" for name, values in what.items()}
    words = {True: "fine-tuned", False: "frozen"}
    trained = " and ".join(sorted({words[r.row["encoder_trainable"]] for r in there}))
    title = f"{sweep.folder.name}: {said['data']}, {said['images']} images, {trained} {said['encoder']}"
    held = sorted({r.row["split"] for r in there if str(r.row.get("split", "")).endswith("-held-out")})
    title += "".join(f", {split}" for split in held)
    title += f", {said['steps']} steps{upsampled(there)}" + "".join(
        sorted({f", {t}" for r in there if (t := r.row["evaluation_title"])})
    )
    return title + (f", {chosen[0].column} per class" if classes else "")


def _sparse(sweep: Sweep, headings: Sequence[str]) -> list[str]:
    """Classes with intervals of their own that are in fewer images than these need, see docs/statistics.md."""
    first = next((r for r in sweep.results if "region" in r.counts), None)
    if first is None:
        return []
    images = (first.counts["region"][:, 2] > 0).sum(0)
    of = ["{} 95 %", *(f"Δ {{}}{_from(sweep, b)}" for b in sweep.baselines)]
    shown = [any(h.replace("{}", name) in headings for h in of) for name in first.row["classes"]]
    return [c for c, n, s in zip(first.row["classes"], images, shown, strict=True) if s and 0 < n < FEW_IMAGES]


def units(rows: Sequence[dict[str, Any]], measures: Mapping[str, Measure]) -> str:
    """In what the scores are, such as ``in percent``."""
    units: dict[str, list[str]] = {}
    for heading, measure in measures.items():
        if any(isinstance(row[heading], Cell) for row in rows):
            units.setdefault(measure.unit, []).append(heading)
    if set(units) <= {"%"}:
        return "in percent"
    return "in " + ", ".join(f"{unit or 'no unit'} ({', '.join(names)})" for unit, names in units.items())


def _notes(
    sweep: Sweep,
    headings: Sequence[str],
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
    measures: Mapping[str, Measure],
) -> Iterator[str]:
    there, several = sweep.results, len(sweep.baselines) > 1
    few, many = (f({len(g.seeds) for g in sweep.groups}) for f in (min, max))
    seeds = f"{few} to {many}" if few < many else str(many)
    yield f"Mean ± sd over {seeds} seed{'s' if many > 1 else ''}, {units(rows, measures)}; last checkpoint."
    if any(isinstance(cell, Delta) for row in rows for cell in row.values()):
        about = "the recipe on such images" if many > 1 else "these trained models on such images: one seed"
        yield (
            f"Δ: from {' and from '.join(sweep.baselines)}, paired by seed and image, [95 % interval] about {about}; "
            "better, worse: p < 0.05 after Holm's correction over the decoders"
            + (", for each baseline by itself." if several else ".")
        )
    for group in sweep.groups:
        label = f" ({group.label})" if group.label else ""
        if len(group.decoders) > 1 and not set(columns).isdisjoint(CONTRASTS):
            yield from (f"No Δ{label}: {why}." for b in sweep.baselines if (why := unanswered(group, b)))
        for (decoder, seed), (name, share) in group.collapsed.items():
            yield f"Collapsed: {decoder}-s{seed}{label} predicts {name} for {100 * share:.1f} % of the pixels."
    if "as shipped" in headings:
        yield "As shipped: not the upsampling alone differs; encoder depth, strides of the features, and of the logits."
    yield from dict.fromkeys(filter(None, (unequal_starts(group, sweep.baselines) for group in sweep.groups)))
    if "chosen" in headings or "of budget" in headings:
        yield from effort.notes(sweep)
    yield from filter(None, (m.note([r.row for r in there]) for m in {m.name: m for m in measures.values()}.values()))
    names = there[0].row["classes"]
    counted = [r.counts["region"].sum(0) for r in there if "region" in r.counts]
    if counted and all(r.row["classes"] == names for r in there):
        total = np.sum(counted, axis=0)
        absent = [name for name, c in zip(names, total.T, strict=True) if not c.any()]
        if absent:
            yield f"Absent from the ground truth and never predicted, so left out of the means: {', '.join(absent)}."
        only = [name for name, c in zip(names, total.T, strict=True) if c.any() and not c[2]]
        if only:
            yield (
                "Absent from the ground truth but predicted by some decoders, for which they count as 0 in the mean: "
                f"{', '.join(only)}."
            )
    if sparse := _sparse(sweep, headings):
        yield f"Present in fewer than {FEW_IMAGES} images; intervals are too narrow: {', '.join(sparse)}."
    yield from thin_bands(there, [m.name for m in measures.values()])
    if any(len(r.ids) < 2 for r in there):
        yield "One image: no interval can be made."
    yield from (f"Missing: {hole}" for hole in [*sweep.holes, *lost(there)])
    yield version_note(there)


def version_note(results: Sequence[store.Result]) -> str:
    """By which version of the results' definition they were made; only those of one can be read."""
    return f"Result version {results[0].row['result_version']}."
