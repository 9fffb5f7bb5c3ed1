"""Launchers as plug-ins: a user's in one file, the loop that all share, and what is said of one that is wrong."""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from segbench import store
from segbench.config import LaunchConfig
from segbench.config_file import build_config, load_config
from segbench.errors import UserError
from segbench.launch.base import KILLS, Launcher, Progress, load, run_until
from segbench.outcomes import Done, Ended, Failed, Stopped
from segbench.registry import LAUNCHERS
from segbench.sweep.plan import code_files, make_plan
from segbench.sweep.run import run_sweep
from tests.conftest import ROOT, segbench, tiny, until
from tests.test_sweep import DROPOUT, all_same, in_terminal, in_training, slow_sweep, sweep

OWN = ROOT / "experiments" / "plug_in_a_launcher" / "subprocesses.py"


def command(path, *overrides):
    return [sys.executable, "-m", "segbench.cli", "sweep", str(path), *overrides]


def states(folder):
    return {store.read_json(path)["state"] for path in folder.glob("*/status.json")}


# A user's launcher


def test_a_launcher_is_one_file_and_gives_the_same_numbers(make_config, tmp_path):
    assert len(OWN.read_text().splitlines()) < 80
    (tmp_path / "drop.py").write_text(DROPOUT)
    changes = {"decoders": [f"{tmp_path / 'drop.py'}:Dropping", "deconv"], "seeds": [0, 1]}
    launch = {"launcher": f"{OWN}:Subprocesses", "params": {"nice": 1}, "jobs": 2}
    results, code, out = sweep(make_config(**changes, launch=launch, name="own"))
    assert code == 0, out
    assert f"runs the code in {OWN}" in out
    assert all_same(results, sweep(make_config(**changes, name="local"))[0])


@pytest.mark.slow
def test_a_stop_reaches_a_user_s_launcher_and_the_same_command_goes_on(write_sweep, tmp_path):
    path = write_sweep(**slow_sweep(tmp_path), launch={"launcher": f"{OWN}:Subprocesses", "jobs": 2})
    process = in_terminal(command(path))
    until(lambda: in_training(tmp_path, 2))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    folder = tmp_path / "runs" / "tiny"
    assert states(folder) == {"stopped"}
    assert min(store.newest_checkpoint(run)[0] for run in folder.glob("*-s*")) > 0
    (tmp_path / "go").touch()
    results, code, _ = sweep(load_config(path))
    assert code == 0
    assert not list((folder / ".locks").iterdir())
    other = [f"runs_dir={tmp_path / 'other'}", "launch.launcher=local"]
    assert all_same(results, sweep(load_config(path, other))[0])


IMPATIENT = """
import sys
sys.path.append({folder!r})
from segbench.launch.local import Local
from subprocesses import Subprocesses

class ImpatientLocal(Local):
    grace_s = 0.2

class ImpatientSubprocesses(Subprocesses):
    grace_s = 0.2
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ImpatientLocal", "ImpatientSubprocesses"])
def test_what_does_not_stop_is_killed_after_the_grace(write_sweep, tmp_path, name):
    """A step that takes for ever asks no one whether to stop."""
    (tmp_path / "impatient.py").write_text(IMPATIENT.format(folder=str(OWN.parent)))
    changes = slow_sweep(tmp_path, seeds=[0], hold_s=10_000)
    path = write_sweep(**changes, launch={"launcher": f"{tmp_path / 'impatient.py'}:{name}"})
    process = in_terminal(command(path))
    until(lambda: (tmp_path / "steps").exists() and (tmp_path / "steps").read_text())
    cohort = psutil.Process(int((tmp_path / "steps").read_text()))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "stopped; the same command goes on" in err
    assert "failed" not in err
    until(lambda: not cohort.is_running() or cohort.status() == psutil.STATUS_ZOMBIE)
    assert "2 runs: 2 killed" in segbench("status", tmp_path / "runs" / "tiny").stdout
    (tmp_path / "go").touch()
    _, code, out = sweep(load_config(path, ["launch.launcher=local"]))
    assert code == 0, out


def test_an_installed_package_announces_a_launcher(tmp_path, monkeypatch):
    info = tmp_path / "announcing-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: announcing\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[segbench.launch]\nmine = announcing_launcher:Mine\n")
    (tmp_path / "announcing_launcher.py").write_text(
        "from segbench.launch.local import Local\nclass Mine(Local):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = build_config(tiny(launch={"launcher": "mine"}))
    assert load(config.launch)[0].__name__ == "Mine"
    assert code_files(config, launches=True) == [tmp_path / "announcing_launcher.py"]
    with pytest.raises(UserError, match="there is: local, mine, ray, slurm"):
        load(LaunchConfig(launcher="mist"))


# The loop


class Fake(Launcher):
    """Runs nothing: each cohort is polled some times, and has then ended."""

    def __init__(self, cohorts=(), launch=None, jobs=1, threads=1):
        super().__init__(cohorts, launch or LaunchConfig(), jobs, threads)
        self.running, self.most, self.calls = {}, 0, []

    def start(self, cohort, place):
        assert place not in self.running
        self.running[place] = [cohort, place, 3 + place]
        self.most = max(self.most, len(self.running))
        return self.running[place]

    def poll(self, handle):
        handle[2] -= 1
        if handle[2]:
            return Progress("train", 3 - handle[2], 3)
        del self.running[handle[1]]
        return Ended.alike(handle[0], Done())

    def stop(self, handle):
        self.calls.append("stop")

    def kill(self, handle):
        self.calls.append("kill")

    def wait(self, handles):
        assert [handle[1] for handle in handles] == list(self.running)


def cohorts(number):
    return [SimpleNamespace(runs=[SimpleNamespace(key=str(i))]) for i in range(number)]


@pytest.mark.parametrize("jobs", [1, 3, 20])
def test_so_many_run_at_a_time_each_in_a_place_of_its_own(jobs):
    launcher, asked, ended, progress = Fake(jobs=jobs), cohorts(10), [], []
    run_until([], launcher, asked, lambda *news: progress.append(news), lambda *end: ended.append(end))
    assert launcher.most == min(jobs, 10)
    assert sorted(int(cohort.runs[0].key) for cohort, _ in ended) == list(range(10))
    assert all(end.outcomes == {cohort.runs[0].key: Done()} for cohort, end in ended)
    assert progress[0] == (asked[0], "train", 1, 3)
    assert launcher.calls == []


def test_nothing_starts_after_a_stop():
    launcher, ended = Fake(jobs=2), []
    caught = []
    launcher.wait = lambda handles: caught.append(signal.SIGINT)
    run_until(caught, launcher, cohorts(10), lambda *_: None, lambda *end: ended.append(end))
    assert len(ended) == 2
    assert launcher.calls == ["stop", "stop"]


def test_what_outlives_every_kill_is_left_behind():
    class Undying(Fake):
        grace_s = 0.0

        def poll(self, handle):
            return None

    launcher, ended = Undying(jobs=2), []
    caught = []
    launcher.wait = lambda handles: caught.append(signal.SIGINT)
    run_until(caught, launcher, cohorts(2), lambda *_: None, lambda *end: ended.append(end))
    assert launcher.calls == ["stop"] * 2 + ["kill"] * 2 * KILLS
    assert [end.outcomes for _, end in ended] == [{"0": Stopped()}, {"1": Stopped()}]


# What is wrong is said in a line

BROKEN = """
from segbench.launch.local import Local

def seed(cohort):
    return cohort.runs[0].seed

class Lacks:
    pass

class NoConstructor(Local):
    def __init__(self, *args):
        raise RuntimeError("no\\nroom")

class NoOpening(Local):
    def opened(self):
        raise RuntimeError("no room")

class NoStart(Local):
    def start(self, cohort, place):
        if not seed(cohort):
            raise RuntimeError("no room")
        return super().start(cohort, place)

class NoPoll(Local):
    def poll(self, child):
        if not seed(child.cohort):
            raise RuntimeError("no room")
        return super().poll(child)

class OddPoll(Local):
    def poll(self, child):
        return super().poll(child) if seed(child.cohort) else "soon"

class NoWait(Local):
    def wait(self, handles):
        raise RuntimeError("no room")

class NoPlace(Local):
    def __init__(self, cohorts, launch, jobs, threads):
        super().__init__(cohorts, launch, 0, threads)
"""


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    return path


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        ("NoStart", "start raises RuntimeError: no room"),
        ("NoPoll", "poll raises RuntimeError: no room"),
        ("OddPoll", "poll raises TypeError: it returned 'soon'; wanted None, Progress or Ended"),
    ],
)
def test_a_cohort_that_the_launcher_fails_on_fails_by_itself(make_config, broken, cls, reason):
    config = make_config(decoders=["nearest"], seeds=[0, 1], launch={"launcher": f"{broken}:{cls}", "jobs": 2})
    results, code, out = sweep(config)
    assert code == 1
    assert list(results) == [("nearest", 1)]
    assert f"failed nearest-s0: launcher '{broken}:{cls}': {reason} (" in out
    assert "1 of 2 runs done" in out
    if cls == "NoStart":  # the process of the others may still hold the run's lock, since it has just been killed
        folder = next(run.folder for run in make_plan(config).runs if run.seed == 0)
        assert store.read_json(folder / store.STATUS)["state"] == "failed"
        assert "broken.py" in (folder / store.TRACEBACK).read_text()


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        ("Lacks", r"launcher '.*broken\.py:Lacks' is no subclass of segbench\.launch\.base\.Launcher"),
        ("NoConstructor", r"launcher '.*broken\.py:NoConstructor': its constructor raises RuntimeError: no room"),
        ("NoOpening", r"launcher '.*broken\.py:NoOpening': opened raises RuntimeError: no room"),
        ("NoWait", r"launcher '.*broken\.py:NoWait': wait raises RuntimeError: no room"),
        ("NoPlace", r"launcher '.*broken\.py:NoPlace': jobs should be 1 or more, not 0"),
        ("Lokal", r"broken\.py has no class 'Lokal'"),
    ],
)
def test_a_broken_launcher_ends_the_sweep_with_a_line(make_config, broken, cls, reason):
    with pytest.raises(UserError, match=reason) as error:
        sweep(make_config(decoders=["nearest"], launch={"launcher": f"{broken}:{cls}"}))
    assert "\n" not in str(error.value)


def test_a_launcher_that_lacks_a_method_is_told_which(make_config, tmp_path):
    (tmp_path / "half.py").write_text(
        "from segbench.launch.base import Launcher\n"
        "class Half(Launcher):\n    def start(self, cohort, place): ...\n    def stop(self, handle): ...\n"
    )
    with pytest.raises(UserError, match=r"launcher '.*half\.py:Half' lacks: kill, poll$"):
        make_plan(make_config(launch={"launcher": f"{tmp_path / 'half.py'}:Half"}))


def test_a_stop_that_raises_kills():
    class NoStop(Fake):
        def stop(self, handle):
            raise RuntimeError("no room")

    launcher, ended = NoStop(), []
    caught = []
    launcher.wait = lambda handles: caught.append(signal.SIGINT)
    run_until(caught, launcher, cohorts(1), lambda *_: None, lambda *end: ended.append(end))
    assert launcher.calls == ["kill"]
    ((_, end),) = ended
    assert isinstance(end.outcomes["0"], Failed)
    assert end.outcomes["0"].failure.reason == "launcher 'local': stop raises RuntimeError: no room"


@pytest.mark.parametrize(
    ("launch", "reason"),
    [
        ({"launcher": "lokal"}, r"^unknown launcher 'lokal' \(did you mean 'local'\?\); there is: local, ray, slurm$"),
        ({"launcher": "mine.py"}, r"unknown launcher 'mine\.py'.*write mine\.py:ClassName"),
        ({"params": {"queue": "a"}}, r"^launcher 'local' has no parameter 'queue'; it takes none$"),
        (
            {"launcher": f"{OWN}:Subprocesses", "params": {"nice": "very"}},
            r"launcher '.*' *: nice should be a whole number, not 'very'",
        ),
    ],
)
def test_a_wrong_name_or_parameter_is_told_before_anything_runs(make_config, launch, reason):
    with pytest.raises(UserError, match=reason):
        run_sweep(make_config(launch=launch), Console(file=io.StringIO()))
    assert not Path(make_config().runs_dir).exists()


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_the_launchers_of_clusters_are_extras(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, f"segbench.launch.{name}", raising=False)
    with pytest.raises(UserError, match=rf"'{name}' is not installed; pip install 'segbench\[{name}\]'"):
        LAUNCHERS.load(name)


def test_launchers_are_listed_and_their_files_named():
    out = segbench("list").stdout
    assert re.search(r"launchers\n  local +Cohorts as processes of this machine", out)
    config = build_config(tiny(launch={"launcher": f"{OWN}:Subprocesses"}))
    assert code_files(config, launches=True) == [OWN]
    assert code_files(config) == []  # an export, or a report, launches nothing


@pytest.mark.parametrize(("name", "package"), [("local", "os"), ("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_imports_no_torch(name, package):
    pytest.importorskip(package)
    code = f"import sys, segbench.launch.{name}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
