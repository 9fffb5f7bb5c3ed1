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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission

from segbench import store
from segbench.config import LaunchConfig
from segbench.errors import OUT_OF_MEMORY, Failure, UserError, brief
from segbench.launch import STOP_GRACE_S, Ended, OnEnd, OnProgress, caught_signals, local
from segbench.plan import Cohort

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
        ended = Ended(self.cohort, stopped=True)

        def on_end(this: Ended) -> None:
            nonlocal ended
            ended = this

        with caught_signals() as caught:
            if self.go.exists():
                local.run_until(caught, [self.cohort], 1, self.threads, lambda *_: None, on_end)
            # After SIGTERM alone Slurm kills the job, which it then may start again, or it sends its warning as well.
            while ended.stopped and warning not in caught and self.go.exists():
                time.sleep(0.5)
        if ended.stopped and self.go.exists():
            assert callable(requeue)
            requeue(warning, None)  # submitit's: exits, to be started again
        return ended

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts again: the same, which goes on from the checkpoints."""
        return DelayedSubmission(self)


def run_cohorts(
    cohorts: Sequence[Cohort],
    jobs: int,
    threads: int,
    launch: LaunchConfig,
    on_progress: OnProgress,
    on_end: OnEnd,
) -> bool:
    """See `segbench.launch.Launcher`. ``threads`` are the CPUs that each job asks for.

    Raises:
        UserError: no Slurm here, or it refuses the jobs.
    """
    # New and ours, since what lies there is unpickled: nobody has put a result under a job's name before.
    folder = cohorts[0].runs[0].folder.absolute().parent / FOLDER / f"{time.strftime('%Y%m%d')}-{secrets.token_hex(8)}"
    with store.explained(folder):
        folder.mkdir(mode=0o700, parents=True)
        (go := folder / "go").touch()
    started: dict[Any, Cohort] = {}
    try:
        with caught_signals() as caught:
            started = _submit(cohorts, threads, launch, folder, go)
            return _watch(dict(started), caught, go, on_progress, on_end)
    finally:
        # What the jobs printed that did not end well stays, and what those need that still run.
        kinds = {path.suffix for path in folder.iterdir()} if started else set()
        if ".pkl" not in kinds:
            go.unlink(missing_ok=True)
        if not kinds & {".out", ".err", ".pkl"}:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # another runner's are there
                folder.parent.rmdir()


def _submit(cohorts: Sequence[Cohort], threads: int, launch: LaunchConfig, folder: Path, go: Path) -> dict[Any, Cohort]:
    """The jobs, by cohort."""
    first, asked = cohorts[0].runs[0], launch.slurm
    names = ("partition", "account", "qos", "constraint", "gres", "nodelist", "exclude", "signal_delay_s")
    parameters = {f"slurm_{name}": getattr(asked, name) for name in names} | {
        "name": f"segbench-{first.config.name}",
        "timeout_min": asked.timeout_min,
        "mem_gb": asked.mem_gb,
        "cpus_per_task": asked.cpus_per_task or threads,
        "gpus_per_node": asked.gpus_per_node or (1 if first.facts.accelerator == "cuda" else None),
        "slurm_array_parallelism": launch.jobs or len(cohorts),
        # srun does not give a task the CPUs of its job by itself.
        "slurm_setup": ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"],
    }
    # Ctrl-C goes to the whole group of processes; those of the local executor must outlive it, to save their state.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        executor = submitit.AutoExecutor(
            folder, cluster=asked.cluster, slurm_max_num_timeout=ATTEMPTS, local_max_num_timeout=ATTEMPTS
        )
        executor.update_parameters(**parameters)
        with store.explained(folder), executor.batch():
            jobs = [executor.submit(Task(_absolute(cohort), threads, go)) for cohort in cohorts]
    except (RuntimeError, subprocess.SubprocessError) as error:
        raise UserError(f"launch.slurm: {brief(error)}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return dict(zip(jobs, cohorts, strict=True))


def _absolute(cohort: Cohort) -> Cohort:
    return replace(cohort, runs=tuple(replace(run, folder=run.folder.absolute()) for run in cohort.runs))


def _watch(running: dict[Any, Cohort], caught: Sequence[int], go: Path, on_progress: OnProgress, on_end: OnEnd) -> bool:
    """Until every job has ended; False where it was asked to stop."""
    said = {job: _said(cohort) for job, cohort in running.items()}
    gone: dict[Any, tuple[float, str]] = {}  # since when, and how Slurm calls it
    next_poll, kill_at = 0.0, None
    while running:
        now = time.monotonic()
        if caught and kill_at is None:
            kill_at, next_poll = now + STOP_GRACE_S, now + 1
            go.unlink(missing_ok=True)
            _ask_to_stop(list(running))
        elif kill_at is not None and now > kill_at:
            kill_at = now + STOP_GRACE_S
            for job in running:
                job.cancel(check=False)
        if now > next_poll:
            next_poll = now + (POLL_S if kill_at is None else 2)
            found = _ended_states(list(running))  # one that was put back in the queue is no longer among them
            gone = {job: gone.get(job, (now, state)) for job, state in found.items()}
        for job, cohort in list(running.items()):
            wait_s = 1 if kill_at is not None else RESULT_S
            ended = _result(job, cohort)
            if ended is None and job in gone and now > gone[job][0] + wait_s:
                ended = _lost(job, cohort, gone[job][1], kill_at is not None)
            if ended is not None:
                del running[job]
                _clear(job, ended)
                on_end(ended)
            elif (status := _said(cohort)) != said[job]:
                said[job] = status
                if status.get("state") == "running":
                    on_progress(cohort, status["phase"], status["done"], status["total"])
        time.sleep(0.5)
    return not caught


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
        return Ended(cohort, died=Failure(f"its job {job.job_id} ended: {brief(error)}", str(error)))
    ended: Ended = job.result()
    return replace(ended, cohort=cohort)


def _lost(job: Any, cohort: Cohort, state: str, asked: bool) -> Ended:
    if asked:
        return Ended(cohort, stopped=True)
    if state == "OUT_OF_MEMORY":
        return Ended(cohort, died=Failure(f"{OUT_OF_MEMORY} (Slurm ended its job)", out_of_memory=True))
    reason = f"its job {job.job_id} ended without a result ({state}); what it printed is in {job.paths.stderr}"
    return Ended(cohort, died=Failure(reason))


def _clear(job: Any, ended: Ended) -> None:
    """Remove what submitit keeps of a job; what it printed stays where it did not end well."""
    job.paths.submitted_pickle.unlink(missing_ok=True)
    job.paths.result_pickle.unlink(missing_ok=True)
    if ended.died is None:
        job.paths.stdout.unlink(missing_ok=True)
        job.paths.stderr.unlink(missing_ok=True)
