"""What a run needs to go on bit for bit: saved, and read as data."""

import io
from typing import Any

import torch

from segbench import store
from segbench.errors import UserError, brief
from segbench.runs import Run
from segbench.training.lockstep import Lockstep


def save_checkpoint(run: Run, module: Lockstep, step: int) -> None:
    """All that a bit-equal resume needs; the rest is a function of seed and step."""
    position = list(module.members).index(run.key)
    optimizers: Any = module.optimizers(use_pl_optimizer=False)
    optimizer = optimizers[position] if isinstance(optimizers, list) else optimizers
    member = module.members[run.key]
    state = {
        "step": step,
        "decoder": member.decoder.state_dict(),
        "encoder": module.encoder.state_dict() if module.encoder.trainable else None,
        "optimizer": optimizer.state_dict(),
        "history": member.history,
        "losses": member.losses,
        "train_s": member.train_s,
        "shared_s": module.shared_s,
    }
    buffer = io.BytesIO()  # torch.save hides what a full disk says
    torch.save(state, buffer)
    store.write_checkpoint(run.folder, step, buffer.getbuffer())


def load_checkpoint(run: Run, module: Lockstep) -> dict[str, Any]:
    """Set the run's member to its newest checkpoint; returns the optimizer's state.

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
    if state["encoder"] is not None:
        module.encoder.load_state_dict(state["encoder"])
    member.history, member.losses, member.train_s = state["history"], state["losses"], state["train_s"]
    module.shared_s = state["shared_s"]
    optimizer: dict[str, Any] = state["optimizer"]
    return optimizer
