"""What every launcher runs, in a process of its own: claim the runs of a cohort, do them, say how each ended."""

import faulthandler
import math
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from segbench import store
from segbench.errors import OUT_OF_MEMORY, Failure, oom_kills
from segbench.launch.base import blocked
from segbench.outcomes import Busy, Done, Ended, Failed, Outcome, Stopped
from segbench.runs import Cohort, make_cohorts
from segbench.training.cohort import run_cohort
from segbench.training.control import Stopped as StopAsked


def work(
    cohort: Cohort, threads: int, report: Callable[[str, int, int], None], should_stop: Callable[[], bool]
) -> Ended:
    """Do what is to do of a cohort. Never raises.

    Runs that another process has the lock of are left to it (`Busy`); the others are locked while they are worked
    on, so that no two processes do the same run, here or on machines that share the disk.

    Args:
        threads: of torch, in this process.
        report: called with phase (``train`` or ``evaluate``), steps or images done, and their total.
        should_stop: asked after each step and each evaluated image.

    Where nothing is to report for ``launch.timeout_min``, the process ends, and says on standard error what it was at;
    so it does where it crashes.
    """
    faulthandler.enable(2)
    limit_min, armed_s = cohort.runs[0].config.launch.timeout_min, -math.inf

    def heard(*progress: Any) -> None:
        nonlocal armed_s
        if limit_min is not None and time.monotonic() > armed_s + min(1.0, 6 * limit_min):
            armed_s = time.monotonic()
            faulthandler.dump_traceback_later(60 * limit_min, exit=True, file=2)
        if progress:
            report(*progress)

    heard()
    outcomes: dict[str, Outcome] = {}
    failures: dict[str, Failure] = {}
    rest: Outcome = Done()
    kills = oom_kills()
    try:
        with ExitStack() as locks:
            locks.enter_context(blocked({signal.SIGINT}))  # so that a KeyboardInterrupt is a plug-in's
            for run in cohort.runs:
                done = store.is_done(run.folder)
                if done or not locks.enter_context(store.locked(run.folder)) or store.is_done(run.folder):
                    outcomes[run.key] = Busy()
                else:
                    store.tidy(run.folder)
            # As planned, unless another process has brought some of them further.
            for part in make_cohorts([run for run in cohort.runs if run.key not in outcomes]):
                run_cohort(part, failures, heard, should_stop, threads)
                outcomes |= {run.key: Done() for run in part.runs}
    except StopAsked:
        rest = Stopped()
    except BaseException as error:
        died = Failure.of(error)
        if "DataLoader worker (pid" in died.reason and oom_kills() > kills:
            died = Failure(f"{OUT_OF_MEMORY} ({died.reason})", died.traceback, out_of_memory=True)
        rest = Failed(died)
    finally:
        faulthandler.cancel_dump_traceback_later()
    outcomes |= {key: Failed(failure) for key, failure in failures.items()}
    return Ended({run.key: outcomes.get(run.key, rest) for run in cohort.runs})
