"""Bicubic upsampling: cubic convolution over 4x4 pixels."""

from typing import Literal

from torch import Tensor, nn

from segbench.upsamplers._operations import resample
from segbench.upsamplers.base import Scale, ceil_size, checked


def cubic(t: Tensor, a: float) -> Tensor:
    """Keys' kernel, of the distance in pixels; 0 from 2 on."""
    t = t.abs()
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    return near.where(t < 1, far.where(t < 2, t * 0))


@checked
class Bicubic(nn.Module):
    """Cubic convolution: ``(B, C, h, w)`` to ``(B, C, ceil(s h), ceil(s w))``, without parameters.

    Keys 1981, https://doi.org/10.1109/TASSP.1981.1163711. Output pixel n lies at ``(n + 1/2) / s - 1/2`` input pixels.

    Args:
        channels: C.
        scale: s, an int or a `fractions.Fraction`.
        a: slope of the kernel at 1: -3/4 as in torch and OpenCV, -1/2 (Catmull-Rom) as in Pillow.
        outside: ``border`` repeats the border, as torch; ``renormalise`` leaves out what is outside, as Pillow.

    Raises:
        ValueError: an unknown ``outside``.
    """

    group, year = "fixed", 1981
    ratios = "rational"

    def __init__(
        self,
        channels: int,
        scale: Scale = 2,
        guide_channels: int = 0,
        *,
        a: float = -0.75,
        outside: Literal["border", "renormalise"] = "border",
    ) -> None:
        super().__init__()
        if outside not in ("border", "renormalise"):
            raise ValueError(f"outside must be 'border' or 'renormalise', not '{outside}'")
        self.scale, self.a, self.outside = scale, a, outside

    def forward(self, x: Tensor) -> Tensor:
        return self.resize(x, ceil_size(x.shape[-2:], self.scale))

    def resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, C, h, w)`` to ``(B, C, *size)``."""
        return resample(x, size, lambda t: cubic(t, self.a), 2, outside=self.outside)
