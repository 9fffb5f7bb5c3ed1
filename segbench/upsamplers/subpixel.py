"""Sub-pixel convolution: a 3x3 convolution to s² times the channels, then depth-to-space."""

from typing import Literal

import torch
from torch import Tensor, nn

from segbench.upsamplers.base import IdentityConv2d


class Subpixel(nn.Module):
    """3x3 convolution and pixel shuffle: ``(B, C, h, w)`` to ``(B, s² C, h, w)`` to ``(B, C, s*h, s*w)``.

    Shi et al. 2016, https://arxiv.org/abs/1609.05158.

    Args:
        channels: C.
        scale: s, an int.
        init: ``nearest`` starts as nearest-neighbour interpolation of each channel: ICNR (Aitken et al. 2017,
            https://arxiv.org/abs/1707.02937) from a delta kernel, so that the s² kernels of an output channel all take
            its own pixel; ``icnr`` from a random kernel, which starts as a random convolution and nearest; ``plain`` as
            torch does by default, with a checkerboard.

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
        init: Literal["nearest", "icnr", "plain"] = "nearest",
    ) -> None:
        super().__init__()
        if init not in ("nearest", "icnr", "plain"):
            raise ValueError(f"init must be 'nearest', 'icnr' or 'plain', not '{init}'")
        self.starts_as = "nearest" if init == "nearest" else "random"
        self.conv = nn.Conv2d(channels, scale**2 * channels, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        if init != "plain":
            one = IdentityConv2d(channels) if init == "nearest" else nn.Conv2d(channels, channels, 3, padding=1)
            assert one.bias is not None
            assert self.conv.bias is not None
            with torch.no_grad():
                self.conv.weight.copy_(one.weight.repeat_interleave(scale**2, dim=0))
                self.conv.bias.copy_(one.bias.repeat_interleave(scale**2))

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv(x))  # (B, C, s*h, s*w)
