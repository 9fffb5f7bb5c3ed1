"""IndexNet: nearest-neighbour upsampling times an index map, which is predicted from the finer map."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers.base import checked


class Branch(nn.Sequential):
    """Index block: a convolution with stride 2; where nonlinear then batch norm, ReLU6 and a 1x1 convolution."""

    def __init__(self, inside: int, middle: int, outside: int, groups: int, context: bool, nonlinear: bool) -> None:
        size, padding = (4, 1) if context else (2, 0)
        super().__init__()
        first = middle if nonlinear else outside
        self.add_module("conv1", nn.Conv2d(inside, first, size, 2, padding, groups=groups, bias=False))
        if nonlinear:
            self.add_module("norm", nn.BatchNorm2d(middle))
            self.add_module("clip", nn.ReLU6())
            self.add_module("conv2", nn.Conv2d(middle, outside, 1, groups=groups, bias=False))
        for conv in self:
            if isinstance(conv, nn.Conv2d):  # He et al. 2015, by the fan out, as if it were not grouped
                nn.init.normal_(conv.weight, std=(2 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** 0.5)


@checked
class Indexnet(nn.Module):
    """Index-guided upsampling by 2: ``(B, C, h, w)`` to ``(B, C, 2h, 2w)``; starts as nearest times about 1/2.

    Lu et al. 2019, https://arxiv.org/abs/1908.00672; 2020, https://arxiv.org/abs/1908.09895. The index is a sigmoid of
    strided convolutions of the guide. At C = 256: ``hin`` 2,100,224 parameters and as many MACs per input pixel,
    ``o2o`` 19,456 and 18,432, ``m2o`` 4,458,496 and 4,457,472.

    Args:
        channels: C.
        guide_channels: of the guide ``(B, guide_channels, 2h, 2w)``.
        style: ``hin`` one index for all channels (holistic); ``o2o`` one for each, from its own channel of the guide;
            ``m2o`` one for each, from all. The latter two need a guide of C channels and are hin without.
        context: 4x4 kernels in place of 2x2.
        nonlinear: two convolutions in place of one.

    Raises:
        ValueError: an unknown style.
    """

    group, year = "guided", 2019
    guided, starts_as = True, "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        style: Literal["hin", "o2o", "m2o"] = "o2o",
        context: bool = True,
        nonlinear: bool = True,
    ) -> None:
        super().__init__()
        if style not in ("hin", "o2o", "m2o"):
            raise ValueError(f"style must be 'hin', 'o2o' or 'm2o', not '{style}'")
        self.holistic = style == "hin" or guide_channels != channels
        if self.holistic:
            self.branch = Branch(guide_channels, 2 * guide_channels, 4, 1, context, nonlinear)
        else:
            groups = channels if style == "o2o" else 1
            self.branches = nn.ModuleList(
                Branch(channels, channels, channels, groups, context, nonlinear) for _ in range(4)
            )

    def index(self, guide: Tensor) -> Tensor:
        """``(B, 1 or C, 2h, 2w)``, within 0 and 1."""
        scores = (
            self.branch(guide) if self.holistic else torch.stack([b(guide) for b in self.branches], 2).flatten(1, 2)
        )
        return F.pixel_shuffle(scores.sigmoid(), 2)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return self.index(guide) * F.interpolate(x, scale_factor=2)
