"""A2U, affinity-aware upsampling: weights from a second-order form of the finer map, close to a 3x3 mean."""

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import GroupNorm, reassemble
from segbench.upsamplers.base import checked


@checked
class A2u(nn.Module):
    """Reassembly with weights from the affinity of two views of the guide: ``(B, C, h, w)`` to ``(B, C, 2h, 2w)``.

    Dai et al. 2021, https://arxiv.org/abs/2011.14288. From the pooled guide come, for each image, two filters, and from
    its mean k² weights for each of the four output pixels; the product of the guide filtered by both, times those
    weights, goes through a sigmoid and a softmax. So no weight exceeds 0.254 at k = 3, and the output depends on the
    whole image, not on a crop alone. At C = 256: 10,790 parameters, 27,940 MACs per input pixel.

    Args:
        channels: C.
        guide_channels: of the guide ``(B, guide_channels, 2h, 2w)``.
        kernel_up: k, odd.
        kernel_encoder: side of the two filters.
        shared: one filter for all channels of the guide, else one for each.
    """

    group, year = "guided", 2021
    guided, starts_as = True, "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        kernel_up: int = 3,
        kernel_encoder: int = 6,
        shared: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_up, self.kernel_encoder = kernel_up, kernel_encoder
        filters = 1 if shared else guide_channels
        self.u, self.v = nn.Conv2d(guide_channels, filters, 1), nn.Conv2d(guide_channels, filters, 1)
        self.norm_u, self.norm_v = GroupNorm(guide_channels, 32), GroupNorm(guide_channels, 32)
        self.projection = nn.Conv2d(guide_channels, 4 * kernel_up**2, 1)

    def kernel(self, guide: Tensor) -> Tensor:
        """``(B, k², 2h, 2w)``, a softmax over the k² weights."""
        batch, channels, height, width = guide.shape
        pooled = F.adaptive_avg_pool2d(guide, self.kernel_encoder)
        planes = guide.reshape(1, batch * channels, height, width)
        sides = []
        for project, norm in ((self.u, self.norm_u), (self.v, self.norm_v)):
            filters = project(pooled).expand(batch, channels, -1, -1).reshape(batch * channels, 1, *pooled.shape[-2:])
            padding = (self.kernel_encoder - 1) // 2 if self.kernel_encoder % 2 == 0 else self.kernel_encoder // 2
            y = F.conv2d(planes.to(filters.dtype), filters, stride=2, padding=padding, groups=batch * channels)
            sides.append(F.leaky_relu(norm(y.view(batch, channels, *y.shape[-2:]))))
        affinity = (sides[0] * sides[1]).sum(1, keepdim=True) / channels**0.5  # (B, 1, h, w)
        weights = self.projection(guide.mean((2, 3), keepdim=True))  # (B, 4 k², 1, 1)
        return F.pixel_shuffle(weights * affinity, 2).sigmoid().softmax(1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return reassemble(x, self.kernel(guide), self.kernel_up, 2)
