"""Nearest-neighbour upsampling, then a 3x3 convolution that starts as identity: a control, as `bilinear_conv`."""

from torch import nn

from segbench.upsamplers.base import IdentityConv2d, checked


@checked
class NearestConv(nn.Sequential):
    """Each pixel repeated, then a 3x3 convolution: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``; starts as nearest.

    The resize-convolution of Odena et al. 2016, https://distill.pub/2016/deconv-checkerboard, from identity.
    """

    group, year = "learned", 2016
    ratios, starts_as = "integer", "nearest"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0) -> None:
        super().__init__(nn.Upsample(scale_factor=scale, mode="nearest"), IdentityConv2d(channels))
