"""What an encoder plug-in is, and `Encoder`, which freezes one and makes it ready for a cohort."""

import hashlib
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from segbench.errors import UserError, brief


class Plugin(Protocol):
    """What a class plugged in as an encoder has, beside being an ``nn.Module`` with parameters.

    Its constructor takes its parameters, set under ``encoder.params``, as keyword arguments, and loads its own weights
    or leaves random ones: torch's, NumPy's and Python's random numbers start from the same seed at each construction.
    It may have ``mean`` and ``std`` too, of RGB in 0 to 1, with which images are normalised; ImageNet's by default.

    Attributes:
        channels: of each level of features, fine to coarse.
        strides: image pixels per feature pixel of each level, never decreasing.
    """

    channels: Sequence[int]
    strides: Sequence[int]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features, fine to coarse: ``(B, channels[i], H/strides[i], W/strides[i])``.

        The same for the same image once in eval mode, in which a frozen encoder stays.

        Args:
            image: ``(B, 3, H, W)``, normalised, H and W multiples of the largest stride; not to be changed in place.
        """
        ...


class Level(NamedTuple):
    """One of the features of a network: its place among them, image pixels per feature pixel, and channels."""

    place: int
    stride: int
    channels: int


@dataclass(frozen=True)
class Network:
    """A network as it was built or loaded, before an `Encoder` takes some or all of its levels.

    Attributes:
        body: image to features.
        levels: fine to coarse; of one stride, as a plain ViT's, the deeper later.
        stats: mean and std of the images that it was trained on, RGB in 0 to 1.
        channels_last: whether its features are (B, H, W, C).
    """

    body: nn.Module
    levels: Sequence[Level]
    stats: tuple[Any, Any]
    channels_last: bool = False


class ConvolvedLinear(nn.Linear):
    """A linear layer, which a CPU computes as a 1x1 convolution: by oneDNN, where torch takes MKL for linear layers.

    On AMD's processors that takes half the time (docs/performance.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not input.numel() or not torch.backends.mkldnn.is_available():
            return super().forward(input)
        rows = input.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # in channels-last order
        out = F.conv2d(rows, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)


class Encoder(nn.Module):
    """Image to a feature pyramid, frozen unless ``trainable``.

    Frozen means: no gradient, eval mode whatever ``train()`` is called, forward under ``no_grad``. (SMP's
    ``freeze_encoder`` leaves dropout and drop-path on.)

    Attributes:
        channels, strides: of each level, fine to coarse.
        weights_hash: of the weights as loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        levels: Sequence[Level],
        stats: tuple[Any, Any],
        trainable: bool = False,
        channels_last: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """``body``, ``levels``, ``stats`` and ``channels_last`` as in `Network`; of the levels those that are used.

        ``dtype``: to which float32 features are rounded; they stay float32.
        """
        super().__init__()
        self.body, self.trainable = body, trainable
        self.strides = tuple(level.stride for level in levels)
        self.channels = tuple(level.channels for level in levels)
        self._indices = [level.place for level in levels]
        self._channels_last, self._dtype = channels_last, dtype
        self.register_buffer("mean", torch.tensor(stats[0]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stats[1]).view(1, 3, 1, 1), persistent=False)
        self.weights_hash = hash_tensors(body.state_dict())
        self.requires_grad_(trainable)
        self.train(False)
        for part in [] if trainable else body.modules():
            if type(part) is nn.Linear:
                part.__class__ = ConvolvedLinear

    def train(self, mode: bool = True) -> "Encoder":
        return super().train(mode and self.trainable)

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to floats as the encoder was trained on.

        In channels-last order on a CPU, which encoder and decoders then keep to: convolutions are faster so.
        """
        image = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        return image.contiguous(memory_format=torch.channels_last) if image.device.type == "cpu" else image

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` normalised, H and W multiples of the largest stride -> features, fine to coarse."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            features = self.body(image)
        chosen = [features[i] for i in self._indices]
        chosen = [f.permute(0, 3, 1, 2) for f in chosen] if self._channels_last else chosen
        order = torch.channels_last if image.device.type == "cpu" else torch.contiguous_format  # see `normalise`
        return [self._rounded(f).contiguous(memory_format=order) for f in chosen]

    def each(self, image: Tensor) -> list[Tensor]:
        """As `forward`, but that an image's features depend, on a CPU, on nothing but the image, to the last bit.

        Which other images are in its batch, and how many, changes the order in which a convolution adds up.
        """
        if image.device.type != "cpu":
            return self(image)
        return [torch.cat(level) for level in zip(*(self(one) for one in image.split(1)), strict=True)]

    def _rounded(self, features: Tensor) -> Tensor:
        return features.to(self._dtype).float() if features.dtype == torch.float32 else features

    def features_hash(self) -> str:
        """Hash of the features of one fixed image, on its device: the mean magnitude of each level to three digits.

        So coarse that another processor or torch version gives the same, and other weights, another preprocessing or a
        layer left in training mode do not.
        """
        height, width = 2 * max(self.strides), 3 * max(self.strides)
        x = torch.arange(3 * height * width, dtype=torch.float64).mul(0.37).sin().add(1).mul(127)
        x = x.view(1, 3, height, width)
        with torch.no_grad():
            levels = self(self.normalise(x.to(torch.uint8).to(self.mean.device)))
        summary = " ".join(f"{float(f.double().abs().mean()):.2e}" for f in levels)
        return hashlib.sha256(summary.encode()).hexdigest()[:16]


class KnownEncoder(Encoder):
    """A frozen encoder of which all is known but its weights; these are loaded when features are asked of it.

    Args:
        about: ``channels``, ``strides``, ``mean``, ``std``, ``weights_hash`` and ``features_hash`` of it.
        load: builds it.
    """

    def __init__(self, about: Mapping[str, Any], load: Callable[[], Encoder]) -> None:
        nn.Module.__init__(self)
        self.trainable = False
        self.channels, self.strides = tuple(about["channels"]), tuple(about["strides"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(about[name]).view(1, 3, 1, 1), persistent=False)
        self.weights_hash, self._features_hash = about["weights_hash"], about["features_hash"]
        self._load, self._loaded = load, list[Encoder]()

    @property
    def loaded(self) -> bool:
        return bool(self._loaded)

    def forward(self, image: Tensor) -> list[Tensor]:
        if not self._loaded:
            encoder = self._load()
            if encoder.weights_hash != self.weights_hash:
                raise UserError("the encoder's weights changed since its features were kept; run the sweep again")
            self._loaded.append(encoder.to(image.device))
        return self._loaded[0](image)

    def features_hash(self) -> str:
        return str(self._features_hash)


def describe_plugin(body: nn.Module, who: str) -> Network:
    """A plug-in's levels and statistics, as it states them.

    Args:
        who: names it in errors.

    Raises:
        UserError: it states no channels and strides, or impossible ones.
    """
    said = {name: _positive_integers(getattr(body, name, None)) for name in ("channels", "strides")}
    for name, values in said.items():
        if values is None:
            found = f"not {getattr(body, name)!r}" if hasattr(body, name) else "and has none"
            raise UserError(f"{who} should say its {name} as a tuple of integers from 1, fine to coarse, {found}")
    channels, strides = said["channels"] or (), said["strides"] or ()
    if len(channels) != len(strides) or any(a > b for a, b in pairwise(strides)):
        raise UserError(
            f"{who} says channels {channels} and strides {strides}; wanted as many of both, strides from fine to coarse"
        )
    stats = (getattr(body, "mean", IMAGENET_DEFAULT_MEAN), getattr(body, "std", IMAGENET_DEFAULT_STD))
    try:
        mean, std = (torch.as_tensor(values, dtype=torch.float32).flatten().tolist() for values in stats)
    except (RuntimeError, TypeError, ValueError):
        mean, std = [], []
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(
            f"{who}: mean and std should be three numbers each, std above 0, not {stats[0]!r}, {stats[1]!r}"
        )
    levels = [Level(i, *level) for i, level in enumerate(zip(strides, channels, strict=True))]
    return Network(body, levels, (mean, std))


def _positive_integers(values: Any) -> tuple[int, ...] | None:
    try:
        found = tuple(index(value) for value in values)
    except TypeError:
        return None
    return found if found and min(found) >= 1 else None


@torch.no_grad()
def check_plugin(encoder: Encoder, network: Network, who: str) -> None:
    """Hold a plug-in to what it says and to the contract, by real images through it.

    Args:
        encoder: of ``network``, with the levels that are used.
        who: names it in errors.

    Raises:
        UserError: it raises, returns no list of such features, changes the image in place, or is random in eval mode.
    """
    if any(module.training for module in encoder.modules()):
        raise UserError(f"{who} stays in training mode after .eval(); does it override train()?")
    levels = [(level.stride, level.channels) for level in network.levels]
    largest, used = levels[-1][0], encoder.strides[-1]
    features = _features(network.body, levels, largest, who)
    if used < largest:  # images are then padded to multiples of less
        few = f"{who} without its levels from stride {min(s for s, _ in levels if s > used)} on (encoder.strides)"
        _features(encoder, list(zip(encoder.strides, encoder.channels, strict=True)), used, few)
    again = _features(network.body, levels, largest, who)
    if not all(torch.equal(a, b) for a, b in zip(features, again, strict=True)):
        raise UserError(f"{who} gives other features for the same image in eval mode; is dropout always on in it?")


def _features(body: nn.Module, levels: Sequence[tuple[int, int]], multiple: int, who: str) -> list[Tensor]:
    """Of two fixed images whose sides are multiples of ``multiple``, checked; ``levels``: (stride, channels)."""
    height, width = 2 * multiple, 3 * multiple
    image = torch.linspace(-2, 2, 2 * 3 * height * width).view(2, 3, height, width)
    try:
        features = body(image)
    except Exception as error:  # a plug-in can raise anything
        raise UserError(f"{who} fails on images of {height}x{width}: {brief(error)}") from error
    if image._version:
        raise UserError(f"{who} changes the image in place, which decoders use too")
    wanted = [(2, c, height // s, width // s) for s, c in levels]
    if not isinstance(features, list | tuple) or not all(isinstance(f, Tensor) for f in features):
        raise UserError(f"{who} returns {_type_of(features)}; wanted a list of {len(wanted)} features")
    found = [tuple(f.shape) for f in features]
    if found != wanted:
        raise UserError(
            f"{who} says channels {tuple(c for _, c in levels)} and strides {tuple(s for s, _ in levels)}, but returns "
            f"{found} for images of {height}x{width}; wanted {wanted}"
        )
    if not all(f.is_floating_point() and f.isfinite().all() for f in features):
        raise UserError(f"{who} returns features that are no finite floats")
    return list(features)


def _type_of(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {', '.join(dict.fromkeys(type(v).__name__ for v in value))}"
    return type(value).__name__


def load_weights(body: nn.Module, path: Path, name: str) -> None:
    """Load a file of named tensors into the network of encoder ``name``; what else the file holds is left.

    Raises:
        UserError: no such file, one that cannot be read, or one that lacks a tensor of the network.
    """
    if not path.is_file():
        raise UserError(
            f"encoder.weights: no file {path}; allowed are imagenet, none, or a file (.safetensors, .pt, .pth)"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of how it was pickled, whatever comes of it
            safe = path.suffix == ".safetensors"
            tensors: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # whose message says how to run what is in it
        raise UserError(f"encoder.weights: {path} holds something else than tensors; it is not read") from None
    except Exception as error:  # a file that is no weights fails in as many ways as there are files
        raise UserError(f"encoder.weights: {path} cannot be read: {brief(error)}") from None
    if not isinstance(tensors, Mapping):
        raise UserError(f"encoder.weights: {path} holds {type(tensors).__name__}, not a mapping of names to tensors")
    own = body.state_dict()
    # What takes features out of a network may hold it as its ``model``, under whose own names files are common.
    names = {k: k if k in tensors else k.removeprefix("model.") for k in own}
    missing = [k for k, v in own.items() if getattr(tensors.get(names[k]), "shape", None) != v.shape]
    if missing:
        missing.sort(key=lambda k: "pos_embed" in k)  # whose size follows from that of the patch
        found = getattr(tensors.get(names[missing[0]]), "shape", None)
        first = f"is {tuple(found)}, wanted {tuple(own[missing[0]].shape)}" if found is not None else "is missing"
        raise UserError(
            f"encoder.weights: {path} does not fit '{name}': {len(missing)} of {len(own)} tensors are missing "
            f"or of another shape; '{names[missing[0]]}' {first}"
        )
    body.load_state_dict({k: tensors[names[k]] for k in own})


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
