"""Skeletons and whole decoders: what they promise, by the checks that `segbench check` makes and beside them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segbench.build import Blueprint, look_up
from segbench.check import CHECKS, Broken, Builder, Setting, builder, check_decoder
from segbench.config import DecoderConfig
from segbench.decoders.base import Decoder, fake_inputs
from segbench.decoders.pyramid import Pyramid
from segbench.errors import UserError

CHANNELS, STRIDES = Setting().channels, Setting().strides
PLUG_IN = "experiments/plug_in_an_upsampler/carafe_lite.py:CarafeLite"
VARIANTS = [  # what is built in, with its defaults, is checked in tests/test_check.py
    ("bilinear", {}),
    ("deconv", {"init": "random"}),
    ("fractional", {"init": "random"}),
    ("subpixel", {"init": "icnr"}),
    ("subpixel", {"init": "plain"}),
    ("bilinear", {"output_stride": 4}),
    ("subpixel", {"output_stride": 2, "width": 16}),
    (PLUG_IN, {"width": 16, "kernel": 3}),
]


# An output stride is only possible up to the finest encoder stride, which the check of strides varies.
CASES = [(n, p, c) for n, p in VARIANTS for c in CHECKS.values() if "output_stride" not in p or c.__name__ != "strides"]


@pytest.mark.parametrize(
    ("name", "params", "check"), CASES, ids=[f"{n.rpartition(':')[2]}{p or ''}-{c.__name__}" for n, p, c in CASES]
)
def test_contract(name, params, check):
    assert check(builder(name, params))


@pytest.fixture
def guided():
    """An upsampler that notes what it is called with."""

    class Guided(nn.Module):
        guided, seen = True, []

        def __init__(self, channels, scale, guide_channels):
            super().__init__()
            self.scale, self.guide_channels = scale, guide_channels

        def forward(self, x, guide):
            self.seen.append((tuple(x.shape), tuple(guide.shape), self.guide_channels))
            return F.interpolate(x, scale_factor=self.scale) + guide.mean(1, keepdim=True)

    return Guided


def test_guide_is_the_finer_lateral_then_the_image(guided):
    decoder = Pyramid((4, 8), (4, 8), 3, guided, width=16)
    image = torch.randn(1, 3, 40, 56)
    decoder([torch.randn(1, 4, 10, 14), torch.randn(1, 8, 5, 7)], image)
    assert guided.seen == [
        ((1, 16, 5, 7), (1, 16, 10, 14), 16),
        ((1, 3, 10, 14), (1, 3, 20, 28), 3),
        ((1, 3, 20, 28), (1, 3, 40, 56), 3),
    ]


def test_guide_at_odd_sizes_has_the_size_of_the_upsampled(guided):
    decoder = Pyramid((4, 8), (4, 8), 3, guided, width=16)
    logits = decoder([torch.randn(1, 4, 9, 13), torch.randn(1, 8, 5, 7)], torch.randn(1, 3, 33, 49))
    assert logits.shape == (1, 3, 33, 49)
    assert all(guide[-2:] == (2 * x[-2], 2 * x[-1]) for x, guide, _ in guided.seen)


def test_steps_between_strides():
    """As many x2 steps as fit; the rest bilinear, or p/q where the upsampler can."""
    counts = lambda d: [len(s) for s in d.steps]  # noqa: E731
    assert counts(builder("bilinear", {})((8, 8), (4, 16))) == [2, 2]
    assert counts(builder("deconv", {})((8,), (14,))) == [3]
    assert counts(builder("bilinear", {})((8,), (14,))) == [1]  # fixed: the whole way at once
    assert counts(builder("fractional", {})((8,), (14,))) == [4]  # 2 x 2 x 2 x 7/4
    assert builder("fractional", {})((8,), (14,)).steps[0][3][0].p == 7


def built(name, **params):
    return look_up(DecoderConfig(name=name, params=params)).build(CHANNELS, STRIDES, 7, 0).eval()


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

    with pytest.raises(Broken, match="not finite"):
        CHECKS["finite output"](Builder(Blueprint("Nan", (Nan,), {}, Nan), Setting()))


SKELETONS = """
from segbench import Decoder
from segbench.decoders.pyramid import Pyramid

class Bare(Pyramid):
    def skeleton(self):
        return {}
class Whole(Decoder):
    pass
"""


@pytest.mark.parametrize(
    ("name", "skeleton", "said"),
    [
        ("pyramid", "pyramid", "^pyramid is a skeleton: name an upsampler, or set skeleton: pyramid$"),
        ("nearest", "pyramd", r"^skeleton: unknown decoder 'pyramd' \(did you mean 'pyramid'\?\)"),
        ("nearest", "nearest", "^skeleton: unknown decoder 'nearest'"),
        ("nearest", "{tmp}:Whole", "^skeleton: decoder '.*:Whole' takes no upsampler"),
        ("nearest", "{tmp}:Bare", r"^skeleton Bare names no part in skeleton\(\)"),
        ("nearest", "{tmp}:None", "^skeleton: .* has no class 'None'"),
        ("{tmp}:Bare", "pyramid", "Bare is a skeleton: name an upsampler, or set skeleton: .*:Bare$"),
        (
            "nearst",
            "pyramid",
            r"unknown decoder 'nearst' \(did you mean 'nearest'\?\); there is: a2u, .*bilinear, .*pyramid",
        ),
    ],
)
def test_a_skeleton_of_no_use_is_told_in_one_line(tmp_path, name, skeleton, said):
    (tmp_path / "own.py").write_text(SKELETONS)
    name, skeleton = (text.replace("{tmp}", str(tmp_path / "own.py")) for text in (name, skeleton))
    with pytest.raises(UserError, match=said) as caught:
        look_up(DecoderConfig(name=name), skeleton=skeleton).build((4, 8), (4, 8), 3, 0)
    assert "\n" not in str(caught.value)
