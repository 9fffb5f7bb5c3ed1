"""Measures of what upsamplers do wrong, against brute force, SciPy and torchmetrics."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn.functional import interpolate
from torchmetrics.classification import MulticlassCalibrationError

from segbench.columns import make_measure
from segbench.errors import UserError
from segbench.measures.base import THICKNESS_PX, VOID, LabelMap, Sample, check_labels, iou
from segbench.measures.calibration import BINS, Calibration
from segbench.measures.ceiling import brought_back
from segbench.measures.cldice import skeleton_of
from segbench.measures.distance_error import FARTHEST_PX
from segbench.sweep.plan import make_plan
from tests.test_measures import blobs, contour_by_hand

CLASSES = ("sky", "road", "pole", "car")


def pair(seed, size=(30, 41), void=True):
    rng = np.random.default_rng(seed)
    truth = blobs(rng, *size, len(CLASSES), void)
    prediction = np.where(rng.random(size) < 0.7, truth, blobs(rng, *size, len(CLASSES), False))
    return truth, np.where(prediction == VOID, 0, prediction).astype(np.uint8)


def model(**attributes):
    return SimpleNamespace(**{"classes": CLASSES, "stride": 4, "on_grid": True} | attributes)


def measured(name, truth, prediction, of=None, **params):
    """The measure, and its counts of one pair."""
    measure = make_measure(name, params)
    return measure, measure.count(Sample(check_labels(truth, len(CLASSES)), prediction, of or model()))


@pytest.mark.parametrize(("stride", "void"), [*itertools.product((2, 3, 4, 8), (False, True))])
def test_a_ceiling_is_that_of_a_vote_in_each_block(stride, void):
    truth, prediction = pair(stride, void=void)
    back = np.zeros_like(truth)
    for y, x in itertools.product(range(0, 30, stride), range(0, 41, stride)):
        block = truth[y : y + stride, x : x + stride]
        back[y : y + stride, x : x + stride] = np.argmax([(block == c).sum() for c in range(4)])
    measure, counts = measured("ceiling", truth, prediction, stride=stride)
    inside = truth != VOID
    for c in range(4):
        t, p = (truth == c) & inside, (back == c) & inside
        assert counts[:, c].tolist() == [(t & p).sum(), p.sum(), t.sum()]
    np.testing.assert_array_equal(measure.score(counts), 100 * iou(counts))


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_the_ceiling_of_area_means_is_torch_s_average_brought_back_bilinearly(stride):
    truth = pair(3, (32, 48), void=False)[0]
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(truth).long(), 4).permute(2, 0, 1)[None].float()
    coarse = torch.nn.functional.avg_pool2d(one_hot, stride)
    wanted = interpolate(coarse, scale_factor=stride, mode="bilinear")[0]
    found = brought_back(truth, stride, 4, "mean")
    first, second = wanted.topk(2, 0).values
    clear = (first - second > 1e-4).numpy()  # elsewhere the last bit decides
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], wanted.argmax(0).numpy()[clear])


def test_a_ceiling_is_worked_out_once_for_all_decoders_and_is_100_where_edges_lie_on_the_grid(monkeypatch):
    truth = np.kron(pair(1, (8, 9), void=False)[0], np.ones((4, 4), np.uint8))
    shared, measure = check_labels(truth, 4), make_measure("ceiling", {})
    assert np.nanmin(measure.score(measure.count(Sample(shared, truth)))) == 100
    monkeypatch.setattr("segbench.measures.ceiling.brought_back", None)
    assert np.nanmin(measure.score(measure.count(Sample(shared, np.roll(truth, 3))))) == 100


@pytest.mark.parametrize("seed", range(8))
def test_errors_by_distance_are_those_of_scipy_s_distances(seed):
    truth, prediction = pair(seed)
    distance = ndimage.distance_transform_edt(~contour_by_hand(truth))
    measure, counts = measured("distance_error", truth, prediction, within_px=3)
    wrong, inside = (truth != VOID) & (truth != prediction), truth != VOID
    edges = [-1, *FARTHEST_PX, np.inf]
    rings = [(distance > a) & (distance <= b) for a, b in itertools.pairwise(edges)]
    assert counts[:, 0].tolist() == [(where & ring).sum() for where in (wrong, inside) for ring in rings]
    near = inside & (distance <= 3)
    assert measure.score(counts)[0] == pytest.approx(100 * wrong[near].mean())
    assert measure.profile(counts)[1] == pytest.approx(100 * wrong[inside & rings[1]].mean())


def test_without_a_boundary_all_pixels_are_far():
    truth = np.zeros((9, 9), np.uint8)
    measure, counts = measured("distance_error", truth, truth)
    assert counts[:, 0].tolist() == [0] * 12 + [0] * 11 + [81]
    assert np.isnan(measure.score(counts)).all()


@pytest.mark.parametrize("s", [2, 4, 5])
def test_phase_errors_are_those_of_every_s_th_row_and_column(s):
    truth, prediction = pair(s)
    measure, counts = measured("phase_error", truth, prediction, **({} if s == 4 else {"stride": s}))
    inside, wrong = truth != VOID, (truth != VOID) & (truth != prediction)
    rates = np.array([[100 * wrong[y::s, x::s].sum() / inside[y::s, x::s].sum() for x in range(s)] for y in range(s)])
    np.testing.assert_allclose(measure.picture(counts), rates - rates.mean())
    assert measure.score(counts)[0] == pytest.approx(rates.max() - rates.min())


def test_an_error_on_every_fourth_column_is_seen():
    truth = np.ones((64, 64), np.uint8)
    prediction = truth.copy()
    prediction[:, 3::4] = 2
    measure, counts = measured("phase_error", truth, prediction)
    assert measure.score(counts) == [100]
    assert measure.picture(counts).tolist() == [[-25, -25, -25, 75]] * 4


@pytest.mark.parametrize("seed", range(12))
def test_thickness_is_the_largest_square_that_holds_a_pixel_and_one_class(seed):
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 2, (6, 7)), np.ones((7, 5), int)).astype(np.uint8)
    truth[rng.integers(0, 42, 3)] = 2
    if seed % 2:
        truth[rng.random(truth.shape) < 0.05] = VOID
    found = LabelMap(truth, 3).thickness
    height, width = truth.shape
    wanted = (truth != VOID).astype(int)
    for t in THICKNESS_PX[1:]:
        thick, r = np.zeros(truth.shape, bool), t // 2
        for y, x in np.ndindex(height, width):
            square = np.s_[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1]
            thick[square] |= len(set(truth[square].ravel().tolist()) - {VOID}) <= 1
        wanted += thick & (truth != VOID)
    np.testing.assert_array_equal(np.where(truth == VOID, 0, found + 1), wanted)


def test_a_line_of_two_pixels_is_thin_and_its_recall_is_its_own():
    truth = np.zeros((40, 60), np.uint8)
    truth[:, 20:22] = 1
    truth[:, 30:60] = 1  # a thick region of the same class, found
    prediction = truth.copy()
    prediction[:30, 20:22] = 0
    prediction[:, 10] = 1  # wrong, and thin
    measure, counts = measured("thin", truth, prediction)
    assert measure.score(counts)[1] == pytest.approx(25)
    assert measure.profile(counts)[0] == pytest.approx(25)
    measure, counts = measured("thin", truth, prediction, by="iou")
    assert measure.score(counts)[1] == pytest.approx(100 * 20 / (80 + 40))


@pytest.mark.parametrize("by", ["recall", "iou"])
def test_thin_regions_of_every_width_add_up_to_recall_and_iou(by):
    truth, prediction = pair(11, (60, 80))
    counts = measured("thin", truth, prediction, by=by)[1]
    right, predicted, true = Sample(check_labels(truth, 4), prediction).region
    found, every, wrong = np.split(counts, 3)
    assert found.sum(0).tolist() == right.tolist()
    assert every.sum(0).tolist() == true.tolist()
    assert wrong.sum(0).tolist() == ((predicted - right).tolist() if by == "iou" else [0] * 4)


def paper_s_skeleton(mask):
    """Algorithm 1 of Shit et al. 2021, by torch's pooling as in the authors' code, on a mask of zeros and ones."""
    pool = torch.nn.functional.max_pool2d

    def erode(x):
        return torch.minimum(-pool(-x, (3, 1), 1, (1, 0)), -pool(-x, (1, 3), 1, (0, 1)))

    x = torch.from_numpy(np.pad(mask, 1).astype(np.float32))[None, None]  # outside of the image is no mask
    skeleton = torch.relu(x - pool(erode(x), 3, 1, 1))
    for _ in range(max(mask.shape)):
        x = erode(x)
        delta = torch.relu(x - pool(erode(x), 3, 1, 1))
        skeleton = skeleton + torch.relu(delta - skeleton * delta)
    return skeleton[0, 0, 1:-1, 1:-1].numpy() > 0.5


@pytest.mark.parametrize("seed", range(6))
def test_cldice_is_that_of_the_paper_s_skeletons(seed):
    truth, prediction = pair(seed, void=False)
    measure, counts = measured("cldice", truth, prediction, classes=["pole", "car"])
    assert counts[:, :2].sum() == 0
    assert np.isnan(measure.score(counts)[:2]).all()
    for c in (2, 3):
        p, t = prediction == c, truth == c
        np.testing.assert_array_equal(skeleton_of(t), paper_s_skeleton(t))
        of_p, of_t = paper_s_skeleton(p), paper_s_skeleton(t)
        precision, recall = (of_p & t).sum() / of_p.sum(), (of_t & p).sum() / of_t.sum()
        assert measure.score(counts)[c] == pytest.approx(100 * 2 * precision * recall / (precision + recall))


def test_the_skeleton_of_all_of_an_image_lies_in_its_middle():
    assert np.argwhere(skeleton_of(np.ones((5, 5), bool))).mean(0).tolist() == [2, 2]
    assert not skeleton_of(np.zeros((5, 5), bool)).any()


def test_cldice_tells_a_broken_line_from_one_that_is_shifted_within_its_width():
    truth = np.zeros((30, 60), np.uint8)
    truth[12:17, 2:58] = 2
    thinner, broken = np.zeros_like(truth), truth.copy()
    thinner[14, 2:58] = 2
    broken[:, 20:40] = 0
    scores = [measured("cldice", truth, p, classes=["pole"]) for p in (truth, thinner, broken)]
    same, thin, gap = (float(m.score(counts)[2]) for m, counts in scores)
    assert same == 100
    assert thin > 95
    assert gap < 85


def probabilities_of(seed, truth):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (4, *truth.shape)) + 2 * (np.arange(4)[:, None, None] == truth)
    return torch.from_numpy(logits).softmax(0).float().numpy()


@pytest.mark.parametrize(("where", "seed"), [*itertools.product(("boundary", "inside"), range(4))])
def test_calibration_is_torchmetrics_on_the_band(where, seed):
    truth, _ = pair(seed, (50, 70))
    found = probabilities_of(seed, truth)
    labels = found.argmax(0).astype(np.uint8)
    measure, counts = measured("calibration", truth, labels, model(probabilities=found), where=where, width_px=2)
    others = [ndimage.maximum_filter((truth == c).astype(np.uint8), 5, mode="constant") for c in range(4)]
    band = (np.sum(others, 0) > 1) & (truth != VOID)  # two classes within 2 px
    chosen = band if where == "boundary" else ~band & (truth != VOID)
    official = MulticlassCalibrationError(4, BINS, "l1")
    wanted = official(torch.from_numpy(found[:, chosen].T), torch.from_numpy(truth[chosen]).long())
    assert measure.score(counts)[0] == pytest.approx(100 * wanted.item(), abs=1e-3)
    assert counts[BINS : 2 * BINS].sum() == chosen.sum()


def test_calibration_adds_up_over_images_before_bins_are_compared():
    truth, predicted = np.zeros((2, 4, 4), np.uint8)
    measure, parts = Calibration("inside", 1), []
    for right in (0, 16):  # confidence 0.5: never right on one image, always on the other
        truth.flat[:right], truth.flat[right:] = 0, 1
        sample = SimpleNamespace(
            truth=check_labels(truth, 4), right=truth == predicted, confidence=np.full((4, 4), 0.5)
        )
        parts.append(measure.count(sample))
    assert [float(measure.score(part)[0]) for part in parts] == [50, 50]
    assert measure.score(sum(parts)) == [0]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"name": "cldice", "params": {"classes": ["wire"]}},
            r"there is no class 'wire'; there are background, disc, ",
        ),
        ({"name": "cldice", "params": {"classes": []}}, "classes should name one or more"),
        ({"name": "cldice"}, "classes is missing"),
        ({"name": "ceiling", "params": {"stride": 1}}, "stride should be 2 or more, not 1"),
        ({"name": "ceiling", "params": {"by": "median"}}, "by should be 'majority' or 'mean', not 'median'"),
        ({"name": "distance_error", "params": {"within_px": 5}}, "within_px should be one of 0, 1, 2, 3, 4, 6"),
        ({"name": "phase_error", "params": {"stride": 1}}, "stride should be 2 or more, not 1"),
        ({"name": "thin", "params": {"below_px": 4}}, "below_px should be 3, 5, 9, 17 or 33"),
        ({"name": "shift", "params": {"stride": 1}}, "stride should be 2 or more, not 1"),
        ({"name": "spectrum", "params": {"stride": 0}}, "stride should be 2 or more, not 0"),
        ({"name": "equivariance", "params": {"px": 0}}, "px should be 1 or more, not 0"),
        ({"name": "calibration", "params": {"width_px": 0}}, "width_px should be 1 or more, not 0"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_starts(make_config, entry, said):
    with pytest.raises(UserError, match=said) as error:
        make_plan(make_config(measures=[entry]))
    assert "\n" not in str(error.value)
    assert entry["name"] in str(error.value)
    assert "contract" not in str(error.value)
