"""DLU, dynamic lightweight upsampling: CARAFE's kernels at low resolution, brought up by learned sampling."""

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import cells, normal, reassemble, sample, xavier
from segbench.upsamplers.base import checked


@checked
class Dlu(nn.Module):
    """Reassembly with kernels that are sampled from one per input pixel: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``.

    Fu et al. 2024, https://arxiv.org/abs/2410.22139. One k x k kernel per input pixel, softmax over it; each output
    pixel takes that of its input pixel, moved by a predicted offset, then `reassemble`. It starts near the mean of the
    5x5 window, the same for all output pixels of an input pixel. At C = 256, s = 2: 35,489 parameters, 61,392 MACs per
    input pixel.

    Args:
        channels: C.
        scale: s, an int.
        kernel_up: k, odd, of the window.
        kernel_encoder: of the convolutions that predict kernels and offsets, odd.
        compressed: channels that they are predicted from.
    """

    group, year = "adaptive", 2024
    ratios, starts_as = "integer", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        kernel_up: int = 5,
        kernel_encoder: int = 3,
        compressed: int = 64,
    ) -> None:
        super().__init__()
        self.scale, self.kernel_up = scale, kernel_up
        self.compress = nn.Conv2d(channels, compressed, 1)
        self.encode = nn.Conv2d(compressed, kernel_up**2, kernel_encoder, padding=kernel_encoder // 2)
        self.offset = nn.Conv2d(compressed, 2 * scale**2, kernel_encoder, padding=kernel_encoder // 2)
        xavier(self.compress)
        normal(self.encode, sd=0.001)
        normal(self.offset, sd=0.0)

    def forward(self, x: Tensor) -> Tensor:
        compressed = self.compress(x)
        kernel = self.encode(compressed).softmax(1)  # (B, k², h, w)
        across, down = F.pixel_shuffle(self.offset(compressed), self.scale).unbind(1)  # (B, s h, s w)
        rows, columns = cells(x.to(down.dtype), self.scale)
        kernel = sample(kernel, rows + down, columns + across, outside="border")
        return reassemble(x, kernel, self.kernel_up, self.scale)
