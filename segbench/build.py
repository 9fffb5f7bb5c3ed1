"""A decoder as a sweep builds it: its parameters, and initial weights that are the same wherever decoders are alike."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from segbench.config import DecoderConfig
from segbench.decoders.base import Decoder
from segbench.encoders.base import hash_tensors
from segbench.errors import UserError, located
from segbench.registry import DECODERS, fit_params, row_kind, source_hash
from segbench.registry import parameters as parameters_of
from segbench.upsamplers.base import check_declared, starts_as


def derived_seed(*parts: object) -> int:
    """A seed of 63 bits that is a function of ``parts``: randomness is a function here, not a state."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


@functools.cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def seed_torch(number: int) -> None:
    """As ``torch.manual_seed``, which takes 0.3 ms where there is no GPU: it keeps the stack, for one that may come."""
    if _has_accelerator():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


@dataclass(frozen=True)
class Blueprint:
    """What a name in ``decoders:`` stands for: an upsampler on a skeleton, or a decoder of its own.

    Attributes:
        who: what errors call it, such as ``upsampler 'deconv'``.
        classes: the upsampler's and the skeleton's, or the decoder's own.
        params: the values of all their parameters.
        make: the decoder's class with all bound but what `build` is given.
    """

    who: str
    classes: tuple[type[nn.Module], ...]
    params: dict[str, Any]
    make: Callable[..., Decoder]

    @property
    def class_name(self) -> str:
        return " on ".join(cls.__name__ for cls in self.classes)

    @property
    def source(self) -> str:
        """Hash of the source of its classes, as it lies on the disk now."""
        return hashlib.sha256(" ".join(map(source_hash, self.classes)).encode()).hexdigest()

    @property
    def plugged_in(self) -> bool:
        return not all(cls.__module__.startswith("segbench.") for cls in self.classes)

    def build(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, seed: int) -> Decoder:
        """The decoder with the initial weights of that seed.

        What it has in common with others (`Decoder.skeleton`) is drawn layer by layer from (seed, "skeleton", name of
        the layer): it is bit-equal in all decoders that have a layer of that name and shape, whatever their class,
        label or upsampler. All else, the upsampler's own weights, is drawn from (seed, "upsampler").

        Args:
            channels, strides: of the encoder's features, fine to coarse.

        Raises:
            UserError: a constructor raises, ``starts_as`` is no known word, or a skeleton names nothing in common.
        """
        seed_torch(derived_seed(seed, "upsampler"))
        try:
            decoder = self.make(channels, strides, num_classes)
        except Exception as error:  # a plug-in can raise anything
            raise UserError(f"{self.who} cannot be built: {located(error)}{_hint(error)}") from error
        if not isinstance(decoder, nn.Module):
            raise UserError(f"{self.who} gives {type(decoder).__name__}, which is no torch.nn.Module")
        if lost := unregistered(decoder):
            raise UserError(f"{self.who}: {lost[0]}")
        parts = decoder.skeleton()
        if len(self.classes) > 1 and not parts:
            name = self.classes[-1].__name__
            raise UserError(f"skeleton {name} names no part in skeleton(), to start equal with others")
        for part, top in parts.items():
            for name, layer in top.named_modules(prefix=part):
                if callable(reset := getattr(layer, "reset_parameters", None)):
                    seed_torch(derived_seed(seed, "skeleton", name))
                    reset()
        try:
            for step in decoder.upsampling():
                starts_as(step.module)
        except ValueError as error:
            raise UserError(f"{self.who}: {error}") from None
        return decoder


def look_up(
    config: DecoderConfig, defaults: Mapping[str, Any] = MappingProxyType({}), skeleton: str = "pyramid"
) -> Blueprint:
    """The classes that a name stands for, and every parameter's value: its own, the sweep's default, the constructor's.

    Args:
        defaults: parameters of the sweep, for every decoder that takes them.
        skeleton: the decoder class that an upsampler stands in, by name.

    Raises:
        UserError: a class cannot be loaded or is of no use here, or a parameter does not fit it.
    """
    kind = row_kind(config.name)
    cls: Any = kind.load(config.name)
    who = f"{kind.label} '{config.name}'"
    own = parameters_of(cls, kind.given)
    if kind is DECODERS:
        if "upsampler" in own:
            raise UserError(f"{config.name} is a skeleton: name an upsampler, or set skeleton: {config.name}")
        params = fit_params(who, own, {k: v for k, v in defaults.items() if k in own} | config.params)
        return Blueprint(who, (cls,), params, functools.partial(cls, **params))
    try:
        frame: Any = DECODERS.load(skeleton)
    except UserError as error:
        raise UserError(f"skeleton: {error}") from error
    known = parameters_of(frame, DECODERS.given)
    if known.pop("upsampler", None) is None:
        raise UserError(f"skeleton: decoder '{skeleton}' takes no upsampler: its constructor has no such argument")
    if lacks := sorted(kind.given - parameters_of(cls, frozenset()).keys()):
        raise UserError(
            f"{who}: its constructor lacks {', '.join(lacks)}; it should be __init__(self, channels, scale, "
            "guide_channels), with parameters of its own behind"
        )
    try:
        check_declared(cls)
    except ValueError as error:
        raise UserError(f"{who}: {error}") from None
    if both := own.keys() & known.keys():
        raise UserError(f"{who} and the skeleton '{skeleton}' both have a parameter '{min(both)}'; rename one")
    takes = own | known
    params = fit_params(who, takes, {k: v for k, v in defaults.items() if k in takes} | config.params)
    upsampler = functools.partial(cls, **{k: params[k] for k in own})
    make = functools.partial(frame, upsampler=upsampler, **{k: params[k] for k in known})
    return Blueprint(who, (cls, frame), params, make)


def _hint(error: Exception) -> str:
    """What to do where a constructor fails in a way that many do."""
    if "before Module.__init__() call" in str(error):
        return "; call super().__init__() first in its constructor"
    if isinstance(error, AttributeError):
        return "; its constructor should set what it uses before it uses it"
    return ""


def unregistered(module: nn.Module, tensors: bool = False) -> list[str]:
    """What PyTorch does not know of, and so neither trains nor saves: layers and parameters in plain attributes.

    Args:
        tensors: tensors of more than one element too, which do not go to the GPU with the rest.

    Returns:
        A line for each: where it is, and what to do.
    """
    known = {id(part) for part in module.modules()} | {id(t) for t in (*module.parameters(), *module.buffers())}
    found = []

    def look(value: Any, where: str, depth: int = 3) -> None:
        if isinstance(value, nn.Module | nn.Parameter):
            if id(value) not in known:
                what, use = ("layer", "ModuleList") if isinstance(value, nn.Module) else ("parameter", "ParameterList")
                found.append(f"{where} is a {what} that is not registered, so that it is never trained; use nn.{use}")
        elif isinstance(value, Tensor):
            if tensors and value.numel() > 1 and id(value) not in known:
                found.append(f"{where} is a tensor that is not registered; use self.register_buffer")
        elif isinstance(value, list | tuple | set | dict) and depth:
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                look(inner, f"{where}[{key!r}]", depth - 1)

    for part in module.modules():
        for attribute, value in vars(part).items():
            if attribute not in ("_parameters", "_buffers", "_modules"):
                look(value, f"{type(part).__name__}.{attribute}")
    return found


def skeleton_hash(decoder: Decoder) -> str | None:
    """Hash of the weights that it has in common with others; None for a decoder that has nothing in common."""
    tensors = {k: t for part, top in decoder.skeleton().items() for k, t in top.state_dict(prefix=f"{part}.").items()}
    return hash_tensors(tensors) if tensors else None
