"""Decoders of segmentation-models-pytorch as shipped: U-Net, FPN, DeepLabV3+, UPerNet and others."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from segbench.decoders.base import Decoder, resize
from segbench.upsamplers.base import crop

WIDTHS = (256, 128, 64, 32, 16)  # SMP's of its U-shaped decoders, from strides 16, 8, 4, 2 and 1


class Shipped(NamedTuple):
    """How one of SMP's decoders is made, with SMP's defaults for all else.

    Attributes:
        make: from the channels of strides 1, 2, 4, ...
        channels: of what it puts out.
        stride: of what it puts out.
        head: kernel of the segmentation head.
        coarsest: the largest stride that it takes.
        smallest: the least rows and columns of that map that it can pool.
    """

    make: Callable[[list[int]], nn.Module]
    channels: int
    stride: int
    head: int
    coarsest: int = 32
    smallest: int = 1


SHIPPED = {
    "unet": Shipped(lambda c: UnetDecoder(c, WIDTHS, 5), 16, 1, 3),
    "unetplusplus": Shipped(lambda c: UnetPlusPlusDecoder(c, WIDTHS, 5), 16, 1, 3),
    "manet": Shipped(lambda c: MAnetDecoder(c, list(WIDTHS), 5), 16, 1, 3),
    "linknet": Shipped(lambda c: LinknetDecoder(c, 32, 5), 32, 1, 1),
    "fpn": Shipped(FPNDecoder, 128, 4, 1),
    "pan": Shipped(lambda c: PANDecoder(c, 5, 32), 32, 4, 3, smallest=8),
    "upernet": Shipped(UPerNetDecoder, 256, 4, 1),
    "segformer": Shipped(SegformerDecoder, 256, 4, 1),
    "deeplabv3plus": Shipped(
        lambda c: DeepLabV3PlusDecoder(c, 4, 256, (12, 24, 36), 16, True, 0.5), 256, 4, 1, coarsest=16
    ),
}


class Smp(Decoder):
    """A decoder of segmentation-models-pytorch with its own head and SMP's defaults, on the encoder's pyramid.

    Iakubovskii 2019, https://github.com/qubvel-org/segmentation_models.pytorch. They are ``unet`` (2015), ``fpn`` and
    ``linknet`` (2017), ``unetplusplus``, ``deeplabv3plus``, ``pan`` and ``upernet`` (2018), ``manet`` (2020) and
    ``segformer`` (2021). They differ from each other, and from upsamplers on a skeleton, in far more than the
    upsampling. They take the strides 4, 8, 16, 32, with or without 2; ``deeplabv3plus`` ends at 16, and its encoder is
    not dilated. Maps of odd sizes are repeated at the border up to what the decoder needs, and the logits are cropped.
    Bilinear interpolation brings them to the image. ``pan``, ``upernet`` and ``deeplabv3plus`` normalise what they pool
    over the whole map, so that they cannot train with a batch of 1; ``pan`` is made for images from 256 px.

    Args:
        channels, strides, num_classes: see `Decoder`.
        architecture: which of them.

    Raises:
        ValueError: an unknown architecture, or other strides.
    """

    group, year = "as shipped", 2019
    strides_needed = (4, 8, 16, 32)

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        architecture: Literal[
            "unet", "unetplusplus", "fpn", "deeplabv3plus", "pan", "upernet", "segformer", "manet", "linknet"
        ] = "unet",
    ) -> None:
        super().__init__(channels, strides, num_classes)
        if architecture not in SHIPPED:
            raise ValueError(f"architecture must be one of {', '.join(SHIPPED)}, not '{architecture}'")
        if tuple(strides) not in ((4, 8, 16, 32), (2, 4, 8, 16, 32)):
            raise ValueError(
                f"SMP's {architecture} takes the strides 4, 8, 16, 32, with or without 2, not {list(strides)}"
            )
        made = SHIPPED[architecture]
        self.used = [s for s in (2, 4, 8, 16, 32) if s <= made.coarsest]
        known = dict(zip(strides, channels, strict=True))
        self.decoder = made.make([3, *(known.get(s, 0) for s in self.used)])
        self.head: Any = SegmentationHead(made.channels, num_classes, made.head)
        self.stride, self.smallest = made.stride, made.smallest
        there = [s for s in self.used if s in known]
        self.shipped = f"depth {len(self.used)}, strides {there[0]}-{there[-1]} to {made.stride}"

    @property
    def last_stride(self) -> int:
        return max(self.stride, self.strides[0])

    def forward(self, features: list[Tensor], image: Tensor) -> Tensor:
        size = (image.shape[-2], image.shape[-1])
        coarsest = self.used[-1]
        whole = [max(self.smallest, -(-n // coarsest)) * coarsest for n in size]  # so that every stride divides it
        maps = dict(zip(self.strides, features, strict=True))
        given = [_extended(image, whole, 1)]
        for stride in self.used:
            there = maps.get(stride)
            if there is None:
                given.append(image.new_zeros(len(image), 0, *(n // stride for n in whole)))
            else:
                given.append(_extended(there, whole, stride))
        y = self.head(self.decoder(given))
        y = crop(y, (-(-size[0] // self.stride), -(-size[1] // self.stride)))
        return resize(y, size)


def _extended(x: Tensor, whole: list[int], stride: int) -> Tensor:
    """The map with its last row and column repeated, up to that of a whole image."""
    down, across = (n // stride - m for n, m in zip(whole, x.shape[-2:], strict=True))
    return F.pad(x, (0, across, 0, down), mode="replicate") if down or across else x
