"""Nearest-neighbour upsampling: each pixel repeated."""

from torch import nn

from segbench.upsamplers.base import checked


@checked
class Nearest(nn.Upsample):
    """``y[n] = x[floor(n / s)]``: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``, without parameters.

    As FPN has it (Lin et al. 2017, https://arxiv.org/abs/1612.03144).
    """

    group, year = "fixed", None
    ratios, starts_as = "integer", "nearest"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0) -> None:
        super().__init__(scale_factor=scale, mode="nearest")
