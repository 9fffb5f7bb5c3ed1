"""The plug-in contract (`Decoder`) and the skeleton in which only the upsampler differs (`PyramidDecoder`)."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scale = int | Fraction


# What an upsampler may say that it starts as: the word -> what that means. `segbench.check` verifies it.
STARTS = {
    "nearest": "equal to nearest-neighbour interpolation",
    "bilinear": "equal to bilinear interpolation (align_corners=False), but for the border",
    "linear": "each channel by itself, and whatever is linear in x and y stays so, but for the border",
    "random": "what its random weights make of it",
}


class BrokenUpsampler(ValueError):
    """An upsampler that does not do what `PyramidDecoder.upsampler` says."""


@dataclass(frozen=True)
class Step:
    """One upsampling step of a decoder: the technique's module and what it was made for.

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
    parameters are set under ``params:`` in a sweep.

    Args:
        channels: channels of each feature map, fine to coarse.
        strides: image pixels per feature pixel of each map, strictly increasing.
        num_classes: K, the number of logit channels, at least 2.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if len(channels) != len(strides) or not channels:
            raise ValueError(f"channels and strides must pair up: {list(channels)} and {list(strides)}")
        if any(a >= b for a, b in itertools.pairwise(strides)):
            raise ValueError(f"strides must increase from fine to coarse: {list(strides)}")
        self.channels, self.strides, self.num_classes = tuple(channels), tuple(strides), num_classes

    def skeleton(self) -> dict[str, nn.Module]:
        """Name -> part that it has in common with other decoders, which starts from the same weights in all of them."""
        return {}

    def upsampling(self) -> Iterator[Step]:
        """The steps that are the technique itself: their parameters are not decayed, their `starts_as` is checked."""
        return iter(())

    def forward(self, features: list[Tensor], image: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)``, unbounded floats.

        Args:
            features: ``features[i]`` is ``(B, channels[i], ceil(H/strides[i]), ceil(W/strides[i]))``, fine to coarse.
            image: the normalised input ``(B, 3, H, W)``, for guided upsampling.
        """
        raise NotImplementedError


class PyramidDecoder(Decoder):
    """The common skeleton: everything but the upsampler is fixed, so that a difference comes from the upsampler alone.

    1x1 laterals to a common width; coarse to fine: upsample, add the lateral, 3x3 conv block; a 1x1 classifier at the
    finest encoder stride; then the same technique brings the logits to image size. It is the top-down path of FPN
    (Lin et al. 2017, https://arxiv.org/abs/1612.03144) with the upsampler left open.

    Between two strides with ratio r there are as many x2 steps of the technique as fit into r. What then remains is
    bilinear, or the technique itself where its class says ``rational = True`` (it then takes a ``Fraction``).

    A technique is a subclass with one method, ``upsampler``. In a sweep the skeleton's weights are drawn from (seed,
    "skeleton", name of the layer), so that for one seed they are the same whatever the technique; its own weights are
    drawn from (seed, "upsampler"). See `segbench.build`.

    Args:
        channels, strides, num_classes: see `Decoder`.
        width: channels of the laterals and conv blocks.
        output_stride: where the technique ends; bilinear does the rest. 1 takes it all the way to image size.
    """

    guided: ClassVar[bool] = False
    rational: ClassVar[bool] = False

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
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
        self.output_stride = output_stride
        with torch.random.fork_rng(devices=[]):  # so that the technique's weights depend on nothing of the skeleton
            self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
            self.blocks = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
                )
                for _ in channels
            )
            self.classifier = nn.Conv2d(width, num_classes, 1)
        # steps[i] leads from level i to level i - 1; steps[0] leads from the finest level to the output stride.
        finer = (output_stride, *strides)
        self.ratios = [Fraction(stride, target) for stride, target in zip(strides, finer, strict=False)]
        self.sizes = [(width if i else num_classes, width if i else 3) for i in range(len(strides))]  # C, guide's C
        self.steps = nn.ModuleList(
            nn.ModuleList(self.upsampler(c, scale, guide) for scale in self._scales(ratio))
            for ratio, (c, guide) in zip(self.ratios, self.sizes, strict=True)
        )

    def skeleton(self) -> dict[str, nn.Module]:
        return {"laterals": self.laterals, "blocks": self.blocks, "classifier": self.classifier}

    def upsampling(self) -> Iterator[Step]:
        for steps, ratio, (channels, guide_channels) in zip(self.steps, self.ratios, self.sizes, strict=True):
            assert isinstance(steps, nn.ModuleList)
            for module, scale in zip(steps, self._scales(ratio), strict=True):
                yield Step(module, channels, scale, guide_channels if self.guided else 0)

    def upsampler(self, channels: int, scale: Scale, guide_channels: int) -> nn.Module:
        """The technique: a module from ``(B, channels, h, w)`` to ``(B, channels, scale*h, scale*w)``.

        It is called as ``module(x)``, or as ``module(x, guide)`` where the class sets ``guided = True``; the guide is
        ``(B, guide_channels, scale*h, scale*w)``: the lateral of the finer level, and the image where there is none.
        Another size than that, or a guide changed in place, is a `BrokenUpsampler`.

        What it computes before any training it may say by an attribute ``starts_as``, one of `STARTS`, which
        ``segbench check`` verifies.

        Args:
            channels: channels in and out.
            scale: 2; with ``rational = True`` also a `fractions.Fraction` above 1, the output size rounded up.
            guide_channels: channels of the guide.
        """
        raise NotImplementedError

    def _scales(self, ratio: Fraction) -> list[Scale]:
        """As many x2 steps as fit into ``ratio``, then what remains, if the technique can do it."""
        doublings = int(math.log2(ratio))
        rest = ratio / 2**doublings
        return [2] * doublings + ([rest] if rest > 1 and self.rational else [])

    def _upsample(self, x: Tensor, level: int, guide: Tensor, size: tuple[int, int]) -> Tensor:
        """``x`` of ``level`` brought to ``size``, the size of ``guide`` or, at an output stride, a fraction of it."""
        rest = self.ratios[level]
        steps = self.steps[level]
        assert isinstance(steps, nn.ModuleList)
        for scale, step in zip(self._scales(rest), steps, strict=True):
            rest /= scale
            x = self._step(step, scale, x, _fit(guide, size, rest, scale, x) if self.guided else None)
        # Steps from an odd level overshoot by a pixel; crop, so that pixel centres stay where they are.
        return resize(crop(x, _ceil(size, 1 / rest)), size)

    def _step(self, step: nn.Module, scale: Scale, x: Tensor, guide: Tensor | None) -> Tensor:
        """One step of the technique: ``(B, C, h, w)`` to ``(B, C, scale*h, scale*w)``, and nothing else.

        Raises:
            BrokenUpsampler: it returns something else, or changes the guide in place.
        """
        who = f"the upsampler {type(step).__name__} of {type(self).__name__}"
        wanted = (*x.shape[:2], *_ceil(x.shape[-2:], Fraction(scale)))
        shape = tuple(x.shape)
        version = 0 if guide is None else guide._version
        y = step(x) if guide is None else step(x, guide)
        if not isinstance(y, Tensor) or tuple(y.shape) != wanted:
            found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise BrokenUpsampler(f"{who} returns {found} for {shape} and scale {scale}; wanted {wanted}")
        if guide is not None and guide._version != version:
            raise BrokenUpsampler(f"{who} changes its guide in place, which the skeleton uses too")
        return y

    def forward(self, features: list[Tensor], image: Tensor) -> Tensor:
        laterals = [lateral(f) for lateral, f in zip(self.laterals, features, strict=True)]  # each (B, width, h_i, w_i)
        x = self.blocks[-1](laterals[-1])
        for i in range(len(laterals) - 1, 0, -1):
            finer = laterals[i - 1]
            x = self._upsample(x, i, finer, (finer.shape[-2], finer.shape[-1]))  # (B, width, h_{i-1}, w_{i-1})
            x = self.blocks[i - 1](x + finer)
        x = self.classifier(x)  # (B, K, h_0, w_0)
        size = _ceil(image.shape[-2:], Fraction(1, self.output_stride))
        x = self._upsample(x, 0, image, size)
        return resize(x, (image.shape[-2], image.shape[-1]))  # (B, K, H, W)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling (``align_corners=False``, antialiased when it shrinks) of ``(B, C, h, w)`` to ``size``."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    shrinks = x.shape[-2] > size[0] or x.shape[-1] > size[1]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=shrinks)


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The top left ``(B, C, *size)`` of ``(B, C, H, W)``. Where that is all, no slice, whose backward would copy it."""
    return x if tuple(x.shape[-2:]) == tuple(size) else x[..., : size[0], : size[1]]


def _ceil(size: Sequence[int], scale: Fraction) -> tuple[int, int]:
    height, width = (-(-n * scale.numerator // scale.denominator) for n in size)
    return height, width


def _fit(guide: Tensor, size: tuple[int, int], rest: Fraction, scale: Scale, x: Tensor) -> Tensor:
    """The guide at ``size / rest``, last row and column repeated up to what a step of ``scale`` makes of ``x``."""
    height, width = _ceil(size, 1 / rest)
    guide = resize(guide, (height, width))
    padded = _ceil(x.shape[-2:], Fraction(scale))
    missing = (padded[0] - height, padded[1] - width)
    return F.pad(guide, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else guide


def triangle_filter(scale: Scale) -> Tensor:
    """The 1-d filter that turns zero insertion by ``p`` into linear interpolation by ``p/q``, taps summing to ``p``.

    Its length is 2p where p + q is odd and 2p - 1 where it is even: the parity that keeps the centres of the output
    pixels at ``(n + 1/2) q/p - 1/2`` input pixels. For p/q = 2 it is [1, 3, 3, 1] / 4, FCN's initialisation
    (Long et al. 2015, https://arxiv.org/abs/1411.4038).
    """
    scale = Fraction(scale)
    p = scale.numerator
    length = 2 * p if (p + scale.denominator) % 2 else 2 * p - 1
    centre = (length - 1) / 2
    return 1 - (torch.arange(length, dtype=torch.float64) - centre).abs() / p
