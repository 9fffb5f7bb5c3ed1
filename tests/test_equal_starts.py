"""What each decoder of a sweep starts from, seen in the weights that a sweep stores after a step that moves nothing."""

import pytest
import torch
from safetensors.torch import load_file

from segbench import store
from segbench.config import EncoderConfig
from segbench.config_file import build_config
from segbench.encoders import build_encoder
from segbench.encoders.base import Encoder
from segbench.registry import UPSAMPLERS
from segbench.report.table import make_table
from segbench.runs import make_cohorts
from segbench.sweep.plan import make_plan
from segbench.training.cohort import run_cohort
from tests.conftest import tiny
from tests.test_sweep import sweep

SKELETON = ("laterals", "blocks", "classifier")
PLUG_IN = """
import torch
from torch import nn
from segbench.decoders.pyramid import Pyramid
from segbench.upsamplers import Deconv

class Greedy(nn.ConvTranspose2d):
    "Draws random numbers before and after everything else is made."
    def __init__(self, channels, scale, guide_channels):
        torch.rand(7)
        super().__init__(channels, channels, scale, scale)
        torch.rand(7)

class More(Pyramid):
    "A decoder of its own, with more than the skeleton has."
    def __init__(self, channels, strides, num_classes, *, width):
        torch.rand(7)
        super().__init__(channels, strides, num_classes, Greedy, width=width)
        self.more = nn.Conv2d(3, 5, 3)
    def forward(self, features, image):
        return super().forward(features, image) + 0 * self.more(image).sum()

class Renamed(Deconv):
    pass
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(title, seed) -> result of a step that moves nothing."""
    folder = tmp_path_factory.mktemp("starts")
    (folder / "mine.py").write_text(PLUG_IN)
    decoders = [
        *UPSAMPLERS.builtin(),
        {"name": "deconv", "params": {"init": "random"}, "label": "deconv-random"},
        {"name": "subpixel", "params": {"init": "plain"}, "label": "plain"},
        {"name": f"{folder / 'mine.py'}:Greedy"},
        {"name": f"{folder / 'mine.py'}:More"},
        {"name": f"{folder / 'mine.py'}:Renamed", "params": {"init": "random"}},
        {"name": "bilinear", "params": {"width": 12}, "label": "wide"},
        {"name": "subpixel", "params": {"output_stride": 2}, "label": "early"},
    ]
    recipe = {"steps": 1, "lr": 1e-30}
    config = build_config(tiny(decoders=decoders, seeds=[0, 1], recipe=recipe, runs_dir=str(folder / "runs")))
    results, code, out = sweep(config)
    assert code == 0, out
    return results


@pytest.fixture(scope="module")
def starts(trained):
    """(title, seed) -> (row, weights before training)."""
    return {key: (r.row, load_file(r.folder / "decoder.safetensors")) for key, r in trained.items()}


COUNTED = ("running_mean", "running_var", "num_batches_tracked")  # which a step moves whatever the learning rate


def equal(a, b):
    """Bit for bit, but that a zero may have moved by the learning rate."""
    return torch.allclose(a, b, rtol=0, atol=1e-29)


def skeleton(weights):
    return {k: v for k, v in weights.items() if k.startswith(SKELETON) and not k.endswith(COUNTED)}


def test_every_decoder_of_a_seed_starts_with_the_same_skeleton(starts):
    titles = sorted({title for title, _ in starts} - {"wide"})
    assert len(titles) == len(UPSAMPLERS.builtin()) + 6
    for seed in (0, 1):
        first = skeleton(starts["bilinear", seed][1])
        assert len(first) == 4 * 2 + 4 * 3 + 2  # laterals, blocks and classifier of four levels
        for title in titles:
            own = skeleton(starts[title, seed][1])
            assert own.keys() == first.keys()
            assert all(equal(own[k], first[k]) for k in own), title
    drawn = [k for k, v in first.items() if v.abs().max() > 1e-20 and v.unique().numel() > 1]  # not ones and zeros
    assert len(drawn) == 4 * 2 + 4 + 2  # laterals with their biases, blocks, classifier
    assert not any(torch.equal(first[k], starts["bilinear", 0][1][k]) for k in drawn)  # another seed


def test_the_row_says_which_skeleton_it_was(starts):
    for seed in (0, 1):
        hashes = {title: row["skeleton_hash"] for (title, s), (row, _) in starts.items() if s == seed}
        assert len(set(hashes.values())) == 2
        assert [title for title, value in hashes.items() if value != hashes["bilinear"]] == ["wide"]
    assert starts["bilinear", 0][0]["skeleton_hash"] != starts["bilinear", 1][0]["skeleton_hash"]


def test_the_upsampler_s_own_weights_come_from_the_seed_alone(starts):
    """Not from the class's name, and not from what the skeleton drew; other seeds start otherwise."""

    def own(title, seed):
        return {k: v for k, v in starts[title, seed][1].items() if k.startswith("steps")}

    a, b = own("deconv-random", 0), own("Renamed", 0)
    assert a.keys() == b.keys()
    assert all(equal(a[k], b[k]) for k in a)
    for title in ("deconv-random", "plain", "Greedy", "More"):
        pairs = [(own(title, 0)[k], own(title, 1)[k]) for k in own(title, 0)]
        assert pairs
        assert not any(torch.equal(x, y) for x, y in pairs)
    assert all(equal(v, own("deconv", 1)[k]) for k, v in own("deconv", 0).items())  # bilinear in every seed


def test_the_table_says_what_is_not_equal(trained):
    table = make_table(trained["wide", 0].folder.parent)
    assert any(note.startswith("Skeletons do not start equal: wide has another width") for note in table.notes)
    assert table.title.endswith("1 steps, early upsampled to stride 2")


def test_the_features_hash_is_that_of_the_cohort_s_own_encoder(starts, make_config, monkeypatch):
    encoder = build_encoder(EncoderConfig())
    assert {row["features_hash"] for row, _ in starts.values()} == {encoder.features_hash()}
    (cohort,) = make_cohorts(make_plan(make_config(decoders=["nearest"])).runs, lambda run: 0)
    monkeypatch.setattr(Encoder, "features_hash", lambda self: f"here, {type(self).__name__}")
    failures = {}
    run_cohort(cohort, failures, lambda *_: None, lambda: False, 1)
    assert not failures
    assert store.read_result(cohort.runs[0].folder).row["features_hash"] == "here, Encoder"
