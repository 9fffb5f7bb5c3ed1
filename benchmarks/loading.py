"""Images per second and core of reading and augmenting, against bare `cv2.imread` of the same files.

Bare is ``imread`` of the image in colour and of its label file unchanged. All is measured in turns, in one run, on one
thread, in seconds of the processor, so that other work on the machine counts for less; files are in the page cache.
Drawn files have the sizes, in pixels and in bytes, of VOC's JPEGs and of Cityscapes' PNGs; with ``--data``, the real
VOC and CamVid below that folder are measured too. Prints median, quartiles and range of the repeats; at last images per
second by the clock with 2 workers.
"""

import argparse
import collections
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from segbench.config_file import load_config
from segbench.data.base import PairedFiles, voc_palette
from segbench.data.camvid import CamVid
from segbench.data.cityscapes import Cityscapes
from segbench.data.voc import VOC
from segbench.loading.pipeline import TrainStream, train_loader

ROOT = Path(__file__).parent.parent
PART = 16  # images of a measurement


def picture(height: int, width: int, rng: np.random.Generator, noise: float) -> np.ndarray:
    """(H, W, 3) uint8 whose detail falls with its size as in photographs, under the noise of a sensor."""
    image = np.full((height, width, 3), 128, np.float32)
    for cells in (4, 8, 16, 32, 64, 128):
        field = rng.normal(size=(cells, 2 * cells, 3)).astype(np.float32)
        image += 100 / cells**0.5 * cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + noise * rng.normal(size=image.shape), 0, 255).astype(np.uint8)


def label_map(height: int, width: int, rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """(H, W) uint8 with large regions, a few per image."""
    fields = [cv2.resize(rng.normal(size=(4, 6)), (width, height), interpolation=cv2.INTER_CUBIC) for _ in values]
    return values[np.argmax(fields, 0)].astype(np.uint8)


def draw_voc(root: Path, number: int) -> VOC:
    rng = np.random.default_rng(0)
    lists = root / "ImageSets" / "Segmentation"
    for folder in (lists, root / "JPEGImages", root / "SegmentationClass"):
        folder.mkdir(parents=True)
    for i in range(number):
        image = picture(375, 500, rng, 4)
        cv2.imwrite(str(root / "JPEGImages" / f"{i}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 96])
        mask = Image.fromarray(label_map(375, 500, rng, np.array([0, 0, 5, 12, 255])), "P")
        mask.putpalette([channel for colour in voc_palette(256) for channel in colour])
        mask.save(root / "SegmentationClass" / f"{i}.png")
    (lists / "train.txt").write_text("\n".join(map(str, range(number))))
    return VOC("train", root)


def draw_cityscapes(root: Path, number: int) -> Cityscapes:
    rng = np.random.default_rng(0)
    images, labels = root / "leftImg8bit" / "train" / "ulm", root / "gtFine" / "train" / "ulm"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for i in range(number):
        cv2.imwrite(str(images / f"ulm_{i}_leftImg8bit.png"), picture(1024, 2048, rng, 0.8))
        cv2.imwrite(str(labels / f"ulm_{i}_gtFine_labelIds.png"), label_map(1024, 2048, rng, np.arange(34)))
    return Cityscapes("train", root)


def bare(data: PairedFiles) -> None:
    for _, image, labels in data.pairs:
        assert cv2.imread(str(image), cv2.IMREAD_COLOR) is not None
        assert cv2.imread(str(labels), cv2.IMREAD_UNCHANGED) is not None


def take(things: Iterator[object], number: int) -> None:
    """Make the next ones, keep none."""
    collections.deque(itertools.islice(things, number), 0)


def per_s(work: Callable[[], object], images: int, clock: Callable[[], float] = time.process_time) -> float:
    start = clock()
    work()
    return images / (clock() - start)


def spread(values: list[float]) -> str:
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.0f} ({low:.0f} to {high:.0f}; all {min(values):.0f} to {max(values):.0f})"


def measure(title: str, data: PairedFiles, config: str, repeats: int, cache: bool) -> None:
    data.pairs, data.ids = data.pairs[:PART], data.ids[:PART]
    recipe = load_config(ROOT / "configs" / f"{config}.yaml").recipe
    sizes = [statistics.mean(p[i].stat().st_size for p in data.pairs) / 1000 for i in (1, 2)]
    print(f"{title}: {len(data)} pairs of {sizes[0]:.0f} and {sizes[1]:.1f} kB, crop {list(recipe.crop)}")
    batches = PART // recipe.batch_size
    stream = TrainStream(data, recipe, 0, 0)
    reads, samples = (data.read(i % len(data)) for i in itertools.count()), (stream[i] for i in itertools.count())
    loaded = iter(train_loader(data, recipe, 0, 0, 0))
    work = {
        "imread": lambda: [bare(data) for _ in range(PART // len(data))],
        "read": lambda: take(reads, PART),
        "read, augment": lambda: take(samples, PART),
        "read, augment, batch": lambda: take(loaded, batches),
    }
    with tempfile.TemporaryDirectory() as folder:
        if cache:
            from segbench.loading.cache import cached

            mapped = iter(train_loader(cached(data, Path(folder), ""), recipe, 0, 0, 0))
            work["the same, cached"] = lambda: take(mapped, batches)
        found: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(repeats + 1):
            for name, function in work.items():
                found[name].append(per_s(function, PART))
    for name, (_, *values) in found.items():  # the first warms up
        ratios = [100 * v / b for v, b in zip(values, found["imread"][1:], strict=True)]
        share = "" if name == "imread" else f", {spread(ratios)} % of imread"
        print(f"  {name:20} {spread(values)} images/s{share}")
    loaded = iter(train_loader(data, recipe, 0, 0, 2))
    take(loaded, 4)
    two = [per_s(lambda: take(loaded, 4 * batches), 4 * PART, time.perf_counter) for _ in range(6)]
    print(f"  {'2 workers':20} {spread(two)} images/s by the clock")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with VOCdevkit and camvid")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--no-cache", action="store_true", help="leave the cache out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets = [
            ("drawn, as VOC", draw_voc(Path(folder) / "voc", PART), "voc"),
            ("drawn, as Cityscapes", draw_cityscapes(Path(folder) / "cityscapes", 8), "cityscapes"),
        ]
        if args.data is not None:
            sets.append(("real VOC", VOC("trainval", args.data / "VOCdevkit"), "voc"))
            sets.append(("real CamVid", CamVid("val", args.data / "camvid"), "camvid"))
        for title, data, config in sets:
            measure(title, data, config, args.repeats, not args.no_cache)


if __name__ == "__main__":
    main()
