"""Reconstruction: the image itself, from the features of it or of a reduced one."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from segbench.config import SweepConfig
from segbench.errors import UserError
from segbench.measures.base import ImageSample
from segbench.tasks.base import Task


class Reconstruction(Task):
    """The colours of every pixel, trained by their mean absolute error, as in super-resolution (Lim et al. 2017,
    https://arxiv.org/abs/1707.02921), where upsamplers come from.

    With a factor the encoder and a guided upsampler see the image reduced by it, the mean of each block, and brought
    back to its size by bicubic interpolation (Dong et al. 2014, https://arxiv.org/abs/1501.00092). Without, a guided
    upsampler is given the very image that it should bring back.

    Args:
        factor: by which each side of the image is reduced; 1 leaves it as it is.
    """

    def __init__(self, factor: Literal[1, 2, 3, 4] = 1) -> None:
        self.factor = factor
        self.sees = f"reduced {factor} times" if factor > 1 else ""

    def outputs(self, num_classes: int) -> int:
        return 3

    def check(self, config: SweepConfig) -> None:
        for key, value in (
            ("recipe.class_weights", config.recipe.class_weights),
            ("evaluation.label_size", config.evaluation.label_size),
        ):
            if value is not None:
                raise UserError(f"{key} is for segmentation; task: reconstruction has no classes and no labels")

    def seen(self, images: Tensor) -> Tensor:
        if self.factor == 1:
            return images
        height, width = images.shape[-2:]
        padded = F.pad(images.float(), (0, -width % self.factor, 0, -height % self.factor), "replicate")
        back = F.interpolate(F.avg_pool2d(padded, self.factor), padded.shape[-2:], mode="bicubic", align_corners=False)
        return back[..., :height, :width].round().clamp(0, 255).to(torch.uint8)

    def target(self, images: Tensor, labels: Tensor) -> Tensor:
        return images.float() / 255

    def total(self, images: Tensor, labels: Tensor, weights: Sequence[float] | None) -> Tensor:
        return torch.tensor(images.numel())

    def loss(self, output: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        return F.l1_loss(output, target, reduction="sum")

    def of_view(self, output: Tensor) -> Tensor:
        return output.clone()  # to which others are added

    def made(self, scores: Tensor) -> npt.NDArray[np.uint8]:
        colours = (255 * scores.float()).round().clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(colours.permute(1, 2, 0).cpu().numpy())

    def truth(
        self, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], num_classes: int
    ) -> npt.NDArray[np.uint8]:
        return pixels

    def sample(self, truth: npt.NDArray[np.uint8], made: npt.NDArray[np.uint8], model: Any = None) -> ImageSample:
        return ImageSample(truth, made)

    def examples(self, classes: Sequence[str]) -> list[ImageSample]:
        image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
        return [ImageSample(image, image), ImageSample(image, 255 - image)]
