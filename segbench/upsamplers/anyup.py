"""AnyUp: JAFAR's attention within a window, its keys from features of any number of channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._attention import CHUNK, Encoder, RMSNorm, Rope, mean_over_heads, pool
from segbench.upsamplers.base import checked


@checked
class Anyup(nn.Module):
    """Windowed cross-attention from image to features, once: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``.

    Wimmer et al. 2025, https://arxiv.org/abs/2510.12764. As `Jafar`, but that keys come from a bank of filters that is
    applied to each channel by itself, whose softmax is averaged over the channels; so its weights do not depend on C.
    The output is a convex mixture of the features in a window. It computes in chunks that hold 64 MiB, but encodes the
    image with qk_dim channels at its full size, so that a training step to 128x128 with C = 64 holds 71 times what
    bilinear interpolation's does. 845,056 parameters.

    Args:
        channels: C.
        scale: s, an int.
        guide_channels: of the image.
        qk_dim: d, channels of queries and keys and filters of the bank, a multiple of 4 and of heads.
        heads: of the attention.
        kernel: side of the first convolution on the image, odd.
        kernel_lfu: side of the bank's filters, odd.
        groups: of the norms; the largest divisor of d up to that.
        window_ratio: how far a query sees up and down, and to each side, as a share of the map's sides.
        released_view: as the released code, which mixes channels and filters, so that the order of channels matters; by
            default as the paper says.
        chunk: numbers that are held at once.

    Raises:
        ValueError: a qk_dim that is no multiple of 4 and of heads.
    """

    group, year = "image-guided", 2025
    guided, one_shot, ratios, starts_as = True, True, "rational", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        qk_dim: int = 128,
        heads: int = 4,
        kernel: int = 1,
        kernel_lfu: int = 5,
        groups: int = 8,
        window_ratio: float = 0.1,
        released_view: bool = False,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__()
        if qk_dim % 4 or qk_dim % heads:
            raise ValueError(f"qk_dim must be a multiple of 4 and of heads {heads}, not {qk_dim}")
        self.heads, self.window_ratio, self.released_view, self.chunk = heads, window_ratio, released_view, chunk
        self.image = Encoder(guide_channels, qk_dim, groups, kernel)
        self.key, self.query = Encoder(qk_dim, qk_dim, groups), Encoder(qk_dim, qk_dim, groups)
        self.feature = Encoder(1, qk_dim, groups, kernel_lfu)
        self.aggregate = Encoder(2 * qk_dim, qk_dim, groups, 3)
        self.rope = Rope(qk_dim)
        self.query_conv = nn.Conv2d(qk_dim, qk_dim, 3, padding=1, bias=False)
        self.norm_query, self.norm_key = RMSNorm(qk_dim), RMSNorm(qk_dim)
        self.attention_query, self.attention_key = nn.Linear(qk_dim, qk_dim), nn.Linear(qk_dim, qk_dim)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return self.resize(x, guide, (guide.shape[-2], guide.shape[-1]))

    def resize(self, x: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, C, h, w)`` to ``(B, C, *size)``, with an image of any size."""
        low = (x.shape[-2], x.shape[-1])
        image = self.rope(self.image(image))
        query = self.query_conv(pool(self.query(image), size))
        features = self.feature.blocks(self.channel_free(x))
        key = self.aggregate(torch.cat([pool(self.key(image), low), features], 1))
        query = self.attention_query(self.norm_query(query.flatten(2).mT))
        key = self.attention_key(self.norm_key(key.flatten(2).mT))
        rows, columns = (_seen(n, m, self.window_ratio, x.device) for n, m in zip(size, low, strict=True))
        mask = rows.repeat_interleave(size[1], 0), columns.repeat(size[0], 1)
        y = mean_over_heads(query, key, x.flatten(2).mT.to(query.dtype), self.heads, mask, limit=self.chunk)
        return y.mT.unflatten(2, size)

    def channel_free(self, x: Tensor) -> Tensor:
        """The mean over channels of the softmax over the bank's responses to each: ``(B, d, h, w)``."""
        bank = self.feature.first
        reach = bank.kernel_size[0] // 2
        valid = F.conv2d(torch.ones_like(x[:1, :1]), torch.ones_like(bank.weight[:1]), padding=reach)
        responses = F.conv2d(F.normalize(x, dim=1).flatten(0, 1)[:, None], bank.weight, padding=reach) / valid
        if self.released_view:  # (B, channel, bank) taken for (B, bank, channel)
            return responses.reshape(len(x), -1, x.shape[1], *x.shape[-2:]).softmax(1).mean(2)
        return responses.softmax(1).unflatten(0, x.shape[:2]).mean(1)


def _seen(size: int, low: int, ratio: float, device: torch.device) -> Tensor:
    """Which of ``low`` rows each of ``size`` query rows sees: ``(size, low)``."""
    centre = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) / size
    first = ((centre - ratio).clamp(0, 1) * low).floor()
    last = ((centre + ratio).clamp(0, 1) * low).ceil()
    place = torch.arange(low, device=device)
    return (place >= first[:, None]) & (place < last[:, None])
