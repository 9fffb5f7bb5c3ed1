"""Diagnosis measures that ask for the model: checkerboard, equivariance, kernel, shift and spectrum, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from segbench.build import look_up
from segbench.columns import drawn_samples, make_measure, try_measure
from segbench.config import DecoderConfig, EvaluationConfig
from segbench.decoders.base import fake_inputs
from segbench.errors import UserError
from segbench.measures._model import Upsampling
from segbench.measures.base import VOID, DoesNotFit, TooSmall
from segbench.training.model import Looked, RunModel
from segbench.training.prediction import Prediction, Window
from segbench.upsamplers import Bilinear, Deconv, Subpixel
from tests.test_diagnosis import CLASSES, measured, model, pair, probabilities_of


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
    upsampling = Upsampling(call, x, guide, ratio, params.pop("ends_at", 1))
    with torch.no_grad():
        measure, counts = measured(name, truth, truth, model(upsampling=upsampling), **params)
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


def test_an_upsampling_that_ends_at_a_stride_is_measured_in_pixels_of_the_image():
    x = torch.randn(1, 3, 21, 21, generator=torch.Generator().manual_seed(0))

    def up(x):
        return interpolate(x, scale_factor=2)

    measure, counts = of_upsampling("kernel", up, x, 2, ends_at=4)
    assert measure.score(counts)[0] == pytest.approx(4 * np.sqrt(2 * np.var(np.arange(2))))
    assert measure.score(counts + counts)[0] == measure.score(counts)[0]  # of two images
    assert measure.picture(counts).sum() == pytest.approx(4, abs=1e-4)
    guide = torch.zeros(1, 3, 168, 168)
    alike = [
        of_upsampling("equivariance", up, x, 2, guide, ends_at=ends_at, px=ends_at)[1] for ends_at in (1, 4)
    ]  # both by half a cell of x
    assert alike[0].tolist() == alike[1].tolist()
    measure, counts = of_upsampling("equivariance", up, x, 2, guide, ends_at=4, px=2)
    assert np.isnan(measure.score(counts)).all()


@pytest.mark.parametrize(
    ("skeleton", "output_stride", "width_px"),
    [("pyramid", 1, 2.739), ("pyramid", 2, 2 * 1.225), ("pyramid", 4, 4 * 1.225), ("linear", 4, 4 * 2.739)],
)
def test_the_last_upsampling_of_a_decoder_says_at_which_stride_it_ends(skeleton, output_stride, width_px):
    """Widths of tents by 2 and by 4, as of `test_the_kernels_of_interpolation_are_a_box_and_a_tent`."""
    of = run_model((128, 128), skeleton=skeleton, output_stride=output_stride)
    up = of.upsampling
    assert up.px == output_stride == 128 / up.call(up.x, up.guide).shape[-1]
    truth = np.zeros((128, 128), np.uint8)
    with torch.no_grad():
        measure, counts = measured("kernel", truth, truth, of)
    assert measure.score(counts)[0] == pytest.approx(width_px, rel=0.01)


def run_model(size, protocol=None, views=1, **params):
    """A decoder's prediction of an image by random features, as a sweep gives it to measures."""
    channels, strides = (24, 40, 112, 320), (4, 8, 16, 32)
    skeleton = params.pop("skeleton", "pyramid")
    wanted = DecoderConfig(name="bilinear", params={"width": 8, **params})
    torch.manual_seed(0)
    decoder = look_up(wanted, {}, skeleton).build(channels, strides, 7, 0).eval()
    features, image = fake_inputs(channels, strides, (128, 128))
    window = Window((slice(0, 128), slice(0, 128)), image, [torch.randn_like(f) for f in features], False)
    encoder = SimpleNamespace(strides=strides)
    looked = Looked(encoder, EvaluationConfig(**protocol or {}), np.zeros((*size, 3), np.uint8), CLASSES)
    return RunModel(looked, decoder, Prediction(window=window, views=views), None)


@pytest.mark.parametrize(
    ("size", "protocol", "views", "on_grid"),
    [
        ((96, 90), {}, 1, True),  # padded below and to the right
        ((96, 128), {"fit": "resize"}, 1, True),
        ((96, 90), {"fit": "resize"}, 1, False),
        ((96, 90), {"resize": 192}, 1, False),
        ((96, 90), {"label_size": 48}, 1, False),
        ((96, 90), {"label_size": 200}, 1, True),  # no larger than that
        ((96, 90), {"flip": True}, 2, False),
        ((96, 90), {"scales": [0.5]}, 1, False),
        ((96, 96), {"mode": "slide", "window": 64, "stride": 32}, 1, True),
        ((96, 96), {"mode": "slide", "window": 64, "stride": 30}, 1, False),
        ((96, 90), {"mode": "slide", "window": 64, "stride": 32}, 1, False),  # the last column of windows is at 26
        ((90, 90), {"mode": "crop", "window": 64}, 1, True),
    ],
)
def test_cells_are_blocks_of_the_labels_pixels_where_nothing_moves_them(size, protocol, views, on_grid):
    of = run_model(size, protocol, views)
    assert of.on_grid is on_grid


@pytest.mark.parametrize("name", ["phase_error", "spectrum"])
def test_off_the_grid_there_are_no_phases_but_of_a_stride_that_is_given(name):
    truth, _ = pair(3, (40, 48), void=False)
    of = model(on_grid=False, probabilities=probabilities_of(4, truth).astype(np.float32))
    with pytest.raises(DoesNotFit, match="cells of stride 4 are no blocks of the labels' pixels"):
        measured(name, truth, truth, of)
    assert measured(name, truth, truth, of, stride=4)[1].sum() > 0


@pytest.mark.parametrize(("size", "stride"), [(9, 2), (15, 2), (13, 3), (15, 4)])
def test_an_image_too_small_for_a_spectrum_is_one_line(size, stride):
    truth, _ = pair(3, (size, size), void=False)
    said = "too small: wanted four cells" if size < 4 * stride else f"no frequency near the multiples of 1/{stride}"
    with pytest.raises(TooSmall, match=said):
        spectrum_of(truth, probabilities_of(4, truth), stride)


@pytest.mark.parametrize("name", ["shift", "spectrum"])
def test_a_stride_too_large_for_what_is_drawn_is_not_too_large_for_the_data(name):
    measure = make_measure(name, {"stride": 48})
    sample = drawn_samples(CLASSES)[0]
    with pytest.raises(TooSmall):
        measure.count(sample)
    try_measure(measure, [sample], len(CLASSES))
    with pytest.raises(UserError, match="lamp"):
        try_measure(make_measure("cldice", {"classes": ["lamp"]}), [sample], len(CLASSES))


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
