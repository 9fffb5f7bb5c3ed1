"""Upsamplers by themselves: what each computes, what it starts as, and what one that breaks the contract is told."""

import ast
import functools
import re
from fractions import Fraction

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from torch import nn

import segbench.upsamplers
from segbench.build import look_up
from segbench.check import CHECKS, Broken, Note, Setting, check_decoder
from segbench.config import DecoderConfig
from segbench.decoders.pyramid import Pyramid
from segbench.errors import UserError
from segbench.registry import DECODERS, UPSAMPLERS
from segbench.upsamplers import Deconv, Fractional, Nearest, Subpixel
from segbench.upsamplers.base import RATIOS, ceil_size, is_guided, takes, upsample
from segbench.upsamplers.fractional import FractionalConv2d
from tests.conftest import ROOT

CHANNELS, STRIDES = Setting().channels, Setting().strides

BUILT_IN = [UPSAMPLERS.load(name) for name in UPSAMPLERS.builtin()]


def test_each_file_is_one_upsampler_and_can_be_imported_by_name():
    files = {file.stem for file in (ROOT / "segbench/upsamplers").glob("*.py")}
    assert UPSAMPLERS.builtin().keys() == {file for file in files if not file.startswith("_") and file != "base"}
    for cls in BUILT_IN:
        assert getattr(segbench.upsamplers, cls.__name__) is cls
    assert not UPSAMPLERS.builtin().keys() & DECODERS.builtin().keys()
    with pytest.raises(AttributeError, match="'segbench.upsamplers' has no attribute 'Deconvolution'"):
        segbench.upsamplers.Deconvolution  # noqa: B018


def test_upsamplers_import_nothing_of_segbench_but_their_folder():
    for file in (ROOT / "segbench/upsamplers").glob("*.py"):
        imports = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
        names = [getattr(n, "module", None) or n.names[0].name for n in imports]
        assert all(n.startswith("segbench.upsamplers.") for n in names if n.startswith("segbench")), file


@pytest.mark.parametrize("cls", BUILT_IN)
@pytest.mark.parametrize("scale", [2, 3, 4, Fraction(7, 4)], ids=str)
def test_an_upsampler_by_itself(cls, scale):
    """Of any size, by the scales that its class names; what it starts as is torch's interpolation, the border aside."""
    if not takes(cls, scale):
        assert RATIOS[getattr(cls, "ratios", "two")] in ("2 alone", "any integer from 2")
        return
    torch.manual_seed(0)
    x = torch.randn(2, 6, 11, 9)
    up = cls(6, scale, 6)
    with torch.no_grad():
        y = upsample(up, scale, x, torch.randn(2, 6, *ceil_size((11, 9), scale)) if is_guided(cls) else None)
    assert y.shape == (2, 6, *(-(-n * scale.numerator // scale.denominator) for n in (11, 9)))
    if (mode := getattr(up, "starts_as", None)) in ("nearest", "bilinear"):
        wanted = F.interpolate(x, size=None, scale_factor=float(scale), mode=mode)
        inner = (..., slice(4, 14), slice(4, 11))
        torch.testing.assert_close(y[inner], wanted[inner], atol=1e-5, rtol=0)


def test_functools_partial_of_a_class_is_one_too():
    guided = type("G", (nn.Module,), {"guided": True, "ratios": "rational"})
    assert takes(functools.partial(guided, init="x"), Fraction(7, 4))
    assert not takes(nn.Identity, 3)
    decoder = Pyramid((4, 8), (4, 8), 3, functools.partial(Deconv, init="random"), width=4)
    assert [step.module.starts_as for step in decoder.upsampling()] == ["random"] * 3


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
    assert Fractional(3)(torch.randn(2, 3, *size)).shape == (2, 3, 2 * size[0], 2 * size[1])


def test_fractional_is_not_a_transposed_convolution():
    """Two learned steps reach further than one: what one input pixel touches."""
    x = torch.zeros(1, 1, 16, 16)
    x[..., 8, 8] = 1
    touched = lambda module: int((module(x) - module(torch.zeros_like(x)) != 0).any(-1).sum())  # noqa: E731
    assert touched(Deconv(1)) == 4
    assert touched(Fractional(1)) > 4


def test_deconv_starts_as_bilinear():
    x = torch.randn(2, 3, 9, 11)
    got = Deconv(3)(x)
    wanted = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(got[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], atol=1e-5, rtol=0)


def test_subpixel_of_random_icnr_starts_as_convolution_and_nearest():
    up = Subpixel(4, init="icnr")
    one = nn.Conv2d(4, 4, 3, padding=1)
    with torch.no_grad():
        one.weight.copy_(up.conv.weight[::4])
        one.bias.copy_(up.conv.bias[::4])
    x = torch.randn(2, 4, 7, 5)
    torch.testing.assert_close(up(x), F.interpolate(one(x), scale_factor=2, mode="nearest"), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("module", "largest"),
    [
        (Deconv(8), 1e-5),
        (Fractional(8), 1e-5),
        (Subpixel(8), 1e-5),
        (Subpixel(8, init="icnr"), 1e-5),
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
    for cls in (Deconv, Fractional, Subpixel):
        with pytest.raises(ValueError, match="init must be"):
            cls(4, init="nope")


@pytest.mark.parametrize(
    ("claim", "module", "holds"),
    [
        ("nearest", Subpixel, True),
        ("bilinear", Subpixel, False),
        ("nearest", lambda c, s: Subpixel(c, s, init="icnr"), False),
        ("bilinear", Deconv, True),
        ("bilinear", lambda c, s: Deconv(c, s, init="random"), False),
        ("bilinear", Fractional, False),
        ("linear", Fractional, True),
        ("linear", Deconv, True),
        ("linear", Subpixel, False),
        ("random", lambda c, s: Deconv(c, s, init="random"), True),
    ],
)
def test_check_holds_an_upsampler_to_what_it_says(claim, module, holds):
    def claims(channels, scale, guide_channels):
        made = module(channels, scale)
        made.starts_as = claim
        return made

    build = lambda: Pyramid(CHANNELS, STRIDES, 7, claims, width=16)  # noqa: E731
    if holds:
        assert CHECKS["starts as it says"](build) == claim
    else:
        with pytest.raises(Broken, match=claim):
            CHECKS["starts as it says"](build)


def test_check_looks_at_the_ratios_that_only_a_rational_upsampler_takes():
    class Sevenfold(Fractional):
        def __init__(self, channels, scale=2, guide_channels=0):
            super().__init__(channels, scale)
            if scale == Fraction(7, 4):
                self[0].weight.data.mul_(7)

    with pytest.raises(Broken, match=r"x7/4, 5 channels\) says that it starts as bilinear"):
        CHECKS["starts as it says"](lambda: Pyramid(CHANNELS, STRIDES, 7, Sevenfold, width=16))


def test_check_looks_at_ratios_that_the_skeleton_has_not():
    class Twofold(Nearest):
        def __init__(self, channels, scale=2, guide_channels=0):
            super().__init__(channels, 2)

    build = lambda: Pyramid(CHANNELS, STRIDES, 7, Twofold, width=16)  # noqa: E731
    with pytest.raises(ValueError, match=r"Twofold returns .* and scale 3; wanted \(2, 5, 18, 24\)"):
        CHECKS["any ratio that it takes"](build)
    Twofold.ratios = "two"
    assert CHECKS["any ratio that it takes"](build) == "x2"


def test_check_takes_nan_for_no_start():
    class Nan(Deconv):
        def __init__(self, channels, scale=2, guide_channels=0):
            super().__init__(channels, scale)
            self.bias.data.fill_(float("nan"))

    with pytest.raises(Broken, match="starts as bilinear"):
        CHECKS["starts as it says"](lambda: Pyramid(CHANNELS, STRIDES, 7, Nan, width=16))


def test_check_says_when_a_start_is_not_said():
    def silent(channels, scale, guide_channels):
        return nn.ConvTranspose2d(channels, channels, 2, 2)

    said = CHECKS["starts as it says"](lambda: Pyramid(CHANNELS, STRIDES, 7, silent))
    assert isinstance(said, Note)
    assert "ConvTranspose2d does not say" in said


WRONG = """
import torch.nn.functional as F
from torch import nn

class Right(nn.Module):
    ratios, how = "rational", "right"

    def __init__(self, channels, scale, guide_channels):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        up = lambda s: F.interpolate(x, size=[-(-n * s.numerator // s.denominator) for n in x.shape[2:]])
        return {
            "smaller": lambda: x, "larger": lambda: up(3), "transposed": lambda: up(self.scale).mT,
            "padded": lambda: F.pad(up(self.scale), (1, 0, 1, 0)), "tuple": lambda: (x, x),
            "channels": lambda: up(self.scale)[:, 1:], "rounded": lambda: up(int(self.scale)),
        }.get(self.how, lambda: up(self.scale))()

class Smaller(Right): how = "smaller"
class Larger(Right): how = "larger"
class Transposed(Right): how = "transposed"
class Padded(Right): how = "padded"
class Channels(Right): how = "channels"
class Tuple(Right): how = "tuple"
class Rounded(Right): how = "rounded"

class Guide(Right):
    guided = True
    def forward(self, x, guide):
        guide.mul_(0.5)
        return super().forward(x)

class Mute(nn.Module):
    def __init__(self, channels, scale, guide_channels):
        super().__init__()
"""


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        ("Smaller", r"upsampler Smaller returns \(1, 64, 2, 3\) for \(1, 64, 2, 3\) and scale 2; wanted \(1, 64, 4, 6"),
        ("Larger", r"upsampler Larger returns \(1, 64, 6, 9\) .* wanted \(1, 64, 4, 6\)"),
        ("Transposed", r"upsampler Transposed returns \(1, 64, 6, 4\) .* wanted \(1, 64, 4, 6\)"),
        ("Padded", r"upsampler Padded returns \(1, 64, 5, 7\) .* wanted \(1, 64, 4, 6\)"),
        ("Channels", r"upsampler Channels returns \(1, 63, 4, 6\) .* wanted \(1, 64, 4, 6\)"),
        ("Tuple", r"upsampler Tuple returns tuple for .* wanted \(1, 64, 4, 6\)"),
        ("Rounded", r"upsampler Rounded returns .* and scale 7/4; wanted"),
        ("Guide", r"upsampler Guide changes its guide in place"),
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


DECLARED = """
from torch import nn
from segbench.upsamplers import Bilinear

class Own(nn.Module):
    def __init__(self, channels): super().__init__()
class NoConstructor(nn.Module):
    def forward(self, x): return x
class Positions(Bilinear):
    def __init__(self, *args): super().__init__(*args)
class Guideless(Bilinear): guided = True
class Unasked(Bilinear):
    def forward(self, x, guide=None): return super().forward(x)
class Unnamed(Bilinear):
    def forward(self, x, other): return super().forward(x)
class Maybe(Bilinear): guided = "maybe"
class Ratio(Bilinear): ratios = "three"
class Mute(nn.Module):
    def __init__(self, channels, scale, guide_channels): super().__init__()
class Start(Bilinear): starts_as = "the best"
class LateStart(Bilinear):
    def __init__(self, channels, scale, guide_channels):
        super().__init__(channels, scale)
        self.starts_as = "bicubic"
class Width(Bilinear):
    def __init__(self, channels, scale, guide_channels, *, width=3): super().__init__(channels, scale)
class Wants(Bilinear):
    def __init__(self, channels, scale, guide_channels, *, size: int): super().__init__(channels, scale)
class Plain: pass
"""


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        ("Own", "its constructor lacks guide_channels, scale; it should be __init__"),
        ("NoConstructor", "its constructor lacks channels, guide_channels, scale"),
        ("Positions", "its constructor lacks channels, guide_channels, scale"),
        ("Guideless", r"guided = True, but its forward.* cannot be called so: too many positional arguments"),
        ("Unasked", "its forward takes a guide, but the class does not say guided = True"),
        ("Unnamed", r"guided = False, but its forward.* cannot be called so: missing a required argument: 'other'"),
        ("Maybe", "guided = 'maybe'; it should be True or False"),
        ("Mute", r"it has no forward\(self, x\)"),
        ("Ratio", "ratios = 'three'; it should be one of 'two', 'integer', 'rational'"),
        ("Start", "Start has starts_as = 'the best'; it should be one of 'nearest', 'bilinear', 'linear', 'random'"),
        ("LateStart", "LateStart has starts_as = 'bicubic'; it should be one of"),
        ("Width", "and the skeleton 'pyramid' both have a parameter 'width'; rename one"),
        ("Wants", "size is missing"),
        ("Plain", "is no subclass of torch.nn.Module"),
    ],
)
def test_an_upsampler_that_lacks_what_it_declares_is_told_in_one_line(tmp_path, cls, said):
    name = f"{tmp_path / 'own.py'}:{cls}"
    (tmp_path / "own.py").write_text(DECLARED)
    with pytest.raises(UserError, match=said) as caught:
        look_up(DecoderConfig(name=name)).build((4, 8), (4, 8), 3, 0)
    who = "upsampler or decoder" if cls == "Plain" else "upsampler"
    assert str(caught.value).startswith(f"{who} '{name}'")
    assert "\n" not in str(caught.value)


def test_parameters_are_those_of_the_upsampler_and_of_the_skeleton():
    config = DecoderConfig(name="deconv", params={"init": "random"})
    blueprint = look_up(config, {"width": 8, "taps": 3})
    assert blueprint.params == {"kernel": None, "init": "random", "width": 8, "output_stride": 1}
    told = r"'deconv' has no parameter 'unit' .*'init'\?\); it takes: kernel, init, width"
    with pytest.raises(UserError, match=told):
        look_up(DecoderConfig(name="deconv", params={"unit": 1}))
