"""A column of your own: ``measures: [PATH/contour_distance.py:ContourDistance]`` in a sweep."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from segbench.measures.base import CountMeasure


@dataclass
class ContourDistance(CountMeasure):
    """Average distance of predicted contour pixels from the nearest true one of their class; lower is better.

    Counts are distances in hundredths of a pixel, since they are integers that are added up, and contour pixels.
    """

    cap_px: float = 20  # also where a class has no true contour

    short = "contour dist."
    long = "contour distance"
    help = "Mean distance of predicted contour pixels from the truth's"
    unit = "px"
    higher_is_better = False
    bounds = (0, float("inf"))
    verdict_place = 2

    def count(self, sample):
        rows = []
        for c in range(sample.truth.num_classes):
            true, predicted = (m.band(1) & (m.labels == c) for m in (sample.truth, sample.prediction))
            far = distance_transform_edt(~true) if true.any() else np.full(true.shape, self.cap_px)
            rows.append([(100 * np.minimum(far, self.cap_px)[predicted]).round().sum(), predicted.sum()])
        return np.array(rows, int).T  # (2, K)

    def score(self, counts):
        distance, pixels = counts[..., 0, :] / 100, counts[..., 1, :]
        return np.divide(distance, pixels, out=np.full(pixels.shape, np.nan), where=pixels > 0)
