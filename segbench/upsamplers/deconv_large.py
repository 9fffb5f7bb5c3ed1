"""Large transposed convolution: a 7x7 or 11x11 kernel beside a 3x3 one, added."""

from typing import Literal

from torch import Tensor, nn

from segbench.upsamplers.base import checked


@checked
class DeconvLarge(nn.Module):
    """Two transposed convolutions with stride 2, added: ``(B, C, h, w)`` to ``(B, C, 2h, 2w)``.

    LCTC, Agnihotri et al. 2024, https://arxiv.org/abs/2311.17524, which states the sizes of the kernels; that they are
    full, their paddings and their two biases are our reading. At C = 256 and 7x7: 3,801,600 parameters, 3,801,088 MACs
    per input pixel. Both kernels are centred on output pixel 2n, half a pixel off the other upsamplers.

    Args:
        channels: C.
        kernel: side of the larger kernel, 7 or 11.

    Raises:
        ValueError: another kernel.
    """

    group, year = "learned", 2024
    starts_as = "random"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0, *, kernel: Literal[7, 11] = 7) -> None:
        super().__init__()
        if kernel not in (7, 11):
            raise ValueError(f"kernel must be 7 or 11, not {kernel}")
        self.large = nn.ConvTranspose2d(channels, channels, kernel, 2, kernel // 2, output_padding=1)
        self.small = nn.ConvTranspose2d(channels, channels, 3, 2, 1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.large(x) + self.small(x)
        return y
