"""Boundary IoU: IoU of the pixels near a boundary, as fractions of the image's diagonal."""

from dataclasses import dataclass

import numpy as np

from segbench.measures.base import CountMeasure, Floats, Ints, Sample, iou


def band_width(ratio: float, height: int, width: int) -> int:
    """Width in pixels of the boundary band: ``max(1, round(ratio * diagonal))``, halves rounded to even."""
    return max(1, round(ratio * float(np.hypot(height, width))))


@dataclass
class BIoU(CountMeasure):
    """IoU of the pixels of a class within d pixels of another class or of the image's border, at data-set level.

    ``d = max(1, round(ratio * diagonal))`` for each image. Cheng et al. 2021, https://arxiv.org/abs/2103.16562. Counts:
    pixels that lie in both bands and agree, of the prediction's band, of the truth's.

    Args:
        ratio: between 0 and 1; 0.02 in the paper, 0.005 for Cityscapes.

    Raises:
        ValueError: another ratio.
    """

    ratio: float = 0.02

    short = "BIoU"
    long = "Boundary IoU"
    help = "Intersection over union near boundaries"
    standard = ({"ratio": 0.02},)
    table_place = 10
    verdict_place = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio should be between 0 and 1, not {self.ratio}")

    def suffix(self, sizes: Ints) -> str:
        widths = sorted({band_width(self.ratio, *size) for size in sizes.tolist()})
        return f" {self.ratio:g} ({'-'.join(map(str, dict.fromkeys((widths[0], widths[-1]))))}px)"

    def count(self, sample: Sample) -> Ints:
        d = band_width(self.ratio, *sample.size)
        truth, prediction = sample.truth, sample.prediction
        band = prediction.band(d, border=True)
        both = band & truth.band(d, border=True) & sample.right
        of_both, of_prediction = truth.pixels(truth.labels, both), truth.pixels(prediction.labels, band)
        return np.stack([of_both, of_prediction, truth.in_band(d, border=True)[2]])

    def score(self, counts: Ints) -> Floats:
        return 100 * iou(counts)
