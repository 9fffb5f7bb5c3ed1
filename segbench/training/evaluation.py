"""Whole-image inference -> integer counts per image: the one evaluation, in training and for the final figures."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from segbench.columns import counts_of, measure_counts_regions, said
from segbench.config import EvaluationConfig
from segbench.data.base import Dataset
from segbench.encoders.base import Encoder
from segbench.errors import Failure, brief
from segbench.loading.pipeline import evaluation_images
from segbench.measures._model import Model
from segbench.measures.base import CountMeasure, DoesNotFit, Labels, mean_over_classes
from segbench.tasks.base import Task
from segbench.training.control import Control
from segbench.training.counted import centre_crop
from segbench.training.isolation import Desk, turn
from segbench.training.lockstep import Lockstep
from segbench.training.model import Looked, RunModel, as_it_started
from segbench.training.prediction import SEGMENTATION, Keep, Prediction, computed, predict_counted

GOLDEN = (5**0.5 - 1) / 2  # whose multiples lie far apart, modulo 1


@dataclass
class Evaluation:
    """What one decoder's predictions on a split count up to."""

    measures: Sequence[CountMeasure]
    num_classes: int
    task: Task = SEGMENTATION
    confusion: Any = 0  # summed over the images
    counts: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))  # of each image, as in `arrays`
    broken: dict[str, str] = field(default_factory=dict)  # name of a measure that failed, without counts then -> why
    seconds: list[tuple[float, float, float]] = field(default_factory=list)  # decoder, encoder (all share it), counting
    failure: Failure | None = None  # once the decoder failed; the counts are then not whole

    def add(self, name: str, truth: Any, made: Prediction, model: Model | None = None) -> None:
        """Count an image. A measure that fails is left out from then on."""
        if made.error is not None:
            self.failure = Failure.of(made.error)
            return
        clock = time.perf_counter()
        sample = self.task.sample(truth, made.labels, model)
        self.counts["ids"].append(name)
        self.counts["sizes"].append(sample.size)
        counted = self.task.counts(sample)
        if "confusion" in counted:
            self.confusion = self.confusion + counted.pop("confusion")
        for whole, of_image in counted.items():
            self.counts[whole].append(of_image)
        for measure in self.measures:
            if measure_counts_regions(measure) or measure.name in self.broken:
                continue
            with turn("count", name) as done, torch.no_grad():
                found, before = counts_of(measure, sample, self.num_classes), self.counts[measure.name]
                if before and before[0].shape != found.shape:
                    raise ValueError(f"count gives {found.shape} after {before[0].shape}")
                before.append(found)
            if done.error is not None:
                self.counts.pop(measure.name, None)
                why = str(done.error) if isinstance(done.error, DoesNotFit) else brief(done.error)
                self.broken[measure.name] = f"{said(measure)} fails on image {name}: {why}"
        self.seconds.append((made.seconds, made.encoder_s, time.perf_counter() - clock))

    def arrays(self) -> dict[str, Any]:
        """``ids`` and ``sizes`` of N images, ``region`` (N, 3, K), ``confusion`` (K, K), and (N, C, K) by measure."""
        summed = {} if isinstance(self.confusion, int) else {"confusion": self.confusion}
        return {name: np.array(counts) for name, counts in self.counts.items()} | summed

    def in_order(self, first: int) -> None:
        """Put images that were counted from ``first`` on into the split's order."""
        for name, counts in self.counts.items():
            self.counts[name] = counts[len(counts) - first :] + counts[: len(counts) - first]

    def headline(self) -> dict[str, float]:
        """``val_NAME`` -> score over the split, of each measure that gives a verdict."""
        found = {}
        for measure in self.measures:
            if measure.verdict_place is not None and measure.name not in self.broken:
                counts = self.counts["region" if measure_counts_regions(measure) else measure.name]
                found[f"val_{measure.name}"] = float(mean_over_classes(measure.score(np.sum(counts, 0))))
        return found


def count_image(
    results: Mapping[str, Evaluation],
    encoder: Encoder,
    decoders: Mapping[str, nn.Module],
    image: tuple[str, Any, Labels],
    classes: Sequence[str],
    protocol: EvaluationConfig,
    desks: Mapping[str, Desk | None] = MappingProxyType({}),
    keep: Keep = computed,
    starts: Mapping[str, Callable[[], nn.Module]] = MappingProxyType({}),
    task: Task = SEGMENTATION,
) -> None:
    """Add an image to the evaluation of every decoder that has not failed.

    Args:
        results: of the same keys as ``decoders``.
        image: id, pixels (H, W, 3) and labels (H, W), uint8.
        classes: their names.
        desks, keep: as of `predict`.
        starts: key -> what gives the decoder as it was before training, where that is known.
        task: for which they were trained.

    Raises:
        UserError: the image is smaller than the crop that the protocol asks for.
    """
    name, pixels, labels = image
    alive = {key: decoders[key] for key, result in results.items() if result.failure is None}
    labels, predicted = predict_counted(encoder, alive, pixels, labels, protocol, f"image {name}", desks, keep, task)
    pixels = centre_crop(pixels, protocol, f"image {name}")
    truth, looked = task.truth(pixels, labels, len(classes)), Looked(encoder, protocol, pixels, classes)
    for key, made in predicted:
        results[key].add(name, truth, made, RunModel(looked, alive[key], made, starts.get(key)))


def evaluate(control: Control, module: Lockstep, data: Dataset, tell: Callable[[int], None]) -> dict[str, Evaluation]:
    """Count the predictions of every run that has not failed on every image of a split, at its labels' resolution.

    Logits are brought to the labels' size before the argmax, and each image is counted once; ``tell`` is called with
    the number of images done. A decoder that raises ends its own evaluation only.
    """
    module.eval()
    counted = [measure for measure in control.measures if isinstance(measure, CountMeasure)]
    number, task, kept = len(data.classes), module.task, control.kept.get("val")
    results = {key: Evaluation(counted, number, task) for key in module.alive}
    starts = {
        key: functools.cache(functools.partial(as_it_started, control.runs[key], module.encoder, task.outputs(number)))
        for key in results
    }
    # Seeds that are evaluated side by side begin at different images, and find what the others have kept.
    first = int(len(data) * (module.seed * GOLDEN % 1)) if kept else 0
    for done, (index, pixels, labels) in enumerate(evaluation_images(data, control.workers, first), 1):
        decoders = {key: module.members[key].decoder for key in results}
        protocol, image = control.config.evaluation, (data.ids[index], pixels, labels)
        keep = kept.keeper(str(index), module.device) if kept else computed
        given = protocol, control.desks, keep, starts, task
        count_image(results, module.encoder, decoders, image, data.classes, *given)
        tell(done)
    for result in results.values():
        result.in_order(first)
    module.train()
    return results


class Evaluations(pl.Callback):
    """Adds scores to the runs' histories every so many steps.

    One that a stop cuts short adds nothing; the resume does it, from the checkpoint of that step.
    """

    def __init__(self, control: Control, data: Dataset) -> None:
        self.control, self.data = control, data

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        config, step = self.control.config, pl_module.steps_done
        every = config.evaluation.every
        if not every or step % every or not 0 < step < config.recipe.steps or not pl_module.alive:
            return
        for key, result in evaluate(self.control, pl_module, self.data, self.control.check).items():
            if result.failure is None:
                history = pl_module.members[key].history
                history.append({"step": step, **result.headline()})
                self.control.trackers.update(key, history)
