"""The plug-ins of a run: their source is kept in its folder, and whatever reads the run uses that. Imports no torch."""

import contextlib
from collections.abc import Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any

from segbench import store
from segbench.config import PluginConfig, SweepConfig
from segbench.config_file import load_config
from segbench.errors import UserError
from segbench.registry import sources

# Of a finished run's config, what may differ where it is read: where things lie and where it is computed.
OF_PLACE = ("data", "launch", "trainer.accelerator", "encoder.weights", "evaluation", "baseline", "runs_dir")
OF_PLACE_SAID = "data, launch, trainer.accelerator and encoder.weights"

Kept = dict[str, dict[str, str]]  # name of a plug-in in the config -> its file in the run's folder, and the original's


def keep(folder: Path, plug_ins: Mapping[str, type[Any]]) -> Kept:
    """Copy the source of plug-ins into ``source/`` of a run's folder: all files that the run's key covers.

    Args:
        plug_ins: name in the config -> class; segbench's own are passed over.

    Returns:
        What the row says of them; a module of an installed package has no file of its own to be used from.
    """
    kept: Kept = {}
    homes: dict[Path, Path] = {}
    for name, cls in plug_ins.items():
        if cls.__module__.startswith("segbench."):
            continue
        home, files = sources(cls)
        place = homes.setdefault(home, Path(store.SOURCE, str(len(homes))))
        for name_there, file in files.items():
            store.write_atomic(folder / place / name_there, methodcaller("write", file.read_bytes()))
        main, original = next(iter(files.items()))
        kept[name] = {"file": str(place / main) if name.rpartition(":")[0].endswith(".py") else "", "of": str(original)}
    return kept


def name_in(folder: Path, kept: Any, name: str) -> str:
    """What a plug-in of a finished run is loaded by: its copy in the run's folder, where it was a file.

    Raises:
        UserError: the folder has no copy of it.
    """
    path, _, cls = name.rpartition(":")
    if not path.endswith(".py"):
        return name
    with contextlib.suppress(TypeError, KeyError, ValueError):
        copy = folder / kept[name]["file"]
        if copy.is_file() and copy.resolve().is_relative_to((folder / store.SOURCE).resolve()):
            return f"{copy}:{cls}"
    raise UserError(f"{folder} holds no copy of '{name}', which it was made with; run its sweep again")


def changed_since(folder: Path) -> list[str]:
    """Originals that are still there and no longer what the finished run keeps, in one line each."""
    said, kept = [], (store.read_json(folder / store.RESULT) or {}).get("sources") or {}
    for name, there in kept.items():
        with contextlib.suppress(OSError, TypeError, KeyError):
            if there["file"] and Path(there["of"]).read_bytes() != (folder / there["file"]).read_bytes():
                said.append(f"'{name}' has changed since; the copy in {folder} is used")
    return said


def read_config(folder: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """The config of a finished run, its plug-ins those that the run's folder keeps.

    Raises:
        UserError: there is none, an override does not fit or would make another run of it, or the folder has no copy of
            a plug-in.
    """
    for key in (item.partition("=")[0].strip() for item in overrides):
        if key.partition(".")[0] not in OF_PLACE and key not in OF_PLACE:
            raise UserError(f"'{key}' would make another run of {folder}; here only these may differ: {OF_PLACE_SAID}")
    row = store.read_json(folder / store.RESULT)
    kept = row.get("sources") if isinstance(row, dict) else None
    config = load_config(folder / store.CONFIG, overrides)

    def own(plug_in: PluginConfig) -> PluginConfig:
        return plug_in.model_copy(update={"name": name_in(folder, kept, plug_in.name)})

    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"name": name_in(folder, kept, config.data.name)}),
            "encoder": own(config.encoder),
            "decoders": [own(decoder) for decoder in config.decoders],
            "skeleton": name_in(folder, kept, config.skeleton),
            "measures": [own(measure) for measure in config.measures],
        }
    )
