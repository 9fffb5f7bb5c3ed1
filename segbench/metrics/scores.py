"""Scores from counts: plain arithmetic, no model, no image."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def iou(counts: npt.NDArray[np.integer[Any]]) -> Floats:
    """Intersection over union per class; `mean_over_classes` makes it mIoU.

    Args:
        counts: (..., 3, K): intersection, predicted, truth, summed over the images of the data set.

    Returns:
        (..., K) in 0 to 1; NaN for a class that is neither predicted nor there.
    """
    intersection, predicted, truth = np.moveaxis(np.asarray(counts, np.int64), -2, 0)
    union = predicted + truth - intersection
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


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


def mean_over_classes(values: Floats) -> Floats:
    """Mean of (..., K) over the classes that have a score; NaN where none has."""
    present = ~np.isnan(values)
    number = present.sum(-1)
    return np.divide(
        np.where(present, values, 0.0).sum(-1), number, out=np.full(number.shape, np.nan), where=number > 0
    )


def collapsed(counts: npt.NDArray[np.integer[Any]]) -> int | None:
    """The class that a collapsed model predicts nearly everywhere; None for a model that has not collapsed.

    Collapsed: one class is predicted for at least 99 % of the pixels, the truth has several, and the others together
    are predicted for fewer than half the pixels that they have, which sets a good model of a lopsided split apart.

    Args:
        counts: (3, K): intersection, predicted, truth, summed over the images of the data set.
    """
    _, predicted, truth = np.asarray(counts, np.int64)
    top = int(predicted.argmax())
    others_predicted, others_true = (int(c.sum() - c[top]) for c in (predicted, truth))
    nearly_all = 100 * others_predicted <= predicted.sum()
    several = np.count_nonzero(truth) > 1
    return top if nearly_all and several and 2 * others_predicted < others_true else None


def pixel_accuracy(counts: npt.NDArray[np.integer[Any]]) -> Floats:
    """Share of the pixels that are not void whose class is right; (...) in 0 to 1, NaN without pixels."""
    intersection, _, truth = np.moveaxis(np.asarray(counts, np.int64), -2, 0)
    right, total = intersection.sum(-1), truth.sum(-1)
    return np.divide(right, total, out=np.full(np.shape(total), np.nan), where=total > 0)
