"""What a run needs to go on bit for bit: saved, and read as data."""

import io
import time
from typing import Any

import pytorch_lightning as pl
import torch

from segbench import store
from segbench.errors import UserError, brief
from segbench.runs import Run
from segbench.training.control import Control, Stopped
from segbench.training.lockstep import Lockstep


class Checkpoints(pl.Callback):
    """Saves the runs' states now and then, at a stop, at the end, and before each evaluation."""

    def __init__(self, control: Control) -> None:
        self.runs, self.config = control.runs, control.config
        self.last = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        step, every = pl_module.steps_done, self.config.evaluation.every
        due = time.monotonic() - self.last > 60 * self.config.launch.checkpoint_minutes
        if due or step == self.config.recipe.steps or (every and step % every == 0):
            self._save(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, Stopped):
            self._save(pl_module)

    def _save(self, module: Lockstep) -> None:
        """All that a bit-equal resume needs; the rest is a function of seed and step."""
        for key, member in module.alive.items():
            state = {
                "decoder": member.decoder.state_dict(),
                "encoder": module.encoder.state_dict() if module.encoder.trainable else None,
                "optimizer": member.optimizer.state_dict(),
                "history": member.history,
                "losses": member.losses,
                "train_s": member.train_s,
                "shared_s": module.shared_s,
            }
            buffer = io.BytesIO()  # torch.save hides what a full disk says
            torch.save(state, buffer)
            store.write_checkpoint(self.runs[key].folder, module.steps_done, buffer.getbuffer())
        self.last = time.monotonic()


def load_checkpoint(run: Run, module: Lockstep) -> None:
    """Set the run's member to its newest checkpoint.

    Raises:
        UserError: it cannot be read as tensors and plain data.
    """
    _, path = store.newest_checkpoint(run.folder)
    assert path is not None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{path} cannot be read ({brief(error)}); remove it to start the run anew") from error
    member = module.members[run.key]
    member.decoder.load_state_dict(state["decoder"])
    member.optimizer.load_state_dict(state["optimizer"])
    if state["encoder"] is not None:
        module.encoder.load_state_dict(state["encoder"])
    member.history, member.losses, member.train_s = state["history"], state["losses"], state["train_s"]
    module.shared_s = state["shared_s"]
