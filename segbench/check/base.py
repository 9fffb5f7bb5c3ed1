"""What the checks share: a decoder made as a sweep makes it, what it is called with, and how a check ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from segbench.build import Blueprint, look_up
from segbench.config import DecoderConfig, RecipeConfig, SweepConfig
from segbench.decoders.base import Decoder, Step, fake_inputs
from segbench.upsamplers.base import Scale, ceil_size, is_guided, takes

SCALES: tuple[Scale, ...] = (2, 3, Fraction(7, 4))  # one of each kind of ratio
RECIPE = RecipeConfig(steps=20, batch_size=2, crop=(128, 128))


class Broken(Exception):
    """A check that does not hold; the message says what was found and what was wanted."""


class Note(str):
    """What a check found that is no fault, and that its author should know."""


@dataclass(frozen=True)
class Setting:
    """What a decoder is made and trained for. The default: tf_efficientnet_lite0's pyramid."""

    channels: tuple[int, ...] = (24, 40, 112, 320)
    strides: tuple[int, ...] = (4, 8, 16, 32)
    num_classes: int = 7
    skeleton: str = "pyramid"
    defaults: Mapping[str, Any] = field(default_factory=dict)  # `SweepConfig.decoder_defaults`
    recipe: RecipeConfig = RECIPE

    @classmethod
    def of(cls, config: SweepConfig) -> "Setting":
        """That of a sweep: its encoder's features, its classes, its recipe.

        Raises:
            UserError: the encoder or the data cannot be opened.
        """
        from segbench.data import open_data
        from segbench.encoders import build_encoder

        encoder, classes = build_encoder(config.encoder), open_data(config.data, "train").classes
        shared = config.skeleton, config.decoder_defaults, config.recipe
        return cls(encoder.channels, encoder.strides, len(classes), *shared)

    def on(self, skeleton: str) -> "Setting":
        return replace(self, skeleton=skeleton)


@dataclass(frozen=True)
class Builder:
    """Makes the decoder that is checked, as often as the checks want it."""

    blueprint: Blueprint
    setting: Setting

    def __call__(
        self, channels: Sequence[int] | None = None, strides: Sequence[int] | None = None, seed: int = 0
    ) -> Decoder:
        there = channels or self.setting.channels, strides or self.setting.strides
        return self.blueprint.build(*there, self.setting.num_classes, seed)

    def inputs(self, size: tuple[int, int], batch: int = 1, seed: int = 1) -> tuple[list[Tensor], Tensor]:
        """Drawn features and image; the same for the same arguments."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return fake_inputs(self.setting.channels, self.setting.strides, size, batch)


def builder(name: str, params: Mapping[str, Any], setting: Setting | None = None) -> Builder:
    """Of a decoder, or of an upsampler on the setting's skeleton, by name.

    Raises:
        UserError: it cannot be loaded, declares what it has not, or a parameter does not fit.
    """
    setting = setting or Setting()
    config = DecoderConfig(name=name, params=dict(params))
    return Builder(look_up(config, setting.defaults, setting.skeleton), setting)


def forward(decoder: nn.Module, features: Sequence[Tensor], image: Tensor) -> Any:
    with torch.no_grad():
        return decoder(list(features), image)


def by_itself(decoder: Decoder) -> list[Step]:
    """The upsampler that a skeleton was given, made once for a scale of each kind that it takes."""
    upsampler = getattr(decoder, "upsampler", None)
    if upsampler is None:
        return []
    made = [
        (scale, upsampler(channels=5, scale=scale, guide_channels=3)) for scale in SCALES if takes(upsampler, scale)
    ]
    return [Step(module, 5, scale, 3 if is_guided(upsampler) else 0) for scale, module in made]


def guide_for(step: Step, size: tuple[int, int]) -> Tensor | None:
    """A drawn guide for an input of that size; None for an upsampler that takes none."""
    return torch.randn(2, step.guide_channels, *ceil_size(size, step.scale)) if step.guide_channels else None
