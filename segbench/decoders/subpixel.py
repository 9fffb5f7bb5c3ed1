"""Sub-pixel convolution: a 3x3 convolution to s² times the channels, then depth-to-space."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from segbench.decoders.base import PyramidDecoder, Scale


class SubpixelUpsampler(nn.Module):
    """3x3 convolution and pixel shuffle: ``(B, C, h, w)`` to ``(B, s² C, h, w)`` to ``(B, C, s*h, s*w)``.

    Shi et al. 2016, https://arxiv.org/abs/1609.05158.

    Args:
        channels: C.
        scale: s, an int.
        init: ``icnr`` starts the s² kernels of each output channel equal, so that it begins as convolution and nearest
            and shows no checkerboard (Aitken et al. 2017, arXiv:1707.02937); ``plain`` as torch does by default.
    """

    def __init__(self, channels: int, scale: int = 2, init: Literal["icnr", "plain"] = "icnr") -> None:
        super().__init__()
        if init not in ("icnr", "plain"):
            raise ValueError(f"init must be 'icnr' or 'plain', not '{init}'")
        self.conv = nn.Conv2d(channels, scale**2 * channels, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        if init == "icnr":
            one = nn.Conv2d(channels, channels, 3, padding=1)
            assert one.bias is not None
            assert self.conv.bias is not None
            with torch.no_grad():
                self.conv.weight.copy_(one.weight.repeat_interleave(scale**2, dim=0))
                self.conv.bias.copy_(one.bias.repeat_interleave(scale**2))

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv(x))  # (B, C, s*h, s*w)


class Subpixel(PyramidDecoder):
    """`PyramidDecoder` with sub-pixel convolution (Shi et al. 2016, arXiv:1609.05158).

    Args:
        init: ``icnr`` or ``plain``, see `SubpixelUpsampler`.
        **kwargs: ``width`` and ``output_stride``, see `PyramidDecoder`.
    """

    def __init__(self, *args: Any, init: Literal["icnr", "plain"] = "icnr", **kwargs: Any) -> None:
        self.init = init
        super().__init__(*args, **kwargs)

    def upsampler(self, channels: int, scale: Scale, guide_channels: int) -> nn.Module:
        return SubpixelUpsampler(channels, int(scale), self.init)
