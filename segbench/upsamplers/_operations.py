"""Operations that several upsamplers are made of: reassembly, sampling at given points, group norms of any size."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Place = tuple[int, int]  # down and across, in pixels
STRIP = 2**22  # numbers that a strip of windows holds, about: 16 MiB in float32


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


def reassemble(
    x: Tensor,
    kernel: Tensor,
    size: int,
    scale: int,
    *,
    border: str = "constant",
    dilation: int = 1,
    taps: Sequence[Place] | None = None,
) -> Tensor:
    """Each output pixel a weighted sum of the window around its input pixel, with weights of its own.

    ``y[b, c, p] = sum_n kernel[b, G(c) N + n, p] x[b, c, p // s + d(n)]``: the operator of CARAFE (Wang et al. 2019,
    https://arxiv.org/abs/1905.02188). G(c) is the group of channel c, of g groups of C/g consecutive channels; d(n) are
    the places of a k x k window, row by row, N = k².

    Args:
        x: ``(B, C, h, w)``.
        kernel: ``(B, g N, s h, s w)``, used as it is: it is the caller that normalises.
        size: k, odd.
        scale: s.
        border: what lies beyond it, as `torch.nn.functional.pad` calls it; default: zeros.
        dilation: pixels from one place to the next.
        taps: the places that are taken, from (0, 0), the first of the window; default: all.

    Returns:
        ``(B, C, s h, s w)``.
    """
    taps = taps or _places(size, dilation)
    batch, _, height, width = x.shape
    groups = kernel.shape[1] // len(taps)
    dtype = torch.promote_types(x.dtype, kernel.dtype)
    padded = _padded(x.to(dtype), size, border, dilation).unflatten(-1, (groups, -1))
    kernel = kernel.to(dtype).permute(0, 2, 3, 1).reshape(batch, height, scale, width, scale, groups, len(taps))
    kernel = kernel.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, height, width, groups, scale**2, len(taps))
    y = _Windowed.apply(padded, kernel, taps, True).unflatten(4, (scale, scale))
    y = y.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, scale * height, scale * width, -1)
    return y.permute(0, 3, 1, 2)


def window_scores(query: Tensor, key: Tensor, size: int, scale: int, *, border: str = "constant") -> Tensor:
    """``t_n(p) = <query(p), key(p // s + d(n))>``: ``(B, k², s h, s w)``.

    Args:
        query: ``(B, d, s h, s w)``.
        key: ``(B, d, h, w)``.
        size: k, odd.
        border: what lies beyond it, as `torch.nn.functional.pad` calls it; default: zeros.
    """
    taps, dtype = _places(size, 1), torch.promote_types(query.dtype, key.dtype)
    batch, channels, height, width = key.shape
    padded = _padded(key.to(dtype), size, border, 1).unflatten(-1, (1, -1))
    query = query.to(dtype).permute(0, 2, 3, 1).reshape(batch, height, scale, width, scale, channels)
    query = query.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, 1, scale**2, channels)
    scores = _Windowed.apply(padded, query, taps, False).view(batch, height, width, scale, scale, -1)
    return scores.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, scale * height, scale * width)


def _places(size: int, dilation: int) -> list[Place]:
    steps = range(0, size * dilation, dilation)
    return [(down, across) for down in steps for across in steps]


def _padded(x: Tensor, size: int, border: str, dilation: int) -> Tensor:
    """``(B, h + (k - 1) dilation, w + (k - 1) dilation, C)``."""
    padded = F.pad(x, (size // 2 * dilation,) * 4, mode=border)
    return padded.to(x.dtype).permute(0, 2, 3, 1)  # autocast reflects in float32


# Windows are matrices: at each input pixel N places by c channels of each group. They are built in strips of rows, in
# the forward and again in the backward pass, so that the N-fold of a map never is; sums over channels or over places
# are matrix products. Where an input pixel has one output pixel, these would be products of vectors, and whole maps are
# taken place by place instead. Here a map is (B, h, w, g, c), kernels are (B, h, w, g, s², N), and what belongs to
# output pixels is (B, h, w, g, s², c).


def _strips(padded: Tensor, height: int, taps: Sequence[Place]) -> Iterator[tuple[int, int]]:
    """First row and number of rows."""
    rows = max(1, STRIP // (padded[:, 0].numel() * len(taps)))
    return ((first, min(rows, height - first)) for first in range(0, height, rows))


def _windows(padded: Tensor, taps: Sequence[Place], first: int, rows: int, width: int) -> Tensor:
    """``(B, rows, w, g, N, c)``."""
    return torch.stack([padded[:, first + i : first + i + rows, j : j + width] for i, j in taps], 4)


def _mixed(padded: Tensor, kernel: Tensor, taps: Sequence[Place]) -> Tensor:
    height, width = kernel.shape[1:3]
    if kernel.shape[4] == 1:
        total = torch.zeros_like(padded[:, :height, :width])
        for (i, j), weight in zip(taps, kernel.unbind(5), strict=True):
            total.addcmul_(weight, padded[:, i : i + height, j : j + width])
        return total.unsqueeze(4)
    strips = _strips(padded, height, taps)
    return torch.cat([kernel[:, a : a + n] @ _windows(padded, taps, a, n, width) for a, n in strips], 1)


def _scored(padded: Tensor, each: Tensor, taps: Sequence[Place]) -> Tensor:
    height, width = each.shape[1:3]
    if each.shape[4] == 1:
        each = each.squeeze(4)
        scores = [(each * padded[:, i : i + height, j : j + width]).sum(4) for i, j in taps]
        return torch.stack(scores, 4).unsqueeze(4)
    strips = _strips(padded, height, taps)
    return torch.cat([each[:, a : a + n] @ _windows(padded, taps, a, n, width).mT for a, n in strips], 1)


def _spread(padded: Tensor, kernel: Tensor, each: Tensor, taps: Sequence[Place]) -> Tensor:
    """What output pixels give back to the places that they were made from: the shape of ``padded``."""
    total = torch.zeros_like(padded)
    height, width = kernel.shape[1:3]
    if kernel.shape[4] == 1:
        for (i, j), weight in zip(taps, kernel.unbind(5), strict=True):
            total[:, i : i + height, j : j + width].addcmul_(weight, each.squeeze(4))
        return total
    for first, rows in _strips(padded, height, taps):
        parts = kernel[:, first : first + rows].mT @ each[:, first : first + rows]
        for (i, j), part in zip(taps, parts.unbind(4), strict=True):
            total[:, first + i : first + i + rows, j : j + width] += part
    return total


class _Windowed(torch.autograd.Function):
    """`_mixed` by kernels, or `_scored` by what belongs to output pixels: each is in the other's gradient."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, by: Tensor, taps: Sequence[Place], mix: bool) -> Tensor:
        ctx.save_for_backward(padded, by)
        ctx.taps, ctx.mix = taps, mix
        with torch.autocast(padded.device.type, enabled=False):
            return (_mixed if mix else _scored)(padded, by, taps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        padded, by = ctx.saved_tensors
        kernel, each = (by, gradient) if ctx.mix else (gradient, by)
        of_by = (_scored if ctx.mix else _mixed)(padded, gradient, ctx.taps)
        return _spread(padded, kernel, each, ctx.taps), of_by, None, None


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
