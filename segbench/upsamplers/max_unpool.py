"""Max unpooling: each pixel goes to where its 2x2 cell of the finer map has its maximum, the rest is 0."""

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers.base import checked


@checked
class MaxUnpool(nn.Module):
    """Unpooling by 2 with the guide's maxima: ``(B, C, h, w)`` to ``(B, C, 2h, 2w)``, without parameters.

    After SegNet, Badrinarayanan et al. 2015, https://arxiv.org/abs/1511.00561, whose indices are those of its encoder's
    own max pooling. Strided and ViT encoders have none, so here they come from the guide, channel by channel, or from
    its mean over channels where it has other channels than x. The first one wins a tie.
    """

    group, year = "guided", 2015
    guided = True

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0) -> None:
        super().__init__()

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        if guide.shape[1] != x.shape[1]:
            guide = guide.mean(1, keepdim=True)
        _, places = F.max_pool2d(guide, 2, return_indices=True)
        return F.max_unpool2d(x, places.expand_as(x), [2, 2])
