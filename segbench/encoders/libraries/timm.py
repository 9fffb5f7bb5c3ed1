"""timm's models: any that gives features for images of any size."""

from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from segbench.encoders.base import Level, Network
from segbench.encoders.libraries.vit import PlainViT, is_plain_vit
from segbench.errors import UserError


def names() -> list[str]:
    return list(timm.list_models())


def has(name: str) -> bool:
    """Whether timm knows ``name``, with or without a tag of its weights after a dot."""
    return bool(timm.is_model(name.partition(".")[0]))


def build(name: str, pretrained: bool, **params: Any) -> Network:
    """The model of that name, with random weights or those of timm's hub.

    Args:
        params: of a plain ViT, see `segbench.encoders.libraries.vit.PlainViT`.

    Raises:
        UserError: it gives no features for images of any size, or a parameter does not fit it.
        Exception: of a hub's client, which fails in its own way.
    """
    if is_plain_vit(name):
        try:
            vit = PlainViT(name, pretrained, **params)
        except ValueError as error:
            raise UserError(f"encoder '{name}': {error}") from error
        levels = [Level(i, *level) for i, level in enumerate(zip(vit.strides, vit.channels, strict=True))]
        return Network(vit, levels, (vit.mean, vit.std))
    body = _any_size(name, pretrained)
    info: Any = body.feature_info
    # Of levels of one stride the last, which is the deepest.
    last = {s: Level(i, s, c) for i, (s, c) in enumerate(zip(info.reduction(), info.channels(), strict=True))}
    levels = [last[s] for s in sorted(last)]
    cfg = timm.get_pretrained_cfg(name)
    stats = (cfg.mean, cfg.std) if cfg else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return Network(body, levels, stats, str(getattr(body, "output_fmt", "")).endswith("NHWC"))


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
