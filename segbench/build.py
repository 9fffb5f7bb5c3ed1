"""A decoder as a sweep builds it: its parameters, and initial weights that are the same wherever decoders are alike."""

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from segbench.config import DecoderConfig
from segbench.decoders.base import Decoder
from segbench.encoders.base import hash_tensors
from segbench.errors import UserError, brief
from segbench.registry import DECODERS, check_params
from segbench.registry import parameters as parameters_of


def derived_seed(*parts: object) -> int:
    """A seed of 63 bits that is a function of ``parts``: randomness is a function here, not a state."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def decoder_params(config: DecoderConfig, defaults: Mapping[str, Any]) -> tuple[type[Decoder], dict[str, Any]]:
    """The class and every parameter's value: its own, else the sweep's default, else the constructor's.

    Raises:
        UserError: the class cannot be loaded, or a parameter does not fit it.
    """
    cls = DECODERS.load(config.name)
    known = parameters_of(cls, DECODERS.given)
    shared = {k: v for k, v in defaults.items() if k in known}
    return cls, check_params(DECODERS, config.name, cls, shared | config.params)


def build_decoder(
    config: DecoderConfig,
    channels: Sequence[int],
    strides: Sequence[int],
    num_classes: int,
    seed: int,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Decoder:
    """The decoder with the initial weights of that seed.

    What it has in common with others (`Decoder.skeleton`) is drawn layer by layer from (seed, "skeleton", name of the
    layer): it is bit-equal in all decoders that have a layer of that name and shape, whatever their class, label or
    technique. All else, the technique's own weights, is drawn from (seed, "upsampler").

    Args:
        channels, strides: of the encoder's features, fine to coarse.
        defaults: parameters of the sweep for every decoder that takes them.

    Raises:
        UserError: the class cannot be loaded, its parameters do not fit, or its constructor raises.
    """
    cls, params = decoder_params(config, defaults)
    torch.manual_seed(derived_seed(seed, "upsampler"))
    try:
        decoder = cls(channels, strides, num_classes, **params)
    except Exception as error:  # a plug-in can raise anything
        raise UserError(f"decoder '{config.name}' cannot be built: {brief(error)}") from error
    for part, top in decoder.skeleton().items():
        for name, layer in top.named_modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                torch.manual_seed(derived_seed(seed, "skeleton", f"{part}.{name}".rstrip(".")))
                reset()
    return decoder


def skeleton_hash(decoder: Decoder) -> str | None:
    """Hash of the weights that it has in common with others; None for a decoder that has nothing in common."""
    parts = decoder.skeleton()
    tensors = {f"{part}.{name}": t for part, top in parts.items() for name, t in top.state_dict().items()}
    return hash_tensors(tensors) if tensors else None
