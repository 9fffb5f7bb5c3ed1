"""Where void lies along the contours, narrow bands hold nearly nothing, and the table and the page say so."""

import numpy as np
import pytest
from PIL import Image

from segbench import store
from segbench.measures.base import LabelMap, Sample
from segbench.measures.biou import BIoU
from segbench.measures.trimap import Trimap
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
    from scipy.ndimage import maximum_filter, minimum_filter

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
