"""Intervals, paired differences and power from integer counts per image. NumPy and SciPy only.

Both the images and the seeds of a sweep are samples: the target of an interval is the score that the recipe has on the
population of images, expected over seeds. Definitions, choices, coverage found by simulation: docs/statistics.md.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from segbench.measures.base import iou, mean_over_classes

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.integer[Any]]
Score = Callable[[Any], Floats]  # (..., C, K) counts summed over images -> (..., K) in a unit of its own

ALPHA = 0.05
MOST_SEEDS, MOST_IMAGES = 1_000, 10_000_000  # where `needed` gives up


@dataclass(frozen=True)
class Measured:
    """Scores of a sweep and what each image contributes to them.

    Attributes:
        values: (D, S, K + 1) in the score's unit: decoder, seed, class, the last their mean. NaN: class absent.
        influence: (N, D, S, K + 1), mean 0 over images: delete-one jackknife, (N - 1) (score - score without image i).
    """

    values: Floats
    influence: Floats


@dataclass(frozen=True)
class Spread:
    """Components of the variance of a score (or of a difference), of one seed on these images.

    Attributes:
        seeds, images: how many were seen.
        between_seeds: sample variance of the scores over seeds; it holds ``own_images``. NaN for one seed.
        shared_images: covariance of the scores of two seeds that comes from their sharing the images: the part of the
            image variance that more seeds do not lessen. For one seed, the whole image variance.
        own_images: the other part, by which one seed finds other images hard than another; 0 for one seed.
        df_images: degrees of freedom of the image variance, 2 to images - 1; few where few images hold the class.
    """

    seeds: int
    images: int
    between_seeds: float
    shared_images: float
    own_images: float
    df_images: float

    def at(self, seeds: int, images: float) -> tuple[float, float]:
        """Standard error of the mean over ``seeds`` on ``images``, and its degrees of freedom.

        With one seed seen, that of this trained model, whatever ``seeds``.
        """
        scale = self.images / images
        image_part = max(self.shared_images, 0.0) * scale
        image_df = self.df_images / scale
        if self.seeds == 1:
            return math.sqrt(image_part), image_df
        between = self.between_seeds - min(self.own_images, self.between_seeds) * (1 - scale)
        variance = between / seeds + image_part
        share = between / seeds / variance if variance > 0 else 1.0
        return math.sqrt(variance), 1 / (share / (seeds - 1) + (1 - share) / image_df)


@dataclass(frozen=True)
class Interval:
    """A score or a difference of scores with its 95 % interval, in the score's unit; NaN where undefined.

    Attributes:
        value: mean over seeds.
        low, high: the interval, cut off at the ends of the scale.
        se, df: its standard error and degrees of freedom.
        spread: where the variance comes from.
    """

    value: float
    low: float
    high: float
    se: float
    df: float
    spread: Spread

    @property
    def scope(self) -> str:
        """What the interval is about: one seed says nothing about other seeds."""
        return "this trained model" if self.spread.seeds == 1 else "the recipe"


@dataclass(frozen=True)
class Difference(Interval):
    """Paired difference from the baseline.

    Attributes:
        p: two-sided; below 0.05 exactly where the interval leaves out zero.
        p_holm: p after Holm's correction over the family of comparisons, see `differences`.
        higher_is_better: of the score.
    """

    p: float
    p_holm: float
    higher_is_better: bool = True

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` by ``p_holm``: a claim about the recipes, for the whole table.

        ``within noise`` where the interval holds zero; ``inconclusive`` where it does not, which the correction takes
        back.

        ``one seed`` where there is one: two trainings of one recipe differ too. Empty where undefined.
        """
        if math.isnan(self.value):
            return ""
        if self.spread.seeds == 1:
            return "one seed"
        if self.p >= ALPHA:
            return "within noise"
        if self.p_holm >= ALPHA:
            return "inconclusive"
        return "better" if (self.value > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Needed:
    """How many seeds, or else images, settle a difference; totals, those at hand included.

    Attributes:
        seeds: with the images at hand. None where no number of seeds is enough, or where only one seed has been seen.
        images: with the seeds at hand. None where no number of images is enough.
    """

    seeds: int | None
    images: int | None


def measure(counts: Counts, score: Score = iou) -> Measured:
    """Scores and each image's influence on them, by the delete-one jackknife (Efron & Stein 1981).

    Args:
        counts: (D, S, N, C, K): decoder, seed, image, kind of count, class. One order of images and seeds for all.
        score: `iou` (C = 3), `contour_f1` (C = 4), or another with the same shapes.

    Raises:
        ValueError: not five axes, not integers, or fewer than two images.
    """
    counts = checked(counts)
    images = counts.shape[2]
    total = counts.sum(2)  # (D, S, C, K)
    per_class = score(total)
    values = with_mean(per_class)
    influence = np.empty((images, *values.shape))
    for run in np.ndindex(*values.shape[:2]):
        without = kept(score(total[run] - counts[run]), per_class[run])  # (N, K)
        influence[:, *run] = (images - 1) * (values[run] - with_mean(without))
    return Measured(values, influence - influence.mean(0))


def intervals(measured: Measured, bounds: tuple[float, float] = (0.0, 1.0)) -> list[list[Interval]]:
    """The interval of each decoder's score: ``[decoder][class]``, the last of each the mean over classes.

    ``bounds``: lowest and highest possible score, at which intervals are cut off.
    """
    return [[_interval(v, i, bounds) for v, i in _columns(measured, d)] for d in range(len(measured.values))]


def differences(
    measured: Measured, baseline: int, bounds: tuple[float, float] = (0.0, 1.0), higher_is_better: bool = True
) -> dict[int, list[Difference]]:
    """Differences from a baseline, paired by seed and by image: ``[decoder][class]``, the last of each the mean.

    ``bounds``: of the score.

    Holm's correction (Holm 1979) is over all decoders for the means, and over all decoders and classes for the classes.
    """
    others = [d for d in range(len(measured.values)) if d != baseline]
    against, width = list(_columns(measured, baseline)), bounds[1] - bounds[0]
    rows = [
        [
            _interval(v - bv, i - bi, (-width, width))
            for (v, i), (bv, bi) in zip(_columns(measured, d), against, strict=True)
        ]
        for d in others
    ]
    p = np.array([[_p_value(cell) for cell in row] for row in rows]).reshape(len(rows), len(against))
    adjusted = np.column_stack([holm(p[:, :-1].ravel()).reshape(p[:, :-1].shape), holm(p[:, -1])])
    return {
        d: [
            Difference(**vars(c), p=float(a), p_holm=float(b), higher_is_better=higher_is_better)
            for c, a, b in zip(*cells, strict=True)
        ]
        for d, *cells in zip(others, rows, p, adjusted, strict=True)
    }


def holm(p: npt.ArrayLike) -> Floats:
    """P-values (n,) after the step-down correction of Holm (1979); NaN is no comparison and stays."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def power(delta: float, se: float, df: float, alpha: float = ALPHA) -> float:
    """Chance that a true difference ``delta`` gives a two-sided p below ``alpha``, by the noncentral t distribution."""
    if se == 0:
        return 1.0
    middles = (np.arange(1000) + 0.5) / 1000
    limits = float(stats.t.isf(alpha / 2, df)) * np.sqrt(stats.chi2.ppf(middles, df) / df)
    return float(np.mean(stats.norm.sf(limits - delta / se) + stats.norm.sf(limits + delta / se)))


def needed(spread: Spread, delta: float, wanted: float = 0.8, comparisons: int = 1) -> Needed:
    """How many seeds, or images, give a true difference ``delta`` the chance ``wanted`` of being found at p < 0.05.

    Args:
        spread: of a `Difference` that was seen; its variances are taken for the true ones.
        delta: size of the difference, in the score's unit.
        wanted: power, in 0 to 1.
        comparisons: D - 1 makes it enough for Holm's correction, whatever the other comparisons give.

    Raises:
        ValueError: ``delta`` or ``wanted`` out of range.
    """
    if not delta > 0 or not ALPHA < wanted < 1:
        raise ValueError(f"delta must be above 0 and power between {ALPHA} and 1, not {delta} and {wanted}")

    def enough(seeds: int, images: int) -> bool:
        return power(delta, *spread.at(seeds, images), ALPHA / comparisons) >= wanted

    seeds = _smallest(lambda n: enough(n, spread.images), 2, MOST_SEEDS) if spread.seeds > 1 else None
    return Needed(seeds, _smallest(lambda n: enough(spread.seeds, n), 2, MOST_IMAGES))


def _smallest(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """Smallest number in low to high that is enough, or None; more is never worse."""
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def checked(counts: Counts) -> Counts:
    counts = np.asarray(counts)
    if counts.ndim != 5 or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"counts must be integers (D, S, N, C, K), not {counts.dtype} {counts.shape}")
    if counts.shape[2] < 2:
        raise ValueError(f"the spread over images needs at least two of them, not {counts.shape[2]}")
    return counts.astype(np.int64, copy=False)


def with_mean(per_class: Floats) -> Floats:
    """(..., K) -> (..., K + 1)."""
    return np.concatenate([per_class, mean_over_classes(per_class)[..., None]], -1)


def kept(part: Floats, whole: Floats) -> Floats:
    """Scores of a part of the images; a class that the part lacks keeps its score on all of them."""
    return np.where(np.isnan(part), whole, part)


def _columns(measured: Measured, decoder: int) -> Iterator[tuple[Floats, Floats]]:
    """Scores (S,) and influence (N, S) of one decoder, class by class."""
    for k in range(measured.values.shape[-1]):
        yield measured.values[decoder, :, k], measured.influence[:, decoder, :, k]


def _spread(values: Floats, influence: Floats) -> Spread:
    """Components from scores (S,) and influence (N, S): Obuchowski & Rockette (1995), covariances by jackknife."""
    images, seeds = influence.shape
    of_mean = influence.mean(1)
    image_variance = float((of_mean**2).sum()) / (images * (images - 1))
    df = _image_df(of_mean)
    if seeds == 1:
        return Spread(1, images, math.nan, image_variance, 0.0, df)
    of_one = float((influence**2).sum()) / (seeds * images * (images - 1))
    shared = (seeds * image_variance - of_one) / (seeds - 1)
    return Spread(seeds, images, float(values.var(ddof=1)), shared, of_one - shared, df)


def _image_df(influence: Floats) -> float:
    """Degrees of freedom of the variance of a mean of (N,): that of the chi-squared with its relative variance.

    Satterthwaite's (1946) definition: the variance of a sample variance is its square times (kurtosis - 1) / N.
    """
    images, square = len(influence), float((influence**2).mean())
    if not square > 0:
        return float(images - 1)
    kurtosis = float(((influence / math.sqrt(square)) ** 4).mean())
    return min(2 * images / max(kurtosis - 1, 1e-9), images - 1.0)


def _interval(values: Floats, influence: Floats, bounds: tuple[float, float]) -> Interval:
    spread = _spread(values, influence)
    value = float(values.mean())
    if math.isnan(value):
        return Interval(value, math.nan, math.nan, math.nan, math.nan, spread)
    se, df = spread.at(spread.seeds, spread.images)
    half = se * float(stats.t.isf(ALPHA / 2, df))
    return Interval(value, max(value - half, bounds[0]), min(value + half, bounds[1]), se, df, spread)


def _p_value(cell: Interval) -> float:
    if cell.se == 0:
        return float(cell.value == 0)
    return float(2 * stats.t.sf(abs(cell.value) / cell.se, cell.df))
