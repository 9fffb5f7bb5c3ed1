"""What built-in upsamplers cost, what is told of them, and how they are used: compiled, converted, called wrongly."""

import re
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from benchmarks import upsamplers
from segbench.cli import main
from segbench.listing import GROUPS, print_plug_ins
from segbench.measures.macs import count_macs
from segbench.registry import UPSAMPLERS
from segbench.show import given, kernel
from segbench.upsamplers.base import BrokenUpsampler, is_guided, is_one_shot, takes, upsample

C = 256
# Name, parameters, number by its paper's or definition's formula, and what the count adds to that; C = Cg = 256, x2.
MACS = [
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
    ("sapa_d", {}, 251_392, 4 * 9 * 4 * (4 * 32 + C)),  # keys and values sampled at the nine points
    ("freqfusion", {}, 220_360, 2 * (9 + 25) * 4),  # Hamming windows, each of the two twice
    (
        "freqfusion",
        {"resample": True},
        220_360 + 2 * 9 * 72 * (32 + 4 * 8),  # four convolutions of 64 + 8 channels, two at each resolution
        2 * (9 + 25) * 4 + (1 + 4) * 8 * 64 + 4 * 8 + 16 * C,  # similarities, offsets by scope, sampling
    ),
    ("fam", {}, 186_368, 16 * C // 2),  # interpolation of the C/2 compressed channels
    (
        "fam",
        {"gated": True},
        186_368 + 4 * 9 * C * (2 + 1) + 16 * C,  # two more channels of flow, one of gate; the guide sampled
        16 * C // 2 + 8 * C,  # and both products of the gate
    ),
    ("gai", {}, 950_272 + 1_152 * (32 + 32), 16 * C - 4 * C // 2 * C // 16),  # interpolation; queries once
    ("alignseg_cab", {}, 1_085_440, 3 * 16 * C),  # two maps sampled, one interpolated
    ("joint_bilateral", {}, 25 * C + 25 * (C + 2), -25 * (C + 2)),  # squares of the guide's differences are powers
    ("guided_filter", {}, 4 * C + 2 * 16 * C + 4 * C, 0),  # its products at both sizes, slope and offset interpolated
]


@pytest.mark.parametrize(("name", "params", "stated", "added"), MACS)
def test_number_of_macs(name, params, stated, added):
    module = UPSAMPLERS.load(name)(channels=C, scale=2, guide_channels=C, **params).eval()
    assert count_macs(module, *given(type(module), C, C, 16)) == 16**2 * (stated + added)


@pytest.mark.parametrize(
    ("name", "guide_channels", "stated"),
    [
        ("bicubic", C, 24 * C),
        ("binomial", C, 36 * C),  # of the map with its border repeated
        ("lanczos", C, 36 * C),
        ("a2u", C, 27_940),
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
            x = x.mul_(2) + torch.zeros_like(x).addcmul_(x, other)  # by a number: free; by a tensor: 1 each
            x.mul_(x)
            return torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear") @ torch.ones(12, 7)

    wanted = 6 * 6 * 5 * 4 * 9 + 2 * 6 * 6 * 5 + 12 * 12 * 5 * 4 + 12 * 12 * 7 * 5
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
    assert main(["show", "carafe", "deconv", "bicubic"]) == 0
    out = capsys.readouterr().out
    assert "Wang et al. 2019, https://arxiv.org/abs/1905.02188" in out
    assert "x (B, C, h, w) -> (B, C, s h, s w)" in out
    assert "74,148 parameters, 99,584 MACs per pixel of x, at C = 256, s = 2" in out
    assert "1,048,832 parameters, 1,048,576 MACs" in out
    assert "start   bilinear: equal to bilinear interpolation" in out
    assert "start   itself: nothing of it is learned" in out
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
