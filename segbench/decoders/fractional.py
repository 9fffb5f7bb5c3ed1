"""Fractionally strided convolution by p/q: insert p - 1 zeros, filter, keep every q-th; x2 is 3/2, then 4/3."""

from fractions import Fraction
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.decoders.base import PyramidDecoder, Scale, triangle_filter


class FractionalConv2d(nn.Module):
    """Convolution with stride q/p: ``(B, C_in, h, w)`` to ``(B, C_out, ceil(h p/q), ceil(w p/q))``.

    Insert p - 1 zeros between the pixels, filter with a learned KxK kernel, keep every q-th pixel: the rational
    resampler of Crochiere and Rabiner (Multirate Digital Signal Processing, 1983), with a learned filter across
    channels. ``y[n] = sum_k w[n q + d - k p] x[k] + b`` along each axis; ``d`` keeps pixel centres aligned as in
    bilinear interpolation with ``align_corners=False``; zeros lie beyond the border.

    Zeros are never multiplied and dropped pixels never computed: the output falls into p x p phases, each a small
    strided convolution with the taps ``w[a::p, b::p]`` (the polyphase form), so it costs K²/p² multiplications per
    output pixel and channel pair.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        factor: p/q > 0, an int or a `fractions.Fraction`, taken in lowest terms.
        init: ``bilinear`` starts as linear interpolation, channel i to channel i; ``random`` draws uniformly within
            +-1/sqrt(fan-in) as torch does for convolutions.

    Raises:
        ValueError: factor not above 0, or an unknown init.
    """

    def __init__(
        self, in_channels: int, out_channels: int, factor: Scale, init: Literal["bilinear", "random"] = "bilinear"
    ) -> None:
        super().__init__()
        factor = Fraction(factor)
        if factor <= 0:
            raise ValueError(f"factor must be above 0, not {factor}")
        self.p, self.q = factor.numerator, factor.denominator
        taps = triangle_filter(factor)
        self.kernel_size = len(taps)
        self.offset = (self.q - self.p + self.kernel_size - 1) // 2  # d
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, self.kernel_size, self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        with torch.no_grad():
            if init == "bilinear":
                both = range(min(in_channels, out_channels))
                self.weight.zero_()
                self.weight[both, both] = torch.outer(taps, taps).to(self.weight)
            elif init == "random":
                bound = self.p / (in_channels**0.5 * self.kernel_size)
                self.weight.uniform_(-bound, bound)
                self.bias.uniform_(-bound, bound)
            else:
                raise ValueError(f"init must be 'bilinear' or 'random', not '{init}'")

    def extra_repr(self) -> str:
        return (
            f"{self.weight.shape[1]}, {self.weight.shape[0]}, factor={self.p}/{self.q}, kernel_size={self.kernel_size}"
        )

    def _phase(self, residue: int) -> tuple[int, int, int]:
        """Outputs ``n = residue (mod p)`` of one axis: first tap, number of taps, input pixel under the last tap."""
        position = residue * self.q + self.offset  # in the grid with zeros, for the first of these outputs
        first = position % self.p
        taps = len(range(first, self.kernel_size, self.p))
        return first, taps, position // self.p - (taps - 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        out_h, out_w = (-(-n * self.p // self.q) for n in (height, width))
        rows = []
        for r in range(min(self.p, out_h)):
            row = []
            for s in range(min(self.p, out_w)):
                (a, taps_h, top), (b, taps_w, left) = self._phase(r), self._phase(s)
                count_h, count_w = -(-(out_h - r) // self.p), -(-(out_w - s) // self.p)
                bottom = top + (count_h - 1) * self.q + taps_h - height
                right = left + (count_w - 1) * self.q + taps_w - width
                window = F.pad(x, (-left, right, -top, bottom))  # a negative amount crops
                kernel = self.weight[:, :, a :: self.p, b :: self.p].flip(-2, -1)
                row.append(F.conv2d(window, kernel, self.bias, stride=self.q))  # (B, C_out, count_h, count_w)
            rows.append(_interleave(row, out_w, -1))
        return _interleave(rows, out_h, -2)  # (B, C_out, out_h, out_w)


def _interleave(parts: list[Tensor], length: int, dim: int) -> Tensor:
    """``y[i p + j] = parts[j][i]`` along ``dim`` (-1 or -2); later parts may be shorter by one."""
    longest = parts[0].shape[dim]
    missing = [longest - part.shape[dim] for part in parts]
    padded = [F.pad(part, (0, n) if dim == -1 else (0, 0, 0, n)) for part, n in zip(parts, missing, strict=True)]
    return torch.stack(padded, dim).flatten(dim - 1, dim).narrow(dim, 0, length)


class FractionalUpsampler(nn.Sequential):
    """x2 as 3/2 and then 4/3, two learned steps: ``(B, C, h, w)`` to ``(B, C, 2h, 2w)`` for any h and w.

    Even sizes come out exactly; an odd size overshoots in the first step and is cropped.
    """

    def __init__(self, channels: int, init: Literal["bilinear", "random"] = "bilinear") -> None:
        super().__init__(
            FractionalConv2d(channels, channels, Fraction(3, 2), init),
            FractionalConv2d(channels, channels, Fraction(4, 3), init),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., : 2 * x.shape[-2], : 2 * x.shape[-1]]


class Fractional(PyramidDecoder):
    """`PyramidDecoder` with fractionally strided convolution; ratios beside powers of 2 get a p/q step of their own.

    Args:
        init: ``bilinear`` or ``random``, see `FractionalConv2d`.
        **kwargs: ``width`` and ``output_stride``, see `PyramidDecoder`.
    """

    rational = True

    def __init__(self, *args: Any, init: Literal["bilinear", "random"] = "bilinear", **kwargs: Any) -> None:
        self.init = init
        super().__init__(*args, **kwargs)

    def upsampler(self, channels: int, scale: Scale, guide_channels: int) -> nn.Module:
        return (
            FractionalUpsampler(channels, self.init)
            if scale == 2
            else FractionalConv2d(channels, channels, scale, self.init)
        )
