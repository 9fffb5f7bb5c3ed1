"""LDA-AQU: local deformable attention, in which a query at the output pixel chooses among sampled neighbours."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import largest_divisor, precise, sample, weighted, xavier
from segbench.upsamplers.base import checked


@checked
class LdaAqu(nn.Module):
    """Attention to k² sampled points per output pixel: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``.

    Du et al. 2024, https://arxiv.org/abs/2411.19585. It starts as the mean of 3x3 points one output pixel apart, about.
    Outside the map features are 0. At C = 256, s = 2: 39,410 parameters, about 135,000 MACs per input pixel.

    Args:
        channels: C.
        scale: s, an int.
        reduction: queries and keys have C / reduction channels. Where reduction * groups does not divide C, reduction
            is 1 and groups the largest divisor of C up to what is given.
        heads: of the attention; the largest divisor of C / reduction up to that.
        kernel: k, odd: the points of a k x k window, before they are moved.
        kernel_offset: side of the convolution that predicts the offsets, odd.
        groups: of channels with offsets of their own. Where C / (reduction * groups) is 1, its layer norm over one
            channel gives the same offsets everywhere.
        range: the largest offset, in output pixels.
    """

    group, year = "adaptive", 2024
    ratios, starts_as = "integer", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        reduction: int = 4,
        heads: int = 1,
        kernel: int = 3,
        kernel_offset: int = 3,
        groups: int = 2,
        range: float = 11,
    ) -> None:
        super().__init__()
        if channels % (reduction * groups):
            reduction, groups = 1, largest_divisor(channels, groups)
        inside = channels // reduction
        self.scale, self.groups, self.kernel, self.range = scale, groups, kernel, range
        self.heads = largest_divisor(inside, heads)
        part = inside // groups
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Conv2d(channels, inside, 1, bias=False)
        self.key = nn.Conv2d(channels, inside, 1, bias=False)
        self.offset_depthwise = nn.Conv2d(part, part, 3, padding=1, groups=part, bias=False)
        self.offset_norm = nn.LayerNorm(part)
        self.offset_conv = nn.Conv2d(part, 2 * kernel**2, kernel_offset, padding=kernel_offset // 2)
        self.position_bias = nn.Parameter(torch.empty(1, self.heads, 1, kernel**2, inside // self.heads))
        xavier(self.query, self.key, self.offset_depthwise)
        nn.init.zeros_(self.offset_conv.weight)
        assert self.offset_conv.bias is not None
        nn.init.zeros_(self.offset_conv.bias)
        nn.init.trunc_normal_(self.position_bias, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        size = (self.scale * height, self.scale * width)
        normed = _over_channels(self.norm, x)
        query = F.interpolate(self.query(normed), size=size, mode="bilinear", align_corners=True)
        key = self.key(normed)
        grouped = (batch * self.groups, -1)
        offset = self.offset_depthwise(query.reshape(*grouped, *size))
        offset = self.offset_conv(F.gelu(_over_channels(self.offset_norm, offset))).tanh() * self.range
        down, across = offset.unflatten(1, (-1, 2)).unbind(2)  # each (B g, k², s h, s w), in output pixels
        step = [(n - 1) / (m - 1) for n, m in zip((height, width), size, strict=True)]
        rows, columns = (torch.arange(n, device=x.device).to(precise(x)) for n in size)
        reach = self.kernel // 2
        at = [
            ((rows[:, None] + i + down[:, n]) * step[0], (columns + j + across[:, n]) * step[1])
            for n, (i, j) in enumerate(itertools.product(range(-reach, reach + 1), repeat=2))
        ]
        head = (self.heads, query.shape[1] // self.heads)
        query = (query * head[1] ** -0.5).unflatten(1, head)
        keys, values = (t.reshape(*grouped, height, width) for t in (key, x))
        bias = self.position_bias[0, :, 0].unbind(1)  # per tap (heads, D / heads)
        scores = [
            (query * (sample(keys, *place, outside="zeros").view(batch, *head, *size) + b[..., None, None])).sum(2)
            for place, b in zip(at, bias, strict=True)
        ]
        weights = torch.stack(scores, 2).softmax(2)[:, :, :, None]  # (B, heads, k², 1, s h, s w)
        parts = (
            sample(values, *place, outside="zeros").view(batch, self.heads, channels // self.heads, *size)
            for place in at
        )
        return weighted(parts, weights.unbind(2)).reshape(batch, channels, *size)


def _over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = norm(x.movedim(1, -1))
    return y.movedim(-1, 1)
