"""NAF, neighbourhood attention filtering: each output pixel a mixture of 9x9 features, by the image alone."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._attention import CHUNK, Encoder, in_chunks, pool, rotate_half
from segbench.upsamplers._operations import largest_divisor, precise
from segbench.upsamplers.base import checked


@checked
class Naf(nn.Module):
    """Neighbourhood attention from pixels to cells, guided by the image: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``.

    Chambon et al. 2026, https://arxiv.org/abs/2511.18452. Queries and keys are the encoded image and its mean over each
    cell; each head mixes its part of the features, as they are, from the kernel x kernel cells around; at the border
    that window is shifted inside, and on smaller maps it is the map. It computes in chunks that hold 64 MiB, but
    encodes the image with dim channels at its full size, so that a training step to 128x128 with C = 64 holds 34 times
    what bilinear interpolation's does. 662,528 parameters, whatever C is.

    Args:
        channels: C.
        scale: s, an int.
        guide_channels: of the image.
        dim: channels of queries and keys.
        heads: of the attention; the largest number up to that which divides C and dim.
        kernel: side of the window in cells.
        groups: of the norms; the largest divisor of dim / 2 up to that.
        rope_base: ratio of the largest to about the smallest of the wavelengths.
        chunk: numbers that are held at once.
    """

    group, year = "image-guided", 2026
    guided, one_shot, ratios, starts_as = True, True, "integer", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        dim: int = 256,
        heads: int = 4,
        kernel: int = 9,
        groups: int = 8,
        rope_base: float = 100.0,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__()
        self.heads, self.kernel, self.chunk = largest_divisor(math.gcd(channels, dim), heads), kernel, chunk
        if dim // self.heads % 4:
            raise ValueError(f"dim / heads must be a multiple of 4, not {dim // self.heads}")
        self.pixel = Encoder(guide_channels, dim // 2, groups, plain=True)
        self.context = Encoder(guide_channels, dim // 2, groups, 3, inner=3, plain=True)
        quarter = dim // self.heads // 4
        periods = rope_base ** (torch.arange(quarter, dtype=torch.float64) / quarter)
        self.register_buffer("periods", periods, persistent=False)

    periods: Tensor

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return self.resize(x, guide, (guide.shape[-2], guide.shape[-1]))

    def resize(self, x: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, C, h, w)`` to ``(B, C, *size)``, multiples of h and w, with an image of any size."""
        (batch, channels, height, width), heads = x.shape, self.heads
        if size[0] % height or size[1] % width:
            raise ValueError(f"size must be a multiple of {height}x{width}, not {size[0]}x{size[1]}")
        bounded = tuple(min(n, 4 * m) for n, m in zip(image.shape[-2:], size, strict=True))
        if bounded != tuple(image.shape[-2:]):
            image = F.interpolate(image, size=bounded, mode="bilinear", align_corners=False)
        query = self._rotate(pool(torch.cat([self.pixel(image), self.context(image)], 1), size))
        key = pool(query, (height, width)).unflatten(1, (heads, -1))
        value = x.unflatten(1, (heads, -1)).to(query.dtype)
        depth, part = key.shape[2], value.shape[2]
        columns = _window(width, self.kernel, x.device)  # (w, k)
        down, across = size[0] // height, size[1] // width
        query = query.view(batch, heads, depth, height, down, width, across).permute(0, 3, 1, 5, 4, 6, 2)

        def gather(t: Tensor, rows: Tensor) -> Tensor:  # to (B, n, heads, w, taps, channels)
            t = t[:, :, :, rows][..., columns]  # (B, heads, channels, n, k, w, k)
            return t.permute(0, 3, 1, 5, 4, 6, 2).flatten(4, 5)

        def attend(query: Tensor, rows: Tensor) -> Tensor:
            keys, values = gather(key, rows[0]), gather(value, rows[0])
            scores = query.flatten(4, 5) @ keys.mT / math.sqrt(depth)
            return scores.softmax(-1) @ values  # (B, n, heads, w, pixels of a cell, C / heads)

        rows = _window(height, self.kernel, x.device)[None]  # (1, h, k)
        taps = rows.shape[-1] * columns.shape[-1]
        each = batch * heads * width * taps * (depth + part + 2 * down * across)
        y = in_chunks(attend, query, rows, each=each, limit=self.chunk)
        y = y.view(batch, height, heads, width, down, across, part).permute(0, 2, 6, 1, 4, 3, 5)
        return y.reshape(batch, channels, *size)

    def _rotate(self, x: Tensor) -> Tensor:
        rows, columns = ((2 * torch.arange(n, device=x.device).to(precise(x)) + 1) / n - 1 for n in x.shape[-2:])
        jitter = torch.rand((), device=x.device).mul(2).sub(1).exp2() if self.training else 1.0
        wave = (2 * math.pi / self.periods).to(precise(x))[:, None, None]
        down, across = jitter * rows[:, None] * wave, jitter * columns * wave
        angle = torch.cat([t.expand(-1, *x.shape[-2:]) for t in (down, across)] * 2)  # (D, H, W)
        split = x.unflatten(1, (self.heads, -1))
        return (split * angle.cos() + rotate_half(split, 2) * angle.sin()).flatten(1, 2).to(x.dtype)


def _window(length: int, size: int, device: torch.device) -> Tensor:
    """The places of each place's window, shifted inside: ``(length, min(size, length))``."""
    size = min(size, length)
    start = (torch.arange(length, device=device) - size // 2).clamp(0, length - size)
    return start[:, None] + torch.arange(size, device=device)
