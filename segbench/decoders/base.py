"""The contract of decoders (`Decoder`), and how a skeleton goes from one stride to a finer one (`Steps`)."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers.base import Scale, Upsampler, at_once, ceil_size, crop, is_guided, takes, upsample


@dataclass(frozen=True)
class Step:
    """One upsampling step of a decoder: the upsampler's module and what it was made for.

    Attributes:
        guide_channels: of the guide, 0 where it is called without one.
    """

    module: nn.Module
    channels: int
    scale: Scale
    guide_channels: int


class Decoder(nn.Module):
    """Takes an encoder's feature pyramid to class logits at image size.

    A subclass is all that a plug-in needs. Its constructor takes ``(channels, strides, num_classes, **params)``; the
    parameters are set under ``params:`` in a sweep. A skeleton is a decoder whose constructor has an argument
    ``upsampler`` as well: the upsampler's class with its parameters bound, called as ``upsampler(channels=, scale=,
    guide_channels=)``, which is best left to `Steps`. It says by `skeleton` what all its decoders have in common.

    Args:
        channels: channels of each feature map, fine to coarse.
        strides: image pixels per feature pixel of each map, never decreasing; several maps of one stride, as of a plain
            ViT, come from its shallower to its deeper blocks.
        num_classes: K, the number of logit channels, at least 2.

    Attributes:
        strides_needed: of a decoder that is made for certain strides alone; None for one that takes any.
        shipped: of a decoder that is another project's as a whole, and so differs in more than the upsampling: its
            depth and strides in words. It then stands apart in tables. Empty elsewhere.

    Raises:
        ValueError: channels and strides that do not pair up, or strides that decrease.
    """

    strides_needed: tuple[int, ...] | None = None
    shipped = ""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if len(channels) != len(strides) or not channels:
            raise ValueError(f"channels and strides must pair up: {list(channels)} and {list(strides)}")
        if any(a > b for a, b in itertools.pairwise(strides)):
            raise ValueError(f"strides must not decrease from fine to coarse: {list(strides)}")
        self.channels, self.strides, self.num_classes = tuple(channels), tuple(strides), num_classes

    @property
    def last_stride(self) -> int:
        """Image pixels per cell of the map from which it upsamples to the image: the finest of the encoder's."""
        return self.strides[0]

    def skeleton(self) -> dict[str, nn.Module]:
        """Name -> part that it has in common with other decoders, which starts from the same weights in all of them."""
        return {}

    def upsampling(self) -> Iterator[Step]:
        """The steps of its upsampler: their parameters are not decayed, their `starts_as` is checked."""
        for part in self.modules():
            if isinstance(part, Steps):
                yield from part.each()

    def forward(self, features: list[Tensor], image: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)``, unbounded floats.

        Args:
            features: ``features[i]`` is ``(B, channels[i], ceil(H/strides[i]), ceil(W/strides[i]))``, fine to coarse.
            image: the normalised input ``(B, 3, H, W)``, for guided upsampling.
        """
        raise NotImplementedError


class Steps(nn.ModuleList):
    """The steps of an upsampler from one stride to a finer one.

    As many x2 steps as fit into the ratio of the strides, or one step of it all (see `at_once`); what then remains is
    done by the upsampler where it takes such a ratio, else by bilinear interpolation: x14 is three x2 steps and one of
    7/4.

    Args:
        upsampler: its class, or `functools.partial` of it.
        channels: of what is upsampled.
        guide_channels: of the guide that `forward` gets.
        ratio: of the strides, at least 1.
    """

    def __init__(self, upsampler: Upsampler, channels: int, guide_channels: int, ratio: Fraction) -> None:
        doublings = 0 if at_once(upsampler, ratio) else int(math.log2(ratio))
        rest = ratio / 2**doublings
        scales: list[Scale] = [2] * doublings
        scales += [rest] if rest > 1 and takes(upsampler, rest) else []
        super().__init__(upsampler(channels=channels, scale=s, guide_channels=guide_channels) for s in scales)
        self.scales, self.ratio, self.channels = scales, ratio, channels
        self.guide_channels = guide_channels if is_guided(upsampler) else 0

    def each(self) -> Iterator[Step]:
        for module, scale in zip(self, self.scales, strict=True):
            yield Step(module, self.channels, scale, self.guide_channels)

    def forward(self, x: Tensor, guide: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, C, h, w)`` to ``(B, C, *size)``.

        Args:
            guide: ``(B, guide_channels, *size)``, or larger; a guided upsampler gets it at the size that it puts out.

        Raises:
            BrokenUpsampler: the upsampler does not keep its contract.
        """
        rest = self.ratio
        for module, scale in zip(self, self.scales, strict=True):
            rest /= scale
            out = ceil_size(x.shape[-2:], scale)
            x = upsample(module, scale, x, _fit(guide, ceil_size(size, 1 / rest), out) if self.guide_channels else None)
        # Steps from an odd size overshoot by a pixel; crop, so that pixel centres stay where they are.
        return resize(crop(x, ceil_size(size, 1 / rest)), size)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling (``align_corners=False``, antialiased when it shrinks) of ``(B, C, h, w)`` to ``size``."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    shrinks = x.shape[-2] > size[0] or x.shape[-1] > size[1]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=shrinks)


def _fit(guide: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """The guide at ``size``, its last row and column repeated up to ``padded``, the size that an upsampler puts out."""
    guide = resize(guide, size)
    missing = (padded[0] - size[0], padded[1] - size[1])
    return F.pad(guide, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else guide


def fake_inputs(
    channels: tuple[int, ...], strides: tuple[int, ...], size: tuple[int, int], batch: int = 1, device: str = "cpu"
) -> tuple[list[Tensor], Tensor]:
    """Random features and image of the shapes and the memory order that a decoder is called with.

    ``size`` is the image's.
    """
    height, width = size
    order = torch.channels_last if device == "cpu" else torch.contiguous_format  # see `Encoder.normalise`
    features = [
        torch.randn(batch, c, -(-height // s), -(-width // s), device=device).contiguous(memory_format=order)
        for c, s in zip(channels, strides, strict=True)
    ]
    return features, torch.randn(batch, 3, height, width, device=device).contiguous(memory_format=order)
