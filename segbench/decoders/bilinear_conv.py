"""Bilinear upsampling, then a 3x3 convolution that starts as identity: the control of every learned upsampler."""

from torch import nn

from segbench.decoders.base import PyramidDecoder, Scale
from segbench.decoders.bilinear import BilinearUpsampler


class IdentityConv2d(nn.Conv2d):
    """3x3 convolution, C to C channels, that starts as identity: a one in the middle of kernel (i, i), no bias.

    ``(B, C, H, W)`` to ``(B, C, H, W)``. Zeros lie beyond the border.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)

    def reset_parameters(self) -> None:
        nn.init.dirac_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class BilinearConvUpsampler(nn.Sequential):
    """Bilinear interpolation, then a 3x3 convolution: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``; starts as bilinear.

    The resize-convolution of Odena et al. 2016, https://distill.pub/2016/deconv-checkerboard, from identity.
    """

    starts_as = "bilinear"

    def __init__(self, channels: int, scale: Scale) -> None:
        super().__init__(BilinearUpsampler(scale), IdentityConv2d(channels))


class BilinearConv(PyramidDecoder):
    """`PyramidDecoder` with bilinear upsampling and a convolution.

    A learned upsampler brings a convolution that interpolation has not; this decoder has one too, and interpolates.
    What is better than this one is better for its way of upsampling.
    """

    def upsampler(self, channels: int, scale: Scale, guide_channels: int) -> nn.Module:
        return BilinearConvUpsampler(channels, scale)
