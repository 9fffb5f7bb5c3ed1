"""What every launcher runs, in a process of its own: claim the runs of a cohort, do them, say how it ended."""

from collections.abc import Callable
from contextlib import ExitStack

from segbench import store
from segbench.cohort import Stopped, run_cohort
from segbench.errors import OUT_OF_MEMORY, Failure, UserError
from segbench.launch import Ended, oom_kills
from segbench.plan import Cohort, Run, make_cohorts


def work(
    cohort: Cohort, threads: int, report: Callable[[str, int, int], None], should_stop: Callable[[], bool]
) -> Ended:
    """Do what is to do of a cohort. Never raises.

    Runs that another process has the lock of are left to it (`Ended.busy`); the others are locked while they are worked
    on, so that no two processes do the same run, here or on machines that share the disk.

    Args:
        threads: of torch, in this process.
        report: called with phase (``train`` or ``evaluate``), steps or images done, and their total.
        should_stop: asked after each step and each evaluated image.
    """
    failures: dict[str, Failure] = {}
    kills = oom_kills()
    mine: list[Run] = []
    busy: set[str] = set()
    try:
        with ExitStack() as locks:
            for run in cohort.runs:
                if _claim(run, locks):
                    mine.append(run)
                else:
                    busy.add(run.key)
            # As planned, unless another process has brought some of them further.
            for part in make_cohorts(mine, lambda run: store.newest_checkpoint(run.folder)[0]):
                run_cohort(part, failures, report, should_stop, threads)
        return Ended(cohort, failures, frozenset(busy))
    except Stopped:
        return Ended(cohort, failures, frozenset(busy), stopped=True)
    except BaseException as error:
        died = Failure.of(error)
        if "DataLoader worker (pid" in died.reason and oom_kills() > kills:
            died = Failure(f"{OUT_OF_MEMORY} ({died.reason})", died.traceback, out_of_memory=True)
        return Ended(cohort, failures, frozenset(busy), died=died, user_error=isinstance(error, UserError))


def _claim(run: Run, locks: ExitStack) -> bool:
    with ExitStack() as attempt:
        if not attempt.enter_context(store.locked(run.folder)) or store.is_done(run.folder):
            return False
        store.tidy(run.folder)
        locks.push(attempt.pop_all())
        return True
