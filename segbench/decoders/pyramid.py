"""The default skeleton: FPN's top-down path with the upsampler left open."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from segbench.decoders.base import Decoder, Steps, resize
from segbench.upsamplers.base import Upsampler, ceil_size


class Pyramid(Decoder):
    """The top-down path of FPN (Lin et al. 2017, https://arxiv.org/abs/1612.03144), with any upsampler in it.

    1x1 laterals to a common width; coarse to fine: upsample, add the lateral, 3x3 conv block; a 1x1 classifier at the
    finest encoder stride; then the same upsampler brings the logits to image size. All but the upsampler is fixed, so
    that a difference comes from the upsampler alone. The guide is the finer level's lateral, and at the end the image.

    Args:
        channels, strides, num_classes: see `Decoder`.
        upsampler: its class, or `functools.partial` of it with parameters, see `segbench.upsamplers.base`.
        width: channels of the laterals and conv blocks.
        output_stride: where the upsampler ends; bilinear does the rest. 1 takes it all the way to image size.

    Raises:
        ValueError: a width below 1, or an output stride that is not from 1 to the finest encoder stride.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        upsampler: Upsampler,
        *,
        width: int = 64,
        output_stride: int = 1,
    ) -> None:
        super().__init__(channels, strides, num_classes)
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        if not 1 <= output_stride <= strides[0]:
            raise ValueError(
                f"output_stride must be from 1 to the finest encoder stride {strides[0]}, not {output_stride}"
            )
        self.output_stride, self.upsampler = output_stride, upsampler
        with torch.random.fork_rng(devices=[]):  # so that the upsampler's weights depend on nothing of the skeleton
            self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
            self.blocks = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
                )
                for _ in channels
            )
            self.classifier = nn.Conv2d(width, num_classes, 1)
        # steps[i] leads from level i to level i - 1; steps[0] leads from the finest level to the output stride.
        ratios = [Fraction(*pair) for pair in zip(strides, (output_stride, *strides), strict=False)]
        self.steps = nn.ModuleList(
            Steps(upsampler, width if i else num_classes, width if i else 3, ratio) for i, ratio in enumerate(ratios)
        )

    def skeleton(self) -> dict[str, nn.Module]:
        return {"laterals": self.laterals, "blocks": self.blocks, "classifier": self.classifier}

    def forward(self, features: list[Tensor], image: Tensor) -> Tensor:
        laterals = [lateral(f) for lateral, f in zip(self.laterals, features, strict=True)]  # each (B, width, h_i, w_i)
        x = self.blocks[-1](laterals[-1])
        for i in range(len(laterals) - 1, 0, -1):
            finer = laterals[i - 1]
            x = self.steps[i](x, finer, (finer.shape[-2], finer.shape[-1]))  # (B, width, h_{i-1}, w_{i-1})
            x = self.blocks[i - 1](x + finer)
        x = self.classifier(x)  # (B, K, h_0, w_0)
        x = self.steps[0](x, image, ceil_size(image.shape[-2:], Fraction(1, self.output_stride)))
        return resize(x, (image.shape[-2], image.shape[-1]))  # (B, K, H, W)
