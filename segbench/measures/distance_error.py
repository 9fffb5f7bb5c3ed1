"""Errors near boundaries: the error rate against the distance to the nearest true boundary."""

from dataclasses import dataclass

import cv2
import numpy as np

from segbench.measures.base import CountMeasure, Floats, Ints, LabelMap, Sample, share

FARTHEST_PX = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of each step, but for the last, which has all beyond


@dataclass
class DistanceError(CountMeasure):
    """Share of wrong pixels among those within some px of a true contour, on either side; all distances are plotted.

    A pixel's distance is the Euclidean one to the nearest pixel of the truth's contour, which holds the pixels with one
    of another class among their eight neighbours and is at 0; the image's border and void make none. It is the error
    of trimaps (Kohli et al. 2009) ring by ring. Counts: wrong pixels of each ring, and all of it.

    Args:
        within_px: one of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32.

    Raises:
        ValueError: another distance.
    """

    within_px: int = 2

    short = "boundary err."
    long = "error rate near boundaries"
    help = "Share of the pixels near a true boundary that are wrong; the plot has them by distance"
    standard = ({"within_px": 2},)
    table_place = None
    higher_is_better = False
    per_class = False
    axis = "distance to the nearest true boundary (px)", (*FARTHEST_PX, np.inf)
    drawn = "error rate, %"

    def __post_init__(self) -> None:
        if self.within_px not in FARTHEST_PX:
            raise ValueError(f"within_px should be one of {', '.join(map(str, FARTHEST_PX))}, not {self.within_px}")

    def suffix(self, sizes: Ints) -> str:
        return f" (to {self.within_px}px)"

    def count(self, sample: Sample) -> Ints:
        ring, every = sample.truth.once("rings", lambda: _rings(sample.truth))
        return np.concatenate([np.bincount(ring[~sample.right], minlength=len(every)), every])[:, None]

    def score(self, counts: Ints) -> Floats:
        wrong, every = np.split(counts[..., 0], 2, -1)
        near = np.array([*FARTHEST_PX, np.inf]) <= self.within_px
        return 100 * share(wrong[..., near].sum(-1, keepdims=True), every[..., near].sum(-1, keepdims=True))

    def profile(self, counts: Ints) -> Floats:
        return 100 * share(*np.split(counts[..., 0], 2, -1))


def _rings(truth: LabelMap) -> tuple[Ints, Ints]:
    """(H, W) place of each pixel's distance in `FARTHEST_PX`, and how many pixels each place has."""
    contour = truth.band(1)
    ring = np.full(contour.shape, len(FARTHEST_PX))
    if contour.any():
        distance = cv2.distanceTransform((~contour).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        ring = np.searchsorted(FARTHEST_PX, distance - 1e-3)
    return ring, np.bincount(ring[truth.inside], minlength=len(FARTHEST_PX) + 1)
