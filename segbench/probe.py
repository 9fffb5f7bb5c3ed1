"""Look at what a sweep names before it starts: encoder, decoders and data, built once, in a process of its own."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from segbench.build import build_decoder, decoder_params
from segbench.config import DataConfig, DecoderConfig, SweepConfig, TrainerConfig
from segbench.cost import fake_inputs, macs, parameters
from segbench.data import open_data
from segbench.data.base import Dataset
from segbench.encoders import Encoder, build_encoder
from segbench.errors import UserError, brief
from segbench.plan import DecoderFacts, Facts
from segbench.registry import DATASETS, check_params, source_hash
from segbench.store import explained
from segbench.track import require


def probe(config: SweepConfig, on_cluster: bool = False) -> Facts:
    """Build what ``config`` names and look at it.

    Args:
        on_cluster: whether its cohorts run on machines of a cluster.

    Raises:
        UserError: anything that would make every run of the sweep fail.
    """
    require(config.launch.trackers)
    accelerator = resolve_accelerator(config.trainer, on_cluster)
    data = {which: open_data(config.data, which) for which in ("train", "val")}
    for dataset in data.values():
        if not dataset.labelled:
            raise UserError(
                f"split '{dataset.split}' of '{config.data.name}' has no labels; `segbench export` predicts it"
            )
    classes = data["train"].classes
    weights = config.recipe.class_weights
    if weights is not None and len(weights) != len(classes):
        raise UserError(
            f"recipe.class_weights has {len(weights)} values; '{config.data.name}' has {len(classes)} classes"
        )
    encoder = build_encoder(config.encoder)
    largest = max(encoder.strides)
    if config.recipe.batch_size == 1 and max(config.recipe.crop) <= largest:
        raise UserError(
            f"recipe: batch_size 1 with crop {list(config.recipe.crop)} leaves the coarsest level (stride {largest}) "
            "one pixel, over which batch normalisation cannot train; take a larger crop or batch"
        )
    return Facts(
        accelerator,
        torch.cuda.device_count() if accelerator == "cuda" else 0,
        encoder.weights_hash,
        classes,
        data_facts(config.data, data),
        len(data["val"]),
        encoder.strides,
        {d.title: _look_at(d, config.decoder_defaults, encoder, len(classes)) for d in config.decoders},
    )


def data_facts(config: DataConfig, data: Mapping[str, Dataset]) -> list[str]:
    """What stands for the data in a run's key: their class, its source, its parameters, and the files of each split."""
    cls = type(data["train"])
    return [cls.__name__, source_hash(cls), _data_params(config), *(d.fingerprint() for d in data.values())]


def _data_params(config: DataConfig) -> str:
    """Hash of the data set's parameters: of a file what it holds, of a folder nothing, which `fingerprint` sees to."""
    params = check_params(DATASETS, config.name, DATASETS.load(config.name), config.params)
    for name, value in params.items():
        if isinstance(value, Path):
            params[name] = hashlib.sha256(value.read_bytes()).hexdigest() if value.is_file() else None
    return hashlib.sha256(json.dumps(params, sort_keys=True, default=_plain).encode()).hexdigest()


def resolve_accelerator(trainer: TrainerConfig, elsewhere: bool = False) -> str:
    """``cpu``, ``cuda`` or ``mps`` for what the config asks.

    Args:
        elsewhere: for machines of a cluster; where a GPU is asked for by name, they have it.

    Raises:
        UserError: an accelerator that this machine lacks; ``auto``, for other machines.
    """
    name = trainer.accelerator
    if elsewhere and name == "auto":
        raise UserError("trainer.accelerator: what a cluster's machines have is not known here; say cpu or gpu")
    if elsewhere and name in ("gpu", "cuda"):
        return "cuda"
    there = [
        n for n, found in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if found
    ]
    wanted = {"auto": (there or ["cpu"])[0], "gpu": (there or ["cuda"])[0]}.get(name, name)
    if wanted != "cpu" and wanted not in there:
        raise UserError(f"trainer.accelerator: this machine has no '{name}'; use cpu or auto")
    return wanted


def _look_at(config: DecoderConfig, defaults: Mapping[str, Any], encoder: Encoder, num_classes: int) -> DecoderFacts:
    decoder = build_decoder(config, encoder.channels, encoder.strides, num_classes, 0, defaults)
    largest = max(encoder.strides)
    size = (2 * largest, 3 * largest)
    features, image = fake_inputs(encoder.channels, encoder.strides, size)
    tensors = [*features, image]
    try:
        with torch.no_grad():
            logits = [decoder.train(mode)(list(features), image) for mode in (True, False)][-1]
    except Exception as error:  # a plug-in can raise anything
        raise UserError(f"decoder '{config.name}' fails on a {size[0]}x{size[1]} image: {brief(error)}") from error
    if any(t._version for t in tensors):
        raise UserError(f"decoder '{config.name}' changes features or image in place, which others use too")
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, num_classes, *size):
        raise UserError(f"decoder '{config.name}' returns {shape}; wanted logits of {(1, num_classes, *size)}")
    cls, params = decoder_params(config, defaults)
    cost = macs(decoder, encoder.channels, encoder.strides)
    params = json.loads(json.dumps(params, default=_plain))  # as it stands in keys and configs
    return DecoderFacts(cls.__name__, params, source_hash(cls), parameters(decoder), cost)


def _plain(value: object) -> str:
    """A name for a value that JSON does not have, the same in every process."""
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else str(value)


def check_files(config: SweepConfig, marker: Path) -> None:
    """Read every image of both splits once, so that a bad file is named before training and not in the midst of it.

    ``marker`` remembers what was found good, by fingerprint.

    Raises:
        UserError: the first bad file.
    """
    from concurrent.futures import ThreadPoolExecutor

    for which in ("train", "val"):
        dataset = open_data(config.data, which)
        done = marker.with_name(f"{marker.name}-{dataset.fingerprint()[:16]}")
        if done.exists() or not dataset.from_files:
            continue
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda i, d=dataset: d.read(i) and None, range(len(dataset))):
                pass
        with explained(done):
            done.parent.mkdir(parents=True, exist_ok=True)
            done.touch()
