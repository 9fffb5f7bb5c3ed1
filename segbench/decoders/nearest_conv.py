"""Nearest-neighbour upsampling, then a 3x3 convolution that starts as identity: a control, as `bilinear_conv`."""

from torch import nn

from segbench.decoders.base import PyramidDecoder, Scale
from segbench.decoders.bilinear_conv import IdentityConv2d
from segbench.decoders.nearest import NearestUpsampler


class NearestConvUpsampler(nn.Sequential):
    """Each pixel repeated, then a 3x3 convolution: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``; starts as nearest.

    The resize-convolution of Odena et al. 2016, https://distill.pub/2016/deconv-checkerboard, from identity.
    """

    starts_as = "nearest"

    def __init__(self, channels: int, scale: Scale) -> None:
        super().__init__(NearestUpsampler(scale), IdentityConv2d(channels))


class NearestConv(PyramidDecoder):
    """`PyramidDecoder` with nearest-neighbour upsampling and a convolution."""

    def upsampler(self, channels: int, scale: Scale, guide_channels: int) -> nn.Module:
        return NearestConvUpsampler(channels, scale)
