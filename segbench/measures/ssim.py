"""SSIM: structural similarity of reconstructed images."""

from typing import Any

import numpy as np

from segbench.measures.base import CountMeasure, Floats, ImageSample, Ints, share

UNIT = 1_000_000  # in which similarities are added up


class Ssim(CountMeasure):
    """Structural similarity (Wang et al. 2004), the mean over images.

    By torchmetrics: Gaussian windows of 11 x 11 pixels with a standard deviation of 1.5, over 8-bit colours, the mean
    over channels and pixels. Counts: half of 1 + SSIM of an image in millionths, and 1.
    """

    short = "SSIM"
    long = "SSIM"
    help = "Structural similarity of the reconstructed images, 1 for equal ones"
    task = "reconstruction"
    unit = ""
    digits = 4
    bounds = (-1.0, 1.0)
    per_class = False
    standard = ({},)
    table_place = 11
    verdict_place = 1

    def count(self, sample: ImageSample) -> Ints:  # type: ignore[override]
        import torch
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        made, truth = (torch.from_numpy(a).permute(2, 0, 1)[None].float() for a in (sample.prediction, sample.truth))
        found: Any = ssim(made, truth, data_range=255.0)
        return np.array([[round(UNIT * (1 + float(found)) / 2)], [1]], np.int64)

    def score(self, counts: Ints) -> Floats:
        return 2 * share(counts[..., 0, :], counts[..., 1, :]) / UNIT - 1
