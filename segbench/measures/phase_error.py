"""Phase error: how much the error rate differs between the phases of the output."""

import numpy as np

from segbench.measures._stride import OfStride
from segbench.measures.base import Floats, Ints, Mask, Sample, share


class PhaseError(OfStride):
    """Largest minus smallest error rate over the s x s phases: pixels whose row and column leave the same rests by s.

    A decoder that upsamples by s computes each phase in another way; a truth knows nothing of phases. So what differs
    is an artefact (Odena et al. 2016, https://distill.pub/2016/deconv-checkerboard), but for chance, which lifts a
    difference of extremes: compare decoders, or with what nearest has. Counts: wrong pixels of each phase, and all.

    Args:
        stride: s; None takes the decoder's: image pixels per cell of the map from which it upsamples to the image.

    Raises:
        ValueError: a stride below 2.
        DoesNotFit: the decoder's cells are no blocks of the labels' pixels.
    """

    short = "phase err."
    long = "spread of the error rate over phases"
    help = "Largest minus smallest error rate over the s x s phases of the output; the picture has them all"
    standard = ({},)
    table_place = None
    higher_is_better = False
    per_class = False
    drawn = "error rate less its mean, points"

    def count(self, sample: Sample) -> Ints:
        s, truth = self.on_grid(sample), sample.truth
        every = truth.once(("phases", s), lambda: by_phase(truth.inside, s))
        return np.concatenate([by_phase(~sample.right, s), every])[:, None]

    def score(self, counts: Ints) -> Floats:
        rates = 100 * share(*np.split(counts[..., 0], 2, -1))
        return rates.max(-1, keepdims=True) - rates.min(-1, keepdims=True)

    def picture(self, counts: Ints) -> Floats:
        rates = 100 * share(*np.split(counts[:, 0], 2))
        return (rates - np.mean(rates)).reshape(2 * (round(len(rates) ** 0.5),))


def by_phase(where: Mask, s: int) -> Ints:
    """(s²,) how often it holds in each phase, row by row."""
    height, width = where.shape
    padded = np.pad(where, ((0, -height % s), (0, -width % s))).view(np.uint8)
    rows = padded.reshape(-1, s, padded.shape[1]).sum(0, dtype=np.int32)
    return rows.reshape(s, -1, s).sum(1, dtype=np.int64).ravel()
