"""A frozen encoder's features, computed once and kept in files that decoders, seeds and sweeps of a machine share."""

import contextlib
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from segbench import store
from segbench.config import SweepConfig
from segbench.data.base import Dataset, file_status, is_folder
from segbench.encoders.base import Encoder
from segbench.errors import UserError
from segbench.loading.cache import LEFT_FREE, digest_of
from segbench.machine import cpu_name, versions
from segbench.runs import Facts
from segbench.tasks import make_task

ABOUT = "about.json"
OURS = "??/*.safetensors"  # in a set's folder
LIBRARIES = ("torch", "timm", "segmentation_models_pytorch", "albumentations", "cv2", "numpy")  # behind the numbers
CHECK = "sha256, and what was float32"  # of a file's metadata, in one entry: several come in any order
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
    full: bool = False  # or cannot be written for another reason
    _checked: set[str] = field(default_factory=set)

    @property
    def about(self) -> dict[str, Any] | None:
        """What `prepare` wrote; None where it has not been called, or its file cannot be read."""
        try:
            found = store.read_json(self.folder / ABOUT)
        except UserError:
            return None
        return found if isinstance(found, dict) else None

    def prepare(self, about: Mapping[str, Any]) -> None:
        """Make the folder, say in it what the set is, for cohorts without an encoder, and remove half-written files."""
        try:
            if self.about is None and self._has_room(0):
                store.write_json(self.folder / ABOUT, dict(about))
        except (OSError, UserError) as error:
            self._stop(error)
        for part in self.folder.glob("*/.*.tmp"):
            with contextlib.suppress(OSError):  # its writer has just finished it
                if time.time() - part.stat().st_mtime > STALE_S:
                    part.unlink()

    def read(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of that name as they were given to `write`, on the CPU; None where they are not kept."""
        path = self._path(name)
        try:
            with safe_open(path, "pt") as file:
                check, _, wide = (file.metadata() or {}).get(CHECK, "").partition(" ")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            whole = name in self._checked or check == _digest(tensors)
        except OSError:  # there is no such file, or too many are open
            return None
        except SafetensorError:
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
            if self._has_room(len(data)):
                store.write_atomic(self._path(name), lambda file: file.write(data), durable=False)
        except (OSError, UserError) as error:
            self._stop(error)

    def _has_room(self, size: int) -> bool:
        """Make the folder, which somebody may have cleared; whether so many bytes more may be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free < size + LEFT_FREE:
            self._stop(UserError(f"less than {LEFT_FREE >> 20} MiB would be free"))
        return not self.full

    def _stop(self, error: OSError | UserError) -> None:
        self.full = True
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        print(f"launch.features: {self.folder}: {why}; what is not kept is computed each time", file=sys.stderr)

    def _path(self, name: str) -> Path:
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:2] / f"{name}.safetensors"

    # Of training

    def read_view(self, index: int, view: int) -> View | None:
        """That view of the image with that index; None where it is not kept."""
        found = self.read(f"{index}-{view}")
        return View(found["image"], found["labels"], _levels(found)) if found else None

    def write_view(self, index: int, view: int, made: View) -> None:
        self.write(f"{index}-{view}", {"image": made.image, "labels": made.labels, **_named(made.features)})

    def missing(self, views: Iterable[tuple[int, int]]) -> int:
        """How many of these views, each (index, view), are not kept."""
        return sum(not self._path(f"{index}-{view}").exists() for index, view in views)

    # Of evaluation

    def keeper(self, image: str, device: torch.device) -> Callable[[str, Callable[[], list[Tensor]]], list[Tensor]]:
        """Gives the features of a window of ``image``, each (1, C, h, w) on ``device``, by its name.

        Where they are not kept, it calls the function that it is given, and keeps what that returns.
        """

        def keep(window: str, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
            name = f"{image}-{window}"
            if (found := self.read(name)) is not None:
                return channels_first(stacked([_levels(found)]), device)
            features = compute()
            self.write(name, _named([level[0] for level in features]))
            return features

        return keep


def open_features(config: SweepConfig, facts: Facts, which: str, dataset: Dataset) -> KeptFeatures | None:
    """The set for a split (``train`` or ``val``), in ``launch.features``; None where nothing is to be kept of it.

    What decides its numbers is in its name: the images, the encoder, its device, this process's threads on a CPU, the
    libraries' versions, and how an image is looked at; not the decoders, seeds or steps.
    """
    if config.launch.features is None or (which == "train" and config.recipe.views is None):
        return None
    if which == "train":
        looks = config.recipe.model_dump(include=set(VIEW)) | {"precision": config.trainer.precision}
    else:
        looks = config.evaluation.model_dump(exclude={"every", "label_size"})
    looks |= {"seen": sees} if (sees := make_task(config.task).sees) else {}
    encoder = config.encoder.model_dump(exclude={"weights", "params", "lr_factor", "trainable"})
    own = [facts.encoder.class_name, facts.encoder.params, facts.encoder.source] if facts.encoder else []
    device = [torch.cuda.get_device_name()] if facts.accelerator == "cuda" else [cpu_name(), torch.get_num_threads()]
    parts = [
        looks,
        encoder,
        own,
        facts.encoder_hash,
        facts.accelerator,
        device,
        versions(LIBRARIES),
        store.RESULT_VERSION,
    ]
    key = digest_of(dataset, json.dumps([parts, config.data.params, facts.data], sort_keys=True, default=str))
    return KeptFeatures(Path(config.launch.features) / f"{which}-{key}", getattr(torch, config.encoder.dtype))


def described(config: SweepConfig, which: str, encoder: Encoder, features_hash: str) -> dict[str, Any]:
    """What `KeptFeatures.describe` is to say."""
    looks = {"views": config.recipe.views, "crop": config.recipe.crop} if which == "train" else {}
    return {
        "encoder": config.encoder.title,
        "data": config.data.name,
        "split": config.data.split(which),
        "dtype": config.encoder.dtype,
        **looks,
        "weights_hash": encoder.weights_hash,
        "features_hash": features_hash,
        "channels": encoder.channels,
        "strides": encoder.strides,
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
    }


def stacked(samples: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Levels (C, h, w) of B samples to levels (B, h, w, C); of none, no levels."""
    return [torch.stack([level.movedim(0, -1) for level in levels]) for levels in zip(*samples, strict=True)]


def channels_first(levels: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Levels (B, h, w, C) to levels (B, C, h, w) on ``device``, which stay in channels-last order on a CPU."""
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
    """What lies in a folder of features: one encoder's of one split. ``about`` is empty where it was damaged."""

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
    for place in sorted(folder.iterdir()):
        if not re.fullmatch("(train|val)-[0-9a-f]{16}", place.name) or place.is_symlink() or not is_folder(place):
            continue
        statuses = [status for path in place.glob(OURS) if (status := file_status(path)) is not None]
        about = KeptFeatures(place, torch.float32).about or {}
        yield FeatureSet(place, about, len(statuses), sum(status.st_size for status in statuses))


def clear(found: FeatureSet) -> None:
    """Remove a set's files, and its folder where nothing else lies in it; a sweep that uses it computes them again.

    Raises:
        UserError: they cannot be removed.
    """
    try:
        for path in (found.folder / ABOUT, *found.folder.glob(OURS), *found.folder.glob("??/.*.safetensors.*.tmp")):
            path.unlink(missing_ok=True)
        for folder in (*found.folder.glob("??"), found.folder):
            with contextlib.suppress(OSError):  # it holds something else, or has come back
                folder.rmdir()
    except OSError as error:
        raise UserError(f"cannot clear {found.folder}: {error.strerror or error}") from None
