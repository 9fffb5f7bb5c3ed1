"""The report's plots: differences, accuracy against cost, classes, band widths, training, ranks; by matplotlib."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from segbench import store
from segbench.metrics import iou, mean_over_classes
from segbench.report.analysis import Analysis, Cell, Contrast, Delta
from segbench.report.drawing import GRID, INK, MUTED, PAPER, Look, legend, new_figure, short
from segbench.report.words import spelled

MOST_CLASSES = 20  # that one figure shows
CURVE_POINTS = 120  # of one run's loss
ERROR_BAR: dict[str, Any] = {"elinewidth": 0.9, "capsize": 0, "markeredgecolor": PAPER, "markeredgewidth": 0.5}
COSTS = {
    "time": ("eval_ms_per_image", "time of the decoder"),
    "macs": ("macs", "multiply-accumulates of the decoder"),
    "params": ("parameters", "parameters of the decoder"),
}


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


def of_metric(analysis: Analysis, look: Look, slug: str) -> Iterator[Plot]:
    """Scores of one metric against costs, and ranks. Those for which something is missing are left out."""
    name, metric = spelled(analysis.metric), analysis.metric.name
    whole = [d for d in analysis.decoders if not math.isnan(analysis.cell(d).mean)]
    if len(whole) > 1:
        for cost, (_, called) in COSTS.items():
            yield Plot(
                f"{slug}-{cost}",
                f"{name} against {called}",
                "Up and to the left is better; no decoder is cheaper and better than those on the Pareto front. Bars: "
                "95 % interval of the mean.",
                metric,
                against_cost(analysis, look, whole, cost),
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
        title = f"{spelled(contrast.metric)}: difference from {short(contrast.baseline)}"
        yield Plot(name, title, "", contrast.metric.name, difference(contrast, look, decoders))


def of_classes(contrast: Contrast, look: Look, name: str) -> Iterator[Plot]:
    """The differences of the classes by one metric from one baseline; nothing where there is none."""
    if decoders := _compared(contrast):
        shown, left_out = shown_classes(contrast, decoders)
        more = f" The {len(shown)} classes that differ most; {left_out} are left out." if left_out else ""
        yield Plot(
            name,
            f"{spelled(contrast.metric)} of each class, difference from {short(contrast.baseline)}",
            f"Right of zero is better than the baseline. Bars: paired 95 % interval.{more}",
            contrast.metric.name,
            per_class(contrast, look, decoders, shown),
        )


def _compared(contrast: Contrast) -> list[str]:
    return [d for d in contrast.decoders if not math.isnan(contrast.delta(d).mean)]


def difference(contrast: Contrast, look: Look, decoders: Sequence[str]) -> Figure:
    """The differences of the means from the baseline with their intervals."""
    figure = new_figure(0.62 + 0.24 * len(decoders))
    axes = figure.add_subplot()
    _rows(axes, decoders)
    for row, d in enumerate(decoders):
        delta = contrast.delta(d)
        _bar(axes, delta, row, look, d)
        _beside(axes, row, f"{delta.mean:+.2f}  {delta.verdict}".replace("-", "−"))
    _zero(axes, _delta_label(contrast.metric.column, contrast.baseline))
    return figure


def against_cost(analysis: Analysis, look: Look, decoders: Sequence[str], cost: str) -> Figure:
    """Score over a cost, with the Pareto front."""
    costs = {d: float(np.mean([r.row[COSTS[cost][0]] for r in analysis.group.of(d)])) for d in decoders}
    divisor, unit = _unit(cost, max(costs.values()))
    figure = new_figure(2.5)
    axes = figure.add_subplot()
    places = {d: (costs[d] / divisor, analysis.cell(d)) for d in decoders}
    front = pareto({d: (x, cell.mean) for d, (x, cell) in places.items()})
    _cost_axis(axes, [x for x, _ in places.values()])
    dashed: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (4, 2))}
    steps = [(places[d][0], places[d][1].mean) for d in front]
    steps.append((axes.get_xlim()[1], steps[-1][1]))
    axes.plot(*zip(*steps, strict=True), drawstyle="steps-post", zorder=1, **dashed)
    for d, (x, cell) in places.items():
        axes.errorbar(x, cell.mean, _around(cell), fmt=look.marker(d), color=look.colour(d), **ERROR_BAR)
    axes.set_xlabel(f"{COSTS[cost][1]} ({unit})")
    axes.set_ylabel(f"{analysis.metric.column}, %")
    legend(figure, look, decoders, [(Line2D([], [], **dashed), "Pareto front")])
    return figure


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
    figure = new_figure(0.85 + len(places) * (0.1 + 0.075 * len(decoders)))
    axes = figure.add_subplot()
    _rows(axes, [classes[p] for p in places])
    for i, d in enumerate(decoders):
        shift = (i - (len(decoders) - 1) / 2) * 0.75 / len(decoders)
        for row, place in enumerate(places):
            delta = contrast.delta(d, place)
            if not math.isnan(delta.mean):
                _bar(axes, delta, row + shift, look, d, size=3.8)
    for row in range(1, len(places)):
        axes.axhline(row - 0.5, color=GRID, linewidth=0.6, zorder=0)
    _zero(axes, _delta_label(contrast.metric.column, contrast.baseline))
    legend(figure, look, decoders)
    return figure


def trimaps(
    found: Sequence[tuple[int, Analysis]], look: Look, slug: str, baselines: Mapping[str, str]
) -> Iterator[Plot]:
    """IoU within bands of several widths around the truth's contours, and its difference from each baseline.

    Args:
        found: (width in pixels, analysis), by rising width.
        baselines: name of the baseline's files -> baseline.
    """
    if len(found) < 2 or not found[0][1].decoders:
        return
    decoders = found[0][1].decoders
    yield Plot(
        f"{slug}trimap",
        "Trimap IoU against band width",
        "mIoU of the pixels within so many pixels of a true contour. Bars: 95 % interval of the mean.",
        "",
        _over_width(found, look, decoders, lambda a, d: a.cell(d), "trimap IoU, %"),
    )
    for suffix, baseline in baselines.items():
        others = [d for d in decoders if d != baseline]
        if baseline not in decoders or not others:
            continue
        label = _delta_label("trimap IoU", baseline)
        figure = _over_width(found, look, others, partial(_delta, baseline), label)
        figure.axes[0].axhline(0, color=INK, linewidth=0.7, zorder=1)
        yield Plot(
            f"{slug}trimap-difference{suffix}",
            f"Trimap IoU against band width, difference from {short(baseline)}",
            "A gap that closes with the width is a matter of contours. Bars: paired 95 % interval.",
            "",
            figure,
        )


def _delta(baseline: str, analysis: Analysis, decoder: str) -> Delta:
    return analysis.against(baseline).delta(decoder)


def _over_width(
    found: Sequence[tuple[int, Analysis]],
    look: Look,
    decoders: Sequence[str],
    value: Callable[[Analysis, str], Cell | Delta],
    label: str,
) -> Figure:
    figure = new_figure(2.5)
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    for i, d in enumerate(decoders):
        values = [value(a, d) for _, a in found]
        spread = 2 ** (0.05 * (i - (len(decoders) - 1) / 2))  # side by side, so that no bar hides another
        bars = np.array([_around(v) for v in values])[..., 0].T
        axes.errorbar(
            [w * spread for w, _ in found],
            [v.mean for v in values],
            None if np.isnan(bars).all() else bars,
            fmt=f"{look.marker(d)}-",
            color=look.colour(d),
            markersize=4,
            **ERROR_BAR,
        )
    axes.set_xticks([w for w, _ in found], [str(w) for w, _ in found])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("band width (px)")
    axes.set_ylabel(label)
    legend(figure, look, decoders)
    return figure


def ranks(analysis: Analysis, look: Look) -> Figure:
    """Rank, its interval and the chance of being the best."""
    found = analysis.ranks
    decoders = sorted(found, key=lambda d: found[d].rank)
    figure = new_figure(0.62 + 0.24 * len(decoders))
    axes = figure.add_subplot()
    _rows(axes, decoders)
    for row, d in enumerate(decoders):
        rank = found[d]
        axes.plot([rank.low, rank.high], [row, row], color=look.colour(d), linewidth=2.4, alpha=0.45)
        axes.plot(rank.rank, row, look.marker(d), color=look.colour(d), markeredgecolor=PAPER, markeredgewidth=0.5)
        _beside(axes, row, f"best in {100 * rank.p_best:.0f} %")
    axes.set_xlim(0.7, len(decoders) + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"rank by {analysis.metric.column}; 1 is best")
    return figure


def curves(runs: Sequence[store.Result], look: Look, slug: str) -> Iterator[Plot]:
    """Loss, and mIoU where it was evaluated midway, over the steps: a line for each run."""
    histories = [(r.row["decoder"], _with_final(h, r)) for r in runs if (h := _history(r)) is not None]
    losses = [(d, h.dropna(subset="loss")) for d, h in histories]
    scores = [(d, h.dropna(subset="val_miou")) for d, h in histories]
    panels = [("training loss", losses, "loss", 1.0), ("validation mIoU, %", scores, "val_miou", 100.0)]
    panels = [p for p in panels if any(len(h) for _, h in p[1])]
    if not panels:
        return
    figure = new_figure(0.5 + 1.9 * len(panels))
    drawn = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    per_point = 1
    for axes, (label, lines, column, factor) in zip(drawn, panels, strict=True):
        for d, history in lines:
            if column == "loss":
                per_point = max(per_point, len(history) // CURVE_POINTS)
            steps, values = _thinned(history, column, per_point if column == "loss" else 1)
            marker = look.marker(d) if column != "loss" else None
            axes.plot(steps, factor * values, color=look.colour(d), linewidth=0.8, alpha=0.85, marker=marker, ms=2.8)
        axes.set_ylabel(label)
    drawn[-1].set_xlabel("step")
    decoders = list(dict.fromkeys(d for d, _ in histories))
    legend(figure, look, decoders)
    mean = f" Each point of the loss is the mean of {per_point} steps." if per_point > 1 else ""
    yield Plot(f"{slug}training", "Training, a line for each seed", f"The last checkpoint counts.{mean}", "", figure)


def _history(run: store.Result) -> pandas.DataFrame | None:
    try:
        found = pandas.read_csv(run.folder / "history.csv")
    except (OSError, ValueError):  # left behind when the folder was copied, or broken off
        return None
    return found if {"step", "loss", "val_miou"} <= set(found.columns) else None


def _with_final(history: pandas.DataFrame, run: store.Result) -> pandas.DataFrame:
    """With the final evaluation as the last point, where there are others."""
    if history["val_miou"].isna().all():
        return history
    final = {"step": run.row["steps"], "val_miou": float(mean_over_classes(iou(run.counts["region"].sum(0))))}
    return pandas.concat(
        [history[history["val_miou"].isna() | (history["step"] < final["step"])], pandas.DataFrame([final])]
    )


def _thinned(history: pandas.DataFrame, column: str, each: int) -> tuple[np.ndarray, np.ndarray]:
    whole = len(history) // each * each
    steps, values = (history[c].to_numpy(float)[:whole].reshape(-1, each).mean(1) for c in ("step", column))
    return steps, values


def _beside(axes: Any, row: int, words: str) -> None:
    """Words to the right of the axes, at the height of a row."""
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(words, (1, row), (4, 0), va="center", annotation_clip=False, **where)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [short(n) for n in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _bar(axes: Axes, delta: Delta, row: float, look: Look, decoder: str, size: float = 5.5) -> None:
    axes.errorbar(
        delta.mean,
        row,
        xerr=_around(delta),
        fmt=look.marker(decoder),
        color=look.colour(decoder),
        markersize=size,
        **ERROR_BAR,
    )


def _zero(axes: Axes, label: str) -> None:
    axes.axvline(0, color=INK, linewidth=0.7, zorder=1)
    axes.set_xlabel(label)


def _delta_label(column: str, baseline: str) -> str:
    return f"Δ {column} from {short(baseline)}, points"


def _around(value: Cell | Delta) -> np.ndarray | None:
    """(2, 1) lengths of an error bar below and above the mean; NaN where there is no interval."""
    return np.array([[value.mean - value.low], [value.high - value.mean]])


def _unit(cost: str, largest: float) -> tuple[float, str]:
    if cost == "time":
        return 1.0, "ms per image"
    size, letter = next((s, n) for s, n in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (0, "")) if largest >= s)
    per = " at 512×512" if cost == "macs" else ""
    return size or 1.0, f"{letter}{per}".strip() or "number"


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
