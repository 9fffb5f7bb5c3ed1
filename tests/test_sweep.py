"""Whole sweeps in miniature: what is promised of runs, cohorts and their company."""

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import psutil
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from segbench import store
from segbench.errors import UserError
from segbench.registry import UPSAMPLERS
from segbench.runs import make_cohorts
from segbench.sweep.plan import make_plan
from segbench.sweep.run import run_sweep
from tests.conftest import ROOT, WHOLE, until

BUILT_IN = list(UPSAMPLERS.builtin())


def sweep(config):
    """Run it; the output and exit code, and results by (decoder, seed)."""
    out = io.StringIO()
    folder, code, _ = run_sweep(config, Console(file=out, width=200))
    results = {}
    for path in folder.glob("*/result.json"):
        result = store.read_result(path.parent)
        results[result.row["decoder"], result.row["seed"]] = result
    return results, code, out.getvalue()


def same(a, b):
    """Weights and counts bit-identical."""
    weights = [load_file(r.folder / "decoder.safetensors") for r in (a, b)]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert all(np.array_equal(a.counts[k], b.counts[k]) for k in a.counts)
    return True


def all_same(results, others):
    """`same`, of every run of a sweep."""
    assert results.keys() == others.keys()
    assert all(same(results[key], others[key]) for key in results)
    return True


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """All decoders in one cohort, no loader workers."""
    from segbench.config_file import build_config
    from tests.conftest import tiny

    return sweep(build_config(tiny(decoders=BUILT_IN, runs_dir=str(tmp_path_factory.mktemp("together")))))


def test_a_run_is_a_folder(together):
    results, code, _ = together
    assert code == 0
    assert sorted(d for d, _ in results) == sorted(BUILT_IN)
    folder = results["deconv", 0].folder
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml", "counts.npz", "decoder.safetensors", "environment.json",
        "history.csv", "live", "result.json", "status.json",
    ]  # fmt: skip
    counts = results["deconv", 0].counts
    assert {k: v.shape for k, v in counts.items()} == {
        "region": (3, 3, 7), "confusion": (7, 7), "sizes": (3, 2), "biou@0.02": (3, 3, 7), "bf1@3": (3, 4, 7),
        **{f"trimap@{width}": (3, 3, 7) for width in (1, 2, 4, 8, 16)},
        "ceiling@4,majority": (3, 3, 7), "distance_error@2": (3, 24, 1), "phase_error": (3, 32, 1),
        "thin@5,recall": (3, 18, 7),
    }  # fmt: skip
    assert counts["confusion"].sum() == 3 * 64 * 64
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert environment["threads"] == 1
    assert (folder / "history.csv").read_text().splitlines()[0] == "step,loss,lr"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("decoder", ["bilinear_conv", "deconv", "fractional", "subpixel"])
def test_alone_is_the_same_as_in_company(together, make_config, decoder, workers):
    alone, code, _ = sweep(make_config(decoders=[decoder], launch={"workers": workers}))
    assert code == 0
    assert same(alone[decoder, 0], together[0][decoder, 0])


def test_a_run_s_own_config_makes_it_again(together, tmp_path):
    from segbench.config_file import load_config

    original = together[0]["subpixel", 0]
    config = load_config(original.folder / "config.yaml", [f"runs_dir={tmp_path}"])
    again, _, _ = sweep(config)
    assert same(again["subpixel", 0], original)
    assert again["subpixel", 0].row["key"] == original.row["key"]


DROPOUT = (
    WHOLE
    + """
import torch.nn.functional as F

class Dropping(Whole):
    stop_at = None
    def forward(self, features, image):
        return super().forward([F.dropout(f, 0.3, self.training) for f in features], image)
"""
)

SLOW = (
    DROPOUT
    + """
import os, time
HERE = os.path.dirname(__file__)
HOLD_S = 1
class Slow(Dropping):
    "Notes each training step, and then takes its time for it until the test says go."
    def forward(self, features, image):
        if self.training and image.shape[-1] == 64:  # not what it is tried on before the sweep
            with open(os.path.join(HERE, "steps"), "a") as file:
                file.write(f"{os.getpid()} ")
            began = time.monotonic()
            while not os.path.exists(os.path.join(HERE, "go")) and time.monotonic() - began < HOLD_S:
                time.sleep(0.02)
        return super().forward(features, image)
"""
)


def slow_sweep(tmp_path, seeds=(0, 1), hold_s=1):
    """A cohort for each seed, with a decoder that takes its time, as kwargs of `make_config`."""
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW.replace("HOLD_S = 1", f"HOLD_S = {hold_s}"))
    return {"decoders": [f"{plugin}:Slow", "nearest"], "seeds": list(seeds), "recipe": {"steps": 24}}


def in_training(tmp_path, number):
    """So many processes of a `slow_sweep` have each done a step."""
    log = tmp_path / "steps"
    steps = Counter(log.read_text().split()) if log.exists() else {}
    return sum(count > 1 for count in steps.values()) >= number


def in_terminal(command):
    """Start as a terminal does: a process group that Ctrl-C reaches, also where these tests run in the background."""
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in the background it is ignored, by children too
    try:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stop_and_a_resume_change_nothing(make_config, write_sweep, tmp_path):
    """Ctrl-C in mid-training, then the same command: weights and counts as if undisturbed, dropout included."""
    changes = slow_sweep(tmp_path, seeds=[0])
    path = write_sweep(**changes | {"recipe": {"steps": 24, "clip_norm": 1.0}})
    command = [sys.executable, "-m", "segbench.cli", "sweep", str(path)]
    process = in_terminal(command)
    runs = tmp_path / "runs" / "tiny"
    until(lambda: in_training(tmp_path, 1))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped" in err
    assert "Traceback" not in err
    steps = [store.newest_checkpoint(f)[0] for f in runs.glob("*-s0-*")]
    assert len(set(steps)) == 1
    assert 0 < steps[0] < 24
    assert not list(runs.glob("*/result.json"))

    from segbench.config_file import load_config

    (tmp_path / "go").touch()
    resumed, code, _ = sweep(load_config(path))
    assert code == 0
    undisturbed, _, _ = sweep(load_config(path, [f"runs_dir={tmp_path / 'other'}"]))
    for key in resumed:
        assert same(resumed[key], undisturbed[key])
        assert (resumed[key].folder / "history.csv").read_text() == (
            undisturbed[key].folder / "history.csv"
        ).read_text()
    assert not list(runs.glob("*/checkpoint*"))


def test_done_runs_are_skipped_and_only_the_missing_made(make_config):
    config = make_config(decoders=["nearest"])
    first, _, _ = sweep(config)
    when = (first["nearest", 0].folder / "result.json").stat().st_mtime_ns
    _, code, out = sweep(config)
    assert code == 0
    assert "1 done before, 0 to do" in out
    more, _, out = sweep(make_config(decoders=["bilinear", "nearest"], seeds=[0, 1]))
    assert "4 runs, 1 done before, 3 to do" in out
    assert len(more) == 4
    assert (first["nearest", 0].folder / "result.json").stat().st_mtime_ns == when


def test_the_key(make_config, tmp_path):
    """What changes numbers makes another run; names, order, place and workers do not."""
    key = lambda **changes: {r.title: r.key for r in make_plan(make_config(**changes)).runs}  # noqa: E731
    base = key()
    for changes in (
        {"recipe": {"lr": 0.1}}, {"recipe": {"steps": 5}}, {"seeds": [1]}, {"decoder_defaults": {"width": 4}},
        {"data": {"seed": 1}}, {"encoder": {"weights": "none"}},
        {"measures": [{"name": "bf1", "params": {"tolerance_px": 2}}]},
        {"encoder": {"trainable": True}},
    ):  # fmt: skip
        assert key(**changes)["bilinear"] != base["bilinear"], changes
    for changes in (
        {"name": "other"}, {"decoders": ["nearest", "bilinear"]}, {"launch": {"workers": 2, "jobs": 2}},
        {"baseline": "nearest"}, {"evaluation": {"every": 2}}, {"encoder": {"lr_factor": 0.5}},
    ):  # fmt: skip
        assert key(**changes)["bilinear"] == base["bilinear"], changes
    assert key(decoders=[{"name": "bilinear", "label": "mine"}])["mine"] == base["bilinear"]
    plugin = tmp_path / "p.py"
    plugin.write_text(DROPOUT)
    before = key(decoders=[f"{plugin}:Dropping"])["Dropping"]
    (tmp_path / "moved").mkdir()
    plugin.rename(tmp_path / "moved" / "p.py")
    assert key(decoders=[f"{tmp_path / 'moved' / 'p.py'}:Dropping"])["Dropping"] == before
    (tmp_path / "moved" / "p.py").write_text(DROPOUT.replace("0.3", "0.4"))
    assert key(decoders=[f"{tmp_path / 'moved' / 'p.py'}:Dropping"])["Dropping"] != before


def test_the_same_decoder_twice_is_one_run(make_config):
    with pytest.raises(UserError, match="decoders a, bilinear are the same decoder"):
        make_plan(make_config(decoders=["bilinear", {"name": "bilinear", "label": "a"}]))


def test_a_trainable_encoder_makes_cohorts_of_one(make_config):
    config = make_config(encoder={"trainable": True})
    runs = make_plan(config).runs
    assert [len(c.runs) for c in make_cohorts(runs, lambda run: 0)] == [1, 1]
    results, code, _ = sweep(config)
    assert code == 0
    assert results["nearest", 0].row["encoder_trainable"] is True
    weights = load_file(results["nearest", 0].folder / "decoder.safetensors")
    assert any(k.startswith("encoder.") for k in weights)


def test_bf16(make_config):
    recipe = {"class_weights": [0.5] + [1.0] * 6}
    changes = {"decoders": BUILT_IN, "trainer": {"precision": "bf16-mixed"}, "recipe": recipe}
    results, code, out = sweep(make_config(**changes))
    assert code == 0, out
    assert len(results) == len(BUILT_IN)
    assert all(np.isfinite(r.row["last_loss"]) for r in results.values())


def test_evaluation_in_training_is_in_the_history(make_config):
    results, _, _ = sweep(make_config(decoders=["nearest"], evaluation={"every": 2}))
    rows = (results["nearest", 0].folder / "history.csv").read_text().splitlines()
    assert [r for r in rows if r.startswith("2,") and r.split(",")[3]]


def test_val_history_changes_no_weight(make_config):
    """Evaluating in between must not disturb training (batch norm, random state)."""
    results, _, _ = sweep(make_config(decoders=["deconv"]))
    again, _, _ = sweep(make_config(decoders=["deconv"], evaluation={"every": 1}, name="every"))
    assert same(results["deconv", 0], again["deconv", 0])


def test_grid_makes_a_table_by_variant(make_config):
    from segbench.report.formats import grid
    from segbench.report.table import make_table

    config = make_config(decoders=["bilinear", "nearest"], grid={"recipe.lr": [0.001, 0.01]})
    results_folder, code, _ = run_sweep(config, Console(file=io.StringIO()))
    assert code == 0
    header, body = grid(make_table(results_folder))
    assert header[:3] == ["decoder", "lr", "n"]
    assert [line[:2] for line in body] == [
        ["bilinear", "0.001"],
        ["nearest", "0.001"],
        ["bilinear", "0.01"],
        ["nearest", "0.01"],
    ]


@pytest.mark.parametrize("moment", ["importing", "evaluating"])
def test_ctrl_c_at_any_time_is_one_line(write_sweep, tmp_path, moment):
    """To the whole group, as a terminal does: while processes start, and in the final evaluation."""
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW.replace("if self.training and", "if not self.training and"))
    path = write_sweep(decoders=[f"{plugin}:Slow"], data={"val": 40})
    command = [sys.executable, "-m", "segbench.cli", "sweep", str(path)]
    process = in_terminal(command)
    runs = tmp_path / "runs" / "tiny"
    if moment == "importing":
        until(psutil.Process(process.pid).children)
    else:
        until(lambda: list(runs.glob("*/checkpoint-00000004-*.pt")) and in_training(tmp_path, 1))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if "runs the code in" not in line]) <= 4
    if moment == "evaluating":
        assert [p.name[:19] for p in runs.glob("*/checkpoint*")] == ["checkpoint-00000004"]  # the training is not lost
        assert json.loads(next(runs.glob("*/status.json")).read_text())["state"] == "stopped"


def test_no_git_is_no_obstacle(monkeypatch):
    from segbench.machine import environment

    monkeypatch.setenv("PATH", "")
    assert environment(1, "cpu")["git"] == {"commit": None, "changes": None}
