"""Pixel accuracy: the share of the pixels whose class is right."""

import numpy as np

from segbench.measures.base import CountMeasure, Floats, Ints


class Accuracy(CountMeasure):
    """Over all pixels that are not void, whatever their class."""

    short = "pixel acc."
    long = "pixel accuracy"
    help = "Share of the pixels whose class is right"
    standard = ({},)
    table_place = 20
    per_class = False

    def score(self, counts: Ints) -> Floats:
        right, total = counts[..., 0, :].sum(-1, keepdims=True), counts[..., 2, :].sum(-1, keepdims=True)
        return 100 * np.divide(right, total, out=np.full(total.shape, np.nan), where=total > 0)
