"""Upsamplers that have no golden file, against constructions by other means; parameters; groups that do not fit."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F

from segbench.decoders.base import fake_inputs
from segbench.decoders.linear import Linear
from segbench.registry import UPSAMPLERS
from segbench.report.table import make_table
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
    _operations,
)
from segbench.upsamplers._attention import in_chunks
from segbench.upsamplers._operations import GroupNorm, largest_divisor, reassemble, window_scores
from segbench.upsamplers.base import is_guided, is_one_shot
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


@pytest.mark.parametrize("strip", [1, 10**9])
@pytest.mark.parametrize(
    ("size", "scale", "groups", "border", "dilation", "taps"),
    [
        (3, 2, 1, "constant", 1, None),
        (3, 1, 2, "replicate", 2, None),
        (5, 2, 1, "reflect", 1, [(0, 1), (2, 2), (4, 3)]),
    ],
)
def test_reassembly_by_brute_force(monkeypatch, strip, size, scale, groups, border, dilation, taps):
    """In one strip and in one for each row, pixel by pixel; and its gradient by differences."""
    monkeypatch.setattr(_operations, "STRIP", strip)
    places = taps or [(i * dilation, j * dilation) for i in range(size) for j in range(size)]
    n, (height, width) = len(places), (4, 3)
    x = torch.randn(2, 4, height, width, dtype=torch.double, requires_grad=True)
    kernel = torch.randn(2, groups * n, scale * height, scale * width, dtype=torch.double, requires_grad=True)

    def ours(x, kernel):
        return reassemble(x, kernel, size, scale, border=border, dilation=dilation, taps=taps)

    padded = F.pad(x, (size // 2 * dilation,) * 4, mode=border)
    wanted = torch.zeros(2, 4, scale * height, scale * width, dtype=torch.double)
    for b, c, i, j in itertools.product(range(2), range(4), range(scale * height), range(scale * width)):
        for k, (down, across) in enumerate(places):
            weight = kernel[b, c // (4 // groups) * n + k, i, j]
            wanted[b, c, i, j] += weight * padded[b, c, i // scale + down, j // scale + across]
    torch.testing.assert_close(ours(x, kernel), wanted)
    assert torch.autograd.gradcheck(ours, (x, kernel))


@pytest.mark.parametrize("strip", [1, 10**9])
def test_window_scores_by_brute_force(monkeypatch, strip):
    monkeypatch.setattr(_operations, "STRIP", strip)
    query = torch.randn(2, 3, 8, 6, dtype=torch.double, requires_grad=True)
    key = torch.randn(2, 3, 4, 3, dtype=torch.double, requires_grad=True)
    near = F.unfold(key, 3, padding=1).view(2, 3, 9, 4, 3).repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(window_scores(query, key, 3, 2), torch.einsum("bchw,bcnhw->bnhw", query, near))
    assert torch.autograd.gradcheck(lambda q, k: window_scores(q, k, 3, 2, border="replicate"), (query, key))


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
