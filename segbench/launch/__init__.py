"""Who runs a cohort, and where. Imports no torch."""

import contextlib
import importlib.util
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from segbench.config import LaunchConfig
from segbench.errors import Failure, UserError
from segbench.plan import Cohort

STOP_GRACE_S = 30.0  # for a step in progress and a checkpoint, after which a cohort is killed
# Ctrl-C, a closed terminal, and what batch systems send before they kill.
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


@dataclass(frozen=True)
class Ended:
    """How a cohort ended: every run of it is done, but for ``failures`` and ``busy``.

    Attributes:
        failures: run key -> why it failed.
        busy: keys of the runs that another process works on, or has done meanwhile.
        stopped: it was asked to stop and saved its state, or was killed because it did not in time.
        died: why the process as a whole ended; the runs that are not done failed with it.
        user_error: a mistake of the user's was why.
    """

    cohort: Cohort
    failures: dict[str, Failure] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    stopped: bool = False
    died: Failure | None = None
    user_error: bool = False


OnProgress = Callable[[Cohort, str, int, int], None]  # cohort, phase (train or evaluate), done, total
OnEnd = Callable[[Ended], None]


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """The signals of a stop that came since, which do nothing else meanwhile; one that is ignored (nohup) stays so."""
    caught: list[int] = []
    heeded = [s for s in STOP_SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
    previous = {s: signal.signal(s, lambda number, _: caught.append(number)) for s in heeded}
    try:
        yield caught
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def oom_kills() -> int:
    """How many processes Linux has killed for lack of memory since it started; 0 where it does not say."""
    with contextlib.suppress(OSError), open("/proc/vmstat") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    return 0


class Launcher(Protocol):
    """Runs every cohort; on Ctrl-C (or another of `STOP_SIGNALS`) it has the running ones save their state and stop.

    Each calls ``on_progress`` now and then, and ``on_end`` once for each cohort that was started, both in the thread
    that called it. ``jobs`` cohorts run at a time, with ``threads`` threads each; a launcher of a cluster whose own
    scheduler decides takes them as what to ask for. Returns False where it was interrupted.
    """

    def __call__(
        self,
        cohorts: Sequence[Cohort],
        jobs: int,
        threads: int,
        launch: LaunchConfig,
        on_progress: OnProgress,
        on_end: OnEnd,
    ) -> bool: ...


def launcher(name: str) -> Launcher:
    """The launcher of that name.

    Raises:
        UserError: its package is not installed.
    """
    package = {"ray": "ray", "slurm": "submitit"}.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"launch.launcher: '{name}' is not installed; pip install 'segbench[{name}]'")
    if name == "ray":
        from segbench.launch.ray import run_cohorts as on_ray

        return on_ray
    if name == "slurm":
        from segbench.launch.slurm import run_cohorts as on_slurm

        return on_slurm
    from segbench.launch.local import run_cohorts as locally

    return locally
