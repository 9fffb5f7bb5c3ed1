"""What measures count, against brute force, SciPy, OpenCV and the Cityscapes script; and their contract."""

import argparse
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from segbench.measures.accuracy import Accuracy
from segbench.measures.base import VOID, LabelMap, Sample, check_labels, iou, mean_over_classes
from segbench.measures.bf1 import BF1, contour_f1
from segbench.measures.biou import BIoU, band_width
from segbench.measures.trimap import Trimap
from segbench.report.runs import collapsed


def count(truth, prediction, classes, ratios=(), tolerances=(), widths=()):
    """Counts of one pair of label maps."""
    sample = Sample(check_labels(truth, classes), prediction)
    boundary, contour, trimap = (
        np.array([measure(option).count(sample) for option in options])
        for measure, options in ((BIoU, ratios), (BF1, tolerances), (Trimap, widths))
    )
    return SimpleNamespace(
        region=sample.region, confusion=sample.confusion, boundary=boundary, contour=contour, trimap=trimap
    )


def brute_force_band(labels, width_px):
    """Straight from the definition: within ``width_px`` of a pixel of another class or of what is outside the image."""
    height, width = labels.shape
    band = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(width):
            if labels[y, x] == VOID:
                continue
            for dy in range(-width_px, width_px + 1):
                for dx in range(-width_px, width_px + 1):
                    v, u = y + dy, x + dx
                    outside = not (0 <= v < height and 0 <= u < width)
                    if outside or (labels[v, u] != VOID and labels[v, u] != labels[y, x]):
                        band[y, x] = True
    return band


def brute_force_counts(truth, prediction, classes, ratio):
    """Counts of one image, class by class and pixel set by pixel set."""
    prediction = np.where(truth == VOID, VOID, prediction)
    d = max(1, round(ratio * (truth.shape[0] ** 2 + truth.shape[1] ** 2) ** 0.5))
    bands = brute_force_band(truth, d), brute_force_band(prediction, d)
    region, boundary = np.zeros((2, 3, classes), int)
    for c in range(classes):
        t, p = truth == c, prediction == c
        region[:, c] = (t & p).sum(), p.sum(), t.sum()
        t, p = t & bands[0], p & bands[1]
        boundary[:, c] = (t & p).sum(), p.sum(), t.sum()
    return region, boundary, d


def blobs(rng, height, width, classes, void):
    """A random label map with regions of several sizes, and void pixels where wanted."""
    coarse = rng.integers(0, classes, (height // 3 + 1, width // 4 + 1))
    labels = np.kron(coarse, np.ones((3, 4), int))[:height, :width].astype(np.uint8)
    labels[rng.random(labels.shape) < 0.05] = rng.integers(0, classes)
    if void:
        labels[rng.random(labels.shape) < 0.1] = VOID
        labels[:, : rng.integers(0, 4)] = VOID
    return labels


@pytest.mark.parametrize("seed", range(200))
def test_counts_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(5, 28, 2)
    classes = int(rng.integers(2, 6))
    truth = blobs(rng, height, width, classes, void=seed % 2 == 1)
    prediction = blobs(rng, height, width, classes, void=False)
    ratio = float(rng.choice([0.01, 0.05, 0.15]))
    counts = count(truth, prediction, classes, [ratio])
    region, boundary, d = brute_force_counts(truth, prediction, classes, ratio)
    np.testing.assert_array_equal(counts.region, region)
    np.testing.assert_array_equal(counts.boundary[0], boundary)
    assert band_width(ratio, height, width) == d


def test_mean_iou_is_that_of_the_cityscapes_script():
    script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    from cityscapesscripts.helpers.labels import labels as table

    train = [label for label in table if 0 <= label.trainId < 19]
    args = argparse.Namespace(evalLabels=sorted({label.id for label in table if label.id >= 0}))
    rng = np.random.default_rng(0)
    for seen in (19, 12):
        total = np.zeros((3, 19), np.int64)
        official = np.zeros((max(args.evalLabels) + 1,) * 2, np.ulonglong)
        to_id = np.zeros(256, np.uint8)
        for label in train:
            to_id[label.trainId] = label.id
        for _ in range(5):
            truth = blobs(rng, 60, 90, seen, void=True)
            prediction = np.where(
                rng.random(truth.shape) < 0.6, truth % seen, blobs(rng, 60, 90, seen, void=False)
            ).astype(np.uint8)
            total += count(truth, prediction, 19).region
            np.add.at(official, (to_id[truth], to_id[prediction]), 1)  # void has id 0, which the script ignores
        scores = [script.getIouScoreForLabel(label.id, official, args) for label in train]
        np.testing.assert_array_equal(iou(total), scores)
        assert mean_over_classes(iou(total)) == np.nanmean(scores)


def test_band_width_rounds_half_to_even():
    assert (band_width(0.02, 375, 500), band_width(0.02, 1024, 2048), band_width(0.005, 1024, 2048)) == (12, 46, 11)
    assert band_width(0.0001, 10, 10) == 1


def test_classes_that_face_each_other_across_void_make_a_contour():
    labels = np.zeros((21, 21), np.uint8)
    labels[:, 10] = VOID
    labels[:, 11:] = 1
    band = LabelMap(labels, 2).band(2, border=True)
    assert band[10].tolist() == [True, True] + [False] * 7 + [True, False, True] + [False] * 7 + [True, True]
    labels[labels == 1] = 0  # void alone makes none
    assert not LabelMap(labels, 2).band(2, border=True)[10, 2:-2].any()


def test_void_counts_nowhere():
    truth = np.full((9, 9), VOID, np.uint8)
    counts = count(truth, np.ones((9, 9), np.uint8), 3, [0.1])
    assert counts.region.sum() == counts.boundary.sum() == counts.confusion.sum() == 0
    assert np.isnan(mean_over_classes(iou(counts.region)))
    assert np.isnan(Accuracy().score(counts.region)).all()


def test_perfect_and_disjoint():
    truth = np.repeat(np.arange(3, dtype=np.uint8), 30).reshape(9, 10)
    perfect = count(truth, truth, 4, [0.1])
    assert (
        mean_over_classes(iou(perfect.region))
        == mean_over_classes(iou(perfect.boundary[0]))
        == Accuracy().score(perfect.region)[0] / 100
        == 1
    )
    assert np.isnan(iou(perfect.region)[3])  # never there, never predicted: no score, not 0
    wrong = count(truth, ((truth + 1) % 3).astype(np.uint8), 4, [0.1])
    assert mean_over_classes(iou(wrong.region)) == mean_over_classes(iou(wrong.boundary[0])) == 0


def test_data_set_level_not_image_level():
    """Counts are added up before the division."""
    small, large = np.zeros((2, 2), np.uint8), np.zeros((2, 8), np.uint8)
    counts = [count(small, np.ones_like(small), 2), count(large, large, 2)]
    total = sum(c.region for c in counts)
    assert iou(total).tolist() == [16 / 20, 0.0]


@pytest.mark.parametrize(
    ("labels", "prediction", "message"),
    [
        (np.full((4, 4), 3, np.uint8), np.zeros((4, 4), np.uint8), "label 3 is neither one of 3 classes nor void"),
        (np.zeros((4, 4), np.uint8), np.full((4, 4), 7, np.uint8), "prediction holds 7, not one of 3 classes"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8), r"prediction is \(4, 5\) uint8, truth \(4, 4\)"),
        (np.zeros((4, 4), np.int64), np.zeros((4, 4), np.uint8), "should be .* uint8"),
    ],
)
def test_wrong_maps_are_refused(labels, prediction, message):
    with pytest.raises(ValueError, match=message):
        count(labels, prediction, 3)


def test_counts_are_64_bit():
    counts = count(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), 2, [0.1], [2], [1])
    assert {value.dtype for value in vars(counts).values()} == {np.dtype(np.int64)}


def contour_by_hand(labels):
    """Pixels with another class among their eight neighbours, void and what is outside left out."""
    contour = np.zeros(labels.shape, bool)
    for y, x in np.argwhere(labels != VOID):
        around = labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        contour[y, x] = ((around != VOID) & (around != labels[y, x])).any()
    return contour


@pytest.mark.parametrize("seed", range(40))
def test_contour_and_trimap_counts_are_those_of_scipy(seed):
    """Contours by hand, distances by SciPy's exact Euclidean transform, the trimap by its Chebyshev one."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 6))
    truth = blobs(rng, *rng.integers(6, 40, 2), classes, void=seed % 2 == 1)
    prediction = np.where(truth == VOID, VOID, blobs(rng, *truth.shape, classes, void=False)).astype(np.uint8)
    tolerances, widths = [1, 2.5, 5], [1, 3, 8]
    counts = count(truth, prediction, classes, [], tolerances, widths)
    contours = [contour_by_hand(m) for m in (prediction, truth)]
    for i, tolerance in enumerate(tolerances):
        for c in range(classes):
            p, t = contours[0] & (prediction == c), contours[1] & (truth == c)
            far = np.inf
            to_t = ndimage.distance_transform_edt(~t) if t.any() else np.full(t.shape, far)
            to_p = ndimage.distance_transform_edt(~p) if p.any() else np.full(p.shape, far)
            wanted = [(p & (to_t <= tolerance)).sum(), p.sum(), (t & (to_p <= tolerance)).sum(), t.sum()]
            assert counts.contour[i, :, c].tolist() == wanted
    # A pixel is in the trimap band when another class lies within that many pixels.
    for i, width in enumerate(widths):
        for c in range(classes):
            near = np.zeros(truth.shape, bool)
            for other in range(classes):
                there = truth == other
                if there.any():
                    distance = ndimage.distance_transform_cdt(~there, "chessboard")
                    near |= (truth != other) & (truth != VOID) & (distance <= width)
            t, p = (truth == c) & near, (prediction == c) & near
            assert counts.trimap[i, :, c].tolist() == [(t & p).sum(), p.sum(), t.sum()]


def published_boundary(mask, ratio):
    """Boundary IoU's band as published: a binary mask, padded by a pixel, eroded d times by 3x3."""
    height, width = mask.shape
    d = max(1, round(ratio * np.sqrt(height**2 + width**2)))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return mask - cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=d)[1 : height + 1, 1 : width + 1]


def published_counts(truth, prediction, classes, ratio):
    """Class by class. Void is filled with the class at hand, so that it makes no contour, and then not counted."""
    counts = np.zeros((3, classes), np.int64)
    void = truth == VOID
    for c in range(classes):
        bands = []
        for labels in (truth, prediction):
            mask = ((labels == c) | void).astype(np.uint8)
            bands.append((published_boundary(mask, ratio) > 0) & (labels == c) & ~void)
        counts[:, c] = (bands[0] & bands[1]).sum(), bands[1].sum(), bands[0].sum()
    return counts


@pytest.mark.slow
def test_boundary_counts_are_the_published_ones_on_all_voc_masks(voc_masks):
    """1,449 real label maps, predictions shifted and coarsened; per-class erosions by OpenCV from the definition."""
    rng = np.random.default_rng(0)
    files = sorted(voc_masks.glob("*.png"))
    assert len(files) == 1449
    for file in files:
        truth = np.array(Image.open(file))
        present = np.unique(truth[truth != VOID])
        renumber = np.full(256, VOID, np.uint8)
        renumber[present] = np.arange(len(present))
        truth = renumber[truth]  # only the classes that are there: the rest count zero either way
        shift = tuple(rng.integers(-4, 5, 2))
        prediction = np.roll(truth, shift, (0, 1))
        prediction[prediction == VOID] = rng.integers(0, len(present))
        counts = count(truth, prediction, len(present), [0.02])
        np.testing.assert_array_equal(
            counts.boundary[0], published_counts(truth, prediction, len(present), 0.02), str(file)
        )


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_shifted_prediction(shift):
    """A half plane shifted by s px, by hand: the contour is s px off, the band loses s of its d columns."""
    truth, prediction = np.zeros((2, 200, 200), np.uint8)
    truth[:, 100:] = prediction[:, 100 + shift :] = 1
    counts = count(truth, prediction, 2, [], [shift - 0.5, shift], [8])
    f1 = contour_f1(counts.contour)
    assert f1[0].tolist() == [0, 0]
    assert f1[1].tolist() == [1, 1]
    # Class 1 inside the 16 columns of the trimap: 8 of the truth's, 8 - s of them predicted.
    assert iou(counts.trimap[0])[1] == pytest.approx((8 - shift) / 8)


def test_one_pixel_objects():
    truth, prediction = np.zeros((2, 21, 21), np.uint8)
    truth[10, 10] = prediction[10, 12] = 1
    counts = count(truth, prediction, 2, [0.02], [1, 2], [1])
    assert contour_f1(counts.contour)[:, 1].tolist() == [0, 1]
    assert counts.boundary[0, :, 1].tolist() == [0, 1, 1]


def test_one_class_has_no_contour():
    labels = np.zeros((9, 9), np.uint8)
    counts = count(labels, labels, 2, [0.1], [2], [3])
    assert counts.contour.sum() == counts.trimap.sum() == 0
    assert np.isnan(mean_over_classes(contour_f1(counts.contour[0])))
    assert mean_over_classes(iou(counts.boundary[0])) == 1  # the image's border is a boundary there


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    counts = np.array([[3, 0, 0, 0], [4, 5, 0, 0], [6, 0, 0, 0], [8, 0, 7, 0]])
    precision, recall = 3 / 4, 6 / 8
    assert contour_f1(counts)[0] == pytest.approx(2 * precision * recall / (precision + recall))
    assert contour_f1(counts)[1:3].tolist() == [0, 0]  # contours in one of the two only
    assert np.isnan(contour_f1(counts)[3])


@pytest.mark.parametrize(
    ("predicted", "truth", "found"),
    [
        ([990, 10, 0], [500, 300, 200], 0),
        ([991, 9, 0], [500, 300, 200], 0),
        ([10, 0, 990], [500, 300, 200], 2),
        ([989, 11, 0], [500, 300, 200], None),  # 98.9 %
        ([1000, 0, 0], [1000, 0, 0], None),  # all there is
        ([995, 5, 0], [995, 5, 0], None),  # a perfect model of a lopsided split
        ([998, 2, 0], [995, 5, 0], 0),  # one that misses more than half of the rest
        ([997, 3, 0], [995, 5, 0], None),
        ([0, 1000, 0], [999, 1, 0], 1),
        ([0, 0, 0], [0, 0, 0], None),
    ],
)
def test_collapsed(predicted, truth, found):
    assert collapsed(np.array([np.minimum(predicted, truth), predicted, truth])) == found


def test_the_worked_example_of_the_docs():
    """Reads the maps and every number of docs/metrics.md and works them out again."""
    from fractions import Fraction

    from tests.conftest import ROOT

    text = (ROOT / "docs/metrics.md").read_text("utf-8")
    maps = text.partition("```\ntruth")[2].partition("```")[0].splitlines()[1:]
    rows = [[VOID if v == "." else int(v) for v in line.split()] for line in maps]
    truth, prediction = (np.array([r[i : i + 6] for r in rows], np.uint8) for i in (0, 6))
    assert truth.shape == prediction.shape == (6, 6)
    cells = [[c.strip() for c in line.split("|")[2:-1]] for line in text.splitlines() if line.startswith("| ")]
    table = cells[cells.index(["class 0", "class 1", "mean"]) + 2 :]
    counts = count(truth, prediction, 2, [0.02], [1], [1])
    found = [counts.region, counts.boundary[0], counts.contour[0], counts.trimap[0]]
    for i, (array, score) in enumerate(zip(found, (iou, iou, contour_f1, iou), strict=True)):
        numbers, fractions = table[2 * i], table[2 * i + 1]
        for c in (0, 1):
            assert [int(v) for v in numbers[c].split(", ")] == array[:, c].tolist()
            assert float(Fraction(fractions[c])) == pytest.approx(score(array)[c])
        assert float(fractions[2]) == pytest.approx(mean_over_classes(score(array)), abs=5e-5)
