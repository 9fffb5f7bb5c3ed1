"""From a data set to batches: augmentation that is a function of (seed, epoch, index), and the loaders."""

import functools
import math
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # before the import: it would ask the package registry

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
import torch
from albumentations.core.type_definitions import Targets
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from segbench.config import RecipeConfig
from segbench.data.base import VOID, Dataset, Pixels
from segbench.loading.features import KeptFeatures, stacked

MEAN_COLOUR = 128  # grey, for the padding of images
TRIED = 8  # items that are timed before workers are chosen
T = TypeVar("T")
Resize = int | Sequence[int] | None


class Batch(NamedTuple):
    """What a training step takes.

    Attributes:
        images, labels: (B, 3, H, W) and (B, H, W), uint8.
        views: where there is a fixed number of views, (index, view) of each sample.
        kept: the places in the batch of those whose features are kept.
        features: of these, each level (K, h, w, C); no tensor for each sample, as loader processes share few.
        total: number, or summed class weight, of the pixels that are not void; the module adds it.
    """

    images: Tensor
    labels: Tensor
    views: list[tuple[int, int]]
    kept: list[int]
    features: list[Tensor]
    total: Tensor | None = None


class ScaledCrop(A.DualTransform):
    """A random crop of the randomly scaled image, of which only the pixels in the crop are computed.

    The pixels are those that scaling the whole image by that factor and cropping then would give (bilinear; labels from
    the pixel whose centre is nearest, so that they stay in line with the image), on a grid that begins at a whole
    source pixel near the crop. An image that is smaller than the crop when scaled stands amid the mean colour and void.

    Args:
        scale: (smallest, largest) factor, drawn uniformly.
        crop: (height, width) in pixels.
        resize: shorter side, or height and width, in pixels, to which the factor relates; default: the image's own.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(self, scale: tuple[float, float], crop: tuple[int, int], resize: Resize = None) -> None:
        super().__init__(p=1)
        self.scale, self.crop, self.resize = scale, crop, resize

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        shape = params["shape"][:2]
        drawn = self.py_random.uniform(*self.scale)
        # At least one pixel is left.
        scales = [max(drawn * factor, 1 / min(shape)) for factor in resized_by(shape, self.resize)]
        sides = zip(shape, self.crop, scales, strict=True)
        axes = [window(n, crop, scale, self.py_random.random()) for n, crop, scale in sides]
        return {"scales": scales, "axes": axes}

    def apply(self, img: Pixels, scales: list[float], axes: list["Window"], **_: Any) -> Pixels:
        (y, x), (fy, fx) = axes, scales
        # Given the factor and not a size, OpenCV scales by just that; so near to 1 that the size stays, it copies.
        region = cv2.resize(img[y.source, x.source], None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
        return self._place(np.asarray(region, np.uint8)[y.scaled, x.scaled], axes, MEAN_COLOUR)

    def apply_to_mask(self, mask: Pixels, scales: list[float], axes: list["Window"], **_: Any) -> Pixels:
        # OpenCV's INTER_NEAREST takes the pixel at the corner, and its INTER_NEAREST_EXACT rounds the factor.
        rows, columns = (axis.nearest(scale) for axis, scale in zip(axes, scales, strict=True))
        return self._place(mask[rows].take(columns, axis=1), axes, VOID)

    def _place(self, region: Pixels, axes: list["Window"], fill: int) -> Pixels:
        y, x = axes
        if region.shape[:2] == self.crop:
            return region
        out = np.full((*self.crop, *region.shape[2:]), fill, np.uint8)
        out[y.before : y.before + region.shape[0], x.before : x.before + region.shape[1]] = region
        return out


def resized_by(shape: Sequence[int], resize: Resize) -> tuple[float, float]:
    """Factors for height and width that bring an image of ``shape`` to ``resize``: its shorter side, or both sides."""
    if resize is None:
        return 1.0, 1.0
    if isinstance(resize, int):
        return resize / min(shape), resize / min(shape)
    return resize[0] / shape[0], resize[1] / shape[1]


class Window(NamedTuple):
    """Along one axis: the ``source`` pixels to scale, which ``scaled`` ones to take, the padding ``before`` them."""

    source: slice
    scaled: slice
    before: int

    def nearest(self, scale: float) -> npt.NDArray[np.int64]:
        """For each scaled pixel the source pixel in which its centre lies."""
        at = np.floor((np.arange(self.scaled.start, self.scaled.stop) + 0.5) / scale).astype(np.int64)
        return np.minimum(self.source.start + at, self.source.stop - 1)


def window(length: int, crop: int, scale: float, position: float) -> Window:
    """Where to cut ``crop`` pixels out of ``length`` pixels scaled by ``scale``, at ``position`` of 0 (first) to 1."""
    scaled = round(length * scale)
    if scaled <= crop:
        return Window(slice(0, length), slice(0, scaled), (crop - scaled) // 2)
    start = position * (scaled - crop)
    first = max(0, int(start / scale) - 1)  # one more source pixel on each side, for the interpolation
    skip = min(round(start - first * scale), round((length - first) * scale) - crop)
    last = min(length, first + math.ceil((skip + crop) / scale) + 1)
    return Window(slice(first, last), slice(skip, skip + crop), 0)


def augmentation(recipe: RecipeConfig) -> A.Compose:
    """Random scale, pad to the crop (void), random crop, flip, colour jitter: the usual order of segmentation recipes.

    Labels are only ever taken from the nearest pixel.
    """
    jitter = recipe.color_jitter
    strength = (1 - jitter, 1 + jitter)
    return A.Compose(
        [
            ScaledCrop(recipe.scale, recipe.crop, recipe.resize),
            A.HorizontalFlip(p=recipe.flip),
            *([A.ColorJitter(strength, strength, strength, (0, 0), p=1)] if jitter else []),
        ]
    )


class TrainStream(TorchDataset[tuple[Pixels, Pixels]]):
    """The training samples in the order in which they are used, from ``start`` on.

    Item i is sample ``i % n`` of epoch ``i // n``; the epoch's order comes from (seed, epoch), the augmentation from
    (seed, epoch, index), or, with ``recipe.views``, from (index, view), the epochs taking an image's views in turn. So
    nothing but i decides what is drawn: not the worker, not what was drawn before.
    """

    def __init__(
        self, dataset: Dataset, recipe: RecipeConfig, seed: int, start: int, kept: KeptFeatures | None = None
    ) -> None:
        self.dataset, self.seed, self.start, self.kept, self.views = dataset, seed, start, kept, recipe.views
        self.total = recipe.steps * recipe.batch_size
        self.augment, self.crop = augmentation(recipe), recipe.crop
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None  # of the epoch that was drawn last

    def __len__(self) -> int:
        return self.total - self.start

    def place(self, item: int) -> tuple[int, int, int]:
        """Epoch, index and, with ``recipe.views``, view of item ``item``."""
        epoch, position = divmod(self.start + item, len(self.dataset))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
        index = int(self._order[1][position])
        if self.views is None:
            return epoch, index, 0
        first = np.random.SeedSequence([self.seed, index]).generate_state(1)[0]
        return epoch, index, int(epoch + first) % self.views

    def __getitem__(self, item: int) -> tuple[Pixels, Pixels]:
        epoch, index, view = self.place(item)
        image, labels = self.dataset.read(index)
        # Albumentations draws from generators of its own. One pair for all transforms: with set_random_seed each would
        # get the same stream, and a large scale would always come with the same crop and flip.
        seeds = np.random.SeedSequence([self.seed, epoch, index] if self.views is None else [index, view])
        state = random.Random(int(seeds.generate_state(1, np.uint64)[0]))
        self.augment.set_random_state(np.random.default_rng(seeds), state)
        out = self.augment(image=image, mask=labels)
        return out["image"], out["mask"]

    def __getitems__(self, items: list[int]) -> Batch:
        """What the loader asks for: a batch at once, so that no second copy of it is held."""
        images, labels = np.empty((len(items), 3, *self.crop), np.uint8), np.empty((len(items), *self.crop), np.uint8)
        views = [self.place(item)[1:] for item in items] if self.views else []
        found = {i: made for i, view in enumerate(views) if self.kept and (made := self.kept.read_view(*view))}
        for i, item in enumerate(items):
            if i in found:
                images[i], labels[i] = found[i].image.numpy(), found[i].labels.numpy()
            else:
                image, labels[i] = self[item]
                cv2.split(image, list(images[i]))  # (H, W, 3) -> (3, H, W), much faster than a transposed copy
        features = stacked([made.features for made in found.values()])
        return Batch(torch.from_numpy(images), torch.from_numpy(labels), views, list(found), features)


class EvaluationImages(TorchDataset[tuple[int, Pixels, Pixels]]):
    """Every image of a split once, whole, with its index."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Pixels, Pixels]:
        image, labels = self.dataset.read(index)
        # A cache's arrays are read-only, which tensors cannot be.
        return index, np.require(image, requirements="W"), np.require(labels, requirements="W")


cv2.setNumThreads(0)  # OpenCV keeps threads that do not survive a fork; cohorts and loader workers are processes


def _start_worker(_: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked in a cohort; the loader ends workers with it
    torch.set_num_threads(1)


def _context(workers: int) -> str | None:
    """fork on Linux: fast, and plug-in classes need no pickling."""
    return "fork" if workers and sys.platform == "linux" else None


class Workers:
    """Loader processes of a cohort: as many as are asked for, or as many as keep up with it.

    Where none are asked for, the first items are read here, and timed: then as many processes as it takes to read one
    while another is used, of the cores that the cohort leaves free.

    Args:
        asked: ``launch.workers``.
        spare: cores that the cohort leaves free.

    Attributes:
        most: that this process has had at a time.
    """

    most: ClassVar[int] = 0

    def __init__(self, asked: int | None, spare: int) -> None:
        self.asked, self.spare = asked, spare

    def read(self, load: Callable[[int, int], Iterable[T]], total: int) -> Iterator[T]:
        """The items from 0 to ``total`` of ``load(first, workers)``, which gives those from ``first`` on."""
        first, workers = 0, self.asked or 0
        if self.asked is None and self.spare > 0 and total > 2 * TRIED:
            reading, using = list[float](), list[float]()
            items = iter(load(0, 0))
            for _ in range(TRIED):
                began = time.perf_counter()
                item = next(items)
                read = time.perf_counter()
                yield item
                reading.append(read - began)
                using.append(time.perf_counter() - read)
            first, workers = TRIED, self.enough(statistics.median(reading), statistics.median(using))
        Workers.most = max(Workers.most, workers)
        yield from load(first, workers)

    def enough(self, read_s: float, use_s: float) -> int:
        """How many, where an item takes so long to read and to use; none where that would hide next to nothing."""
        return min(self.spare, math.ceil(1.2 * read_s / use_s)) if read_s > 0.02 * use_s else 0


class Batches:
    """The batches of the steps from ``start_step`` to the end of the recipe, the same for any number of workers."""

    def __init__(
        self,
        dataset: Dataset,
        recipe: RecipeConfig,
        seed: int,
        start_step: int,
        workers: Workers,
        kept: KeptFeatures | None = None,
    ) -> None:
        self.start_step, self.recipe, self.workers = start_step, recipe, workers
        self._load = functools.partial(train_loader, dataset, recipe, seed, kept=kept)

    def __len__(self) -> int:
        return self.recipe.steps - self.start_step

    def __iter__(self) -> Iterator[Batch]:
        return self.workers.read(lambda first, workers: self._load(self.start_step + first, workers), len(self))


def train_loader(
    dataset: Dataset,
    recipe: RecipeConfig,
    seed: int,
    start_step: int,
    workers: int,
    kept: KeptFeatures | None = None,
) -> DataLoader[Batch]:
    """The batches of the steps from ``start_step`` to the end of the recipe, the same for any number of workers."""
    stream: Any = TrainStream(dataset, recipe, seed, start_step * recipe.batch_size, kept)
    return DataLoader(
        stream,
        batch_size=recipe.batch_size,
        sampler=range(len(stream)),
        num_workers=workers,
        multiprocessing_context=_context(workers),
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
    )


def evaluation_images(dataset: Dataset, workers: Workers, first: int = 0) -> Iterator[tuple[int, Pixels, Pixels]]:
    """(index, image, labels) of every image once, from ``first`` on and then those before it."""
    order = [(first + i) % len(dataset) for i in range(len(dataset))]

    def load(start: int, number: int) -> DataLoader[tuple[int, Pixels, Pixels]]:
        return DataLoader(
            EvaluationImages(dataset),
            sampler=order[start:],
            batch_size=None,
            num_workers=number,
            multiprocessing_context=_context(number),
            collate_fn=_as_is,
            worker_init_fn=_start_worker,
        )

    yield from workers.read(load, len(dataset))


def _as_is(sample: Any) -> Any:
    return sample
