"""GAI, guided attentive interpolation: criss-cross attention on the bilinear interpolation, guided by the finer map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers.base import checked


@checked
class Gai(nn.Module):
    """Attention along rows and columns of the interpolated map: ``(B, C, h, w)`` to the guide's size.

    Cheng et al. 2025, https://arxiv.org/abs/2601.01167, in its criss-cross form. It starts without attention, as a 1x1
    convolution of the bilinear interpolation. Its memory grows with H W (H + W), from 13 times that of bilinear
    interpolation in a training step to 128x128 with C = 64: it is for coarse maps and small crops.
    At C = 256, s = 2: 218,017 parameters, 950,272 + 1,152 (H + W) MACs per input pixel.

    Args:
        channels: C.
        guide_channels: of the guide ``(B, guide_channels, s h, s w)``.
        reduction: values have C / reduction channels, at least 1.
        attention_reduction: queries and keys have C / attention_reduction channels, at least 1.
        iterations: how often attention is applied, with the same weights.
        activation: whether batch norm and ReLU end it, as published; default: not where the guide is an image of 3
            channels, as then x are logits, which are unbounded.
    """

    group, year = "guided", 2025
    guided, ratios, starts_as = True, "integer", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        reduction: int = 2,
        attention_reduction: int = 16,
        iterations: int = 2,
        activation: bool | None = None,
    ) -> None:
        super().__init__()
        value, query = max(1, channels // reduction), max(1, channels // attention_reduction)
        self.iterations = iterations
        self.mix = nn.Conv2d(channels + guide_channels, value, 1)
        self.reduce = nn.Conv2d(channels, value, 1)
        self.query, self.key = nn.Conv2d(value, query, 1), nn.Conv2d(value, query, 1)
        self.value = nn.Conv2d(value, value, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.out = nn.Conv2d(value + channels, channels, 1, bias=False)
        activation = guide_channels != 3 if activation is None else activation
        self.out_norm = nn.BatchNorm2d(channels) if activation else None

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        up = F.interpolate(x, size=(guide.shape[-2], guide.shape[-1]), mode="bilinear", align_corners=False)
        query, value = self.query(self.mix(torch.cat([up, guide], 1))), self.reduce(up)
        for _ in range(self.iterations):
            value = value + self.gamma * _criss_cross(query, self.key(value), self.value(value))
        y: Tensor = self.out(torch.cat([value, up], 1))
        return y if self.out_norm is None else self.out_norm(y).relu()


def _criss_cross(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of each pixel to its row and its column, itself counted once: ``(B, C, H, W)``."""
    height = query.shape[-2]
    itself = torch.eye(height, dtype=torch.bool, device=query.device)[:, None]  # (H, 1, H)
    down = torch.einsum("bchw,bcgw->bhwg", query, key).masked_fill(itself, -torch.inf)
    across = torch.einsum("bchw,bchv->bhwv", query, key)
    down, across = torch.cat([down, across], -1).softmax(-1).split([height, query.shape[-1]], -1)
    return torch.einsum("bhwg,bcgw->bchw", down, value) + torch.einsum("bhwv,bchv->bchw", across, value)
