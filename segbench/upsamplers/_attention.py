"""What the image-guided upsamplers share: image encoders, rotary positions, attention in chunks."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segbench.upsamplers._operations import GroupNorm, precise

CHUNK = 2**24  # numbers that a chunk holds at most, about: 64 MiB in float32


def in_chunks(function: Callable[..., Tensor], *split: Tensor, each: int, limit: int = CHUNK) -> Tensor:
    """``function(*split)``, computed in chunks along axis 1 of its arguments and of its result.

    In training a chunk's intermediate results are computed again in the backward pass, so that no more than one chunk's
    are held.

    Args:
        each: numbers that the function holds for one entry of axis 1.
        limit: numbers that it may hold at once.
    """
    length = split[0].shape[1]
    size = max(1, limit // max(1, each))
    if size >= length:
        return function(*split)
    parts = zip(*(t.split(size, 1) for t in split), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([function(*part) for part in parts], 1)
    again = [checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat(again, 1)


def mean_over_heads(
    query: Tensor, key: Tensor, x: Tensor, heads: int, mask: tuple[Tensor, Tensor] | None = None, limit: int = CHUNK
) -> Tensor:
    """Multi-head attention whose weights are averaged over the heads and applied to x as it is: a convex mixture.

    Args:
        query: ``(B, N, d)``.
        key: ``(B, M, d)``.
        x: ``(B, M, C)``.
        mask: which keys each query sees, as ``(N, rows)`` and ``(N, columns)`` with M = rows * columns; default: all.
        limit: numbers that are held at once, about.

    Returns:
        ``(B, N, C)``.
    """
    keys = key.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)  # (B, heads, d / heads, M)

    def attend(query: Tensor, *seen: Tensor) -> Tensor:
        scores = query.unflatten(-1, (heads, -1)).transpose(1, 2) @ keys / math.sqrt(keys.shape[2])
        if seen:
            rows, columns = (s[0] for s in seen)
            scores = scores.masked_fill(~(rows[:, :, None] & columns[:, None]).flatten(1), -torch.inf)
        return scores.softmax(-1).mean(1) @ x

    seen = () if mask is None else (mask[0][None], mask[1][None])
    return in_chunks(attend, query, *seen, each=2 * len(query) * heads * key.shape[1], limit=limit)


def pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean over each of ``size`` cells, which need not divide the map: ``(B, C, *size)``."""
    return x if tuple(x.shape[-2:]) == tuple(size) else F.adaptive_avg_pool2d(x, size)


def rotate_half(x: Tensor, axis: int) -> Tensor:
    first, second = x.chunk(2, axis)
    return torch.cat([-second, first], axis)


def reflected(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution with the map reflected at its border; maps too small for that are repeated."""
    reach = convolution.kernel_size[0] // 2
    if reach:
        x = F.pad(x, (reach,) * 4, mode="reflect" if min(x.shape[-2:]) > reach else "replicate")
    return F.conv2d(x, convolution.weight, convolution.bias)


class Block(nn.Module):
    """Norm, SiLU and convolution, twice: ``(B, C, h, w)`` to the same; the input is added where residual."""

    def __init__(self, channels: int, groups: int, kernel: int, *, bias: bool, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.norm1, self.norm2 = GroupNorm(channels, groups), GroupNorm(channels, groups)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, kernel, bias=bias) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = reflected(self.conv1, F.silu(self.norm1(x)))
        y = reflected(self.conv2, F.silu(self.norm2(y)))
        return x + y if self.residual else y


class Encoder(nn.Module):
    """A convolution and two blocks, at the size of what comes in: ``(B, inside, h, w)`` to ``(B, channels, h, w)``."""

    def __init__(
        self, inside: int, channels: int, groups: int, kernel: int = 1, *, inner: int = 1, plain: bool = False
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, channels, kernel, bias=plain)
        self.block1, self.block2 = (Block(channels, groups, inner, bias=plain, residual=not plain) for _ in range(2))

    def blocks(self, x: Tensor) -> Tensor:
        y: Tensor = self.block2(self.block1(x))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(reflected(self.first, x))


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm in the precision of its weights, under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class Rope(nn.Module):
    """Rotary positions with learned frequencies, along both axes from 0 to 1: ``(B, d, h, w)`` to the same.

    Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """

    def __init__(self, channels: int, base: float = 100.0) -> None:
        super().__init__()
        quarter = 2 * math.pi * base ** -torch.linspace(0, 1, channels // 4)
        self.frequencies = nn.Parameter(torch.zeros(2, channels))
        with torch.no_grad():
            self.frequencies[0, : channels // 2] = quarter.repeat(2)
            self.frequencies[1, channels // 2 :] = quarter.repeat(2)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (torch.linspace(0, 1, n, dtype=precise(x), device=x.device) for n in x.shape[-2:])
        down, across = self.frequencies.to(precise(x))[:, :, None, None]
        angle = rows[:, None] * down + columns * across  # (d, h, w)
        return x * angle.cos() + rotate_half(x, 1) * angle.sin()
