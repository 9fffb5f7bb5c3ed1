"""Thin structures: recall or IoU of the pixels whose true region is thin there."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from segbench.measures.base import THICKNESS_PX, CountMeasure, Floats, Ints, LabelMap, Sample, share


@dataclass
class Thin(CountMeasure):
    """Of each class by the thickness of its regions, pixel by pixel, see `LabelMap.thickness`; all are plotted.

    Recall is the share of the true pixels of a thickness that are found. For IoU a wrongly predicted pixel belongs to
    the thickness of the predicted region. A local thickness (Hildebrand & Ruegsegger 1997) by squares in place of
    balls. Counts, for each step of `THICKNESS_PX`: pixels that are found, true ones, and wrongly predicted ones.

    Args:
        below_px: regions are thin that hold no square so wide; 3, 5, 9, 17 or 33.
        by: recall or IoU.

    Raises:
        ValueError: another width.
    """

    below_px: int = 5
    by: Literal["recall", "iou"] = "recall"

    long = "recall of thin regions"
    help = "Share of the pixels of thin true regions that are found; the plot has all thicknesses, of all classes"
    standard = ({"below_px": 5, "by": "recall"},)
    table_place = None
    drawn = "share of pixels, %"
    axis = "thickness of the region, from (px)", THICKNESS_PX

    def __post_init__(self) -> None:
        if self.below_px not in THICKNESS_PX[1:]:
            raise ValueError(f"below_px should be 3, 5, 9, 17 or 33, not {self.below_px}")
        self.short = f"thin {self.by}"
        if self.by == "iou":
            self.long, self.help = "IoU of thin regions", "IoU of the pixels of thin regions; the plot has all"

    def suffix(self, sizes: Ints) -> str:
        return f" (<{self.below_px}px)"

    def count(self, sample: Sample) -> Ints:
        truth, right = sample.truth, sample.right
        every = truth.once("thick", lambda: _by_thickness(truth, truth))
        wrong = _by_thickness(sample.prediction, truth, ~right) if self.by == "iou" else np.zeros_like(every)
        return np.concatenate([_by_thickness(truth, truth, right), every, wrong])

    def score(self, counts: Ints) -> Floats:
        found, true, wrong = np.split(counts, 3, -2)
        thin = np.array(THICKNESS_PX) < self.below_px
        return 100 * share(found[..., thin, :].sum(-2), (true + wrong)[..., thin, :].sum(-2))

    def profile(self, counts: Ints) -> Floats:
        found, true, wrong = np.split(counts.sum(-1), 3, -1)
        return 100 * share(found, true + wrong)


def _by_thickness(labels: LabelMap, truth: LabelMap, where: np.ndarray | None = None) -> Ints:
    """(T, K) pixels of each thickness and class."""
    places = truth.inside if where is None else truth.inside & where
    k, cells = labels.num_classes, labels.thickness[places] * np.int64(labels.num_classes) + labels.labels[places]
    return np.bincount(cells, minlength=len(THICKNESS_PX) * k).reshape(-1, k)
