"""All scores of one prediction on 1024x2048 with 19 classes, against per-class references, on the same arrays.

With ``--labels`` of label maps of one size, such as CamVid's, in place of a drawn scene.

Counted: mIoU, Boundary IoU at two ratios, boundary F1 at 3 px, trimap IoU at five widths; on one core. The reference
does each class by itself as published: OpenCV erosions for Boundary IoU, OpenCV distance transforms for the others.
Both must give the same numbers. Prints seconds and ratio, with the truth's side and, as decoders share it, without.
"""

import argparse
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from segbench.data.base import read_labels
from segbench.measures.base import VOID, Sample, check_labels
from segbench.measures.bf1 import BF1
from segbench.measures.biou import BIoU, band_width
from segbench.measures.trimap import Trimap

SIZES = range(3, 22)  # how many regions of a class stand above each other in the image
RATIOS, TOLERANCE, WIDTHS = [0.02, 0.005], 3, [1, 2, 4, 8, 16]


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """A label map with regions of many sizes, as a street scene has, 3 % of it void."""
    rng = np.random.default_rng(seed)
    fields = [cv2.resize(rng.normal(size=(s, 2 * s)), (width, height), interpolation=cv2.INTER_CUBIC) for s in SIZES]
    labels = np.argmax(fields, 0).astype(np.uint8)
    labels[cv2.resize(rng.normal(size=(8, 16)), (width, height)) > 1.8] = VOID
    return labels


def reference(truth: np.ndarray, prediction: np.ndarray, classes: int) -> list[np.ndarray]:
    """Counts class by class."""
    void = truth == VOID
    prediction = np.where(void, VOID, prediction).astype(np.uint8)
    box = np.ones((3, 3), np.uint8)
    region, boundary = np.zeros((3, classes), np.int64), np.zeros((2, 3, classes), np.int64)
    contour, trimap = np.zeros((4, classes), np.int64), np.zeros((5, 3, classes), np.int64)
    to_other = np.full(truth.shape, np.inf)  # Chebyshev distance of a pixel to the nearest of another class
    for c in range(classes):
        t, p = truth == c, prediction == c
        region[:, c] = (t & p).sum(), p.sum(), t.sum()
        filled = [((m | void) * np.uint8(1)) for m in (p, t)]
        for i, ratio in enumerate(RATIOS):
            d = band_width(ratio, *truth.shape)
            bands = []
            for m, own in zip(filled, (p, t), strict=True):
                padded = cv2.copyMakeBorder(m, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
                bands.append(own & (cv2.erode(padded, box, iterations=d)[1:-1, 1:-1] == 0))
            boundary[i, :, c] = (bands[0] & bands[1]).sum(), bands[0].sum(), bands[1].sum()
        lines = [own & (cv2.erode(m, box) == 0) for m, own in zip(filled, (p, t), strict=True)]
        far = [cv2.distanceTransform((~line).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for line in lines]
        near = [line & (f <= TOLERANCE) & o.any() for line, f, o in zip(lines, far[::-1], lines[::-1], strict=True)]
        contour[:, c] = near[0].sum(), lines[0].sum(), near[1].sum(), lines[1].sum()
        others = ((truth != c) & ~void).astype(np.uint8)
        distance = cv2.distanceTransform(1 - others, cv2.DIST_C, 3) if others.any() else np.inf
        to_other = np.where(t, distance, to_other)
    for i, w in enumerate(WIDTHS):
        for c in range(classes):
            t, p = (truth == c) & (to_other <= w), (prediction == c) & (to_other <= w)
            trimap[i, :, c] = (t & p).sum(), p.sum(), t.sum()
    return [region, boundary, contour, trimap]


def count(sample: Sample) -> list[np.ndarray]:
    boundary, trimap = [BIoU(r).count(sample) for r in RATIOS], [Trimap(w).count(sample) for w in WIDTHS]
    return [sample.region, np.stack(boundary), BF1(TOLERANCE).count(sample), np.stack(trimap)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--labels", type=Path, help="a label map in place of the drawn scene")
    parser.add_argument("--classes", type=int, help="of that; higher labels are void")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    truth, classes = scene(*args.size, 0), len(SIZES)
    if args.labels:
        truth = read_labels(args.labels)
        classes = args.classes
        truth[truth >= classes] = VOID
    prediction = np.roll(np.where(truth == VOID, 0, truth), (2, 3), (0, 1)).astype(np.uint8)
    on_contour = check_labels(truth, classes).band(1).mean()
    print(f"{truth.shape[1]}x{truth.shape[0]}, {on_contour:.1%} on a contour")
    ours_whole, ours_shared, theirs = [], [], []
    for _ in range(args.repeats):
        start = time.perf_counter()
        side = check_labels(truth, classes)
        count(Sample(side, prediction))
        middle = time.perf_counter()
        found = count(Sample(side, prediction))
        end = time.perf_counter()
        wanted = reference(truth, prediction, classes)
        theirs.append(time.perf_counter() - end)
        ours_whole.append(middle - start)
        ours_shared.append(end - middle)
        for name, a, b in zip(("region", "boundary", "contour", "trimap"), found, wanted, strict=True):
            assert np.array_equal(a, b), f"{name} counts differ from the reference's"
    for name, ours in (("with the truth's side", ours_whole), ("truth's side shared", ours_shared)):
        ratios = [t / o for t, o in zip(theirs, ours, strict=True)]
        print(
            f"{name}: {statistics.median(ours):.3f} s against {statistics.median(theirs):.2f} s, "
            f"{statistics.median(ratios):.0f} times faster (from {min(ratios):.0f} to {max(ratios):.0f})"
        )


if __name__ == "__main__":
    main()
