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
from segbench.launch.base import Launcher, Progress, absolute, caught_signals, run_until
from segbench.launch.local import Local
from segbench.outcomes import Ended, Lost, Stopped, TooLarge
from segbench.plan import Cohort

try:
    import submitit
    from submitit.core.utils import DelayedSubmission
except ModuleNotFoundError:
    raise UserError("launch.launcher: 'slurm' is not installed; pip install 'segbench[slurm]'") from None

FOLDER = "slurm"  # within the sweep's: what the jobs print, and what submitit keeps of them
ATTEMPTS = 1000  # how often a job may run out of its time
POLL_S = 10.0  # between two questions to Slurm
RESULT_S = 20.0  # until a shared disk shows a result, after the job has gone
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip


class Task:
    """What a job does: a cohort, in a process of its own, and what Slurm's signals ask for.

    Args:
        go: a file that the runner removes before it asks the jobs to stop; while it is there a signal is Slurm's.
    """

    def __init__(self, cohort: Cohort, threads: int, go: Path) -> None:
        self.cohort, self.threads, self.go = cohort, threads, go
        self.cwd = os.getcwd()  # relative paths of data and plug-ins are meant from there

    def __call__(self) -> Ended:
        os.chdir(self.cwd)
        warning = submitit.JobEnvironment._usr_sig()
        requeue = signal.getsignal(warning)
        ended = Ended.alike(self.cohort, Stopped())

        def on_end(_: Cohort, this: Ended) -> None:
            nonlocal ended
            ended = this

        with caught_signals() as caught:
            if self.go.exists():
                here = Local([self.cohort], LaunchConfig(), 1, self.threads)
                run_until(caught, here, [self.cohort], lambda *_: None, on_end)
            # After SIGTERM alone Slurm kills the job, which it then may start again, or it sends its warning as well.
            while ended.has(Stopped) and warning not in caught and self.go.exists():
                time.sleep(0.5)
        if ended.has(Stopped) and self.go.exists():
            assert callable(requeue)
            requeue(warning, None)  # submitit's: exits, to be started again
        return ended

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts again: the same, which goes on from the checkpoints."""
        return DelayedSubmission(self)


@dataclass(eq=False)
class _Job:
    """Of a cohort: submitit's, once it is submitted, and what was last heard of it."""

    cohort: Cohort
    said: dict[str, Any]
    job: Any = None
    gone: tuple[float, str] | None = None  # since when, and how Slurm calls it


class Slurm(Launcher):
    """A job for each cohort, which asks for ``threads`` CPUs; all are handed to Slurm at once, as an array."""

    def __init__(self, cohorts: Sequence[Cohort], launch: LaunchConfig, jobs: int, threads: int) -> None:
        super().__init__(cohorts, launch, len(cohorts), threads)
        # New and ours, since what lies there is unpickled: nobody has put a result under a job's name before.
        place = f"{time.strftime('%Y%m%d')}-{secrets.token_hex(8)}"
        self.folder = cohorts[0].runs[0].folder.absolute().parent / FOLDER / place
        self.go = self.folder / "go"
        self.waiting: list[_Job] = []  # to be submitted together
        self.submitted: list[_Job] = []
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
            kinds = {path.suffix for path in self.folder.iterdir()} if self.submitted else set()
            if ".pkl" not in kinds:
                self.go.unlink(missing_ok=True)
            if not kinds & {".out", ".err", ".pkl"}:
                shutil.rmtree(self.folder)
                with contextlib.suppress(OSError):  # another runner's are there
                    self.folder.parent.rmdir()

    def start(self, cohort: Cohort, place: int) -> _Job:
        self.waiting.append(_Job(cohort, _said(cohort)))
        return self.waiting[-1]

    def wait(self, handles: Sequence[_Job]) -> None:
        """Submit what was started, or ask Slurm now and then, of all jobs at once.

        Raises:
            UserError: no Slurm here, or it refuses the jobs.
        """
        if self.waiting:
            self._submit()
        now = time.monotonic()
        if now > self.next_look_s:
            self.next_look_s = now + (2 if self.stopping else POLL_S)
            states = _ended_states([handle.job for handle in handles if handle.job])
            for handle in handles:  # one that was put back in the queue is no longer gone
                state = states.get(handle.job)
                handle.gone = (handle.gone or (now, state)) if state else None
        time.sleep(0.5)

    def _submit(self) -> None:
        run, asked = self.waiting[0].cohort.runs[0], self.launch.slurm
        names = ("partition", "account", "qos", "constraint", "gres", "nodelist", "exclude", "signal_delay_s")
        parameters = {f"slurm_{name}": getattr(asked, name) for name in names} | {
            "name": f"segbench-{run.config.name}",
            "timeout_min": asked.timeout_min,
            "mem_gb": asked.mem_gb,
            "cpus_per_task": asked.cpus_per_task or self.threads,
            "gpus_per_node": asked.gpus_per_node or (1 if run.facts.accelerator == "cuda" else None),
            "slurm_array_parallelism": self.launch.jobs or len(self.waiting),
            # srun does not give a task the CPUs of its job by itself.
            "slurm_setup": ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"],
        }
        # Ctrl-C goes to the whole group of processes; those of the local executor must outlive it, to save their state.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            executor = submitit.AutoExecutor(
                self.folder, cluster=asked.cluster, slurm_max_num_timeout=ATTEMPTS, local_max_num_timeout=ATTEMPTS
            )
            executor.update_parameters(**parameters)
            with store.explained(self.folder), executor.batch():
                for handle in self.waiting:
                    handle.job = executor.submit(Task(absolute(handle.cohort), self.threads, self.go))
        except (RuntimeError, subprocess.SubprocessError) as error:
            raise UserError(f"launch.slurm: {brief(error)}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.submitted, self.waiting = self.submitted + self.waiting, []

    def poll(self, handle: _Job) -> Progress | Ended | None:
        if handle.job is None:
            return Ended.alike(handle.cohort, Stopped()) if self.stopping else None
        ended = _result(handle.job, handle.cohort)
        wait_s = 1 if self.stopping else RESULT_S
        if ended is None and handle.gone is not None and time.monotonic() > handle.gone[0] + wait_s:
            ended = Ended.alike(handle.cohort, Stopped()) if self.stopping else _lost(handle)
        if ended is not None:
            _clear(handle.job, ended)
            return ended
        status, before = _said(handle.cohort), handle.said
        handle.said = status
        if status == before or status.get("state") != "running":
            return None
        return Progress(status["phase"], status["done"], status["total"])

    def stop(self, handle: _Job) -> None:
        if not self.stopping:  # the first is told for all
            self.stopping, self.waiting = True, []
            self.next_look_s = time.monotonic() + 1
            self.go.unlink(missing_ok=True)
            _ask_to_stop([submitted.job for submitted in self.submitted])

    def kill(self, handle: _Job) -> None:
        if handle.job is not None:
            handle.job.cancel(check=False)


def _said(cohort: Cohort) -> dict[str, Any]:
    """What the run of a cohort that was last heard of says."""
    found = [store.read_json(run.folder / store.STATUS) or {} for run in cohort.runs]
    return max(found, key=lambda status: status.get("time", 0.0))


def _ask_to_stop(jobs: Sequence[Any]) -> None:
    for job in jobs:
        if isinstance(job, submitit.LocalJob) and job._process:
            job._process.terminate()  # hands the signal on
    arrays = _arrays(jobs)
    if arrays:
        subprocess.run(["scancel", "--state=PENDING", *arrays], check=False, capture_output=True)
        subprocess.run(["scancel", "--signal=TERM", *arrays], check=False, capture_output=True)


def _arrays(jobs: Sequence[Any]) -> list[str]:
    return sorted({job.job_id.partition("_")[0] for job in jobs if isinstance(job, submitit.SlurmJob)})


def _ended_states(jobs: Sequence[Any]) -> dict[Any, str]:
    """The jobs that are no longer there, and how Slurm calls their end; none, where it gives no answer."""
    ended = {job: job.state for job in jobs if isinstance(job, submitit.LocalJob) and job.state != "RUNNING"}
    arrays = _arrays(jobs)
    if not arrays:
        return ended
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={','.join(arrays)}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return ended
    states = dict(line.split() for line in answer.stdout.splitlines())
    for job in jobs:
        state = states.get(job.job_id, "gone")  # Slurm forgets a job some minutes after its end
        if state in ENDED or state == "gone":
            ended[job] = state
    return ended


def _result(job: Any, cohort: Cohort) -> Ended | None:
    if not job.paths.result_pickle.exists():
        return None
    error = job.exception()
    if error is not None:  # it was to be put back in the queue, and could not
        return Ended.lost(cohort, Failure(f"its job {job.job_id} ended: {brief(error)}", str(error)))
    ended: Ended = job.result()
    return ended


def _lost(handle: _Job) -> Ended:
    job, state = handle.job, handle.gone[1] if handle.gone else ""
    if state == "OUT_OF_MEMORY":
        return Ended.lost(handle.cohort, Failure(f"{OUT_OF_MEMORY} (Slurm ended its job)", out_of_memory=True))
    reason = f"its job {job.job_id} ended without a result ({state}); what it printed is in {job.paths.stderr}"
    return Ended.lost(handle.cohort, Failure(reason))


def _clear(job: Any, ended: Ended) -> None:
    """Remove what submitit keeps of a job; what it printed stays where it did not end well."""
    job.paths.submitted_pickle.unlink(missing_ok=True)
    job.paths.result_pickle.unlink(missing_ok=True)
    if not ended.has(Lost) and not ended.has(TooLarge):
        job.paths.stdout.unlink(missing_ok=True)
        job.paths.stderr.unlink(missing_ok=True)
