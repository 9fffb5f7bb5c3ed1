"""Several processes to a cohort (Lightning's ddp over gloo): what they count and train is what one would."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from segbench.config import DataConfig, EncoderConfig, EvaluationConfig
from segbench.data import open_data
from segbench.data.pipeline import train_loader
from segbench.decoders.deconv import Deconv
from segbench.encoders import build_encoder
from segbench.errors import UserError
from segbench.evaluate import evaluate, evaluate_together
from segbench.ranks import started
from tests.conftest import tiny, until
from tests.test_sweep import in_terminal, in_training, same, slow_sweep, sweep

PLAIN = """
import os
import torch
from torch import nn
from segbench.decoders.base import Decoder

class Plain(Decoder):
    "No batch normalisation, so that it is the same for any division of the batch."
    def __init__(self, channels, strides, num_classes):
        super().__init__(channels, strides, num_classes)
        self.last = nn.Conv2d(channels[0], num_classes, 1)
    def forward(self, features, image):
        logits = nn.functional.interpolate(self.last(features[0]), size=image.shape[-2:], mode="bilinear")
        return self.spoil(logits)
    def spoil(self, logits):
        return logits

class Raises(Plain):
    def spoil(self, logits):
        if self.training and os.environ.get("LOCAL_RANK") == "1":
            raise RuntimeError("broken in the second process")
        return logits

class StepFails(Plain):
    "Its optimizer's step, and no other one, as where memory is too small for what the first one makes."
    def spoil(self, logits):
        if self.training and os.environ.get("LOCAL_RANK") == "1":
            step = torch.optim.AdamW.step
            def fail(*args, **kwargs):
                torch.optim.AdamW.step = step
                raise RuntimeError("no step in the second process")
            torch.optim.AdamW.step = fail
        return logits

class Nan(Plain):
    def spoil(self, logits):
        return logits * (float("nan") if self.training and os.environ.get("LOCAL_RANK") == "1" else 1)

class Dies(Plain):
    which = "1"
    def spoil(self, logits):
        if "LOCAL_RANK" in os.environ:
            with open(os.path.join(os.path.dirname(__file__), "pids"), "a") as file:
                file.write(f"{os.getpid()}\\n")
        if os.environ.get("LOCAL_RANK") == self.which:
            os.kill(os.getpid(), 9)
        return logits

class FirstDies(Dies):
    which = "0"
"""


def evaluate_part(ranks, images, results=None):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(weights="none"))
    dataset = open_data(DataConfig(name="shapes", size=64, train=1, val=images), "val")
    decoder = Deconv(encoder.channels, encoder.strides, len(dataset.classes), width=8)
    asked = []
    args = (encoder, {"deconv": decoder}, dataset, EvaluationConfig())
    found, shared = evaluate_together(ranks, *args, after_image=asked.append)
    assert set(ranks.gather(len(asked))) == {len(asked)}  # a stop is asked for equally often
    if results is not None:
        results += [found["deconv"], shared, evaluate(*args)[0]["deconv"]]


@pytest.mark.parametrize("images", [1, 4, 7])
def test_counts_are_those_of_one_process_and_no_image_is_counted_twice(images):
    results = []
    with started(2, "cpu", evaluate_part, images) as ranks:
        evaluate_part(ranks, images, results)
    together, shared, alone = results
    assert together.ids == alone.ids
    assert len(set(together.ids)) == images
    for name, array in alone.arrays().items():
        np.testing.assert_array_equal(together.arrays()[name], array)
    assert together.arrays()["confusion"].sum() == images * 64 * 64
    assert np.isfinite(list(shared.values())).all()


def test_each_process_gets_its_part_of_every_batch():
    from segbench.config import RecipeConfig

    dataset = open_data(DataConfig(name="shapes", size=64, train=5, val=1), "train")
    recipe = RecipeConfig(steps=4, batch_size=6, crop=32)
    whole = [images for images, _ in train_loader(dataset, recipe, 0, 1, 0)]
    parts = [[images for images, _ in train_loader(dataset, recipe, 0, 1, 0, rank, 3)] for rank in range(3)]
    assert [len(part) for part in parts] == [len(whole)] * 3 == [3] * 3
    for i, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[i] for part in parts]), batch)


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(PLAIN)
    return path


@pytest.mark.slow
def test_two_processes_train_as_one(make_config, plugin):
    """Up to rounding: the mean is over the pixels of the whole batch, though void lies in one half of it only."""
    recipe = {"class_weights": [0.3] + [1.0] * 6, "clip_norm": 0.5, "scale": [0.3, 1.0]}
    changes = {"decoders": [f"{plugin}:Plain"], "recipe": recipe}
    one, _, _ = sweep(make_config(**changes, name="one"))
    two, code, out = sweep(make_config(**changes, name="two", trainer={"devices": 2}))
    assert code == 0, out
    a, b = one["Plain", 0], two["Plain", 0]
    assert a.row["key"] != b.row["key"]
    for name, weights in load_file(a.folder / "decoder.safetensors").items():
        np.testing.assert_allclose(load_file(b.folder / "decoder.safetensors")[name], weights, rtol=1e-4, atol=1e-6)
    assert b.row["last_loss"] == pytest.approx(a.row["last_loss"], rel=1e-5)
    np.testing.assert_array_equal(a.ids, b.ids)
    totals = [r.counts["region"].sum((0, 2)) for r in (a, b)]
    assert totals[0][2] == totals[1][2]  # the truth's pixels, each once


@pytest.mark.slow
def test_batch_normalisation_a_trainable_encoder_and_loader_workers_work_too(make_config):
    results, code, out = sweep(
        make_config(
            decoders=["deconv"],
            trainer={"devices": 2},
            encoder={"trainable": True},
            evaluation={"every": 2},
            launch={"workers": 1},
        )
    )
    assert code == 0, out
    rows = (results["deconv", 0].folder / "history.csv").read_text().splitlines()
    assert any(row.startswith("2,") and row.split(",")[3] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        ("Raises", "RuntimeError: broken in the second process"),
        ("StepFails", "RuntimeError: no step in the second process"),
        ("Nan", "Diverged: the loss is nan"),
    ],
)
def test_a_failure_in_one_process_fails_that_run_only(make_config, plugin, cls, reason):
    changes = {"trainer": {"devices": 2}, "seeds": [0]}
    results, code, out = sweep(make_config(decoders=[f"{plugin}:{cls}", "deconv"], **changes))
    assert code == 1
    assert f"failed {cls}-s0" in out
    assert reason in out
    alone, _, _ = sweep(make_config(decoders=["deconv"], name="alone", **changes))
    assert same(results["deconv", 0], alone["deconv", 0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        ("Dies", "process 1 of the cohort died (exit code -9)"),
        ("FirstDies", "the cohort's process died (signal SIGKILL)"),
    ],
)
def test_a_process_that_dies_fails_its_cohort_with_the_reason(make_config, plugin, cls, reason):
    import psutil

    config = make_config(decoders=[f"{plugin}:{cls}"], trainer={"devices": 2})
    _, code, out = sweep(config)
    assert code == 1
    assert reason in out
    assert time.time() - (plugin.parent / "pids").stat().st_mtime < 60  # since then
    pids = {int(pid) for pid in (plugin.parent / "pids").read_text().split()}
    assert pids
    until(lambda: not any(map(psutil.pid_exists, pids)), 60)  # the other process does not go on alone


def test_a_process_that_dies_before_it_has_joined_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text(
        "import os\nif 'DIE' in os.environ:\n    os._exit(3)\ndef work(ranks):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import dying

    monkeypatch.setenv("DIE", "")  # from here on whoever imports it dies
    began = time.monotonic()
    dies = pytest.raises(RuntimeError, match=r"process 1 of the cohort died \(exit code 3\)")
    with dies, started(2, "cpu", dying.work):
        pass
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_stop_and_a_resume_change_nothing_with_two_processes(write_sweep, tmp_path):
    import sys

    from segbench.config import load_config

    path = write_sweep(**slow_sweep(tmp_path, seeds=[0]), trainer={"devices": 2})
    process = in_terminal([sys.executable, "-m", "segbench.cli", "sweep", str(path)])
    runs = tmp_path / "runs" / "tiny"
    until(lambda: in_training(tmp_path, 2))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert {json.loads(p.read_text())["state"] for p in runs.glob("*/status.json")} == {"stopped"}
    (tmp_path / "go").touch()
    resumed, code, _ = sweep(load_config(path))
    assert code == 0
    undisturbed, _, _ = sweep(load_config(path, [f"runs_dir={tmp_path / 'other'}"]))
    assert all(same(resumed[key], undisturbed[key]) for key in resumed)


def test_a_batch_that_cannot_be_shared_is_refused():
    from segbench.config import build_config

    with pytest.raises(UserError, match=r"recipe.batch_size \(2\) cannot be shared by 3 devices"):
        build_config(tiny(trainer={"devices": 3}))
    with pytest.raises(UserError, match="none twice"):
        build_config(tiny(trainer={"devices": [1, 1]}))
