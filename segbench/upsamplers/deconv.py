"""Transposed convolution: each pixel spreads a learned kernel, 4x4 for x2."""

from typing import Literal

import torch
from torch import nn

from segbench.upsamplers.base import triangle_filter


class Deconv(nn.ConvTranspose2d):
    """Transposed convolution with stride s: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``. Zeros lie beyond the border.

    Its kernel has 2s taps along an axis for even s, and 2s - 1 for odd s, as bilinear interpolation has: 4 for x2, with
    padding 1. Four of its taps reach each output pixel, two to a side, wherever it lies, as the kernel is a multiple of
    the stride (Odena et al. 2016, https://distill.pub/2016/deconv-checkerboard); for odd s it is two or one to a side.

    Args:
        channels: C, channels in and out; every output channel sees every input channel.
        scale: s, an int.
        init: ``bilinear`` starts as bilinear interpolation of each channel (FCN, Long et al. 2015,
            https://arxiv.org/abs/1411.4038); ``random`` as torch does by default.

    Raises:
        ValueError: an unknown init.
    """

    ratios = "integer"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        init: Literal["bilinear", "random"] = "bilinear",
    ) -> None:
        taps = triangle_filter(scale)
        super().__init__(channels, channels, len(taps), stride=scale, padding=(len(taps) - scale) // 2)
        if init not in ("bilinear", "random"):
            raise ValueError(f"init must be 'bilinear' or 'random', not '{init}'")
        self.starts_as = init
        if init == "bilinear":
            with torch.no_grad():
                self.weight.zero_()
                self.weight[range(channels), range(channels)] = torch.outer(taps, taps).to(self.weight)
                assert self.bias is not None
                self.bias.zero_()
