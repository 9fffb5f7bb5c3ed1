"""Decomposed transposed convolution: one along columns, then one along rows, starting as bilinear."""

import torch
from torch import nn

from segbench.upsamplers.base import checked, triangle_filter


@checked
class DeconvDecomposed(nn.Sequential):
    """Transposed convolutions of one axis each, C to R and R to C: to ``(B, C, s*h, s*w)``; starts as bilinear.

    Wojna et al. 2017, https://arxiv.org/abs/1707.05847. With R below C it starts at random. At R = C = 256, s = 2:
    524,544 parameters, 786,432 MACs per input pixel. Zeros lie beyond the border.

    Args:
        channels: C.
        scale: s, an int.
        rank: R, channels between both; default: C, as published.

    Raises:
        ValueError: a rank below 1.
    """

    group, year = "learned", 2017
    ratios = "integer"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0, *, rank: int | None = None) -> None:
        rank = channels if rank is None else rank
        if rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        taps = triangle_filter(scale)
        size, padding = len(taps), (len(taps) - scale) // 2
        columns = nn.ConvTranspose2d(channels, rank, (size, 1), (scale, 1), (padding, 0), bias=False)
        rows = nn.ConvTranspose2d(rank, channels, (1, size), (1, scale), (0, padding))
        super().__init__(columns, rows)
        self.starts_as = "bilinear" if rank >= channels else "random"
        if rank >= channels:
            both = range(channels)
            with torch.no_grad():
                for weight in (columns.weight, rows.weight):
                    weight.zero_()
                    weight[both, both] = taps.to(weight).view(weight.shape[2:])
                assert rows.bias is not None
                rows.bias.zero_()
