"""AlignSeg's context alignment: both maps are warped by flows that start at zero."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import centres, sample
from segbench.upsamplers.base import checked


class Flow(nn.Module):
    """1x1 convolution, batch norm, leaky ReLU and a 3x3 convolution to two channels, which starts at zero."""

    def __init__(self, inside: int, middle: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inside, middle, 1, bias=False)
        self.norm = nn.BatchNorm2d(middle)
        self.flow = nn.Conv2d(middle, 2, 3, padding=1, bias=False)
        nn.init.zeros_(self.flow.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.flow(F.leaky_relu(self.norm(self.reduce(x))))
        return y


@checked
class AlignsegCab(nn.Module):
    """Aligned interpolation of x, and guide: ``(B, C, h, w)`` to the guide's size.

    AlignSeg, Huang et al. 2021, https://arxiv.org/abs/2003.00872. It starts as bilinear interpolation with corners
    aligned. The paper's block gives the sum of both maps, warped; a skeleton adds the guide itself, so here the guide
    is taken off again, and where it has other channels than x only x is warped. At C = 256: 272,384 parameters,
    1,085,440 MACs per input pixel.

    Args:
        channels: C.
        guide_channels: of the guide ``(B, guide_channels, s h, s w)``.
    """

    group, year = "guided", 2021
    guided, ratios, starts_as = True, "integer", "random"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0) -> None:
        super().__init__()
        self.x = Flow(channels + guide_channels, channels)
        self.guide = Flow(channels + guide_channels, channels) if guide_channels == channels else None

    def aligned(self, x: Tensor, guide: Tensor) -> Tensor:
        """The published block: the sum of both maps, warped."""
        up = F.interpolate(x, size=(guide.shape[-2], guide.shape[-1]), mode="bilinear", align_corners=True)
        both = torch.cat([guide, up], 1)
        y = _move(up, self.x(both))
        return y if self.guide is None else y + _move(guide, self.guide(both))

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        y = self.aligned(x, guide)
        return y if self.guide is None else y - guide


def _move(x: Tensor, flow: Tensor) -> Tensor:
    across, down = flow.unbind(1)
    rows, columns = centres(x.to(flow.dtype), 1)
    return sample(x, rows + down, columns + across, outside="zeros")
