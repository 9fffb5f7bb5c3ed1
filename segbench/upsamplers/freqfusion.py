"""FreqFusion: CARAFE-like smoothing weights from both maps, and the finer map sharpened by what they pass over."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import (
    GroupNorm,
    centres,
    largest_divisor,
    normal,
    reassemble,
    sample,
    windows,
    xavier,
)
from segbench.upsamplers.base import checked


@checked
class Freqfusion(nn.Module):
    """Frequency-aware fusion: ``(B, C, h, w)`` to ``(B, C, 2h, 2w)``; starts near a Hamming-weighted 5x5 mean.

    Chen et al. 2024, https://arxiv.org/abs/2408.12879. Low-pass weights, predicted from guide and features, upsample x;
    high-pass weights sharpen the guide. The paper adds the sharpened guide to the output; a skeleton adds the guide
    itself, so here what sharpening changed is added, and nothing where the guide has other channels than x. At C = 256:
    52,514 parameters, with ``resample`` 104,690; 220,360 MACs per input pixel.

    Args:
        channels: C.
        guide_channels: of the guide ``(B, guide_channels, 2h, 2w)``.
        resample: moves the output by offsets predicted from similarities of neighbours.
        compressed: m, channels that the weights are predicted from, a multiple of 8.
        kernel_lowpass: side of the low-pass window, odd.
        kernel_highpass: side of the high-pass window, odd.
        hamming: whether weights are multiplied by a Hamming window.
        residual: the sharpened guide is ``2 e - lowpass(e)``, else ``e - lowpass(e)``.
        groups: of channels with offsets of their own; the largest divisor of C up to that.

    Raises:
        ValueError: compressed is no multiple of 8.
    """

    group, year = "guided", 2024
    guided, starts_as = True, "random"
    window_lowpass: Tensor
    window_highpass: Tensor

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        resample: bool = False,
        compressed: int = 64,
        kernel_lowpass: int = 5,
        kernel_highpass: int = 3,
        hamming: bool = True,
        residual: bool = True,
        groups: int = 4,
    ) -> None:
        super().__init__()
        if compressed < 8 or compressed % 8:
            raise ValueError(f"compressed must be a multiple of 8, not {compressed}")
        self.adds, self.residual, self.resample = guide_channels == channels, residual, resample
        self.kernel_lowpass, self.kernel_highpass = kernel_lowpass, kernel_highpass
        self.compress_guide = nn.Conv2d(guide_channels, compressed, 1)
        self.compress_x = nn.Conv2d(channels, compressed, 1)
        self.lowpass = nn.Conv2d(compressed, kernel_lowpass**2, 3, padding=1)
        self.highpass = nn.Conv2d(compressed, kernel_highpass**2, 3, padding=1)
        for name, size in (("window_lowpass", kernel_lowpass), ("window_highpass", kernel_highpass)):
            taps = torch.hamming_window(size, periodic=False, dtype=torch.float64) if hamming else torch.ones(size)
            self.register_buffer(name, torch.outer(taps, taps).view(1, -1, 1, 1), persistent=False)
        xavier(self.compress_guide, self.compress_x)
        normal(self.lowpass, self.highpass, sd=0.001)
        if resample:
            self.groups = largest_divisor(channels, groups)
            self.norm_guide, self.norm_x = (GroupNorm(compressed, compressed // 8) for _ in range(2))
            self.offset_x, self.scope_x = (nn.Conv2d(compressed + 8, 8 * self.groups, 3, padding=1) for _ in range(2))
            self.offset_guide, self.scope_guide = (
                nn.Conv2d(compressed + 8, 2 * self.groups, 3, padding=1) for _ in range(2)
            )
            xavier(self.offset_x, self.scope_x, self.offset_guide, self.scope_guide)

    def parts(self, x: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low-pass weights ``(B, k², 2h, 2w)``, the sharpened guide, and the upsampled x."""
        low, high = self.kernel_lowpass, self.kernel_highpass
        guide_part, x_part = self.compress_guide(guide), self.compress_x(x)
        scores_high = self.highpass(guide_part)
        guide_part = 2 * guide_part - reassemble(guide_part, _weights(scores_high, self.window_highpass), high, 1)
        scores_low = self.lowpass(guide_part)
        scores_low = scores_low + reassemble(self.lowpass(x_part), _weights(scores_low, self.window_lowpass), low, 2)
        weights = _weights(scores_low, self.window_lowpass)
        scores_high = scores_high + reassemble(self.highpass(x_part), weights, low, 2)
        y = reassemble(x, weights, low, 2)
        smooth = reassemble(guide, _weights(scores_high, self.window_highpass), high, 1)
        if self.resample:
            y = self._move(y, guide_part, x_part)
        return weights, (2 if self.residual else 1) * guide - smooth, y

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        _, sharpened, y = self.parts(x, guide)
        return y + (sharpened - guide) if self.adds else y

    def _move(self, y: Tensor, guide_part: Tensor, x_part: Tensor) -> Tensor:
        near_guide, near_x = _with_similarity(self.norm_guide(guide_part)), _with_similarity(self.norm_x(x_part))
        offset = F.pixel_shuffle(self.offset_x(near_x), 2) + self.offset_guide(near_guide)
        scope = F.pixel_shuffle(self.scope_x(near_x), 2) + self.scope_guide(near_guide)
        offset = offset * scope.sigmoid()
        across, down = offset.unflatten(1, (2, self.groups)).transpose(0, 1).flatten(1, 2)  # each (B g, 2h, 2w)
        rows, columns = centres(y.to(offset.dtype), 1)
        parts = y.reshape(-1, y.shape[1] // self.groups, *y.shape[-2:])
        return sample(parts, rows + 2 * down, columns + 2 * across, outside="border").view(y.shape)


def _weights(scores: Tensor, window: Tensor) -> Tensor:
    weights = scores.softmax(1) * window.to(scores.dtype)
    return weights / weights.sum(1, keepdim=True)


def _with_similarity(x: Tensor) -> Tensor:
    """x and its cosine similarity with the 8 neighbours two pixels away: ``(B, m + 8, h, w)``."""
    unit = F.normalize(x, dim=1, eps=1e-8)
    near = [t for n, t in enumerate(windows(F.pad(unit, (2,) * 4), 3, dilation=2)) if n != 4]
    return torch.cat([x, torch.stack([(t * unit).sum(1) for t in near], 1)], 1)
