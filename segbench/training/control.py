"""How a cohort speaks with its runner while it works: how far it is, whether to stop, which of its runs failed."""

import math
import time
from collections.abc import Callable, Collection
from typing import Any

import pytorch_lightning as pl

from segbench import store
from segbench.errors import Failure
from segbench.runs import Cohort, should_halve
from segbench.training.tracking import Trackers

Report = Callable[[str, int, int], None]  # phase (train or evaluate), done, total
STATUS_S = 5.0  # between two notes for `segbench status`


class Stopped(Exception):
    """The runner asked to stop; the state is saved."""


class Control(pl.Callback):
    """Of one cohort; after each step it ends the runs that failed in it.

    Args: as `segbench.training.cohort.run_cohort` takes them.
    """

    def __init__(
        self, cohort: Cohort, failures: dict[str, Failure], report: Report, should_stop: Callable[[], bool]
    ) -> None:
        self.cohort, self.runs = cohort, {run.key: run for run in cohort.runs}
        self.config, self.facts = cohort.runs[0].config, cohort.runs[0].facts
        self.failures, self.trackers = failures, Trackers(self.config.launch.trackers)
        self._report, self._should_stop, self._noted = report, should_stop, -math.inf

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        for key, member in pl_module.members.items():
            if member.failure is not None and key not in self.failures:
                self.fail(key, member.failure)
        self.tell("train", pl_module.steps_done, self.config.recipe.steps)

    def tell(self, phase: str, done: int, total: int) -> None:
        """Report, and every few seconds note it in the folders of the runs that go on; raises `Stopped` if asked to."""
        self._report(phase, done, total)
        self.note(phase, done, total)
        self.check()

    def note(self, phase: str, done: int, total: int) -> None:
        if time.monotonic() - self._noted < STATUS_S:
            return
        self._noted = time.monotonic()
        for key, run in self.runs.items():
            if key not in self.failures:
                store.set_status(run.folder, "running", phase=phase, done=done, total=total)

    def check(self, *_: int) -> None:
        """Raise `Stopped` if the runner asks for it."""
        if self._should_stop():
            raise Stopped

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
