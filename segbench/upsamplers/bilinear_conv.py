"""Bilinear upsampling, then a 3x3 convolution that starts as identity: the control of every learned upsampler."""

from torch import nn

from segbench.upsamplers.base import IdentityConv2d, checked


@checked
class BilinearConv(nn.Sequential):
    """Bilinear interpolation, then a 3x3 convolution: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``; starts as bilinear.

    The resize-convolution of Odena et al. 2016, https://distill.pub/2016/deconv-checkerboard, from identity. A learned
    upsampler brings a convolution that interpolation has not; this one has a convolution too, and interpolates. What is
    better than this one is better for its way of upsampling.
    """

    group, year = "learned", 2016
    ratios, starts_as = "integer", "bilinear"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0) -> None:
        super().__init__(
            nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False), IdentityConv2d(channels)
        )
