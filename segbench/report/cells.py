"""The page's tables: cells with their text, their sort value and their interval as a small bar."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segbench.measures.base import CountMeasure, RunMeasure
from segbench.report import effort
from segbench.report.analysis import Analysis, Cell, Contrast, Delta
from segbench.report.runs import Group, Sweep

MARKS = {"better": "▲", "worse": "▼", "inconclusive": "~", "within noise": "≈", "one seed": "?", "": ""}


@dataclass(frozen=True)
class Bar:
    """An interval on the scale of its column, in percent of the bar's width; ``zero`` is None off the scale."""

    start: float
    width: float
    middle: float
    zero: float | None


@dataclass(frozen=True)
class Shown:
    """A cell of the page.

    Attributes:
        value: to sort by; None for a hole.
        text, more: what is read first, and beside it.
        verdict: of a difference; empty elsewhere.
    """

    value: float | None
    text: str
    more: str = ""
    verdict: str = ""
    bar: Bar | None = None
    best: bool = False

    @property
    def mark(self) -> str:
        return MARKS[self.verdict]


@dataclass(frozen=True)
class Head:
    """A column's heading."""

    text: str
    help: str = ""
    rising: bool = False  # sorted from the lowest first


@dataclass(frozen=True)
class View:
    """A table: groups of columns (title, number of columns), headings, and (name, cells) for each row."""

    spans: list[tuple[str, int]]
    heads: list[Head]
    rows: list[tuple[str, list[Shown]]]


Columns = tuple[str, list[tuple[Head, list[Shown]]]]  # a group's title, and each heading with its cells


def searched(sweep: Sweep, group: Group, analysis: Analysis | None) -> Iterator[Columns]:
    """What was searched for each decoder: its setting, beside the sweep's own, and its width; nothing where it was not.

    Args:
        analysis: of the group, by the question's own measure.
    """
    fixed = effort.fixed_beside(sweep, group)
    if fixed is not None and analysis is not None:
        metric, decoders = analysis.metric, group.decoders
        gains, unit = effort.gains(sweep, group, metric), metric.points and f", {metric.points}"
        shown = _deltas(metric.measure, [gains.get(d) for d in decoders])
        same = {d: Shown(None, "as fixed" if effort.as_fixed(sweep, group, d) else "–") for d in decoders}
        rising = not metric.measure.higher_is_better
        own = [
            (Head("fixed", "Mean and standard deviation with the sweep's own settings", rising),
             _scores(before := Analysis(fixed, metric), [before.cell(d) for d in decoders])),
            (Head("Δ from fixed", f"What tuning changes, with its paired 95 % interval{unit}", rising),
             [s if d in gains else same[d] for d, s in zip(decoders, shown, strict=True)]),
            (Head("chosen", "The setting that scored best on the images held out"),
             [_said(effort.chosen(sweep, group, d)) for d in decoders]),
            (Head("trials", "Settings that were tried"), [_said(effort.trials(group, d)) for d in decoders]),
            (Head("best − median", "How much better the chosen setting did there than the median of those tried", True),
             [_said(effort.flatness(group, d)) for d in decoders]),
        ]  # fmt: skip
        yield f"tuned beside fixed, in {metric.column}", own
    if any("budget" in of for of in group.found.values()):
        own = [
            (Head("width", "By which its cost was chosen", True),
             [_said(effort.width(group, d)) for d in group.decoders]),
            (Head("of budget", "How much more or less it costs", True),
             [_said(effort.of_budget(group, d)) for d in group.decoders]),
        ]  # fmt: skip
        yield "budget", own


def _said(value: str | int | None) -> Shown:
    """Of what was searched; text that starts with a number is sorted by that."""
    if value is None:
        return Shown(None, "–")
    with contextlib.suppress(ValueError):
        return Shown(float(str(value).partition(" ")[0]), str(value))
    return Shown(None, value if isinstance(value, str) else str(value))


def means(
    group: Group,
    analyses: Sequence[Analysis],
    baselines: Sequence[str],
    costs: Sequence[tuple[RunMeasure, Mapping[str, float]]],
    more: Sequence[Columns] = (),
) -> View:
    """Rows are decoders; columns ``more``, the mean over classes, its difference from each baseline, and the costs.

    Args:
        costs: measures of runs, and decoder -> mean over its runs.
    """
    spans, heads = [("", 1)], [Head("n", "Finished seeds")]
    columns = [[_finished(group, d) for d in group.decoders]]
    for title, own in more:
        spans.append((title, len(own)))
        heads += [head for head, _ in own]
        columns += [column for _, column in own]
    possible = [b for b in baselines if b in group.whole and len(group.decoders) > 1]
    for a in analyses:
        measure, unit = a.metric.measure, a.metric.measure.unit
        rising = not measure.higher_is_better
        about = f"{measure.help or a.metric.words}: mean and standard deviation over seeds{unit and f', {unit}'}"
        heads.append(Head("mean ± sd", about, rising))
        columns.append(_scores(a, [a.cell(d) for d in group.decoders]))
        compared = possible if measure.per_class or measure.verdict_place is not None else []
        for b in compared:
            points = a.metric.points
            heads.append(
                Head(f"Δ from {b}", f"Difference with its paired 95 % interval{points and f', {points}'}", rising)
            )
            columns.append(_deltas(measure, [None if d == b else a.against(b).delta(d) for d in group.decoders]))
        spans.append((a.metric.column, 1 + len(compared)))
    for cost, of in costs:
        heads.append(Head(cost.short, cost.help, rising=not cost.higher_is_better))
        columns.append([Shown(_none(of[d]), cost.text(of[d])) for d in group.decoders])
    spans += [("cost of the decoder", len(costs))] if costs else []
    rows = [(d, [column[i] for column in columns]) for i, d in enumerate(group.decoders)]
    return View(spans, heads, rows)


def classes(contrast: Contrast, names: Sequence[str]) -> View:
    """Rows are classes; columns the decoders' scores, on one scale in each row, and below their differences."""
    analysis, group = contrast.analysis, contrast.group
    cells = {d: [analysis.cell(d, i) for i in range(len(names))] for d in group.decoders}
    rows = []
    for i, name in enumerate(names):
        best = _best(analysis, [cells[d][i] for d in group.decoders])
        scale = _scale(cells[d][i] for d in group.decoders)
        line = []
        for d in group.decoders:
            cell, delta = cells[d][i], contrast.delta(d, i)
            more = "" if math.isnan(delta.mean) else _signed(delta)
            text = _hole(cell) if math.isnan(cell.mean) else analysis.metric.measure.text(cell.mean)
            bar = _bar(cell, scale)
            line.append(Shown(_none(cell.mean), text, more, delta.verdict, bar, cell.mean == best))
        rows.append((name, line))
    rising = not analysis.metric.measure.higher_is_better
    heads = [Head(d, "the baseline" if d == contrast.baseline else "", rising) for d in group.decoders]
    return View([(analysis.metric.column, len(heads))], heads, rows)


def plain(value: Cell | Delta) -> dict[str, Any]:
    """For JSON: unrounded, None for what cannot be had."""
    return {k: _none(v) if isinstance(v, float) else v for k, v in vars(value).items()}


def _finished(group: Group, decoder: str) -> Shown:
    number = len(group.of(decoder))
    collapsed = sum(d == decoder for d, _ in group.collapsed)
    return Shown(number, str(number), f"{collapsed} collapsed" if collapsed else "")


def _best(analysis: Analysis, cells: Iterable[Cell]) -> float:
    best = max if analysis.metric.measure.higher_is_better else min
    return best((c.mean for c in cells if not math.isnan(c.mean)), default=math.nan)


def _scores(analysis: Analysis, cells: Sequence[Cell]) -> list[Shown]:
    measure, scale, best = analysis.metric.measure, _scale(cells), _best(analysis, cells)
    shown = []
    for c in cells:
        sd = "" if math.isnan(c.sd) else f"± {measure.text(c.sd)}"
        text = _hole(c) if math.isnan(c.mean) else measure.text(c.mean)
        shown.append(Shown(_none(c.mean), text, sd, "", _bar(c, scale), c.mean == best and len(cells) > 1))
    return shown


def _deltas(measure: CountMeasure, deltas: Sequence[Delta | None]) -> list[Shown]:
    scale = _scale([d for d in deltas if d is not None], zero=True)
    return [_delta(d, scale, measure.digits) for d in deltas]


def _delta(d: Delta | None, scale: tuple[float, float], digits: int) -> Shown:
    if d is None:
        return Shown(None, "baseline")
    if math.isnan(d.mean):
        return Shown(None, "–")
    more = "" if math.isnan(d.low) else f"[{d.low:+.{digits}f}, {d.high:+.{digits}f}]"
    return Shown(
        d.mean, f"{d.mean:+.{digits}f}".replace("-", "−"), more.replace("-", "−"), d.verdict, _bar(d, scale, True)
    )


def _signed(d: Delta) -> str:
    interval = "" if math.isnan(d.low) else f" [{d.low:+.1f}, {d.high:+.1f}]"
    return f"{d.mean:+.1f}{interval}".replace("-", "−")


def _hole(cell: Cell) -> str:
    return "–" if cell.n == cell.wanted else f"{cell.n} of {cell.wanted} runs"


def _none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _scale(values: Iterable[Cell | Delta], zero: bool = False) -> tuple[float, float]:
    ends = [0.0] if zero else []
    for v in values:
        ends += [x for x in (v.low, v.high, v.mean) if not math.isnan(x)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _bar(value: Cell | Delta, scale: tuple[float, float], zero: bool = False) -> Bar | None:
    if math.isnan(value.low):
        return None
    low, high = scale

    def at(x: float) -> float:
        return round(2 + 96 * (x - low) / (high - low), 2)

    start, end = at(value.low), at(value.high)
    return Bar(start, round(end - start, 2), at(value.mean), at(0.0) if zero else None)
