"""The encoders of segmentation_models_pytorch."""

from segmentation_models_pytorch import encoders
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from segbench.encoders.base import Level, Network


def names() -> list[str]:
    return list(encoders.encoders)


def has(name: str) -> bool:
    return name in encoders.encoders


def build(name: str, pretrained: bool) -> Network:
    """The encoder of that name, with random weights or ImageNet's.

    Raises:
        Exception: of a hub's client, which fails in its own way.
    """
    body = encoders.get_encoder(name, weights="imagenet" if pretrained else None)
    levels = [Level(i, 2**i, c) for i, c in enumerate(body.out_channels) if i > 0 and c > 0]
    return Network(body, levels, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
