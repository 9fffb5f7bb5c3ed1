"""What can be set, in plain words, from the classes themselves: a sweep file's keys and a plug-in's parameters.

Imports no torch but for plug-ins that do.
"""

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel

from segbench import registry
from segbench.config import DataConfig, PluginConfig, SweepConfig
from segbench.errors import unknown
from segbench.registry import Kind, in_yaml

WORDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    dict: "keys with values",
}
EVERY = (
    registry.UPSAMPLERS, registry.DECODERS, registry.MEASURES, registry.DATASETS, registry.LAUNCHERS, registry.ENCODERS,
    registry.TASKS,
)  # fmt: skip
SET_UNDER = {  # where a kind's parameters stand in a sweep file
    "upsampler": "decoders: [{name: NAME, params: {...}}], or decoder_defaults",
    "decoder": "decoders: [{name: NAME, params: {...}}], or decoder_defaults; of the skeleton too",
    "measure": "measures: [{name: NAME, params: {...}}]",
    "data set": "data, beside its name",
    "launcher": "launch.params",
    "encoder": "encoder.params",
    "task": "task: {name: NAME, params: {...}}",
}


def keys(section: str = "") -> Iterator[str]:
    """Lines on every key of a sweep file, or of one of its sections: its default, what it takes, what it means.

    Raises:
        UserError: no such key.
    """
    found = dict(_fields(SweepConfig))
    if section and section not in found and not any(key.startswith(f"{section}.") for key in found):
        raise unknown("key", section, {key.partition(".")[0] for key in found} if "." not in section else found)
    for key, (default, taken, meaning) in found.items():
        if not section or f"{key}.".startswith(f"{section}."):
            yield f"{key}{default}"
            yield f"    {taken}{meaning and f': {meaning}'}"


def _fields(
    model: type[BaseModel], within: str = "", preset: BaseModel | None = None
) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Dotted key -> its default, in ``preset`` where that is given, what it takes and what it means."""
    for name, field in model.model_fields.items():
        key, section = f"{within}{name}", _model(field.annotation)
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        value, required = (value, field.is_required()) if preset is None else (getattr(preset, name), False)
        if section is not None and not (issubclass(section, PluginConfig) and within):
            yield from _fields(section, f"{key}.", value if isinstance(value, BaseModel) else None)
            continue
        default = in_yaml(_plain(value))
        bounds, meaning = _bounds(field.metadata), field.description or ""
        taken = f"{in_words(field.annotation)}{bounds and f' {bounds}'}"
        yield key, ("  (required)" if required else f" = {default}", taken, meaning)
    if issubclass(model, DataConfig):
        yield f"{within}*", ("", "any other key", "a parameter of that data set; `segbench show NAME` has them")


def _model(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, if it holds one or none."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        annotation = kinds[0] if len(kinds) == 1 else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def in_words(annotation: Any) -> str:
    """A type as a reader of a sweep file needs it, such as ``whole number above 0, or null``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [m for a in args[1:] for m in getattr(a, "metadata", [a])]
        return f"{in_words(args[0])} {_bounds(inner)}".strip()
    if origin in (Union, types.UnionType):
        words = [in_words(a) for a in args if a is not type(None)]
        return " or ".join(words) + (", or null" if type(None) in args else "")
    if origin is Literal:
        return " | ".join(in_yaml(a) if not isinstance(a, str) else a for a in args)
    if origin is tuple:
        words = [in_words(a) for a in args]
        return f"{len(words)} of: {words[0]}" if len(set(words)) == 1 else f"[{', '.join(words)}]"
    if origin in (list, set):
        return f"list of: {in_words(args[0])}"
    if _model(annotation):
        return "a name, or {name: NAME, params: {...}}"
    return WORDS.get(origin or annotation, "keys with values" if origin is dict else "a value")


def _bounds(metadata: Any) -> str:
    said = []
    for m in metadata:
        for kind, words in (("gt", "above"), ("ge", "from"), ("lt", "below"), ("le", "up to")):
            if isinstance(m, annotated_types.BaseMetadata) and (limit := getattr(m, kind, None)) is not None:
                said.append(f"{words} {limit:,}")
    return ", ".join(said)


def describe(name: str) -> Iterator[str]:
    """Lines on a plug-in: its kind, what it is, where it is, its parameters with type, default and meaning; of an
    upsampler also what `segbench.show.show` says.

    Raises:
        UserError: it cannot be found or loaded.
    """
    for kind in _kinds(name):
        cls = kind.load(name)
        yield f"{kind.label} {name}  ({inspect.getsourcefile(cls)})"
        yield from (f"  {line}".rstrip() for line in about(cls).splitlines())
        params = list(parameters(kind, cls))
        yield f"  parameters, set under {SET_UNDER[kind.label]}" if params else "  no parameters"
        for parameter, default, taken, meaning in params:
            yield f"    {parameter}{default}"
            yield f"        {taken}{meaning and f': {meaning}'}"
        if kind is registry.UPSAMPLERS:
            from segbench.show import show  # imports torch, as such a class has

            yield from show(cls)


def about(cls: type[Any]) -> str:
    """What its docstring says but for arguments, attributes and errors."""
    return re.split(r"\n\n(?=Args:|Attributes:|Raises:)", inspect.cleandoc(cls.__doc__ or ""))[0]


def parameters(kind: Kind, cls: type[Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name, default, what it takes and what it means, of each parameter that a sweep may set."""
    meanings = _meanings(inspect.cleandoc(cls.__doc__ or ""))
    for name, (annotation, default) in registry.parameters(cls, kind.given | {"upsampler"}).items():
        said = "  (required)" if default is ... else f" = {in_yaml(_plain(default))}"
        yield name, said, in_words(annotation), meanings.get(name, "")


def _kinds(name: str) -> list[Kind]:
    if ":" not in name:
        found = [kind for kind in EVERY if name in kind.builtin() or name in kind.announced()]
        if not found:
            raise unknown("plug-in", name, {n for kind in EVERY for n in (*kind.builtin(), *kind.announced())})
        return found
    cls = replace(registry.UPSAMPLERS, label="plug-in", base="builtins:object").load(name)
    held = [kind for kind in EVERY if kind.holds(cls) and kind.base != "torch.nn:Module"]
    modules = [registry.UPSAMPLERS if registry.UPSAMPLERS.fits(cls) else registry.ENCODERS]
    return held or modules


def _meanings(doc: str) -> dict[str, str]:
    """Parameter -> what a docstring's section ``Args`` says of it."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", doc, re.MULTILINE)
    found: dict[str, str] = {}
    for item in re.split(r"\n(?= {4}\S)", section[1] if section else ""):
        names, _, meaning = item.strip().partition(": ")
        found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found
