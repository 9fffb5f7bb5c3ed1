"""An encoder of a user's file: what it takes, what it is held to, and that nothing of it goes unseen into a run."""

import importlib.metadata
import io
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from segbench.config import EncoderConfig
from segbench.encoders import build_encoder
from segbench.encoders.base import hash_tensors
from segbench.errors import UserError
from segbench.export import load_run, predictions
from segbench.registry import ENCODERS
from segbench.runs import make_cohorts
from segbench.sweep.plan import make_plan
from segbench.sweep.run import run_sweep
from segbench.training.work import work
from tests.conftest import ROOT, segbench, write_again
from tests.own_encoder import OwnEncoder
from tests.test_sweep import sweep

FILE = ROOT / "tests/own_encoder.py"
OWN = f"{FILE}:OwnEncoder"


def own(**changes):
    """The section ``encoder`` of a sweep."""
    return {"name": OWN, "weights": "default", **changes}


def test_an_encoder_is_one_file_of_under_30_lines(make_config):
    assert len(FILE.read_text().splitlines()) < 30
    assert "segbench" not in FILE.read_text()
    results, code, out = sweep(make_config(encoder=own(params={"width": 4})))
    assert code == 0, out
    assert f"runs the code in {FILE}\n" in out
    assert sorted(results) == [("bilinear", 0), ("nearest", 0)]
    row = results["nearest", 0].row
    built = build_encoder(EncoderConfig(name=OWN, params={"width": 4}))
    assert (row["encoder"], row["encoder_hash"]) == ("OwnEncoder", built.weights_hash)
    assert row["features_hash"] == built.features_hash()
    run = load_run(results["nearest", 0].folder)
    confusion = np.zeros((7, 7), int)
    for _, _, labels, predicted in predictions(run):
        np.add.at(confusion, (labels, predicted), 1)
    assert confusion.tolist() == results["nearest", 0].counts["confusion"].tolist()
    _, code, out = sweep(make_config(encoder=own(params={"width": 4})))
    assert "2 done before, 0 to do" in out


def test_it_can_be_trained(make_config):
    results, code, out = sweep(make_config(encoder=own(trainable=True, lr_factor=1.0)))
    assert code == 0, out
    start = build_encoder(EncoderConfig(name=OWN)).state_dict()
    for result in results.values():
        stored = load_file(result.folder / "decoder.safetensors")
        trained = {k.removeprefix("encoder."): v for k, v in stored.items() if k.startswith("encoder.")}
        assert trained.keys() == start.keys()
        assert not torch.equal(trained["body.blocks.0.0.weight"], start["body.blocks.0.0.weight"])
        assert not torch.equal(trained["body.blocks.0.1.running_mean"], start["body.blocks.0.1.running_mean"])
        assert hash_tensors(load_run(result.folder).encoder.state_dict()) == hash_tensors(trained)


def test_frozen_means_dropout_and_batch_norm_stay_in_eval():
    encoder = build_encoder(EncoderConfig(name=OWN)).train()
    image = torch.randn(2, 3, 32, 48, requires_grad=True)
    with torch.no_grad():
        wanted = encoder.body.eval()(image)
    encoder.train()
    for _ in range(2):
        got = encoder(image)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert not any(f.requires_grad for f in got)
    assert hash_tensors(encoder.body.state_dict()) == encoder.weights_hash  # running means among them
    trainable = build_encoder(EncoderConfig(name=OWN, trainable=True)).train()
    first, second = trainable(image), trainable(image)
    assert first[0].requires_grad
    assert not torch.equal(first[0], second[0])  # its dropout is on


def test_levels_normalisation_and_random_weights():
    encoder = build_encoder(EncoderConfig(name=OWN, strides=[8, 16]))
    assert (encoder.strides, encoder.channels) == ((8, 16), (16, 32))
    assert [tuple(f.shape) for f in encoder(torch.zeros(1, 3, 32, 48))] == [(1, 16, 4, 6), (1, 32, 2, 3)]
    grey = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert encoder.normalise(grey).unique().tolist() == [2.0]  # (1 - 0.5) / 0.25
    state = torch.get_rng_state()
    again = build_encoder(EncoderConfig(name=OWN, weights="none"))
    assert again.weights_hash == encoder.weights_hash
    assert torch.equal(torch.get_rng_state(), state)  # building it disturbs nobody else's random numbers
    with pytest.raises(
        UserError, match=r"encoder\.strides: .*OwnEncoder' has no level of stride 32; it has: \[4, 8, 16\]"
    ):
        build_encoder(EncoderConfig(name=OWN, strides=[32]))


def test_weights_of_a_file(tmp_path):
    weights = {k: v + 1 for k, v in OwnEncoder(width=4).state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    config = EncoderConfig(name=OWN, params={"width": 4}, weights=str(tmp_path / "w.safetensors"))
    assert build_encoder(config).weights_hash == hash_tensors(weights)
    with pytest.raises(
        UserError, match=r"w\.safetensors does not fit '.*own_encoder\.py:OwnEncoder': \d+ of \d+ tensors"
    ):
        build_encoder(config.model_copy(update={"params": {"width": 8}}))
    with pytest.raises(UserError, match=r"encoder\.weights: no file gone\.pt"):
        build_encoder(EncoderConfig(name=OWN, weights="gone.pt"))


def test_what_it_is_stands_in_the_key_and_where_it_lies_does_not(make_config, tmp_path):
    plugin = tmp_path / "enc.py"
    shutil.copy(FILE, plugin)
    (tmp_path / "moved").mkdir()

    def key(place=plugin, **changes):
        config = make_config(decoders=["nearest"], encoder=own(name=f"{place}:OwnEncoder", **changes))
        return make_plan(config).runs[0].key

    base = key()
    assert key(params={"width": 8}) == key(weights="none") == base
    shutil.copy(plugin, tmp_path / "moved")
    assert key(tmp_path / "moved/enc.py") == base
    save_file(OwnEncoder(width=8).state_dict(), tmp_path / "w.safetensors")
    others = {key(params={"dropout": 0.1}), key(weights=str(tmp_path / "w.safetensors")), key(strides=[4])}
    plugin.write_text(plugin.read_text() + "\n# another source\n")
    assert len({base, *others, key()}) == 5


def test_a_grid_over_encoders(make_config):
    config = make_config(
        decoders=["nearest"], encoder={"weights": "default"}, grid={"encoder.name": ["tf_efficientnet_lite0", OWN]}
    )
    out = io.StringIO()
    folder, code, _ = run_sweep(config, Console(file=out, width=200))
    assert code == 0, out.getvalue()
    assert f"runs the code in {FILE}" in out.getvalue()
    assert len(list(folder.glob("*/result.json"))) == 2


def test_a_source_that_changes_after_the_plan_is_not_trained_under_the_old_key(make_config, tmp_path):
    plugin = tmp_path / "fickle_encoder.py"
    shutil.copy(FILE, plugin)
    (cohort,) = make_cohorts(make_plan(make_config(encoder=own(name=f"{plugin}:OwnEncoder"))).runs, lambda run: 0)
    plugin.write_text(plugin.read_text() + "\n# another source\n")
    ended = work(cohort, 1, lambda *_: None, lambda: False)
    for outcome in ended.outcomes.values():
        assert outcome.failure.user_error
        assert "the source of encoder 'OwnEncoder' changed after the sweep was planned" in outcome.failure.reason


def test_a_run_is_not_predicted_with_another_source(make_config, tmp_path):
    plugin = tmp_path / "old_encoder.py"
    shutil.copy(FILE, plugin)
    results, code, _ = sweep(make_config(decoders=["nearest"], encoder=own(name=f"{plugin}:OwnEncoder")))
    assert code == 0
    folder = results["nearest", 0].folder
    plugin.write_text(plugin.read_text() + "\n# another source\n")
    assert load_run(folder).counted  # by the copy in the run's folder
    (copy,) = folder.glob("source/*/old_encoder.py")
    shutil.copy(plugin, copy)
    write_again(folder)
    with pytest.raises(UserError, match=r"the source of encoder '.*old_encoder\.py:OwnEncoder' is not what"):
        load_run(folder)


BAD = """
import numpy, torch
import torch.nn.functional as F
from torch import nn

class Good(nn.Module):
    channels, strides = (3, 6), (2, 4)
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
    def forward(self, image):
        x = self.layer(image)
        return [F.avg_pool2d(x, 2), F.avg_pool2d(torch.cat([x, x], 1), 4)]

class Strides(Good):
    strides = (4, 8)
class Channels(Good):
    channels = (3, 7)
class OneMore(Good):
    channels, strides = (3, 6, 12), (2, 4, 8)
class Coarse(Good):
    strides = (4, 2)
class Uneven(Good):
    channels = (3,)
class Says(nn.Module):
    strides = (4,)
class Words(Good):
    channels = ("many", "more")
class Zero(Good):
    strides = (0, 4)
class Mean(Good):
    mean = (0.5, 0.5)
class Std(Good):
    std = (0.5, 0.5, 0.0)
class InPlace(Good):
    def forward(self, image):
        return super().forward(image.mul_(2))
class NoList(Good):
    def forward(self, image):
        return super().forward(image)[0]
class Names(Good):
    def forward(self, image):
        return dict(enumerate(super().forward(image)))
class Nones(Good):
    def forward(self, image):
        return [None, super().forward(image)[0]]
class Integers(Good):
    def forward(self, image):
        return [f.int() for f in super().forward(image)]
class Nan(Good):
    def forward(self, image):
        return [f / 0 for f in super().forward(image)]
class Raises(Good):
    def forward(self, image):
        raise RuntimeError("two\\nlines")
class Fails(Good):
    def __init__(self):
        raise OSError("no such checkpoint")
class Forgets(Good):
    def __init__(self):
        self.layer = nn.Conv2d(3, 3, 1)
class Dropping(Good):
    def forward(self, image):
        return [F.dropout(f) for f in super().forward(image)]
class Stuck(Good):
    def train(self, mode=True):
        return super().train(True)
class NoModule:
    channels, strides = (3,), (4,)
class Drawn(Good):
    "Random numbers of NumPy are the same each time too."
    def __init__(self):
        super().__init__()
        self.layer.weight.data += torch.from_numpy(numpy.random.randn(3, 3, 1, 1))
class NoWeights(nn.Module):
    channels, strides = (3,), (4,)
    def forward(self, image):
        return [F.avg_pool2d(image, 4)]
class Named(Good):
    output_fmt = "NHWC"  # a name that timm's models have
class Whole(Good):
    "Takes only what its contract promises, multiples of its largest stride."
    def forward(self, image):
        assert image.shape[-1] % 4 == image.shape[-2] % 4 == 0, "multiples of 4"
        return super().forward(image)
"""


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoders") / "bad_encoders.py"
    path.write_text(BAD)
    return path


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        ("Strides", r"says channels (3, 6) and strides (4, 8), but returns [(2, 3, 8, 12), (2, 6, 4, 6)] for images of"
                    " 16x24; wanted [(2, 3, 4, 6), (2, 6, 2, 3)]"),
        ("Channels", "says channels (3, 7) and strides (2, 4), but returns [(2, 3, 4, 6), (2, 6, 2, 3)]"),
        ("OneMore", "but returns [(2, 3, 8, 12), (2, 6, 4, 6)] for images of 16x24; wanted [(2, 3, 8, 12), (2, 6, 4"),
        ("Coarse", "says channels (3, 6) and strides (4, 2); wanted as many of both, strides from fine to coarse"),
        ("Uneven", "says channels (3,) and strides (2, 4); wanted as many of both"),
        ("Says", "should say its channels as a tuple of integers from 1, fine to coarse, and has none"),
        ("Words", "should say its channels as a tuple of integers from 1, fine to coarse, not ('many', 'more')"),
        ("Zero", "should say its strides as a tuple of integers from 1, fine to coarse, not (0, 4)"),
        ("Mean", "mean and std should be three numbers each, std above 0, not (0.5, 0.5), (0.229, 0.224, 0.225)"),
        ("Std", "mean and std should be three numbers each, std above 0, not (0.485, 0.456, 0.406), (0.5, 0.5, 0.0)"),
        ("InPlace", "changes the image in place, which decoders use too"),
        ("NoList", "returns Tensor; wanted a list of 2 features"),
        ("Names", "returns dict; wanted a list of 2 features"),
        ("Nones", "returns list of NoneType, Tensor; wanted a list of 2 features"),
        ("Integers", "returns features that are no finite floats"),
        ("Nan", "returns features that are no finite floats"),
        ("Raises", "fails on images of 8x12: RuntimeError: two lines"),
        ("Fails", "cannot be built: OSError: no such checkpoint"),
        ("Forgets", "cannot be built: AttributeError: cannot assign module before Module.__init__() call"),
        ("Dropping", "gives other features for the same image in eval mode; is dropout always on in it?"),
        ("Stuck", "stays in training mode after .eval(); does it override train()?"),
        ("NoModule", "is no subclass of torch.nn.Module"),
        ("Gone", "has no class 'Gone'"),
    ],
)  # fmt: skip
def test_a_broken_promise_is_one_line_that_names_file_and_class(bad, cls, message):
    with pytest.raises(UserError) as caught:
        build_encoder(EncoderConfig(name=f"{bad}:{cls}"))
    said = str(caught.value)
    assert message in said
    assert "\n" not in said
    assert str(bad) in said
    assert cls in said


def test_it_is_said_before_anything_starts(bad, write_sweep, tmp_path):
    done = segbench("sweep", write_sweep(encoder={"name": f"{bad}:Channels", "weights": "default"}))
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[0] == f"runs the code in {bad}"
    assert len(lines) == 2
    assert f"encoder '{bad}:Channels' says channels (3, 7)" in lines[1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "imagenet"}, r"encoder\.weights: imagenet is for encoders of SMP and timm; '.*OwnEncoder' loads"),
        ({"params": {"wdth": 4}}, r"encoder '.*OwnEncoder' has no parameter 'wdth' \(did you mean 'width'\?\)"),
        ({"params": {"width": "wide"}}, r"encoder '.*OwnEncoder': width should be a whole number, not 'wide'"),
        ({"name": "resnet18", "params": {"depth": 3}}, "encoder .resnet18. of SMP has no parameter .depth.; it"),
        ({"name": str(FILE)}, r"unknown encoder '.*own_encoder\.py'; write .*own_encoder\.py:ClassName for a class"),
        ({"name": "gone.py:X"}, r"no such file: gone\.py"),
    ],
)  # fmt: skip
def test_an_impossible_section_is_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        build_encoder(EncoderConfig(**own(**changes)))
    assert "\n" not in str(caught.value)


def test_random_numbers_of_any_kind_are_the_same_each_time(bad):
    first, second = (build_encoder(EncoderConfig(name=f"{bad}:Drawn")).weights_hash for _ in range(2))
    assert first == second


def test_a_name_that_timm_gives_a_meaning_has_none_in_a_plug_in(bad):
    features = build_encoder(EncoderConfig(name=f"{bad}:Named"))(torch.zeros(1, 3, 8, 8))
    assert [tuple(f.shape) for f in features] == [(1, 6, 2, 2)]


def test_without_its_coarsest_level_images_are_multiples_of_less(bad):
    name = f"{bad}:Whole"
    assert build_encoder(EncoderConfig(name=name, strides=[4])).strides == (4,)
    with pytest.raises(UserError, match=r"Whole' without its levels from stride 4 on \(encoder\.strides\) fails on"):
        build_encoder(EncoderConfig(name=name, strides=[2]))


def announce(monkeypatch, *entries):
    """As if installed packages announced these encoders."""
    found = importlib.metadata.EntryPoints(
        importlib.metadata.EntryPoint(name, value, ENCODERS.package) for name, value in entries
    )
    monkeypatch.setattr("segbench.registry.entry_points", found.select)


def test_an_installed_package_can_bring_one(monkeypatch):
    announce(monkeypatch, ("own", "tests.own_encoder:OwnEncoder"), ("resnet18", "tests.own_encoder:OwnEncoder"))
    assert build_encoder(EncoderConfig(name="own", params={"width": 4})).channels == (4, 8, 16)
    assert ENCODERS.code_file("own") == FILE
    assert build_encoder(EncoderConfig(name="resnet18", weights="none")).channels == (64, 128, 256, 512)  # SMP's
    with pytest.raises(UserError, match=r"unknown encoder 'onw' \(did you mean 'own'\?\)"):
        build_encoder(EncoderConfig(name="onw"))
    monkeypatch.setattr(OwnEncoder, "mean", (1.0,))
    with pytest.raises(UserError, match=r"encoder 'own' \(tests\.own_encoder:OwnEncoder\): mean and std should be"):
        build_encoder(EncoderConfig(name="own"))


def test_the_list_of_encoders(monkeypatch, capsys, bad):
    from segbench.cli import main

    announce(monkeypatch, ("own", "tests.own_encoder:OwnEncoder"), ("gone", "tests.own_encoder:Gone"))
    assert main(["list"]) == 0
    listed = capsys.readouterr().out.partition("encoders, plugged in")[2]
    assert "  own  Blocks of convolution, batch norm and dropout, at strides 4, 8 and 16.\n" in listed
    assert "  gone  FAILED: encoder 'gone' of an installed package does not import" in listed
    assert main(["show", "own", f"{bad}:Drawn"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("encoder own  (")
    assert "own_encoder.py)\n  Blocks of" in said
    assert "\n  parameters, set under encoder.params\n    width = 8\n" in said
    assert f"encoder {bad}:Drawn  (" in said
    assert main(["show", f"{bad}:Missing"]) == 1


def test_an_encoder_without_parameters_is_one_too(bad, make_config):
    encoder = {"name": f"{bad}:NoWeights", "weights": "default"}
    results, code, out = sweep(make_config(encoder=encoder, decoders=["bilinear"]))
    assert code == 0, out
    assert results["bilinear", 0].row["encoder"] == "NoWeights"
