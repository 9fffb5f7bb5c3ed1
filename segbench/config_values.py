"""The types of values that the sections of a sweep file are made of. Imports no torch."""

import os
import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from segbench.spelling import shows

T = TypeVar("T")
LABEL = 60  # characters of a label, which stands in every line of a table


@BeforeValidator
def number(value: Any) -> Any:
    if isinstance(value, bool):  # which Python counts as 0 and 1
        raise PydanticCustomError("number", "a number")
    return value


Int = Annotated[int, number]
Float = Annotated[float, number]
Positive = Annotated[Float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[Float, Field(ge=0, allow_inf_nan=False)]
AtLeast1 = Annotated[Int, Field(gt=0)]
Pixels = Annotated[Int, Field(gt=0, le=16_384)]
Count = Annotated[Int, Field(gt=0, le=1024)]  # of processes or threads
Fraction01 = Annotated[Float, Field(ge=0, le=1)]


@AfterValidator
def one_line(text: str) -> str:
    if not shows(text):
        raise PydanticCustomError("text", "text of one line, without characters that do not show")
    return text


@AfterValidator
def short(text: str) -> str:
    if text and not shows(text):
        raise PydanticCustomError("text", "text of one line, without characters that do not show")
    if len(text) > LABEL:
        raise PydanticCustomError("text", "at most {most} characters", {"most": LABEL})
    return text


@AfterValidator
def name_of_folder(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]{0,99}", text):
        raise PydanticCustomError("text", "up to 100 letters, digits, dots, - and _; the first a letter or digit")
    return text


@AfterValidator
def pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise PydanticCustomError("text", "a regular expression ({why})", {"why": str(error)}) from None
    return text


OneLine = Annotated[str, one_line]
Folder = Annotated[OneLine, AfterValidator(os.path.expanduser)]
Size = Annotated[
    tuple[Pixels, Pixels],
    BeforeValidator(lambda v: (v, v) if isinstance(v, int) and not isinstance(v, bool) else v),
    Field(description="(height, width) in pixels"),
]


Side = Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)]


@AfterValidator
def once(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError(f"{values} holds one twice")
    return values


Distinct = Annotated[list[T], Field(min_length=1), once]
OneOrTwo = Annotated[
    list[str],
    Field(min_length=1, max_length=2),
    once,
    BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
