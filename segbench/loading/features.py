"""A frozen encoder's features, computed once and kept in files that decoders, seeds and sweeps of a machine share."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from segbench import store
from segbench.config import SweepConfig
from segbench.data.base import Dataset
from segbench.encoders.base import Encoder
from segbench.errors import UserError
from segbench.loading.cache import digest_of
from segbench.runs import Facts

ABOUT = "about.json"
CHECK = "sha256, and what was float32"  # of a file's metadata, in one entry: several come in any order
LEFT_FREE = 512 * 2**20  # bytes of the disk that are not taken: run folders may lie on it
STALE_S = 600  # age of a half-written file whose writer is gone
VIEW = ("crop", "scale", "resize", "flip", "color_jitter", "views")  # of a recipe, what decides a view


class View(NamedTuple):
    """What is kept of an augmented view, or computed of one: all that a training step needs of it."""

    image: Tensor  # (3, H, W) uint8
    labels: Tensor  # (H, W) uint8
    features: list[Tensor]  # each (C, h, w)


@dataclass
class KeptFeatures:
    """The features of one split under one encoder and one way to look at images: a folder with a file for each.

    A file is written beside its place and moved there, so that it is whole or not there; what it holds is checked by
    its SHA-256 when a process reads it first, and a damaged one counts as not there. Any number of processes may read
    and write: all write the same. Where the disk is full, what is not kept is computed each time.

    Attributes:
        folder: of this set alone.
        dtype: in which float32 features are kept.
    """

    folder: Path
    dtype: torch.dtype
    full: bool = False
    _checked: set[str] = field(default_factory=set)

    @property
    def about(self) -> dict[str, Any] | None:
        """What `describe` wrote; None where it has not been called, or its file is damaged."""
        try:
            found = store.read_json(self.folder / ABOUT)
        except store.Damaged:
            return None
        except UserError as error:
            raise UserError(f"launch.features: {error}") from None
        return found if isinstance(found, dict) else None

    def describe(self, about: Mapping[str, Any]) -> None:
        """Make the folder and say in it what the set is, and what a cohort needs of its encoder without loading it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for part in self.folder.glob("*/.*.tmp"):
                if time.time() - part.stat().st_mtime > STALE_S:
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"launch.features: cannot use {self.folder}: {error.strerror or error}") from None
        store.write_json(self.folder / ABOUT, dict(about))

    def read(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of that name as they were given to `write`, on the CPU; None where they are not kept."""
        path = self._path(name)
        try:
            with safe_open(path, "pt") as file:
                check, _, wide = (file.metadata() or {}).get(CHECK, "").partition(" ")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            whole = name in self._checked or check == _digest(tensors)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            whole = False
        if not whole:
            with contextlib.suppress(OSError):
                path.unlink()
            self._checked.discard(name)
            return None
        self._checked.add(name)
        return {key: t.float() if key in wide.split() else t for key, t in tensors.items()}

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors of any device; float32 in the set's dtype. Nothing is written any more once the disk is full."""
        if self.full:
            return
        wide = [key for key, t in tensors.items() if t.dtype == torch.float32]
        kept = {key: (t.to(self.dtype) if key in wide else t).cpu().contiguous() for key, t in tensors.items()}
        data = save(kept, {CHECK: " ".join([_digest(kept), *wide])})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have cleared it
            if shutil.disk_usage(self.folder).free < len(data) + LEFT_FREE:
                raise UserError(f"less than {LEFT_FREE >> 20} MiB would be free")
            store.write_atomic(self._path(name), lambda file: file.write(data), durable=False)
        except (OSError, UserError) as error:
            self.full = True
            print(f"launch.features: {self.folder}: {error}; what is not kept is computed each time", file=sys.stderr)

    def has(self, name: str) -> bool:
        return self._path(name).exists()

    def _path(self, name: str) -> Path:
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:2] / f"{name}.safetensors"

    # Of training

    def read_view(self, index: int, view: int) -> View | None:
        """That view of the image with that index; None where it is not kept."""
        found = self.read(f"{index}-{view}")
        return View(found["image"], found["labels"], _levels(found)) if found else None

    def write_view(self, index: int, view: int, made: View) -> None:
        self.write(f"{index}-{view}", {"image": made.image, "labels": made.labels, **_named(made.features)})

    # Of evaluation

    def keeper(self, image: str, device: torch.device) -> Callable[[str, Callable[[], list[Tensor]]], list[Tensor]]:
        """Gives the features of a window of ``image``, each (1, C, h, w) on ``device``, by its name.

        Where they are not kept, it calls the function that it is given, and keeps what that returns.
        """

        def keep(window: str, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
            name = f"{image}-{window}"
            if (found := self.read(name)) is not None:
                return stacked([_levels(found)], device)
            features = compute()
            self.write(name, _named([level[0] for level in features]))
            return features

        return keep


def open_features(config: SweepConfig, facts: Facts, which: str, dataset: Dataset) -> KeptFeatures | None:
    """The set for a split (``train`` or ``val``), in ``launch.features``; None where nothing is to be kept of it.

    What decides its numbers is in its name: the images, the encoder, its device and torch's version, and how an image
    is looked at; not the decoders, seeds or steps.
    """
    if config.launch.features is None or (which == "train" and config.recipe.views is None):
        return None
    if which == "train":
        looks = config.recipe.model_dump(include=set(VIEW)) | {"precision": config.trainer.precision}
    else:
        looks = config.evaluation.model_dump(exclude={"every", "label_size"})
    encoder = config.encoder.model_dump(exclude={"weights", "params", "lr_factor", "trainable"})
    own = [facts.encoder.class_name, facts.encoder.params, facts.encoder.source] if facts.encoder else []
    cpu = torch.backends.cpu.get_cpu_capability() if facts.accelerator == "cpu" else ""
    parts = [looks, encoder, own, facts.encoder_hash, facts.accelerator, cpu, torch.__version__, store.RESULT_VERSION]
    key = digest_of(dataset, json.dumps([parts, config.data.params, facts.data], sort_keys=True, default=str))
    return KeptFeatures(Path(config.launch.features) / f"{which}-{key}", getattr(torch, config.encoder.dtype))


def described(config: SweepConfig, which: str, encoder: Encoder, features_hash: str) -> dict[str, Any]:
    """What `KeptFeatures.describe` is to say."""
    looks = {"views": config.recipe.views, "crop": config.recipe.crop} if which == "train" else {}
    return {
        "encoder": config.encoder.title,
        "data": config.data.name,
        "split": config.data.train_split if which == "train" else config.data.val_split,
        "dtype": config.encoder.dtype,
        **looks,
        "weights_hash": encoder.weights_hash,
        "features_hash": features_hash,
        "channels": encoder.channels,
        "strides": encoder.strides,
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
    }


def stacked(samples: Sequence[Sequence[Tensor]], device: torch.device) -> list[Tensor]:
    """Levels (C, h, w) of B samples to levels (B, C, h, w) on ``device``, in channels-last order on a CPU."""
    levels = [torch.stack([sample[i].movedim(0, -1) for sample in samples]) for i in range(len(samples[0]))]
    moved = [level.to(device).movedim(-1, 1) for level in levels]
    return moved if device.type == "cpu" else [level.contiguous() for level in moved]


def _named(features: Sequence[Tensor]) -> dict[str, Tensor]:
    """Kept as (h, w, C), in which order a CPU's decoders take them."""
    return {f"level{i}": level.movedim(0, -1) for i, level in enumerate(features)}


def _levels(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    return [tensors[f"level{i}"].movedim(-1, 0) for i in range(sum(key.startswith("level") for key in tensors))]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class FeatureSet(NamedTuple):
    """What lies in a folder of features: one encoder's of one split."""

    folder: Path
    about: dict[str, Any]
    files: int
    size: int  # bytes


def feature_sets(folder: Path) -> Iterator[FeatureSet]:
    """What ``launch.features`` has been given to fill, by name.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    for place in sorted(folder.glob(f"*/{ABOUT}")):
        about = store.read_json(place)
        sizes = [path.stat().st_size for path in place.parent.glob("*/*.safetensors")]
        yield FeatureSet(place.parent, about if isinstance(about, dict) else {}, len(sizes), sum(sizes))


def clear(found: FeatureSet) -> None:
    """Remove a set; a sweep that uses it goes on and keeps what it computes from now on."""
    away = found.folder.with_name(f".cleared-{found.folder.name}-{os.getpid()}")
    found.folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)
