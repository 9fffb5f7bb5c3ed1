"""What every launcher runs, in a process of its own: claim the runs of a cohort, do them, say how each ended."""

from collections.abc import Callable
from contextlib import ExitStack

from segbench import store
from segbench.errors import OUT_OF_MEMORY, Failure, oom_kills
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
    """
    outcomes: dict[str, Outcome] = {}
    failures: dict[str, Failure] = {}
    rest: Outcome = Done()
    kills = oom_kills()
    try:
        with ExitStack() as locks:
            for run in cohort.runs:
                done = store.is_done(run.folder)
                if done or not locks.enter_context(store.locked(run.folder)) or store.is_done(run.folder):
                    outcomes[run.key] = Busy()
                else:
                    store.tidy(run.folder)
            # As planned, unless another process has brought some of them further.
            for part in make_cohorts([run for run in cohort.runs if run.key not in outcomes]):
                run_cohort(part, failures, report, should_stop, threads)
                outcomes |= {run.key: Done() for run in part.runs}
    except StopAsked:
        rest = Stopped()
    except BaseException as error:
        died = Failure.of(error)
        if "DataLoader worker (pid" in died.reason and oom_kills() > kills:
            died = Failure(f"{OUT_OF_MEMORY} ({died.reason})", died.traceback, out_of_memory=True)
        rest = Failed(died)
    outcomes |= {key: Failed(failure) for key, failure in failures.items()}
    return Ended({run.key: outcomes.get(run.key, rest) for run in cohort.runs})
