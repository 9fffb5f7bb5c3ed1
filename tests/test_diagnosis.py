"""Measures of what upsamplers do wrong, against brute force, SciPy and torchmetrics."""

import ast
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn.functional import interpolate
from torchmetrics.classification import MulticlassCalibrationError

from segbench.columns import make_measure
from segbench.config_file import build_config
from segbench.errors import UserError
from segbench.measures._model import Upsampling
from segbench.measures.base import THICKNESS_PX, VOID, DoesNotFit, LabelMap, Sample, check_labels, iou
from segbench.measures.calibration import BINS, Calibration
from segbench.measures.ceiling import brought_back
from segbench.measures.cldice import skeleton_of
from segbench.measures.distance_error import FARTHEST_PX
from segbench.report.metrics import available
from segbench.report.page import slug, write_report
from segbench.report.table import make_table
from segbench.sweep.plan import make_plan
from segbench.upsamplers import Bilinear, Deconv, Subpixel
from tests.conftest import ROOT, tiny
from tests.test_measures import blobs, contour_by_hand
from tests.test_sweep import sweep

CLASSES = ("sky", "road", "pole", "car")


def pair(seed, size=(30, 41), void=True):
    rng = np.random.default_rng(seed)
    truth = blobs(rng, *size, len(CLASSES), void)
    prediction = np.where(rng.random(size) < 0.7, truth, blobs(rng, *size, len(CLASSES), False))
    return truth, np.where(prediction == VOID, 0, prediction).astype(np.uint8)


def model(**attributes):
    return SimpleNamespace(classes=CLASSES, stride=4, **attributes)


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


class Alone(torch.nn.Module):
    """An upsampler as a decoder."""

    strides = (2,)

    def __init__(self, up):
        super().__init__()
        self.up = up

    def forward(self, features, image):
        return self.up(features[0])


def checkerboard_of(up, channels, **params):
    features = [torch.linspace(-1, 1, channels)[None, :, None, None].expand(1, channels, 12, 16)]
    decoder = Alone(up)
    of = model(decoder=decoder, initial=decoder, features=features, image=torch.zeros(1, 3, 24, 32))
    truth = np.zeros((24, 32), np.uint8)
    with torch.no_grad():
        measure, counts = measured("checkerboard", truth, truth, of, **params)
    return float(measure.score(counts)[0]), measure.picture(counts)


def test_random_kernels_make_a_checkerboard_of_a_constant_and_interpolation_and_icnr_none():
    """0.94 and 1.01 of their mean magnitude were measured before, by another program, of one draw each."""
    spreads = {"transposed": [], "subpixel": []}
    for seed in range(20):
        torch.manual_seed(seed)
        for name, up in {
            "transposed": torch.nn.ConvTranspose2d(16, 16, 4, 2, 1),
            "subpixel": torch.nn.Sequential(torch.nn.Conv2d(16, 64, 3, padding=1), torch.nn.PixelShuffle(2)),
        }.items():
            found, picture = checkerboard_of(up, 16, at="start")
            with torch.no_grad():
                y = up(torch.linspace(-1, 1, 16)[None, :, None, None].expand(1, 16, 9, 9))[0].double().numpy()
            y = (y - y.mean(0))[:, 8:10, 8:10].reshape(16, 4)  # far from the border
            assert found == pytest.approx(100 * y.std(1).mean() / np.abs(y).mean(), abs=0.01)
            away = np.abs(y - y.mean(1, keepdims=True)).mean(0) / np.abs(y).mean()
            np.testing.assert_allclose(picture, 100 * away.reshape(2, 2), atol=0.01)
            spreads[name].append(found)
    assert np.mean(spreads["transposed"]) == pytest.approx(94, abs=8)
    assert np.mean(spreads["subpixel"]) == pytest.approx(101, abs=8)
    for up in (Bilinear(16), Deconv(16), Subpixel(16, init="icnr"), Subpixel(16, init="nearest")):
        assert checkerboard_of(up, 16)[0] == pytest.approx(0, abs=0.001)


def of_upsampling(name, up, x, ratio, guide=None, **params):
    truth = np.zeros((8, 8), np.uint8)
    guide = torch.zeros(1, 3, *(n * ratio for n in x.shape[2:])) if guide is None else guide
    call = up if params.pop("guided", False) else lambda x, guide: up(x)
    with torch.no_grad():
        measure, counts = measured(name, truth, truth, model(upsampling=Upsampling(call, x, guide, ratio)), **params)
    return measure, counts


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_interpolation_is_equivariant_by_a_cell_and_by_less_errs_as_by_hand(mode):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 20, 24)).astype(np.float32))

    def up(x):
        return interpolate(x, scale_factor=4, mode=mode)

    measure, counts = of_upsampling("equivariance", up, x, 4)
    assert measure.score(counts)[0] == pytest.approx(0, abs=0.001)
    measure, counts = of_upsampling("equivariance", up, x, 4, px=1)
    moved = x.numpy()
    for axis in (2, 3):
        moved = 0.75 * moved + 0.25 * np.roll(moved, 1, axis)
    y, z = up(x).numpy(), up(torch.from_numpy(moved)).numpy()
    gap = np.abs(z[..., 1:, 1:] - y[..., :-1, :-1])[..., 12:66, 12:82]
    wanted = y[..., 12:66, 12:82]
    assert measure.score(counts)[0] == pytest.approx(
        100 * gap.mean() / np.abs(wanted - wanted.mean((2, 3), keepdims=True)).mean(), rel=1e-3
    )


def test_what_looks_at_the_place_is_not_equivariant_and_a_guide_moves_along():
    x = torch.randn(1, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    place = torch.linspace(0, 1, 80)
    measure, counts = of_upsampling("equivariance", lambda x: interpolate(x, scale_factor=4) * place, x, 4)
    assert measure.score(counts)[0] > 3
    guide = torch.rand(1, 3, 80, 80, generator=torch.Generator().manual_seed(1))

    def guided(x, guide):
        return interpolate(x, scale_factor=4) * guide[:, :1]

    measure, counts = of_upsampling("equivariance", guided, x, 4, guide, guided=True)
    assert measure.score(counts)[0] == 0


def test_the_kernels_of_interpolation_are_a_box_and_a_tent():
    x = torch.randn(1, 3, 21, 21, generator=torch.Generator().manual_seed(0))
    measure, counts = of_upsampling("kernel", lambda x: interpolate(x, scale_factor=4), x, 4)
    box = np.zeros((28, 28))
    box[12:16, 12:16] = 1
    np.testing.assert_allclose(measure.picture(counts), box, atol=1e-5)
    assert measure.score(counts)[0] == pytest.approx(np.sqrt(2 * np.var(np.arange(4))))
    measure, counts = of_upsampling("kernel", lambda x: interpolate(x, scale_factor=4, mode="bilinear"), x, 4)
    tent = np.maximum(0, 1 - np.abs(np.arange(28) - 13.5) / 4)
    np.testing.assert_allclose(measure.picture(counts), np.outer(tent, tent), atol=1e-5)


@pytest.mark.parametrize("size", [(21, 24), (4, 5)])  # the second is smaller than what is looked at
def test_the_kernel_of_a_transposed_convolution_is_its_weight(size):
    torch.manual_seed(0)
    up = torch.nn.ConvTranspose2d(3, 3, 4, 2, 1, groups=3, bias=False)
    x = torch.randn(1, 3, *size)
    x /= x.std((2, 3), keepdim=True)
    measure, counts = of_upsampling("kernel", up, x, 2)
    wanted = np.zeros((14, 14))
    wanted[5:9, 5:9] = up.weight.detach().abs().mean((0, 1)).numpy()
    np.testing.assert_allclose(measure.picture(counts), wanted, atol=1e-5)


def test_without_an_upsampling_there_is_no_value_and_no_picture():
    truth = np.zeros((8, 8), np.uint8)
    for name in ("kernel", "equivariance"):
        measure, counts = measured(name, truth, truth, model(upsampling=None))
        assert np.isnan(measure.score(counts)).all()
        assert measure.picture(counts) is None


class Shifted:
    """A model that predicts the brightness of each pixel, and something else in the first ``columns``."""

    classes, stride = CLASSES, 4

    def __init__(self, pixels, columns=0):
        self.pixels, self.columns = pixels, columns

    def predict(self, pixels):
        found = pixels[..., 0].copy()
        found[:, : self.columns] = 3
        return found


def test_a_prediction_that_moves_with_the_image_is_consistent_and_one_that_does_not_loses_its_columns():
    truth, labels = pair(2, (40, 50))
    pixels = np.repeat(labels[..., None], 3, 2)
    measure, counts = measured("shift", truth, labels, Shifted(pixels))
    assert measure.score(counts) == [100]
    assert counts[3:, 0].tolist() == [(truth[d:, d:] != VOID).sum() for d in (1, 2, 3)]
    fixed = Shifted(pixels, 10)
    measure, counts = measured("shift", truth, fixed.predict(pixels), fixed)
    for d in (1, 2, 3):
        inside, before, after = truth[d:, d:] != VOID, fixed.predict(pixels)[d:, d:], labels[d:, d:].copy()
        after[:, :10] = 3
        assert measure.profile(counts)[d - 1] == pytest.approx(100 * (before == after)[inside].mean())


@pytest.mark.parametrize(
    ("size", "pixels", "said"),
    [
        ((8, 30), (8, 30), "an image of 8x30 is too small for shifts by up to 3 px of stride 4"),
        ((20, 30), (40, 60), "labels of 20x30 and an image of 40x60"),
    ],
)
def test_a_shift_that_cannot_be_made_is_one_line(size, pixels, said):
    labels = np.zeros(size, np.uint8)
    with pytest.raises(DoesNotFit, match=f"^{said}$"):
        measured("shift", labels, labels, Shifted(np.zeros((*pixels, 3), np.uint8)))


def spectrum_of(truth, probabilities, stride=4):
    labels = probabilities.argmax(0).astype(np.uint8)
    return measured("spectrum", truth, labels, model(probabilities=probabilities.astype(np.float32)), stride=stride)


def test_the_spectrum_is_numpy_s_ring_by_ring():
    truth, _ = pair(4, (48, 60))
    found = probabilities_of(4, truth)
    measure, counts = spectrum_of(truth, found)
    window = np.outer(np.hanning(50)[1:-1], np.hanning(62)[1:-1])
    powers = []
    for maps in (found.astype(float) * (truth != VOID), (np.arange(4)[:, None, None] == truth).astype(float)):
        powers.append(sum(np.abs(np.fft.fft2((m - m.mean()) * window)) ** 2 for m in maps) / (48 * 60) ** 2)
    assert powers[0].sum() * 48 * 60 == pytest.approx(  # Parseval
        sum((((m - m.mean()) * window) ** 2).sum() for m in found * (truth != VOID)), rel=1e-4
    )
    radius = np.hypot(np.fft.fftfreq(48)[:, None], np.fft.fftfreq(60))
    rings = [(radius >= i / 32) & (radius < (i + 1) / 32) for i in range(16)]
    wanted = [10 * np.log10(powers[0][ring].sum() / powers[1][ring].sum()) for ring in rings]
    np.testing.assert_allclose(measure.profile(counts), wanted, atol=1e-3)


def test_a_perfect_soft_prediction_has_the_truth_s_spectrum():
    truth, _ = pair(5, (64, 64), void=False)
    measure, counts = spectrum_of(truth, np.arange(4)[:, None, None] == truth)
    np.testing.assert_allclose(measure.profile(counts), 0, atol=1e-6)


def test_a_checkerboard_of_period_4_stands_out_at_its_own_stride_alone():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (128, 128)).astype(np.uint8)  # white: nothing stands out
    soft = 0.2 * (np.arange(4)[:, None, None] == truth)
    assert spectrum_of(truth, soft)[0].score(spectrum_of(truth, soft)[1])[0] < 0.5
    soft[0] += 0.5 * np.cos(np.pi / 2 * np.arange(128))
    measure, counts = spectrum_of(truth, soft)
    assert measure.score(counts)[0] > 5
    measure, counts = spectrum_of(truth, soft, stride=6)
    assert measure.score(counts)[0] < 1


ASKS = """
import numpy as np, torch
from segbench.measures.base import CountMeasure, iou

class Asks(CountMeasure):
    def count(self, sample):
        model = sample.model
        if type(model).__name__ == "_Drawn":
            return sample.region
        found = model.probabilities
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
        assert np.array_equal(np.where(sample.truth.inside, found.argmax(0), 255), sample.prediction.labels)
        assert np.array_equal(model.predict(model.pixels), found.argmax(0))
        assert not np.array_equal(model.predict(255 - model.pixels), found.argmax(0))
        logits = model.decoder(model.features, model.image)
        assert not logits.requires_grad and logits.shape[2:] == (96, 96)
        assert model.stride == 4 and model.classes[1] == "disc"
        up = model.upsampling
        assert up.ratio == 4 and torch.equal(up.call(up.x, up.guide), logits)
        start, now = model.initial.state_dict(), model.decoder.state_dict()
        assert start.keys() == now.keys() and model.initial is model.initial
        assert not torch.equal(start["classifier.weight"], now["classifier.weight"])
        assert not model.initial.training and not torch.is_grad_enabled()
        return sample.region
    def score(self, counts):
        return 100 * iou(counts)
"""


def test_a_measure_can_ask_for_all_of_the_model(tmp_path):
    """Each assertion is the plug-in's; one that failed would stand in ``broken``."""
    (tmp_path / "asks.py").write_text(ASKS)
    changes = {"data": {"size": 96}, "decoders": ["bilinear", "deconv", "sapa"], "recipe": {"steps": 8, "lr": 0.01}}
    changes |= {"runs_dir": str(tmp_path / "runs"), "measures": [f"{tmp_path}/asks.py:Asks"]}
    results, code, out = sweep(build_config(tiny(**changes)))
    assert code == 0, out
    for result in results.values():
        assert result.row["broken"] == {}
        assert np.array_equal(result.counts["Asks"], result.counts["region"])


def test_measures_import_nothing_of_segbench_but_their_folder():
    for file in (ROOT / "segbench/measures").glob("*.py"):
        imports = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
        names = [getattr(n, "module", None) or n.names[0].name for n in imports]
        assert all(n.startswith("segbench.measures.") for n in names if n.startswith("segbench")), file


EVERY = [
    "shift",
    "spectrum",
    "checkerboard",
    {"name": "checkerboard", "params": {"at": "start"}},
    "equivariance",
    {"name": "equivariance", "params": {"px": 1}},
    "kernel",
    "calibration",
    {"name": "calibration", "params": {"where": "inside"}},
    {"name": "ceiling", "params": {"by": "mean"}},
    {"name": "cldice", "params": {"classes": ["line", "ring"]}},
    {"name": "thin", "params": {"by": "iou"}},
]
KINDS = {
    "pyramid": {
        "decoders": ["bilinear", "subpixel", "carafe", "sapa", {"name": "smp", "params": {"architecture": "fpn"}}]
    },
    "linear": {"skeleton": "linear", "decoders": ["bilinear", "jafar", {"name": "smp", "label": "unet"}]},
    "vit": {
        "encoder": {"name": "vit_small_patch14_dinov2", "weights": "none", "params": {"blocks": [0, 1]}},
        "decoders": ["bilinear", "deconv", "carafe"],
    },
}


@pytest.fixture(scope="module", params=KINDS)
def swept(request, tmp_path_factory):
    """A sweep with all measures, of each kind of decoder."""
    runs = tmp_path_factory.mktemp("runs")
    config = build_config(tiny(runs_dir=str(runs), measures=EVERY, **KINDS[request.param]))
    results, code, out = sweep(config)
    assert code == 0, out
    return runs / "tiny", results


@pytest.fixture(scope="module")
def page(swept):
    return write_report(swept[0], gallery=False).path.read_text("utf-8")


def test_every_kind_of_decoder_has_every_measure(swept):
    _, results = swept
    names = {m.name for m in available(list(results.values()))}
    assert {m.partition("@")[0] for m in names} >= {e if isinstance(e, str) else e["name"] for e in EVERY}
    for (decoder, _), result in results.items():
        assert result.row["broken"] == {}, decoder
        assert all(name in result.counts for name in names - {"miou", "accuracy"}), decoder


def test_every_measure_is_on_the_page_with_a_plot_and_in_the_table(swept, page):
    folder, results = swept
    figures = {p.stem for p in (folder / "figures").iterdir()}
    assert 'id="g0-diagnosis"' in page
    for metric in available(list(results.values())):
        if metric.measure.axis or metric.measure.plotted:
            assert slug(metric.name) in figures
            assert f'data-figure="{slug(metric.name)}"' in page
            row = make_table(folder, [metric.name], columns=["score", "ci"]).rows[0]
            assert row[metric.column].mean == pytest.approx(metric.mean(results[row["decoder"], 0]), nan_ok=True)
    assert "phase_error-picture" not in figures
    assert "phase-error-picture" in figures


def test_what_is_counted_at_another_stride_is_shown_and_not_compared(swept):
    folder, results = swept
    row = next(
        (r for r in make_table(folder, ["phase_error"], columns=["score", "ci"]).rows if r["decoder"] == "unet"), None
    )
    if row is not None:  # beside decoders of stride 16
        assert row["phase err."].mean == make_measure("phase_error", {}).score(
            results["unet", 0].counts["phase_error"].sum(0)
        )
        assert np.isnan(row["phase err."].low)


def test_images_that_are_too_small_lose_the_column_in_one_line(make_config):
    results, code, out = sweep(
        make_config(decoders=["nearest"], measures=[{"name": "shift", "params": {"stride": 32}}])
    )
    assert code == 0, out
    (result,) = results.values()
    (said,) = result.row["broken"].values()
    assert ": an image of 64x64 is too small for shifts by up to 31 px of stride 32" in said
    assert "\n" not in said


def test_a_ceiling_is_the_same_for_every_decoder_and_drawn_once(swept, page):
    _, results = swept
    counts = [result.counts["ceiling@4,majority"] for result in results.values()]
    assert all(np.array_equal(counts[0], other) for other in counts)
    assert "The same for all decoders." in page
