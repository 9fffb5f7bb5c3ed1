"""What files of a sweep's folder hold, checked where they are read back. Imports no torch."""

from typing import Annotated, Any, Literal

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segbench.registry import validation_message


class _Measure(BaseModel):
    name: str
    plug_in: str
    params: dict[str, Any]


class _Row(BaseModel):
    """What whoever reads a row relies on."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    key: str
    decoder: str
    seed: int
    variant: dict[str, Any]
    classes: Annotated[list[str], Field(min_length=2)]
    images: Annotated[int, Field(gt=0)]
    data: str
    data_fingerprints: list[Any]
    encoder: str
    encoder_hash: str
    encoder_trainable: bool
    features_hash: str
    evaluation: dict[str, Any]
    evaluation_title: str
    measures: list[_Measure]
    values: dict[str, float]
    broken: dict[str, str]
    steps: int
    last_loss: float | None = None
    train_shared_s: float
    eval_encoder_ms_per_image: float
    finished: str = ""


class _Choice(BaseModel):
    model_config = ConfigDict(extra="forbid")

    values: dict[str, Any]
    measure: str
    scores: Annotated[list[tuple[dict[str, Any], float | None]], Field(min_length=1)]
    edges: list[str]
    images: int
    flatness: float | None
    highest_is_best: bool


class _Budget(BaseModel):
    width: int
    cost: Annotated[float, Field(gt=0)]
    asked: Annotated[float, Field(gt=0)]
    by: Literal["macs", "params", "ms"]


class _Planned(BaseModel):
    model_config = ConfigDict(strict=True)

    awaited: str = ""
    choice: _Choice | None = None
    budget: _Budget | None = None
    key: str
    decoder: str
    seed: int
    variant: dict[str, Any]
    folder: str


class _SweepConfig(BaseModel):
    baseline: str | list[str] | None = None


class _Manifest(BaseModel):
    config: _SweepConfig
    runs: list[_Planned]
    called: dict[str, str] = {}


def check_manifest(manifest: Any) -> str:
    """As `check_row`, of ``sweep.json``."""
    return _wrong(_Manifest, manifest)


def check_row(row: dict[str, Any]) -> str:
    """What is not as a run writes it, in words; empty where all is."""
    return _wrong(_Row, row)


def _wrong(model: type[BaseModel], value: Any) -> str:
    try:
        model.model_validate(value)
    except ValidationError as error:
        return validation_message(error.errors()[0])
    return ""


def check_counts(row: dict[str, Any], ids: npt.NDArray[Any], counts: dict[str, npt.NDArray[Any]]) -> None:
    """Raise a ValueError where they are not what `store.Result` says."""
    images, classes = row["images"], len(row["classes"])
    wanted = {"region": (images, 3, classes), "confusion": (classes, classes), "sizes": (images, 2)}
    for name in wanted if row.get("task", "segmentation") == "segmentation" else ("sizes",):
        if name not in counts:
            raise ValueError(f"no {name}")
    if ids.shape != (images,) or ids.dtype.kind != "U":
        raise ValueError(f"ids: {ids.dtype} {ids.shape}; wanted the names of {images} images")
    for name, found in counts.items():
        fits = found.shape == wanted[name] if name in wanted else found.ndim == 3 and len(found) == images
        fits = fits and (name in wanted or found.shape[2] in (1, classes))
        if found.dtype.kind not in "iu" or not fits:
            raise ValueError(f"{name}: {found.dtype} {found.shape}; wanted integers {wanted.get(name, '(N, C, K)')}")
        if found.size and found.min() < 0:
            raise ValueError(f"{name}: {found.min()} is no count")
