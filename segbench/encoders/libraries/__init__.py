"""Encoders of SMP and timm, by the names that they have there, with weights from a package, a hub or nowhere."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from segbench.encoders.base import Network
from segbench.encoders.libraries import smp, timm
from segbench.encoders.libraries.packaged import PACKAGED, packaged_weights
from segbench.errors import UserError


def library_of(name: str) -> tuple[ModuleType, str] | None:
    """The module here that builds the encoder of that name, and its name there; None where no library has it.

    SMP's where both have it; ``tu-`` before a name means timm's, as it does in SMP.
    """
    plain = name.removeprefix("tu-")
    if plain == name and smp.has(name):
        return smp, name
    return (timm, plain) if timm.has(plain) else None


def load(library: ModuleType, name: str, params: Mapping[str, Any], imagenet: bool) -> Network:
    """The encoder of a library, with ImageNet weights or random ones.

    Args:
        params: of a plain ViT of timm; of others there are none.

    Raises:
        UserError: weights that cannot be had, or a model that gives no features.
    """
    network: Network = library.build(name, pretrained=False, **params)
    if imagenet and library is timm and name in PACKAGED:
        network.body.load_state_dict(packaged_weights(name, set(network.body.state_dict())))
        return network
    return _from_hub(library, name, params) if imagenet else network


def _from_hub(library: ModuleType, name: str, params: Mapping[str, Any]) -> Network:
    try:
        network: Network = library.build(name, pretrained=True, **params)
    except UserError:
        raise
    except Exception as error:  # each hub client fails in its own way
        offline = ", ".join([*PACKAGED, "vits14_imgfocus"])
        raise UserError(
            f"cannot get ImageNet weights of '{name}' from its hub ({type(error).__name__}); without a hub use one of "
            f"{offline}, or encoder.weights=FILE (.safetensors, .pt), or encoder.weights=none for random ones"
        ) from error
    return network
