"""Pixel-adaptive transposed convolution: its kernel fades where the guide's features differ."""

import torch
from torch import Tensor, nn

from segbench.upsamplers._operations import pac_transposed
from segbench.upsamplers.base import checked


@checked
class Pac(nn.Module):
    """Transposed convolution whose taps are weighed by a Gaussian of guide differences: to ``(B, C, s*h, s*w)``.

    PAC, Su et al. 2019, https://arxiv.org/abs/1904.05373. Its kernel starts as linear interpolation about input pixel m
    at output pixel s m, channel by channel, and fades by the features of the guide, a random 3x3 convolution. At C =
    256, s = 2, k = 5: 1,638,656 parameters besides the guide's convolution, 1,640,000 MACs per input pixel.

    Args:
        channels: C.
        scale: s, an int.
        guide_channels: of the guide ``(B, guide_channels, s h, s w)``.
        kernel: k, odd and above s; default: 2s + 1.
        key_channels: of the guide's features.
        normalize_kernel: whether the Gaussian weights are brought to the sum 1.

    Raises:
        ValueError: a kernel that is even, or not above the scale.
    """

    group, year = "guided", 2019
    guided, ratios, starts_as = True, "integer", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        kernel: int | None = None,
        key_channels: int = 16,
        normalize_kernel: bool = False,
    ) -> None:
        super().__init__()
        kernel = 2 * scale + 1 if kernel is None else kernel
        if kernel % 2 == 0 or kernel <= scale:
            raise ValueError(f"kernel must be odd and above the scale {scale}, not {kernel}")
        self.scale, self.normalize_kernel = scale, normalize_kernel
        self.features = nn.Conv2d(guide_channels, key_channels, 3, padding=1)
        self.weight = nn.Parameter(torch.zeros(channels, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels))
        taps = (1 - (torch.arange(kernel) - kernel // 2).abs() / scale).clamp_min(0)
        with torch.no_grad():
            self.weight[range(channels), range(channels)] = torch.outer(taps, taps)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        features = self.features(guide)
        return pac_transposed(x, features, self.weight, self.bias, self.scale, normalize=self.normalize_kernel)
