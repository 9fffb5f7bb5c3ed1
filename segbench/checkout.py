"""The state of git checkouts, for what says how results came about. Imports no torch."""

import subprocess
from contextlib import suppress
from pathlib import Path

import segbench

LONGEST_S = 10.0


def of_segbench() -> dict[str, str | None]:
    """Commit and uncommitted changes of segbench's own checkout; None where it is installed without one."""
    place = Path(segbench.__file__).parent
    own = bool(_git(place, "ls-files", "--", "."))  # an environment in another project's checkout is none
    return {
        "commit": _git(place, "rev-parse", "HEAD") if own else None,
        "changes": _git(place, "status", "--porcelain", "--", ".") if own else None,
    }


def of_folder(folder: Path) -> str:
    """The commit of the checkout that holds a folder, and whether tracked files differ; empty where there is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = commit and _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with uncommitted changes" if changed else commit or ""


def _git(folder: Path, *asked: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *asked]  # a commit at the same time goes on
    with suppress(OSError, subprocess.SubprocessError):  # no git, or no checkout
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONGEST_S)
        return done.stdout.strip()
    return None
