"""Guided filter: a local linear model of x in the guide, interpolated and applied to the finer guide."""

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import precise
from segbench.upsamplers.base import checked


@checked
class GuidedFilter(nn.Module):
    """Fast guided filter: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``, without parameters.

    He and Sun 2015, https://arxiv.org/abs/1505.00996. In windows of x, ``x = A l + b`` of the guide averaged to its
    size is solved in the least-squares sense; A and b are interpolated, corners aligned, and applied to the guide. A
    guide of other channels than x is averaged over its channels.

    Args:
        channels: C.
        scale: s, an int.
        guide_channels: of the guide ``(B, guide_channels, s h, s w)``.
        radius: of the windows, in pixels of x.
        eps: added to the guide's variance.
    """

    group, year = "guided", 2015
    guided, ratios = True, "integer"

    def __init__(
        self, channels: int, scale: int = 2, guide_channels: int = 0, *, radius: int = 1, eps: float = 1e-2
    ) -> None:
        super().__init__()
        self.scale, self.radius, self.eps = scale, radius, eps

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        if guide.shape[1] != x.shape[1]:
            guide = guide.mean(1, keepdim=True)
        return self.filter(x, F.avg_pool2d(guide, self.scale), guide)

    def filter(self, x: Tensor, guide_low: Tensor, guide: Tensor) -> Tensor:
        """With a guide at the size of x that is given: ``(B, 1 or C, h, w)``."""
        dtype, exact = x.dtype, precise(x)  # variances are differences, so not in bfloat16
        x, low, guide = x.to(exact), guide_low.to(exact), guide.to(exact)
        size = (guide.shape[-2], guide.shape[-1])
        variance = self._mean(low * low) - self._mean(low) ** 2
        slope = (self._mean(low * x) - self._mean(low) * self._mean(x)) / (variance + self.eps)
        offset = self._mean(x) - slope * self._mean(low)
        slope, offset = (F.interpolate(t, size=size, mode="bilinear", align_corners=True) for t in (slope, offset))
        return (slope * guide + offset).to(dtype)

    def _mean(self, t: Tensor) -> Tensor:
        return F.avg_pool2d(t, 2 * self.radius + 1, 1, self.radius, count_include_pad=False)
