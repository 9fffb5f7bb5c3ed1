import argparse

import numpy as np
import pytest

from segbench.metrics import VOID, Counts, Truth, band_width, iou, mean_iou, pixel_accuracy
from segbench.metrics.counts import boundary_band


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
    counts = Truth(truth, classes, [ratio]).count(prediction)
    region, boundary, d = brute_force_counts(truth, prediction, classes, ratio)
    np.testing.assert_array_equal(counts.region, region)
    np.testing.assert_array_equal(counts.boundary[0], boundary)
    assert counts.widths_px.tolist() == [d]


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
            total += Truth(truth, 19).count(prediction).region
            np.add.at(official, (to_id[truth], to_id[prediction]), 1)  # void has id 0, which the script ignores
        scores = [script.getIouScoreForLabel(label.id, official, args) for label in train]
        np.testing.assert_array_equal(iou(total), scores)
        assert mean_iou(total) == np.nanmean(scores)


def test_band_width_rounds_half_to_even():
    assert (band_width(0.02, 375, 500), band_width(0.02, 1024, 2048), band_width(0.005, 1024, 2048)) == (12, 46, 11)
    assert band_width(0.0001, 10, 10) == 1


def test_classes_that_face_each_other_across_void_make_a_contour():
    labels = np.zeros((21, 21), np.uint8)
    labels[:, 10] = VOID
    labels[:, 11:] = 1
    band = boundary_band(labels, 2)
    assert band[10].tolist() == [True, True] + [False] * 7 + [True, False, True] + [False] * 7 + [True, True]
    labels[labels == 1] = 0  # void alone makes none
    assert not boundary_band(labels, 2)[10, 2:-2].any()


def test_void_counts_nowhere():
    truth = np.full((9, 9), VOID, np.uint8)
    counts = Truth(truth, 3, [0.1]).count(np.ones((9, 9), np.uint8))
    assert counts.region.sum() == counts.boundary.sum() == counts.confusion.sum() == 0
    assert np.isnan(mean_iou(counts.region))
    assert np.isnan(pixel_accuracy(counts.region))


def test_perfect_and_disjoint():
    truth = np.repeat(np.arange(3, dtype=np.uint8), 30).reshape(9, 10)
    perfect = Truth(truth, 4, [0.1]).count(truth)
    assert mean_iou(perfect.region) == mean_iou(perfect.boundary[0]) == pixel_accuracy(perfect.region) == 1
    assert np.isnan(iou(perfect.region)[3])  # never there, never predicted: no score, not 0
    wrong = Truth(truth, 4, [0.1]).count(((truth + 1) % 3).astype(np.uint8))
    assert mean_iou(wrong.region) == mean_iou(wrong.boundary[0]) == 0


def test_data_set_level_not_image_level():
    """Counts are added up before the division."""
    small, large = np.zeros((2, 2), np.uint8), np.zeros((2, 8), np.uint8)
    counts = [Truth(small, 2).count(np.ones_like(small)), Truth(large, 2).count(large)]
    total = sum(c.region for c in counts)
    assert iou(total).tolist() == [16 / 20, 0.0]


@pytest.mark.parametrize(
    ("labels", "prediction", "message"),
    [
        (np.full((4, 4), 3, np.uint8), np.zeros((4, 4), np.uint8), "label 3 is neither one of 3 classes nor void"),
        (np.zeros((4, 4), np.uint8), np.full((4, 4), 7, np.uint8), "prediction holds 7, not one of 3 classes"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8), r"prediction is \(4, 5\), truth \(4, 4\)"),
        (np.zeros((4, 4), np.int64), np.zeros((4, 4), np.uint8), "should be .* uint8"),
    ],
)
def test_wrong_maps_are_refused(labels, prediction, message):
    with pytest.raises(ValueError, match=message):
        Truth(labels, 3).count(prediction)


def test_counts_are_64_bit():
    counts = Truth(np.zeros((4, 4), np.uint8), 2, [0.1]).count(np.zeros((4, 4), np.uint8))
    assert isinstance(counts, Counts)
    assert {a.dtype for a in (counts.region, counts.boundary, counts.confusion)} == {np.dtype(np.int64)}
