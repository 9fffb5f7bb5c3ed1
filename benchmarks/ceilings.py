"""What labels at a coarse stride, and what colours alone, can reach on `shapes`: the figures of docs/shapes.md.

Ceilings: the labels of the evaluation split reduced to stride s by the majority of each s x s block (of equal counts
the lower label) and brought back by repeating, scored against the labels themselves. Lookup: each pixel gets the class
that had most pixels of its colour (16 levels a channel) in the training split, each class's counts divided by its whole
number to the power w; the w with the highest mIoU on the evaluation split is taken, which favours the lookup. Prints
Markdown; with ``--picture`` also writes the first evaluation scenes above their labels.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from segbench.config_file import load_config
from segbench.data import open_data
from segbench.data.base import Dataset, Pixels
from segbench.measures.base import Sample, check_labels, iou, mean_over_classes
from segbench.measures.biou import BIoU
from segbench.measures.ceiling import brought_back

STRIDES = (2, 4, 8, 16)
LEVELS = 16  # of each colour channel in the lookup
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEFAULT = Path(__file__).resolve().parent.parent / "configs/default.yaml"


def colour_bins(image: Pixels) -> np.ndarray:
    """(H, W) index of the colour of each pixel, `LEVELS` levels a channel."""
    r, g, b = np.moveaxis(image.astype(np.int64) * LEVELS // 256, -1, 0)
    return (r * LEVELS + g) * LEVELS + b


def ceilings(data: Dataset) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """IoU and Boundary IoU (0.02) per class by stride, from counts summed over the split."""
    k = len(data.classes)
    truths = [check_labels(data.read(i)[1], k) for i in range(len(data))]
    found = {}
    for stride in STRIDES:
        samples = [Sample(t, brought_back(t.labels, stride, k)) for t in truths]
        region = np.sum([s.region for s in samples], 0)
        boundary = np.sum([BIoU(0.02).count(s) for s in samples], 0)
        found[stride] = (iou(region), iou(boundary))
    return found


def lookup(train: Dataset, val: Dataset) -> tuple[float, np.ndarray]:
    """The best w and the IoU per class with it."""
    k = len(train.classes)
    table = np.zeros((LEVELS**3, k))
    for i in range(len(train)):
        image, labels = train.read(i)
        np.add.at(table, (colour_bins(image), labels), 1)
    best = (0.0, np.zeros(k))
    for w in WEIGHTS:
        by_colour = (table / table.sum(0) ** w).argmax(1)
        confusion = np.zeros((k, k), np.int64)
        for i in range(len(val)):
            image, labels = val.read(i)
            np.add.at(confusion, (labels, by_colour[colour_bins(image)]), 1)
        scores = iou(np.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)]))
        if mean_over_classes(scores) > mean_over_classes(best[1]):
            best = (w, scores)
    return best


def row(name: object, scores: np.ndarray) -> str:
    return f"| {name} | {' | '.join(f'{100 * v:.1f}' for v in (mean_over_classes(scores), *scores))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument("--picture", type=Path, metavar="PNG")
    args = parser.parse_args()
    config = load_config(args.config)
    train, val = (open_data(config.data, which) for which in ("train", "val"))
    if args.picture:
        scenes = [val.read(i) for i in range(4)]
        colours = np.array(val.palette, np.uint8)
        Image.fromarray(np.hstack([np.vstack([image, colours[labels]]) for image, labels in scenes])).save(args.picture)
    head = f"mean | {' | '.join(val.classes)} |\n|{' --- |' * (len(val.classes) + 2)}"
    found = ceilings(val)
    for i, name in enumerate(("IoU", "Boundary IoU 0.02")):
        print(f"| stride, {name} | {head}")
        print("\n".join(row(stride, scores[i]) for stride, scores in found.items()) + "\n")
    w, scores = lookup(train, val)
    print(f"| colour alone, IoU | {head}\n{row(f'lookup, w = {w}', scores)}")


if __name__ == "__main__":
    main()
