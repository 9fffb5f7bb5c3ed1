"""Bilinear upsampling: linear interpolation between pixel centres, the first baseline."""

from torch import nn

from segbench.upsamplers.base import checked


@checked
class Bilinear(nn.Upsample):
    """Output pixel n lies at ``(n + 1/2) / s - 1/2`` input pixels (``align_corners=False``); the border is repeated.

    ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``, without parameters. As in DeepLab (Chen et al. 2017,
    https://arxiv.org/abs/1606.00915).
    """

    group, year = "fixed", None
    ratios, starts_as = "integer", "bilinear"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0) -> None:
        super().__init__(scale_factor=scale, mode="bilinear", align_corners=False)
