"""Cohorts as tasks of a Ray cluster: an existing one, or one that is started on this machine for the sweep.

Where a node sees the driver's run folder, its tasks work in it as local ones do, and go on from the checkpoints there.
Where it does not, they start anew in a folder of their own, and the finished files are sent to the driver's folder.
"""

import itertools
import logging
import os
import re
import secrets
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from segbench import store
from segbench.config import LaunchConfig
from segbench.errors import OUT_OF_MEMORY, Failure, UserError, brief
from segbench.launch.base import Launcher, Progress, absolute
from segbench.outcomes import Busy, Ended, Failed, Stopped
from segbench.plan import Cohort, Run

try:
    import ray
except ModuleNotFoundError:
    raise UserError("launch.launcher: 'ray' is not installed; pip install 'segbench[ray]'") from None

Files = dict[str, dict[str, bytes]]  # run key -> path within its folder -> contents
RETRIES = 3  # of a task whose worker or node died
OBJECT_STORE_BYTES = 200_000_000  # of a local cluster: results are small


class _Asked(NamedTuple):
    task: Any
    number: int
    cohort: Cohort


class Board:
    """Where tasks say that they begin and how far they are, and are told to stop.

    Ray starts it again, empty, where it was lost; so the driver says whether to stop each time.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.progress: dict[int, tuple[str, int, int]] = {}
        self.begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Returns how often that task has begun."""
        self.begun[number] += 1
        return self.begun[number]

    def tell(self, number: int, progress: tuple[str, int, int] | None) -> bool:
        """Returns whether to stop."""
        if progress:
            self.progress[number] = progress
        return self.stopping

    def read(self, stopping: bool) -> dict[int, tuple[str, int, int]]:
        """What is new; ``stopping`` is what to tell the tasks."""
        self.stopping = stopping
        new, self.progress = self.progress, {}
        return new


class Ray(Launcher):
    """A task for each cohort, which asks for ``threads`` CPUs and, where its runs are on one, a GPU."""

    def __init__(self, cohorts: Sequence[Cohort], launch: LaunchConfig, jobs: int, threads: int) -> None:
        super().__init__(cohorts, launch, launch.jobs or len(cohorts), threads)
        self.cpus_here = jobs * threads
        self.folder = cohorts[0].runs[0].folder.absolute().parent
        self.gpus = int(cohorts[0].runs[0].facts.accelerator == "cuda")
        self.numbers = itertools.count()
        self.progress: dict[int, tuple[str, int, int]] = {}
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
        ours = not ray.is_initialized()
        if ours:
            _connect(self.launch.address, self.cpus_here)
        try:
            self._check_nodes()
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            kept = {"max_restarts": -1, "max_task_retries": -1}
            board: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here, **kept)
            self.board = board.remote()
            # A process for each cohort, which ends with it.
            asked = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_calls=1, max_retries=RETRIES)
            self.task: Any = asked(_task)
            with _marked(self.folder) as self.marker:
                yield
            ray.kill(self.board)
        finally:
            if ours:
                ray.shutdown()

    def _check_nodes(self) -> None:
        nodes = [(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)) for n in ray.nodes() if n["Alive"]]
        if not any(cpus >= self.threads and gpus >= self.gpus for cpus, gpus in nodes):
            wanted = f"{self.threads} CPUs (launch.threads)" + " and a GPU (trainer.accelerator)" * self.gpus
            there = ", ".join(f"{cpus:g} and {gpus:g}" for cpus, gpus in nodes)
            raise UserError(
                f"launch.launcher: a cohort wants {wanted}; the cluster's nodes have, CPUs and GPUs: {there}"
            )

    def start(self, cohort: Cohort, place: int) -> _Asked:
        number = next(self.numbers)
        arguments = (number, absolute(cohort), self.threads, os.getcwd(), self.marker)
        return _Asked(self.task.remote(self.board, *arguments), number, cohort)

    def wait(self, handles: Sequence[_Asked]) -> None:
        ray.wait([asked.task for asked in handles], timeout=0.2)
        self.progress |= ray.get(self.board.read.remote(self.stopping))

    def poll(self, handle: _Asked) -> Progress | Ended | None:
        if handle.number in self.progress:
            return Progress(*self.progress.pop(handle.number))
        return _ended(handle) if ray.wait([handle.task], timeout=0)[0] else None

    def stop(self, handle: _Asked) -> None:
        self.stopping = True  # which the board says to all

    def kill(self, handle: _Asked) -> None:
        ray.cancel(handle.task, force=True)


def _connect(address: str | None, cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unasked
    if address and (place := re.fullmatch(r"(.+):(\d+)", address)):
        try:
            socket.create_connection((place[1], int(place[2])), timeout=10).close()  # Ray itself would try for minutes
        except OSError as error:
            raise UserError(f"launch.address: no Ray cluster at '{address}': {brief(error)}") from None
    here: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    here["_system_config"] = {"task_oom_retries": 0}  # or a task that is too large is tried for ever
    # Ctrl-C goes to the whole group of processes; Ray's must outlive it, for the tasks to save their state.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        options = {} if address else here
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"launch.address: no Ray cluster at '{address or 'local'}': {brief(error)}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _marked(folder: Path) -> Iterator[str]:
    """The name of a file that no other folder holds: where a task finds it, it works in the driver's run folder."""
    name = f".ray-{secrets.token_hex(16)}.{socket.gethostname()}-{os.getpid()}.tmp"
    with store.explained(folder / name):
        (folder / name).touch()
    try:
        yield name
    finally:
        (folder / name).unlink(missing_ok=True)


def _ended(asked: _Asked) -> Ended:
    """How a task ended, its files written where it could not do so itself."""
    cohort = asked.cohort
    try:
        ended, files = ray.get(asked.task)
    except ray.exceptions.OutOfMemoryError:
        return Ended.lost(cohort, Failure(f"{OUT_OF_MEMORY} (Ray ended its task)", out_of_memory=True))
    except ray.exceptions.RayError as error:
        return Ended.lost(cohort, Failure(f"its Ray task was lost {RETRIES + 1} times ({brief(error)[:200]})"))
    try:
        busy = {run.key: Busy() for run in cohort.runs if run.key in files and not _bring(run, files[run.key])}
    except UserError as error:
        return Ended.alike(cohort, Failed(Failure.of(error), user_error=True))
    return Ended({**ended.outcomes, **busy})


def _bring(run: Run, files: dict[str, bytes]) -> bool:
    """Write a run's files, its result last; False where another process has the run."""
    with store.locked(run.folder) as mine:
        if not mine:
            return False
        if not store.is_done(run.folder):
            for name in sorted(files, key=lambda name: name == store.RESULT):
                store.write_atomic(run.folder / name, lambda file, data=files[name]: file.write(data))  # type: ignore[misc]
        store.tidy(run.folder)
    return True


def _task(board: Any, number: int, cohort: Cohort, threads: int, folder: str, marker: str) -> tuple[Ended, Files]:
    """A cohort on some node: how it ended, and the files of its runs where the driver does not see them."""
    from segbench.work import work

    if os.path.isdir(folder):
        os.chdir(folder)  # what a config names may be relative to it
    last = [0.0]
    stopping = [False]

    def ask(progress: tuple[str, int, int] | None) -> None:
        now = time.monotonic()
        if now - last[0] > 0.2:
            last[0] = now
            stopping[0] = ray.get(board.tell.remote(number, progress))

    def should_stop() -> bool:
        ask(None)
        return stopping[0]

    def report(phase: str, done: int, total: int) -> None:
        ask((phase, done, total))

    if ray.get(board.begin.remote(number)) > RETRIES + 1:  # only where memory is short does a cluster try so often
        died = Failure(f"{OUT_OF_MEMORY} (Ray ended its task {RETRIES + 1} times)", out_of_memory=True)
        return Ended.lost(cohort, died), {}
    if should_stop():
        return Ended.alike(cohort, Stopped()), {}
    if (cohort.runs[0].folder.parent / marker).exists():
        return work(cohort, threads, report, should_stop), {}
    with tempfile.TemporaryDirectory(prefix="segbench-") as scratch:
        runs = tuple(replace(run, folder=Path(scratch) / run.folder.name) for run in cohort.runs)
        ended = work(Cohort(runs, 0), threads, report, should_stop)
        kept = [r for r in runs if r.folder.is_dir() and not isinstance(ended.outcomes[r.key], Stopped)]
        return ended, {run.key: _contents(run.folder) for run in kept}


def _contents(folder: Path) -> dict[str, bytes]:
    checkpoints = set(folder.glob(store.CHECKPOINTS))
    files = [path for path in folder.rglob("*") if path.is_file() and path not in checkpoints]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
