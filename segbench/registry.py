"""Plug-ins by name: built in (one file each), announced by an entry point, or a class in a user's file.

Nothing here imports torch, nor any plug-in that was not asked for.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic
import yaml

import segbench.config
from segbench.config import PluginConfig
from segbench.errors import UserError, located, suggest, unknown

INSTALLED = ("site-packages", "dist-packages")  # folders whose modules are no neighbours of each other
Parameters = dict[str, tuple[Any, Any]]  # of a constructor: name -> (annotation, default), as pydantic takes them


@dataclass(frozen=True)
class Kind:
    """What can be plugged in.

    Attributes:
        label: what one is called.
        package: where the built-in ones live, a class to a file; also the group of entry points.
        base: ``module:Class`` that each must subclass.
        given: arguments of the constructor that segbench gives; all others are parameters, set in a sweep.
    """

    label: str
    package: str
    base: str
    given: frozenset[str] = frozenset()

    def builtin(self) -> dict[str, str]:
        """Name -> first line of the file's docstring. Read as text; nothing is imported."""
        files = sorted((Path(__file__).parent / self.package.rpartition(".")[2]).glob("*.py"))
        files = [f for f in files if not f.stem.startswith("_") and f.stem != "base"]
        return {f.stem: (ast.get_docstring(_parsed(f)) or "").partition("\n")[0] for f in files}

    def declared(self, name: str, attribute: str) -> Any:
        """What a built-in one's class sets such an attribute to, alone or in a tuple of names; None where it does not.

        Read as text; nothing is imported.
        """
        module = _parsed(Path(__file__).parent / self.package.rpartition(".")[2] / f"{name}.py")
        for node in (node for cls in module.body if isinstance(cls, ast.ClassDef) for node in cls.body):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                names = [target.id for target in node.targets[0].elts if isinstance(target, ast.Name)]
                if attribute in names and isinstance(node.value, ast.Tuple):
                    return ast.literal_eval(node.value.elts[names.index(attribute)])
        return None

    def announced(self) -> dict[str, EntryPoint]:
        """Name -> entry point, for what installed packages announce."""
        return {e.name: e for e in entry_points(group=self.package)}

    def load(self, name: str) -> type[Any]:
        """The class of that name, ``path/to/file.py:Class`` or ``package.module:Class``.

        Raises:
            UserError: unknown name, missing file or class, an import that fails, or a class of another kind.
        """
        entry = None if ":" in name else find(name, self)[1]
        if entry is None and ":" not in name:
            module = importlib.import_module(f"{self.package}.{name}")
            ours = [c for c in vars(module).values() if self.holds(c) and c.__module__ == module.__name__]
            return max(ours, key=lambda c: c.__name__.lower() == name.replace("_", ""))
        who = f"{self.label} '{name}'"
        try:
            cls = entry.load() if entry else _import(name, self)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
            of = " of an installed package" if entry else ""
            raise UserError(f"{who}{of} does not import: {located(error)}") from error
        if not self.holds(cls):
            raise UserError(f"{who} is no subclass of {self.base.replace(':', '.')}")
        if inspect.isabstract(cls):
            raise UserError(f"{who} lacks: {', '.join(sorted(cls.__abstractmethods__))}")
        return cls

    def code_file(self, name: str) -> Path | None:
        """The source file that loading this plug-in executes; None for a built-in one or an unknown module."""
        announced = {} if ":" in name or name in self.builtin() else self.announced()
        module = announced[name].module if name in announced else name.rpartition(":")[0]
        if module.endswith(".py"):
            return Path(module).expanduser().resolve()
        top, *rest = module.split(".")
        spec = importlib.util.find_spec(top) if top else None
        for part in rest:  # by hand: Python would run the packages around a module to find it
            spec = spec and (PathFinder.find_spec(part, spec.submodule_search_locations or ()) or spec)
        return Path(spec.origin).resolve() if spec and spec.origin else None

    def fits(self, cls: type[Any]) -> bool:
        """Whether it is of this kind and its constructor takes what is given, so that it is no helper of such a one."""
        own = DECODERS if DECODERS.holds(cls) else self
        return self.holds(cls) and own.given <= parameters(cls, frozenset()).keys()

    def holds(self, candidate: object) -> bool:
        """Whether it is a class of this kind."""
        return isinstance(candidate, type) and issubclass(candidate, pkgutil.resolve_name(self.base))


UPSAMPLERS = Kind(
    "upsampler", "segbench.upsamplers", "torch.nn:Module", frozenset({"channels", "scale", "guide_channels"})
)
DECODERS = Kind(
    "decoder", "segbench.decoders", "segbench.decoders.base:Decoder", frozenset({"channels", "strides", "num_classes"})
)
DATASETS = Kind("data set", "segbench.data", "segbench.data.base:Dataset", frozenset({"split"}))
MEASURES = Kind("measure", "segbench.measures", "segbench.measures.base:Measure")
ENCODERS = Kind("encoder", "segbench.encoders", "torch.nn:Module")  # beside SMP's and timm's, by name
LAUNCHERS = Kind(
    "launcher", "segbench.launch", "segbench.launch.base:Launcher", frozenset({"cohorts", "launch", "jobs", "threads"})
)
TASKS = Kind("task", "segbench.tasks", "segbench.tasks.base:Task")


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def row_kind(name: str) -> Kind:
    """Whether a name in ``decoders:`` is an upsampler's or a decoder's; a class in a file or module is loaded for that.

    Raises:
        UserError: an unknown name, or one that is both.
    """
    if ":" not in name:
        return find(name, DECODERS, UPSAMPLERS)[0]
    cls = replace(UPSAMPLERS, label="upsampler or decoder").load(name)
    return DECODERS if DECODERS.holds(cls) else UPSAMPLERS


def find(name: str, *kinds: Kind, builtin_wins: bool = True) -> tuple[Kind, EntryPoint | None]:
    """What a name means: which of ``kinds``, and its entry point, None for a built-in one.

    A name of a built-in one means that one, so that no installed package changes what a sweep does.

    Raises:
        UserError: an unknown name, or one that stands for several classes.
    """
    found: dict[str, tuple[Kind, EntryPoint | None]] = {
        f"the built-in {kind.label} {name}": (kind, None) for kind in kinds if name in kind.builtin()
    }
    if not found or not builtin_wins:
        there = [(kind, e) for kind in kinds for e in entry_points(group=kind.package, name=name)]
        found |= {f"the {kind.label} {e.value}": (kind, e) for kind, e in there}
    if len(found) > 1:
        raise UserError(
            f"'{name}' stands for {' and '.join(sorted(found))}; write package.module:Class for the one meant"
        )
    if not found:
        hint = f"; write {name}:ClassName for a class in a file" if name.endswith(".py") else ""
        known = {known for kind in kinds for known in (*kind.builtin(), *kind.announced())}
        raise UserError(f"{unknown(kinds[0].label, name, known)}{hint}")
    return next(iter(found.values()))


def _import(name: str, kind: Kind) -> Any:
    """The class ``path/to/file.py:Class`` or ``package.module:Class``; raises whatever its module raises."""
    where, _, attribute = name.rpartition(":")
    module = _import_file(Path(where).expanduser()) if where.endswith(".py") else importlib.import_module(where)
    if not hasattr(module, attribute):
        own = {k: v for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__}
        classes = [k for k, v in own.items() if kind.fits(v)] or list(own)
        raise UserError(
            f"{where} has no class '{attribute}'{suggest(attribute, classes)}; it has: {', '.join(classes) or 'none'}"
        )
    return getattr(module, attribute)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no such file: {path} (looked in {Path.cwd()})")
    path = path.resolve()
    name = f"segbench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        _let_import_neighbours(path)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _let_import_neighbours(plugin: Path) -> None:
    """Let a plug-in's file import modules of its own folder, which come after all that is installed.

    Raises:
        UserError: Python takes another file for one of them.
    """
    home = plugin.parent
    neighbours = {home / file.relative_to(home).parts[0] for file in _imported(plugin, home) - {plugin}}
    if neighbours and str(home) not in sys.path:
        sys.path.append(str(home))
        importlib.invalidate_caches()
    for neighbour in sorted(neighbours):
        spec = importlib.util.find_spec(neighbour.stem)
        taken = spec and next(iter(spec.submodule_search_locations or ()), spec.origin)
        if not taken or not _alike(Path(taken).resolve(), neighbour.resolve()):
            raise UserError(
                f"{plugin} imports '{neighbour.stem}', which stands for its neighbour {neighbour} and for {taken}, "
                "which Python takes; rename the neighbour"
            )


def _alike(module: Path, other: Path) -> bool:
    """Whether two modules, or folders of modules, are one or hold the same code, as copies of one plug-in do."""
    if module == other or not other.is_dir():
        return module == other or (module.is_file() and module.read_bytes() == other.read_bytes())
    pairs = [(module / file.relative_to(other), file) for file in other.rglob("*.py")]
    return all(there.is_file() and there.read_bytes() == file.read_bytes() for there, file in pairs)


def source_hash(cls: type[Any]) -> str:
    """Hash of the source files that define ``cls`` and what it derives from, torch and the standard library aside.

    Of a plug-in, the modules of its own folder or package that its file imports count too, directly or not. They are
    found by reading the source: an import within a function counts, one of a computed name does not.
    """
    files, neighbours, home = _source(cls)
    digest = hashlib.sha256(b"".join(file.read_bytes() for _, file in files))
    for file in neighbours:
        digest.update(f"\0{file.relative_to(home).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def sources(cls: type[Any]) -> tuple[Path, dict[Path, Path]]:
    """The files of a plug-in that `source_hash` covers, segbench's own aside: its home, and name there -> file.

    The first is that of ``cls``. A base class of another place comes under ``elsewhere/``, by its module.
    """
    files, neighbours, home = _source(cls)
    named = {}
    for module, file in files:
        if module.partition(".")[0] != __package__:
            inside = file.is_relative_to(home)
            named[file.relative_to(home) if inside else Path("elsewhere", *module.split(".")).with_suffix(".py")] = file
    return home, named | {file.relative_to(home): file for file in neighbours}


def _source(cls: type[Any]) -> tuple[list[tuple[str, Path]], list[Path], Path]:
    """(module, file) of the class and its bases; the other files that it imports; and the folder that those lie in."""
    bases = [c for c in cls.__mro__ if c.__module__.partition(".")[0] not in {"torch", *sys.stdlib_module_names}]
    every = [(c.__module__, Path(inspect.getsourcefile(c) or "").resolve()) for c in bases]
    package, *rest = cls.__module__.split(".")
    first = every[0][1]
    depth = len(rest) + (first.name == "__init__.py")
    home = first.parents[depth]
    if package == __package__:
        return every, [], home
    return every, sorted(_imported(first, home, package if depth else None) - {file for _, file in every}), home


def _imported(file: Path, home: Path, package: str | None = None) -> set[Path]:
    """``file`` and the files below ``home`` that it imports, directly or not; of one package where that is named."""
    found: set[Path] = set()
    left = {file, *_modules(home, file.relative_to(home).parent.parts)}  # Python runs the packages around it first
    while left:
        file = left.pop()
        found.add(file)
        try:
            nodes = list(ast.walk(ast.parse(file.read_bytes())))
        except (SyntaxError, ValueError):  # which its import says
            continue
        wanted = [alias.name.split(".") for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                around = file.relative_to(home).parts[: -node.level] if node.level else ()
                module = [*around, *(node.module.split(".") if node.module else ())]
                wanted += [[*module, alias.name] for alias in node.names]
        for parts in wanted:
            if parts[0] == package if package else parts[0] != __package__ and home.name not in INSTALLED:
                left.update(_modules(home, parts) - found)
    return found


def _modules(home: Path, parts: Sequence[str]) -> set[Path]:
    """The files that importing a module runs: its own and those of the packages that it is in."""
    stems = [home.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    places = [(stem / "__init__.py", stem.with_name(f"{stem.name}.py")) for stem in stems]
    return {place for pair in places if (place := next(filter(Path.is_file, pair), None))}


def parameters(cls: type[Any], given: frozenset[str]) -> Parameters:
    """The constructor's named parameters, those of the base classes too where ``**kwargs`` passes them on."""
    found: Parameters = {}
    for constructor in [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]:
        try:
            signature = inspect.signature(constructor, eval_str=True)
        except NameError:  # annotations that only a type checker can resolve
            signature = inspect.signature(constructor)
        own = list(signature.parameters.values())[1:]
        for p in own:
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in given:
                annotation = Any if p.annotation is p.empty or isinstance(p.annotation, str) else p.annotation
                found.setdefault(p.name, (annotation, ... if p.default is p.empty else p.default))
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return found


def check_params(kind: Kind, name: str, cls: type[Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` validated against the constructor's annotations, with its defaults filled in.

    Raises:
        UserError: a parameter that the constructor does not take, lacks, or of another type than annotated.
    """
    return fit_params(f"{kind.label} '{name}'", parameters(cls, kind.given), params)


def fit_params(who: str, known: Parameters, params: Mapping[str, Any]) -> dict[str, Any]:
    """As `check_params`, for ``known`` parameters of one constructor or of several; errors begin with ``who``."""
    for key, value in params.items():
        if key not in known:
            there = f"it takes: {', '.join(known)}" if known else "it takes none"
            raise UserError(f"{who} has no parameter '{key}'{suggest(key, known)}; {there}")
        if isinstance(value, bool) and known[key][0] in (int, float, int | None, float | None):  # not 0 or 1
            raise UserError(f"{who}: {key} should be a number, not {in_yaml(value)}")
    model = pydantic.create_model("Params", __config__=pydantic.ConfigDict(arbitrary_types_allowed=True), **known)  # type: ignore[call-overload]
    try:
        checked = model(**params)
    except pydantic.ValidationError as error:
        raise UserError(f"{who}: {validation_message(error.errors()[0])}") from None
    return {key: getattr(checked, key) for key in known}


# Of a union, in the places that pydantic names.
KINDS = r"(int|float|str|bool|tuple|list|dict|function|constrained|nullable|literal|lax)\b"
WANTED = {  # kinds of pydantic's errors that its own words do not say plainly
    "string_type": "text", "string_too_short": "text that is not empty", "model_type": "keys with values",
    "dict_type": "keys with values", "list_type": "a list", "tuple_type": "a list", "path_type": "a path",
    "bool_type": "true or false", "bool_parsing": "true or false",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
}  # fmt: skip


def validation_message(error: Any) -> str:
    """One pydantic error in words: the place, what was wanted and what was found, as YAML spells it."""
    place = ".".join(str(p) for i, p in enumerate(error["loc"]) if not (i and re.match(KINDS, str(p))))
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing" and isinstance(error["loc"][-1], int):
        return f"{place.rpartition('.')[0]} has too few values"
    if kind == "missing":
        return f"{place} is missing"
    if kind in ("value_error", "assertion_error"):
        return f"{place}: {context['error']}".removeprefix(": ")
    if kind in ("too_short", "too_long"):
        limit = f"{context['min_length']} or more" if kind == "too_short" else f"{context['max_length']} or fewer"
        return f"{place} should have {limit} values, not {context['actual_length']}"
    wanted = WANTED.get(kind) or error["msg"].removeprefix("Input should be ")
    if kind == "literal_error":
        wanted = wanted.replace("True", "true").replace("False", "false")
    if kind == "model_type" and issubclass(getattr(segbench.config, context["class_name"], object), PluginConfig):
        wanted = "a name, or keys such as name: and params:"
    found = in_yaml(value)
    found = found if len(found) <= 100 else f"{found[:97]}..."
    hint = ""
    if wanted.startswith(("text", "a name", "a path")) and isinstance(value, bool | int | float | date):
        read = "no, off, yes and on" if isinstance(value, bool) else "a date" if isinstance(value, date) else "a number"
        hint = f" (YAML reads {read} so: quote it)" if isinstance(value, bool) else f" (YAML reads {read}: quote it)"
    if wanted == "a list" and isinstance(value, str) and "," in value:
        hint = f" (write [{', '.join(part.strip() for part in value.split(','))}])"
    return f"{place} should be {wanted}, not {found}{hint}"


def in_yaml(value: Any) -> str:
    """A value as a sweep file has it, in one line; text in quotes."""
    if isinstance(value, str):
        return repr(value)
    with contextlib.suppress(yaml.YAMLError, RecursionError):
        text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False)
        return text.removesuffix("...\n").strip()
    return repr(value)
