import csv

import pytest

from segbench import store, track
from segbench.errors import UserError
from tests.test_sweep import sweep


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_by_default_holds_what_the_history_holds(make_config):
    results, code, out = sweep(make_config(decoders=["bilinear"], evaluation={"every": 2}))
    assert code == 0, out
    folder = results["bilinear", 0].folder
    live, kept = rows(folder / "live" / "metrics.csv"), rows(folder / "history.csv")
    assert [(r["step"], float(r["loss"])) for r in live if r["loss"]] == [
        (r["step"], float(r["loss"])) for r in kept if r["loss"]
    ]
    assert [r["step"] for r in live if r["val_miou"]] == ["2"]


def test_tensorboard(make_config):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results, code, out = sweep(make_config(decoders=["bilinear"], launch={"trackers": ["tensorboard"]}))
    assert code == 0, out
    folder = results["bilinear", 0].folder
    assert not (folder / "live").exists()
    events = EventAccumulator(str(folder.parent / "tensorboard" / folder.name)).Reload()
    kept = [float(r["loss"]) for r in rows(folder / "history.csv")]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(kept)


@pytest.fixture
def history():
    return [{"step": 1, "loss": 2.0, "lr": 0.1}, {"step": 2, "loss": 1.5, "lr": 0.2}, {"step": 2, "val_miou": 0.3}]


class Run:
    """What `Trackers` needs of a run."""

    title, name, seed, key, variant = "bilinear", "bilinear-s0", 0, "k", {}

    def __init__(self, folder):
        self.folder = folder


class Recorder:
    """A logger that fails when told to."""

    def __init__(self, fail_in=""):
        self.rows, self.fail_in, self.closed = [], fail_in, False

    def _do(self, what):
        if what == self.fail_in:
            raise ConnectionError("the service is down")

    def log_hyperparams(self, params):
        self._do("log_hyperparams")

    def log_metrics(self, values, step):
        self._do("log_metrics")
        self.rows.append((step, values))

    def save(self):
        self._do("save")

    def finalize(self, status):
        self._do("finalize")
        self.closed = True


def test_rows_are_logged_once_and_all_of_them_after_a_resume(tmp_path, monkeypatch, history):
    recorder = Recorder()
    monkeypatch.setitem(track.MAKERS, "csv", lambda run: recorder)
    trackers = track.Trackers({"k": Run(tmp_path)}, ["csv"])
    for upto in (1, 1, 3):
        trackers.update("k", history[:upto])
    trackers.close()
    assert recorder.rows == [(1, {"loss": 2.0, "lr": 0.1}), (2, {"loss": 1.5, "lr": 0.2}), (2, {"val_miou": 0.3})]
    assert recorder.closed
    resumed = Recorder()
    monkeypatch.setitem(track.MAKERS, "csv", lambda run: resumed)
    track.Trackers({"k": Run(tmp_path)}, ["csv"]).update("k", history)
    assert resumed.rows == recorder.rows


@pytest.mark.parametrize("where", ["start", "log_hyperparams", "log_metrics", "save", "finalize"])
def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path, monkeypatch, history, where):
    good = Recorder()

    def broken(run):
        if where == "start":
            raise ConnectionError("the service is down")
        return Recorder(where)

    monkeypatch.setitem(track.MAKERS, "wandb", broken)
    monkeypatch.setitem(track.MAKERS, "csv", lambda run: good)
    trackers = track.Trackers({"k": Run(tmp_path)}, ["wandb", "csv"])
    trackers.update("k", history)
    trackers.close()
    assert len(good.rows) == 3
    assert good.closed
    note = (tmp_path / "tracking.txt").read_text()
    assert note.startswith("wandb was left out from here")
    assert "the service is down" in note


def test_a_full_disk_for_the_note_is_no_failure_either(tmp_path, monkeypatch, history):
    def full(path, text):
        raise UserError("the disk is full")

    monkeypatch.setitem(track.MAKERS, "csv", lambda run: Recorder("log_metrics"))
    monkeypatch.setattr(store, "write_text", full)
    trackers = track.Trackers({"k": Run(tmp_path)}, ["csv"])
    trackers.update("k", history)
    assert trackers.loggers == {}


def test_a_tracker_that_is_not_installed_is_named_before_anything_starts(make_config, monkeypatch):
    if track.importlib.util.find_spec("wandb") is None:
        with pytest.raises(
            UserError, match=r"launch\.trackers: 'wandb' is not installed; pip install 'segbench\[wandb\]'"
        ):
            sweep(make_config(launch={"trackers": ["wandb"]}))
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'segbench\[mlflow\]'"):
        track.require(["csv", "mlflow"])
    with pytest.raises(UserError, match=r"launch\.trackers"):
        make_config(launch={"trackers": ["tensorbord"]})
