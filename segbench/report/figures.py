"""The report's plots: differences, accuracy against cost, classes, band widths, training, ranks; by matplotlib."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from segbench.measures.base import RunMeasure
from segbench.report.analysis import Analysis, Cell, Contrast, Delta
from segbench.report.drawing import (
    GRID,
    INK,
    MUTED,
    PALETTE,
    PAPER,
    Look,
    in_lines,
    legend,
    new_figure,
    point_to_the_far,
    short,
)

MOST_CLASSES = 20  # that one figure shows
ERROR_BAR: dict[str, Any] = {"elinewidth": 0.9, "capsize": 0, "markeredgecolor": PAPER, "markeredgewidth": 0.5}
Costs = Sequence[tuple[RunMeasure, Mapping[str, float]]]  # decoder -> value of each


@dataclass(frozen=True)
class Plot:
    """A figure and what a page says about it.

    Attributes:
        name: of its files.
        metric: that it shows; empty where it is not about one of those that a reader chooses between.
    """

    name: str
    title: str
    caption: str
    metric: str
    figure: Figure


def of_metric(analysis: Analysis, costs: Costs, look: Look, slug: str) -> Iterator[Plot]:
    """Scores of one metric against costs, and ranks. Those for which something is missing are left out."""
    name, metric, up = analysis.metric.words, analysis.metric.name, analysis.metric.measure.higher_is_better
    whole = [d for d in analysis.decoders if not math.isnan(analysis.cell(d).mean)]
    if len(whole) > 1:
        for cost, values in costs:
            if any(math.isnan(values[d]) for d in whole):
                continue
            where = f"{'Up' if up else 'Down'} and to the {'right' if cost.higher_is_better else 'left'}"
            yield Plot(
                f"{slug}-{cost.name}",
                f"{name} against {cost.long}",
                f"{where} is better; no decoder is better in both than those on the Pareto front. Bars: 95 % interval "
                f"of the mean.{_arrows(look)}",
                metric,
                against_cost(analysis, look, whole, cost, values),
            )
    if len(whole) > 1 and analysis.ranks:
        yield Plot(
            f"{slug}-ranks",
            f"Ranks by {name}",
            "Bars: ranks that the comparisons with all others leave open, at 95 %. Right: in how many of 10,000 "
            "resamples of images and seeds the decoder is the best.",
            metric,
            ranks(analysis, look),
        )


def of_means(contrast: Contrast, look: Look, name: str) -> Iterator[Plot]:
    """The differences of the means by one metric from one baseline; nothing where there is none."""
    if decoders := _compared(contrast):
        title = f"{contrast.metric.words}: difference from {short(contrast.baseline)}"
        caption = _arrows(look).strip()
        yield Plot(name, title, caption, contrast.metric.name, difference(contrast, look, decoders))


def of_classes(contrast: Contrast, look: Look, name: str) -> Iterator[Plot]:
    """The differences of the classes by one metric from one baseline; nothing where there is none, or no class."""
    if contrast.metric.measure.per_class and (decoders := _compared(contrast)):
        shown, left_out = shown_classes(contrast, decoders)
        side = "Right" if contrast.metric.measure.higher_is_better else "Left"
        more = f" The {len(shown)} classes that differ most; {left_out} are left out." if left_out else ""
        yield Plot(
            name,
            f"{contrast.metric.words} of each class, difference from {short(contrast.baseline)}",
            f"{side} of zero is better than the baseline.{_bars(look, 'paired 95 % interval')}{_arrows(look)}{more}",
            contrast.metric.name,
            per_class(contrast, look, decoders, shown),
        )


def _compared(contrast: Contrast) -> list[str]:
    return [d for d in contrast.decoders if not math.isnan(contrast.delta(d).mean)]


def difference(contrast: Contrast, look: Look, decoders: Sequence[str]) -> Figure:
    """The differences of the means from the baseline with their intervals."""
    figure = new_figure(0.62 + 0.24 * len(decoders))
    axes, digits = figure.add_subplot(), contrast.metric.measure.digits
    name_rows(axes, decoders)
    points = []
    for row, d in enumerate(decoders):
        delta = contrast.delta(d)
        _bar(axes, delta, row, look, d)
        points.append((d, delta.mean, row))
        look.mark(d, _beside(axes, row, f"{delta.mean:+.{digits}f}  {delta.verdict}".replace("-", "−")))
    _zero(axes, _delta_label(contrast.metric.column, contrast))
    point_to_the_far(axes, "x", points, look, contrast.metric.measure.higher_is_better, keep=0)
    return figure


def against_cost(
    analysis: Analysis, look: Look, decoders: Sequence[str], cost: RunMeasure, costs: Mapping[str, float]
) -> Figure:
    """Score over a cost, with the Pareto front. ``costs``: decoder -> value."""
    divisor, unit = _unit(cost, max(costs[d] for d in decoders))
    figure = new_figure(2.5)
    axes = figure.add_subplot()
    places = {d: (costs[d] / divisor, analysis.cell(d)) for d in decoders}
    less, up = not cost.higher_is_better, analysis.metric.measure.higher_is_better
    front = pareto({d: (x if less else -x, cell.mean if up else -cell.mean) for d, (x, cell) in places.items()})
    _cost_axis(axes, [x for x, _ in places.values()])
    dashed: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (4, 2))}
    steps = [(places[d][0], places[d][1].mean) for d in front]
    steps.append((axes.get_xlim()[1 if less else 0], steps[-1][1]))
    axes.plot(*zip(*steps, strict=True), drawstyle="steps-post", zorder=1, **dashed)
    named = _apart(axes, {d: places[d][0] for d in front}) if look.kinds else []
    for d, (x, cell) in places.items():
        bar = axes.errorbar(x, cell.mean, around(cell), fmt=look.marker(d), color=look.colour(d), **ERROR_BAR)
        look.mark(d, bar.lines)
        if d in named:
            ahead = x < np.mean(axes.get_xlim())
            beside: dict[str, Any] = {
                "ha": "left" if ahead else "right",
                "textcoords": "offset points",
                "fontsize": 6.5,
            }
            look.mark(d, axes.annotate(short(d), (x, cell.mean), (3 if ahead else -3, 4), **beside))
    axes.set_xlabel(in_lines(f"{cost.long} ({unit})", 44))
    axes.set_ylabel(in_lines(label_of(analysis.metric.column, analysis.metric.measure.unit)))
    point_to_the_far(axes, "y", [(d, cell.mean, x) for d, (x, cell) in places.items()], look, up)
    legend(figure, look, decoders, [(Line2D([], [], **dashed), "Pareto front")])
    return figure


def _apart(axes: Axes, places: dict[str, float]) -> list[str]:
    """Those by rising x that can bear a name: from the last, each a name's width before the next."""
    along = axes.transScale + axes.transLimits
    found: list[tuple[str, float]] = []
    for d, x in reversed(places.items()):
        at = float(along.transform((x, 0))[0])
        if not found or found[-1][1] - at > 0.25:
            found.append((d, at))
    return [d for d, _ in found]


def pareto(points: dict[str, tuple[float, float]]) -> list[str]:
    """Of name -> (cost, score) those to which none is both at most as costly and better, by rising cost."""
    front: list[str] = []
    for name in sorted(points, key=lambda n: (points[n][0], -points[n][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front


def shown_classes(contrast: Contrast, decoders: Sequence[str]) -> tuple[list[int], int]:
    """Places of the classes to show, at most `MOST_CLASSES`, those that differ most; and how many are left out."""
    classes = next(iter(contrast.group.results.values())).row["classes"]
    sizes = {}
    for place in range(len(classes)):
        means = [abs(contrast.delta(d, place).mean) for d in decoders]
        if not all(map(math.isnan, means)):
            sizes[place] = float(np.nanmax(means))
    chosen = sorted(sizes, key=lambda p: -sizes[p])[:MOST_CLASSES]
    return sorted(chosen), len(sizes) - len(chosen)


def per_class(contrast: Contrast, look: Look, decoders: Sequence[str], places: Sequence[int]) -> Figure:
    """Differences from the baseline, class by class."""
    classes = next(iter(contrast.group.results.values())).row["classes"]
    bars = not look.kinds
    figure = new_figure(0.85 + len(places) * (0.1 + 0.075 * len(decoders) if bars else 0.45))
    axes, points = figure.add_subplot(), []
    name_rows(axes, [classes[p] for p in places])
    for i, d in enumerate(decoders):
        shift = (i - (len(decoders) - 1) / 2) * 0.75 / len(decoders)
        for row, place in enumerate(places):
            delta = contrast.delta(d, place)
            if not math.isnan(delta.mean):
                _bar(axes, delta, row + shift, look, d, size=3.8, interval=bars)
                points.append((d, delta.mean, row + shift))
    for row in range(1, len(places)):
        axes.axhline(row - 0.5, color=GRID, linewidth=0.6, zorder=0)
    _zero(axes, _delta_label(contrast.metric.column, contrast))
    point_to_the_far(axes, "x", points, look, contrast.metric.measure.higher_is_better, keep=0)
    legend(figure, look, decoders)
    return figure


def over(found: Sequence[Analysis], look: Look, slug: str, baselines: Mapping[str, str]) -> Iterator[Plot]:
    """Measures of one kind as a curve, and their differences from each baseline.

    Args:
        found: by rising place on the curve.
        baselines: name of the baseline's files -> baseline.
    """
    decoders = [d for d in found[0].decoders if all(d in a.decoders for a in found)]
    if len(found) < 2 or not decoders:
        return
    measure = found[0].metric.measure
    axis = (measure.curve or ("", 0))[0].partition(" (")[0]
    title = f"{measure.long[:1].upper()}{measure.long[1:]} against {axis}"
    yield Plot(
        slug,
        title,
        f"{measure.help}.{_bars(look, '95 % interval of the mean')}{_arrows(look)}".removeprefix(". "),
        "",
        _over(found, look, decoders, lambda a, d: a.cell(d), label_of(measure.long, measure.unit)),
    )
    for suffix, baseline in baselines.items():
        others = [d for d in decoders if d != baseline]
        if baseline not in decoders or not others:
            continue
        label = _delta_label(measure.long, found[0].against(baseline))
        figure = _over(found, look, others, partial(_delta, baseline), label, keep=0)
        figure.axes[0].axhline(0, color=INK, linewidth=0.7, zorder=1)
        yield Plot(
            f"{slug}-difference{suffix}",
            f"{title}, difference from {short(baseline)}",
            f"{_bars(look, 'paired 95 % interval')}{_arrows(look)}".strip(),
            "",
            figure,
        )


def _bars(look: Look, what: str) -> str:
    """What bars are, where they are drawn: those of many decoders would hide each other."""
    return "" if look.kinds else f" Bars: {what}."


def _arrows(look: Look) -> str:
    """What arrows are, where there may be some."""
    return " Arrow at the edge: far behind, beyond it." if look.kinds else ""


def _delta(baseline: str, analysis: Analysis, decoder: str) -> Delta:
    return analysis.against(baseline).delta(decoder)


def _over(
    found: Sequence[Analysis],
    look: Look,
    decoders: Sequence[str],
    value: Callable[[Analysis, str], Cell | Delta],
    label: str,
    keep: float = math.nan,
) -> Figure:
    figure = new_figure(2.5)
    axes = figure.add_subplot()
    curves = [a.metric.measure.curve or ("", 0) for a in found]
    places = [place for _, place in curves]
    logarithmic = places[0] > 0 and places[-1] >= 8 * places[0]
    if logarithmic:
        axes.set_xscale("log", base=2)
    step = (places[-1] - places[0]) / 80
    points = []
    for i, d in enumerate(decoders):
        values = [value(a, d) for a in found]
        # Side by side, so that no bar hides another.
        aside = (i - (len(decoders) - 1) / 2) * min(1, len(PALETTE) / len(decoders))
        bars = np.array([around(v) for v in values])[..., 0].T
        none = bool(look.kinds) or bool(np.isnan(bars).all())
        across = [p * 2 ** (0.05 * aside) if logarithmic else p + step * aside for p in places]
        line = axes.errorbar(
            across,
            [v.mean for v in values],
            None if none else bars,
            fmt=f"{look.marker(d)}-",
            color=look.colour(d),
            markersize=4,
            **ERROR_BAR,
        )
        look.mark(d, line.lines)
        points += [(d, v.mean, x) for v, x in zip(values, across, strict=True)]
    point_to_the_far(axes, "y", points, look, found[0].metric.measure.higher_is_better, keep)
    axes.set_xticks(places, [f"{p:g}" for p in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(curves[0][0])
    axes.set_ylabel(in_lines(label))
    legend(figure, look, decoders)
    return figure


def ranks(analysis: Analysis, look: Look) -> Figure:
    """Rank, its interval and the chance of being the best."""
    found = analysis.ranks
    decoders = sorted(found, key=lambda d: found[d].rank)
    figure = new_figure(0.62 + 0.24 * len(decoders))
    axes = figure.add_subplot()
    name_rows(axes, decoders)
    for row, d in enumerate(decoders):
        rank = found[d]
        span = axes.plot([rank.low, rank.high], [row, row], color=look.colour(d), linewidth=2.4, alpha=0.45)
        point = axes.plot(
            rank.rank, row, look.marker(d), color=look.colour(d), markeredgecolor=PAPER, markeredgewidth=0.5
        )
        look.mark(d, (*span, *point, _beside(axes, row, f"best in {100 * rank.p_best:.0f} %")))
    axes.set_xlim(0.7, len(decoders) + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(f"rank by {analysis.metric.column}; 1 is best")
    return figure


def _beside(axes: Any, row: int, words: str) -> Any:
    """Words to the right of the axes, at the height of a row."""
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    return axes.annotate(words, (1, row), (4, 0), va="center", annotation_clip=False, **where)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [short(n) for n in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _bar(
    axes: Axes, delta: Delta, row: float, look: Look, decoder: str, size: float = 5.5, interval: bool = True
) -> None:
    bar = axes.errorbar(
        delta.mean,
        row,
        xerr=around(delta) if interval else None,
        fmt=look.marker(decoder),
        color=look.colour(decoder),
        markersize=size,
        **ERROR_BAR,
    )
    look.mark(decoder, bar.lines)


def _zero(axes: Axes, label: str) -> None:
    axes.axvline(0, color=INK, linewidth=0.7, zorder=1)
    axes.set_xlabel(label)


def label_of(name: str, unit: str) -> str:
    return f"{name}, {unit}" if unit else name


def _delta_label(column: str, contrast: Contrast) -> str:
    return label_of(f"Δ {column} from {short(contrast.baseline)}", contrast.metric.points)


def around(value: Cell | Delta) -> np.ndarray | None:
    """(2, 1) lengths of an error bar below and above the mean; NaN where there is no interval."""
    return np.array([[value.mean - value.low], [value.high - value.mean]])


def _unit(cost: RunMeasure, largest: float) -> tuple[float, str]:
    """By what values are divided, and in what they then are."""
    if not cost.prefix:
        return 1.0, cost.unit or "number"
    size, letter = next((s, n) for s, n in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (0, "")) if largest >= s)
    return size or 1.0, f"{letter} {cost.unit}".strip() or "number"


def _cost_axis(axes: Axes, values: Sequence[float]) -> None:
    """From zero, or by powers where the costs lie far apart."""
    if min(values) > 0 and max(values) / min(values) > 8:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.set_xlim(min(values) / 1.3, max(values) * 1.3)
    else:
        axes.set_xlim(0, 1.08 * max(values) or 1)
