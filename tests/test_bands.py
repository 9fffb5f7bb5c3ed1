"""Where void lies along the contours, narrow bands hold nearly nothing, and the table and the page say so."""

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from segbench import store
from segbench.measures.base import LabelMap, Sample, iou, mean_over_classes
from segbench.measures.biou import BIoU
from segbench.measures.trimap import Trimap
from segbench.metrics import BoundaryIoU
from segbench.report.metrics import thin_bands
from tests.conftest import ROOT, described_measures

WIDTHS = (1, 2, 4, 8, 16)
TRIMAPS = [f"trimap@{width}" for width in WIDTHS]


def result(maps, num_classes):
    """A run that has counted perfect predictions of these label maps."""
    samples = [Sample(LabelMap(labels, num_classes), labels) for labels in maps]
    measures = {f"trimap@{w}": Trimap(w) for w in WIDTHS} | {"biou@0.02": BIoU(0.02)}
    counts = {name: np.stack([m.count(s) for s in samples]) for name, m in measures.items()}
    counts |= {"region": np.stack([s.region for s in samples]), "sizes": np.array([s.size for s in samples])}
    return store.Result({"measures": described_measures(*measures), "broken": {}}, np.array(["x"]), counts, None)


def two_halves(rim_px, size=(64, 96)):
    """Two classes side by side, with ``rim_px`` columns of void on either side of the contour."""
    labels = np.zeros(size, np.uint8)
    labels[:, size[1] // 2 :] = 1
    labels[:, size[1] // 2 - rim_px : size[1] // 2 + rim_px] = 255 if rim_px else labels[:, size[1] // 2 : size[1] // 2]
    return labels


def test_a_rim_of_void_empties_the_narrow_bands():
    found = result([two_halves(5)], 2)
    (said,) = thin_bands([found], TRIMAPS)
    # The contour is 10 px of void wide: bands of 1 to 8 px end in it, that of 16 px reaches 6 columns on either side.
    held = {w: int(found.counts[f"trimap@{w}"][:, 2].sum()) for w in WIDTHS}
    assert held == {1: 0, 2: 0, 4: 0, 8: 0, 16: 2 * 6 * 64}
    assert said.startswith("The band of 8 px holds 0.0 % of the pixels of that of 16 px: void lies along the contours")
    (both,) = thin_bands([found], ["biou@0.02"])  # 0.02 of the diagonal are 2 px
    assert both.endswith("Boundary IoU 0.02 (2px) is of such a band, and so nearly of the image's border alone.")


def test_without_a_rim_nothing_is_said():
    assert thin_bands([result([two_halves(0)], 2)], [*TRIMAPS, "biou@0.02"]) == []


def test_what_is_not_shown_is_not_spoken_of():
    assert thin_bands([result([two_halves(5)], 2)], ["miou"]) == []
    large = result([two_halves(5, (600, 800))], 2)  # 0.02 of the diagonal are 20 px, which reach beyond the rim
    assert thin_bands([large], ["biou@0.02"]) == []


@pytest.mark.slow
def test_the_figures_of_voc_in_the_docs(voc_masks):
    """docs/metrics.md, by a definition of its own: a pixel's window holds two classes."""
    paths = sorted(voc_masks.glob("*.png"))[::7]
    held = dict.fromkeys((1, 2, 3, 4, 8), 0)
    for path in paths:
        labels = np.asarray(Image.open(path)).astype(int)
        for width in held:
            window = 2 * width + 1
            low = minimum_filter(np.where(labels == 255, 999, labels), window, mode="constant", cval=999)
            high = maximum_filter(np.where(labels == 255, -1, labels), window, mode="constant", cval=-1)
            held[width] += int(((low < high) & (labels != 255)).sum())
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert f"{len(paths)} label maps" in text
    assert ", ".join(f"{number:,}" for number in held.values()) in " ".join(text.split())


def brute_boundary_iou(pairs, num_classes, ratio, region):
    """Boundary IoU in percent, class by class by OpenCV's erosion; ``region``: void is one more region."""
    counts = np.zeros((3, num_classes), np.int64)
    for truth, prediction in pairs:
        d = max(1, round(ratio * float(np.hypot(*truth.shape))))
        void = truth == 255
        for c in range(num_classes):
            bands = []
            for own in (truth == c, (prediction == c) & ~void):
                around = own if region else own | void  # what is filled with the class makes no contour to it
                padded = cv2.copyMakeBorder(around.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
                inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=d)[1:-1, 1:-1]
                bands.append(own & (inner == 0))
            counts[:, c] += (bands[0] & bands[1]).sum(), bands[1].sum(), bands[0].sum()
    return 100 * mean_over_classes(iou(counts))


def reduced(truth, factor=8):
    """A prediction without void: the truth, its void filled with the nearest class, reduced and brought back."""
    rows, columns = distance_transform_edt(truth == 255, return_distances=False, return_indices=True)
    filled, (height, width) = truth[rows, columns], truth.shape
    small = cv2.resize(filled, (-(-width // factor), -(-height // factor)), interpolation=cv2.INTER_NEAREST)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes"), [("VOC", 21), ("CamVid", 11)])
def test_void_as_a_region_in_the_docs(request, name, classes):
    """docs/metrics.md's table of Boundary IoU at 0.005, of which segbench's is the one that leaves void out."""
    root = (
        request.getfixturevalue("voc_masks") if name == "VOC" else request.getfixturevalue("camvid_root") / "valannot"
    )
    pairs = []
    for path in sorted(root.glob("*.png"))[::7]:
        truth = np.array(Image.open(path))
        truth[truth >= classes] = 255
        if (truth != 255).any():
            pairs.append((truth, reduced(truth)))
    as_region, left_out = (brute_boundary_iou(pairs, classes, 0.005, region) for region in (True, False))
    metric = BoundaryIoU(classes, 0.005)
    for truth, prediction in pairs:
        metric.update(prediction, truth)
    assert 100 * float(metric.compute()) == pytest.approx(left_out, abs=1e-9)
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert f"| {name} val, {len(pairs)} | {as_region:.1f} | {left_out:.1f} |" in text
