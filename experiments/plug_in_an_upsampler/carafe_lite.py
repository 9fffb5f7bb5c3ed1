"""CARAFE (Wang et al. 2019, https://arxiv.org/abs/1905.02188) without its encoder's compression, as a plug-in."""

import torch.nn.functional as F
from torch import Tensor, nn


class CarafeLite(nn.Module):
    """Each output pixel is a weighted mean of the KxK pixels around its source; a convolution predicts the weights."""

    ratios, starts_as = "integer", "random"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0, *, kernel: int = 5) -> None:
        super().__init__()
        self.scale, self.kernel = scale, kernel  # the kernel is odd
        self.weights = nn.Conv2d(channels, kernel**2 * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weights = F.pixel_shuffle(self.weights(x), self.scale).softmax(1)  # (B, K², sh, sw)
        around = F.unfold(x, self.kernel, padding=self.kernel // 2).view(b, -1, h, w)  # (B, C K², h, w)
        around = F.interpolate(around, scale_factor=self.scale, mode="nearest")
        return (around.view(b, c, -1, *weights.shape[2:]) * weights[:, None]).sum(2)  # (B, C, sh, sw)
