"""Operations that several upsamplers are made of: reassembly, sampling at given points, group norms of any size."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def largest_divisor(channels: int, wanted: int) -> int:
    """The largest divisor of ``channels`` that is not above ``wanted``: how many groups there are where 4 do not fit.

    Of 21 channels with 4 wanted it is 3, of 19 it is 1.
    """
    return next(n for n in range(min(channels, wanted), 0, -1) if channels % n == 0)


def windows(padded: Tensor, size: int, dilation: int = 1) -> Iterator[Tensor]:
    """The k² slices of a map, row by row, that hold tap n of each pixel's k x k window.

    Args:
        padded: ``(..., h + (k - 1) dilation, w + (k - 1) dilation)``.
        size: k.

    Yields:
        views ``(..., h, w)``.
    """
    height, width = (n - (size - 1) * dilation for n in padded.shape[-2:])
    for i, j in itertools.product(range(0, size * dilation, dilation), repeat=2):
        yield padded[..., i : i + height, j : j + width]


def weighted(parts: Iterable[Tensor], weights: Iterable[Tensor]) -> Tensor:
    """``sum_n weights[n] parts[n]``, one by one, so that they are never stacked."""
    products = (weight * part for weight, part in zip(weights, parts, strict=True))
    return functools.reduce(torch.add, products)


def reassemble(x: Tensor, kernel: Tensor, size: int, scale: int) -> Tensor:
    """Each output pixel a weighted sum of the window around its input pixel, with weights of its own.

    ``y[b, c, p] = sum_n kernel[b, G(c) k² + n, p] x[b, c, p // s + d(n)]``: the operator of CARAFE (Wang et al. 2019,
    https://arxiv.org/abs/1905.02188). G(c) is the group of channel c, of g groups of C/g consecutive channels; d(n) are
    the places of a k x k window, row by row; zeros lie beyond the border. Taps are added one by one, from slices of one
    padded map, so that the k²-fold of anything is never built.

    Args:
        x: ``(B, C, h, w)``.
        kernel: ``(B, g k², s h, s w)``, used as it is: it is the caller that normalises.
        size: k, odd.
        scale: s.

    Returns:
        ``(B, C, s h, s w)``.
    """
    batch, channels, height, width = x.shape
    groups = kernel.shape[1] // size**2
    kernel = kernel.view(batch, groups, size**2, 1, height, scale, width, scale)
    padded = F.pad(x, (size // 2,) * 4).unflatten(1, (groups, -1))
    parts = (part[..., None, :, None] for part in windows(padded, size))
    return weighted(parts, kernel.unbind(2)).reshape(batch, channels, scale * height, scale * width)


def window_scores(query: Tensor, padded: Tensor, size: int, scale: int) -> Tensor:
    """``t_n(p) = <query(p), key(p // s + d(n))>``: ``(B, k², s h, s w)``.

    Args:
        query: ``(B, d, s h, s w)``.
        padded: the key ``(B, d, h, w)``, padded by k // 2 on each side.
        size: k, odd.
    """
    batch, channels, height, width = query.shape
    query = query.view(batch, channels, height // scale, scale, width // scale, scale)
    scores = [(query * key[..., None, :, None]).sum(1) for key in windows(padded, size)]
    return torch.stack(scores, 1).view(batch, size**2, height, width)


def pac_transposed(
    x: Tensor, features: Tensor, weight: Tensor | int, bias: Tensor | None, scale: int, *, normalize: bool
) -> Tensor:
    """Pixel-adaptive transposed convolution of PAC (Su et al. 2019, https://arxiv.org/abs/1904.05373).

    Zeros are inserted between the pixels of x and around them, ``z``; ``y[p] = bias + sum_n K_n(p) W_n^T z[p + n]``,
    with ``K_n(p) = exp(-|f(p + d(n)) - f(p)|² / 2)``, features 0 beyond the border. The kernel is not flipped, unlike
    that of a transposed convolution. Inserted zeros are never multiplied: each of the s² phases of the output has its
    taps.

    Args:
        x: ``(B, C_in, h, w)``.
        features: f, ``(B, D, s h, s w)``.
        weight: W, ``(C_in, C_out, k, k)``; or k alone, for weights 1 on each channel by itself.
        bias: ``(C_out,)``, or none.
        normalize: brings the K_n of a pixel, of taps that hold a pixel of x, to the sum 1.

    Returns:
        ``(B, C_out, s h, s w)``.
    """
    size = weight if isinstance(weight, int) else weight.shape[-1]
    height, width = x.shape[-2:]
    left = size - 1 - (1 + (size - scale - 1) // 2)  # what zero insertion puts before the first pixel
    reach = size // 2
    padded = F.pad(features, (reach,) * 4)
    around = -(-size // scale)  # input pixels beyond the border that a tap may ask for
    pixels = F.pad(x, (around,) * 4)
    there = F.pad(torch.ones_like(x[:, :1]), (around,) * 4)
    rows = []
    for a, b in itertools.product(range(scale), repeat=2):
        own = features[..., a::scale, b::scale]
        parts, exponents = [], []
        for i, j in itertools.product(range((left - a) % scale, size, scale), range((left - b) % scale, size, scale)):
            near = padded[..., i + a :: scale, j + b :: scale][..., :height, :width]
            top, side = (around + (phase + tap - left) // scale for phase, tap in ((a, i), (b, j)))
            inside = (..., slice(top, top + height), slice(side, side + width))
            exponent = -0.5 * (near - own).square().sum(1, keepdim=True)
            exponents.append(exponent.masked_fill(there[inside] == 0, -torch.inf) if normalize else exponent)
            part = pixels[inside]
            if isinstance(weight, Tensor):
                part = F.conv2d(part, weight[:, :, i, j].T[..., None, None])
            parts.append(part)
        exponent = torch.stack(exponents)
        kernels = exponent.softmax(0) if normalize else exponent.exp()
        rows.append(weighted(parts, kernels))
    y = F.pixel_shuffle(torch.stack(rows, 2).flatten(1, 2), scale)
    return y if bias is None else y + bias[:, None, None]


def precise(x: Tensor) -> torch.dtype:
    """The type that places are computed in: x's, at least float32; bfloat16 does not tell pixels from 256 on apart."""
    return torch.promote_types(x.dtype, torch.float32)


def cells(x: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Row and column of the input pixel that each output pixel lies in: ``(s h, 1)`` and ``(1, s w)``."""
    height, width = x.shape[-2:]
    rows, columns = (torch.arange(scale * n, device=x.device) // scale for n in (height, width))
    return rows.to(precise(x))[:, None], columns.to(precise(x))[None]


def centres(x: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Where the output pixels' centres lie, in input pixels, ``(p + 1/2) / s - 1/2``: ``(s h, 1)`` and ``(1, s w)``."""
    pixels = (torch.arange(scale * n, device=x.device).to(precise(x)) for n in x.shape[-2:])
    rows, columns = ((pixel + 0.5) / scale - 0.5 for pixel in pixels)
    return rows[:, None], columns[None]


def sample(x: Tensor, rows: Tensor, columns: Tensor, *, outside: str) -> Tensor:
    """Bilinear interpolation of ``(B, C, h, w)`` at given points: ``(B, C, H, W)``.

    Args:
        rows, columns: ``(B, H, W)``, in pixels, 0 being the centre of the first.
        outside: ``border`` moves a point to the border, ``zeros`` takes what is outside for 0.
    """
    height, width = x.shape[-2:]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    grid = grid.to(precise(x))
    y = F.grid_sample(x.to(grid.dtype), grid, mode="bilinear", padding_mode=outside, align_corners=False)
    return y.to(x.dtype)


def resample(
    x: Tensor, size: tuple[int, int], kernel: Callable[[Tensor], Tensor], reach: int, *, outside: str
) -> Tensor:
    """Separable interpolation of ``(B, C, h, w)`` to ``size``, output pixel p at ``(p + 1/2) h/H - 1/2``.

    Args:
        kernel: the weight of an input pixel by its distance, in pixels, from -reach to reach.
        outside: ``border`` repeats the border, ``renormalise`` leaves out what is outside and brings the sum to 1.
    """
    for axis, target in zip((2, 3), size, strict=True):
        length = x.shape[axis]
        place = (torch.arange(target, dtype=torch.float64, device=x.device) + 0.5) * length / target - 0.5
        taps = place.floor().long()[:, None] + torch.arange(1 - reach, reach + 1, device=x.device)  # (target, 2 reach)
        weight = kernel(taps - place[:, None])
        if outside == "renormalise":
            weight = weight * ((taps >= 0) & (taps < length))
            weight = weight / weight.sum(1, keepdim=True)
        taps = taps.clamp(0, length - 1)
        shape = [target if a == axis else 1 for a in range(4)]
        x = sum(  # type: ignore[assignment]
            x.index_select(axis, taps[:, n]) * weight[:, n].to(x.dtype).view(shape) for n in range(2 * reach)
        )
    return x


class GroupNorm(nn.GroupNorm):
    """Group normalisation of ``(B, C, h, w)`` in as many groups as wanted, or as the channels allow
    (`largest_divisor`).

    It also takes the single value of a group of one channel on a 1x1 map, whose norm is 0: torch's refuses it.
    """

    def __init__(self, channels: int, wanted: int, *, affine: bool = True) -> None:
        super().__init__(largest_divisor(channels, wanted), channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        if x[0].numel() > self.num_groups:
            return super().forward(x)
        return x * 0 + (self.bias[:, None, None] if self.affine else 0)


def xavier(*convolutions: nn.Conv2d) -> None:
    """Glorot and Bengio 2010: uniform within +-sqrt(6 / (fan-in + fan-out)); biases 0."""
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)


def normal(*convolutions: nn.Conv2d, sd: float) -> None:
    """Weights from N(0, sd²); biases 0."""
    for convolution in convolutions:
        nn.init.normal_(convolution.weight, std=sd)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
