import re
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from torch import nn

from segbench.build import build_decoder
from segbench.check import CHANNELS, CHECKS, STRIDES, Broken, builder, check_decoder
from segbench.config import DecoderConfig
from segbench.cost import fake_inputs
from segbench.decoders.base import Decoder, PyramidDecoder
from segbench.decoders.deconv import DeconvUpsampler
from segbench.decoders.fractional import FractionalConv2d, FractionalUpsampler
from segbench.decoders.subpixel import SubpixelUpsampler
from segbench.registry import DECODERS

PLUG_IN = "experiments/plug_in_a_decoder/carafe_lite.py:CarafeLite"
VARIANTS = [(name, {}) for name in DECODERS.builtin()] + [
    ("deconv", {"init": "random"}),
    ("fractional", {"init": "random"}),
    ("subpixel", {"init": "icnr"}),
    ("subpixel", {"init": "plain"}),
    ("bilinear", {"output_stride": 4}),
    ("subpixel", {"output_stride": 2, "width": 16}),
    (PLUG_IN, {"width": 16}),
]


# An output stride is only possible up to the finest encoder stride, which the check of strides varies.
CASES = [(n, p, c) for n, p in VARIANTS for c in CHECKS.values() if "output_stride" not in p or c.__name__ != "strides"]


@pytest.mark.parametrize(
    ("name", "params", "check"), CASES, ids=[f"{n.rpartition(':')[2]}{p or ''}-{c.__name__}" for n, p, c in CASES]
)
def test_contract(name, params, check):
    assert check(builder(name, params))


class Guided(PyramidDecoder):
    guided = True
    seen: ClassVar[list] = []

    def upsampler(self, channels, scale, guide_channels):
        outer = self

        class Up(nn.Module):
            def forward(self, x, guide):
                outer.seen.append((tuple(x.shape), tuple(guide.shape), guide_channels))
                return F.interpolate(x, scale_factor=scale) + guide.mean(1, keepdim=True)

        return Up()


def test_guide_is_the_finer_lateral_then_the_image():
    Guided.seen = []
    decoder = Guided((4, 8), (4, 8), 3, width=16)
    image = torch.randn(1, 3, 40, 56)
    decoder([torch.randn(1, 4, 10, 14), torch.randn(1, 8, 5, 7)], image)
    assert Guided.seen == [
        ((1, 16, 5, 7), (1, 16, 10, 14), 16),
        ((1, 3, 10, 14), (1, 3, 20, 28), 3),
        ((1, 3, 20, 28), (1, 3, 40, 56), 3),
    ]


def test_guide_at_odd_sizes_has_the_size_of_the_upsampled():
    Guided.seen = []
    decoder = Guided((4, 8), (4, 8), 3, width=16)
    logits = decoder([torch.randn(1, 4, 9, 13), torch.randn(1, 8, 5, 7)], torch.randn(1, 3, 33, 49))
    assert logits.shape == (1, 3, 33, 49)
    assert all(guide[-2:] == (2 * x[-2], 2 * x[-1]) for x, guide, _ in Guided.seen)


def test_steps_between_strides():
    """As many x2 steps as fit; the rest bilinear, or p/q where the technique can."""
    counts = lambda d: [len(s) for s in d.steps]  # noqa: E731
    assert counts(builder("bilinear", {})((8, 8), (4, 16))) == [2, 2]
    assert counts(builder("bilinear", {})((8,), (14,))) == [3]
    assert counts(builder("fractional", {})((8,), (14,))) == [4]  # 2 x 2 x 2 x 7/4
    assert builder("fractional", {})((8,), (14,)).steps[0][3].p == 7


@pytest.mark.parametrize(
    "factor",
    [Fraction(3, 2), Fraction(4, 3), Fraction(5, 4), Fraction(5, 3), Fraction(2), Fraction(7, 4), Fraction(2, 3)],
    ids=str,
)
def test_fractional_is_upfirdn(factor):
    """Separable filters: equal to SciPy's zero insertion, filter and decimation along both axes."""
    rng = np.random.default_rng(0)
    module = FractionalConv2d(1, 1, factor).double()
    rows, columns = rng.normal(size=(2, module.kernel_size))
    with torch.no_grad():
        module.weight[0, 0] = torch.from_numpy(np.outer(rows, columns))
    x = rng.normal(size=(13, 18))

    def upfirdn(a, taps, axis):
        padded = np.concatenate([a, np.zeros_like(a)], axis)  # so that the tail is not cut
        full = scipy.signal.upfirdn(taps, padded, up=factor.numerator, down=1, axis=axis)
        size = -(-a.shape[axis] * factor.numerator // factor.denominator)
        return np.take(full, module.offset + factor.denominator * np.arange(size), axis)

    wanted = upfirdn(upfirdn(x, rows, 0), columns, 1)
    got = module(torch.from_numpy(x)[None, None])[0, 0].detach().numpy()
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "factor", [Fraction(3, 2), Fraction(4, 3), Fraction(5, 3), Fraction(7, 5), Fraction(3)], ids=str
)
def test_fractional_starts_as_bilinear(factor):
    x = torch.randn(1, 2, 30, 30)
    got = FractionalConv2d(2, 2, factor)(x)
    wanted = F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
    inner = slice(int(factor) + 2, -int(factor) - 3)
    torch.testing.assert_close(
        got[..., : wanted.shape[-2], : wanted.shape[-1]][..., inner, inner],
        wanted[..., inner, inner],
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 1), (5, 2)])
def test_fractional_doubles_any_size(size):
    assert FractionalUpsampler(3)(torch.randn(2, 3, *size)).shape == (2, 3, 2 * size[0], 2 * size[1])


def test_fractional_is_not_a_transposed_convolution():
    """Two learned steps reach further than one: what one input pixel touches."""
    x = torch.zeros(1, 1, 16, 16)
    x[..., 8, 8] = 1
    touched = lambda module: int((module(x) - module(torch.zeros_like(x)) != 0).any(-1).sum())  # noqa: E731
    assert touched(DeconvUpsampler(1)) == 4
    assert touched(FractionalUpsampler(1)) > 4


def test_deconv_starts_as_bilinear():
    x = torch.randn(2, 3, 9, 11)
    got = DeconvUpsampler(3)(x)
    wanted = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(got[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], atol=1e-5, rtol=0)


def test_subpixel_of_random_icnr_starts_as_convolution_and_nearest():
    up = SubpixelUpsampler(4, init="icnr")
    one = nn.Conv2d(4, 4, 3, padding=1)
    with torch.no_grad():
        one.weight.copy_(up.conv.weight[::4])
        one.bias.copy_(up.conv.bias[::4])
    x = torch.randn(2, 4, 7, 5)
    torch.testing.assert_close(up(x), F.interpolate(one(x), scale_factor=2, mode="nearest"), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("module", "largest"),
    [
        (DeconvUpsampler(8), 1e-5),
        (FractionalUpsampler(8), 1e-5),
        (SubpixelUpsampler(8), 1e-5),
        (SubpixelUpsampler(8, init="icnr"), 1e-5),
    ],
    ids=["deconv", "fractional", "subpixel", "icnr"],
)
def test_no_checkerboard_at_the_start(module, largest):
    """A constant input comes out constant within each 2x2 cell, away from the border."""
    torch.manual_seed(0)
    y = module(torch.ones(1, 8, 12, 12)).detach()[..., 6:-6, 6:-6]
    cells = y.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    assert float((cells.std(-1) / cells.mean(-1).abs()).max()) < largest


def test_unequal_initialisation_is_refused():
    for cls in (DeconvUpsampler, FractionalUpsampler, SubpixelUpsampler):
        with pytest.raises(ValueError, match="init must be"):
            cls(4, init="nope")


def built(name, **params):
    return build_decoder(DecoderConfig(name=name, params=params), CHANNELS, STRIDES, 7, 0).eval()


@pytest.mark.parametrize(
    ("learned", "interpolation"),
    [("subpixel", "nearest"), ("nearest_conv", "nearest"), ("bilinear_conv", "bilinear")],
)
def test_the_whole_decoder_starts_as_interpolation(learned, interpolation):
    """Before any training its logits are those of the interpolating decoder of the same seed, bit for bit."""
    torch.manual_seed(0)
    features, image = fake_inputs(CHANNELS, STRIDES, (96, 160))
    with torch.no_grad():
        assert torch.equal(built(learned)(features, image), built(interpolation)(features, image))


def test_deconv_and_fractional_start_near_bilinear():
    """Zeros beyond the border aside, their classes are bilinear's; those of random starts are not."""
    torch.manual_seed(0)
    features, image = fake_inputs(CHANNELS, STRIDES, (256, 256))
    features = [F.avg_pool2d(f, 5, 1, 2) for f in features]
    with torch.no_grad():
        wanted = built("bilinear")(features, image).argmax(1)
        agree = {
            (name, str(params)): float((built(name, **params)(features, image).argmax(1) == wanted).float().mean())
            for name in ("deconv", "fractional")
            for params in ({}, {"init": "random"})
        }
    assert all(share > 0.9 for (_, params), share in agree.items() if params == "{}"), agree
    assert all(share < 0.5 for (_, params), share in agree.items() if params != "{}"), agree


@pytest.mark.parametrize(
    ("claim", "module", "holds"),
    [
        ("nearest", SubpixelUpsampler, True),
        ("bilinear", SubpixelUpsampler, False),
        ("nearest", lambda c: SubpixelUpsampler(c, init="icnr"), False),
        ("bilinear", DeconvUpsampler, True),
        ("bilinear", lambda c: DeconvUpsampler(c, "random"), False),
        ("bilinear", FractionalUpsampler, False),
        ("linear", FractionalUpsampler, True),
        ("linear", DeconvUpsampler, True),
        ("linear", SubpixelUpsampler, False),
        ("random", lambda c: DeconvUpsampler(c, "random"), True),
        ("the best", DeconvUpsampler, False),
    ],
)
def test_check_holds_an_upsampler_to_what_it_says(claim, module, holds):
    class Claims(PyramidDecoder):
        def upsampler(self, channels, scale, guide_channels):
            made = module(channels)
            made.starts_as = claim
            return made

    build = lambda: Claims(CHANNELS, STRIDES, 7, width=16)  # noqa: E731
    if holds:
        assert CHECKS["starts as it says"](build) == claim
    else:
        with pytest.raises(Broken, match=claim):
            CHECKS["starts as it says"](build)


def test_check_looks_at_the_ratios_that_only_a_rational_technique_takes():
    class Sevenfold(PyramidDecoder):
        rational = True

        def upsampler(self, channels, scale, guide_channels):
            made = FractionalConv2d(channels, channels, scale)
            if scale != 2:
                made.weight.data.mul_(7)
            return made

    build = lambda channels=CHANNELS, strides=STRIDES: Sevenfold(channels, strides, 7, width=16)  # noqa: E731
    with pytest.raises(Broken, match=r"x7/4, 16 channels|x7/4, 7 channels"):
        CHECKS["starts as it says"](build)


def test_check_takes_nan_for_no_start():
    class Nan(PyramidDecoder):
        def upsampler(self, channels, scale, guide_channels):
            made = DeconvUpsampler(channels)
            made.bias.data.fill_(float("nan"))
            return made

    with pytest.raises(Broken, match="starts as bilinear"):
        CHECKS["starts as it says"](lambda: Nan(CHANNELS, STRIDES, 7, width=16))


def test_check_says_when_a_start_is_not_said():
    class Silent(PyramidDecoder):
        def upsampler(self, channels, scale, guide_channels):
            return nn.ConvTranspose2d(channels, channels, 2, 2)

    assert "ConvTranspose2d does not say" in CHECKS["starts as it says"](lambda: Silent(CHANNELS, STRIDES, 7))


WRONG = """
import torch
import torch.nn.functional as F
from torch import nn
from segbench import PyramidDecoder

class Up(nn.Module):
    def __init__(self, how, scale):
        super().__init__()
        self.how, self.scale, self.calls = how, scale, 0

    def forward(self, x, guide=None):
        self.calls += self.training
        up = lambda s: F.interpolate(x, scale_factor=float(s))
        how = self.how if self.how not in ("late", "guide late") or self.calls > 2 else "right"
        if how in ("guide", "guide late"):
            guide.mul_(0.5)
        return {
            "smaller": lambda: x, "larger": lambda: up(3), "transposed": lambda: up(self.scale).mT,
            "padded": lambda: F.pad(up(self.scale), (1, 0, 1, 0)), "late": lambda: x, "tuple": lambda: (x, x),
            "channels": lambda: up(self.scale)[:, 1:], "rounded": lambda: up(int(self.scale)),
        }.get(how, lambda: up(self.scale))()

class Base(PyramidDecoder):
    rational = True
    def upsampler(self, channels, scale, guide_channels):
        return Up(self.how, scale)

class Right(Base): how = "right"
class Smaller(Base): how = "smaller"
class Larger(Base): how = "larger"
class Transposed(Base): how = "transposed"
class Padded(Base): how = "padded"
class Channels(Base): how = "channels"
class Tuple(Base): how = "tuple"
class Rounded(Base): how = "rounded"
class Late(Base): how = "late"

class Guide(Base):
    guided = True
    how = "guide"

class GuideLate(Base):
    guided = True
    how = "guide late"
"""


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        ("Smaller", r"Up of Smaller returns \(1, 64, 2, 3\) for \(1, 64, 2, 3\) and scale 2; wanted \(1, 64, 4, 6\)"),
        ("Larger", r"Up of Larger returns \(1, 64, 6, 9\) .* wanted \(1, 64, 4, 6\)"),
        ("Transposed", r"Up of Transposed returns \(1, 64, 6, 4\) .* wanted \(1, 64, 4, 6\)"),
        ("Padded", r"Up of Padded returns \(1, 64, 5, 7\) .* wanted \(1, 64, 4, 6\)"),
        ("Channels", r"Up of Channels returns \(1, 63, 4, 6\) .* wanted \(1, 64, 4, 6\)"),
        ("Tuple", r"Up of Tuple returns tuple for .* wanted \(1, 64, 4, 6\)"),
        ("Rounded", r"Up of Rounded returns .* and scale 7/4; wanted"),
        ("Guide", r"the upsampler Up of Guide changes its guide in place"),
    ],
)  # fmt: skip
def test_an_upsampler_that_returns_something_else_is_named(tmp_path, cls, said):
    """In `segbench check`; its error comes from the forward pass itself, so that training meets it too."""
    (tmp_path / "wrong.py").write_text(WRONG)
    lines = []
    assert check_decoder(f"{tmp_path / 'wrong.py'}:{cls}", {}, lines.append) == 1
    assert any(re.search(said, line) for line in lines), lines
    lines = []
    check_decoder(f"{tmp_path / 'wrong.py'}:Right", {}, lines.append)
    assert not any(line.startswith("FAIL") for line in lines)


class BatchSized(Decoder):
    """Breaks the contract in several ways."""

    def __init__(self, channels, strides, num_classes):
        super().__init__(channels, strides, num_classes)
        self.head = nn.Conv2d(channels[0], num_classes, 1)
        self.forgotten = nn.Parameter(torch.zeros(3))

    def forward(self, features, image):
        x = self.head(features[0])
        return F.interpolate(F.dropout(x - x.mean(0, keepdim=True)), scale_factor=self.strides[0])


def test_check_says_what_is_wrong():
    said = []
    code = check_decoder("tests.test_decoders:BatchSized", {}, said.append)
    text = "\n".join(said)
    assert code == 1
    assert (
        "FAIL  logits of the right shape at odd sizes: a 65x97 image gives (2, 7, 68, 100); wanted (2, 7, 65, 97)"
        in text
    )
    assert "FAIL  gradient to every parameter: 1 parameters get no gradient: forgotten" in text
    assert "FAIL  two eval passes equal: two eval passes differ by up to" in text
    assert "FAIL  independent of the batch in eval mode" in text
    assert "pass  bf16 autocast" in text


def test_check_catches_nan():
    class Nan(Decoder):
        def forward(self, features, image):
            return torch.full((image.shape[0], self.num_classes, *image.shape[-2:]), float("nan"))

    build = lambda channels=CHANNELS, strides=STRIDES, seed=0: Nan(channels, strides, 7)  # noqa: E731
    with pytest.raises(Broken, match="not finite"):
        CHECKS["finite output"](build)
