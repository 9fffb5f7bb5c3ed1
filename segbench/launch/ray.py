"""Cohorts as tasks of a Ray cluster: an existing one, or one that is started on this machine for the sweep.

Where a node sees the driver's run folder, its tasks work in it as local ones do, and go on from the checkpoints there.
Where it does not, they start anew in a folder of their own, and the finished files are sent to the driver's folder.
"""

import logging
import os
import re
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Any

from segbench import store
from segbench.config import LaunchConfig
from segbench.errors import OUT_OF_MEMORY, Failure, UserError, brief
from segbench.launch.base import Launcher, Progress, blocked
from segbench.outcomes import Busy, Ended, Failed, Lost, Stopped
from segbench.runs import Cohort, Run

try:
    import ray
except ModuleNotFoundError:
    raise UserError("launch.launcher: 'ray' is not installed; pip install 'segbench[ray]'") from None

Files = dict[str, dict[str, bytes]]  # run key -> path within its folder -> contents
RETRIES = 3  # of a task whose worker or node died
OBJECT_STORE_BYTES = 200_000_000  # of a local cluster: results are small


class Board:
    """Where tasks say how often they began and how far they are, and the driver whether to stop.

    Ray starts it again, empty, where it was lost; so the driver says it each time.
    """

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}

    def say(self, more: dict[str, Any], *asked: str) -> dict[str, Any]:
        """Returns what has been said of what is asked, or everything."""
        self.said |= more
        return {key: value for key, value in self.said.items() if key in asked or not asked}


class Ray(Launcher):
    """A task for each cohort, which asks for ``threads`` CPUs and, where its runs are on one, a GPU."""

    def __init__(self, cohorts: Sequence[Cohort], launch: LaunchConfig, jobs: int, threads: int) -> None:
        super().__init__(cohorts, launch, launch.jobs or len(cohorts), threads)
        self.cpus_here = jobs * threads
        self.gpus = int(cohorts[0].runs[0].facts.accelerator == "cuda")
        # A file that no other folder holds: where a task finds it, it works in the driver's run folder.
        name = f".ray-{secrets.token_hex(16)}.{socket.gethostname()}-{os.getpid()}.tmp"
        self.marker = cohorts[0].runs[0].folder.absolute().parent / name
        self.stopping = False

    @classmethod
    def on_cluster(cls, launch: LaunchConfig) -> bool:
        return launch.address is not None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Join the cluster, or start one on this machine.

        Raises:
            UserError: no cluster at ``launch.address``, or none of its nodes is large enough.
        """
        with ExitStack() as stack:
            _connect(self.launch.address, self.cpus_here)
            stack.callback(ray.shutdown)
            nodes = [(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)) for n in ray.nodes() if n["Alive"]]
            if not any(cpus >= self.threads and gpus >= self.gpus for cpus, gpus in nodes):
                wanted = f"{self.threads} CPUs (launch.threads)" + " and a GPU (trainer.accelerator)" * self.gpus
                there = ", ".join(f"{cpus:g} and {gpus:g}" for cpus, gpus in nodes)
                raise UserError(
                    f"launch.launcher: a cohort wants {wanted}; the cluster's nodes have, CPUs and GPUs: {there}"
                )
            node = ray.get_runtime_context().get_node_id()
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
            kept = {"max_restarts": -1, "max_task_retries": -1}
            board: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here, **kept)
            self.board = board.remote()
            # A process for each cohort, which ends with it.
            asked = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_calls=1, max_retries=RETRIES)
            self.task: Any = asked(_task)
            with store.explained(self.marker):
                self.marker.touch()
            stack.callback(self.marker.unlink, missing_ok=True)
            yield

    def start(self, cohort: Cohort, place: int) -> tuple[Any, Cohort]:
        return self.task.remote(self.board, cohort, self.threads, os.getcwd(), self.marker), cohort

    def wait(self, handles: Sequence[tuple[Any, Cohort]]) -> None:
        ray.wait([task for task, _ in handles], timeout=0.2)
        self.said = ray.get(self.board.say.remote({"stop": self.stopping}))

    def poll(self, handle: tuple[Any, Cohort]) -> Progress | Ended | None:
        task, cohort = handle
        if ray.wait([task], timeout=0)[0]:
            return _ended(task, cohort)
        progress = self.said.get(cohort.runs[0].key)
        return Progress(*progress) if progress else None

    def stop(self, handle: tuple[Any, Cohort]) -> None:
        self.stopping = True  # which the board says to all

    def kill(self, handle: tuple[Any, Cohort]) -> None:
        ray.cancel(handle[0], force=True)


def _connect(address: str | None, cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unasked
    here: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    here["_system_config"] = {"task_oom_retries": 0}  # or a task that is too large is tried for ever
    options = {} if address else here
    try:
        if place := re.fullmatch(r"(.+):(\d+)", address or ""):
            socket.create_connection((place[1], int(place[2])), timeout=10).close()  # Ray itself would try for minutes
        # Ray's processes must outlive a Ctrl-C, for the tasks to save their state.
        with blocked({signal.SIGINT, signal.SIGHUP}):
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"launch.address: no Ray cluster at '{address or 'local'}': {brief(error)}") from None


def _ended(task: Any, cohort: Cohort) -> Ended:
    """How a task ended, its files written where it could not do so itself."""
    try:
        ended, files = ray.get(task)
        busy = {run.key: Busy() for run in cohort.runs if run.key in files and not _bring(run, files[run.key])}
        return Ended({**ended.outcomes, **busy})
    except UserError as error:
        return Ended.alike(cohort, Failed(Failure.of(error)))
    except ray.exceptions.OutOfMemoryError:
        died = Failure(f"{OUT_OF_MEMORY} (Ray ended its task)", out_of_memory=True)
    except ray.exceptions.RayError as error:
        died = Failure(f"its Ray task was lost {RETRIES + 1} times ({brief(error)[:200]})")
    return Ended.alike(cohort, Lost(died))


def _bring(run: Run, files: dict[str, bytes]) -> bool:
    """Write a run's files, its result last; False where another process has the run."""
    with store.locked(run.folder) as mine:
        if not mine:
            return False
        if not store.is_done(run.folder):
            for name in sorted(files, key=lambda name: name == store.RESULT):
                store.write_atomic(run.folder / name, methodcaller("write", files[name]))
        store.tidy(run.folder)
        return True


def _task(board: Any, cohort: Cohort, threads: int, folder: str, marker: Path) -> tuple[Ended, Files]:
    """A cohort on some node: how it ended, and the files of its runs where the driver does not see them."""
    from segbench.training.work import work

    if os.path.isdir(folder):
        os.chdir(folder)  # what a config names may be relative to it
    key, said_s, stopping = cohort.runs[0].key, 0.0, False

    def say(more: dict[str, Any], asked: str) -> Any:
        return ray.get(board.say.remote(more, asked)).get(asked)

    def ask(*progress: Any) -> Any:
        """Say how far it is, where that is given, and return whether to stop."""
        nonlocal said_s, stopping
        if time.monotonic() > said_s + 0.2:
            said_s, stopping = time.monotonic(), bool(say({key: progress} if progress else {}, "stop"))
        return stopping

    begun = 1 + (say({}, f"begun {key}") or 0)
    say({f"begun {key}": begun}, "stop")
    if begun > RETRIES + 1:  # only where memory is short does a cluster try so often
        died = Failure(f"{OUT_OF_MEMORY} (Ray ended its task {RETRIES + 1} times)", out_of_memory=True)
        return Ended.alike(cohort, Lost(died)), {}
    if ask():
        return Ended.alike(cohort, Stopped()), {}
    if marker.exists():
        return work(cohort, threads, ask, ask), {}
    with tempfile.TemporaryDirectory(prefix="segbench-") as scratch:
        runs = tuple(replace(run, folder=Path(scratch) / run.folder.name) for run in cohort.runs)
        ended = work(Cohort(runs, 0), threads, ask, ask)
        kept = [run for run in runs if run.folder.is_dir() and not isinstance(ended.outcomes[run.key], Stopped)]
        return ended, {run.key: _contents(run.folder) for run in kept}


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.match(store.CHECKPOINTS)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
