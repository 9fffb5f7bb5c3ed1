"""Scores from counts: plain arithmetic, no model, no image."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def iou(counts: npt.NDArray[np.integer[Any]]) -> Floats:
    """Intersection over union per class.

    Args:
        counts: (..., 3, K): intersection, predicted, truth, summed over the images of the data set.

    Returns:
        (..., K) in 0 to 1; NaN for a class that is neither predicted nor there.
    """
    intersection, predicted, truth = np.moveaxis(np.asarray(counts, np.int64), -2, 0)
    union = predicted + truth - intersection
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_iou(counts: npt.NDArray[np.integer[Any]]) -> Floats:
    """Mean of `iou` over the classes that appear; (...) in 0 to 1, NaN where none does.

    The data-set level mIoU of PASCAL VOC (Everingham et al. 2010) and Cityscapes (Cordts et al. 2016), and for boundary
    counts their Boundary IoU (Cheng et al. 2021, https://arxiv.org/abs/2103.16562).
    """
    values = iou(counts)
    present = ~np.isnan(values)
    number = present.sum(-1)
    return np.divide(
        np.where(present, values, 0.0).sum(-1), number, out=np.full(number.shape, np.nan), where=number > 0
    )


def pixel_accuracy(counts: npt.NDArray[np.integer[Any]]) -> Floats:
    """Share of the pixels that are not void whose class is right; (...) in 0 to 1, NaN without pixels."""
    intersection, _, truth = np.moveaxis(np.asarray(counts, np.int64), -2, 0)
    right, total = intersection.sum(-1), truth.sum(-1)
    return np.divide(right, total, out=np.full(np.shape(total), np.nan), where=total > 0)
