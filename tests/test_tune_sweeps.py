"""Sweeps with ``tune:`` as they may go: settings that diverge or fail, a kill, a narrower call, what is not taken."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml

from segbench import store
from segbench.cli import main
from segbench.config_file import build_config
from segbench.report.analysis import Analysis
from segbench.report.metrics import available
from segbench.report.runs import read_sweep
from segbench.report.table import make_table
from segbench.report.words import effects
from segbench.sweep import run as running
from segbench.sweep.plan import make_plan
from segbench.sweep.run import run_sweep
from segbench.sweep.status import read_status
from tests.conftest import ROOT, until
from tests.test_sweep import same, sweep
from tests.test_tune import RATES, read, tuned


def test_the_sweep_as_it_stands_is_one_of_the_trials_and_trained_once(tmp_path):
    """Where the chosen setting is the sweep's own, its runs are the fixed ones, and stand in both rows."""
    values = tuned(
        tmp_path, decoders=["bilinear"], seeds=[0], tune={"search": {"recipe.lr": [0.002, 1e-9]}, "seeds": [5]}
    )
    results, code, out = sweep(build_config(values))
    assert code == 0
    assert len(results) == 1
    assert "1 runs, 0 done before, 1 to do" in out
    table = make_table(tmp_path / "runs" / "tiny")
    assert [r["mIoU"].mean for r in table.rows] == [table.rows[0]["mIoU"].mean] * 2
    assert table.rows[1]["Δ mIoU tuned from fixed"] is None
    assert table.rows[1]["chosen"] == "lr=0.002 (highest tried), as fixed"
    found = read_sweep(tmp_path / "runs" / "tiny")
    [group] = [g for g in found.groups if g.variant == {"setting": "tuned"}]
    analysis = Analysis(group, next(m for m in available(list(group.results.values())) if m.name == "miou"))
    assert effects(found, group, analysis)[0] == "For bilinear the search chose the sweep's own setting."


def test_a_setting_that_diverges_is_the_worst_and_no_failure(tmp_path):
    values = tuned(
        tmp_path, decoders=["bilinear"], seeds=[0], tune={"search": {"recipe.lr": [0.001, 1e30]}, "seeds": [5]}
    )
    config = build_config(values)
    _, code, out = sweep(config)
    assert code == 0
    assert "diverged bilinear-s5 lr=1e+30: Diverged: the loss is nan" in out
    [row] = [r for r in store.read_plan(tmp_path / "runs" / "tiny")["runs"] if "choice" in r]
    assert row["choice"]["values"] == {"recipe.lr": 0.001}
    assert row["choice"]["scores"][1][1] is None
    assert row["choice"]["flatness"] is None
    assert make_table(tmp_path / "runs" / "tiny").rows[1]["best − median"] == "most diverged"
    assert make_plan(config).search.todo == []  # it is not tried again
    assert [s.state for _, s in read_status(tmp_path / "runs" / "tiny" / "search")] == ["done", "failed"]


def test_a_decoder_that_fails_at_a_setting_is_not_tuned_and_the_others_are(tmp_path):
    plugin = tmp_path / "fails.py"
    plugin.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Fails(nn.Module):\n"
        "    def __init__(self, channels, scale, guide_channels, at=1):\n        super().__init__()\n"
        "        self.scale, self.at, self.n = scale, at, 0\n\n"
        "    def forward(self, x):\n        self.n += self.training\n"
        "        if self.n > 2 and self.at == 2:\n            raise RuntimeError('at two')\n"
        "        return nn.functional.interpolate(x, scale_factor=float(self.scale))\n"
    )
    search = {"decoder.at": [1, 2], "recipe.lr": [0.001, 0.002]}
    values = tuned(tmp_path, decoders=[f"{plugin}:Fails", "nearest"], seeds=[0], tune={"search": search, "seeds": [5]})
    config = build_config(values)
    _, code, out = sweep(config)
    assert code == 1
    assert "failed Fails-s5 at=2 lr=0.001, Fails-s5 at=2 lr=0.002: RuntimeError: at two" in out
    assert "chosen Fails: nothing: trials of it failed, or all of them diverged" in out
    assert "chosen nearest: lr=" in out  # which takes no other
    assert ", the best of 2: " in out
    listed = [(r["decoder"], r["variant"]["setting"]) for r in store.read_plan(tmp_path / "runs" / "tiny")["runs"]]
    assert listed == [("Fails", "fixed"), ("nearest", "fixed"), ("nearest", "tuned"), ("Fails", "tuned")]
    assert [r["decoder"] for r in store.read_plan(tmp_path / "runs" / "tiny")["runs"] if r.get("awaited")] == ["Fails"]


def test_a_killed_search_goes_on(tmp_path):
    config = build_config(tuned(tmp_path, decoders=["nearest"]))
    plan = make_plan(config)
    for run in plan.search.runs[:3]:
        run.folder.mkdir(parents=True)  # as a killed process leaves it
        store.set_status(run.folder, "running")
    _, code, _ = sweep(config)
    assert code == 0
    assert make_plan(config).awaited == []


def test_plan_counts_and_estimates_the_search_and_what_it_will_choose(tmp_path, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tuned(tmp_path)))
    assert main(["plan", str(path)]) == 0
    out = capsys.readouterr().out
    assert "search: 12 runs, 0 done, 12 to do" in out
    assert "seed 7: bilinear (3 settings), nearest (3 settings)" in out
    assert "tiny: 4 runs, 0 done, 4 to do" in out
    assert "then 4 tuned runs" in out
    assert "time    about" in out


def test_settings_that_are_no_numbers_and_a_measure_of_ones_own(tmp_path):
    """Crops as lists, by another measure than mIoU; such a choice has no end that could be marked."""
    search = {"recipe.crop": [[32, 32], [64, 64]], "recipe.optimizer": ["sgd", "adamw"]}
    own = {"search": search, "seeds": [5], "measure": "biou@0.01"}
    measures = [{"name": "biou", "params": {"ratio": 0.01}}]
    values = tuned(tmp_path, decoders=["nearest"], seeds=[0], tune=own, measures=measures)
    _, code, out = sweep(build_config(values))
    assert code == 0, out
    [row] = [r for r in store.read_plan(tmp_path / "runs" / "tiny")["runs"] if "choice" in r]
    assert row["choice"]["edges"] == []
    assert row["choice"]["measure"] == "biou@0.01"
    trials = read(tmp_path / "runs" / "tiny" / "search").values()
    scores = []
    for result in trials:
        hit, predicted, true = result.counts["biou@0.01"].sum(0).astype(float)
        with np.errstate(invalid="ignore"):
            scores.append(100 * np.nanmean(hit / (predicted + true - hit)))
    assert [s for _, s in row["choice"]["scores"]] == pytest.approx(scores)


def test_batches_of_another_size_are_another_cohort_and_still_one_choice(tmp_path):
    search = {"recipe.batch_size": [2, 3], "recipe.lr": [0.001, 0.01]}
    config = build_config(tuned(tmp_path, tune={"search": search, "seeds": [5]}, seeds=[0]))
    assert [len(cohort.runs) for cohort in make_plan(config).search.cohorts] == [4, 4]
    _, code, _ = sweep(config)
    assert code == 0
    rows = [r for r in store.read_plan(tmp_path / "runs" / "tiny")["runs"] if "choice" in r]
    assert all(set(r["choice"]["values"]) == set(search) and len(r["choice"]["scores"]) == 4 for r in rows)


def test_the_whole_sweep_is_listed_before_the_search_ends(tmp_path, monkeypatch):
    """So that `segbench status` finds it."""
    from rich.console import Console

    config = build_config(tuned(tmp_path, decoders=["nearest"], seeds=[0]))
    monkeypatch.setattr(running, "_run", lambda plan, console: (130, {}))
    folder, code, _ = run_sweep(config, Console(quiet=True))
    assert code == 130
    rows = [(r["decoder"], r["variant"]["setting"], r.get("awaited", "")) for r in store.read_plan(folder)["runs"]]
    assert rows == [("nearest", "fixed", ""), ("nearest", "tuned", "the search has not chosen its setting yet")]


def test_a_narrower_call_forgets_no_tuned_run_and_another_search_does(tmp_path):
    """Though what was chosen for the others is another recipe than what was chosen for those that take part."""
    values = tuned(tmp_path, decoders=["bilinear", "nearest", "deconv"], seeds=[0], tune={"seeds": [5]})
    sweep(build_config(values))
    folder = tmp_path / "runs" / "tiny"
    listed = {(r["decoder"], r["variant"]["setting"], r["key"]) for r in store.read_plan(folder)["runs"]}
    assert len(listed) == 6
    assert len({str(r["choice"]["values"]) for r in store.read_plan(folder)["runs"] if "choice" in r}) > 1
    sweep(build_config(values | {"decoders": ["nearest"]}))
    assert {(r["decoder"], r["variant"]["setting"], r["key"]) for r in store.read_plan(folder)["runs"]} == listed
    fewer = values["tune"] | {"search": {"recipe.lr": RATES[:2]}}
    sweep(build_config(values | {"decoders": ["nearest"], "tune": fewer}))
    rows = [(r["decoder"], r["variant"]["setting"]) for r in store.read_plan(folder)["runs"]]
    assert sorted(rows) == [
        ("bilinear", "fixed"), ("deconv", "fixed"), ("nearest", "fixed"), ("nearest", "tuned"),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_sweep_killed_while_it_searches_ends_as_one_that_was_not(tmp_path):
    """Choices, weights and counts, bit for bit."""
    folders = {}
    for name in ("whole", "killed"):
        values = tuned(tmp_path, recipe={"steps": 30}, launch={"checkpoint_minutes": 0.001}, tune={"seeds": [5]})
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values | {"runs_dir": str(tmp_path / name)}))
        folders[name] = tmp_path / name / "tiny"
        if name == "killed":
            process = subprocess.Popen(
                [sys.executable, "-m", "segbench.cli", "sweep", str(path)], cwd=ROOT, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            until(lambda: [*(folders["killed"] / "search").glob("*/checkpoint-*.pt")])
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert not [*folders["killed"].glob("*/result.json")]
        assert main(["sweep", str(path)]) == 0
    whole, killed = (read(folder) for folder in folders.values())
    assert whole.keys() == killed.keys()
    assert all(same(whole[place], killed[place]) for place in whole)
    rows = [[r.get("choice") for r in store.read_plan(folder)["runs"]] for folder in folders.values()]
    assert rows[0] == rows[1]


def test_a_decoder_without_a_choice_is_missing_and_said_to_be(tmp_path, capsys):
    """In the table, and by `segbench plan` and `status`; it is not estimated again."""
    own = {"search": {"recipe.lr": [1e29, 1e30]}, "seeds": [5]}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tuned(tmp_path, decoders=["bilinear"], seeds=[0], tune=own)))
    assert main(["sweep", str(path)]) == 0
    why = "trials of it failed, or all of them diverged"
    [note] = [n for n in make_table(tmp_path / "runs" / "tiny").notes if n.startswith("Missing")]
    assert note == f"Missing: bilinear-s0, not tuned: {why}"
    capsys.readouterr()
    assert main(["plan", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"no setting is chosen for bilinear: {why}" in out
    assert "time    about" not in out
    assert main(["status", str(tmp_path / "runs" / "tiny")]) == 0
    assert why in " ".join(capsys.readouterr().out.split())  # in lines as wide as the terminal


def test_a_narrower_search_in_progress_forgets_no_tuned_run(tmp_path, monkeypatch):
    """The list of runs that is written before it says so too."""
    values = tuned(tmp_path, decoders=["bilinear", "nearest"], seeds=[0], tune={"seeds": [5]})
    sweep(build_config(values))
    folder = tmp_path / "runs" / "tiny"
    before = [(r["decoder"], r["variant"]["setting"]) for r in store.read_plan(folder)["runs"]]
    monkeypatch.setattr(running, "_run", lambda plan, console: (130, {}))
    _, code, _ = sweep(build_config(values | {"decoders": ["deconv"]}))
    assert code == 130
    rows = store.read_plan(folder)["runs"]
    assert [(r["decoder"], r["variant"]["setting"]) for r in rows if not r.get("awaited")] == [
        *before,
        ("deconv", "fixed"),
    ]
    assert [(r["decoder"], r["awaited"]) for r in rows if r.get("awaited")] == [
        ("deconv", "the search has not chosen its setting yet")
    ]


def test_fixed_and_tuned_of_each_decoder_stand_together_when_one_is_not_tuned(tmp_path):
    values = tuned(tmp_path, decoders=["bilinear", "nearest", "deconv"], seeds=[0], tune={"seeds": [5]})
    sweep(build_config(values))
    folder = tmp_path / "runs" / "tiny"
    manifest = json.loads((folder / "sweep.json").read_text())
    tuned_ones = [r for r in manifest["runs"] if r["variant"]["setting"] == "tuned" and r["decoder"] != "bilinear"]
    manifest["runs"] = [r for r in manifest["runs"] if r["variant"]["setting"] == "fixed"] + tuned_ones[::-1]
    (folder / "sweep.json").write_text(json.dumps(manifest))
    assert [(r["decoder"], r["setting"]) for r in make_table(folder).rows] == [
        ("bilinear", "fixed"), ("nearest", "fixed"), ("nearest", "tuned"), ("deconv", "fixed"), ("deconv", "tuned"),
    ]  # fmt: skip


def test_what_a_decoder_does_not_take_is_not_chosen_for_it_whatever_the_points(tmp_path):
    """Of Halton's points all differ in each key."""
    search = {"recipe.lr": {"low": 0.001, "high": 0.01}, "decoder.init": ["nearest", "icnr"]}
    own = {"search": search, "trials": 3, "seeds": [5]}
    values = tuned(tmp_path, decoders=["bilinear", "subpixel"], seeds=[0], tune=own)
    _, code, out = sweep(build_config(values))
    assert code == 0, out
    rows = {r["decoder"]: r["choice"] for r in store.read_plan(tmp_path / "runs" / "tiny")["runs"] if "choice" in r}
    assert {d: sorted(choice["values"]) for d, choice in rows.items()} == {
        "bilinear": ["recipe.lr"], "subpixel": ["decoder.init", "recipe.lr"],
    }  # fmt: skip


def test_settings_that_make_other_batches_are_noted(tmp_path):
    own = {"search": {"recipe.batch_size": [2, 3]}, "seeds": [5]}
    sweep(build_config(tuned(tmp_path, decoders=["bilinear"], seeds=[0], tune=own)))
    notes = make_table(tmp_path / "runs" / "tiny").notes
    assert (
        "Tuned decoders differ in batch_size, and so in their batches; their differences carry that noise too." in notes
    )
