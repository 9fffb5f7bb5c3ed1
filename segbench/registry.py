"""Plug-ins by name: built in (one file each), announced by an entry point, or a class in a user's file.

Nothing here imports torch, nor any plug-in that was not asked for.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic

from segbench.errors import UserError, brief, suggest, unknown

INSTALLED = ("site-packages", "dist-packages")  # folders whose modules are no neighbours of each other


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

    @property
    def folder(self) -> Path:
        return Path(__file__).parent / self.package.rpartition(".")[2]

    def builtin(self) -> dict[str, str]:
        """Name -> first line of the file's docstring. Read as text; nothing is imported."""
        files = sorted(f for f in self.folder.glob("*.py") if f.stem not in ("__init__", "base"))
        return {f.stem: (ast.get_docstring(ast.parse(f.read_text("utf-8"))) or "").partition("\n")[0] for f in files}

    def announced(self) -> dict[str, EntryPoint]:
        """Name -> entry point, for what installed packages announce."""
        return {e.name: e for e in entry_points(group=self.package)}

    def load(self, name: str) -> type[Any]:
        """The class of that name, ``path/to/file.py:Class`` or ``package.module:Class``.

        Raises:
            UserError: unknown name, missing file or class, an import that fails, or a class of another kind.
        """
        if ":" in name:
            cls = self._load_path(name)
        elif name in self.builtin():
            module = importlib.import_module(f"{self.package}.{name}")
            ours = [c for c in vars(module).values() if self.holds(c) and c.__module__ == module.__name__]
            cls = next((c for c in ours if c.__name__.lower() == name.replace("_", "")), ours[0])
        elif name in self.announced():
            refuse_twice(name, self)
            try:
                cls = self.announced()[name].load()
            except (Exception, SystemExit) as error:
                raise UserError(
                    f"{self.label} '{name}' of an installed package does not import: {_where(error)}"
                ) from error
        else:
            raise _unknown(name, self)
        if not self.holds(cls):
            raise UserError(f"{self.label} '{name}' is no subclass of {self.base.replace(':', '.')}")
        if inspect.isabstract(cls):
            raise UserError(f"{self.label} '{name}' lacks: {', '.join(sorted(cls.__abstractmethods__))}")
        return cls

    def code_file(self, name: str) -> Path | None:
        """The source file that loading this plug-in executes; None for a built-in one or an unknown module."""
        where, colon, _ = name.rpartition(":")
        if colon and where.endswith(".py"):
            return Path(where).resolve()
        module = where if colon else ""
        if not colon and name not in self.builtin() and name in self.announced():
            module = self.announced()[name].module
        # Only the package at the top is asked for: to find a module within it, Python would run it.
        top, *rest = module.split(".")
        spec = importlib.util.find_spec(top) if top else None
        if spec is not None and rest:
            places = [Path(place, *rest) for place in spec.submodule_search_locations or ()]
            files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
            if found := next(filter(Path.is_file, files), None):
                return found.resolve()
        return Path(spec.origin).resolve() if spec is not None and spec.origin else None

    def holds(self, candidate: object) -> bool:
        """Whether it is a class of this kind."""
        module, _, attribute = self.base.partition(":")
        base = getattr(importlib.import_module(module), attribute)
        return isinstance(candidate, type) and issubclass(candidate, base)

    def _load_path(self, name: str) -> Any:
        where, _, attribute = name.rpartition(":")
        try:
            module = _import_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
            raise UserError(f"{self.label} '{name}' does not import: {_where(error)}") from error
        if not hasattr(module, attribute):
            classes = [k for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
            raise UserError(
                f"{where} has no class '{attribute}'{suggest(attribute, classes)}; it has: "
                f"{', '.join(classes) or 'none'}"
            )
        return getattr(module, attribute)


UPSAMPLERS = Kind(
    "upsampler",
    "segbench.upsamplers",
    "torch.nn:Module",
    frozenset({"channels", "scale", "guide_channels"}),
)
DECODERS = Kind(
    "decoder",
    "segbench.decoders",
    "segbench.decoders.base:Decoder",
    frozenset({"channels", "strides", "num_classes"}),
)
DATASETS = Kind(
    "data set",
    "segbench.data",
    "segbench.data.base:Dataset",
    frozenset({"split"}),
)
MEASURES = Kind("measure", "segbench.measures", "segbench.measures.base:Measure")
ENCODERS = Kind("encoder", "segbench.encoders", "torch.nn:Module")  # beside SMP's and timm's, by name
LAUNCHERS = Kind(
    "launcher",
    "segbench.launch",
    "segbench.launch.base:Launcher",
    frozenset({"cohorts", "launch", "jobs", "threads"}),
)


def row_kind(name: str) -> Kind:
    """Whether a name in ``decoders:`` is an upsampler's or a decoder's; a class in a file or module is loaded for that.

    Raises:
        UserError: an unknown name, or one that is both.
    """
    if ":" in name:
        return DECODERS if DECODERS.holds(UPSAMPLERS.load(name)) else UPSAMPLERS
    for there in (Kind.builtin, Kind.announced):
        if kinds := [kind for kind in (UPSAMPLERS, DECODERS) if name in there(kind)]:
            if there is Kind.announced:
                refuse_twice(name, UPSAMPLERS, DECODERS)
            return kinds[0]
    raise _unknown(name, DECODERS, UPSAMPLERS)


def refuse_twice(name: str, *kinds: Kind) -> None:
    """Raise a `UserError` where ``name`` stands for several classes of these kinds, built in or announced.

    A name of a built-in one means that one, so that no installed package changes what a sweep does.
    """
    there = {f"the {kind.label} {e.value}" for kind in kinds for e in entry_points(group=kind.package, name=name)}
    there |= {f"the built-in {kind.label} {name}" for kind in kinds if name in kind.builtin()}
    if len(there) > 1:
        raise UserError(
            f"'{name}' stands for {' and '.join(sorted(there))}; write package.module:Class for the one meant"
        )


def _unknown(name: str, *kinds: Kind) -> UserError:
    hint = "" if not name.endswith(".py") else f"; write {name}:ClassName for a class in a file"
    known = {known for kind in kinds for known in (*kind.builtin(), *kind.announced())}
    return UserError(f"{unknown(kinds[0].label, name, known)}{hint}")


def _where(error: BaseException) -> str:
    """The error in one line, with the innermost line of the user's own file."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    own = [f for f in frames if "importlib" not in f.filename and not f.filename.startswith(str(Path(__file__).parent))]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own and not isinstance(error, SyntaxError) else ""
    return brief(error) + where


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no such file: {path} (looked in {Path.cwd()})")
    full = path.resolve()
    name = f"segbench_plugin_{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    _let_import_neighbours(full)
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _let_import_neighbours(plugin: Path) -> None:
    """Let a plug-in's file import modules of its own folder, which come after all that is installed.

    Raises:
        UserError: Python takes another file for one of them.
    """
    home = plugin.parent
    neighbours = {file.relative_to(home).parts[0] for file in _imported(plugin, home) if file != plugin}
    if neighbours and str(home) not in sys.path:
        sys.path.append(str(home))
        importlib.invalidate_caches()
    for neighbour in sorted(neighbours):
        name = neighbour.removesuffix(".py")
        spec = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
        origins = [*(spec.submodule_search_locations or ()), spec.origin] if spec else []
        taken = next((origin for origin in origins if origin), "a module of its own")
        if Path(taken).resolve() != (home / neighbour).resolve():
            raise UserError(
                f"{plugin} imports '{name}', which stands for its neighbour {home / neighbour} and for {taken}, which "
                "Python takes; rename the neighbour"
            )


def source_hash(cls: type[Any]) -> str:
    """Hash of the source files that define ``cls`` and what it derives from, torch and the standard library aside.

    Of a plug-in, the modules of its own folder or package that its file imports count too, directly or not. They are
    found by reading the source: an import within a function counts, one of a computed name does not.
    """
    digest = hashlib.sha256()
    files = [
        Path(inspect.getsourcefile(base) or "").resolve()
        for base in cls.__mro__
        if base.__module__.partition(".")[0] not in {"torch", *sys.stdlib_module_names}
    ]
    for file in files:
        digest.update(file.read_bytes())
    package, *rest = cls.__module__.split(".")
    if package != __package__:
        depth = len(rest) + (files[0].name == "__init__.py")
        home = files[0].parents[depth]
        for file in sorted(_imported(files[0], home, package if depth else None) - set(files)):
            digest.update(f"\0{file.relative_to(home).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _imported(file: Path, home: Path, package: str | None = None) -> set[Path]:
    """``file`` and the files below ``home`` that it imports, directly or not; of one package where that is named."""
    found: set[Path] = set()
    left = [file, *_modules(home, file.relative_to(home).parent.parts)]  # Python runs the packages around it first
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # which its import says
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted = [(home, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                place = file.parents[node.level - 1] if node.level else home
                wanted = [(place, f"{node.module or ''}.{alias.name}".strip(".")) for alias in node.names]
            else:
                continue
            for place, name in wanted:
                parts = name.split(".")
                ours = parts[0] == package if package else parts[0] != __package__ and home.name not in INSTALLED
                if ours if place == home else place.is_relative_to(home):
                    left += _modules(place, parts)
    return found


def _modules(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """The files that importing a module runs: its own and those of the packages that it is in."""
    for part in parts:
        places = (folder / part / "__init__.py", folder / f"{part}.py")
        yield from [place for place in places if place.is_file()][:1]
        folder = folder / part


def parameters(cls: type[Any], given: frozenset[str]) -> dict[str, inspect.Parameter]:
    """The constructor's named parameters, those of the base classes too where ``**kwargs`` passes them on."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        constructor = vars(base)["__init__"]
        try:
            signature = inspect.signature(constructor, eval_str=True)
        except NameError:  # annotations that only a type checker can resolve
            signature = inspect.signature(constructor)
        own = [
            p.replace(annotation=Any) if isinstance(p.annotation, str) else p for p in signature.parameters.values()
        ][1:]
        for p in own:
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in given:
                found.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return found


def check_params(kind: Kind, name: str, cls: type[Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` validated against the constructor's annotations, with its defaults filled in.

    Raises:
        UserError: a parameter that the constructor does not take, lacks, or of another type than annotated.
    """
    return fit_params(f"{kind.label} '{name}'", parameters(cls, kind.given), params)


def fit_params(who: str, known: Mapping[str, inspect.Parameter], params: Mapping[str, Any]) -> dict[str, Any]:
    """As `check_params`, for ``known`` parameters of one constructor or of several; errors begin with ``who``."""
    for key in params:
        if key not in known:
            there = f"it takes: {', '.join(known)}" if known else "it takes none"
            raise UserError(f"{who} has no parameter '{key}'{suggest(key, known)}; {there}")
    fields = {
        p.name: (Any if p.annotation is p.empty else p.annotation, ... if p.default is p.empty else p.default)
        for p in known.values()
    }
    model = pydantic.create_model("Params", __config__=pydantic.ConfigDict(arbitrary_types_allowed=True), **fields)  # type: ignore[call-overload]
    try:
        checked = model(**params)
    except pydantic.ValidationError as error:
        raise UserError(f"{who}: {validation_message(error.errors()[0])}") from None
    return {key: getattr(checked, key) for key in known}


def validation_message(error: Any) -> str:
    """One pydantic error in words: the place, what was wanted and what was found."""
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{place} is missing"
    message = (
        error["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("Assertion failed, ")
    )
    if error["type"] in ("value_error", "assertion_error"):
        return f"{place + ': ' if place else ''}{message}"
    return f"{place} should be {message}, not {error['input']!r}"
