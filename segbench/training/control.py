"""How a cohort speaks with its runner while it works: how far it is, whether to stop, which of its runs failed."""

import math
import time
from collections.abc import Callable, Collection

from segbench import store
from segbench.errors import Failure
from segbench.runs import Cohort, should_halve
from segbench.training.tracking import Trackers

Report = Callable[[str, int, int], None]  # phase (train or evaluate), done, total
STATUS_S = 5.0  # between two notes for `segbench status`


class Stopped(Exception):
    """The runner asked to stop; the state is saved."""


class Control:
    """Of one cohort.

    Args:
        cohort: whose locks the caller holds.
        failures: run key -> why; a run that fails is added here.
        report: called with phase, steps or images done, and their total.
        should_stop: asked after each step and each evaluated image.
        trackers: the live view of its runs.
    """

    def __init__(
        self,
        cohort: Cohort,
        failures: dict[str, Failure],
        report: Report,
        should_stop: Callable[[], bool],
        trackers: Trackers,
    ) -> None:
        self.cohort, self.runs = cohort, {run.key: run for run in cohort.runs}
        self.failures, self.trackers = failures, trackers
        self._report, self._should_stop = report, should_stop
        self.stop_asked, self._noted = False, -math.inf

    def tell(self, phase: str, done: int, total: int) -> None:
        """Report, and every few seconds note it in the folders of the runs that go on."""
        self._report(phase, done, total)
        self.note(phase, done, total)

    def note(self, phase: str, done: int, total: int) -> None:
        if time.monotonic() - self._noted < STATUS_S:
            return
        self._noted = time.monotonic()
        for key, run in self.runs.items():
            if key not in self.failures:
                store.set_status(run.folder, "running", phase=phase, done=done, total=total)

    def stopping(self) -> bool:
        """Whether the runner has asked to stop."""
        self.stop_asked = self.stop_asked or self._should_stop()
        return self.stop_asked

    def fail(self, key: str, failure: Failure) -> None:
        """End a run that failed, or leave it to a smaller cohort."""
        self.failures[key] = failure
        again = should_halve(self.cohort, failure)
        self.trackers.close(key, "stopped" if again else "failed")
        if again:
            store.set_status(self.runs[key].folder, "stopped", reason=failure.reason)
        else:
            store.fail(self.runs[key].folder, failure)

    def stopped(self, keys: Collection[str], step: int) -> None:
        """These runs were stopped at that step."""
        for key in keys:
            self.trackers.close(key, "stopped")
            store.set_status(self.runs[key].folder, "stopped", step=step)
