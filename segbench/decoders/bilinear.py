"""Bilinear upsampling: linear interpolation between pixel centres."""

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.decoders.base import PyramidDecoder, Scale


class BilinearUpsampler(nn.Module):
    """Output pixel n lies at ``(n + 1/2) / s - 1/2`` input pixels (``align_corners=False``); the border is repeated.

    ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``, without parameters.
    """

    starts_as = "bilinear"

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(
            x, scale_factor=float(self.scale), mode="bilinear", align_corners=False
        )  # (B, C, s*h, s*w)


class Bilinear(PyramidDecoder):
    """`PyramidDecoder` with bilinear upsampling, as in DeepLab (Chen et al. 2017, arXiv:1606.00915): the baseline."""

    def upsampler(self, channels: int, scale: Scale, guide_channels: int) -> nn.Module:
        return BilinearUpsampler(scale)
