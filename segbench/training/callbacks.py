"""What happens between training steps, as Lightning's callbacks, in the order in which a cohort calls them."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from segbench.data.base import Dataset
from segbench.measures.base import CountMeasure
from segbench.training.checkpoints import save_checkpoint
from segbench.training.control import Control, Stopped
from segbench.training.evaluation import Evaluation, evaluate
from segbench.training.lockstep import Lockstep


class Reports(pl.Callback):
    """Tells the runner how far the cohort is, and stops where it asks for that."""

    def __init__(self, control: Control, steps: int) -> None:
        self.control, self.steps = control, steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.control.tell("train", pl_module.steps_done, self.steps)
        if self.control.stopping():
            trainer.should_stop = True


class Checkpoints(pl.Callback):
    """Saves the runs' states now and then, at a stop, at the end, and before each evaluation."""

    def __init__(self, control: Control) -> None:
        self.runs, self.config = control.runs, control.cohort.runs[0].config
        self.last = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        step, every = pl_module.steps_done, self.config.evaluation.every
        due = time.monotonic() - self.last > 60 * self.config.launch.checkpoint_minutes
        whole = step == self.config.recipe.steps or (every and step % every == 0)
        if trainer.should_stop or due or whole:
            for key, member in pl_module.members.items():
                if member.failure is None:
                    save_checkpoint(self.runs[key], pl_module, step)
            self.last = time.monotonic()


class Evaluations(pl.Callback):
    """Adds scores to the runs' histories every so many steps.

    One that a stop cuts short adds nothing; the resume does it, from the checkpoint of that step.
    """

    def __init__(self, control: Control, data: Dataset, measures: Sequence[CountMeasure]) -> None:
        self.control, self.data, self.measures = control, data, measures
        self.config = control.cohort.runs[0].config

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if not trainer.should_stop and not self.whole(pl_module):
            trainer.should_stop = True

    def whole(self, module: Lockstep) -> bool:
        """Evaluate where it is due and has not been; False where a stop cut it short."""
        step, every = module.steps_done, self.config.evaluation.every
        if not every or step % every or not 0 < step < self.config.recipe.steps:
            return True
        lacking = {
            key: member.decoder
            for key, member in module.members.items()
            if member.failure is None
            and not any(row["step"] == step and "loss" not in row for row in member.history[-1:])
        }
        try:
            with torch.autocast(module.device.type, enabled=False):  # as the final evaluation
                results, _ = evaluate_all(self.control, module, lacking, self.data, self.measures)
        except Stopped:
            return False
        for key, result in results.items():
            if result.failure is None:
                module.members[key].history.append({"step": step, **result.headline()})
        return True


class LiveLogs(pl.Callback):
    """Hands new rows of the histories to the trackers, and ends runs that failed in the step."""

    def __init__(self, control: Control) -> None:
        self.control = control

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        for key, member in pl_module.members.items():
            self.control.trackers.update(key, member.history)
            if member.failure is not None and key not in self.control.failures:
                self.control.fail(key, member.failure)


def evaluate_all(
    control: Control,
    module: Lockstep,
    decoders: dict[str, torch.nn.Module],
    data: Dataset,
    measures: Sequence[CountMeasure],
    after_image: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Evaluation], float]:
    """`evaluate` with what the cohort's config says.

    Raises:
        Stopped: the runner asked for it after an image.
    """
    config = control.cohort.runs[0].config

    def then(done: int) -> None:
        after_image(done)
        if control.stopping():
            raise Stopped

    return evaluate(module.encoder, decoders, data, config.evaluation, measures, config.launch.workers, then)
