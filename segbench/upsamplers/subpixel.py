"""Sub-pixel convolution: a 3x3 convolution to s² times the channels, then depth-to-space."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers.base import checked


@checked
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
        kernel: of the convolution: 3, or 1.
        blur: ends with the mean of 2x2 pixels, the first row and column repeated (Sugawara et al. 2018,
            https://arxiv.org/abs/1806.02658): a constant comes out flat whatever the weights; the map moves by half an
            output pixel.

    Raises:
        ValueError: an unknown init or kernel.
    """

    group, year = "learned", 2016
    ratios = "integer"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        init: Literal["nearest", "icnr", "plain"] = "nearest",
        kernel: Literal[1, 3] = 3,
        blur: bool = False,
    ) -> None:
        super().__init__()
        if init not in ("nearest", "icnr", "plain"):
            raise ValueError(f"init must be 'nearest', 'icnr' or 'plain', not '{init}'")
        if kernel not in (1, 3):
            raise ValueError(f"kernel must be 1 or 3, not {kernel}")
        self.blur = blur
        self.starts_as = "nearest" if init == "nearest" and not blur else "random"
        self.conv = nn.Conv2d(channels, scale**2 * channels, kernel, padding=kernel // 2)
        self.shuffle = nn.PixelShuffle(scale)
        if init != "plain":
            one = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
            assert one.bias is not None
            if init == "nearest":
                nn.init.dirac_(one.weight)
                nn.init.zeros_(one.bias)
            assert self.conv.bias is not None
            with torch.no_grad():
                self.conv.weight.copy_(one.weight.repeat_interleave(scale**2, dim=0))
                self.conv.bias.copy_(one.bias.repeat_interleave(scale**2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shuffle(self.conv(x))  # (B, C, s*h, s*w)
        return F.avg_pool2d(F.pad(y, (1, 0, 1, 0), mode="replicate"), 2, 1) if self.blur else y
