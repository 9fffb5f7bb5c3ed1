"""Segmentation: a class for every pixel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from segbench.columns import drawn_samples
from segbench.config import SweepConfig
from segbench.measures.base import VOID, LabelMap, Sample, check_labels
from segbench.tasks.base import Task


class Segmentation(Task):
    """Class logits, trained by cross-entropy over the pixels that are not void."""

    def outputs(self, num_classes: int) -> int:
        return num_classes

    def check(self, config: SweepConfig) -> None:
        pass

    def target(self, images: Tensor, labels: Tensor) -> Tensor:
        return labels.long()

    def total(self, images: Tensor, labels: Tensor, weights: Sequence[float] | None) -> Tensor:
        counted = labels != VOID
        if weights is None:
            return counted.sum().clamp(min=1)
        summed = torch.tensor(weights, dtype=torch.float32)[labels[counted].long()].sum()
        return summed.clamp(min=torch.finfo(torch.float32).tiny)  # also where all are void

    def loss(self, output: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        return F.cross_entropy(output, target, weights, ignore_index=VOID, reduction="sum")

    def of_view(self, output: Tensor) -> Tensor:
        return output.softmax(0)

    def made(self, scores: Tensor) -> npt.NDArray[np.uint8]:
        found: npt.NDArray[np.uint8] = scores.max(0).indices.to(torch.uint8).cpu().numpy()  # argmax: 7 times as slow
        return found

    def truth(self, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], num_classes: int) -> LabelMap:
        return check_labels(labels, num_classes)

    def sample(self, truth: LabelMap, made: npt.NDArray[np.uint8], model: Any = None) -> Sample:
        return Sample(truth, made, model)

    def counts(self, sample: Sample) -> dict[str, npt.NDArray[np.integer[Any]]]:
        return {"region": sample.region, "confusion": sample.confusion}

    def examples(self, classes: Sequence[str]) -> list[Sample]:
        return drawn_samples(classes)
