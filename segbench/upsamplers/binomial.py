"""Binomial upsampling: pyramid expansion with the smooth kernel [1 5 10 10 5 1] / 16."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers.base import checked


@checked
class Binomial(nn.Module):
    """Expansion of the Gaussian pyramid by 2, pixel centres aligned: ``(B, C, h, w)`` to ``(B, C, 2h, 2w)``.

    Burt and Adelson 1983, https://doi.org/10.1109/TCOM.1983.1095851, with a kernel of even length, so that nothing
    moves. It is nearest-neighbour interpolation smoothed by the binomial filter of ``order`` taps; the border is
    repeated. No parameters.

    Args:
        channels: C.
        order: n, odd: taps ``binom(n, i) / 2^(n-1)``. 1 is nearest, 3 bilinear interpolation, 5 smoother than that.

    Raises:
        ValueError: an order that is even or below 1.
    """

    group, year = "fixed", 1983
    kernel: Tensor

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0, *, order: int = 5) -> None:
        super().__init__()
        if order < 1 or order % 2 == 0:
            raise ValueError(f"order must be odd and at least 1, not {order}")
        taps = torch.tensor([math.comb(order, i) / 2 ** (order - 1) for i in range(order + 1)])
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        reach = (self.order + 1) // 4  # input pixels on each side that the kernel reaches
        planes = F.pad(x, (reach,) * 4, mode="replicate").reshape(
            batch * channels, 1, *(n + 2 * reach for n in (height, width))
        )
        y = F.conv_transpose2d(planes, self.kernel.to(x.dtype), stride=2, padding=(self.order - 1) // 2 + 2 * reach)
        return y.view(batch, channels, 2 * height, 2 * width)
