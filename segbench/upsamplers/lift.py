"""LiFT: one learned step of x2 with the image, then bilinear to its size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import precise
from segbench.upsamplers.base import checked


@checked
class Lift(nn.Module):
    """A small U-Net of the image and the features, by 2: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``.

    Suri et al. 2024, https://arxiv.org/abs/2403.14625. The image is encoded down to the features' stride, which the
    paper has at 8 or 16; for another ratio s it is first brought to 8 times the features' size, from 12 on to 16 times.
    What is left beyond x2 is bilinear interpolation. At C = 256: 569,360 parameters.

    Args:
        channels: C, at least 2.
        scale: s, an int.
        guide_channels: of the image.
    """

    group, year = "image-guided", 2024
    guided, one_shot, ratios, starts_as = True, True, "rational", "random"

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0) -> None:
        super().__init__()
        self.stride = 8 if scale < 12 else 16
        middle, half = (channels + 32) // 2, max(1, channels // 2)
        self.image1 = nn.Conv2d(guide_channels, 32, 3, 2, 1)
        self.image2, self.image3 = nn.Conv2d(32, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 2, 1)
        self.image1_norm, self.image2_norm, self.image3_norm = (nn.BatchNorm2d(32) for _ in range(3))
        self.transposed = nn.ConvTranspose2d(channels + 32, middle, 2, 2)
        self.double1 = nn.Conv2d(middle + 32, half, 3, padding=1, bias=False)
        self.double2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.double1_norm, self.double2_norm = nn.BatchNorm2d(half), nn.BatchNorm2d(half)
        self.out = nn.Conv2d(half, channels, 1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        size = (guide.shape[-2], guide.shape[-1])
        wanted = [self.stride * n for n in x.shape[-2:]]
        if wanted != list(size):
            image = guide.to(precise(guide))  # bfloat16 cannot be antialiased
            guide = F.interpolate(image, size=wanted, mode="bilinear", align_corners=False, antialias=True)
        y = self.step(x, guide)
        return F.interpolate(y, size=size, mode="bilinear", align_corners=False)

    def step(self, x: Tensor, image: Tensor) -> Tensor:
        """``(B, C, h, w)`` to ``(B, C, 2h, 2w)``, with an image of 8 or 16 times the size of x."""
        fine = self.image1_norm(self.image1(image)).relu()
        fine = self.image2_norm(self.image2(fine)).relu()
        if self.stride == 16:
            fine = F.max_pool2d(fine, 2)
        coarse = self.image3_norm(self.image3(fine)).relu()
        y = torch.cat([self.transposed(torch.cat([x, coarse], 1)), fine], 1)
        y = self.double1_norm(self.double1(y)).relu()
        y = self.double2_norm(self.double2(y)).relu()
        y = self.out(y)
        return y
