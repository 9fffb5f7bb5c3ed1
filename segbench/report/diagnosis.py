"""The report's plots of what upsamplers do wrong: profiles, pictures, and scores that are not in the table."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from segbench.measures.base import Floats
from segbench.report import stats
from segbench.report.analysis import Analysis, Cell
from segbench.report.drawing import (
    COLUMN_IN,
    GRID,
    Look,
    in_lines,
    legend,
    new_figure,
    point_to_the_far,
    short,
)
from segbench.report.figures import ERROR_BAR, MOST_CLASSES, Plot, around, label_of, name_rows

ACROSS = 4  # pictures side by side
MOST_MARKERS = 16  # on a line


def diagnosis(analysis: Analysis, look: Look, slug: str) -> Iterator[Plot]:
    """What a measure gives to be drawn beside its score: see `CountMeasure.axis`, `picture` and `plotted`."""
    metric, measure = analysis.metric, analysis.metric.measure
    if not analysis.decoders:
        return
    title, side = f"{metric.words[:1].upper()}{metric.words[1:]}", "right" if measure.higher_is_better else "left"
    bars = "" if look.kinds else " Bars: 95 % interval."
    same = "" if _distinct(analysis) == analysis.decoders else " The same for all decoders."
    if measure.axis:
        axis = measure.axis[0].partition(" (")[0].partition(",")[0]
        yield Plot(slug, f"{title}, by {axis}", f"{measure.help}.{same}{bars}", "", lines(analysis, look))
    elif measure.plotted:
        better = f" Further to the {side} is better."
        yield Plot(slug, title, f"{measure.help}.{same or better}{bars}", "", scores(analysis, look))
    summed = analysis.counts.sum((1, 2))  # over seeds and images
    pictures = {d: measure.picture(counts) for d, counts in zip(analysis.decoders, summed, strict=True)}
    if there := {d: picture for d, picture in pictures.items() if picture is not None}:
        yield Plot(f"{slug}-picture", f"{title}: pictures", f"{measure.help}.", "", side_by_side(there, analysis, look))


def _distinct(analysis: Analysis) -> list[str]:
    """The decoders that are drawn: one where all counts are equal, as those of a property of the data are."""
    counts = analysis.counts
    return analysis.decoders[:1] if len(counts) > 1 and (counts == counts[:1]).all() else analysis.decoders


def lines(analysis: Analysis, look: Look) -> Figure:
    """Profiles, a line for each decoder; the places of the axis lie evenly, whatever they are."""
    measure, decoders = analysis.metric.measure, _distinct(analysis)
    name, places = measure.axis or ("", ())
    places = places or range(1, 1 + measure.profile(analysis.counts[0].sum(1)).shape[-1])
    even = bool(np.isfinite(places).all()) and float(np.ptp(np.diff(places))) < 1e-9
    across = list(places) if even else list(range(len(places)))
    counts, few = analysis.counts[: len(decoders)], len(places) <= MOST_MARKERS
    spread = few and not look.kinds and counts.shape[2] > 1
    found = stats.intervals(stats.measure(counts, measure.profile), (-math.inf, math.inf)) if spread else []
    low, high = measure.bounds
    figure, points = new_figure(2.5), list[tuple[str, float, float]]()
    axes = figure.add_subplot()
    for i, d in enumerate(decoders):
        values = stats.mean_over_classes(measure.profile(counts[i].sum(1)).T)  # over seeds
        ends = np.array([(cell.low, cell.high) for cell in found[i][:-1]]).T if spread else None
        if ends is not None and not (np.any(values < low) or np.any(values > high)):
            ends = ends.clip(low, high)  # where what is drawn lies within the bounds of the score
        bars = None if ends is None else np.abs(ends - values)
        marker = look.marker(d) if few else ""
        line = axes.errorbar(across, values, bars, fmt=f"{marker}-", color=look.colour(d), markersize=3.5, **ERROR_BAR)
        look.mark(d, line.lines)
        points += [(d, float(value), x) for value, x in zip(values, across, strict=True)]
    point_to_the_far(axes, "y", points, look, measure.higher_is_better)
    if not even or len(places) < 8:
        axes.set_xticks(across, [f"{p:g}" if math.isfinite(p) else f">{places[-2]:g}" for p in places])
    axes.set_xlabel(name)
    axes.set_ylabel(in_lines(measure.drawn or label_of(measure.long, measure.unit)))
    if decoders == analysis.decoders:
        legend(figure, look, decoders)
    return figure


def scores(analysis: Analysis, look: Look) -> Figure:
    """The score of each class, or of each decoder where it is not made of classes."""
    decoders, of_classes = _distinct(analysis), analysis.metric.measure.per_class
    names = next(iter(analysis.group.results.values())).row["classes"] if of_classes else decoders
    cells: list[list[Cell]] = [
        [analysis.cell(d, i) for i in range(len(names))] if of_classes else [analysis.cell(d)] for d in decoders
    ]
    if of_classes:
        there = [i for i in range(len(names)) if not all(math.isnan(row[i].mean) for row in cells)][:MOST_CLASSES]
        rows, cells = [names[i] for i in there], [[row[i] for i in there] for row in cells]
    else:
        rows = list(decoders)
    figure = new_figure(0.85 + len(rows) * (0.16 + (0.06 * len(decoders) if of_classes and not look.kinds else 0.08)))
    axes = figure.add_subplot()
    name_rows(axes, rows)
    for i, d in enumerate(decoders):
        aside = (i - (len(decoders) - 1) / 2) * 0.75 / len(decoders) if of_classes else i
        for row, cell in enumerate(cells[i]):
            if not math.isnan(cell.mean):
                span, shape = None if look.kinds else around(cell), look.marker(d)
                bar = axes.errorbar(
                    cell.mean, row + aside, xerr=span, fmt=shape, color=look.colour(d), markersize=3.8, **ERROR_BAR
                )
                look.mark(d, bar.lines)
    for row in range(1, len(rows)) if of_classes else ():
        axes.axhline(row - 0.5, color=GRID, linewidth=0.6, zorder=0)
    axes.set_xlabel(in_lines(label_of(analysis.metric.column, analysis.metric.measure.unit), 44))
    if of_classes and decoders == analysis.decoders:
        legend(figure, look, decoders)
    return figure


def side_by_side(pictures: Mapping[str, Floats], analysis: Analysis, look: Look) -> Figure:
    """A picture of each decoder, all on one scale."""
    down = -(-len(pictures) // ACROSS)
    figure = new_figure(0.7 + down * (COLUMN_IN / ACROSS + 0.1))
    grid = figure.subplots(down, ACROSS, squeeze=False)
    finite = np.concatenate([p[np.isfinite(p)] for p in pictures.values()])
    scale = Normalize(*((finite.min(), finite.max()) if len(finite) else (0, 1)))
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (d, picture) in zip(grid.flat, pictures.items(), strict=False):
        look.mark(d, axes.imshow(picture, "viridis", scale, interpolation="nearest"))
        axes.set_title(short(d), fontsize=6.5, pad=2)
    bar = figure.colorbar(
        ScalarMappable(scale, "viridis"), ax=grid, location="bottom", fraction=0.06, pad=0.03, aspect=40
    )
    measure = analysis.metric.measure
    bar.set_label(in_lines(measure.drawn or label_of(measure.long, measure.unit), 44))
    return figure
