"""Cohorts as jobs of Slurm, one array to a sweep, through submitit; the run folder is on a disk that all nodes share.

A job that is preempted, that runs out of its time, or whose node dies is put back in the queue, and goes on from its
checkpoint. One that the runner leaves behind (it was killed) ends all the same; the same command waits for it.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segbench import store
from segbench.config import LaunchConfig
from segbench.errors import OUT_OF_MEMORY, Failure, UserError, brief
from segbench.launch.base import Launcher, Progress, blocked, run_cohorts
from segbench.outcomes import Ended, Lost, Stopped
from segbench.runs import Cohort
from segbench.sweep.status import last_said

try:
    import submitit
    from submitit.core.utils import UncompletedJobError
    from submitit.helpers import Checkpointable
except ModuleNotFoundError:
    raise UserError("launch.launcher: 'slurm' is not installed; pip install 'segbench[slurm]'") from None

FOLDER = "slurm"  # within the sweep's: what the jobs print, and what submitit keeps of them
ATTEMPTS = 1000  # how often a job may run out of its time
POLL_S = 10.0  # between two questions to Slurm
RESULT_S = 20.0  # until a shared disk shows a result, after the job has gone
FORGOTTEN = "gone"  # some minutes after its end
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT", "FINISHED", "INTERRUPTED", FORGOTTEN,
}  # fmt: skip


class Task(Checkpointable):
    """What a job does: a cohort, in a process of its own, and what Slurm's signals ask for."""

    def __call__(self, cohort: Cohort, threads: int, go: Path, folder: str) -> Ended:
        """Returns how the cohort ended, unless its job is put back in the queue, where it goes on from checkpoints.

        Args:
            go: a file that the runner removes before it asks the jobs to stop; while it is there a signal is Slurm's.
            folder: that relative paths are meant from.
        """
        os.chdir(folder)
        ends, caught = [Ended.alike(cohort, Stopped())], list[int]()
        if go.exists():
            local = LaunchConfig(launcher="local", timeout_min=cohort.runs[0].config.launch.timeout_min)
            caught += run_cohorts(local, [cohort], 1, threads, lambda *_: None, lambda _, ended: ends.append(ended))
        # After SIGTERM alone Slurm kills the job, which it then may start again, or it sends its warning as well.
        while Stopped() in ends[-1].outcomes.values() and go.exists():
            warning = submitit.JobEnvironment._usr_sig()
            if warning in caught:
                signal.raise_signal(warning)  # for submitit, which exits, to be started again
            time.sleep(0.5)
        return ends[-1]


@dataclass
class _Job:
    """Of a cohort: submitit's, once it is submitted, and what was last heard of it."""

    cohort: Cohort
    before: dict[str, Any]  # what its runs said of themselves before
    job: Any = None
    gone: tuple[float, str] | None = None  # since when, and how Slurm calls it


class Slurm(Launcher):
    """A job for each cohort, which asks for ``threads`` CPUs; all are handed to Slurm at once, as an array."""

    def __init__(self, cohorts: Sequence[Cohort], launch: LaunchConfig, jobs: int, threads: int) -> None:
        super().__init__(cohorts, launch, len(cohorts), threads)
        self.started, self.array = list[_Job](), ""  # which has no number before it is submitted
        # New and ours, since what lies there is unpickled: nobody has put a result under a job's name before.
        place = f"{time.strftime('%Y%m%d')}-{secrets.token_hex(8)}"
        self.folder = cohorts[0].runs[0].folder.absolute().parent / FOLDER / place
        self.go = self.folder / "go"
        self.next_look_s = 0.0
        self.stopping = False

    @classmethod
    def on_cluster(cls, launch: LaunchConfig) -> bool:
        return launch.slurm.cluster != "local"

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with store.explained(self.folder):
            self.folder.mkdir(mode=0o700, parents=True)
            self.go.touch()
        try:
            yield
        finally:
            # What the jobs printed that did not end well stays, and what those need that still run.
            if not self.array or not {path.suffix for path in self.folder.iterdir()} & {".out", ".err", ".pkl"}:
                shutil.rmtree(self.folder)
                with contextlib.suppress(OSError):  # another runner's are there
                    self.folder.parent.rmdir()

    def start(self, cohort: Cohort, place: int) -> _Job:
        self.started.append(_Job(cohort, _said(cohort)))
        return self.started[-1]

    def _submit(self) -> None:
        run, asked = self.started[0].cohort.runs[0], self.launch.slurm
        parameters = {f"slurm_{name}": value for name, value in asked.model_dump(exclude={"cluster"}).items()} | {
            "name": f"segbench-{run.config.name}",
            "timeout_min": asked.timeout_min,
            "cpus_per_task": asked.cpus_per_task or self.threads,
            "gpus_per_node": asked.gpus_per_node or (1 if run.facts.accelerator == "cuda" else None),
            "slurm_array_parallelism": self.launch.jobs or len(self.started),
            # srun does not give a task the CPUs of its job by itself.
            "slurm_setup": ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"],
        }
        attempts = {"slurm_max_num_timeout": ATTEMPTS, "local_max_num_timeout": ATTEMPTS}
        try:
            # The local executor's processes must outlive a Ctrl-C, to save their state.
            with store.explained(self.folder), blocked({signal.SIGINT, signal.SIGHUP}):
                executor = submitit.AutoExecutor(self.folder, cluster=asked.cluster, **attempts)
                executor.update_parameters(**parameters)
                with executor.batch():
                    more = self.threads, self.go, os.getcwd()
                    for handle in self.started:
                        handle.job = executor.submit(Task(), handle.cohort, *more)
        except (RuntimeError, subprocess.SubprocessError) as error:
            raise UserError(f"launch.slurm: {brief(error)}") from None
        self.array = self.started[0].job.job_id.partition("_")[0]

    def wait(self, handles: Sequence[_Job]) -> None:
        """Submit what was started, then ask Slurm now and then, of all jobs at once.

        Raises:
            UserError: no Slurm here, or it refuses the jobs.
        """
        if not self.array and not self.stopping:
            self._submit()
        now = time.monotonic()
        if now > self.next_look_s and self.array:
            self.next_look_s = now + (2 if self.stopping else POLL_S)
            states = self._states()
            for handle in handles:  # one that was put back in the queue is no longer gone
                state = states.get(handle.job.job_id, FORGOTTEN) if states is not None else ""
                handle.gone = (handle.gone or (now, state)) if state in ENDED else None
        time.sleep(0.5)

    def _states(self) -> dict[str, str] | None:
        """Job id -> how Slurm calls its state; None, where it gives no answer."""
        if not self.on_cluster(self.launch):
            return {job.job.job_id: job.job.state for job in self.started}
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={self.array}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode and "Invalid job id" not in answer.stderr:
            return None
        return dict(line.split() for line in answer.stdout.splitlines())

    def poll(self, handle: _Job) -> Progress | Ended | None:
        if not self.array:
            return Ended.alike(handle.cohort, Stopped()) if self.stopping else None
        ended = self._ended(handle)
        if ended is not None:
            paths = handle.job.paths
            lost = any(isinstance(outcome, Lost) for outcome in ended.outcomes.values())  # what was printed may say why
            printed = [] if lost else [paths.stdout, paths.stderr]
            for path in (paths.submitted_pickle, paths.result_pickle, *printed):
                path.unlink(missing_ok=True)
            return ended
        said = _said(handle.cohort)
        if said == handle.before or said.get("state") != "running":
            return None
        return Progress(said["phase"], said["done"], said["total"])

    def _ended(self, handle: _Job) -> Ended | None:
        job = handle.job
        if job.paths.result_pickle.exists():
            try:
                ended: Ended = job.result()
                return ended
            except UncompletedJobError as error:  # it was to be put back in the queue, and could not
                died = Failure(f"its job {job.job_id} ended: {brief(error)}", str(error))
        elif handle.gone is None or time.monotonic() < handle.gone[0] + (1 if self.stopping else RESULT_S):
            return None
        elif handle.gone[1] == "OUT_OF_MEMORY":
            died = Failure(f"{OUT_OF_MEMORY} (Slurm ended its job)", out_of_memory=True)
        else:
            reason = f"its job {job.job_id} ended without a result ({handle.gone[1]})"
            died = Failure(f"{reason}; what it printed is in {job.paths.stderr}")
        return Ended.alike(handle.cohort, Lost(died))

    def stop(self, handle: _Job) -> None:
        if self.stopping:
            return  # the first is told for all
        self.stopping, self.next_look_s = True, time.monotonic() + 1
        self.go.unlink(missing_ok=True)
        if not self.array:
            return
        if self.on_cluster(self.launch):
            for which in ("--state=PENDING", "--signal=TERM"):
                subprocess.run(["scancel", which, self.array], check=False, capture_output=True)
        else:
            for job in self.started:
                job.job._process.terminate()  # hands the signal on

    def kill(self, handle: _Job) -> None:
        handle.job.cancel(check=False)


def _said(cohort: Cohort) -> dict[str, Any]:
    """What the run of a cohort that was last heard of says."""
    return max((last_said(run.folder) for run in cohort.runs), key=lambda status: status.get("time", 0.0))
