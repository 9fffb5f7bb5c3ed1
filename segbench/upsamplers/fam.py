"""FAM, flow alignment of SFNet: the coarse map is warped by a flow predicted from both maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import precise, sample
from segbench.upsamplers.base import checked


@checked
class Fam(nn.Module):
    """Upsampling by a predicted flow: ``(B, C, h, w)`` to the guide's size.

    SFNet, Li et al. 2020, https://arxiv.org/abs/2002.10120. x, interpolated with corners aligned as published, and the
    guide, both reduced by 1x1 convolutions, give a flow of two channels, x first, in half output pixels about; x is
    sampled where it points, 0 outside the map. No convolution has a bias. At C = 256: 70,144 parameters; with the gate
    77,056, and 186,368 MACs per input pixel.

    Args:
        channels: C.
        guide_channels: of the guide ``(B, guide_channels, 2h, 2w)``.
        gated: warps the guide too and mixes both by a sigmoid (SFNet-Lite, Li et al. 2022,
            https://arxiv.org/abs/2207.04415); left out where the guide has other channels than x.
        reduced: channels of each map that the flow is predicted from; default: half of C, at least 1.
        kernel: side of the convolutions that predict flow and gate, odd.
    """

    group, year = "guided", 2020
    guided, ratios, starts_as = True, "integer", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        gated: bool = False,
        reduced: int | None = None,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        reduced = max(1, channels // 2) if reduced is None else reduced
        gated = gated and guide_channels == channels
        self.reduce_x = nn.Conv2d(channels, reduced, 1, bias=False)
        self.reduce_guide = nn.Conv2d(guide_channels, reduced, 1, bias=False)
        self.flow = nn.Conv2d(2 * reduced, 4 if gated else 2, kernel, padding=kernel // 2, bias=False)
        self.gate = nn.Conv2d(2 * reduced, 1, kernel, padding=kernel // 2, bias=False) if gated else None

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        size = (guide.shape[-2], guide.shape[-1])
        reduced = F.interpolate(self.reduce_x(x), size=size, mode="bilinear", align_corners=True)
        both = torch.cat([reduced, self.reduce_guide(guide)], 1)
        flow = self.flow(both)
        y = _warp(x, flow[:, :2])
        if self.gate is None:
            return y
        gate = self.gate(both).sigmoid()
        return gate * y + (1 - gate) * _warp(guide, flow[:, 2:])


def _warp(x: Tensor, flow: Tensor) -> Tensor:
    """x ``(B, C, h, w)`` at the places of ``flow`` ``(B, 2, H, W)``, corners aligned, 0 outside: ``(B, C, H, W)``."""
    (height, width), (out_h, out_w) = x.shape[-2:], flow.shape[-2:]
    rows, columns = (torch.linspace(-1, 1, n, device=x.device, dtype=precise(flow)) for n in (out_h, out_w))
    across, down = flow.unbind(1)
    rows = (rows[:, None] + down / out_h + 1) / 2 * (height - 1)
    columns = (columns + across / out_w + 1) / 2 * (width - 1)
    return sample(x, rows, columns, outside="zeros")
