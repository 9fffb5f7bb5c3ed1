"""Joint bilateral upsampling: the mean of near input pixels, weighed by distance and by difference of the guide."""

import torch
from torch import Tensor, nn

from segbench.upsamplers._operations import pac_transposed, precise
from segbench.upsamplers.base import checked


@checked
class JointBilateral(nn.Module):
    """Mean of the input pixels in a window, by Gaussians of place and of guide: to ``(B, C, s*h, s*w)``.

    Kopf et al. 2007, https://doi.org/10.1145/1276377.1276497, as Su et al. 2019, https://arxiv.org/abs/1904.05373,
    state it. No parameters.

    Args:
        channels: C.
        scale: s, an int.
        guide_channels: of the guide ``(B, guide_channels, s h, s w)``.
        kernel: side of the window in output pixels, odd and above s; default: 2s + 1.
        scale_color: what differences of the guide are multiplied by.
        scale_space: what distances in output pixels are multiplied by.

    Raises:
        ValueError: a kernel that is even, or not above the scale.
    """

    group, year = "guided", 2007
    guided, ratios = True, "integer"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        kernel: int | None = None,
        scale_color: float = 1.0,
        scale_space: float = 0.5,
    ) -> None:
        super().__init__()
        kernel = 2 * scale + 1 if kernel is None else kernel
        if kernel % 2 == 0 or kernel <= scale:
            raise ValueError(f"kernel must be odd and above the scale {scale}, not {kernel}")
        self.scale, self.kernel = scale, kernel
        self.scale_color, self.scale_space = scale_color, scale_space

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        batch, _, height, width = guide.shape
        rows, columns = (torch.arange(n, device=x.device).to(precise(guide)) for n in (height, width))
        place = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)])
        features = torch.cat([self.scale_color * guide, self.scale_space * place.expand(batch, -1, -1, -1)], 1)
        return pac_transposed(x, features, self.kernel, None, self.scale, normalize=True).to(x.dtype)
