"""Boundary F1: precision and recall of contour pixels within a tolerance."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from segbench.measures.base import VOID, CountMeasure, Floats, Ints, Labels, Mask, Sample, only


@dataclass
class BF1(CountMeasure):
    """F1 of contour pixels that have one of their class within a tolerance, from counts summed over all images.

    Precision is the share of predicted contour pixels near the truth's, recall the share of the truth's near the
    prediction's (Martin et al. 2004; per class Csurka et al. 2013). Counts: predicted contour pixels that are near, all
    predicted, the truth's that are near, all of the truth's.

    Args:
        tolerance_px: largest Euclidean distance in pixels, above 0.

    Raises:
        ValueError: another tolerance.
    """

    tolerance_px: float = 3

    short = "BF1"
    long = "Boundary F1"
    help = "F1 of contour pixels within a tolerance"
    standard = ({"tolerance_px": 3},)
    table_place = None

    def __post_init__(self) -> None:
        if self.tolerance_px <= 0:
            raise ValueError(f"tolerance_px should be above 0, not {self.tolerance_px}")
        offsets = np.arange(-int(self.tolerance_px), int(self.tolerance_px) + 1)
        self._near = offsets[:, None] ** 2 + offsets**2 <= self.tolerance_px**2

    def suffix(self, sizes: Ints) -> str:
        return f" ({self.tolerance_px:g}px)"

    def count(self, sample: Sample) -> Ints:
        contours = [only(m.labels, m.band(1)) for m in (sample.prediction, sample.truth)]
        rows = []
        for own, other in (contours, contours[::-1]):
            every = sample.truth.pixels(own)
            rows += [every - sample.truth.pixels(own, self._far(own, other)), every]
        return np.stack(rows)

    def _far(self, own: Labels, other: Labels) -> Mask:
        """Contour pixels of ``own`` with no pixel of their class in ``other`` within the tolerance.

        Offsets are tried by distance, each on the whole map at a byte a pixel.
        """
        height, width = own.shape
        reach = int(self.tolerance_px)
        padded = cv2.copyMakeBorder(other, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=VOID)
        far = own != VOID
        differs = np.empty_like(far)
        for y, x in np.argwhere(self._near):
            np.not_equal(padded[y : y + height, x : x + width], own, out=differs)
            far &= differs
        return far

    def score(self, counts: Ints) -> Floats:
        return 100 * contour_f1(counts)


def contour_f1(counts: npt.NDArray[np.integer[Any]]) -> Floats:
    """Boundary F1 per class, the harmonic mean of precision and recall of contour pixels.

    Args:
        counts: (..., 4, K): predicted contour pixels within the tolerance, all predicted, the truth's within the
            tolerance, all of the truth's; summed over the images of the data set.

    Returns:
        (..., K) in 0 to 1; NaN for a class without a contour in prediction and truth, 0 where only one of them has one.
    """
    near, predicted, found, true = np.moveaxis(np.asarray(counts, np.int64), -2, 0).astype(np.float64)
    # 2PR / (P + R) with P = near / predicted and R = found / true, without dividing by either when it is 0.
    above, below = 2 * near * found, near * true + found * predicted
    none = predicted + true == 0
    return np.where(none, np.nan, np.divide(above, below, out=np.zeros_like(above), where=below > 0))
