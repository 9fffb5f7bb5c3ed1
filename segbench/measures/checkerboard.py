"""Checkerboard: how uneven the logits of a spatially constant input are."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from segbench.measures.base import CountMeasure, Floats, Ints, Sample, share

UNIT = 1_000_000  # of logits in the counts
CELLS = 7  # of the coarsest map, along each side; the one in the middle is looked at


@dataclass
class Checkerboard(CountMeasure):
    """Spread of the logits over the phases of a constant input, relative to their size.

    Each feature map, and the image, is replaced by its mean over the image. Of the logits, less their mean over
    classes, the S x S pixels of one cell are taken, which are all phases there are, S being the coarsest stride; the
    border is three such cells away, over which wide kernels still reach a little. Score: mean over classes of the
    standard deviation over the phases, over the mean magnitude. Odena et al. 2016,
    https://distill.pub/2016/deconv-checkerboard. Counts, in millionths: the spread, the magnitude, and of each phase
    the mean over classes of its distance from the mean over phases.

    Args:
        at: after training, or with the initial weights.
    """

    at: Literal["end", "start"] = "end"

    short = "checkerboard"
    long = "checkerboard"
    help = "Spread over the output's phases of the response to a constant input, relative; the picture has the cell"
    table_place = None
    bounds = (0.0, float("inf"))
    higher_is_better = False
    per_class = False
    plotted = True

    def count(self, sample: Sample) -> Ints:
        decoder = sample.model.decoder if self.at == "end" else sample.model.initial
        cell = max(decoder.strides)
        n = CELLS * cell
        strides = (*decoder.strides, 1)
        given = [
            m.mean((2, 3), keepdim=True).expand(-1, -1, -(-n // t), -(-n // t)).contiguous()
            for m, t in zip((*sample.model.features, sample.model.image), strides, strict=True)
        ]
        logits = decoder(given[:-1], given[-1])[0]
        middle = slice(CELLS // 2 * cell, (CELLS // 2 + 1) * cell)
        found = (logits - logits.mean(0))[:, middle, middle].flatten(1).double()  # (K, S²)
        away = (found - found.mean(1, keepdim=True)).abs().mean(0)
        numbers = [found.std(1, correction=0).mean().item(), found.abs().mean().item(), *away.tolist()]
        return (UNIT * np.array(numbers)[:, None]).round().astype(np.int64)

    def score(self, counts: Ints) -> Floats:
        return 100 * share(counts[..., 0, :], counts[..., 1, :])

    def picture(self, counts: Ints) -> Floats:
        side = round((len(counts) - 2) ** 0.5)
        return 100 * share(counts[2:, 0], np.broadcast_to(counts[1], len(counts) - 2)).reshape(side, side)
