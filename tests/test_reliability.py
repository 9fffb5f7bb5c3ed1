"""What docs/reliability.md promises of one runner: damage, changes after the plan, stops."""

import io
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from segbench import store
from segbench.errors import UserError
from segbench.launch.base import Launcher, caught_signals
from segbench.outcomes import Done, Ended, Failed, Stopped
from segbench.report.formats import as_csv
from segbench.report.table import make_table
from segbench.runs import Cohort, make_cohorts
from segbench.sweep.plan import make_plan
from segbench.training import control
from segbench.training.work import work
from tests.conftest import segbench
from tests.test_sweep import same, sweep


def folder_of(config, decoder="nearest"):
    return next(run.folder for run in make_plan(config).runs if run.title == decoder)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def edit_score(path):
    row = json.loads(path.read_text())
    row["last_loss"] = 0.0
    path.write_text(json.dumps(row))


def other_version(path):
    row = json.loads(path.read_text())
    row["result_version"] += 1
    path.write_text(json.dumps(row))


def other_counts(path):
    with np.load(path) as arrays:
        changed = {k: v + 1 if k == "region" else v for k, v in arrays.items()}
    np.savez_compressed(path, **changed)


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("result.json", truncate, "result.json is damaged (Expecting"),
        ("result.json", edit_score, "result.json is damaged or was edited (its checksum differs)"),
        ("result.json", other_version, "result.json is damaged or was edited (its checksum differs)"),
        ("result.json", lambda path: path.write_text("[]"), "result.json is damaged (it is no result)"),
        ("counts.npz", truncate, "counts.npz is damaged or was edited (its checksum differs)"),
        ("counts.npz", other_counts, "counts.npz is damaged or was edited (its checksum differs)"),
        ("counts.npz", os.unlink, "counts.npz is missing"),
        ("decoder.safetensors", truncate, "decoder.safetensors is damaged or was edited"),
        ("history.csv", truncate, "history.csv is damaged or was edited"),
        ("config.yaml", truncate, "config.yaml is damaged or was edited"),
    ],
)
def test_a_damaged_result_is_named_set_aside_and_made_again(make_config, name, harm, said):
    config = make_config(decoders=["nearest", "bilinear"])
    first, _, _ = sweep(config)
    before = as_csv(make_table(first["nearest", 0].folder.parent, columns=("n", "score")))
    folder = first["nearest", 0].folder
    harm(folder / name)

    table = make_table(folder.parent)
    assert [row["n"] for row in table.rows] == [0, 1]  # a hole, not a number
    assert any("damaged" in note and name in note for note in table.notes), table.notes

    again, code, out = sweep(config)
    assert code == 0
    assert said in out
    assert "1 done before, 1 to do" in out
    assert (folder.parent / "damaged" / f"{folder.name}-1").is_dir()
    assert as_csv(make_table(folder.parent, columns=("n", "score"))) == before
    assert len(again) == 2
    assert all(store.read_row(result.folder) for result in again.values())


def test_a_damaged_checkpoint_is_set_aside_and_the_run_made_anew(make_config, tmp_path):
    undisturbed, _, _ = sweep(make_config(decoders=["nearest"], name="undisturbed"))
    config = make_config(decoders=["nearest"])
    folder = folder_of(config)
    folder.mkdir(parents=True)
    (folder / "checkpoint-00000002-0123456789abcdef.pt").write_bytes(b"half a checkpoint")
    (folder / ".result.json.host-1.tmp").write_bytes(b"{")
    results, code, out = sweep(config)
    assert code == 0
    assert "damaged-checkpoint-00000002-0123456789abcdef.pt (its checksum differs): set aside" in out
    assert same(results["nearest", 0], undisturbed["nearest", 0])
    assert not list(folder.glob("*checkpoint*"))
    assert not list(folder.glob(".*"))


def test_results_are_checked_against_another_implementation(make_config):
    """The checksums are plain SHA-256, as `sha256sum` gives them."""
    results, _, _ = sweep(make_config(decoders=["nearest"]))
    row, folder = results["nearest", 0].row, results["nearest", 0].folder
    for name, checksum in row["files"].items():
        said = subprocess.run(["sha256sum", str(folder / name)], capture_output=True, text=True, check=True).stdout
        assert said.split()[0] == checksum


FICKLE = """
from segbench.data.shapes import Shapes
from segbench.upsamplers import Bilinear

class Fickle(Bilinear):
    pass

class Data(Shapes):
    pass
"""


def test_a_plug_in_that_changes_after_the_plan_is_not_trained_under_the_old_key(make_config, tmp_path):
    plugin = tmp_path / "fickle.py"
    plugin.write_text(FICKLE)
    config = make_config(decoders=[f"{plugin}:Fickle", "nearest"])
    (cohort,) = make_cohorts(make_plan(config).runs, lambda run: 0)
    plugin.write_text(FICKLE.replace("pass", "other = True", 1))
    ended = work(cohort, 1, lambda *_: None, lambda: False)
    fickle, nearest = cohort.runs
    assert ended.outcomes[nearest.key] == Done()
    assert "the source of 'Fickle' changed after the sweep was planned" in ended.outcomes[fickle.key].failure.reason
    assert (store.is_done(fickle.folder), store.is_done(nearest.folder)) == (False, True)
    _, code, out = sweep(config)
    assert code == 0
    assert "2 runs, 1 done before, 1 to do" in out


def test_data_that_change_after_the_plan_are_not_trained_on_under_the_old_key(make_config, tmp_path):
    plugin = tmp_path / "fickle.py"
    plugin.write_text(FICKLE)
    (cohort,) = make_cohorts(make_plan(make_config(data={"name": f"{plugin}:Data"})).runs, lambda run: 0)
    plugin.write_text(FICKLE + "\n    other = True\n")
    ended = work(cohort, 1, lambda *_: None, lambda: False)
    for outcome in ended.outcomes.values():
        assert isinstance(outcome, Failed)
        assert outcome.failure.user_error
        assert "the data changed after the sweep was planned" in outcome.failure.reason
    assert not any(store.is_done(run.folder) for run in cohort.runs)


def test_the_state_is_saved_every_so_many_minutes(make_config, monkeypatch):
    """Of 10 steps of 25 s each, at most a minute is lost: the first step after it saves, and the last one."""
    planned = make_plan(make_config(decoders=["nearest"], recipe={"steps": 10}, launch={"checkpoint_minutes": 1}))
    now, saved = [0.0], []
    monkeypatch.setattr(control, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    monkeypatch.setattr(store, "write_checkpoint", lambda folder, step, data: saved.append(step))

    def report(phase, *_):
        now[0] += 25 * (phase == "train")

    ended = work(Cohort(tuple(planned.runs), 0), 1, report, lambda: False)
    assert set(ended.outcomes.values()) == {Done()}
    assert saved == [3, 6, 9, 10]


def test_a_stop_at_any_time_changes_nothing(make_config, tmp_path):
    """After each step and each image of each evaluation, the one in mid-training included: the same files."""
    planned = make_plan(make_config(evaluation={"every": 2}, recipe={"steps": 5}, decoders=["nearest", "deconv"])).runs

    def run(name, stop_at):
        asked = [0]

        def should_stop():
            asked[0] += 1
            return asked[0] == stop_at

        cohort = Cohort(tuple(replace(r, folder=tmp_path / name / r.folder.name) for r in planned), 0)
        ended = work(cohort, 1, lambda *_: None, should_stop)
        assert set(ended.outcomes.values()) == {Done() if stop_at is None else Stopped()}
        if stop_at is not None:
            assert {store.read_json(r.folder / store.STATUS)["state"] for r in cohort.runs} == {"stopped"}
            assert set(work(cohort, 1, lambda *_: None, lambda: False).outcomes.values()) == {Done()}
        files = {
            (r.title, name): (r.folder / name).read_bytes()
            for r in cohort.runs
            for name in (store.WEIGHTS, store.HISTORY)
        }
        assert not [path for r in cohort.runs for path in r.folder.glob("*checkpoint*")]
        return asked[0], files, {r.title: store.read_result(r.folder).counts for r in cohort.runs}

    asks, files, counts = run("undisturbed", None)
    assert asks == 5 + 2 * 3 + 3  # steps, images of two evaluations in mid-training and of the last one
    for stop_at in range(1, asks + 1):
        _, again, counted = run(f"stopped-{stop_at}", stop_at)
        assert again == files, stop_at
        assert all((counted[t][k] == counts[t][k]).all() for t in counts for k in counts[t]), stop_at


def test_a_signal_that_is_ignored_stays_ignored():
    """As under nohup: a sweep goes on when its terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with caught_signals() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert caught == [signal.SIGUSR1]


def test_only_temporary_files_of_dead_processes_are_removed(tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    host = socket.gethostname()
    names = [f".sweep.json.{host}-{ended.pid}.tmp", f".sweep.json.{host}-{os.getpid()}.tmp", ".sweep.json.far-1.tmp"]
    for name in [*names, ".odd.tmp", "sweep.json"]:
        (tmp_path / name).touch()
    store.tidy_sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[1:], ".odd.tmp", "sweep.json"])


def test_status_of_a_folder_that_holds_nothing(tmp_path):
    assert "no sweep" in segbench("status", "--runs-dir", tmp_path).stderr


def sweep_that_is_interrupted(make_config, finishes):
    """`_Sweep` of which a signal comes while its last cohort ends, or is stopped."""
    from segbench.sweep.run import _Sweep

    config = make_config(decoders=["nearest"])
    plan = make_plan(config)

    class Interrupted(Launcher):
        def start(self, cohort, place):
            os.kill(os.getpid(), signal.SIGINT)
            if finishes:
                return work(cohort, self.threads, lambda *_: None, lambda: False)
            return Ended.alike(cohort, Stopped())

        def poll(self, handle):
            return handle

        def stop(self, handle):
            pass

        def kill(self, handle):
            pass

    console = Console(file=io.StringIO(), width=200)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("segbench.launch.base.load", lambda launch: (Interrupted, {}))
            return _Sweep(plan, console).run(), console.file.getvalue().strip()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_while_the_last_cohort_ends_is_no_stop(make_config):
    assert sweep_that_is_interrupted(make_config, True) == (0, "done seed 0: nearest")
    # And while it does not, it is one.
    code, out = sweep_that_is_interrupted(lambda **changes: make_config(**changes, name="other"), False)
    assert (code, out) == (130, "stopped; the same command goes on from what is saved")


def test_what_cannot_be_read_is_not_taken_for_damaged(make_config):
    config = make_config(decoders=["nearest"])
    results, _, _ = sweep(config)
    folder = results["nearest", 0].folder
    (folder / store.COUNTS).rename(folder / "kept")
    (folder / store.COUNTS).mkdir()
    for _ in range(2):
        with pytest.raises(UserError, match=r"^cannot read .*counts\.npz: Is a directory$"):
            sweep(config)
    assert folder.is_dir()
    assert not (folder.parent / "damaged").exists()
    (folder / store.COUNTS).rmdir()
    (folder / "kept").rename(folder / store.COUNTS)
    assert "1 done before, 0 to do" in sweep(config)[2]


def test_cohorts_are_formed_by_what_is_saved(make_config):
    runs = make_plan(make_config(decoders=["nearest", "bilinear", "deconv"])).runs
    cohorts = make_cohorts(runs, lambda run: 2 if run.title == "deconv" else 0)
    assert [(len(c.runs), c.start_step) for c in cohorts] == [(2, 0), (1, 2)]
    with pytest.raises(UserError):
        make_plan(make_config(decoders=["nearest"], data={"size": -1}))
