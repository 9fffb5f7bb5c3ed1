"""The LightningModule that trains a cohort: one batch, one encoder pass, every decoder."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.build import derived_seed
from segbench.config import RecipeConfig
from segbench.data.base import VOID
from segbench.decoders.base import Decoder
from segbench.encoders.base import Encoder
from segbench.errors import Failure
from segbench.training.prediction import ChangedInPlace, call_decoder, pad_to_stride
from segbench.upsamplers.base import crop

NORMALISATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # the first: instances' too


def lr_factor(recipe: RecipeConfig, step: int) -> float:
    """Learning rate of a step, 0 to steps - 1, relative to the peak: linear warm-up, then cosine, poly or constant."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return (1 - done) ** recipe.power if recipe.schedule == "poly" else 1.0


@dataclass
class Member:
    """One run of the cohort while it trains.

    Attributes:
        history: rows of step, loss (mean since the last row) and lr.
        train_s: seconds in its own forward, backward and optimizer.
        failure: once it failed; it then takes no further part.
    """

    decoder: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)
    train_s: float = 0.0
    failure: Failure | None = None
    losses: list[float] = field(default_factory=list)

    @property
    def last_loss(self) -> float | None:
        """The mean loss of the last row of the history that has one."""
        return next((row["loss"] for row in reversed(self.history) if "loss" in row), None)


class Diverged(RuntimeError):
    """A loss or gradient that is not finite."""


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of a decoder or encoder as groups of an optimizer: those that decay, and those that do not.

    Biases and normalisation (torch's layers, and whatever has one dimension) do not, as is usual; nor do the kernels of
    upsamplers, which decay would pull to zero and not to the interpolation that they started as.
    """
    left_alone = [step.module for step in (module.upsampling() if isinstance(module, Decoder) else ())]
    left_alone += [part for part in module.modules() if isinstance(part, NORMALISATION)]
    ids = {id(p) for part in left_alone for p in part.parameters()}
    ids |= {id(p) for name, p in module.named_parameters() if p.ndim <= 1 or name.endswith("bias")}
    decayed = [p for p in module.parameters() if id(p) not in ids]
    kept = [p for p in module.parameters() if id(p) in ids]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Lockstep(pl.LightningModule):
    """Trains the decoders of a cohort side by side.

    With a frozen encoder no decoder's gradient reaches another, and the optimizers work element by element; so each
    decoder gets exactly the weights that it would have got alone.

    Args:
        encoder: shared; trainable only in a cohort of one.
        members: run key -> `Member`.
        recipe: as in the config.
        seed: of the runs.
        start_step: the first step to train, above 0 after a resume.
        lr_factor_encoder: learning rate of a trainable encoder, relative to the decoders'.
    """

    def __init__(
        self,
        encoder: Encoder,
        members: Mapping[str, Member],
        recipe: RecipeConfig,
        seed: int,
        start_step: int = 0,
        lr_factor_encoder: float = 1.0,
    ) -> None:
        super().__init__()
        if encoder.trainable and len(members) > 1:
            raise ValueError("a trainable encoder cannot be shared: a run with one is a cohort by itself")
        self.automatic_optimization = False
        self.encoder, self.members, self.recipe, self.seed = encoder, dict(members), recipe, seed
        self.decoders = nn.ModuleDict({key: m.decoder for key, m in self.members.items()})
        self.steps_done, self.lr_factor_encoder = start_step, lr_factor_encoder
        self.shared_s = 0.0
        self.row_every = max(1, recipe.steps // 200)
        self.class_weights: Tensor | None
        weights = torch.tensor(recipe.class_weights, dtype=torch.float32) if recipe.class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)
        self.optimizer_states: dict[str, Any] = {}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = []
        for key, member in self.members.items():
            r = self.recipe
            groups = [g | {"factor": 1.0} for g in parameter_groups(member.decoder, r.weight_decay)]
            if self.encoder.trainable:
                own = parameter_groups(self.encoder, r.weight_decay)
                groups += [g | {"factor": self.lr_factor_encoder} for g in own]
            optimizer: torch.optim.Optimizer = (
                torch.optim.AdamW(groups, lr=r.lr)
                if r.optimizer == "adamw"
                else torch.optim.SGD(groups, lr=r.lr, momentum=r.momentum)
            )
            if key in self.optimizer_states:
                optimizer.load_state_dict(self.optimizer_states[key])
            optimizers.append(optimizer)
        return optimizers

    def on_train_start(self) -> None:
        self.encoder.train()  # stays in eval mode where it is frozen
        self._clock = time.perf_counter()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch[0], batch[1].long()  # (B, 3, H, W) uint8, (B, H, W)
        features, image = self._encode(images)
        versions = [t._version for t in (*features, image)]
        optimizers: Any = self.optimizers(use_pl_optimizer=True)
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        self._tick()
        for member, optimizer in zip(self.members.values(), optimizers, strict=True):
            if member.failure is not None:
                continue
            try:
                self._train(member, optimizer, features, image, labels)
            except Exception as error:  # a plug-in can raise anything; it ends its own run only
                member.failure = Failure.of(error)
            changed = versions != [t._version for t in (*features, image)]
            if changed and member.failure is None:
                name = type(member.decoder).__name__
                member.failure = Failure.of(
                    ChangedInPlace(f"{name} changes the features in place in its backward pass")
                )
            if member.failure is not None:
                optimizer.zero_grad(set_to_none=True)
                optimizer.state.clear()  # memory that the others can use
            member.train_s += self._tick(own=True)
            if changed:  # the others go on with fresh ones
                features, image = self._encode(images)
                versions = [t._version for t in (*features, image)]
        self.steps_done += 1
        if all(m.failure is not None for m in self.members.values()):
            self.trainer.should_stop = True

    def on_train_batch_end(self, *_: Any) -> None:
        self._clock = time.perf_counter()  # what callbacks did after the step is nobody's training time

    def _encode(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features and normalised image of a batch; each call of a step gives the same."""
        image = pad_to_stride(self.encoder.normalise(images), max(self.encoder.strides))
        torch.manual_seed(derived_seed(self.seed, "encoder", self.steps_done))
        return self.encoder(image), image

    def _train(self, member: Member, optimizer: Any, features: list[Tensor], image: Tensor, labels: Tensor) -> None:
        factor = lr_factor(self.recipe, self.steps_done)
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.lr * factor * group["factor"]
        torch.manual_seed(derived_seed(self.seed, "dropout", self.steps_done))
        logits = call_decoder(member.decoder, features, image)
        logits = crop(logits, (labels.shape[-2], labels.shape[-1]))  # (B, K, H, W)
        summed = F.cross_entropy(logits.float(), labels, self.class_weights, ignore_index=VOID, reduction="sum")
        loss = summed / self._denominator(labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            last = member.losses[-1] if member.losses else member.last_loss
            raise Diverged(f"the loss is {value} at step {self.steps_done}; the last finite loss was {last}")
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        if self.recipe.clip_norm is not None:
            parameters = [p for g in optimizer.param_groups for p in g["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm, error_if_nonfinite=False)
            if not torch.isfinite(norm):
                raise Diverged(
                    f"the gradient's norm is {float(norm)} at step {self.steps_done}; the last loss was {value}"
                )
        optimizer.step()
        member.losses.append(value)
        if len(member.losses) == self.row_every or self.steps_done + 1 == self.recipe.steps:
            mean = sum(member.losses) / len(member.losses)
            member.history.append({"step": self.steps_done + 1, "loss": mean, "lr": self.recipe.lr * factor})
            member.losses = []

    def _denominator(self, labels: Tensor) -> Tensor:
        """Number, or summed class weight, of the pixels that are not void; above 0, also where all are."""
        counted = labels != VOID
        if self.class_weights is None:
            return counted.sum().clamp(min=1)
        return self.class_weights[labels[counted]].sum().clamp(min=torch.finfo(torch.float32).tiny)

    def _tick(self, own: bool = False) -> float:
        """Seconds since the last tick; those that belong to no member go to ``shared_s``."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        self.shared_s += 0.0 if own else elapsed
        return elapsed
