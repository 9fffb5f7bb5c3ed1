"""Transposed convolution: each pixel spreads a learned kernel, 4x4 for x2, starting as bilinear."""

from typing import Literal

import torch
from torch import nn

from segbench.upsamplers.base import checked, triangle_filter


@checked
class Deconv(nn.ConvTranspose2d):
    """Transposed convolution with stride s: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``. Zeros lie beyond the border.

    Its kernel has 2s taps along an axis for even s, and 2s - 1 for odd s, as bilinear interpolation has: 4 for x2, with
    padding 1. Four of its taps reach each output pixel, two to a side, wherever it lies, as the kernel is a multiple of
    the stride (Odena et al. 2016, https://distill.pub/2016/deconv-checkerboard); for odd s it is two or one to a side.
    Kernels of s taps do not overlap. Those of 3 taps for x2 overlap unevenly and are centred on output pixel 2n, half a
    pixel off. At C = 256, s = 2: 1,048,832 parameters and 1,048,576 MACs per input pixel; 2x2 262,400 and 262,144;
    3x3 590,080 and 589,824.

    Args:
        channels: C, channels in and out; every output channel sees every input channel.
        scale: s, an int.
        kernel: taps along an axis, from s to 2s; default: as bilinear interpolation has.
        init: ``bilinear`` starts as bilinear interpolation of each channel (FCN, Long et al. 2015,
            https://arxiv.org/abs/1411.4038), and with a kernel of s taps as nearest; ``random`` as torch does by
            default, and so do other kernels.

    Raises:
        ValueError: an unknown init, or a kernel out of range.
    """

    group, year = "learned", 2014
    ratios = "integer"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        kernel: int | None = None,
        init: Literal["bilinear", "random"] = "bilinear",
    ) -> None:
        taps = triangle_filter(scale)
        size = len(taps) if kernel is None else kernel
        if not scale <= size <= 2 * scale:
            raise ValueError(f"kernel must be from {scale} to {2 * scale} for x{scale}, not {size}")
        padding = (size - scale + 1) // 2
        super().__init__(
            channels, channels, size, stride=scale, padding=padding, output_padding=2 * padding - (size - scale)
        )
        if init not in ("bilinear", "random"):
            raise ValueError(f"init must be 'bilinear' or 'random', not '{init}'")
        starts = {scale: ("nearest", torch.ones(scale)), len(taps): ("bilinear", taps)}
        self.starts_as = "random"
        if init == "bilinear" and size in starts:
            self.starts_as, taps = starts[size]
            with torch.no_grad():
                self.weight.zero_()
                self.weight[range(channels), range(channels)] = torch.outer(taps, taps).to(self.weight)
                assert self.bias is not None
                self.bias.zero_()
