"""The one exception that stands for a user's mistake, and "did you mean"."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: printed as one line, exit code 2, no traceback."""


def suggest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'bilinear'?)"`` for the nearest of ``known``, or ``""`` where nothing is near."""
    near = difflib.get_close_matches(name.lower(), {k.lower(): k for k in known}, n=1, cutoff=0.6)
    original = {k.lower(): k for k in known}
    return f" (did you mean '{original[near[0]]}'?)" if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a wrong name: what was found, the nearest known name, and the list of what there is."""
    known = sorted(known)
    return UserError(f"unknown {kind} '{name}'{suggest(name, known)}; there is: {', '.join(known)}")
