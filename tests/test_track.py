import csv

import pytest

from segbench import store
from segbench.errors import UserError
from segbench.measures.base import iou, mean_over_classes
from segbench.outcomes import Done, Failed, Stopped
from segbench.runs import make_cohorts
from segbench.sweep.plan import make_plan
from segbench.training import tracking as track
from segbench.training.work import work
from tests.test_failures import FAILING
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
    (midway,) = [r["val_miou"] for r in kept if r["val_miou"]]
    final = 100 * mean_over_classes(iou(results["bilinear", 0].counts["region"].sum(0)))
    assert [(r["step"], float(r["val_miou"])) for r in live if r["val_miou"]] == [("2", float(midway)), ("4", final)]


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
        self.rows, self.fail_in, self.status = [], fail_in, None

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
        assert self.status is None
        self.status = status


def started(folder, *names):
    trackers = track.Trackers(names)
    trackers.start(Run(folder))
    return trackers


def test_rows_are_logged_once_and_all_of_them_after_a_resume(tmp_path, monkeypatch, history):
    recorder = Recorder()
    monkeypatch.setitem(track.MAKERS, "csv", lambda run: recorder)
    trackers = started(tmp_path, "csv")
    for upto in (1, 1, 3):
        trackers.update("k", history[:upto])
    trackers.close("k", "finished")
    assert recorder.rows == [(1, {"loss": 2.0, "lr": 0.1}), (2, {"loss": 1.5, "lr": 0.2}), (2, {"val_miou": 0.3})]
    assert recorder.status == "success"
    resumed = Recorder()
    monkeypatch.setitem(track.MAKERS, "csv", lambda run: resumed)
    started(tmp_path, "csv").update("k", history)
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
    trackers = started(tmp_path, "wandb", "csv")
    trackers.update("k", history)
    trackers.close("k", "finished")
    assert len(good.rows) == 3
    assert good.status == "success"
    note = (tmp_path / "tracking.txt").read_text()
    assert note.startswith("wandb was left out from here")
    assert "the service is down" in note


@pytest.fixture
def ends(make_config, tmp_path, monkeypatch):
    """Do a cohort in this process, asked to stop after so many questions; how each run's tracker ended, and when.

    Its plug-in is ``Raises`` or ``EvalRaises`` of `FAILING`.
    """
    (tmp_path / "bad.py").write_text(FAILING)

    def ends(plugin="Raises", stop_after=10**9, **changes):
        asked, recorders, when = [0], {}, {}

        class Timed(Recorder):
            def __init__(self, run):
                super().__init__()
                recorders[run.title], self.title = self, run.title

            def finalize(self, status):
                super().finalize(status)
                when[self.title] = asked[0]

        def should_stop():
            asked[0] += 1
            return asked[0] > stop_after

        monkeypatch.setitem(track.MAKERS, "csv", Timed)
        config = make_config(decoders=["nearest", f"{tmp_path / 'bad.py'}:{plugin}"], **changes)
        (cohort,) = make_cohorts(make_plan(config).runs, lambda run: 0)
        ended = work(cohort, 1, lambda *_: None, should_stop)
        return {title: recorder.status for title, recorder in recorders.items()}, when, recorders, ended

    return ends


def test_a_run_that_fails_in_mid_training_is_closed_as_failed_then(ends):
    statuses, when, recorders, _ = ends("Raises")
    assert statuses == {"nearest": "success", "Raises": "failed"}
    assert when == {"Raises": 1, "nearest": 4 + 3}  # questions whether to stop: in its second step, and after all
    assert len(recorders["Raises"].rows) == 1


def test_a_run_that_fails_in_the_evaluation_is_no_success(ends):
    statuses, _, recorders, ended = ends("EvalRaises")
    assert statuses == {"nearest": "success", "EvalRaises": "failed"}
    assert [type(outcome) for outcome in ended.outcomes.values()] == [Done, Failed]
    assert len(recorders["EvalRaises"].rows) == 4
    assert recorders["nearest"].rows[-1][0] == 4
    assert set(recorders["nearest"].rows[-1][1]) == {"val_miou", "val_biou@0.02"}


@pytest.mark.parametrize("stop_after", [0, 2, 5])
def test_a_stop_closes_the_rest_as_stopped(ends, stop_after):
    """In training, and in the evaluation: MLflow's word for it, which the others take for no success."""
    statuses, _, _, ended = ends("Raises", stop_after)
    assert Stopped() in ended.outcomes.values()
    assert statuses == {"nearest": "KILLED", "Raises": "KILLED" if stop_after == 0 else "failed"}


def test_an_exception_that_ends_the_cohort_closes_all_as_failed(ends, monkeypatch):
    from segbench.training import cohort

    def broken(*_):
        raise OSError("a loader worker died")

    monkeypatch.setattr(cohort, "Batches", broken)
    statuses, _, _, ended = ends()
    assert {type(outcome) for outcome in ended.outcomes.values()} == {Failed}
    assert statuses == {"nearest": "failed", "Raises": "failed"}


@pytest.mark.parametrize(("ending", "state"), [("finished", "FINISHED"), ("failed", "FAILED"), ("stopped", "KILLED")])
def test_mlflow_says_how_a_run_ended(tmp_path, monkeypatch, ending, state):
    """In its own files."""
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = Run(tmp_path / "run")
    run.config = type("Config", (), {"name": "tiny"})
    trackers = track.Trackers(["mlflow"])
    trackers.start(run)
    trackers.update("k", [{"step": 1, "loss": 2.0}])
    trackers.close("k", ending)
    assert not (tmp_path / "run" / "tracking.txt").exists(), (tmp_path / "run" / "tracking.txt").read_text()
    client = MlflowClient(f"file:{tmp_path / 'mlruns'}")
    (found,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert (found.info.status, found.data.metrics) == (state, {"loss": 2.0})


def test_runs_of_wandb_are_their_own_and_end_by_themselves(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    codes = {}
    finish = wandb.sdk.wandb_run.Run.finish
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run, "finish",
        lambda self, exit_code=None, **kw: codes.__setitem__(self.id, exit_code) or finish(self, exit_code, **kw),
    )  # fmt: skip
    trackers = track.Trackers(["wandb"])
    for key in ("finished", "failed", "stopped"):
        run = Run(tmp_path / key)
        run.key, run.config = key, type("Config", (), {"name": "tiny"})
        run.folder.mkdir()
        trackers.start(run)
    for key in trackers.runs:
        trackers.update(key, [{"step": 1, "loss": 2.0}])
        trackers.close(key, key)
    assert not list(tmp_path.glob("*/tracking.txt"))
    assert codes == {"finished": 0, "failed": 1, "stopped": 255}


def test_a_full_disk_for_the_note_is_no_failure_either(tmp_path, monkeypatch, history):
    def full(path, text):
        raise UserError("the disk is full")

    monkeypatch.setitem(track.MAKERS, "csv", lambda run: Recorder("log_metrics"))
    monkeypatch.setattr(store, "write_text", full)
    trackers = started(tmp_path, "csv")
    trackers.update("k", history)
    assert trackers.loggers["k"] == {}


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
