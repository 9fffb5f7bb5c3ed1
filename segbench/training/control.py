"""What happens between the steps of a cohort, and how it speaks with its runner."""

import io
import math
import time
from collections.abc import Callable, Collection
from typing import Any

import pytorch_lightning as pl
import torch

from segbench import store
from segbench.columns import load_measures
from segbench.errors import Failure, UserError, brief
from segbench.loading.features import KeptFeatures
from segbench.loading.pipeline import Workers
from segbench.runs import Cohort, should_split
from segbench.training.isolation import Desk, turn
from segbench.training.lockstep import Lockstep
from segbench.training.tracking import Trackers

Report = Callable[[str, int, int], None]  # phase (train or evaluate), done, total
STATUS_S = 5.0  # between two notes for `segbench status`


class Stopped(Exception):
    """The runner asked to stop; the state is saved."""


class Control(pl.Callback):
    """Ends runs that failed in a step, reports, stops where the runner asks for that, and saves the runs' states.

    The arguments are those of `run_cohort`. States are saved now and then, at a stop, at the end, and before each
    evaluation.
    """

    def __init__(
        self, cohort: Cohort, failures: dict[str, Failure], report: Report, should_stop: Callable[[], bool]
    ) -> None:
        self.cohort, self.runs = cohort, {run.key: run for run in cohort.runs}
        self.config, self.facts = cohort.runs[0].config, cohort.runs[0].facts
        self.measures, self.trackers = (
            load_measures(self.config.measures, self.config.task.title),
            Trackers(self.config.launch.trackers),
        )
        self.desks: dict[str, Desk] = {}
        self.kept: dict[str, KeptFeatures] = {}  # of ``train`` and ``val``, where features are kept
        self.workers = Workers(0, 0)
        self.failures, self._report, self._should_stop = failures, report, should_stop
        self._noted, self._saved = -math.inf, time.monotonic()
        self._phase, self._since = "", (0.0, 0)  # when the phase began, and with how many steps or images done

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        step, steps, every = pl_module.steps_done, self.config.recipe.steps, self.config.evaluation.every
        for key, member in pl_module.members.items():
            self.trackers.update(key, member.history)
            if member.failure is not None and key not in self.failures:
                self.fail(key, member.failure)
        self.tell("train", step, steps)
        due = time.monotonic() - self._saved > 60 * self.config.launch.checkpoint_minutes
        if due or step == steps or (every and step % every == 0):
            self.save(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, Stopped):
            self.save(pl_module)

    def tell(self, phase: str, done: int, total: int) -> None:
        """Report, and every few seconds note it; raises `Stopped` where the runner asks for that."""
        self._report(phase, done, total)
        self.note(phase, done, total)
        self.check()

    def note(self, phase: str, done: int, total: int) -> None:
        """Leave word in the folders of the runs that go on, unless that has just been done."""
        if phase != self._phase:
            self._phase, self._since = phase, (time.time(), done)
        if time.monotonic() - self._noted < STATUS_S:
            return
        self._noted = time.monotonic()
        said = {"phase": phase, "done": done, "total": total, "since": self._since}
        for key in self.runs.keys() - self.failures.keys():
            store.set_status(self.runs[key].folder, "running", **said)

    def check(self, *_: int) -> None:
        """Raise `Stopped` where the runner asks for that."""
        if self._should_stop():
            raise Stopped

    def fail(self, key: str, failure: Failure) -> None:
        """End a run that failed, or leave it to a smaller cohort."""
        self.failures[key] = failure
        if should_split(self.cohort, failure):
            self.stopped([key], reason=failure.reason)
        else:
            self.trackers.close(key, "failed")
            store.fail(self.runs[key].folder, failure)

    def stopped(self, keys: Collection[str], **details: Any) -> None:
        """These runs are to be gone on with, for instance from a step."""
        for key in keys:
            self.trackers.close(key, "stopped")
            store.set_status(self.runs[key].folder, "stopped", **details)

    def save(self, module: Lockstep) -> None:
        """All that a bit-equal resume needs; the rest is a function of seed and step."""
        for key, member in module.alive.items():
            buffer = io.BytesIO()  # torch.save hides what a full disk says
            with turn(key, "save", desk=member.desk) as done:
                state = {
                    "decoder": member.decoder.state_dict(),
                    "encoder": module.encoder.state_dict() if module.encoder.trainable else None,
                    "optimizer": member.optimizer.state_dict(),
                    "history": member.history,
                    "losses": member.losses,
                    "train_s": member.train_s,
                    "shared_s": module.shared_s,
                }
                torch.save(state, buffer)
            if done.error is not None:
                member.failure = Failure.of(done.error)
                self.fail(key, member.failure)
                continue
            store.write_checkpoint(self.runs[key].folder, module.steps_done, buffer.getbuffer())
        self._saved = time.monotonic()

    def load(self, module: Lockstep) -> None:
        """Set the members to their newest checkpoints; a `UserError` where one is not tensors and plain data."""
        for key, member in module.members.items():
            module.steps_done, path = store.newest_checkpoint(self.runs[key].folder)
            assert path is not None
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # a damaged file fails in many ways
                raise UserError(f"{path} cannot be read ({brief(error)}); remove it to start the run anew") from error
            with turn(key, "load", desk=member.desk) as done:
                member.decoder.load_state_dict(state["decoder"])
                member.optimizer.load_state_dict(state["optimizer"])
            if done.error is not None:
                member.failure = Failure.of(done.error)
                self.fail(key, member.failure)
                continue
            if state["encoder"] is not None:
                module.encoder.load_state_dict(state["encoder"])
            member.history, member.losses, member.train_s = state["history"], state["losses"], state["train_s"]
            module.shared_s = state["shared_s"]
