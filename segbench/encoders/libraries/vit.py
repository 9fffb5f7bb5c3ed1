"""timm's plain vision transformers, whose blocks all give maps of one stride, the patch."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from segbench.errors import UserError, brief

Positions = Literal["bicubic", "bicubic_antialias"]


class PlainViT(nn.Module):
    """A plain ViT (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929) as an encoder: maps of some blocks.

    Takes images of any size in multiples of the patch. Class and register tokens are left out of the maps.

    Args:
        name: timm's name of the model.
        pretrained: with the weights of timm's hub.
        blocks: whose maps are the levels, counted from 0, or from the end by -1, -2, ...; each of the same stride.
        norm: whether maps go through the model's last normalisation, as probes of such models take them.
        positions: how a learned position embedding is brought to other sizes than its own: ``bicubic`` as DINOv2's
            models of the transformers library do, ``bicubic_antialias`` as timm does. It changes features by some
            percent. Models with rotary positions alone, such as DINOv3's, have none.

    Raises:
        ValueError: no plain ViT, a patch that is no square, a block that does not exist, or one that is named twice.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        *,
        blocks: Sequence[int] = (-1,),
        norm: bool = True,
        positions: Positions = "bicubic",
    ) -> None:
        super().__init__()
        if not is_plain_vit(name):
            raise ValueError(f"timm's '{name}' is no plain ViT")
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
        self.model = model
        self._grid = model.patch_embed.grid_size  # that the position embedding is for
        if model.pos_embed is None and positions != "bicubic":
            raise ValueError(f"'{name}' has no learned positions that could be resized; leave positions out")
        patch, depth = model.patch_embed.patch_size, len(model.blocks)
        if patch[0] != patch[1]:
            raise ValueError(f"timm's '{name}' has patches of {patch[0]}x{patch[1]}, which are no squares")
        if wrong := [block for block in blocks if not -depth <= block < depth]:
            raise ValueError(f"blocks: '{name}' has the blocks 0 to {depth - 1}, not {wrong[0]}")
        self.blocks = sorted(block % depth for block in blocks)
        if not blocks or len(set(self.blocks)) < len(blocks):
            raise ValueError(f"blocks should be one or more, each once, not {list(blocks)}")
        self.norm, self.antialias = norm, positions == "bicubic_antialias"
        self.channels: tuple[int, ...] = (int(model.embed_dim),) * len(blocks)
        self.strides: tuple[int, ...] = (int(patch[0]),) * len(blocks)
        self.mean, self.std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to maps ``(B, C, H/patch, W/patch)`` of the blocks, the shallowest first."""
        model: Any = self.model
        embed, resized = model.patch_embed, {}
        if model.pos_embed is not None:
            grid = embed.dynamic_feat_size(image.shape[-2:])
            resized["model.pos_embed"] = resample_abs_pos_embed(
                model.pos_embed,
                new_size=list(grid),
                old_size=list(self._grid),
                num_prefix_tokens=0 if model.no_embed_class else model.num_prefix_tokens,
                antialias=self.antialias,
            )
            embed.grid_size = grid  # it then fits, and timm does not resize it by its own rule
        asked = {"indices": self.blocks, "norm": self.norm, "stop_early": True, "intermediates_only": True}
        maps: list[Tensor] = torch.func.functional_call(_Intermediates(model), resized, (image,), asked)
        return maps


class _Intermediates(nn.Module):
    """A model whose ``forward`` is its ``forward_intermediates``, for `torch.func.functional_call`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, **asked: Any) -> Any:
        return self.model.forward_intermediates(image, **asked)


@functools.cache
def is_plain_vit(name: str) -> bool:
    """Whether timm's model of that name is one whose blocks can be chosen, on patches that do not overlap.

    Raises:
        UserError: timm cannot build it, as with a tag after its name that it does not know.
    """
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name)
    except Exception as error:  # each model in its own way
        raise UserError(f"encoder '{name}': timm cannot build it: {brief(error)}") from None
    return isinstance(model, VisionTransformer | Eva) and type(model.patch_embed) is PatchEmbed
