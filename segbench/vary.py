"""Which runs `segbench evaluate` takes, and under which evaluations. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segbench import store
from segbench.config import EvaluationConfig, SweepConfig
from segbench.config_file import build_config, parse_overrides
from segbench.errors import UserError, unknown
from segbench.kept import read_config
from segbench.measures.base import Ints
from segbench.report.runs import comparable

KEYS = tuple(key for key in EvaluationConfig.model_fields if key != "every")  # which changes no figure
LABEL_SIZES = (448, 224, 100)  # pixels, of the default set
SCALES = [0.75, 1.0, 1.25]


@dataclass(frozen=True)
class Asked:
    """What runs are to be evaluated under.

    Attributes:
        config: of the first run; its ``evaluation`` is the runs' own.
        varied: the evaluations that were asked for; empty for those of `fitting`.
        overrides: ``key=value`` for what differs here, such as ``data.root``.
        images: how many of the split, evenly spread; None for all.
    """

    config: SweepConfig
    varied: tuple[EvaluationConfig, ...]
    overrides: tuple[str, ...]
    images: int | None

    @classmethod
    def read(cls, folder: Path, vary: Sequence[str], overrides: Sequence[str], images: int | None) -> "Asked":
        """Of the command's arguments and a finished run's folder.

        Raises:
            UserError: an argument that does not fit.
        """
        if images is not None and images < 1:
            raise UserError(f"--images should be 1 or more, not {images}")
        if own := [item for item in overrides if item.split("=")[0].split(".")[0] == "evaluation"]:
            raise UserError(f"'{own[0]}' would change the runs' own evaluation; --vary {own[0]} evaluates beside it")
        config = read_config(folder, ["baseline=null", *overrides])
        return cls(config, tuple(e for item in vary for e in varied(config, item)), tuple(overrides), images)


def varied(config: SweepConfig, item: str) -> list[EvaluationConfig]:
    """The evaluations that ``KEY=[VALUE,...]`` asks for, each the config's own but for that key.

    What a value needs beside it is found where it can be: a window is the training crop, a stride that belonged to
    another window is dropped. ``evaluation=[{...}, ...]`` says several keys at once. One value needs no list, and a
    list of numbers for ``scales`` is one value.

    Raises:
        UserError: an unknown key, no value, or one that does not fit.
    """
    if "=" not in item:
        raise UserError(f"--vary {item}: it should look like KEY=[VALUE,...], for example label_size=[448,224]")
    ((key, values),) = parse_overrides([item]).items()
    key = _bare(key)
    if key not in (*KEYS, "evaluation"):
        raise unknown("key of evaluation to vary", key, [*KEYS, "evaluation"])
    if not isinstance(values, list) or (key == "scales" and not any(isinstance(v, list) for v in values)):
        values = [values]
    if not values:
        raise UserError(f"--vary {item}: it names no value")
    if key != "evaluation":
        return [_changed(config, item, {key: value}) for value in values]
    if wrong := [v for v in values if not isinstance(v, dict) or not all(isinstance(k, str) for k in v)]:
        raise UserError(
            f"--vary {item}: values of evaluation are keys with values, such as {{flip: true}}, not {wrong[0]}"
        )
    return [_changed(config, item, {_bare(k): v for k, v in value.items()}) for value in values]


def _bare(key: str) -> str:
    return key.strip().removeprefix("evaluation.")


def _changed(config: SweepConfig, item: str, change: Mapping[str, Any]) -> EvaluationConfig:
    if "every" in change:
        raise UserError(f"--vary {item}: every changes no figure")
    own = config.evaluation
    values = own.model_dump() | dict(change)
    mode = change.get("mode", own.mode)
    if (mode != own.mode or "window" in change) and "stride" not in change:
        values["stride"] = None
    if mode == "whole" and "window" not in change:
        values["window"] = None
    if mode in ("slide", "crop") and values["window"] is None:
        values["window"] = config.recipe.crop
    if change.get("fit") == "resize" and "padding" not in change:
        values["padding"] = "mean"
    return build_config(config.model_dump() | {"evaluation": values}, f"--vary {item}").evaluation


def fitting(config: SweepConfig, sizes: Ints, multiple: int) -> list[EvaluationConfig]:
    """What is worth varying of the config's own evaluation, on images of ``sizes``; what would change nothing is not.

    Label sizes, padding or resizing, flips, scales, and whole images, windows and crops, each beside the config's own.

    Args:
        sizes: (N, 2), height and width of the images in pixels.
        multiple: of which the encoder takes sizes, in pixels.
    """
    own, window = config.evaluation, np.array(config.recipe.crop)
    seen = np.array([own.window]) if own.mode == "crop" else sizes
    as_it_is = own.mode == "whole" and own.resize is None and own.scales == [1.0] and not (sizes % multiple).any()
    changes: list[dict[str, Any]] = [{"label_size": n} for n in LABEL_SIZES if n < seen.max()]
    changes += [] if as_it_is else [{"fit": "pad" if own.fit == "resize" else "resize"}]
    changes += [{"flip": not own.flip}, {"scales": SCALES if own.scales == [1.0] else [1.0]}, {"mode": "whole"}]
    if (sizes > window).any():
        modes = ["slide", "crop"] if (sizes >= window).all() else ["slide"]
        changes += [{"mode": mode, "window": config.recipe.crop} for mode in modes]
    found = [_changed(config, "default", change) for change in changes if change.get("mode") != own.mode]
    return [evaluation for evaluation in found if evaluation != own]


def finished_runs(folders: Iterable[Path]) -> tuple[list[store.Result], list[str]]:
    """The finished runs of these folders, of runs or of sweeps, and the names of a sweep's others.

    Raises:
        UserError: a run that is not finished, a sweep without one, or runs that do not share data, classes, encoder and
            evaluation.
    """
    found: dict[Path, store.Result] = {}
    others = []
    for folder in folders:
        if not (folder / store.MANIFEST).is_file():
            found[folder.resolve()] = store.read_finished(folder)
            continue
        there = 0
        for planned in store.read_plan(folder)["runs"]:
            place = folder / planned["folder"]
            try:
                result = store.read_result(place)
            except store.Damaged:
                result = None
            if result is None:
                others.append(f"{planned['decoder']}-s{planned['seed']}")
            else:
                found[place.resolve()] = result
                there += 1
        if not there:
            raise UserError(f"no run of {folder} is finished; `segbench sweep` goes on with it")
    results = list(found.values())
    titles = dict.fromkeys(r.row["evaluation_title"] or WHOLE for r in results)
    if len(titles) > 1:
        raise UserError(f"the runs have different evaluations of their own ({'; '.join(titles)}); give those of one")
    if why := comparable(results):
        raise UserError(f"the runs share no encoder and data: {why}")
    return results, list(dict.fromkeys(others))


WHOLE = "whole images"  # the title of the default evaluation, which has none


def title(evaluation: EvaluationConfig) -> str:
    return evaluation.title or WHOLE
