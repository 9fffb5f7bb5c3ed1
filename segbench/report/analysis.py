"""One metric on one group of runs: scores, intervals, ranks, and differences from a baseline, in its unit."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from segbench.report import ranking, stats
from segbench.report.metrics import Metric
from segbench.report.runs import Group


@dataclass(frozen=True)
class Cell:
    """Mean over seeds of a score; a hole where runs are missing.

    Attributes:
        mean, sd: over seeds. NaN for a hole; sd also for one seed.
        low, high: 95 % interval of the mean, images and seeds being samples; NaN where it cannot be had.
        n, wanted: seeds that are there, and that the sweep has; the mean is only made where they are equal.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int
    wanted: int


@dataclass(frozen=True)
class Delta:
    """Difference from the baseline, paired by seed and by image.

    Attributes:
        mean, low, high: with its 95 % interval; NaN for a hole.
        p, p_holm: two-sided, as it is and after Holm's correction over the decoders of the group, for this baseline.
        verdict: better, worse, inconclusive, within noise, one seed; see `segbench.report.stats`. Empty for a hole.
    """

    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    verdict: str


class PValue(float):
    """A number that people read as a p-value."""


HOLE = Delta(math.nan, math.nan, math.nan, math.nan, math.nan, "")


class Analysis:
    """A metric on a group. Only decoders with every seed take part in intervals, differences and ranks.

    Args:
        group: runs that may be compared.
        metric: the score.
    """

    def __init__(self, group: Group, metric: Metric) -> None:
        self.group, self.metric = group, metric
        whole = [d for d in group.whole if all(metric.there(r) for r in group.of(d))]
        shapes = {d: {metric.counts(r).shape for r in group.of(d)} for d in whole}
        # What is counted can depend on the decoder, as on its stride: then only those like the first are compared.
        self.decoders = [d for d in whole if shapes[d] == shapes[whole[0]]]
        self._contrasts: dict[str, Contrast] = {}

    def against(self, baseline: str) -> "Contrast":
        """The differences from a baseline; made once for each."""
        return self._contrasts.setdefault(baseline, Contrast(self, baseline))

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """(D, S, N, C, K)."""
        return np.stack(
            [np.stack([self.metric.counts(self.group.results[d, s]) for s in self.group.seeds]) for d in self.decoders]
        )

    @cached_property
    def measured(self) -> stats.Measured | None:
        """None where there is nothing to measure the spread by: no whole decoder, or one image."""
        if not self.decoders or self.counts.shape[2] < 2:
            return None
        return stats.measure(self.counts, self.metric.measure.score)

    @cached_property
    def _intervals(self) -> list[list[stats.Interval]] | None:
        return None if self.measured is None else stats.intervals(self.measured, self.metric.measure.bounds)

    @cached_property
    def _resampled(self) -> npt.NDArray[np.float64]:
        """(R, D, S, 1): the means over classes alone."""
        return ranking.bootstrap(self.counts, self.metric.measure.score)[..., -1:].copy()

    @cached_property
    def draws(self) -> npt.NDArray[np.float64] | None:
        """(R, D): scores as images and seeds could have fallen, see `segbench.report.ranking.joint_draws`."""
        return None if self.measured is None else ranking.joint_draws(self.measured, self._resampled[..., 0])

    @cached_property
    def ranks(self) -> dict[str, ranking.Rank]:
        """Of each whole decoder, by the mean over classes."""
        if self.measured is None:
            return {}
        measure = self.metric.measure
        found = ranking.ranks(self.measured, self._resampled, higher_is_better=measure.higher_is_better)
        return dict(zip(self.decoders, found, strict=True))

    def cell(self, decoder: str, place: int = -1) -> Cell:
        """The score of a decoder: the mean over classes, or that of the class at ``place``."""
        there = [_at(self.metric.per_class(r), place) for r in self.group.of(decoder) if self.metric.there(r)]
        wanted = len(self.group.seeds)
        if len(there) < wanted:
            return Cell(math.nan, math.nan, math.nan, math.nan, len(there), wanted)
        sd = float(np.std(there, ddof=1)) if len(there) > 1 else math.nan
        low = high = math.nan
        if self._intervals is not None and decoder in self.decoders:
            found = self._intervals[self.decoders.index(decoder)][place]
            low, high = found.low, found.high
        return Cell(float(np.mean(there)), sd, low, high, wanted, wanted)


class Contrast:
    """The differences of an analysis from one baseline.

    Args:
        analysis: of the scores.
        baseline: a decoder; with a hole, or not there, it gives no difference.
    """

    def __init__(self, analysis: Analysis, baseline: str) -> None:
        self.analysis, self.baseline = analysis, baseline
        self.metric, self.group, self.decoders = analysis.metric, analysis.group, analysis.decoders
        self.possible = baseline in self.decoders

    @cached_property
    def _differences(self) -> dict[int, list[stats.Difference]]:
        measured = self.analysis.measured
        if measured is None or not self.possible:
            return {}
        measure = self.metric.measure
        return stats.differences(measured, self.decoders.index(self.baseline), measure.bounds, measure.higher_is_better)

    def difference(self, decoder: str, place: int = -1) -> stats.Difference | None:
        """None for the baseline itself and for a hole."""
        if decoder not in self.decoders:
            return None
        found = self._differences.get(self.decoders.index(decoder))
        return None if found is None else found[place]

    def delta(self, decoder: str, place: int = -1) -> Delta:
        found = self.difference(decoder, place)
        if found is None:
            return HOLE
        return Delta(found.value, found.low, found.high, found.p, found.p_holm, found.verdict)


def _at(per_class: npt.NDArray[np.float64], place: int) -> float:
    if place >= 0:
        return float(per_class[place])
    there = per_class[~np.isnan(per_class)]
    return float(there.mean()) if len(there) else math.nan
