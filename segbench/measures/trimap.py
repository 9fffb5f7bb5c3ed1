"""Trimap IoU: IoU of the pixels near a true contour."""

from dataclasses import dataclass

import numpy as np

from segbench.measures.base import CountMeasure, Floats, Ints, Sample, iou


@dataclass
class Trimap(CountMeasure):
    """IoU inside the band around the truth's contours (Kohli et al. 2009; Chen et al. 2017, arXiv:1606.00915).

    Args:
        width_px: of the band on either side of the contour (Chebyshev), at least 1.

    Raises:
        ValueError: a width below 1.
    """

    width_px: int = 4

    short = "trimap"
    long = "trimap IoU"
    help = "mIoU of the pixels within so many pixels of a true contour; a gap that closes with the width is of contours"
    standard = tuple({"width_px": width} for width in (1, 2, 4, 8, 16))
    table_place = None

    def __post_init__(self) -> None:
        if self.width_px < 1:
            raise ValueError(f"width_px should be 1 or more, not {self.width_px}")
        self.curve = "band width (px)", self.width_px

    def suffix(self, sizes: Ints) -> str:
        return f" ({self.width_px}px)"

    def count(self, sample: Sample) -> Ints:
        truth = sample.truth
        places, true, of_truth = truth.in_band(self.width_px)
        predicted = sample.prediction.labels.ravel()[places]
        return np.stack([truth.pixels(true, true == predicted), truth.pixels(predicted), of_truth])

    def score(self, counts: Ints) -> Floats:
        return 100 * iou(counts)
