"""Spectrum: how the soft prediction's power at the multiples of 1/s cycles per pixel stands out."""

from typing import Any

import numpy as np

from segbench.measures._stride import OfStride
from segbench.measures.base import Floats, Ints, Sample, TooSmall, share

BINS = 16  # rings of equal width, from 0 to 1/2 cycle per pixel
UNIT = 1e12  # of power in the counts
NEAR = 1 / 16  # of the distance between two multiples


class Spectrum(OfStride):
    """Power at the multiples of 1/s in rows and columns over that beside them; the plot has all frequencies.

    The power is the squared magnitude of the Fourier transform of each class's probability (Hann window, void 0, less
    its mean), summed over classes. At a multiple, from 1/s to 1/2, is what lies within 1/16s of it, beside it what lies
    between 1/16s and 1/4s of it; the score is how far the first mean power is from the second, in dB either way: 0
    where nothing is special about the grid, as in a truth. Checkerboards are peaks there, and interpolation by s has
    its zeros there. In the plot: the power of each ring of frequencies over the truth's, in dB (as Durall et al. 2020,
    https://arxiv.org/abs/2003.01826, look at images). Counts: mean power at the multiples, beside them, of the rings,
    and of the truth's rings, in units of 1e-12 a pixel.

    Args:
        stride: s, 2 or more; None takes the decoder's.

    Raises:
        ValueError: a stride below 2.
        TooSmall: an image of fewer than four cells, or so small that no frequency lies near a multiple.
        DoesNotFit: the decoder's cells are no blocks of the labels' pixels.
    """

    short = "grid power"
    long = "power at the multiples of 1/s"
    help = "How far the soft prediction's power at the multiples of 1/s cycles per px is from that beside them"
    unit = "dB"
    table_place = None
    bounds = (0.0, float("inf"))
    higher_is_better = False
    per_class = False
    axis = "frequency (cycles per px)", tuple((np.arange(BINS) + 0.5) / (2 * BINS))
    drawn = "power over the truth's, dB"

    def count(self, sample: Sample) -> Ints:
        s, truth, (height, width) = self.on_grid(sample), sample.truth, sample.size
        if min(height, width) < 4 * s:
            raise TooSmall(f"an image of {height}x{width} is too small: wanted four cells of stride {s}")
        one_hot = np.arange(truth.num_classes)[:, None, None] == truth.labels
        rings = truth.once("rings of power", lambda: _rings(power(one_hot.astype(np.float32))))
        found = power(sample.model.probabilities * truth.inside)
        at, beside = [], []
        for lines, size in ((found.mean(1), found.shape[0]), (found.mean(0), found.shape[1])):
            place = s * np.abs(np.fft.fftfreq(size))
            off = np.where(place > 0.5, np.abs(place - place.round()), 1)
            if (off > NEAR).all():
                raise TooSmall(f"an image of {height}x{width} has no frequency near the multiples of 1/{s}")
            at.append(lines[off <= NEAR].mean())
            beside.append(lines[(off > NEAR) & (off <= 4 * NEAR)].mean())
        return (
            (UNIT * np.array([np.mean(at), np.mean(beside), *_rings(found), *rings]))[:, None].round().astype(np.int64)
        )

    def score(self, counts: Ints) -> Floats:
        return np.abs(_db(counts[..., 0, :], counts[..., 1, :]))

    def profile(self, counts: Ints) -> Floats:
        return _db(*np.split(counts[..., 2:, 0], 2, -1))


def _db(found: Ints, other: Ints) -> Floats:
    """Of two powers; NaN where one of them is 0."""
    ratio = share(found, other)
    return 10 * np.log10(np.where(ratio > 0, ratio, np.nan))


def power(maps: Any) -> Floats:
    """(K, H, W) to the power (H, W) of each frequency, in the order of `numpy.fft.fft2`, per pixel."""
    import torch

    _, height, width = maps.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)
    given = torch.from_numpy((maps - maps.mean((1, 2), keepdims=True)) * window)
    found: Floats = torch.fft.fft2(given).abs().square().sum(0).double().numpy() / (height * width) ** 2
    return found


def _rings(found: Floats) -> Floats:
    """(BINS,) power of each ring of frequencies."""
    rows, columns = (np.fft.fftfreq(n) for n in found.shape)
    ring = (np.hypot(rows[:, None], columns) * 2 * BINS).astype(np.int64)
    return np.bincount(ring.ravel(), found.ravel())[:BINS].astype(np.float64)
