"""The probes' skeleton: one feature map upsampled to the image, then a 1x1 classifier."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from segbench.decoders.base import Decoder, Steps, resize
from segbench.upsamplers.base import Upsampler, ceil_size


class Linear(Decoder):
    """One feature map, brought to ``width`` channels, upsampled with the image as guide, classified pixel by pixel.

    The protocol by which upsamplers of frozen features are compared (JAFAR, Couairon et al. 2025,
    https://arxiv.org/abs/2506.11136; AnyUp, Wimmer et al. 2025, https://arxiv.org/abs/2510.12764), but that the
    upsampler is trained with the classifier. All but the upsampler is fixed.

    Args:
        channels, strides, num_classes: see `Decoder`.
        upsampler: its class, or `functools.partial` of it with parameters, see `segbench.upsamplers.base`.
        width: channels that are upsampled; 0 leaves the features as they are.
        stride: of the feature map that is upsampled; of the encoder's the nearest one to it, of several the deepest.
        output_stride: where the upsampler ends and the classifier stands; bilinear does the rest.
        batch_norm: batch normalisation before the classifier, as in the probes of DINOv2 (Oquab et al. 2023,
            https://arxiv.org/abs/2304.07193).

    Raises:
        ValueError: a width below 0, or an output stride that is not from 1 to the stride of the feature map.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        upsampler: Upsampler,
        *,
        width: int = 64,
        stride: int = 16,
        output_stride: int = 1,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(channels, strides, num_classes)
        if width < 0:
            raise ValueError(f"width must be at least 0, not {width}")
        self.level = min(reversed(range(len(strides))), key=lambda i: abs(strides[i] - stride))
        if not 1 <= output_stride <= strides[self.level]:
            raise ValueError(
                f"output_stride must be from 1 to the feature map's stride {strides[self.level]}, not {output_stride}"
            )
        self.output_stride, self.upsampler = output_stride, upsampler
        inside = width or channels[self.level]
        with torch.random.fork_rng(devices=[]):  # so that the upsampler's weights depend on nothing of the skeleton
            self.lateral = nn.Conv2d(channels[self.level], inside, 1) if width else nn.Identity()
            self.norm = nn.BatchNorm2d(inside) if batch_norm else nn.Identity()
            self.classifier = nn.Conv2d(inside, num_classes, 1)
        self.steps = Steps(upsampler, inside, 3, Fraction(strides[self.level], output_stride))

    @property
    def last_stride(self) -> int:
        return self.strides[self.level]

    def skeleton(self) -> dict[str, nn.Module]:
        return {"lateral": self.lateral, "norm": self.norm, "classifier": self.classifier}

    def forward(self, features: list[Tensor], image: Tensor) -> Tensor:
        x = self.lateral(features[self.level])  # (B, width, h, w)
        x = self.steps(x, image, ceil_size(image.shape[-2:], Fraction(1, self.output_stride)))
        return resize(self.classifier(self.norm(x)), (image.shape[-2], image.shape[-1]))  # (B, K, H, W)
