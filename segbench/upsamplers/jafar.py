"""JAFAR: each output pixel a mixture of all features, by attention between the image and the features."""

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._attention import CHUNK, Encoder, RMSNorm, Rope, mean_over_heads, pool
from segbench.upsamplers._operations import GroupNorm
from segbench.upsamplers.base import checked


@checked
class Jafar(nn.Module):
    """Cross-attention from image to features, once to the image's size: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``.

    Couairon et al. 2025, https://arxiv.org/abs/2506.11136. Queries come from the image, keys from the pooled image,
    modulated by the features; values are the features as they are, so that the output is a convex mixture of them. The
    published attention's projections of values and outputs do not act and are left out. It computes in chunks that hold
    64 MiB, but encodes the image with qk_dim channels at its full size, so that a training step to 128x128 with C = 64
    holds 50 times what bilinear interpolation's does. At C = 256: 545,920 parameters.

    Args:
        channels: C.
        scale: s, an int.
        guide_channels: of the image.
        qk_dim: d, channels of queries and keys, a multiple of 4 and of heads.
        heads: of the attention.
        kernel: side of the first convolution on the image, odd.
        groups: of the norms; the largest divisor of d up to that.
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
        groups: int = 8,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__()
        if qk_dim % 4 or qk_dim % heads:
            raise ValueError(f"qk_dim must be a multiple of 4 and of heads {heads}, not {qk_dim}")
        self.heads, self.chunk = heads, chunk
        self.image = Encoder(guide_channels, qk_dim, groups, kernel)
        self.key, self.query = Encoder(qk_dim, qk_dim, groups), Encoder(qk_dim, qk_dim, groups)
        self.feature = Encoder(channels, qk_dim, groups)
        self.rope = Rope(qk_dim)
        self.plain_norm = GroupNorm(qk_dim, groups, affine=False)
        self.gamma, self.beta = nn.Conv2d(qk_dim, qk_dim, 1, bias=False), nn.Conv2d(qk_dim, qk_dim, 1, bias=False)
        self.query_conv = nn.Conv2d(qk_dim, qk_dim, 3, padding=1, bias=False)
        self.norm_query, self.norm_key = RMSNorm(qk_dim), RMSNorm(qk_dim)
        self.attention_query, self.attention_key = nn.Linear(qk_dim, qk_dim), nn.Linear(qk_dim, qk_dim)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return self.resize(x, guide, (guide.shape[-2], guide.shape[-1]))

    def resize(self, x: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, C, h, w)`` to ``(B, C, *size)``, with an image of any size."""
        image = self.rope(self.image(image))
        query = self.query_conv(self.plain_norm(pool(self.query(image), size)))
        feature = self.feature(F.normalize(x, dim=1))
        key = self.plain_norm(pool(self.key(image), (x.shape[-2], x.shape[-1])))
        key = self.gamma(feature) * key + self.beta(feature)
        query = self.attention_query(self.norm_query(query.flatten(2).mT))
        key = self.attention_key(self.norm_key(key.flatten(2).mT))
        y = mean_over_heads(query, key, x.flatten(2).mT.to(query.dtype), self.heads, limit=self.chunk)
        return y.mT.unflatten(2, size)
