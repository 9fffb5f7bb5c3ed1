"""FeatUp's stack of joint bilateral upsamplers: x2 by x2 to the image's size, the image as guide."""

from torch import Tensor, nn

from segbench.upsamplers._attention import pool
from segbench.upsamplers.base import checked
from segbench.upsamplers.featup_jbu import FeatupJbu


@checked
class FeatupJbuStack(nn.Module):
    """Stages of `FeatupJbu`, each with the pooled image: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``.

    Fu et al. 2024, https://arxiv.org/abs/2403.10516. As many steps by 2 as fit, four for the published x16, and one for
    the rest of another ratio; then a tenth of a 1x1 convolution is added. At C = 256 and x16: 90,724 parameters.

    Args:
        channels: C.
        scale: s, an int.
        guide_channels: of the image.
        radius: of the stages' windows.
        key_channels: of the stages.
        stages: default: as many as s needs.

    Raises:
        ValueError: too few stages: each may do x2 at most.
    """

    group, year = "image-guided", 2024
    guided, one_shot, ratios, starts_as = True, True, "rational", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        radius: int = 3,
        key_channels: int = 32,
        stages: int | None = None,
    ) -> None:
        super().__init__()
        needed = next(n for n in range(1, 32) if 2**n >= scale)
        self.stages = needed if stages is None else stages
        if self.stages < needed:
            raise ValueError(f"stages must be at least {needed} for x{scale}, not {self.stages}")
        for i in range(1, self.stages + 1):
            self.add_module(
                f"stage{i}", FeatupJbu(channels, 2, guide_channels, radius=radius, key_channels=key_channels)
            )
        self.final = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        low = x.shape[-2:]
        for i in range(1, self.stages + 1):
            height, width = (min(2**i * n, m) for n, m in zip(low, guide.shape[-2:], strict=True))
            x = self.get_submodule(f"stage{i}").forward(x, pool(guide, (height, width)))  # the last may do less than x2
        y: Tensor = x + 0.1 * self.final(x)
        return y
