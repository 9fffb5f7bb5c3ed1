"""Several runners on one folder: each run is done once, and each runner tells its own part."""

import io
import itertools
import re
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from segbench import store
from segbench.errors import Failure
from segbench.outcomes import Busy, Done, Ended, Failed, Lost
from segbench.runs import Cohort, make_cohorts
from segbench.sweep.plan import make_plan
from segbench.training.work import work
from tests.conftest import ROOT, WHOLE, until
from tests.test_sweep import in_training, slow_sweep, sweep


def command(path):
    return [sys.executable, "-m", "segbench.cli", "sweep", str(path)]


def start(path):
    return subprocess.Popen(command(path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


MEETING = (
    WHOLE
    + """
import os, time

class Meeting(Whole):
    "Notes each step and whose it is, and does none until both runners are at work."
    def forward(self, features, image):
        if self.training and image.shape[-1] == 64:
            with open({log!r}, "a") as file:
                file.write(f"{{os.getppid()}}\\n")  # a runner's fork server
            deadline = time.monotonic() + 120
            while len(set(open({log!r}).read().split())) < 2:
                assert time.monotonic() < deadline, "the other runner does not come"
                time.sleep(0.05)
        return super().forward(features, image)
"""
)


@pytest.mark.slow
def test_two_runners_share_the_work(write_sweep, tmp_path):
    plugin, log = tmp_path / "meeting.py", tmp_path / "log"
    plugin.write_text(MEETING.format(log=str(log)))
    path = write_sweep(decoders=[f"{plugin}:Meeting", "nearest"], seeds=[0, 1, 2, 3])
    runners = [start(path) for _ in range(2)]
    ends = [runner.communicate(timeout=300)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], ends
    assert len(log.read_text().split()) == 4 * 4  # each step of each seed once
    done = [re.findall(r"^done seed (\d): (.*)$", out, re.MULTILINE) for out in ends]
    assert all(done), ends  # both had a part
    said = sorted((name, seed) for part in done for seed, names in part for name in names.split(", "))
    assert said == sorted(itertools.product(["Meeting", "nearest"], "0123"))  # each by the one that did it
    sweep_folder = tmp_path / "runs" / "tiny"
    assert all(store.read_row(path.parent) for path in sweep_folder.glob("*/result.json"))
    assert list((sweep_folder / ".locks").iterdir()) == []
    tables = [out[out.index("tiny: shapes") :] for out in ends]
    assert tables[0] == tables[1]


def test_what_another_process_has_done_is_not_said_to_be_ours(make_config):
    from segbench.sweep.run import _Sweep

    config = make_config(decoders=["nearest", "bilinear"])
    plan = make_plan(config)
    sweep(config)
    (cohort,) = plan.cohorts
    console = Console(file=io.StringIO(), width=200)
    other = _Sweep(plan, console)
    other._ended(cohort, Ended({cohort.runs[0].key: Busy(), cohort.runs[1].key: Done()}))
    assert other.open == {}
    assert console.file.getvalue() == "done seed 0: bilinear\n"


@pytest.mark.slow
def test_the_work_of_a_killed_runner_is_taken_over(write_sweep, tmp_path):
    """The second runner waits for the first one's runs, and does them once it is dead."""
    path = write_sweep(**slow_sweep(tmp_path, seeds=[0]), launch={"checkpoint_minutes": 1e-9})
    first = start(path)
    until(lambda: in_training(tmp_path, 1))
    second = start(path)
    time.sleep(4)
    assert second.poll() is None
    first.kill()
    first.communicate()
    until(lambda: len(set((tmp_path / "steps").read_text().split())) == 2)
    (tmp_path / "go").touch()
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 0, out
    assert "done seed 0: Slow, nearest" in out
    assert len((tmp_path / "steps").read_text().split()) <= 24 + 1  # from the last checkpoint


def test_a_lock_is_exclusive_and_leaves_no_file(tmp_path):
    folder = tmp_path / "run-key"
    with store.locked(folder) as mine:
        assert mine
        with store.locked(folder) as other:
            assert not other
        held = [sys.executable, "-c", f"import sys; from pathlib import Path; from segbench import store\n"
                f"with store.locked(Path({str(folder)!r})) as mine: sys.exit(0 if mine else 7)"]  # fmt: skip
        assert subprocess.run(held, cwd=ROOT, check=False).returncode == 7
    assert list((tmp_path / ".locks").iterdir()) == []
    with store.locked(folder) as mine:
        assert mine


def test_only_one_of_many_holds_a_lock(tmp_path):
    """Threads that take and give up one lock, whose file is made and removed all the time."""
    holders, most = [0], [0]

    def work():
        for _ in range(200):
            with store.locked(tmp_path / "run-key") as mine:
                if mine:
                    holders[0] += 1
                    most[0] = max(most[0], holders[0])
                    time.sleep(0.0005)
                    holders[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_a_lock_that_cannot_be_made_fails_the_cohort_with_the_reason(make_config):
    (cohort,) = make_cohorts(make_plan(make_config(decoders=["nearest", "bilinear"])).runs, lambda run: 0)
    folder = cohort.runs[0].folder.parent
    folder.mkdir(parents=True)
    (folder / ".locks").touch()
    ended = work(cohort, 1, lambda *_: None, lambda: False)
    outcomes = [ended.outcomes[run.key] for run in cohort.runs]
    assert all(isinstance(outcome, Failed) and outcome.failure.user_error for outcome in outcomes)  # nobody else's
    assert all("cannot write" in outcome.failure.reason for outcome in outcomes)


def test_the_end_of_a_process_fails_no_run_of_another(make_config):
    from segbench.sweep.run import _Sweep

    config = make_config(decoders=["nearest", "bilinear"])
    plan = make_plan(config)
    runs, console = plan.runs, Console(file=io.StringIO(), width=200)
    other = _Sweep(plan, console)
    with store.locked(runs[0].folder):  # as another process has it
        for cohort in [Cohort((run,), 0) for run in runs]:
            other._ended(cohort, Ended.alike(cohort, Lost(Failure("killed"))))
    assert list(other.open) == [runs[0].key]
    assert "failed bilinear-s0: killed" in console.file.getvalue()
    assert "nearest" not in console.file.getvalue()


def test_a_run_that_says_that_it_failed_is_settled_though_its_lock_is_still_held(make_config):
    """As by a process that has been killed and is not gone yet; else it would be tried again and again."""
    from segbench.sweep.run import _Sweep

    plan = make_plan(make_config(decoders=["nearest"]))
    console = Console(file=io.StringIO(), width=200)
    settling = _Sweep(plan, console)
    with store.locked(plan.runs[0].folder):
        settling._ended(plan.cohorts[0], Ended.alike(plan.cohorts[0], Failed(Failure("its launcher raises"))))
    assert settling.open == {}
    assert settling.code == 1
    assert "failed nearest-s0: its launcher raises" in console.file.getvalue()


def test_a_failure_elsewhere_is_not_tried_again_at_once(make_config, tmp_path):
    """Another runner has just tried and failed: its word is taken."""
    from segbench.sweep.run import _Sweep

    config = make_config(decoders=["nearest"])
    plan = make_plan(config)
    console = Console(file=io.StringIO(), width=200)
    waiting = _Sweep(plan, console)
    store.fail(plan.runs[0].folder, Failure("broken there"))
    assert waiting._wait() == []
    assert waiting.code == 1
    assert "broken there (in another process)" in console.file.getvalue()
