"""The sections of a sweep file that bring decoders to one effort of tuning and one cost. Imports no torch."""

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from segbench.config_values import AtLeast1, Distinct, Float, Int, OneLine, Positive, Section, pattern


class HoldoutConfig(Section):
    """A part of the training images, always the same one of the same images; or its share alone."""

    share: Annotated[Float, Field(gt=0, lt=1)] = Field(description="of the training images")
    group: Annotated[str, pattern] | None = Field(
        None,
        description="regular expression that finds in an image's id what it belongs to, such as '^[^_]+' for what "
        "stands before the first _; images that belong together are then held out together",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_share(cls, value: Any) -> Any:
        return value if isinstance(value, dict | HoldoutConfig) else {"share": value}


class LogRange(Section):
    """A range of which settings are evenly spread by their logarithm."""

    low: AtLeast1 | Positive  # where both are whole, so are the settings
    high: AtLeast1 | Positive

    @model_validator(mode="before")
    @classmethod
    def _ends(cls, value: Any) -> Any:
        if isinstance(value, dict) and {*value} != {"low", "high"}:
            raise ValueError(f"a range has low and high, and nothing else, not {', '.join(map(str, value)) or 'none'}")
        return value

    @model_validator(mode="after")
    def _rising(self) -> "LogRange":
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) should be below high ({self.high:g})")
        return self


def _kind(space: Any) -> str:
    return "dict" if isinstance(space, dict | LogRange) else "list"


Space = Annotated[
    Annotated[list[Any], Field(min_length=2), Tag("list")] | Annotated[LogRange, Tag("dict")], Discriminator(_kind)
]


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class TuneConfig(Section):
    """The same search for every decoder; what it chooses for each is trained beside what the sweep says."""

    search: dict[str, Space] = Field(
        min_length=1,
        description="dotted key of recipe, or decoder.PARAMETER of those decoders that take it -> a list of values, or "
        "{low: ..., high: ...}, spread evenly by the logarithm; such as recipe.lr: [0.001, 0.002, 0.004]",
    )
    trials: Annotated[Int, Field(ge=2)] | None = Field(
        None, description="settings that each decoder is tried with; needed with ranges; default: all of the lists'"
    )
    holdout: HoldoutConfig = Field(
        HoldoutConfig(share=0.2), description="of the training images, on which settings are scored and none is trained"
    )
    seeds: Distinct[Annotated[Int, Field(ge=0, lt=2**31)]] = Field(
        [1_000_000], description="one training of each setting for each; the sweep's own seeds must be others"
    )
    measure: OneLine = Field("miou", description="by whose mean over these seeds a setting is chosen")

    @field_validator("search", mode="after")
    @classmethod
    def _numbers(cls, search: dict[str, Any]) -> dict[str, Any]:
        """YAML takes ``1e-3`` for text."""
        return {key: [_number(v) for v in of] if isinstance(of, list) else of for key, of in search.items()}

    @model_validator(mode="after")
    def _searchable(self) -> "TuneConfig":
        for key in self.search:
            if key.split(".")[0] not in ("recipe", "decoder") or key.count(".") != 1:
                raise ValueError(f"search: '{key}' is neither recipe.KEY nor decoder.PARAMETER")
        for key, values in self.search.items():
            if isinstance(values, list) and any(values.count(value) > 1 for value in values):
                raise ValueError(f"search: {key} holds one twice")
        ranges = [key for key, values in self.search.items() if isinstance(values, LogRange)]
        if ranges and self.trials is None:
            raise ValueError(f"trials should say how many settings of {ranges[0]} to try")
        if not ranges and self.trials is not None:
            raise ValueError(f"trials is for ranges; of these lists all {self.all_of_lists} settings are tried")
        return self

    @property
    def all_of_lists(self) -> int:
        return math.prod(len(values) for values in self.search.values() if isinstance(values, list))


class BudgetConfig(Section):
    """What every decoder is to cost: exactly one of these; its width is chosen so."""

    macs: Positive | None = Field(None, description="multiply-accumulates on an image of 512x512 pixels")
    params: Positive | None = Field(None, description="trainable parameters")
    ms: Positive | None = Field(None, description="milliseconds of an image of 512x512 pixels, on this machine")
    like: OneLine | None = Field(None, description="what this decoder of the sweep costs, by its name or label")
    by: Literal["macs", "params", "ms"] | None = Field(None, description="like only: which cost; default: macs")

    @model_validator(mode="after")
    def _one(self) -> "BudgetConfig":
        given = [name for name in ("macs", "params", "ms", "like") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"one of macs, params, ms and like should be given, not {' and '.join(given) or 'none'}")
        if self.by and not self.like:
            raise ValueError(f"by: {self.by} is for like; {given[0]} says by itself which cost it is")
        return self

    @property
    def cost(self) -> str:
        """Name of the measure: macs, params or ms."""
        return self.by or next((name for name in ("params", "ms") if getattr(self, name) is not None), "macs")
