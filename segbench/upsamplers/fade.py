"""FADE: reassembly with weights predicted from the features and the finer map together."""

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import reassemble, xavier
from segbench.upsamplers.base import checked


@checked
class Fade(nn.Module):
    """Fuses features and guide into upsampling weights: ``(B, C, h, w)`` to ``(B, C, 2h, 2w)``.

    Lu et al. 2022, https://arxiv.org/abs/2207.10392; 2024, https://arxiv.org/abs/2407.13500. Features and guide are
    each brought to ``embedding`` channels, one 3x3 convolution makes k² scores of both, at their own resolutions, whose
    sum goes through a softmax; then `reassemble`. At C = 256: 47,257 parameters and 179,520 MACs per input pixel; with
    ``lite`` and the gate 13,332 and 58,981.

    Args:
        channels: C.
        guide_channels: of the guide ``(B, guide_channels, 2h, 2w)``.
        gate: mixes guide and output by a sigmoid of a 1x1 convolution of x. A skeleton adds the guide anyway, so that
            it is off by default; it is left out where the guide has other channels than x.
        lite: straight to k² channels, and a depthwise 3x3 convolution ("FADE-Lite").
        kernel_up: k, odd.
        embedding: channels that the scores are made from.
    """

    group, year = "guided", 2022
    guided, starts_as = True, "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        gate: bool = False,
        lite: bool = False,
        kernel_up: int = 5,
        embedding: int = 64,
    ) -> None:
        super().__init__()
        taps = kernel_up**2
        embedding = taps if lite else embedding
        self.kernel_up = kernel_up
        self.compress_guide = nn.Conv2d(guide_channels, embedding, 1)
        self.compress_x = nn.Conv2d(channels, embedding, 1, bias=False)
        self.encode = nn.Conv2d(embedding, taps, 3, padding=1, groups=taps if lite else 1)
        self.gate = nn.Conv2d(channels, 1, 1) if gate and guide_channels == channels else None
        xavier(self.compress_guide, self.compress_x, self.encode, *([] if self.gate is None else [self.gate]))

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        scores = self.encode(self.compress_guide(guide))
        scores = scores + F.interpolate(self.encode(self.compress_x(x)), scale_factor=2)
        y = reassemble(x, scores.softmax(1), self.kernel_up, 2)
        if self.gate is None:
            return y
        gate = F.interpolate(self.gate(x).sigmoid(), scale_factor=2)
        return gate * guide + (1 - gate) * y
