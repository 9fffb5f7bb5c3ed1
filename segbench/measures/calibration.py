"""Calibration: the expected calibration error, near true boundaries or away from them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from segbench.measures.base import CountMeasure, Floats, Ints, Sample, share

BINS = 15  # of equal width, over confidences from 0 to 1
UNIT = 1_000_000  # in which confidences are added up


@dataclass
class Calibration(CountMeasure):
    """Mean gap of confidence and accuracy over 15 bins of confidence (Guo et al. 2017, arXiv:1706.04599).

    The confidence is the probability of the predicted class. Each bin counts by its pixels: ``sum(|right - sum of
    confidences|) / pixels``, over all images. Counts, for each bin: right pixels, all, confidences in millionths.

    Args:
        where: within some px of a pixel of another class in the truth, or beyond.
        width_px: of that band (Chebyshev), at least 1.

    Raises:
        ValueError: a width below 1.
    """

    where: Literal["boundary", "inside"] = "boundary"
    width_px: int = 4

    short = "ECE"
    long = "expected calibration error"
    help = "Mean gap between confidence and accuracy; in the plot, below 0: more confident than right"
    table_place = None
    higher_is_better = False
    per_class = False
    drawn = "accuracy - confidence, points"
    axis = "confidence", tuple((np.arange(BINS) + 0.5) / BINS)

    def __post_init__(self) -> None:
        if self.width_px < 1:
            raise ValueError(f"width_px should be 1 or more, not {self.width_px}")

    def suffix(self, sizes: Ints) -> str:
        return f" {'to' if self.where == 'boundary' else 'beyond'} {self.width_px}px"

    def count(self, sample: Sample) -> Ints:
        band = sample.truth.band(self.width_px)
        places = np.flatnonzero(band if self.where == "boundary" else sample.truth.inside & ~band)
        confidence = sample.confidence.ravel()[places]
        bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        right = np.bincount(bins, sample.right.ravel()[places], BINS)
        summed = UNIT * np.bincount(bins, confidence, BINS)
        return np.concatenate([right, np.bincount(bins, minlength=BINS), summed]).round().astype(np.int64)[:, None]

    def score(self, counts: Ints) -> Floats:
        right, every, confidence = np.split(counts[..., 0], 3, -1)
        return 100 * share(np.abs(right - confidence / UNIT).sum(-1, keepdims=True), every.sum(-1, keepdims=True))

    def profile(self, counts: Ints) -> Floats:
        right, every, confidence = np.split(counts[..., 0], 3, -1)
        return 100 * share(right - confidence / UNIT, every)
