"""What docs/reliability.md promises beside the kill test: damage, company, memory, and fifty cohorts."""

import io
import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from segbench import store
from segbench.errors import Failure, UserError, out_of_memory
from segbench.launch import Ended, caught_signals, local
from segbench.launch.work import work
from segbench.plan import Cohort, make_cohorts
from segbench.report.formats import as_csv
from segbench.report.table import make_table
from segbench.sweep import plan, run_sweep
from tests.conftest import ROOT, segbench, until
from tests.test_sweep import in_training, same, slow_sweep, sweep


def folder_of(config, decoder="nearest"):
    return next(run.folder for run in plan(config) if run.title == decoder)


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
from segbench.decoders.bilinear import Bilinear

class Fickle(Bilinear):
    pass

class Data(Shapes):
    pass
"""


def test_a_plug_in_that_changes_after_the_plan_is_not_trained_under_the_old_key(make_config, tmp_path):
    plugin = tmp_path / "fickle.py"
    plugin.write_text(FICKLE)
    config = make_config(decoders=[f"{plugin}:Fickle", "nearest"])
    (cohort,) = make_cohorts(plan(config), lambda run: 0)
    plugin.write_text(FICKLE.replace("pass", "other = True", 1))
    ended = work(cohort, 1, lambda *_: None, lambda: False)
    assert ended.died is None
    fickle, nearest = cohort.runs
    assert list(ended.failures) == [fickle.key]
    assert "the source of 'Fickle' changed after the sweep was planned" in ended.failures[fickle.key].reason
    assert (store.is_done(fickle.folder), store.is_done(nearest.folder)) == (False, True)
    _, code, out = sweep(config)
    assert code == 0
    assert "2 runs, 1 done before, 1 to do" in out


def test_data_that_change_after_the_plan_are_not_trained_on_under_the_old_key(make_config, tmp_path):
    plugin = tmp_path / "fickle.py"
    plugin.write_text(FICKLE)
    (cohort,) = make_cohorts(plan(make_config(data={"name": f"{plugin}:Data"})), lambda run: 0)
    plugin.write_text(FICKLE + "\n    other = True\n")
    ended = work(cohort, 1, lambda *_: None, lambda: False)
    assert ended.user_error
    assert "the data changed after the sweep was planned" in ended.died.reason
    assert not any(store.is_done(run.folder) for run in cohort.runs)


def test_a_stop_at_any_time_changes_nothing(make_config, tmp_path):
    """After each step and each image of each evaluation, the one in mid-training included: the same files."""
    planned = plan(make_config(evaluation={"every": 2}, recipe={"steps": 5}, decoders=["nearest", "deconv"]))

    def run(name, stop_at):
        asked = [0]

        def should_stop():
            asked[0] += 1
            return asked[0] == stop_at

        cohort = Cohort(tuple(replace(r, folder=tmp_path / name / r.folder.name) for r in planned), 0)
        ended = work(cohort, 1, lambda *_: None, should_stop)
        assert ended.died is None
        assert ended.stopped == (stop_at is not None)
        if ended.stopped:
            assert {store.read_json(r.folder / store.STATUS)["state"] for r in cohort.runs} == {"stopped"}
            assert work(cohort, 1, lambda *_: None, lambda: False).died is None
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


def command(path):
    return [sys.executable, "-m", "segbench.cli", "sweep", str(path)]


def start(path):
    return subprocess.Popen(command(path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


MEETING = """
import os, time
from segbench.decoders.bilinear import Bilinear

class Meeting(Bilinear):
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
    from segbench.sweep import _Sweep

    config = make_config(decoders=["nearest", "bilinear"])
    sweep(config)
    (cohort,) = make_cohorts(plan(config), lambda run: 0)
    console = Console(file=io.StringIO(), width=200)
    other = _Sweep(cohort.runs, config, lambda *args: True, console)
    other._ended(Ended(cohort, busy=frozenset([cohort.runs[0].key])))
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


HUNGRY = """
import resource, torch
from segbench.decoders.bilinear import Bilinear

class Hungry(Bilinear):
    allowance = 3
    def forward(self, features, image):
        if image.shape[-1] == 64:
            import gc, segbench.lockstep
            count = max(len(m.members) for m in gc.get_objects() if isinstance(m, segbench.lockstep.Lockstep))
            if count > self.allowance:
                soft, hard = resource.getrlimit(resource.RLIMIT_AS)
                used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, hard))
                try:
                    torch.empty(2**31, dtype=torch.uint8).fill_(1)  # memory really runs out
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        return super().forward(features, image)

class Hungry2(Hungry):
    pass

class Greedy(Hungry):
    allowance = 0
"""


def test_out_of_memory_is_told_with_what_to_change(make_config, tmp_path):
    (tmp_path / "hungry.py").write_text(HUNGRY)
    config = make_config(decoders=["nearest", f"{tmp_path / 'hungry.py'}:Greedy"])
    results, code, out = sweep(config)
    assert code == 1
    assert list(results) == [("nearest", 0)]
    assert "failed Greedy-s0: out of memory: with launch.on_oom=split fewer decoders are trained at a time" in out
    assert "recipe.batch_size or recipe.crop" in out


def test_a_cohort_that_is_too_large_is_split_and_gives_the_same_numbers(make_config, tmp_path):
    (tmp_path / "hungry.py").write_text(HUNGRY.replace("allowance = 3", "allowance = 2"))
    names = [f"{tmp_path / 'hungry.py'}:{name}" for name in ("Hungry", "Hungry2")]
    changes = {"decoders": ["nearest", *names, "deconv"]}
    whole = make_config(**changes, name="alone", launch={"on_oom": "split"})
    (tmp_path / "hungry.py").write_text(HUNGRY.replace("allowance = 3", "allowance = 2"))
    results, code, out = sweep(whole)
    assert code == 0, out
    assert "out of memory seed 0: Hungry-s0, Hungry2-s0 again" in out
    assert len(results) == 4
    for decoder in changes["decoders"]:
        alone, code, _ = sweep(make_config(decoders=[decoder], name=f"alone-{decoder[-7:].replace(':', '')}"))
        assert code == 0
        (key,) = alone
        assert same(alone[key], results[key])


def test_a_decoder_that_is_too_large_by_itself_fails_by_itself(make_config, tmp_path):
    (tmp_path / "hungry.py").write_text(HUNGRY)
    decoders = ["nearest", f"{tmp_path / 'hungry.py'}:Greedy"]
    results, code, out = sweep(make_config(decoders=decoders, launch={"on_oom": "split"}))
    assert code == 1
    assert list(results) == [("nearest", 0)]
    assert out.count("failed Greedy-s0: out of memory") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the limit holds on Linux")
def test_what_counts_as_out_of_memory():
    import torch

    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not out_of_memory(RuntimeError("the plug-in is broken"))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, hard))
    try:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(2**33, dtype=torch.uint8)
        with pytest.raises(MemoryError):
            np.ones(2**33, np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert Failure.of(caught.value).out_of_memory


def test_a_cohort_of_which_every_run_is_too_large_is_halved(make_config):
    from segbench.sweep import _Sweep

    config = make_config(decoders=["nearest", "bilinear", "deconv"], launch={"on_oom": "split"})
    runs = plan(config)
    console = Console(file=io.StringIO(), width=200)
    halving = _Sweep(runs, config, lambda *args: True, console)
    (whole,) = make_cohorts(runs, lambda run: 0)
    halving._ended(Ended(whole, died=Failure("killed", out_of_memory=True)))
    assert [[run.title for run in cohort.runs] for cohort in halving.again] == [["nearest", "bilinear"], ["deconv"]]
    assert halving.code == 0
    halving._ended(Ended(halving.again[1], died=Failure("killed", out_of_memory=True)))
    assert halving.code == 1
    assert "failed deconv-s0: killed" in console.file.getvalue()


KILLED = """
import os
from segbench.decoders.bilinear import Bilinear

class Killed(Bilinear):
    def forward(self, features, image):
        if image.shape[-1] == 64:
            os.kill(os.getpid(), 9)
        return super().forward(features, image)
"""


def test_a_process_that_the_system_kills_for_memory_is_told_from_another(make_config, tmp_path, monkeypatch):
    plugin = tmp_path / "killed.py"
    plugin.write_text(KILLED)
    config = make_config(decoders=[f"{plugin}:Killed"])
    monkeypatch.setattr(local, "oom_kills", lambda: 0)
    _, _, out = sweep(config)
    assert "the cohort's process died (signal SIGKILL)" in out
    kills = itertools.count()  # Linux's counter, which goes up
    monkeypatch.setattr(local, "oom_kills", lambda: next(kills))
    _, _, out = sweep(config)
    assert "out of memory" in out
    assert "the system killed the cohort's process" in out


DYING_DATA = """
import os, signal
from multiprocessing import parent_process
from segbench.data.shapes import Shapes
from torch.utils.data import get_worker_info

class Dying(Shapes):
    def __init__(self, split, dies=-1, **params):
        super().__init__(split, **params)
        self.dies = dies
    def read(self, index):
        if get_worker_info() is not None and self.dies == ("train", "val").index(self.split):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)
"""


@pytest.mark.parametrize("split", [0, 1])
def test_a_dead_loader_worker_fails_its_cohort_only(make_config, tmp_path, split):
    (tmp_path / "dying.py").write_text(DYING_DATA)
    config = make_config(
        data={"name": f"{tmp_path / 'dying.py'}:Dying"}, decoders=["nearest"], launch={"workers": 1},
        grid={"data.dies": [split, -1]},
    )  # fmt: skip
    folder, code = run_sweep(config, Console(file=(out := io.StringIO()), width=200))
    assert code == 1
    assert "DataLoader worker" in out.getvalue()
    states = sorted(json.loads(path.read_text())["state"] for path in folder.glob("*/status.json"))
    assert states == ["done", "failed"]


def test_a_loader_worker_that_the_system_kills_for_memory_is_told_from_another(make_config, tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text(DYING_DATA)
    data = {"name": f"{tmp_path / 'dying.py'}:Dying", "dies": 0}
    (cohort,) = make_cohorts(plan(make_config(data=data, launch={"workers": 1})), lambda run: 0)
    kills = itertools.count()
    for count, memory in ((lambda: 0, False), (lambda: next(kills), True)):
        monkeypatch.setattr("segbench.launch.work.oom_kills", count)
        ended = work(cohort, 1, lambda *_: None, lambda: False)
        assert ended.died.out_of_memory == memory
        assert ("out of memory" in ended.died.reason) == memory
        assert "DataLoader worker" in ended.died.reason


SHORT = """
from segbench.decoders.bilinear import Bilinear

class Short(Bilinear):
    def forward(self, features, image):
        if image.shape[-1] == 64:
            raise MemoryError
        return super().forward(features, image)
"""


@pytest.mark.parametrize(("on_oom", "state"), [("split", "stopped"), ("fail", "failed")])
def test_a_run_that_will_be_tried_again_has_not_failed(make_config, tmp_path, on_oom, state):
    """Or another runner would take it for lost."""
    (tmp_path / "short.py").write_text(SHORT)
    config = make_config(decoders=["nearest", f"{tmp_path / 'short.py'}:Short"], launch={"on_oom": on_oom})
    (cohort,) = make_cohorts(plan(config), lambda run: 0)
    ended = work(cohort, 1, lambda *_: None, lambda: False)
    nearest, short = cohort.runs
    assert list(ended.failures) == [short.key]
    assert ended.failures[short.key].out_of_memory
    assert store.read_json(short.folder / store.STATUS)["state"] == state
    assert store.is_done(nearest.folder)


@pytest.mark.slow
def test_nothing_grows_over_fifty_cohorts(make_config, tmp_path):
    """File descriptors, threads and memory of the runner and of the fork server; a cohort's own end with it."""
    import psutil

    config = make_config(
        seeds=list(range(50)), decoders=["nearest"], recipe={"steps": 1}, data={"train": 2, "val": 1, "size": 32},
        launch={"trackers": []},
    )  # fmt: skip
    seen = []

    class Watch(io.StringIO):
        def write(self, text):
            if text.startswith("done seed"):
                me = psutil.Process()
                family = [me, *(c for c in me.children() if "forkserver" in " ".join(c.cmdline()))]
                seen.append([(p.num_fds(), p.num_threads(), p.memory_info().rss / 2**20) for p in family])
            return super().write(text)

    began = time.monotonic()
    _, code = run_sweep(config, Console(file=Watch(), width=200))
    assert code == 0
    figures = np.array(seen)  # (cohorts, processes, figures)
    assert figures.shape == (50, 2, 3)
    early, late = figures[5:15].mean(0), figures[40:].mean(0)
    print(f"\n50 cohorts in {time.monotonic() - began:.0f} s; fds, threads, MiB, of runner and fork server:")
    print(f"cohorts 6 to 15: {early.round(1).tolist()}; 41 to 50: {late.round(1).tolist()}")
    assert (late[:, 0] - early[:, 0]).max() < 1
    assert (late[:, 1] - early[:, 1]).max() < 1
    assert (late[:, 2] - early[:, 2]).max() < 5  # MiB


def test_status_of_a_folder_that_holds_nothing(tmp_path):
    assert "no sweep" in segbench("status", "--runs-dir", tmp_path).stderr


def sweep_that_is_interrupted(make_config, finishes):
    """`_Sweep` of which a signal comes while its last cohort ends, or is stopped."""
    from segbench.sweep import _Sweep

    config = make_config(decoders=["nearest"])
    runs = plan(config)

    def interrupted(cohorts, jobs, threads, launch, on_progress, on_end):
        if finishes:
            work(cohorts[0], threads, lambda *_: None, lambda: False)
        on_end(Ended(cohorts[0], stopped=not finishes))
        return False

    console = Console(file=io.StringIO(), width=200)
    return _Sweep(runs, config, interrupted, console).run(), console.file.getvalue().strip()


def test_an_interrupt_while_the_last_cohort_ends_is_no_stop(make_config):
    assert sweep_that_is_interrupted(make_config, True) == (0, "done seed 0: nearest")
    # And while it does not, it is one.
    code, out = sweep_that_is_interrupted(lambda **changes: make_config(**changes, name="other"), False)
    assert (code, out) == (130, "stopped; the same command goes on from what is saved")


def test_a_lock_that_cannot_be_made_fails_the_cohort_with_the_reason(make_config):
    (cohort,) = make_cohorts(plan(make_config(decoders=["nearest", "bilinear"])), lambda run: 0)
    folder = cohort.runs[0].folder.parent
    folder.mkdir(parents=True)
    (folder / ".locks").touch()
    ended = work(cohort, 1, lambda *_: None, lambda: False)
    assert ended.user_error
    assert "cannot write" in ended.died.reason
    assert ended.busy == frozenset()  # nobody else's


def test_the_end_of_a_process_fails_no_run_of_another(make_config):
    from segbench.sweep import _Sweep

    config = make_config(decoders=["nearest", "bilinear"])
    runs = plan(config)
    console = Console(file=io.StringIO(), width=200)
    other = _Sweep(runs, config, lambda *args: True, console)
    (cohort,) = make_cohorts(runs, lambda run: 0)
    with store.locked(runs[0].folder):  # as another process has it
        other._ended(Ended(cohort, died=Failure("killed")))
    assert list(other.open) == [runs[0].key]
    assert "failed bilinear-s0: killed" in console.file.getvalue()
    assert "nearest" not in console.file.getvalue()


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


def test_a_failure_elsewhere_is_not_tried_again_at_once(make_config, tmp_path):
    """Another runner has just tried and failed: its word is taken."""
    from segbench.sweep import _Sweep

    config = make_config(decoders=["nearest"])
    runs = plan(config)
    console = Console(file=io.StringIO(), width=200)
    waiting = _Sweep(runs, config, lambda *args: True, console)
    store.fail(runs[0].folder, Failure("broken there"))
    assert waiting._wait() == []
    assert waiting.code == 1
    assert "broken there (in another process)" in console.file.getvalue()


def test_cohorts_are_formed_by_what_is_saved(make_config):
    runs = plan(make_config(decoders=["nearest", "bilinear", "deconv"]))
    cohorts = make_cohorts(runs, lambda run: 2 if run.title == "deconv" else 0)
    assert [(len(c.runs), c.start_step) for c in cohorts] == [(2, 0), (1, 2)]
    with pytest.raises(UserError):
        plan(make_config(decoders=["nearest"], data={"size": -1}))
