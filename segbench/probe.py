"""Look at what a sweep names before it starts: encoder, decoders and data, built once, in a process of its own."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from segbench.config import DecoderConfig, SweepConfig
from segbench.cost import fake_inputs, macs, parameters
from segbench.data.base import Dataset
from segbench.encoders import Encoder, build_encoder
from segbench.errors import UserError
from segbench.lockstep import derived_seed
from segbench.plan import DecoderFacts, Facts
from segbench.registry import DATASETS, DECODERS, check_params, source_hash
from segbench.registry import parameters as parameters_of


def open_data(config: SweepConfig, which: str) -> Dataset:
    """The split that is called ``train`` or ``val`` in the config.

    Raises:
        UserError: unknown data set, split or parameter, or whatever is wrong with the files.
    """
    cls = DATASETS.load(config.data.name)
    params = check_params(DATASETS, config.data.name, cls, config.data.params)
    split = config.data.train_split if which == "train" else config.data.val_split
    try:
        dataset: Dataset = cls(split, **params)
    except ValueError as error:
        raise UserError(f"data set '{config.data.name}': {error}") from None
    if not len(dataset):
        raise UserError(f"data set '{config.data.name}': split '{split}' is empty")
    return dataset


def decoder_params(config: DecoderConfig, defaults: Mapping[str, Any]) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class and every parameter's value: its own, else the sweep's default, else the constructor's.

    Raises:
        UserError: the class cannot be loaded, or a parameter does not fit it.
    """
    cls = DECODERS.load(config.name)
    known = parameters_of(cls, DECODERS.skipped_params)
    shared = {k: v for k, v in defaults.items() if k in known}
    return cls, check_params(DECODERS, config.name, cls, shared | config.params)


def build_decoder(
    config: DecoderConfig,
    encoder: Encoder,
    num_classes: int,
    seed: int,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> nn.Module:
    """The decoder with the initial weights of that seed: a function of (seed, class name).

    Raises:
        UserError: the class cannot be loaded, its parameters do not fit, or its constructor raises.
    """
    cls, params = decoder_params(config, defaults)
    torch.manual_seed(derived_seed(seed, cls.__name__))
    try:
        decoder: nn.Module = cls(encoder.channels, encoder.strides, num_classes, **params)
    except Exception as error:  # a plug-in can raise anything
        raise UserError(f"decoder '{config.name}' cannot be built: {type(error).__name__}: {error}") from error
    return decoder


def probe(config: SweepConfig) -> Facts:
    """Build what ``config`` names and look at it.

    Raises:
        UserError: anything that would make every run of the sweep fail.
    """
    accelerator = resolve_accelerator(config.trainer.accelerator)
    data = {which: open_data(config, which) for which in ("train", "val")}
    classes = data["train"].classes
    weights = config.recipe.class_weights
    if weights is not None and len(weights) != len(classes):
        raise UserError(
            f"recipe.class_weights has {len(weights)} values; '{config.data.name}' has {len(classes)} classes"
        )
    encoder = build_encoder(config.encoder)
    return Facts(
        accelerator,
        encoder.weights_hash,
        encoder.features_hash(),
        classes,
        {which: d.fingerprint() for which, d in data.items()},
        {which: len(d) for which, d in data.items()},
        {d.title: _look_at(d, config.decoder_defaults, encoder, len(classes)) for d in config.decoders},
    )


def resolve_accelerator(name: str) -> str:
    """``cpu``, ``cuda`` or ``mps`` for what the config asks.

    Raises:
        UserError: an accelerator that this machine lacks.
    """
    there = [
        n for n, found in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if found
    ]
    if name == "auto":
        return (there or ["cpu"])[0]
    wanted = {"gpu": (there or ["cuda"])[0]}.get(name, name)
    if wanted != "cpu" and wanted not in there:
        raise UserError(f"trainer.accelerator: this machine has no '{name}'; use cpu or auto")
    return wanted


def _look_at(config: DecoderConfig, defaults: Mapping[str, Any], encoder: Encoder, num_classes: int) -> DecoderFacts:
    decoder = build_decoder(config, encoder, num_classes, 0, defaults)
    largest = max(encoder.strides)
    size = (2 * largest, 3 * largest)
    features, image = fake_inputs(encoder.channels, encoder.strides, size)
    try:
        with torch.no_grad():
            logits = decoder.eval()(features, image)
    except Exception as error:  # a plug-in can raise anything
        raise UserError(
            f"decoder '{config.name}' fails on a {size[0]}x{size[1]} image: {type(error).__name__}: {error}"
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, num_classes, *size):
        raise UserError(f"decoder '{config.name}' returns {shape}; wanted logits of {(1, num_classes, *size)}")
    cls, params = decoder_params(config, defaults)
    cost = macs(decoder, encoder.channels, encoder.strides)
    return DecoderFacts(cls.__name__, params, source_hash(cls), parameters(decoder), cost)


def check_files(config: SweepConfig, marker: Path) -> None:
    """Read every image of both splits once, so that a bad file is named before training and not in the midst of it.

    ``marker`` remembers what was found good, by fingerprint.

    Raises:
        UserError: the first bad file.
    """
    from concurrent.futures import ThreadPoolExecutor

    for which in ("train", "val"):
        dataset = open_data(config, which)
        done = marker.with_name(f"{marker.name}-{dataset.fingerprint()[:16]}")
        if done.exists() or not dataset.from_files:
            continue
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda i, d=dataset: d.read(i) and None, range(len(dataset))):
                pass
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
