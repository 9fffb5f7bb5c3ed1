"""A sweep file with its overrides and its grid -> validated configs; mistakes are named by line. Imports no torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from segbench.config import DecoderConfig, MeasureConfig, SweepConfig
from segbench.errors import UserError, suggest
from segbench.registry import validation_message


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep file and apply ``key=value`` overrides (dotted keys, YAML values).

    Raises:
        UserError: no such file, broken YAML, an unknown key, a wrong type, an impossible value, or two overrides that
            contradict each other; the message names the place.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"config {path} is not UTF-8 text") from None
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        lines = {".".join(place): line for place, line in _lines(node, path)} if node else {}
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"config {path} should hold keys such as data: and decoders:, not {type(values).__name__}")
    values.setdefault("name", path.stem)
    launch = values.get("launch")
    if isinstance(launch, dict) and launch.get("address") not in (None, "auto"):
        where = f", line {lines['launch.address']}" if "launch.address" in lines else ""  # else by a YAML merge
        raise UserError(
            f"{path}{where}: launch.address should be auto here; a cluster can run code on "
            "this machine, so name it yourself: launch.address=HOST:PORT on the command line, or in RAY_ADDRESS"
        )
    given = parse_overrides(overrides)
    for key, value in given.items():
        _assign(values, key, value)
        lines = {place: line for place, line in lines.items() if place != key and not place.startswith(f"{key}.")}
    config = build_config(values, str(path), lines)
    titles = [d.title for d in config.decoders]
    if "baseline" in given or "decoders" not in given:  # else a narrower call, which adds to what the file names
        for baseline in config.baseline or ():
            if baseline not in titles:
                raise UserError(
                    f"{path}: baseline: there is no '{baseline}'{suggest(baseline, titles)} among the decoders"
                )
    return config


def build_config(values: dict[str, Any], source: str = "config", lines: dict[str, int] | None = None) -> SweepConfig:
    """Validate plain values; ``source`` and ``lines`` (dotted key -> line number) say where they came from."""
    try:
        config = SweepConfig.model_validate(values)
    except ValidationError as error:
        messages = [_explain(e, source, lines or {}) for e in error.errors()]
        raise UserError("; ".join(dict.fromkeys(messages))) from None
    return config


def expand_grid(config: SweepConfig) -> Iterator[tuple[dict[str, Any], SweepConfig]]:
    """Each combination of the ``grid`` lists, with the config that it makes (its own grid empty)."""
    combinations: list[dict[str, Any]] = [{}]
    for key, options in config.grid.items():
        combinations = [{**c, key: option} for c in combinations for option in options]
    for combination in combinations:
        values = config.model_dump() | {"grid": {}}
        for key, value in combination.items():
            if key.split(".")[0] not in ("data", "encoder", "recipe", "evaluation", "trainer"):
                raise UserError(
                    f"grid: '{key}' cannot vary; keys under data, encoder, recipe, evaluation and trainer can"
                )
            _assign(values, key, value)
        yield combination, build_config(values, "grid")


def _lines(node: yaml.Node, path: Path, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Dotted place -> line, of every node; a key that stands twice in one mapping is an error."""
    yield place, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue  # loading it says what is wrong
            if key.value in seen:
                raise UserError(f"{path}, line {line}: '{key.value}' stands twice")
            seen.add(key.value)
            for inner, inner_line in _lines(value, path, (*place, str(key.value))):
                yield inner, line if len(inner) == len(place) + 1 else inner_line
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _lines(value, path, (*place, str(i)))


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override '{item}' should look like key=value, for example recipe.steps=500")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"override '{item}': '{text}' is not a YAML value") from None
        for other, old in given.items():
            same = other == key and old != value
            if same or other.startswith(f"{key}.") or key.startswith(f"{other}."):
                raise UserError(f"overrides contradict each other: {other}={old} and {key}={value}")
        given[key] = value
    return given


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    here: Any = values
    for i, part in enumerate(parents):
        here = here[int(part)] if isinstance(here, list) and part.isdigit() and int(part) < len(here) else here
        if isinstance(here, dict):
            here = here.setdefault(part, {})
        if not isinstance(here, dict | list):
            raise UserError(f"override '{dotted}': {'.'.join(parents[: i + 1])} is a value, not a section")
    if isinstance(here, list):
        raise UserError(f"override '{dotted}': give the whole list, {'.'.join(parents)}=[...]")
    here[last] = value


def _explain(error: Any, source: str, lines: dict[str, int]) -> str:
    loc = [part for part in error["loc"] if not str(part).startswith("function-")]
    place = ".".join(str(part) for part in loc)
    where = f"{source}, line {lines[place]}" if place in lines else source
    if error["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        section = ".".join(str(part) for part in loc[:-1])
        there = f"; {section or 'the top level'} has: {', '.join(known)}"
        return f"{where}: unknown key '{place}'{suggest(str(loc[-1]), known)}{there}"
    return f"{where}: {validation_message({**error, 'loc': loc})}"


def _known_keys(loc: Sequence[Any]) -> list[str]:
    model: type[BaseModel] = SweepConfig
    for part in loc:
        if isinstance(part, int):
            continue
        if part in ("decoders", "measures"):
            model = DecoderConfig if part == "decoders" else MeasureConfig
        else:
            annotation = model.model_fields[str(part)].annotation
            assert isinstance(annotation, type)
            model = annotation
    return list(model.model_fields)
