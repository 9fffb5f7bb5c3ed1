"""ReSFU: weights for 3x3 points of the bilinear interpolation, from differences of filtered queries and keys."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import GroupNorm, normal, precise, reassemble, windows
from segbench.upsamplers.base import checked


class Scores(nn.Module):
    """Central-difference network: keys around a pixel minus its query, to 9 scores ``(B, 9, H, W)``."""

    def __init__(self, embedding: int, middle: int, groups: int, norm_groups: int, scale: int) -> None:
        super().__init__()
        self.scale, self.groups = scale, groups
        self.norm_in = GroupNorm(embedding, norm_groups)
        self.weight = nn.Parameter(torch.empty(middle, embedding // groups, 3, 3))
        self.bias = nn.Parameter(torch.zeros(1, middle, 1, 1))
        self.mix = nn.Conv2d(middle, middle, 1, groups=groups)
        self.norm_mid = GroupNorm(middle, norm_groups)
        self.out = nn.Conv2d(middle, 9, 1)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        normal(self.mix, self.out, sd=0.02)

    def forward(self, key: Tensor, query: Tensor) -> Tensor:
        key, query = F.pad(self.norm_in(key), (self.scale,) * 4, mode="replicate"), self.norm_in(query)
        # Not in bfloat16: torch 2.14's gradient of this weight is then nan at times, on CPUs with AVX-512 without AMX.
        with torch.autocast(key.device.type, enabled=False):
            t = F.conv2d(key.to(self.weight.dtype), self.weight, dilation=self.scale, groups=self.groups)
        t = t - F.conv2d(query, self.weight.sum((2, 3), keepdim=True), groups=self.groups) + self.bias
        y: Tensor = self.out(self.norm_mid(self.mix(t.relu()).relu()))
        return y


@checked
class Resfu(nn.Module):
    """Similarity-based upsampling from bilinear points: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``.

    ReSFU, Zhou et al. 2024, https://arxiv.org/abs/2407.02283, made for large ratios. It starts near the mean of 3x3
    points of the bilinear interpolation, one input pixel apart. At C = 256, s = 2: 47,570 parameters, about 180,000
    MACs per input pixel.

    Args:
        channels: C.
        scale: s, an int.
        guide_channels: of the guide ``(B, guide_channels, s h, s w)``.
        embedding: channels of query and key, a multiple of groups.
        norm_groups: of the norms within.
        radius: of the guided filter, in output pixels.
        eps: of the guided filter.
        guided_scale: by which the guided filter works on smaller maps.
        gaussian: side of the smoothing window, odd; its standard deviation is 1 pixel.
        mid_channels: of the networks that give the scores, a multiple of groups.
        groups: of their convolutions.

    Raises:
        ValueError: groups that do not divide embedding or mid_channels.
    """

    group, year = "guided", 2024
    guided, ratios, starts_as = True, "integer", "random"
    gauss: Tensor

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        embedding: int = 32,
        norm_groups: int = 8,
        radius: int = 8,
        eps: float = 1e-3,
        guided_scale: int = 2,
        gaussian: int = 3,
        mid_channels: int = 128,
        groups: int = 4,
    ) -> None:
        super().__init__()
        if embedding % groups or mid_channels % groups:
            raise ValueError(f"embedding and mid_channels must be multiples of groups {groups}")
        self.scale, self.radius, self.eps, self.guided_scale = scale, radius // guided_scale, eps, guided_scale
        self.norm_guide, self.norm_x = GroupNorm(guide_channels, 32), GroupNorm(channels, 32)
        self.query, self.key = nn.Conv2d(guide_channels, embedding, 1), nn.Conv2d(channels, embedding, 1)
        normal(self.query, self.key, sd=0.02)
        self.semantic, self.detail = (Scores(embedding, mid_channels, groups, norm_groups, scale) for _ in range(2))
        taps = torch.exp(-0.5 * (torch.arange(gaussian, dtype=torch.float64) - gaussian // 2) ** 2)
        taps = torch.outer(taps, taps)
        self.register_buffer("gauss", (taps / taps.sum()).expand(embedding, 1, -1, -1).clone(), persistent=False)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        size = (guide.shape[-2], guide.shape[-1])
        query, key = self.query(self.norm_guide(guide)), self.key(self.norm_x(x))
        key = F.interpolate(key, size=size, mode="bilinear", align_corners=False)
        gauss = self.gauss.to(query.dtype)
        smooth = F.conv2d(F.pad(query, (gauss.shape[-1] // 2,) * 4, mode="replicate"), gauss, groups=query.shape[1])
        scores = self.semantic(key, self._filter(query, key)) + self.detail(smooth, query)
        border, step = (self.scale,) * 4, self.scale
        there = F.pad(torch.ones_like(scores[:1, :1]), border)
        outside = torch.cat(list(windows(there, 3, step)), 1) == 0  # taps outside the map
        weights = scores.masked_fill(outside, -1e7).softmax(1)
        up = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return reassemble(up, weights, 3, 1, dilation=step)

    def _filter(self, query: Tensor, key: Tensor) -> Tensor:
        """The guided filter of the key, with the query as its guide; variances are differences, so not in bfloat16."""
        query, key = query.to(precise(query)), key.to(precise(key))
        size, by = (query.shape[-2], query.shape[-1]), self.guided_scale
        q, k = (t[..., : max(1, size[0] // by * by) : by, : max(1, size[1] // by * by) : by] for t in (query, key))
        mean = lambda t: F.avg_pool2d(t, 2 * self.radius + 1, 1, self.radius, count_include_pad=False)  # noqa: E731
        slope = (mean(q * k) - mean(q) * mean(k)) / (mean(q * q) - mean(q) ** 2 + self.eps)
        offset = mean(k) - slope * mean(q)
        slope, offset = (
            F.interpolate(mean(t), size=size, mode="bilinear", align_corners=False) for t in (slope, offset)
        )
        return slope * query + offset
