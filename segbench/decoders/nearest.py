"""Nearest-neighbour upsampling: each pixel repeated."""

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.decoders.base import PyramidDecoder, Scale


class NearestUpsampler(nn.Module):
    """``y[n] = x[floor(n / s)]``: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``, without parameters."""

    starts_as = "nearest"

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=float(self.scale), mode="nearest")  # (B, C, s*h, s*w)


class Nearest(PyramidDecoder):
    """`PyramidDecoder` with nearest-neighbour upsampling, as FPN has it (Lin et al. 2017, arXiv:1612.03144)."""

    def upsampler(self, channels: int, scale: Scale, guide_channels: int) -> nn.Module:
        return NearestUpsampler(scale)
