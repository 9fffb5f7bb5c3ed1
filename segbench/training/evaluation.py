"""Whole-image inference -> integer counts per image: the one evaluation, in training and for the final figures."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytorch_lightning as pl

from segbench.columns import counts_of, measure_counts_regions, said
from segbench.data.base import Dataset
from segbench.errors import Failure, brief
from segbench.loading.pipeline import evaluation_images
from segbench.measures.base import CountMeasure, Ints, LabelMap, Measure, Sample, check_labels, mean_over_classes
from segbench.training.control import Control
from segbench.training.lockstep import Lockstep
from segbench.training.prediction import Prediction, predict


class Evaluation:
    """What one decoder's predictions on a split count up to.

    Attributes:
        confusion: summed over the images.
        counts: ``ids``, ``sizes`` (height, width), `Sample.region` and, by the name of a measure, its own counts,
            of each image.
        broken: name of a measure that failed -> why; it has no counts then.
        seconds: of each image: the decoder's, from features to labels; the encoder's, which all share; of counting.
        failure: once the decoder failed; the counts are then not whole.
    """

    def __init__(self, measures: Iterable[Measure]) -> None:
        self.measures = [measure for measure in measures if isinstance(measure, CountMeasure)]
        self.confusion: Ints | int = 0
        self.counts: dict[str, list[Any]] = {"ids": [], "sizes": [], "region": []}
        self.broken: dict[str, str] = {}
        self.seconds: list[tuple[float, float, float]] = []
        self.failure: Failure | None = None

    def add(self, name: str, truth: LabelMap, made: Prediction) -> None:
        """Count an image. A measure that fails is left out from then on."""
        if made.error is not None:
            self.failure = Failure.of(made.error)
            return
        clock = time.perf_counter()
        sample = Sample(truth, made.labels)
        for what, value in (("ids", name), ("sizes", sample.size), ("region", sample.region)):
            self.counts[what].append(value)
        self.confusion = self.confusion + sample.confusion
        for measure in self.measures:
            if measure_counts_regions(measure) or measure.name in self.broken:
                continue
            try:
                found, before = counts_of(measure, sample), self.counts.setdefault(measure.name, [])
                if before and before[0].shape != found.shape:
                    raise ValueError(f"count gives {found.shape} after {before[0].shape}")
                before.append(found)
            except Exception as error:  # a plug-in can raise anything
                self.counts.pop(measure.name, None)
                self.broken[measure.name] = f"{said(measure)} fails on image {name}: {brief(error)}"
        self.seconds.append((made.seconds, made.encoder_s, time.perf_counter() - clock))

    def arrays(self) -> dict[str, Any]:
        """``counts`` over N images and ``confusion`` (K, K): ``region`` is (N, 3, K), a measure's (N, C, K), int64."""
        return {name: np.array(counts) for name, counts in self.counts.items()} | {"confusion": self.confusion}

    def headline(self) -> dict[str, float]:
        """``val_NAME`` -> score over the split, of each measure that gives a verdict."""
        found = {}
        for measure in self.measures:
            if measure.verdict_place is not None and measure.name not in self.broken:
                counts = self.counts["region" if measure_counts_regions(measure) else measure.name]
                found[f"val_{measure.name}"] = float(mean_over_classes(measure.score(np.sum(counts, 0))))
        return found


def evaluate(
    control: Control, module: Lockstep, data: Dataset, measures: Iterable[Measure], after_image: Callable[[int], None]
) -> dict[str, Evaluation]:
    """Count the predictions of every run that has not failed on every image of a split, at full resolution.

    Logits are brought to the labels' size before the argmax, and each image is counted once; ``after_image`` is called
    with the number of images done. A decoder that raises ends its own evaluation only.
    """
    config, was_training = control.config, module.training
    module.eval()
    results = {key: Evaluation(measures) for key in module.alive}
    for index, pixels, labels in evaluation_images(data, config.launch.workers):
        name, truth = data.ids[index], check_labels(labels, len(data.classes))
        decoders = {key: module.members[key].decoder for key, result in results.items() if result.failure is None}
        for key, made in predict(module.encoder, decoders, pixels, config.evaluation, f"image {name}"):
            results[key].add(name, truth, made)
        after_image(index + 1)
    module.train(was_training)
    return results


class Evaluations(pl.Callback):
    """Adds scores to the runs' histories every so many steps.

    One that a stop cuts short adds nothing; the resume does it, from the checkpoint of that step.
    """

    def __init__(self, control: Control, data: Dataset, measures: Iterable[Measure]) -> None:
        self.control, self.data, self.measures = control, data, measures

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        config, step = self.control.config, pl_module.steps_done
        every = config.evaluation.every
        if not every or step % every or not 0 < step < config.recipe.steps:
            return
        results = evaluate(self.control, pl_module, self.data, self.measures, self.control.check)
        for key, result in results.items():
            if result.failure is None:
                history = pl_module.members[key].history
                history.append({"step": step, **result.headline()})
                self.control.trackers.update(key, history)
