"""Ceiling: the IoU of the truth itself, reduced to a stride and brought back."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from segbench.measures.base import VOID, CountMeasure, Floats, Ints, Labels, Sample, iou


@dataclass
class Ceiling(CountMeasure):
    """What of each class is left at a stride: of the data alone, so equal for all decoders.

    What scores above it finds what lies within the cells, by features that tell more than a class or by a guide.

    Blocks of stride x stride pixels get the class of most of their pixels (of equals the first), repeated; or each
    class's share of their pixels, which bilinear interpolation (align_corners=False) brings back before the argmax.
    Void pixels have no say. The IoU of oracle labels at a stride: Long et al. 2015, https://arxiv.org/abs/1411.4038,
    section 4.3. Counts: those of IoU.

    Args:
        stride: image pixels per cell, 2 or more.
        by: of what the reduced labels are made.

    Raises:
        ValueError: another stride.
    """

    stride: int = 4
    by: Literal["majority", "mean"] = "majority"

    short = "ceiling"
    long = "ceiling of IoU"
    help = "IoU of the truth itself, reduced to a stride and brought back; what is above it comes from within the cells"
    standard = ({"stride": 4, "by": "majority"},)
    table_place = None
    plotted = True

    def __post_init__(self) -> None:
        if self.stride < 2:
            raise ValueError(f"stride should be 2 or more, not {self.stride}")

    def count(self, sample: Sample) -> Ints:
        truth, k = sample.truth, sample.truth.num_classes
        return truth.once(self.name, lambda: Sample(truth, brought_back(truth.labels, self.stride, k, self.by)).region)

    def score(self, counts: Ints) -> Floats:
        return 100 * iou(counts)


def brought_back(labels: Labels, stride: int, num_classes: int, by: str = "majority") -> Labels:
    """(H, W) labels reduced as `Ceiling` says and brought back; blocks at the far edges may be smaller."""
    height, width = labels.shape
    padded = np.pad(labels, ((0, -height % stride), (0, -width % stride)), constant_values=VOID)
    size = padded.shape[1] // stride, padded.shape[0] // stride
    masks = [(padded == c).astype(np.float32) for c in range(num_classes)]
    votes = np.stack([cv2.resize(mask, size, interpolation=cv2.INTER_AREA) for mask in masks])
    if by == "majority":
        back = votes.argmax(0).astype(np.uint8).repeat(stride, 0).repeat(stride, 1)
    else:
        shares = votes / votes.sum(0).clip(1e-9)
        back = np.stack([cv2.resize(s, padded.shape[::-1], interpolation=cv2.INTER_LINEAR) for s in shares]).argmax(0)
    return np.ascontiguousarray(back[:height, :width].astype(np.uint8))
