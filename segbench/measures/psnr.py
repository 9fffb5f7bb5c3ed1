"""PSNR: peak signal-to-noise ratio of reconstructed images."""

import numpy as np

from segbench.measures.base import CountMeasure, Floats, ImageSample, Ints, share

LEAST = 1e-10  # mean squared error, so that no score is infinite


class Psnr(CountMeasure):
    """``10 log10(255² / MSE)`` in decibels, of the mean squared error over all images, channels and pixels.

    Counts: the sum of squared errors of an image in its 8-bit colours, and how many there are. So a score of one image
    is the usual one, and that of several is of their pooled error, as torchmetrics' ``PeakSignalNoiseRatio``.
    """

    short = "PSNR"
    long = "PSNR"
    help = "Peak signal-to-noise ratio of the reconstructed images"
    task = "reconstruction"
    unit = "dB"
    bounds = (0.0, float("inf"))
    per_class = False
    standard = ({},)
    table_place = 10
    verdict_place = 0

    def count(self, sample: ImageSample) -> Ints:  # type: ignore[override]
        off = sample.truth.astype(np.int64) - sample.prediction
        return np.array([[(off * off).sum()], [off.size]])

    def score(self, counts: Ints) -> Floats:
        return 10 * np.log10(255**2 / np.maximum(share(counts[..., 0, :], counts[..., 1, :]), LEAST))
