"""DySample: bilinear sampling at points that are moved by predicted offsets."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import centres, largest_divisor, normal, sample
from segbench.upsamplers.base import checked


@checked
class Dysample(nn.Module):
    """Upsampling by learned sampling: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``; starts near bilinear.

    Liu et al. 2023, https://arxiv.org/abs/2308.15085. Each group of channels is sampled bilinearly at the place of the
    output pixel plus an offset that a 1x1 convolution predicts, in input pixels; the border is repeated. Offset 0 is
    bilinear interpolation. At C = 256, s = 2: ``lp`` 8,224 parameters, with dynamic scope 16,416; ``pl`` with 8 groups
    1,040 and 2,064.

    Args:
        channels: C.
        scale: s, an int.
        style: ``lp`` predicts from x and then shuffles pixels; ``pl`` shuffles x first, C/s² channels, and predicts
            from that (the published "S" models). Where s² does not divide C, as with most numbers of classes, it is lp.
        groups: of channels with offsets of their own; the largest divisor of C up to that.
        dynamic_scope: scales the offsets by half a sigmoid of another 1x1 convolution (the published "+"), in place of
            a quarter.

    Raises:
        ValueError: an unknown style.
    """

    group, year = "adaptive", 2023
    ratios, starts_as = "integer", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        style: Literal["lp", "pl"] = "lp",
        groups: int = 4,
        dynamic_scope: bool = False,
    ) -> None:
        super().__init__()
        if style not in ("lp", "pl"):
            raise ValueError(f"style must be 'lp' or 'pl', not '{style}'")
        self.scale, self.groups = scale, largest_divisor(channels, groups)
        self.shuffled = style == "pl" and channels % scale**2 == 0
        inside = channels // scale**2 if self.shuffled else channels
        outside = 2 * self.groups * (1 if self.shuffled else scale**2)
        self.offset = nn.Conv2d(inside, outside, 1)
        self.scope = nn.Conv2d(inside, outside, 1, bias=False) if dynamic_scope else None
        normal(self.offset, sd=0.001)
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)

    def forward(self, x: Tensor) -> Tensor:
        z = F.pixel_shuffle(x, self.scale) if self.shuffled else x
        scope = 0.25 if self.scope is None else 0.5 * self.scope(z).sigmoid()
        offset = scope * self.offset(z)
        if not self.shuffled:
            offset = F.pixel_shuffle(offset, self.scale)
        across, down = offset.unflatten(1, (2, self.groups)).transpose(0, 1).flatten(1, 2)  # each (B g, s h, s w)
        rows, columns = centres(x.to(offset.dtype), self.scale)
        y = sample(
            x.reshape(-1, x.shape[1] // self.groups, *x.shape[-2:]), rows + down, columns + across, outside="border"
        )
        return y.view(*x.shape[:2], *y.shape[-2:])
