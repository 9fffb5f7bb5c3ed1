"""Shift consistency: the share of pixels that keep their class when the image is shifted by less than a cell."""

import numpy as np

from segbench.measures._stride import OfStride
from segbench.measures.base import DoesNotFit, Floats, Ints, Sample, TooSmall, share


class Shift(OfStride):
    """Over shifts of 1 to s - 1 pixels, each up and to the left; the plot has them one by one.

    Consistency of Zhang 2019, https://arxiv.org/abs/1904.11486, pixel by pixel. The image is filled with its last row
    and column; pixels that both predictions see and that are not void are counted. Encoder and decoder both answer for
    it, and decoders share the encoder's part. Counts, shift by shift: pixels that keep their class; all.

    Args:
        stride: s, 2 or more; None takes the decoder's.

    Raises:
        ValueError: a stride below 2.
        TooSmall: an image that is no larger than 2s.
        DoesNotFit: labels of another size than the image.
    """

    long = "consistency under shifts"
    help = "Share of the pixels that keep their class when the image is shifted by 1 to s - 1 px"
    table_place = None
    per_class = False
    axis = "shift (px)", ()

    def count(self, sample: Sample) -> Ints:
        pixels, s, (height, width) = sample.model.pixels, self.of(sample), sample.size
        if pixels.shape[:2] != sample.size:
            raise DoesNotFit(f"labels of {height}x{width} and an image of {pixels.shape[0]}x{pixels.shape[1]}")
        if min(sample.size) <= 2 * s:
            raise TooSmall(f"an image of {height}x{width} is too small for shifts by up to {s - 1} px of stride {s}")
        kept, seen = [], []
        for d in range(1, s):
            again = sample.model.predict(np.pad(pixels[d:, d:], ((0, d), (0, d), (0, 0)), "edge"))
            inside = sample.truth.inside[d:, d:]
            kept.append(((again[:-d, :-d] == sample.prediction.labels[d:, d:]) & inside).sum())
            seen.append(inside.sum())
        return np.array([*kept, *seen])[:, None]

    def score(self, counts: Ints) -> Floats:
        kept, seen = np.split(counts[..., 0], 2, -1)
        return 100 * share(kept.sum(-1, keepdims=True), seen.sum(-1, keepdims=True))

    def profile(self, counts: Ints) -> Floats:
        return 100 * share(*np.split(counts[..., 0], 2, -1))
