"""The contract of a task: what a decoder puts out, what it is trained to, and what of it is counted."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from segbench.config import SweepConfig


class Task(ABC):
    """What a decoder is trained for, on the same frozen features and in the same skeleton as for any other.

    Its parameters are the arguments of its constructor. The measures of a sweep are those that name it as their
    ``task``, and those that name none.

    Attributes:
        sees: what it does to an image before the encoder sees it, in words; empty where nothing.
    """

    sees: str = ""

    @abstractmethod
    def outputs(self, num_classes: int) -> int:
        """How many channels a decoder puts out, for data with so many classes."""

    @abstractmethod
    def check(self, config: SweepConfig) -> None:
        """Raise a `segbench.errors.UserError` where a sweep says what this task has no use for."""

    def seen(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to what encoder and decoder see of it, of the same shape and type."""
        return images

    @abstractmethod
    def target(self, images: Tensor, labels: Tensor) -> Tensor:
        """What is to be put out for a batch, (B, 3, H, W) and (B, H, W) uint8, in the form that `loss` takes."""

    @abstractmethod
    def total(self, images: Tensor, labels: Tensor, weights: Sequence[float] | None) -> Tensor:
        """By what the summed loss of a batch is divided, a scalar above 0; ``weights`` are ``recipe.class_weights``."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """Summed over a batch; ``output`` (B, C, H, W) float32."""

    @abstractmethod
    def of_view(self, output: Tensor) -> Tensor:
        """(C, h, w) of one view in the form in which several are averaged."""

    @abstractmethod
    def made(self, scores: Tensor) -> npt.NDArray[np.uint8]:
        """(C, h, w) output, or the mean over views, as the prediction that is counted; uint8."""

    @abstractmethod
    def truth(self, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], num_classes: int) -> Any:
        """What every decoder's prediction of an image (H, W, 3) with labels (H, W) is compared with."""

    @abstractmethod
    def sample(self, truth: Any, made: npt.NDArray[np.uint8], model: Any = None) -> Any:
        """What measures count: a truth and a prediction. Has a ``size`` (height, width)."""

    def counts(self, sample: Any) -> dict[str, npt.NDArray[np.integer[Any]]]:
        """What is counted of every image, whatever the measures."""
        return {}

    @abstractmethod
    def examples(self, classes: Sequence[str]) -> list[Any]:
        """Two drawn samples, the first predicted without a fault, on which measures are tried before a sweep."""
