"""What a user is told: the exception that stands for a mistake, failures in one line, and "did you mean"."""

import difflib
import traceback
from collections.abc import Iterable
from dataclasses import dataclass


class UserError(Exception):
    """A mistake that the user can mend: printed as one line, exit code 2, no traceback."""


def brief(error: BaseException) -> str:
    """Type and message in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:400]}" if message else type(error).__name__


@dataclass(frozen=True)
class Failure:
    """Why something ended: in one line, and the traceback, empty for a user's mistake."""

    reason: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        if isinstance(error, UserError):
            return cls(str(error))
        return cls(brief(error), "".join(traceback.format_exception(error)))


def suggest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'bilinear'?)"`` for the nearest of ``known``, or ``""`` where nothing is near."""
    near = difflib.get_close_matches(name.lower(), {k.lower(): k for k in known}, n=1, cutoff=0.6)
    original = {k.lower(): k for k in known}
    return f" (did you mean '{original[near[0]]}'?)" if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a wrong name: what was found, the nearest known name, and the list of what there is."""
    known = sorted(known)
    return UserError(f"unknown {kind} '{name}'{suggest(name, known)}; there is: {', '.join(known)}")
