"""What a user is told: the exception that stands for a mistake, failures in one line, and "did you mean"."""

import contextlib
import difflib
import errno
import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend: printed as one line, exit code 2, no traceback."""

    def __str__(self) -> str:
        return "".join(
            c if c.isprintable() else repr(c)[1:-1] for c in super().__str__()
        )  # what it quotes may be any text


class Diverged(RuntimeError):
    """A loss or gradient that is not finite."""


def brief(error: BaseException) -> str:
    """Type and message in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:400]}" if message else type(error).__name__


def located(error: BaseException) -> str:
    """As `brief`, with the innermost line that is neither segbench's, torch's nor Python's own: a plug-in's."""
    frames = [] if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)
    ours = (str(Path(__file__).parent), f"{os.sep}torch{os.sep}", "importlib", "<")
    own = [f for f in frames if not any(part in f.filename for part in ours)]
    return brief(error) + (f" ({own[-1].filename}, line {own[-1].lineno})" if own else "")


OUT_OF_MEMORY = (
    "out of memory: with launch.on_oom=split fewer decoders are trained at a time; or lower launch.jobs, "
    "recipe.batch_size or recipe.crop, and where images are large, evaluate by windows (evaluation.mode=slide)"
)


@dataclass(frozen=True)
class Failure:
    """Why something ended: in one line, and the traceback, where there is one."""

    reason: str
    traceback: str = ""
    out_of_memory: bool = False
    user_error: bool = False  # a mistake that the user can mend
    diverged: bool = False  # its loss became infinite: an outcome of its recipe

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        if isinstance(error, UserError):
            return cls(str(error), user_error=True)
        text = "".join(traceback.format_exception(error))
        if out_of_memory(error):
            return cls(f"{OUT_OF_MEMORY} ({brief(error)})", text, out_of_memory=True)
        return cls(brief(error), text, diverged=isinstance(error, Diverged))


def out_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or of the GPU ran out; torch says so by bare RuntimeErrors too."""
    texts = ("can't allocate memory", "Cannot allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))
    )


def oom_kills() -> int:
    """How many processes Linux has killed for lack of memory since it started; 0 where it does not say."""
    with contextlib.suppress(OSError), open("/proc/vmstat") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    return 0


def suggest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'bilinear'?)"`` for the nearest of ``known``, or ``""`` where nothing is near."""
    near = difflib.get_close_matches(name.lower(), {k.lower(): k for k in known}, n=1, cutoff=0.6)
    original = {k.lower(): k for k in known}
    return f" (did you mean '{original[near[0]]}'?)" if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a wrong name: what was found, the nearest known name, and the list of what there is."""
    known = sorted(known)
    return UserError(f"unknown {kind} '{name}'{suggest(name, known)}; there is: {', '.join(known)}")
