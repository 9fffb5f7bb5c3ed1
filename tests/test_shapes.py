"""The drawn scenes: outlines, labels, looks, and the numbers of docs/shapes.md."""

import itertools

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from segbench.data import shapes
from segbench.data.shapes import Shapes
from tests.conftest import ROOT


def test_shapes_are_a_function_of_seed_split_and_index():
    a, b = Shapes("train", 64, 4, 2), Shapes("train", 64, 4, 2)
    forward = [a.read(i) for i in range(4)]
    backward = {i: b.read(i) for i in (3, 1, 0, 2)}
    for i in range(4):
        assert all(np.array_equal(x, y) for x, y in zip(forward[i], backward[i], strict=True))
    assert not np.array_equal(forward[0][0], forward[1][0])
    assert not np.array_equal(forward[0][0], Shapes("val", 64, 4, 2).read(0)[0])
    assert not np.array_equal(forward[0][0], Shapes("train", 64, 4, 2, seed=1).read(0)[0])


def test_shapes_of_any_size_hold_every_class():
    data = Shapes("train", (50, 131), 40, 2)
    images = [data.read(i) for i in range(len(data))]
    assert all(x.shape == (50, 131, 3) and x.dtype == np.uint8 and y.shape == (50, 131) for x, y in images)
    assert set(np.unique(np.stack([y for _, y in images]))) == set(range(len(data.classes)))
    assert len(data.classes) >= 6


def test_shapes_version_is_in_the_fingerprint(monkeypatch):
    before = Shapes("train", 64, 4, 2).fingerprint()
    assert Shapes("train", 64, 4, 2).fingerprint() == before
    others = [
        Shapes("val", 64, 4, 4),
        Shapes("train", 65, 4, 2),
        Shapes("train", 64, 5, 2),
        Shapes("train", 64, 4, 2, 1),
    ]
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    assert len({before, Shapes("train", 64, 4, 2).fingerprint(), *(o.fingerprint() for o in others)}) == 6


def _turns(outline, x, y):
    """How often an outline goes round each point: the sum of the angles under which its edges are seen."""
    to = outline[:, 0] - x[..., None] + 1j * (outline[:, 1] - y[..., None])
    return np.rint(np.angle(np.roll(to, -1, -1) / to).sum(-1) / (2 * np.pi))


def _whole(alpha, corner, shape):
    full = np.zeros(shape)
    full[corner[0] : corner[0] + alpha.shape[0], corner[1] : corner[1] + alpha.shape[1]] = alpha
    return full


@pytest.mark.parametrize("kind", range(1, 7))
def test_outlines_are_exact_at_sub_pixels(kind):
    """Coverage counts the 8x8 sub-pixels whose centre lies inside by the angles seen from it; some reach outside."""
    y, x = np.meshgrid(*(np.arange(0, n, 0.125) + 0.0625 for n in (24, 32)), indexing="ij")
    for seed in range(2):
        rng = np.random.default_rng([seed, kind])
        outlines = shapes._outlines(rng, kind, rng.uniform(0, 1, 2) * (32, 24), rng.uniform(3, 7))
        inside = sum(_turns(outline, x, y) for outline in outlines) != 0
        wanted = inside.reshape(24, 8, 32, 8).mean((1, 3))
        alpha = _whole(*shapes.coverage(outlines, 24, 32), (24, 32))
        assert wanted.any()
        np.testing.assert_allclose(alpha, wanted, atol=0.51 / 255)


def test_a_ring_is_its_ellipse_without_the_hole_and_a_pen_goes_everywhere_near_its_path():
    """Outlines against geometry: areas of ellipses in closed form, distances to a path's segments."""
    rng = np.random.default_rng(3)
    outer, inner = shapes._outlines(rng, shapes.RING, np.array([30.3, 29.6]), 20.0)
    alpha, _ = shapes.coverage([outer, inner], 60, 60)
    axes = [[max(np.hypot(*(p - (30.3, 29.6)).T)), min(np.hypot(*(p - (30.3, 29.6)).T))] for p in (outer, inner)]
    (a, b), (c, d) = axes
    assert alpha.sum() == pytest.approx(np.pi * (a * b - c * d), rel=0.005)
    assert 0.4 <= c / a <= 0.75
    path = shapes._path(rng, np.array([30.0, 30.0]), 10.0)
    y, x = np.meshgrid(*(np.arange(0, 60, 0.125) + 0.0625 for _ in range(2)), indexing="ij")
    distance = np.full(x.shape, np.inf)
    for p, q in itertools.pairwise(path):
        t = np.clip(((x - p[0]) * (q - p)[0] + (y - p[1]) * (q - p)[1]) / ((q - p) ** 2).sum(), 0, 1)
        distance = np.minimum(distance, np.hypot(x - p[0] - t * (q - p)[0], y - p[1] - t * (q - p)[1]))
    for width in (1.0, 2.3, 5.0):
        full = _whole(*shapes.coverage(shapes.pen(path, width), 60, 60), (60, 60))
        near, inner = (
            (distance < w / 2).reshape(60, 8, 60, 8).mean((1, 3)) for w in (width, width * np.cos(np.pi / 16))
        )
        assert (full <= near + 0.003).all()  # a joint is a polygon of 16 corners in the pen's circle
        assert (full >= inner - 0.003).all()


def test_coverage_is_exact():
    """A box with corners on the sub-pixel grid covers the products of its overlaps."""
    box = np.array([[2.25, 3.5], [7.75, 3.5], [7.75, 6.0], [2.25, 6.0]])
    full = _whole(*shapes.coverage([box], 12, 12), (12, 12))
    edges = lambda low, high: np.clip(np.minimum(np.arange(12) + 1, high) - np.maximum(np.arange(12), low), 0, 1)  # noqa: E731
    np.testing.assert_allclose(full, np.outer(edges(3.5, 6.0), edges(2.25, 7.75)), atol=0.51 / 255)


def test_a_label_is_the_topmost_thing_that_covers_half_a_pixel(monkeypatch):
    """With white paint on black the image is the coverage itself."""
    monkeypatch.setattr(shapes, "_paint", lambda rng, look, like, corner, beneath: np.full((*like.shape, 3), 255.0))
    for kind in range(1, 7):
        image, labels = np.zeros((64, 64, 3)), np.zeros((64, 64), np.uint8)
        shapes.draw_thing(np.random.default_rng(kind), image, labels, kind)
        np.testing.assert_array_equal(labels == kind, image[..., 0] >= 127.5)
        assert set(np.unique(labels)) == {0, kind}
        shapes.draw_thing(np.random.default_rng(kind), image, labels, 7 - kind)
        assert set(np.unique(labels)) > {7 - kind}


def _alone(kind, seed, ground=90.0):
    """One thing on flat ground, 160x160, and the random state that it leaves."""
    rng = np.random.default_rng(seed)
    image, labels = np.full((160, 160, 3), ground), np.zeros((160, 160), np.uint8)
    shapes.draw_thing(rng, image, labels, kind)
    return image, labels, rng


def test_half_of_what_is_drawn_is_thin():
    """Thin: the widest place of a label, twice its greatest distance from other labels, is about 5 px at most."""
    for number in (8, 16, 24):
        kinds = shapes.draw_kinds(np.random.default_rng(number), number)
        assert sum(k in (shapes.STROKE, shapes.LINE) for k in kinds) == number / 2
        assert set(kinds) == set(range(1, 7))
        assert kinds[number // 2 :] == [k for k in kinds if k in (shapes.STROKE, shapes.LINE)]  # and on top
    widest = {k: [] for k in range(1, 7)}
    for kind, found in widest.items():
        for seed in range(60):
            mask = (_alone(kind, seed)[1] == kind).astype(np.uint8)
            found.append(2 * cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).max() - 1)
    # The distance is to the next pixel's centre, so that 2d - 1 is the width give or take a pixel.
    assert np.quantile(widest[shapes.LINE], 0.9) <= 3 <= np.quantile(widest[shapes.STROKE], 0.1)
    assert np.median(widest[shapes.LINE]) + 1 < np.median(widest[shapes.STROKE])
    assert np.quantile(widest[shapes.STROKE], 0.9) <= 6
    assert min(np.median(widest[k]) for k in (shapes.DISC, shapes.POLYGON, shapes.STAR)) > 8


def test_a_ring_is_a_disc_with_a_hole_and_nothing_else():
    """From one random state both draw the same pixels outside the hole, and leave the same state."""
    holes = 0
    for seed in range(40):
        disc, full, after_disc = _alone(shapes.DISC, seed)
        ring, band, after_ring = _alone(shapes.RING, seed)
        hole = (disc != ring).any(-1)
        assert after_disc.bit_generator.state == after_ring.bit_generator.state
        assert (full[band == shapes.RING] == shapes.DISC).all()
        assert (full[hole] == shapes.DISC).all()
        deep = cv2.erode(hole.astype(np.uint8), np.ones((3, 3)), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
        assert (ring[deep] == 90).all()
        holes += hole.any()
    assert holes > 35  # the others lie off the image


def test_a_line_is_a_stroke_that_is_thinner_and_nothing_else():
    """From one random state the line lies within the stroke, in the same paint, and leaves the same state."""
    for seed in range(40):
        stroke, thick, after_stroke = _alone(shapes.STROKE, seed)
        line, thin, after_line = _alone(shapes.LINE, seed)
        if not thin.any():
            continue
        assert after_stroke.bit_generator.state == after_line.bit_generator.state
        assert (thick[thin > 0] == shapes.STROKE).all()
        assert (thick > 0).sum() > 1.3 * (thin > 0).sum()
        # Where the stroke covers a pixel whole, the line's pixel is a blend of the stroke's and the ground.
        whole = (cv2.erode((thick > 0).astype(np.uint8), np.ones((3, 3))) > 0) & (thin > 0)
        paint, blend = stroke[whole] - 90, line[whole] - 90
        share = (paint * blend).sum(1) / (paint**2).sum(1)
        assert ((share > 0.49) & (share < 1 + 1e-9)).all()
        np.testing.assert_allclose(blend, share[:, None] * paint, atol=1e-9)


def test_colour_goes_with_the_look_and_not_with_the_class():
    """Hue, as the mean direction on the colour circle over things: equal within a pair, apart between looks."""
    data = Shapes("train", 96, 120, 1)
    hues = {c: [] for c in range(7)}
    for i in range(len(data)):
        image, labels = data.read(i)
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(float)
        for c in np.unique(labels):
            angle = np.exp(2j * np.pi * hsv[labels == c][:, 0] / 180) * hsv[labels == c][:, 1]
            hues[int(c)].append(angle.mean() / abs(angle.mean()))
    mean = {c: np.mean(v) for c, v in hues.items()}
    apart = lambda a, b: abs(np.angle(mean[a] / mean[b])) / (2 * np.pi)  # noqa: E731
    disc, polygon, ring, star, stroke, line = range(1, 7)
    assert apart(disc, ring) < 0.03
    assert apart(stroke, line) < 0.03
    looks = (disc, polygon, star, stroke)
    assert min(apart(a, b) for a in looks for b in looks if a < b) > 0.12
    assert all(abs(mean[c]) < 0.97 for c in range(7))  # a family, not one colour


def _page():
    """docs/shapes.md's tables: {first cell of the head: {first cell of a row: other cells}}."""
    tables, head = {}, None
    for line in (ROOT / "docs/shapes.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = tables.setdefault(cells[0], {"": cells[1:]})
        elif set(cells[0]) != {"-"}:
            head[cells[0]] = cells[1:]
    return tables


def _default_data(split):
    config = yaml.safe_load((ROOT / "configs/default.yaml").read_text("utf-8"))["data"]
    assert config.pop("name") == "shapes"
    return Shapes(split, **config)


def test_ceilings_of_the_docs():
    """Majority block by block, IoU class by class, Boundary IoU by erosions: the numbers of docs/shapes.md."""
    data, page = _default_data("val"), _page()
    names = ["mean", *data.classes]
    truths = [data.read(i)[1] for i in range(len(data))]
    d = max(1, round(0.02 * np.hypot(*data.size)))
    for stride in (2, 4, 8, 16):
        region, boundary = np.zeros((2, 7)), np.zeros((2, 7))
        for truth in truths:
            back = np.empty_like(truth)
            for top in range(0, truth.shape[0], stride):
                for left in range(0, truth.shape[1], stride):
                    block = np.s_[top : top + stride, left : left + stride]
                    back[block] = np.bincount(truth[block].ravel()).argmax()
            for c in range(7):
                masks = [truth == c, back == c]
                eroded = [
                    cv2.erode(np.pad(m.astype(np.uint8), 1), np.ones((3, 3)), iterations=d)[1:-1, 1:-1] for m in masks
                ]
                bands = [m & (e == 0) for m, e in zip(masks, eroded, strict=True)]
                for sums, (a, b) in ((region, masks), (boundary, bands)):
                    sums[:, c] += (a & b).sum(), (a | b).sum()
        for key, (both, either) in (("stride, IoU", region), ("stride, Boundary IoU 0.02", boundary)):
            scores = both / either * 100
            assert page[key][""] == names
            assert [float(v) for v in page[key][str(stride)]] == pytest.approx([scores.mean(), *scores], abs=0.0501)


def test_lookup_of_the_docs():
    """The colour lookup of docs/shapes.md, counted in one joint histogram of truth and colour a split."""
    joint = []
    for split in ("train", "val"):
        data = _default_data(split)
        colours = np.concatenate([data.read(i)[0].reshape(-1, 3) >> 4 for i in range(len(data))]).astype(int)
        truth = np.concatenate([data.read(i)[1].ravel().astype(int) for i in range(len(data))])
        joint.append(np.bincount(truth * 4096 + colours @ (256, 16, 1), minlength=7 * 4096).reshape(7, 4096))
    seen, wanted = joint
    scores = {}
    for w in (0, 0.25, 0.5, 0.75, 1):
        guess = (seen / seen.sum(1, keepdims=True) ** w).argmax(0)
        both = np.array([wanted[c, guess == c].sum() for c in range(7)])
        either = np.array([wanted[c].sum() + wanted[:, guess == c].sum() for c in range(7)]) - both
        scores[w] = 100 * both / either
    best = max(scores, key=lambda w: scores[w].mean())
    row = _page()["colour alone, IoU"][f"lookup, w = {float(best)}"]
    assert [float(v) for v in row] == pytest.approx([scores[best].mean(), *scores[best]], abs=0.0501)


def test_picture_of_the_docs():
    """Four evaluation scenes of the default config above their labels; sines may differ in the last bit elsewhere."""
    data = _default_data("val")
    picture = np.asarray(Image.open(ROOT / "docs/shapes.png")).astype(int)
    for i, column in enumerate(np.split(picture, 4, 1)):
        image, labels = data.read(i)
        above, below = np.split(column, 2)
        assert np.abs(above - image).max() <= 1
        np.testing.assert_array_equal(below, np.array(data.palette)[labels])
