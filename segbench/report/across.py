"""The report's plot of one task against the other: does what is good at pixels place boundaries?"""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from segbench.report import ranking
from segbench.report.analysis import Analysis
from segbench.report.drawing import Look, in_lines, legend, new_figure
from segbench.report.figures import Plot, around, label_of
from segbench.report.metrics import available
from segbench.report.runs import Group, Sweep

TASK = "task"  # the key of a sweep's grid
PLAIN = "segmentation"


def task_of(group: Group) -> str:
    return next(str(r.row.get(TASK, PLAIN)) for r in group.results.values())


def beside(sweep: Sweep, group: Group) -> Group | None:
    """The group of the same decoders in all else alike that segments, for one of another task."""
    if TASK not in group.variant or task_of(group) == PLAIN:
        return None
    alike = {k: v for k, v in group.variant.items() if k != TASK}
    others = (g for g in sweep.groups if {k: v for k, v in g.variant.items() if k != TASK} == alike)
    return next((other for other in others if task_of(other) == PLAIN), None)


def main_of(analyses: Iterable[Analysis]) -> list[Analysis]:
    """By which a verdict is given: of each kind that says so the first, the question's own measure first."""
    kinds: dict[str, Analysis] = {}
    for a in analyses:
        if a.metric.measure.verdict_place is not None:
            kinds.setdefault(a.metric.measure.kind, a)
    return sorted(kinds.values(), key=lambda a: a.metric.measure.verdict_place or 0)


def against_segmentation(sweep: Sweep, group: Group, look: Look, slug: str) -> Iterator[Plot]:
    """A panel for each score of segmentation, over the first score of this group's task."""
    other = beside(sweep, group)
    if other is None:
        return
    ours, theirs = (main_of(Analysis(g, m) for m in available(list(g.results.values()))) for g in (group, other))
    ours = ours[:1]
    decoders = [d for d in group.decoders if all(d in a.decoders for a in (*ours, *theirs))]
    if not ours or not theirs or len(decoders) < 2:
        return
    figure = new_figure(0.5 + 2.2 * len(theirs))
    x = ours[0]
    for axes, y in zip(figure.subplots(len(theirs), 1, sharex=True, squeeze=False)[:, 0], theirs, strict=True):
        for d in decoders:
            cells = x.cell(d), y.cell(d)
            bars = [None if math.isnan(c.low) else around(c) for c in cells]
            drawn = axes.errorbar(
                [cells[0].mean], [cells[1].mean], xerr=bars[0], yerr=bars[1], color=look.colour(d), linewidth=0.8,
                marker=look.marker(d), linestyle="none",
            )  # fmt: skip
            look.mark(d, tuple(part for part in drawn if part is not None))
        axes.set_ylabel(in_lines(label_of(y.metric.column, y.metric.measure.unit)))
    axes.set_xlabel(label_of(x.metric.column, x.metric.measure.unit))
    legend(figure, look, decoders)
    said = " ".join(f"{y.metric.words}: {rank_correlation(x, y, decoders)}." for y in theirs)
    yield Plot(
        f"{slug}across",
        f"{task_of(group).capitalize()} against segmentation",
        f"Means over seeds with 95 % intervals. Rank correlation (Spearman) with {x.metric.words} over these "
        f"{len(decoders)} decoders, with its 95 % interval: {said}",
        "",
        figure,
    )


def rank_correlation(x: Analysis, y: Analysis, decoders: list[str]) -> str:
    """Spearman's, of two scores' means, above 0 where what is better in one is better in the other, in words."""
    if x.draws is None or y.draws is None:
        return "one image, so none"
    means, draws = [], []
    for a, drawn in ((x, x.draws), (y, y.draws)):
        sign = 1 if a.metric.measure.higher_is_better else -1
        means.append(sign * np.array([a.cell(d).mean for d in decoders]))
        draws.append(sign * drawn[:, [a.decoders.index(d) for d in decoders]])
    value, low, high = ranking.rank_correlation(means, draws)
    return "none, one score is the same for all" if math.isnan(value) else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
