"""SAPA: reassembly with weights from the similarity of a pixel of the finer map to its neighbours in x."""

from typing import Literal

from torch import Tensor, nn

from segbench.upsamplers._operations import GroupNorm, normal, reassemble, window_scores
from segbench.upsamplers.base import checked


@checked
class Sapa(nn.Module):
    """Similarity-aware point affiliation: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``.

    Lu et al. 2022, https://arxiv.org/abs/2209.12866. The weights are the softmax of the inner products of a query from
    the guide with the keys of the k x k window of x, both after group norm; then `reassemble` of x as it is. A key
    outside the map is 0 and takes part. The norms see the whole map, so that a crop's output differs from that of its
    image. At C = 256, s = 2: 17,472 parameters and 69,760 MACs per input pixel; with the inherent similarity none and
    51,200. It starts near the mean of the 5x5 window; inherent, as it stays.

    Args:
        channels: C.
        scale: s, an int.
        guide_channels: of the guide ``(B, guide_channels, s h, s w)``.
        similarity: ``bilinear`` projects both to ``embedding`` channels ("SAPA-B"), ``inherent`` compares them as they
            are ("SAPA-I"), which needs a guide of C channels and else is bilinear.
        kernel: k, odd.
        embedding: channels of query and key.
        norm: whether to normalise first.
        norm_groups: of the norms; the largest divisor of the channels up to that.

    Raises:
        ValueError: an unknown similarity.
    """

    group, year = "guided", 2022
    guided, ratios, starts_as = True, "integer", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        similarity: Literal["bilinear", "inherent"] = "bilinear",
        kernel: int = 5,
        embedding: int = 32,
        norm: bool = True,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        if similarity not in ("bilinear", "inherent"):
            raise ValueError(f"similarity must be 'bilinear' or 'inherent', not '{similarity}'")
        self.scale, self.kernel = scale, kernel
        self.norm_guide: nn.Module
        self.norm_x: nn.Module
        self.query: nn.Module
        self.key: nn.Module
        inherent = similarity == "inherent" and guide_channels == channels
        if norm:
            self.norm_guide = GroupNorm(guide_channels, norm_groups, affine=not inherent)
            self.norm_x = GroupNorm(channels, norm_groups, affine=not inherent)
        else:
            self.norm_guide, self.norm_x = nn.Identity(), nn.Identity()
        if inherent:
            self.query, self.key = nn.Identity(), nn.Identity()
        else:
            self.query, self.key = nn.Conv2d(guide_channels, embedding, 1), nn.Conv2d(channels, embedding, 1)
            normal(self.query, self.key, sd=0.02)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        query, key = self.query(self.norm_guide(guide)), self.key(self.norm_x(x))
        # A key outside the map is 0, and so is its score.
        kernel = window_scores(query, key, self.kernel, self.scale).softmax(1)
        return reassemble(x, kernel, self.kernel, self.scale)
