"""Lanczos upsampling: a windowed sinc over 6x6 pixels, which overshoots at edges."""

import torch
from torch import Tensor, nn

from segbench.upsamplers._operations import resample
from segbench.upsamplers.base import Scale, ceil_size, checked


def lanczos3(t: Tensor) -> Tensor:
    """``sinc(t) sinc(t/3)`` within 3 pixels, 0 beyond."""
    return (torch.sinc(t) * torch.sinc(t / 3)).where(t.abs() < 3, t * 0)


@checked
class Lanczos(nn.Module):
    """Lanczos interpolation with three lobes: ``(B, C, h, w)`` to ``(B, C, ceil(s h), ceil(s w))``, no parameters.

    Duchon 1979, https://doi.org/10.1175/1520-0450(1979)018%3C1016:LFIOAT%3E2.0.CO;2. What lies outside the map is left
    out and the weights brought to the sum 1, as in Pillow. Output pixel n lies at ``(n + 1/2) / s - 1/2`` input pixels.
    """

    group, year = "fixed", 1979
    ratios = "rational"

    def __init__(self, channels: int, scale: Scale = 2, guide_channels: int = 0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.resize(x, ceil_size(x.shape[-2:], self.scale))

    def resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, C, h, w)`` to ``(B, C, *size)``."""
        return resample(x, size, lanczos3, 3, outside="renormalise")
