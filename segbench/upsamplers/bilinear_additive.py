"""Bilinear additive upsampling: bilinear, every four channels added, then a 3x3 convolution brings them back."""

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers.base import checked


@checked
class BilinearAdditive(nn.Module):
    """Bilinear interpolation, sums of 4 consecutive channels, 3x3 convolution C/4 to C: to ``(B, C, s*h, s*w)``.

    Wojna et al. 2017, https://arxiv.org/abs/1707.05847. Where 4 does not divide C, zero channels are added up to it.

    Args:
        channels: C.
        scale: s, an int.
        residual: adds the bilinear interpolation of x to the output.
    """

    group, year = "learned", 2017
    ratios, starts_as = "integer", "random"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0, *, residual: bool = False) -> None:
        super().__init__()
        self.scale, self.residual, self.missing = scale, residual, -channels % 4
        self.conv = nn.Conv2d((channels + self.missing) // 4, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        up = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        y: Tensor = self.conv(F.pad(up, (0, 0, 0, 0, 0, self.missing)).unflatten(1, (-1, 4)).sum(2))
        return y + up if self.residual else y
