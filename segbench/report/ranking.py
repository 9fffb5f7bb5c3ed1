"""Ranks by the mean score and what is uncertain in them, from resampled images.

Definitions and coverage found by simulation: docs/statistics.md.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from segbench.measures.base import iou
from segbench.report.stats import Counts, Floats, Measured, Score, checked, differences, kept, with_mean

CHUNK_NUMBERS = 4_000_000  # float64 numbers per intermediate array of a chunk of resamples: 32 MB


@dataclass(frozen=True)
class Rank:
    """Place of a decoder by its mean score, 1 for the best.

    Attributes:
        rank: 1 + the number of decoders above.
        low, high: ranks that the comparisons with all others leave open, at 95 %; all of them with one seed.
        p_best: share of the resamples in which it is the best.
    """

    rank: int
    low: int
    high: int
    p_best: float


def bootstrap(counts: Counts, score: Score = iou, resamples: int = 10_000, seed: int = 0) -> Floats:
    """Scores of resampled images: N images drawn with replacement, the same ones for every decoder and seed.

    Exact: the counts are summed as float64 integers below 2**53. Holds 8 * R * D * S * (K + 1) bytes and 200 MB more.

    Args:
        counts, score: see `measure`.
        resamples: R.
        seed: of the generator; the same counts and seed give the same resamples.

    Returns:
        (R, D, S, K + 1), the last class is the mean. A class that a resample lacks keeps its score on all images there,
        so that the mean is over the same classes everywhere.

    Raises:
        ValueError: see `measure`.
    """
    counts = checked(counts)
    decoders, seeds, images, kinds, classes = counts.shape
    per_class = score(counts.sum(2))
    table = counts.transpose(2, 0, 1, 3, 4).reshape(images, -1).astype(np.float64)
    found = np.empty((resamples, decoders, seeds, classes + 1))
    start = 0
    for weights in _multinomial(images, resamples, max(1, CHUNK_NUMBERS // max(table.shape)), seed):
        sums = (weights @ table).astype(np.int64).reshape(-1, decoders, seeds, kinds, classes)
        found[start : start + len(sums)] = with_mean(kept(score(sums), per_class))
        start += len(sums)
    return found


def ranks(measured: Measured, resampled: Floats, seed: int = 0, higher_is_better: bool = True) -> list[Rank]:
    """Ranks by the mean over classes, with what is uncertain in them.

    The interval of a decoder's rank counts those that are better, and those that are not worse, after Holm's correction
    over its D - 1 differences: it covers the rank with at least 95 % (Mogstad, Romano, Shaikh & Wilhelm 2024).

    Args:
        measured: by `measure`.
        resampled: by `bootstrap` from the same counts.
        seed: of the generator for the seeds' multipliers.
        higher_is_better: of the score.
    """
    sign = 1.0 if higher_is_better else -1.0
    measured = Measured(sign * measured.values[..., -1:], measured.influence[..., -1:] * sign)
    means = measured.values[..., -1].mean(1)
    draws = joint_draws(measured, sign * resampled[..., -1], seed)
    best = draws == draws.max(1, keepdims=True)
    p_best = (best / best.sum(1, keepdims=True)).mean(0)
    found = []
    for d, mean in enumerate(means):
        verdicts = [row[-1].verdict for row in differences(measured, d).values()]
        low, high = 1 + verdicts.count("better"), len(means) - verdicts.count("worse")
        found.append(Rank(1 + int((means > mean).sum()), low, high, float(p_best[d])))
    return found


def _multinomial(images: int, resamples: int, chunk: int, seed: int) -> Iterator[Floats]:
    """How often each image is drawn: (n, images) per chunk; the rows do not depend on the chunk's size."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        n = min(chunk, resamples - start)
        drawn = rng.integers(0, images, (n, images)) + images * np.arange(n)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n * images).reshape(n, images).astype(np.float64)


def rank_correlation(means: Sequence[Floats], draws: Sequence[Floats]) -> tuple[float, float, float]:
    """Spearman's correlation of two scores over the same decoders, and its 95 % interval over images and seeds.

    Noise makes orders agree less, in the draws as in the data, so the interval is the percentiles' and its mirror image
    about the value. About these decoders: that others might have been tried is not in it. NaN where a score is the same
    for all.

    Args:
        means: two of (D,).
        draws: two of (R, D), by `joint_draws` from the same images and seeds.
    """
    value, rows = (_spearman(*both) for both in ([m[None] for m in means], draws))
    if np.isnan(value[0]):
        return math.nan, math.nan, math.nan
    low, high = np.nanquantile(rows, [0.025, 0.975])
    return float(value[0]), max(-1.0, min(low, 2 * value[0] - high)), min(1.0, max(high, 2 * value[0] - low))


def _spearman(x: Floats, y: Floats) -> Floats:
    """(R, D), (R, D) -> (R): of each row; NaN where all of one are equal."""
    a, b = (rankdata(each, axis=1) - (each.shape[1] + 1) / 2 for each in (x, y))
    with np.errstate(invalid="ignore"):
        found: Floats = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return found


def joint_draws(measured: Measured, resampled: Floats, seed: int = 0) -> Floats:
    """(R, D): mean scores as images and seeds could have fallen, from resampled scores (R, D, S).

    Images: deviations of the bootstrap, given the covariances that `Spread.shared_images` stands for. Seeds: deviations
    from the decoder's mean times random multipliers that all decoders share, so that each contrast has the paired t
    distribution with S - 1 degrees of freedom.
    """
    values, influence = measured.values[..., -1], measured.influence[..., -1]
    seeds, resamples = values.shape[1], len(resampled)
    deviations = resampled.mean(2) - resampled.mean((0, 2))
    draws = values.mean(1) + deviations @ _recolour(deviations, _shared_covariance(influence))
    if seeds > 1:
        rng = np.random.default_rng(seed)
        heavy = np.sqrt((seeds - 1) / rng.chisquare(seeds - 1, (resamples, 1)))
        multipliers = heavy * rng.standard_normal((resamples, seeds)) / math.sqrt(seeds * (seeds - 1))
        draws += multipliers @ (values - values.mean(1, keepdims=True)).T
    return draws


def _shared_covariance(influence: Floats) -> Floats:
    """(N, D, S) -> (D, D): covariance of decoders' scores of different seeds (of one seed, where there is one)."""
    images, _, seeds = influence.shape
    of_mean = influence.mean(2)
    of_means = of_mean.T @ of_mean / (images * (images - 1))
    if seeds == 1:
        return of_means
    of_one = np.einsum("nds,nes->de", influence, influence) / (seeds * images * (images - 1))
    return (seeds * of_means - of_one) / (seeds - 1)


def _recolour(deviations: Floats, wanted: Floats) -> Floats:
    """(D, D) matrix by which deviations (R, D) get the covariance ``wanted``, without its negative part."""
    return _root(deviations.T @ deviations / len(deviations), -0.5) @ _root(wanted, 0.5)


def _root(symmetric: Floats, exponent: float) -> Floats:
    """Power of a positive semidefinite matrix; directions of no or negative variance give 0."""
    scales, directions = np.linalg.eigh(symmetric)
    there = scales > 1e-12 * max(scales.max(), 1e-300)
    powers = np.where(there, np.where(there, scales, 1.0) ** exponent, 0.0)
    return (directions * powers) @ directions.T
