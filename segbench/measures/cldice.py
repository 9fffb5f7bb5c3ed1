"""Centre-line Dice: overlap of skeletons with masks, of thin classes."""

from dataclasses import dataclass

import cv2
import numpy as np

from segbench.measures.base import CountMeasure, DoesNotFit, Floats, Ints, Labels, Mask, Sample
from segbench.measures.bf1 import contour_f1


@dataclass
class Cldice(CountMeasure):
    """How connected thin structures come out: clDice (Shit et al. 2021, https://arxiv.org/abs/2003.07311).

    The harmonic mean of the share of the predicted skeleton that lies in the true mask and that of the true skeleton in
    the predicted mask, from counts over all images. Skeletons are the paper's (algorithm 1, by erosions with the 4
    neighbours and dilations with the 8), of masks. Counts: predicted skeleton in the truth, all of it, true skeleton in
    the prediction, all of it.

    Args:
        classes: names of the thin classes.

    Raises:
        DoesNotFit: a class that the data has not.
    """

    classes: tuple[str, ...]

    short = "clDice"
    long = "clDice"
    help = "Harmonic mean of how much of each skeleton lies in the other's mask, of thin classes"
    table_place = None
    plotted = True

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("classes should name one or more")

    def count(self, sample: Sample) -> Ints:
        if missing := sorted({*self.classes} - {*sample.model.classes}):
            raise DoesNotFit(f"there is no class '{missing[0]}'; there are {', '.join(sample.model.classes)}")
        counts = np.zeros((4, sample.truth.num_classes), np.int64)
        for c in {sample.model.classes.index(name) for name in self.classes}:
            p, t = sample.prediction.labels == c, sample.truth.labels == c
            skeleton, true = skeleton_of(p), sample.truth.once(("skeleton", c), lambda t=t: skeleton_of(t))  # type: ignore[misc]
            counts[:, c] = (skeleton & t).sum(), skeleton.sum(), (true & p).sum(), true.sum()
        return counts

    def score(self, counts: Ints) -> Floats:
        return 100 * contour_f1(counts)


def skeleton_of(mask: Mask) -> Mask:
    """What each erosion leaves and its opening does not, over all erosions; outside of the image is no mask."""
    left: Labels = mask.view(np.uint8)
    square, cross = np.ones((3, 3), np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    found = np.zeros_like(mask)
    while left.any():
        fewer = np.asarray(cv2.erode(left, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0), np.uint8)
        found |= (left > 0) & (cv2.dilate(fewer, square) == 0)
        left = fewer
    return found
