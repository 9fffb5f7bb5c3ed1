"""Transposed convolution: each pixel spreads a learned 4x4 kernel."""

from typing import Any, Literal

import torch
from torch import nn

from segbench.decoders.base import PyramidDecoder, Scale, triangle_filter


class DeconvUpsampler(nn.ConvTranspose2d):
    """Transposed convolution, kernel 4, stride 2, padding 1: ``(B, C, h, w)`` to ``(B, C, 2h, 2w)``.

    Four taps, two to a side, reach each output pixel: the kernel is a multiple of the stride, so all pixels get the
    same number (Odena et al. 2016, https://distill.pub/2016/deconv-checkerboard). Zeros lie beyond the border.

    Args:
        channels: C, channels in and out; every output channel sees every input channel.
        init: ``bilinear`` starts as bilinear interpolation of each channel (FCN, Long et al. 2015, arXiv:1411.4038);
            ``random`` as torch does by default.
    """

    def __init__(self, channels: int, init: Literal["bilinear", "random"] = "bilinear") -> None:
        super().__init__(channels, channels, kernel_size=4, stride=2, padding=1)
        if init not in ("bilinear", "random"):
            raise ValueError(f"init must be 'bilinear' or 'random', not '{init}'")
        self.starts_as = init
        if init == "bilinear":
            taps = triangle_filter(2)
            with torch.no_grad():
                self.weight.zero_()
                self.weight[range(channels), range(channels)] = torch.outer(taps, taps).to(self.weight)
                assert self.bias is not None
                self.bias.zero_()


class Deconv(PyramidDecoder):
    """`PyramidDecoder` with transposed convolution (Long et al. 2015, arXiv:1411.4038).

    Args:
        init: ``bilinear`` or ``random``, see `DeconvUpsampler`.
        **kwargs: ``width`` and ``output_stride``, see `PyramidDecoder`.
    """

    def __init__(self, *args: Any, init: Literal["bilinear", "random"] = "bilinear", **kwargs: Any) -> None:
        self.init = init
        super().__init__(*args, **kwargs)

    def upsampler(self, channels: int, scale: Scale, guide_channels: int) -> nn.Module:
        return DeconvUpsampler(channels, self.init)
