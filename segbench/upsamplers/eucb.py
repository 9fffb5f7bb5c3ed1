"""EUCB, efficient up-convolution block: nearest, depthwise 3x3 convolution, batch norm, ReLU, 1x1 convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import normal
from segbench.upsamplers.base import checked


@checked
class Eucb(nn.Module):
    """Nearest by 2, then a depthwise-separable convolution: ``(B, C, h, w)`` to ``(B, C, 2h, 2w)``.

    EMCAD, Rahman et al. 2024, https://arxiv.org/abs/2405.06880; its channel shuffle, in C groups, does nothing and is
    left out. At C = 256: 68,608 parameters, 271,360 MACs per input pixel.

    Args:
        channels: C.
        kernel: side of the depthwise convolution, odd.
    """

    group, year = "learned", 2024
    starts_as = "random"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0, *, kernel: int = 3) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        normal(self.depthwise, self.pointwise, sd=0.02)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(torch.relu(self.norm(self.depthwise(F.interpolate(x, scale_factor=2)))))
        return y
