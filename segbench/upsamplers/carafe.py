"""CARAFE: each output pixel a softmax-weighted sum of a 5x5 window, the weights predicted from the features."""

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import largest_divisor, normal, reassemble, xavier
from segbench.upsamplers.base import checked


@checked
class Carafe(nn.Module):
    """Content-aware reassembly: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``. Zeros lie beyond the border.

    Wang et al. 2019, https://arxiv.org/abs/1905.02188. A 1x1 convolution to ``compressed`` channels, a convolution to
    k² weights for each output pixel, depth-to-space, softmax over the k² weights, `reassemble`. It starts near the mean
    of the 5x5 window, the same for the s² output pixels of an input pixel; the border loses what lies outside. At C =
    256, s = 2: 74,148 parameters, 99,584 MACs per input pixel.

    Args:
        channels: C.
        scale: s, an int.
        kernel_up: k, odd, of the window.
        kernel_encoder: of the convolution that predicts the weights, odd.
        compressed: channels that they are predicted from.
        groups: of channels with weights of their own; the largest divisor of C up to that.
    """

    group, year = "adaptive", 2019
    ratios, starts_as = "integer", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        kernel_up: int = 5,
        kernel_encoder: int = 3,
        compressed: int = 64,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.scale, self.kernel_up, self.groups = scale, kernel_up, largest_divisor(channels, groups)
        self.compress = nn.Conv2d(channels, compressed, 1)
        weights = self.groups * kernel_up**2 * scale**2
        self.encode = nn.Conv2d(compressed, weights, kernel_encoder, padding=kernel_encoder // 2)
        xavier(self.compress)
        normal(self.encode, sd=0.001)

    def forward(self, x: Tensor) -> Tensor:
        scores = F.pixel_shuffle(self.encode(self.compress(x)), self.scale)  # (B, g k², s h, s w)
        kernel = scores.unflatten(1, (self.groups, -1)).softmax(2).flatten(1, 2)
        return reassemble(x, kernel, self.kernel_up, self.scale)
