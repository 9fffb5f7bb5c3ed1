"""Upsamplers that have no golden file, against constructions by other means; parameters; groups that do not fit."""

import functools
import re
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from benchmarks import upsamplers
from segbench.cli import main
from segbench.decoders.base import fake_inputs
from segbench.decoders.linear import Linear
from segbench.listing import GROUPS, print_plug_ins
from segbench.measures.macs import count_macs
from segbench.registry import UPSAMPLERS
from segbench.report.table import make_table
from segbench.show import given, kernel
from segbench.upsamplers import (
    Anyup,
    Bicubic,
    Bilinear,
    BilinearAdditive,
    Binomial,
    Carafe,
    Deconv,
    DeconvDecomposed,
    DeconvLarge,
    Dysample,
    Fam,
    Freqfusion,
    Jafar,
    Liif,
    Loftup,
    MaxUnpool,
    Naf,
    Subpixel,
)
from segbench.upsamplers._attention import in_chunks
from segbench.upsamplers._operations import GroupNorm, largest_divisor, reassemble
from segbench.upsamplers.base import BrokenUpsampler, is_guided, is_one_shot, takes, upsample
from tests.test_sweep import sweep

nearest = functools.partial(F.interpolate, scale_factor=2, mode="nearest")
bilinear = functools.partial(F.interpolate, scale_factor=2, mode="bilinear")


def smooth(x, taps):
    """Each channel by itself, the border repeated."""
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, (len(taps) // 2,) * 4, mode="replicate"), kernel, groups=x.shape[1])


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(2, 8, 7, 5, dtype=torch.float64)


@pytest.mark.parametrize("scale", [2, 3])
def test_bicubic_is_torchs(x, scale):
    torch.testing.assert_close(Bicubic(8, scale)(x), F.interpolate(x, scale_factor=scale, mode="bicubic"))


def test_binomial_is_nearest_and_then_smoothed(x):
    torch.testing.assert_close(Binomial(8, order=1).double()(x), nearest(x))
    torch.testing.assert_close(Binomial(8, order=3).double()(x), bilinear(x))
    taps = torch.tensor([1, 4, 6, 4, 1], dtype=torch.float64) / 16
    torch.testing.assert_close(Binomial(8).double()(x), smooth(nearest(x), taps))
    with pytest.raises(ValueError, match="order must be odd and at least 1, not 4"):
        Binomial(8, order=4)


def test_bilinear_additive_adds_four_channels(x):
    up = BilinearAdditive(8).double()
    sums = bilinear(x).view(2, 2, 4, 14, 10).sum(2)
    torch.testing.assert_close(up(x), F.conv2d(sums, up.conv.weight, up.conv.bias, padding=1))
    odd = BilinearAdditive(7, residual=True)
    assert odd.conv.in_channels == 2
    assert odd(x[:, :7].float()).shape == (2, 7, 14, 10)


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_a_transposed_convolution_is_zero_insertion_and_a_convolution(x, kernel):
    up = Deconv(8, kernel=kernel, init="random").double()
    zeros = torch.zeros(2, 8, 14, 10, dtype=torch.float64)
    zeros[..., ::2, ::2] = x
    flipped = up.weight.flip(2, 3).transpose(0, 1)
    before = kernel - 1 - up.padding[0]
    padded = F.pad(zeros, (before, kernel - 1 - before) * 2)
    torch.testing.assert_close(up(x), F.conv2d(padded, flipped, up.bias))


def test_starts_of_transposed_convolutions(x):
    torch.testing.assert_close(Deconv(8, kernel=2).double()(x), nearest(x))
    assert Deconv(8, kernel=3).starts_as == "random"
    with pytest.raises(ValueError, match="kernel must be from 2 to 4 for x2, not 5"):
        Deconv(8, kernel=5)


def test_deconv_decomposed_of_rank_1_is_the_outer_product(x):
    up = DeconvDecomposed(1, rank=1).double()
    column, row = torch.randn(2, 4, dtype=torch.float64)
    with torch.no_grad():
        up[0].weight.copy_(column.view(1, 1, 4, 1))
        up[1].weight.copy_(row.view(1, 1, 1, 4))
    wanted = F.conv_transpose2d(x[:, :1], torch.outer(column, row)[None, None], stride=2, padding=1)
    torch.testing.assert_close(up(x[:, :1]), wanted)
    assert DeconvDecomposed(8, rank=2).starts_as == "random"


@pytest.mark.parametrize("kernel", [7, 11])
def test_deconv_large_is_one_kernel_with_the_small_one_in_its_middle(x, kernel):
    up = DeconvLarge(8, kernel=kernel).double()
    weight = up.large.weight + F.pad(up.small.weight, ((kernel - 3) // 2,) * 4)
    bias = up.large.bias + up.small.bias
    wanted = F.conv_transpose2d(x, weight, bias, stride=2, padding=kernel // 2, output_padding=1)
    torch.testing.assert_close(up(x), wanted)


def test_subpixel_with_blur_keeps_a_constant(x):
    up = Subpixel(8, init="plain", blur=True).double()
    y = up(torch.ones_like(x))[..., 3:-3, 3:-3]
    torch.testing.assert_close(y, y.mean((2, 3), keepdim=True).expand_as(y))
    assert torch.allclose(Subpixel(8, kernel=1).double()(x), nearest(x))


def test_max_unpool_puts_each_pixel_at_the_maximum(x):
    guide = torch.randn(2, 8, 14, 10, dtype=torch.float64)
    y = MaxUnpool(8, guide_channels=8)(x, guide)
    cells = lambda t: t.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)  # noqa: E731
    torch.testing.assert_close(cells(y).sum(-1), x)
    assert torch.equal(cells(y).ne(0).int().argmax(-1), cells(guide).argmax(-1))
    one = MaxUnpool(8, guide_channels=3)(x, guide[:, :3])
    assert torch.equal(
        cells(one).ne(0).int().argmax(-1)[:, 0], cells(guide[:, :3].mean(1, keepdim=True)).argmax(-1)[:, 0]
    )


def test_dysample_without_offsets_is_bilinear(x):
    for style in ("lp", "pl"):
        up = Dysample(8, style=style).double()
        torch.nn.init.zeros_(up.offset.weight)
        torch.testing.assert_close(up(x), bilinear(x))


def test_places_are_exact_in_bfloat16():
    """Far from the origin too, where its numbers are two pixels apart."""
    x = torch.rand(1, 8, 2, 600)
    for up, params in ((Dysample, {}), (Fam, {"guide_channels": 8})):
        module = up(8, **params)
        given = [torch.zeros(1, 8, 4, 1200)] if params else []
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x.bfloat16(), *(t.bfloat16() for t in given))
        torch.testing.assert_close(y.float(), module(x, *given), atol=0.05, rtol=0)


@pytest.mark.parametrize(("size", "scale", "groups"), [(5, 2, 2), (3, 3, 1), (1, 2, 4)])
def test_reassembly_is_the_unfolded_sum(x, size, scale, groups):
    kernel = torch.randn(2, groups * size**2, 7 * scale, 5 * scale, dtype=torch.float64)
    windows = F.unfold(x, size, padding=size // 2).view(2, 8 * size**2, 7, 5)
    windows = F.interpolate(windows, scale_factor=scale).view(2, groups, 8 // groups, size**2, 7 * scale, 5 * scale)
    wanted = (windows * kernel.view(2, groups, 1, size**2, 7 * scale, 5 * scale)).sum(3).flatten(1, 2)
    torch.testing.assert_close(reassemble(x, kernel, size, scale), wanted)


def test_carafe_starts_near_the_mean_of_its_window(x):
    near = Carafe(8).double()(x)
    mean = nearest(F.avg_pool2d(x, 5, 1, 2))
    assert float((near - mean).detach().abs().max()) < 0.01 * float(x.abs().max())


def test_groups_that_do_not_fit():
    assert [largest_divisor(n, 4) for n in (21, 19, 8, 2)] == [3, 1, 4, 2]
    norm = GroupNorm(19, 32)
    torch.nn.init.normal_(norm.bias)
    assert torch.equal(norm(torch.randn(1, 19, 1, 1)), norm.bias.view(1, 19, 1, 1))
    x = torch.randn(1, 19, 2, 3)
    torch.testing.assert_close(norm(x), F.instance_norm(x) + norm.bias[:, None, None], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="compressed must be a multiple of 8, not 12"):
        Freqfusion(16, guide_channels=16, compressed=12)


@pytest.mark.parametrize(
    ("cls", "params"),
    [(Jafar, {"qk_dim": 16}), (Anyup, {"qk_dim": 16}), (Naf, {"dim": 32, "kernel": 3}), (Liif, {"hidden": (16, 16)})],
)
@pytest.mark.parametrize("scale", [4, 14])
def test_in_chunks_as_in_one_piece(cls, params, scale):
    """Outputs and gradients, in eval and in training mode; by chunks of a row or two."""
    torch.manual_seed(0)
    whole = cls(8, scale, 3, **params).double()
    parts = cls(8, scale, 3, **params, chunk=2**13).double()
    parts.load_state_dict(whole.state_dict())
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64, requires_grad=True)
    guide = [torch.randn(2, 3, 5 * scale, 4 * scale, dtype=torch.float64)] if is_guided(cls) else []
    gradients = []
    for up in (whole, parts):
        up.train(cls is not Naf)  # which draws the scale of its positions in training
        y = up(x, *guide)
        assert y.shape == (2, 8, 5 * scale, 4 * scale)
        gradients.append([y, *torch.autograd.grad(y.square().sum(), [x, *up.parameters()])])
        up.eval()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_chunks_bound_what_is_held():
    sizes = []

    def seen(t):
        sizes.append(t.shape[1])
        return t * 2

    t = torch.randn(1, 10, 3)
    assert torch.equal(in_chunks(seen, t, each=5, limit=16), t * 2)
    assert sizes == [3, 3, 3, 1]


def test_mixtures_of_features_stay_within_them():
    """A convex combination of constants is that constant, whatever the image."""
    for cls in (Jafar, Anyup, Naf):
        up = cls(8, 4, 3).eval()
        x = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 9, 10)
        torch.testing.assert_close(up(x, torch.randn(1, 3, 36, 40)), x.repeat(1, 1, 4, 4)[..., :36, :40])


def test_loftup_does_not_depend_on_the_batch():
    up = Loftup(8, 4, 3).eval()
    x, image = torch.randn(2, 8, 3, 4), torch.randn(2, 3, 12, 16)
    torch.testing.assert_close(up(x, image)[:1], up(x[:1], image[:1]), rtol=1e-3, atol=1e-3)
    published = Loftup(8, 4, 3, batch_extrema=True).eval()
    published.load_state_dict(up.state_dict())
    image[1] *= 3
    assert not torch.allclose(published(x, image)[:1], published(x[:1], image[:1]), atol=1e-2)


def test_naf_refuses_what_is_no_multiple():
    with pytest.raises(ValueError, match="size must be a multiple of 9x9, not 20x18"):
        Naf(8, 2, 3).resize(torch.randn(1, 8, 9, 9), torch.randn(1, 3, 20, 18), (20, 18))


@pytest.mark.parametrize("strides", [(14,), (4, 8, 16, 32), (16,)])
def test_linear_upsamples_one_map_with_the_image(strides):
    seen = []

    class Watched(Jafar):
        def forward(self, x, guide):
            seen.append((tuple(x.shape), tuple(guide.shape)))
            return super().forward(x, guide)

    channels = (24, 40, 112, 320)[: len(strides)]
    stride = 14 if strides == (14,) else 16
    decoder = Linear(channels, strides, 7, functools.partial(Watched, qk_dim=16), width=8)
    size = (3 * stride + 5, 2 * stride)
    features, image = fake_inputs(channels, strides, size)
    assert decoder(features, image).shape == (1, 7, *size)
    assert seen == [((1, 8, 4, 2), (1, 3, 4 * stride, 2 * stride))]
    assert len(decoder.steps) == 1


def test_linear_is_interpolation_and_a_classifier():
    decoder = Linear((6,), (8,), 5, Bilinear, width=0)
    x, image = torch.randn(1, 6, 4, 3), torch.randn(1, 3, 32, 24)
    wanted = x
    for _ in range(3):
        wanted = bilinear(wanted)
    torch.testing.assert_close(decoder([x], image), decoder.classifier(wanted))
    with pytest.raises(ValueError, match="output_stride must be from 1 to the feature map's stride 8, not 16"):
        Linear((6,), (8,), 5, Bilinear, output_stride=16)


PARAMETERS = [  # name, parameters of the constructor, number at C = Cg = 256 and x2
    ("a2u", {}, 10_790),
    ("anyup", {}, 878_080 - 2 * (128 * 128 + 128)),  # of the published ones those of values and outputs do not act
    ("featup_jbu_stack", {}, 90_724),
    ("jafar", {}, 595_584 - 16_512 - 129 * 256 - 128),  # nor here
    ("lift", {}, 569_360),
    ("loftup", {}, 2_162_710),
    ("naf", {}, 662_528),
    ("alignseg_cab", {}, 272_384),
    ("bilinear_additive", {}, 147_712),
    ("carafe", {}, 74_148),
    ("deconv", {}, 1_048_832),
    ("deconv", {"kernel": 2}, 262_400),
    ("deconv", {"kernel": 3}, 590_080),
    ("deconv_decomposed", {}, 524_544),
    ("deconv_large", {}, 3_801_600),
    ("deconv_separable", {}, 69_888),
    ("dlu", {}, 35_489),
    ("dysample", {}, 8_224),
    ("dysample", {"dynamic_scope": True}, 16_416),
    ("dysample", {"style": "pl", "groups": 8}, 1_040),
    ("dysample", {"style": "pl", "groups": 8, "dynamic_scope": True}, 2_064),
    ("eucb", {}, 68_608),
    ("fade", {}, 47_257),
    ("fade", {"gate": True}, 47_514),
    ("fade", {"gate": True, "lite": True}, 13_332),
    ("fam", {}, 70_144),
    ("fam", {"gated": True}, 77_056),
    ("featup_jbu", {}, 26_726),
    ("freqfusion", {}, 52_514),
    ("freqfusion", {"resample": True}, 104_690),
    ("gai", {}, 218_017),
    ("indexnet", {"style": "hin"}, 2_100_224),
    ("indexnet", {"style": "hin", "nonlinear": False}, 16_384),
    ("indexnet", {"style": "m2o"}, 4_458_496),
    ("indexnet", {"style": "o2o"}, 19_456),
    ("lda_aqu", {}, 39_410),
    ("local_attender", {}, 4_369),
    ("pac", {}, 1_638_656 + 256 * 9 * 16 + 16),
    ("resfu", {}, 47_570),
    ("sapa", {}, 17_472),
    ("sapa_d", {}, 139_808),
    ("subpixel", {}, 2_360_320),
    ("subpixel", {"kernel": 1}, 263_168),
    *((name, {}, 0) for name in ("bicubic", "binomial", "guided_filter", "joint_bilateral", "lanczos", "max_unpool")),
    ("sapa", {"similarity": "inherent"}, 0),
]


@pytest.mark.parametrize(("name", "params", "wanted"), PARAMETERS)
def test_number_of_parameters(name, params, wanted):
    cls = UPSAMPLERS.load(name)
    scale, guide_channels = (16, 3) if is_one_shot(cls) else (2, 256)
    module = cls(channels=256, scale=scale, guide_channels=guide_channels, **params)
    assert sum(p.numel() for p in module.parameters()) == wanted


C = 256
MACS = [  # name, parameters, number by its paper's or definition's formula, and what that leaves out; C = Cg = 256, x2
    ("nearest", {}, 0, 0),
    ("max_unpool", {}, 0, 0),
    ("bilinear", {}, 16 * C, 0),
    ("bilinear_additive", {}, 593_920, 0),
    ("eucb", {}, 271_360, 0),
    ("nearest_conv", {}, 2_359_296, 0),
    ("bilinear_conv", {}, 2_359_296, 16 * C),  # the interpolation
    ("deconv", {"kernel": 2}, 262_144, 0),
    ("deconv", {"kernel": 3}, 589_824, 0),
    ("deconv", {}, 1_048_576, 0),
    ("deconv_separable", {}, 266_240, 0),
    ("deconv_decomposed", {}, 786_432, 0),
    ("deconv_large", {}, 3_801_088, 0),
    ("subpixel", {}, 2_359_296, 0),
    ("subpixel", {"kernel": 1}, 262_144, 0),
    ("carafe", {}, 99_584, 0),
    ("dlu", {}, 61_392, 0),
    ("dysample", {}, 12_288, 0),
    ("dysample", {"dynamic_scope": True}, 20_480, 2 * 4 * 4),  # offsets by scope
    ("dysample", {"style": "pl", "groups": 8}, 8_192, 0),
    ("dysample", {"style": "pl", "groups": 8, "dynamic_scope": True}, 12_288, 2 * 8 * 4),
    ("fade", {}, 179_520, 0),
    ("fade", {"gate": True}, 179_776, 8 * C),  # both products of the gate
    ("fade", {"gate": True, "lite": True}, 58_981, 8 * C),
    ("sapa", {}, 69_760, 0),
    ("sapa", {"similarity": "inherent"}, 51_200, 0),
    ("indexnet", {"style": "hin"}, 2_100_224, 0),
    ("indexnet", {"style": "o2o"}, 18_432, 0),
    ("indexnet", {"style": "m2o"}, 4_457_472, 0),
    ("local_attender", {}, 34_816, 0),
    ("fam", {}, 186_368, 16 * C // 2),  # interpolation of the C/2 compressed channels
    ("gai", {}, 950_272 + 1_152 * (32 + 32), 16 * C - 4 * C // 2 * C // 16),  # interpolation; queries once
    ("alignseg_cab", {}, 1_085_440, 3 * 16 * C),  # two maps sampled, one interpolated
]


@pytest.mark.parametrize(("name", "params", "stated", "left_out"), MACS)
def test_number_of_macs(name, params, stated, left_out):
    module = UPSAMPLERS.load(name)(channels=C, scale=2, guide_channels=C, **params).eval()
    assert count_macs(module, *given(type(module), C, C, 16)) == 16**2 * (stated + left_out)


@pytest.mark.parametrize(
    ("name", "guide_channels", "stated"),
    [
        ("bicubic", C, 24 * C),
        ("binomial", C, 36 * C),  # of the map with its border repeated
        ("lanczos", C, 36 * C),
        ("a2u", C, 27_940),
        ("freqfusion", C, 220_360),
        ("lda_aqu", C, 135_000),
        ("resfu", C, 180_000),
        ("featup_jbu", 3, 97_108),
        ("pac", C, 1_640_000 + 4 * 9 * 16 * C),  # and the guide's convolution
    ],
)
def test_about_the_number_of_macs(name, guide_channels, stated):
    """Where the formula is rounded, or leaves out borders, masks and elementwise products of its parts."""
    module = UPSAMPLERS.load(name)(channels=C, scale=2, guide_channels=guide_channels).eval()
    found = count_macs(module, *given(type(module), C, guide_channels, 64)) / 64**2
    assert found == pytest.approx(stated, rel=0.07 if name == "binomial" else 0.035)


def test_macs_are_those_of_a_hand_counted_module():
    class Hand(torch.nn.Module):
        def forward(self, x, other):
            x = torch.nn.functional.conv2d(x, torch.ones(5, 4, 3, 3), padding=1)  # 5 x 4 x 9 each
            x = x * 2 + x * other  # by a number: free; by a tensor: 1 each
            return torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear") @ torch.ones(12, 7)

    wanted = 6 * 6 * 5 * 4 * 9 + 6 * 6 * 5 + 12 * 12 * 5 * 4 + 12 * 12 * 7 * 5
    assert count_macs(Hand(), torch.ones(1, 4, 6, 6), torch.ones(1, 1, 6, 6)) == wanted


def test_macs_of_attention_are_those_of_its_two_products():
    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v)

    tensors = [torch.randn(2, 3, n, d) for n, d in ((50, 8), (70, 8), (70, 8))]
    assert count_macs(attend, *tensors) == 2 * 3 * 50 * 70 * (8 + 8)
    assert count_macs(attend, *(t.to("meta") for t in tensors)) == 2 * 3 * 50 * 70 * (8 + 8)


KERNELS = [
    ("nearest", [[0, 0, 0, 0], [0, 100, 100, 0], [0, 100, 100, 0], [0, 0, 0, 0]]),
    ("bilinear", [[6, 19, 19, 6], [19, 56, 56, 19], [19, 56, 56, 19], [6, 19, 19, 6]]),
]


@pytest.mark.parametrize(("name", "wanted"), KERNELS)
def test_kernel_at_the_start(name, wanted):
    found = (100 * kernel(UPSAMPLERS.load(name))).round().int()
    assert found.shape == (14, 14)
    assert found[5:9, 5:9].tolist() == wanted
    assert found.sum() == found[5:9, 5:9].sum()


def test_kernel_of_carafe_is_a_box():
    found = kernel(UPSAMPLERS.load("carafe"))
    torch.testing.assert_close(found[2:12, 2:12], torch.full((10, 10), 0.04, dtype=torch.double), atol=2e-3, rtol=0)
    assert found.count_nonzero() == 100


def test_show_says_what_an_upsampler_is(capsys):
    assert main(["show", "carafe", "deconv"]) == 0
    out = capsys.readouterr().out
    assert "Wang et al. 2019, https://arxiv.org/abs/1905.02188" in out
    assert "x (B, C, h, w) -> (B, C, s h, s w)" in out
    assert "74,148 parameters, 99,584 MACs per pixel of x, at C = 256, s = 2" in out
    assert "1,048,832 parameters, 1,048,576 MACs" in out
    assert "start   bilinear: equal to bilinear interpolation" in out
    box = [line for line in out.splitlines() if line.split() == [".", ".", *["4"] * 10, ".", "."]]
    assert len(box) == 10, out


def test_show_says_why_a_plug_in_does_not_work(tmp_path, capsys):
    text = "from torch import nn\nclass Odd(nn.Module):\n    def __init__(self, channels, scale=2, guide_channels=0):\n"
    text += "        raise ValueError('only on Sundays')\n    def forward(self, x):\n        return x\n"
    (tmp_path / "odd.py").write_text(text)
    assert main(["show", f"{tmp_path}/odd.py:Odd"]) == 0
    assert "it does not work at C = 256, s = 2: ValueError: only on Sundays" in capsys.readouterr().out


def standalone(name):
    """An upsampler with 8 channels at x2, and what it is called with."""
    cls = UPSAMPLERS.load(name)
    guide_channels = 3 if is_one_shot(cls) else 8
    return cls(channels=8, scale=2, guide_channels=guide_channels), given(cls, 8, guide_channels, 8)


@pytest.mark.parametrize("name", UPSAMPLERS.builtin())
def test_what_it_is_not_made_for_is_told_in_a_line(name):
    module, (x, *guide) = standalone(name)
    cls = type(module)
    said = {"two": "2 alone", "integer": "any integer from 2", "rational": "any fraction above 1"}
    for scale in (Fraction(1, 2), 1, 3, Fraction(7, 4)):
        if scale <= 1 or not takes(cls, scale):
            message = f"^{cls.__name__} takes {said[getattr(cls, 'ratios', 'two')]} as its scale, not {scale}$"
            with pytest.raises(ValueError, match=message):
                cls(channels=8, scale=scale, guide_channels=8)
    with pytest.raises(ValueError, match=rf"^{cls.__name__} takes x of the shape \(B, 8, h, w\), not \(1, 7, 8, 8\)$"):
        module(x[:, :7], *guide)
    wrong = guide or [x]
    with pytest.raises(ValueError, match=rf"^{cls.__name__} takes x {'and a guide' if guide else 'alone'}, not \["):
        module(x, *wrong[len(guide) :], *([] if guide else wrong))
    if guide:
        wanted, found = tuple(guide[0].shape), (*guide[0].shape[:2], 16, 15)
        message = f"{cls.__name__} takes a guide of the shape {wanted} with x (1, 8, 8, 8) and scale 2, not {found}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            module(x, guide[0][..., :15])
        with pytest.raises(ValueError, match=f"^{cls.__name__} is guided and takes the channels of its guide, not 0$"):
            cls(8)


def test_a_skeleton_that_forgets_the_guide_is_told():
    module, (x, _) = standalone("fade")
    with pytest.raises(BrokenUpsampler, match="^the upsampler Fade is guided: it takes x and a guide, not x alone$"):
        upsample(module, 2, x)


@pytest.mark.parametrize("name", UPSAMPLERS.builtin())
def test_it_compiles_without_a_graph_break(name):
    """Forward and backward pass as torch.compile traces them; the code that it then makes is torch's own affair."""
    module, tensors = standalone(name)
    tensors = [t.requires_grad_() for t in tensors]
    gradients = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)  # of dropout
        run = torch.compile(module, backend="aot_eager", fullgraph=True) if compiled else module
        y = run(*tensors)
        gradients.append([y, *torch.autograd.grad(y.square().sum(), tensors, allow_unused=True)])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["carafe", "deconv", "dysample", "loftup", "max_unpool"])
def test_onnx_takes_it(name):
    module, tensors = standalone(name)
    program = torch.onnx.export(module.eval(), tuple(tensors), dynamo=True, verbose=False)
    assert program.model.graph.outputs[0].shape.numpy() == (1, 8, 16, 16)


@pytest.mark.parametrize("name", UPSAMPLERS.builtin())
def test_the_page_of_the_upsamplers_has_its_docstring(name):
    page = upsamplers.PAGE.read_text("utf-8")
    assert f"\n{upsamplers.section(name)}\n" in page, "make it again: python benchmarks/upsamplers.py --write"
    assert f"| [`{name}`](#{name}) |" in page


def test_list_shows_every_upsampler_once_in_its_group(capsys):
    print_plug_ins()
    lines = capsys.readouterr().out.splitlines()
    start = {line.partition(":")[0]: i for i, line in enumerate(lines) if line.startswith("upsamplers, ")}
    *groups, shipped = GROUPS
    assert list(start) == [f"upsamplers, {group}" for group in groups]
    ends = [*list(start.values())[1:], lines.index("decoders")]
    assert re.match(
        "  smp +2019  ", lines[1 + next(i for i, li in enumerate(lines) if li.startswith(f"decoders, {shipped}"))]
    )
    shown = {}
    for group, begin, end in zip(groups, start.values(), ends, strict=True):
        shown |= {line.split()[0]: (group, line.split()[1]) for line in lines[begin + 1 : end]}
    assert shown.keys() == UPSAMPLERS.builtin().keys()
    for name, (group, year) in shown.items():
        cls = UPSAMPLERS.load(name)
        assert cls.group == group, name
        assert name in ("bilinear", "nearest") or str(cls.year) == year, name
        assert is_guided(cls) == (group in ("guided", "image-guided")), name
        fixed = not any(True for _ in cls(channels=8, scale=2, guide_channels=3).parameters())
        assert fixed == (group == "fixed" or name in ("guided_filter", "joint_bilateral", "max_unpool")), name


def test_a_sweep_on_the_linear_skeleton(make_config):
    small = [{"name": n, "params": {"output_stride": 4, **p}} for n, p in (
        ("bilinear", {}), ("jafar", {"qk_dim": 16}), ("lift", {}), ("carafe", {}),
    )]  # fmt: skip
    config = make_config(skeleton="linear", decoders=["smp", *small, "ifa"], baseline=["bilinear"])
    results, code, out = sweep(config)
    assert code == 0, out
    table = make_table(next(iter(results.values())).folder.parent)
    assert [row["decoder"] for row in table.rows] == ["bilinear", "jafar", "lift", "carafe", "ifa", "smp"]
    assert [row["as shipped"] for row in table.rows] == [""] * 5 + ["depth 5, strides 4-32 to 1"]
    assert any(note.startswith("As shipped: not the upsampling alone differs") for note in table.notes)
    groups = {d: r.row["group"] for (d, _), r in results.items()}
    assert groups == {
        "bilinear": "fixed", "jafar": "image-guided", "lift": "image-guided", "carafe": "adaptive", "ifa": "",
        "smp": "as shipped",
    }  # fmt: skip
