"""The LightningModule that trains a cohort: one batch, one encoder pass, every decoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from segbench.build import derived_seed, seed_torch
from segbench.config import RecipeConfig
from segbench.decoders.base import Decoder
from segbench.encoders.base import Encoder
from segbench.errors import Diverged, Failure
from segbench.loading.features import KeptFeatures, View, channels_first
from segbench.loading.pipeline import Batch
from segbench.tasks.base import Task
from segbench.tasks.segmentation import Segmentation
from segbench.training.clock import Moment, moment, seconds_between
from segbench.training.isolation import Desk, own_copies, turn
from segbench.training.prediction import ChangedInPlace, call_decoder, pad_to_stride, versions
from segbench.upsamplers.base import crop

NORMALISATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # the first: instances' too


def lr_factor(recipe: RecipeConfig, step: int) -> float:
    """Learning rate of a step, 0 to steps - 1, relative to the peak: linear warm-up, then cosine, poly or constant."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    steps, least = recipe.steps - recipe.warmup_steps, recipe.min_lr / recipe.lr
    done = step - recipe.warmup_steps
    if recipe.schedule == "cosine":
        fallen = (1 + math.cos(math.pi * done / (recipe.cosine_steps or steps))) / 2
    else:
        fallen = (1 - done / steps) ** recipe.power if recipe.schedule == "poly" else 1.0
    return least + (1 - least) * fallen


@dataclass
class Member:
    """One run of the cohort while it trains."""

    decoder: nn.Module
    recipe: RecipeConfig  # which may differ from others' in what concerns its optimizer alone
    facts: dict[str, Any] = field(default_factory=dict)  # of what it starts from, for its row
    history: list[dict[str, float]] = field(default_factory=list)  # rows of step, lr and loss (mean since the last row)
    losses: list[float] = field(default_factory=list)  # of the steps since the last row
    train_s: float = 0.0  # seconds in its own forward, backward and optimizer
    failure: Failure | None = None  # once it failed; it then takes no further part
    desk: Desk | None = None  # in its own cohort's process
    optimizer: torch.optim.Optimizer = field(init=False)

    @property
    def last_loss(self) -> float | None:
        """The mean loss of the last row of the history that has one."""
        return next((row["loss"] for row in reversed(self.history) if "loss" in row), None)


class Made(NamedTuple):
    """What a member's step left on the device, and when it began and ended there."""

    member: Member
    numbers: Tensor
    began: Moment
    ended: Moment


def parameter_groups(module: nn.Module, weight_decay: float, factor: float = 1.0) -> list[dict[str, Any]]:
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
    groups = ((decayed, weight_decay), (kept, 0.0))
    return [{"params": params, "weight_decay": decay, "factor": factor} for params, decay in groups if params]


class Lockstep(pl.LightningModule):
    """Trains the decoders of a cohort side by side.

    With a frozen encoder no decoder's gradient reaches another, and the optimizers work element by element; so each
    decoder gets exactly the weights that it would have got alone, whatever the recipes of the others' optimizers. A
    trainable encoder has a cohort of one, and ``encoder_factor`` times the decoder's learning rate.

    Args:
        recipe: what all have in common: the steps, and what makes the batches and the loss.
    """

    def __init__(
        self,
        encoder: Encoder,
        members: dict[str, Member],
        recipe: RecipeConfig,
        seed: int,
        encoder_factor: float = 1.0,
        kept: KeptFeatures | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        if encoder.trainable and len(members) > 1:
            raise ValueError("a trainable encoder cannot be shared: a run with one is a cohort by itself")
        self.automatic_optimization = False
        self.task = task or Segmentation()
        self.encoder, self.members, self.recipe, self.seed, self.kept = encoder, members, recipe, seed, kept
        self.decoders = nn.ModuleDict({key: member.decoder for key, member in members.items()})
        self.steps_done, self.shared_s = 0, 0.0
        self._ended: Moment | None = None  # the step before, and what callbacks did after it
        self.class_weights: Tensor | None
        weights = torch.tensor(recipe.class_weights, dtype=torch.float32) if recipe.class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)
        for member in members.values():
            own = member.recipe
            groups = parameter_groups(member.decoder, own.weight_decay)
            if encoder.trainable:
                groups += parameter_groups(encoder, own.weight_decay, encoder_factor)
            if own.optimizer == "adamw":
                member.optimizer = torch.optim.AdamW(groups, lr=own.lr)
            else:
                member.optimizer = torch.optim.SGD(groups, lr=own.lr, momentum=own.momentum)

    @property
    def alive(self) -> dict[str, Member]:
        """The members that have not failed."""
        return {key: member for key, member in self.members.items() if member.failure is None}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [member.optimizer for member in self.members.values()]

    def on_train_start(self) -> None:
        self.encoder.train()  # stays in eval mode where it is frozen
        self._ended = moment(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        target = self.task.target(batch.images, batch.labels)
        features, image = self._encode(batch)
        assert batch.total is not None
        shared, alone, made = moment(self.device), len(self.members) == 1, list[Made]()
        for member in self.alive.values():
            given = (features, image) if alone else own_copies(member.decoder, features, image)
            began = moment(self.device)
            with turn(self.seed, "dropout", self.steps_done, desk=member.desk) as done:
                numbers = self._train(member, *given, target, batch.total)
            if done.error is not None:
                self._end(member, done.error)
            else:
                made.append(Made(member, numbers, began, moment(self.device)))
        self._read(made)
        if self._ended is not None:
            self.shared_s += seconds_between(self._ended, shared)
        self.steps_done += 1
        if not self.alive:
            self.trainer.should_stop = True

    def on_train_batch_end(self, *_: Any) -> None:
        self._ended = moment(self.device)  # what callbacks did after the step is nobody's training time

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Adds ``total`` while labels are still with the host: on a GPU, to pick them out would be waited for."""
        return batch._replace(total=self.task.total(batch.images, batch.labels, self.recipe.class_weights))

    def _encode(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Features and normalised image of a batch."""
        images = self.task.seen(batch.images)
        image = pad_to_stride(self.encoder.normalise(images), max(self.encoder.strides))
        seed_torch(derived_seed(self.seed, "encoder", self.steps_done))
        if not batch.views or self.encoder.trainable:
            return self.encoder(image), image
        levels = [level.to(image.device) for level in batch.features]
        if missing := [i for i in range(len(image)) if i not in batch.kept]:
            made = self.encoder.each(image[missing])
            if self.kept:
                for place, i in enumerate(missing):
                    view = View(batch.images[i], batch.labels[i], [level[place] for level in made])
                    self.kept.write_view(*batch.views[i], view)
            whole = [level.new_empty(len(image), *level.shape[2:], level.shape[1]) for level in made]
            for out, level in zip(whole, made, strict=True):
                out[missing] = level.movedim(1, -1)
            for out, level in zip(whole, levels, strict=False):
                out[batch.kept] = level
            levels = whole
        return channels_first(levels, image.device), image

    def _train(self, member: Member, features: list[Tensor], image: Tensor, target: Tensor, total: Tensor) -> Tensor:
        """A step of one decoder; its loss and its gradient's norm, 0 where it is not clipped, on the device."""
        optimizer, recipe = member.optimizer, member.recipe
        factor = lr_factor(recipe, self.steps_done)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * factor * group["factor"]
        before = versions(*features, image)
        logits = call_decoder(member.decoder, features, image)
        logits = crop(logits, (target.shape[-2], target.shape[-1]))  # (B, K, H, W)
        summed = self.task.loss(logits.float(), target, self.class_weights)
        loss = summed / total
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        norm = torch.zeros_like(summed)
        if recipe.clip_norm is not None:
            parameters = [p for g in optimizer.param_groups for p in g["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        if versions(*features, image) != before:
            raise ChangedInPlace(f"{type(member.decoder).__name__} changes the features in place in its backward pass")
        return torch.stack([loss.detach(), norm])

    def _read(self, made: Sequence[Made]) -> None:
        """Wait for the device, once a step: losses and times of all; a run whose numbers are not finite ends."""
        numbers: list[list[float]] = torch.stack([done.numbers for done in made]).tolist() if made else []
        for (member, _, began, ended), (loss, norm) in zip(made, numbers, strict=True):
            member.train_s += seconds_between(began, ended)
            try:
                self._check(member, loss, norm)
            except Diverged as error:
                self._end(member, error)
                continue
            member.losses.append(loss)
            if len(member.losses) == max(1, self.recipe.steps // 200) or self.steps_done + 1 == self.recipe.steps:
                mean = sum(member.losses) / len(member.losses)
                lr = member.recipe.lr * lr_factor(member.recipe, self.steps_done)
                member.history.append({"step": self.steps_done + 1, "loss": mean, "lr": lr})
                member.losses = []

    def _check(self, member: Member, loss: float, norm: float) -> None:
        """Raise `Diverged` where one of them is not finite."""
        if not math.isfinite(loss):
            last = member.losses[-1] if member.losses else member.last_loss
            raise Diverged(f"the loss is {loss} at step {self.steps_done}; the last finite loss was {last}")
        if not math.isfinite(norm):
            raise Diverged(f"the gradient's norm is {norm} at step {self.steps_done}; the last loss was {loss}")

    def _end(self, member: Member, error: BaseException) -> None:
        member.failure = Failure.of(error)
        member.optimizer.zero_grad(set_to_none=True)
        member.optimizer.state.clear()  # memory that the others can use
