"""From label maps to integer counts: everything that a score is later made from.

Void (255 in the truth) is never counted and never makes a contour: the prediction is void where the truth is, and void
pixels take no part in the extrema of a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

VOID = 255
Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


def band_width(ratio: float, height: int, width: int) -> int:
    """Width in pixels of the boundary band: ``max(1, round(ratio * diagonal))``, halves rounded to even."""
    return max(1, round(ratio * float(np.hypot(height, width))))


def boundary_band(labels: Labels, width_px: int) -> Mask:
    """The pixels within ``width_px`` (Chebyshev) of a pixel of another class or of what lies outside the image.

    That is the union over classes of the inner bands of Boundary IoU (Cheng et al. 2021,
    https://arxiv.org/abs/2103.16562), with void left out: a pixel is in the band of its own class exactly when the
    label map, void aside, is not constant in the (2 width_px + 1)² window around it, or that window leaves the image.

    Args:
        labels: (H, W) uint8, classes 0 to 253, 255 void.
        width_px: band width in pixels, at least 1.
    """
    void = labels == VOID
    kernel = np.ones((2 * width_px + 1, 1), np.uint8)
    # Outside the image counts for neither extremum: OpenCV's default border is the lowest value for a maximum and the
    # highest for a minimum, as void must be.
    highest = cv2.dilate(cv2.dilate(np.where(void, np.uint8(0), labels + np.uint8(1)), kernel), kernel.T)
    lowest = cv2.erode(cv2.erode(np.where(void, np.uint8(255), labels + np.uint8(1)), kernel), kernel.T)
    band: Mask = highest != lowest
    d = width_px
    band[:d] = band[-d:] = True
    band[:, :d] = band[:, -d:] = True
    band[void] = False
    return band


@dataclass(frozen=True)
class Counts:
    """Pixel counts of one image.

    Attributes:
        confusion: (K, K) int64, truth by row, prediction by column, void left out.
        region: (3, K) int64: intersection, predicted, truth.
        boundary: (R, 3, K) int64: the same inside the boundary bands, for each ratio. Predicted counts the prediction's
            own band, truth the truth's, intersection the pixels that lie in both and agree.
        widths_px: (R,) int64, the band widths.
    """

    confusion: Int64s
    region: Int64s
    boundary: Int64s
    widths_px: Int64s


class Truth:
    """The truth's side of one image's counts, made once and shared by every prediction that is counted against it.

    Args:
        labels: (H, W) uint8, classes 0 to K-1 and 255 for void.
        num_classes: K, at most 254.
        boundary_ratios: band widths as fractions of the image's diagonal.

    Raises:
        ValueError: a label that is neither a class nor void, or a wrong shape or type.
    """

    def __init__(self, labels: Labels, num_classes: int, boundary_ratios: Sequence[float] = ()) -> None:
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise ValueError(f"labels should be (H, W) uint8, not {labels.shape} {labels.dtype}")
        if not 1 <= num_classes <= 254:
            raise ValueError(f"num_classes should be from 1 to 254, not {num_classes}")
        self.labels, self.num_classes = labels, num_classes
        self.valid: Mask = labels != VOID
        wrong = labels[self.valid & (labels >= num_classes)]
        if wrong.size:
            raise ValueError(f"label {wrong[0]} is neither one of {num_classes} classes nor void ({VOID})")
        self.widths_px = [band_width(r, *labels.shape) for r in boundary_ratios]
        self.bands = [boundary_band(labels, d) for d in self.widths_px]
        self.band_sizes = [self._per_class(labels[band]) for band in self.bands]

    def _per_class(self, values: Labels) -> Int64s:
        return np.bincount(values, minlength=self.num_classes).astype(np.int64)

    def count(self, prediction: Labels) -> Counts:
        """Counts of ``prediction``, (H, W) uint8 with classes 0 to K-1.

        Raises:
            ValueError: another shape than the truth's, or a value that is no class where the truth is not void.
        """
        k = self.num_classes
        if prediction.shape != self.labels.shape:
            raise ValueError(f"prediction is {prediction.shape}, truth {self.labels.shape}")
        truth, predicted = self.labels[self.valid], prediction[self.valid]
        if predicted.size and predicted.max() >= k:
            raise ValueError(f"prediction holds {predicted.max()}, not one of {k} classes")
        confusion = np.bincount(truth.astype(np.int32) * k + predicted, minlength=k * k).reshape(k, k).astype(np.int64)
        region = np.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)])
        masked = np.where(self.valid, prediction, np.uint8(VOID))
        agree = masked == self.labels
        boundary = np.zeros((len(self.bands), 3, k), np.int64)
        for i, (band, size, d) in enumerate(zip(self.bands, self.band_sizes, self.widths_px, strict=True)):
            own = boundary_band(masked, d)
            boundary[i] = self._per_class(masked[own & band & agree]), self._per_class(masked[own]), size
        return Counts(confusion, region, boundary, np.array(self.widths_px, np.int64))
