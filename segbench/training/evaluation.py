"""Whole-image inference -> integer counts per image: the one evaluation, in training and for the final figures."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from segbench.columns import counts_of, measure_counts_regions, said
from segbench.config import EvaluationConfig
from segbench.data.base import Dataset
from segbench.encoders.base import Encoder
from segbench.errors import Failure, brief
from segbench.loading.pipeline import evaluation_images
from segbench.measures.base import CountMeasure, Ints, Sample, check_labels, mean_over_classes
from segbench.training.prediction import predict


@dataclass
class Evaluation:
    """What one decoder's predictions on a split count up to.

    Attributes:
        measures: that are counted.
        ids: of the N images.
        sizes: (height, width) of each in pixels.
        regions: `Sample.region` of each.
        confusion: summed over them.
        counts: name of a measure with counts of its own -> those of each image.
        broken: name of a measure that failed -> why; it has no counts then.
        seconds: of the decoder for each image, from features to labels.
        count_seconds: of counting for each image.
        failure: once the decoder failed; the counts are then not whole.
    """

    measures: Sequence[CountMeasure]
    ids: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    regions: list[Ints] = field(default_factory=list)
    confusion: Ints | int = 0
    counts: dict[str, list[Ints]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    count_seconds: list[float] = field(default_factory=list)
    failure: Failure | None = None

    def add(self, name: str, sample: Sample) -> None:
        """Count an image. A measure that fails is left out from then on."""
        self.ids.append(name)
        self.sizes.append(sample.size)
        self.regions.append(sample.region)
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

    def arrays(self) -> dict[str, Ints]:
        """``sizes`` (N, 2), ``region`` (N, 3, K), ``confusion`` (K, K), and (N, C, K) by measure; all int64."""
        own = {name: np.stack(counts) for name, counts in self.counts.items()}
        whole = {
            "sizes": np.array(self.sizes),
            "region": np.stack(self.regions),
            "confusion": np.asarray(self.confusion),
        }
        return whole | own

    def headline(self) -> dict[str, float]:
        """``val_NAME`` -> score over the split, of each measure that gives a verdict."""
        found = {}
        for measure in self.measures:
            if measure.verdict_place is not None and measure.name not in self.broken:
                counts = self.regions if measure_counts_regions(measure) else self.counts[measure.name]
                found[f"val_{measure.name}"] = float(mean_over_classes(measure.score(np.sum(counts, 0))))
        return found


def evaluate(
    encoder: Encoder,
    decoders: Mapping[str, nn.Module],
    dataset: Dataset,
    protocol: EvaluationConfig,
    measures: Sequence[CountMeasure],
    workers: int = 0,
    after_image: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Evaluation], float]:
    """Count the predictions of every decoder on every image of a split, at full resolution.

    Logits are brought to the labels' size before the argmax, and each image is counted once. A
    decoder that raises ends its own evaluation only.

    Args:
        decoders: any key -> decoder, on the encoder's device.
        protocol: how predictions are made.
        measures: what is counted of them.
        after_image: called with the number of images done.

    Returns:
        key -> `Evaluation`, and the mean seconds per image of the encoder, which all share.
    """
    was_training = {module: module.training for module in [encoder, *decoders.values()]}
    for module in was_training:
        module.eval()
    results = {key: Evaluation(measures) for key in decoders}
    encoder_s = []
    for index, pixels, labels in evaluation_images(dataset, workers):
        name, truth = dataset.ids[index], check_labels(labels, len(dataset.classes))
        alive = {key: decoder for key, decoder in decoders.items() if results[key].failure is None}
        for key, prediction in predict(encoder, alive, pixels, protocol, f"image {name}"):
            encoder_s.append(prediction.encoder_s)
            if prediction.error is not None:
                results[key].failure = Failure.of(prediction.error)
                continue
            results[key].seconds.append(prediction.seconds)
            clock = time.perf_counter()
            results[key].add(name, Sample(truth, prediction.labels))
            results[key].count_seconds.append(time.perf_counter() - clock)
        after_image(index + 1)
    for module, mode in was_training.items():
        module.train(mode)
    return results, float(np.mean(encoder_s)) if encoder_s else math.nan
