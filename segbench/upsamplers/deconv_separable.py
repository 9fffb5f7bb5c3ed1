"""Separable transposed convolution: each channel by itself, starting as bilinear, then a 1x1 convolution."""

import torch
from torch import Tensor, nn

from segbench.upsamplers.base import checked, triangle_filter


@checked
class DeconvSeparable(nn.Module):
    """Depthwise transposed convolution, then 1x1: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``; starts as bilinear.

    Transposed, as the separable convolutions of Chollet 2017, https://arxiv.org/abs/1610.02357. The depthwise kernels
    start as bilinear interpolation, the 1x1 convolution as identity. At C = 256, s = 2: 69,888 parameters, 266,240 MACs
    per input pixel. Zeros lie beyond the border.

    Args:
        channels: C.
        scale: s, an int.
    """

    group, year = "learned", 2017
    ratios, starts_as = "integer", "bilinear"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0) -> None:
        super().__init__()
        taps = triangle_filter(scale)
        size, padding = len(taps), (len(taps) - scale) // 2
        self.depthwise = nn.ConvTranspose2d(channels, channels, size, scale, padding, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        assert self.pointwise.bias is not None
        with torch.no_grad():
            self.depthwise.weight.copy_(torch.outer(taps, taps))
            nn.init.dirac_(self.pointwise.weight)
            self.pointwise.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(x))
        return y
