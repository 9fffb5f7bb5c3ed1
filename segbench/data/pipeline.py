"""From a data set to batches: augmentation that is a function of (seed, epoch, index), and the loaders."""

import os
import signal
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # before the import: it would ask the package registry

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from segbench.config import RecipeConfig
from segbench.data.base import VOID, Dataset, Pixels

Batch = tuple[Tensor, Tensor]  # images (B, 3, H, W) uint8, labels (B, H, W) uint8


def augmentation(recipe: RecipeConfig) -> A.Compose:
    """Random scale, pad to the crop (void), random crop, flip, colour jitter: the usual order of segmentation recipes.

    Labels are only ever taken from the nearest pixel.
    """
    height, width = recipe.crop
    low, high = recipe.scale
    jitter = recipe.color_jitter
    return A.Compose(
        [
            A.RandomScale(
                (low - 1, high - 1), interpolation=cv2.INTER_LINEAR, mask_interpolation=cv2.INTER_NEAREST, p=1
            ),
            A.PadIfNeeded(height, width, border_mode=cv2.BORDER_CONSTANT, fill=128, fill_mask=VOID),
            A.RandomCrop(height, width),
            A.HorizontalFlip(p=recipe.flip),
            A.ColorJitter((1 - jitter, 1 + jitter), (1 - jitter, 1 + jitter), (1 - jitter, 1 + jitter), (0, 0), p=1)
            if jitter
            else A.NoOp(),
        ]
    )


class TrainStream(TorchDataset[tuple[Pixels, Pixels]]):
    """The training samples in the order in which they are used, from ``start`` on.

    Item i is sample ``i % n`` of epoch ``i // n``; the epoch's order comes from (seed, epoch), the augmentation from
    (seed, epoch, index). So nothing but i decides what is drawn: not the worker, not what was drawn before.
    """

    def __init__(self, dataset: Dataset, recipe: RecipeConfig, seed: int, start: int) -> None:
        self.dataset, self.seed, self.start = dataset, seed, start
        self.total = recipe.steps * recipe.batch_size
        self.augment = augmentation(recipe)

    def __len__(self) -> int:
        return self.total - self.start

    def __getitem__(self, item: int) -> tuple[Pixels, Pixels]:
        epoch, position = divmod(self.start + item, len(self.dataset))
        index = int(np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))[position])
        image, labels = self.dataset.read(index)
        # Albumentations draws from generators of its own, which must be set for each sample.
        self.augment.set_random_seed(int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0]))
        out = self.augment(image=image, mask=labels)
        return out["image"], out["mask"]


class EvaluationImages(TorchDataset[tuple[int, Pixels, Pixels]]):
    """Every image of a split once, whole, with its index."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Pixels, Pixels]:
        return (index, *self.dataset.read(index))


def _collate(samples: list[tuple[Pixels, Pixels]]) -> Batch:
    images = torch.from_numpy(np.stack([image for image, _ in samples])).permute(0, 3, 1, 2)  # (B, 3, H, W) uint8
    return images.contiguous(), torch.from_numpy(np.stack([labels for _, labels in samples]))  # (B, H, W) uint8


cv2.setNumThreads(0)  # OpenCV keeps threads that do not survive a fork; cohorts and loader workers are processes


def _start_worker(_: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked in a cohort; the loader ends workers with it
    torch.set_num_threads(1)


def train_loader(dataset: Dataset, recipe: RecipeConfig, seed: int, start_step: int, workers: int) -> DataLoader[Batch]:
    """The batches of the steps from ``start_step`` to the end of the recipe, the same for any number of workers."""
    stream: Any = TrainStream(dataset, recipe, seed, start_step * recipe.batch_size)
    return DataLoader(
        stream,
        batch_size=recipe.batch_size,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
    )


def evaluation_images(dataset: Dataset, workers: int) -> Iterator[tuple[int, Pixels, Pixels]]:
    """(index, image, labels) of every image once, in order."""
    yield from DataLoader(
        EvaluationImages(dataset),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
    )


def _as_is(sample: Any) -> Any:
    return sample
