"""A sweep file with its overrides and its grid -> validated configs; mistakes are named by line. Imports no torch."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from segbench.config import SweepConfig
from segbench.errors import UserError, suggest
from segbench.registry import validation_message

VARIABLE = ("data", "encoder", "recipe", "evaluation", "trainer", "budget", "task")  # in what runs can differ
TOLD = 4  # mistakes that one message names
MOST_BYTES, MOST_VALUES = 1_000_000, 20_000  # of a sweep file


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep file and apply ``key=value`` overrides (dotted keys, YAML values).

    Raises:
        UserError: no such file, broken YAML, an unknown key, a wrong type, an impossible value, or two overrides that
            contradict each other; the message names the place.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"config {path} is no file")  # but a pipe or device, which may never end
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise UserError(f"config {path} has {path.stat().st_size:,} bytes; a config has at most {MOST_BYTES:,}")
        text = path.read_text("utf-8")
        lines = dict(itertools.islice(_lines(yaml.compose(text, yaml.SafeLoader), path), MOST_VALUES))
        if len(lines) == MOST_VALUES:  # before they are made: aliases of aliases multiply
            raise UserError(f"config {path} holds {MOST_VALUES:,} values or more, aliases counted")
        values = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"config {path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise UserError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"config {path} is nested too deeply, or an alias holds itself") from None
    except (ValueError, OverflowError) as error:  # a date that does not exist, a number without end
        raise UserError(f"config {path} holds a value that cannot be read: {error}") from None
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
        for section in ("tune.search", "grid"):  # whose keys have dots themselves
            if key.startswith(f"{section}."):
                raise UserError(f"override '{key}': give the whole of it, {section}={{KEY: VALUE}}")
        _assign(values, key, value)
        lines = {place: line for place, line in lines.items() if not _within(key, place)}
    config = build_config(values, str(path), lines)
    titles = [d.title for d in config.decoders]
    missing = [baseline for baseline in config.baseline or () if baseline not in titles]
    if missing and ("baseline" in given or "decoders" not in given):  # else a narrower call adds to what the file names
        near = suggest(missing[0], titles)
        raise UserError(f"{path}: baseline: there is no '{missing[0]}'{near} among the decoders")
    return config


def build_config(values: dict[str, Any], source: str = "config", lines: dict[str, int] | None = None) -> SweepConfig:
    """Validate plain values; ``source`` and ``lines`` (dotted key -> line number) say where they came from."""
    try:
        return SweepConfig.model_validate(values)
    except ValidationError as error:
        messages = list(dict.fromkeys(_explain(e, source, lines or {}) for e in error.errors()))
        more = [f"and {len(messages) - TOLD} more"] if len(messages) > TOLD else []
        raise UserError("; ".join([*messages[:TOLD], *more])) from None


def expand_grid(config: SweepConfig) -> Iterator[tuple[dict[str, Any], SweepConfig]]:
    """Each combination of the ``grid`` lists, or each of its settings, with the config that it makes without either."""
    for combination in combinations(config.grid):
        yield combination, with_setting(config, combination, "grid")


def combinations(grid: dict[str, list[Any]] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Dotted key -> value, of each variant; one without any where the grid is empty."""
    if isinstance(grid, list):
        return grid or [{}]
    return [dict(zip(grid, options, strict=True)) for options in itertools.product(*grid.values())]


def with_setting(config: SweepConfig, setting: Mapping[str, Any], source: str) -> SweepConfig:
    """The config with these dotted keys set, its own ``grid`` and ``tune`` empty; ``source`` says where they stand.

    ``decoder.PARAMETER`` is set for every decoder that takes it, whatever else says of it.

    Raises:
        UserError: a key that is not there or cannot vary, or an impossible value.
    """
    values = config.model_dump() | {"grid": {}, "tune": None}
    for key, value in setting.items():
        section, _, name = key.partition(".")
        if section == "decoder" and name:
            values["decoder_defaults"] = values["decoder_defaults"] | {name: value}
            values["decoders"] = [
                d | {"params": {k: v for k, v in d["params"].items() if k != name}} for d in values["decoders"]
            ]
        elif section not in VARIABLE:
            raise UserError(f"{source}: '{key}' cannot vary; keys under {', '.join(VARIABLE)} and decoder can")
        else:
            _assign(values, key, value)
    return build_config(values, source)


def _lines(node: yaml.Node | None, path: Path, within: str = "") -> Iterator[tuple[str, int]]:
    """(dotted place, line) of every key and of what lists hold; a key that stands twice in one mapping is an error."""
    inner = []
    if isinstance(node, yaml.MappingNode):  # of keys that are no scalars, loading says what is wrong
        inner = [(key.value, key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
    elif isinstance(node, yaml.SequenceNode):
        inner = [(str(i), value, value) for i, value in enumerate(node.value)]
    seen: set[str] = set()
    for name, start, value in inner:
        line = start.start_mark.line + 1
        if name in seen:
            raise UserError(f"{path}, line {line}: '{name}' stands twice")
        seen.add(name)
        yield f"{within}{name}", line
        yield from _lines(value, path, f"{within}{name}.")


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _within(key: str, place: str) -> bool:
    """Whether a dotted place is that key or below it."""
    return f"{place}.".startswith(f"{key}.")


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override '{item}' should look like key=value, for example recipe.steps=500")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
            quoted = "one with spaces is quoted as a whole, 'key=[a, b]', in make ARGS=\"'key=[a, b]'\""
            raise UserError(f"override '{key}={_short(text)}': that is not a YAML value; {quoted}") from None
        for other, old in given.items():
            if (_within(key, other) or _within(other, key)) and (key, value) != (other, old):
                raise UserError(f"overrides contradict each other: {other}={old} and {key}={value}")
        given[key] = value
    return given


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    here: Any = values
    for i, part in enumerate(parents):
        here = here.setdefault(part, {})
        place = ".".join(parents[: i + 1])
        if isinstance(here, list):
            raise UserError(f"override '{dotted}': give the whole list, {place}=[...]")
        if not isinstance(here, dict):
            raise UserError(f"override '{dotted}': {place} is a value, not a section")
    here[last] = value


def _explain(error: Any, source: str, lines: dict[str, int]) -> str:
    place = ".".join(map(str, error["loc"]))
    where = f"{source}, line {lines[place]}" if place in lines else source
    if error["type"] != "extra_forbidden":
        return f"{where}: {validation_message(error)}"
    *section, key = error["loc"]
    model: Any = SweepConfig
    for part in section:
        if isinstance(part, str):  # else a place in a list, whose annotation names what it holds
            annotation = model.model_fields[part].annotation
            model, *_ = get_args(annotation) or [annotation]
    known = list(model.model_fields)
    there = f"{'.'.join(map(str, section)) or 'the top level'} has: {', '.join(known)}"
    return f"{where}: unknown key '{place}'{suggest(str(key), known)}; {there}"
