"""CARAFE (Wang et al. 2019, https://arxiv.org/abs/1905.02188) without its encoder's compression, as a plug-in."""

import torch.nn.functional as F
from torch import Tensor, nn

from segbench import PyramidDecoder


class CarafeLiteUpsampler(nn.Module):
    """Each output pixel is a weighted mean of the 5x5 pixels around its source; a convolution predicts the weights."""

    starts_as = "random"

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.weights = nn.Conv2d(channels, 25 * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weights = F.pixel_shuffle(self.weights(x), self.scale).softmax(1)  # (B, 25, sh, sw)
        around = F.unfold(x, 5, padding=2).view(b, c * 25, h, w)  # (B, 25 C, h, w)
        around = F.interpolate(around, scale_factor=self.scale, mode="nearest").view(b, c, 25, h * self.scale, -1)
        return (around * weights[:, None]).sum(2)  # (B, C, sh, sw)


class CarafeLite(PyramidDecoder):
    def upsampler(self, channels: int, scale: int, guide_channels: int) -> nn.Module:
        return CarafeLiteUpsampler(channels, scale)
