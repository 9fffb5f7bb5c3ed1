"""The Ray launcher, on real clusters of this machine: the same numbers as local, whatever dies."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from segbench import store
from segbench.config_file import load_config
from segbench.errors import UserError
from segbench.runs import make_cohorts
from segbench.sweep.estimate import _memory
from segbench.sweep.plan import make_plan
from segbench.sweep.run import run_sweep
from tests.conftest import ROOT, WHOLE, until
from tests.test_sweep import all_same, in_terminal, in_training, slow_sweep, sweep

ray = pytest.importorskip("ray", reason="ray is not installed; pip install 'segbench[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COMMAND = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", "--block"]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    PORT = free.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def environment():
    """A place of our own, apart from other clusters of this machine, and no token in the home of who runs the tests."""
    with (
        tempfile.TemporaryDirectory(
            prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
        ) as place,  # short for sockets
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {"TMPDIR": place, "AUTH_MODE": "disabled", "USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(f"RAY_{name}", value)
        yield


def in_cluster():
    return os.environ | {"PYTHONPATH": str(ROOT)}


def node(*options, wrap=()):
    """A node of the cluster: processes in a group of their own."""
    command = [*wrap, *COMMAND, "--object-store-memory=100000000", *options]
    return subprocess.Popen(
        command, env=in_cluster(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def family(pid):
    """The process and all that descends from it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def kill(process):
    for member in reversed(family(process.pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def await_nodes(number):
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address=127.0.0.1:{PORT}"]

    def there():
        status = subprocess.run(command, env=in_cluster(), capture_output=True, text=True, check=False)
        return status.stdout.count(" node_") >= number

    until(there, 90)


@contextmanager
def cluster(*workers):
    """A head without CPUs, where the driver is, and a node for each of ``workers``; yields their processes."""
    nodes = [node("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")]
    try:
        await_nodes(1)
        for wrap in workers:  # one by one, lest two choose the same port
            nodes.append(node(f"--address=127.0.0.1:{PORT}", "--num-cpus=1", wrap=wrap))
            await_nodes(len(nodes))
        yield nodes[1:]
    finally:
        for process in nodes:
            if process.poll() is None:
                kill(process)


RAY = {"launcher": "ray", "jobs": None, "checkpoint_minutes": 1e-9}


def test_a_node_that_is_killed_loses_nothing(make_config, tmp_path):
    """Two nodes with a CPU each; a worker is killed in mid-training, and then a node. All goes on from checkpoints."""
    two_seeds = slow_sweep(tmp_path, hold_s=5)  # until the worker's successor is at work too
    config = make_config(**two_seeds, name="ray", launch=RAY | {"address": f"127.0.0.1:{PORT}"})
    folder = Path(config.runs_dir) / "ray"
    with cluster((), ()) as nodes:
        seen = []

        def steps():
            return [store.newest_checkpoint(f)[0] for f in folder.glob("Slow-*")]

        def at_work():
            return set((tmp_path / "steps").read_text().split())

        def disturb():
            until(lambda: len(steps()) == 2 and min(steps()) > 0)
            os.kill(int(at_work().pop()), signal.SIGKILL)
            until(lambda: len(at_work()) == 3)
            kill(nodes[1])
            seen.extend(["worker", "node"])
            (tmp_path / "go").touch()

        thread = threading.Thread(target=disturb)
        thread.start()
        results, code, out = sweep(config)
        thread.join()
    assert code == 0, out
    assert seen == ["worker", "node"]
    begun = Counter((tmp_path / "steps").read_text().split())
    assert len(begun) >= 4  # two processes, one in place of the worker, one or two in place of the node's
    assert sum(begun.values()) <= 24 * 2 + len(begun)  # each did again what it was in the midst of, no more
    assert all_same(results, sweep(make_config(**two_seeds, name="local"))[0])
    assert not list(folder.glob("*/*checkpoint*"))
    assert not list(folder.glob(".*.tmp"))
    assert list((folder / ".locks").iterdir()) == []


def test_where_the_run_folder_is_not_shared_the_results_come_back(make_config, tmp_path):
    """The only node with CPUs has an empty file system in place of the folder that holds the runs."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount name space of its own needs rights that this user lacks")
    changes = slow_sweep(tmp_path, seeds=[0])
    launch = RAY | {"address": f"127.0.0.1:{PORT}"}
    config = make_config(**changes, name="ray", launch=launch)
    Path(config.runs_dir).mkdir()
    hidden = f'mount -t tmpfs tmpfs {config.runs_dir} && exec "$@"'
    with cluster(("unshare", "--mount", "sh", "-c", hidden, "sh")):
        with pytest.raises(UserError, match=r"wants 1 CPUs \(launch.threads\) and a GPU"):
            run_sweep(make_config(launch=launch, trainer={"accelerator": "gpu"}), Console(file=io.StringIO()))

        def disturb():
            until(lambda: in_training(tmp_path, 1))
            os.kill(int((tmp_path / "steps").read_text().split()[0]), signal.SIGKILL)
            (tmp_path / "go").touch()

        thread = threading.Thread(target=disturb)
        thread.start()
        results, code, out = sweep(config)
        thread.join()
        assert code == 0, out
    assert len(set((tmp_path / "steps").read_text().split())) == 2  # one in place of that which was killed
    assert all_same(results, sweep(make_config(**changes, name="local"))[0])
    assert all(store.read_row(result.folder) for result in results.values())
    assert (results["nearest", 0].folder / "live" / "metrics.csv").is_file()


def test_a_failure_on_a_node_comes_back_with_its_traceback(make_config, tmp_path):
    (tmp_path / "bad.py").write_text(
        f"{WHOLE}\n"
        "class Bad(Whole):\n    def forward(self, features, image):\n"
        "        if image.shape[-1] == 64: raise RuntimeError('broken there')\n"
        "        return super().forward(features, image)\n"
    )
    config = make_config(decoders=["nearest", f"{tmp_path / 'bad.py'}:Bad"], launch={"launcher": "ray"})
    results, code, out = sweep(config)
    assert code == 1
    assert list(results) == [("nearest", 0)]
    assert "failed Bad-s0: RuntimeError: broken there" in out


GREEDY = (
    WHOLE
    + """
import time
import torch

class Greedy(Whole):
    def forward(self, features, image):
        if self.training and image.shape[-1] == 64:
            kept = torch.ones({number}, dtype=torch.uint8)
            time.sleep(60)
        return super().forward(features, image)
"""
)


def test_out_of_memory_is_told_and_tried_again_in_halves(make_config, monkeypatch, tmp_path):
    """Ray watches the memory, and ends a task that takes more than it is told to allow."""
    memory = psutil.virtual_memory()
    if memory.available < 14e9 or _memory() < 0.99 * memory.total:
        pytest.skip(
            f"needs 14 GB of free memory, not shared with a control group; here are {memory.available / 1e9:.0f}"
        )
    (tmp_path / "greedy.py").write_text(GREEDY.format(number=9_000_000_000))
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{1 - (memory.available - 6e9) / memory.total:.3f}")
    decoders = ["nearest", f"{tmp_path / 'greedy.py'}:Greedy"]
    results, code, out = sweep(make_config(decoders=decoders, launch={"launcher": "ray", "on_oom": "split"}))
    assert code == 1
    assert list(results) == [("nearest", 0)]
    assert "out of memory seed 0: nearest-s0 and Greedy-s0 again" in out
    assert "failed Greedy-s0: out of memory: with launch.on_oom=split" in out
    assert "Ray ended its task" in out


def test_a_task_that_a_cluster_tries_for_ever_is_given_up(make_config, monkeypatch):
    """By Ray's own default a task that it ended for lack of memory begins again without end, and nobody is told."""
    from segbench.launch.ray import RETRIES, _task

    (cohort,) = make_cohorts(make_plan(make_config()).runs, lambda run: 0)
    said = {f"begun {cohort.runs[0].key}": RETRIES + 1}
    board = SimpleNamespace(say=SimpleNamespace(remote=lambda more, asked: said | more))
    monkeypatch.setattr(ray, "get", lambda value: value)
    ended, files = _task(board, cohort, 1, ".", Path("marker"))
    (failure,) = {ended.outcomes[run.key].failure for run in cohort.runs}
    assert failure.out_of_memory
    assert "Ray ended its task 4 times" in failure.reason
    assert files == {}
    assert not any(run.folder.exists() for run in cohort.runs)


def test_ctrl_c_saves_the_state_and_the_same_command_goes_on(write_sweep, tmp_path):
    path = write_sweep(**slow_sweep(tmp_path), launch={"launcher": "ray", "jobs": 2})
    process = in_terminal([sys.executable, "-m", "segbench.cli", "sweep", str(path)])
    runs = tmp_path / "runs" / "tiny"
    until(lambda: in_training(tmp_path, 2))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert {json.loads(p.read_text())["state"] for p in runs.glob("*/status.json")} == {"stopped"}
    steps = [store.newest_checkpoint(f)[0] for f in runs.glob("*-s*")]
    assert min(steps) > 0
    (tmp_path / "go").touch()
    results, code, _ = sweep(load_config(path))
    assert code == 0
    assert not ray.is_initialized()
    assert not list((runs / ".locks").iterdir())
    assert not list(runs.glob(".*.tmp"))
    other = [f"runs_dir={tmp_path / 'other'}", "launch.launcher=local", "launch.jobs=2"]
    assert all_same(results, sweep(load_config(path, other))[0])


def test_what_cannot_be_is_said_in_a_line(make_config):
    config = make_config(launch={"launcher": "ray", "address": "127.0.0.1:1"})
    with pytest.raises(UserError, match=r"launch.address: no Ray cluster at '127\.0\.0\.1:1'"):
        run_sweep(config, Console(file=io.StringIO()))
