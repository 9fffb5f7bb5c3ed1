"""Encoders: plug-ins, one file each, behind `segbench.encoders.base.Plugin`; those of SMP and timm by name."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

from segbench.config import WEIGHTS_BY_NAME, EncoderConfig
from segbench.encoders.base import Encoder, Network, check_plugin, describe_plugin, load_weights
from segbench.encoders.libraries import library_of, load, smp, timm
from segbench.encoders.libraries.vit import PlainViT, is_plain_vit
from segbench.errors import UserError, brief, suggest
from segbench.registry import ENCODERS, check_params, fit_params, parameters


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder that ``config`` names, with the weights that it names: a function of ``config`` and of its files.

    Raises:
        UserError: unknown encoder or level, weights that cannot be had (never random ones unasked), or a plug-in that
            does not load, raises, or breaks its contract.
    """
    cls = plugin_class(config)
    who = f"encoder '{config.name}'"
    if cls is not None and ":" not in config.name:
        who += f" ({cls.__module__}:{cls.__qualname__})"
    with isolate_rng(include_cuda=False):
        random.seed(0)  # what is not loaded is then the same each time
        np.random.seed(0)
        torch.manual_seed(0)
        network = _from_library(config) if cls is None else _from_plugin(config, cls, who)
    if config.weights not in WEIGHTS_BY_NAME:
        load_weights(network.body, Path(config.weights), config.name)
    there = list(dict.fromkeys(level.stride for level in network.levels))
    wanted = config.strides or ([s for s in there if s >= 4] or there)
    if missing := [s for s in wanted if s not in there]:
        raise UserError(f"encoder.strides: '{config.name}' has no level of stride {missing[0]}; it has: {there}")
    chosen = [level for level in network.levels if level.stride in wanted]
    dtype: torch.dtype = getattr(torch, config.dtype)
    encoder = Encoder(network.body, chosen, network.stats, config.trainable, network.channels_last, dtype)
    if cls is not None:
        check_plugin(encoder, network, who)
    return encoder


def plugin_class(config: EncoderConfig) -> type[Any] | None:
    """The plug-in's class; None for an encoder of SMP or timm, whose names no installed package can take.

    Raises:
        UserError: an unknown name, or a class that cannot be loaded.
    """
    name = config.name
    if ":" not in name and name not in ENCODERS.builtin():
        if library_of(name) is not None:
            return None
        if name not in ENCODERS.announced():
            known = [*ENCODERS.announced(), *ENCODERS.builtin(), *smp.names(), *timm.names()]
            hint = (
                f"write {name}:ClassName for a class in a file"
                if name.endswith(".py")
                else ("any of SMP's or timm's names will do, or path/to/file.py:Class")
            )
            raise UserError(f"unknown encoder '{name}'{suggest(name, known)}; {hint}")
    return ENCODERS.load(name)


def plugin_params(config: EncoderConfig, cls: type[Any]) -> dict[str, Any]:
    """Every parameter's value of a plug-in: of the config, else the constructor's default.

    Raises:
        UserError: a parameter that does not fit.
    """
    return check_params(ENCODERS, config.name, cls, config.params)


def _from_library(config: EncoderConfig) -> Network:
    found = library_of(config.name)
    assert found is not None
    return load(*found, library_params(config), imagenet=config.weights in ("default", "imagenet"))


def library_params(config: EncoderConfig) -> dict[str, Any]:
    """Every parameter's value of an encoder of SMP or timm, of which only plain ViTs have any.

    Raises:
        UserError: a parameter that does not fit.
    """
    found = library_of(config.name)
    who = f"encoder '{config.name}' of {'SMP' if found and found[0] is smp else 'timm'}"
    known = parameters(PlainViT, frozenset({"name", "pretrained"})) if has_blocks(config) else {}
    return fit_params(who, known, config.params)


def has_blocks(config: EncoderConfig) -> bool:
    """Whether it is a plain ViT of timm, by name."""
    found = library_of(config.name) if plugin_class(config) is None else None
    return found is not None and found[0] is timm and is_plain_vit(found[1])


def _from_plugin(config: EncoderConfig, cls: type[Any], who: str) -> Network:
    if config.weights == "imagenet":
        raise UserError(
            f"encoder.weights: imagenet is for encoders of SMP and timm; '{config.name}' loads its own: leave it out, "
            "or name a file"
        )
    params = plugin_params(config, cls)
    try:
        body: nn.Module = cls(**params)
    except Exception as error:  # a plug-in can raise anything
        raise UserError(f"{who} cannot be built: {brief(error)}") from error
    return describe_plugin(body, who)
