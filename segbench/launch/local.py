"""Cohorts as processes of this machine, from a preloaded fork server. Imports no torch in the parent."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from segbench.errors import OUT_OF_MEMORY, Failure, UserError, oom_kills
from segbench.launch.base import STOP_SIGNALS, Launcher, Progress
from segbench.outcomes import Ended
from segbench.runs import Cohort


@dataclass
class _Child:
    process: Any
    connection: Connection
    cohort: Cohort
    oom_kills: int
    ended: Ended | None = None


class Local(Launcher):
    """A process for each cohort; each has a GPU of its own, where there are as many."""

    def start(self, cohort: Cohort, place: int) -> _Child:
        kills = oom_kills()  # before it can be one of them
        process, ours = _spawn(_work, cohort, self.threads, own_gpu(cohort, place))
        return _Child(process, ours, cohort, kills)

    def wait(self, handles: Sequence[_Child]) -> None:
        wait([child.connection for child in handles], timeout=0.2)

    def poll(self, handle: _Child) -> Progress | Ended | None:
        if not handle.connection.poll():
            return None
        try:
            message: Progress | Ended = handle.connection.recv()
        except (EOFError, OSError):
            return _ended(handle)
        if isinstance(message, Progress):
            return message
        handle.ended = message  # which counts once the process has gone
        return None

    def stop(self, handle: _Child) -> None:
        _tell(handle.connection, "stop")

    def kill(self, handle: _Child) -> None:
        handle.process.kill()


def context() -> Any:
    """A fork server that has preloaded torch, so later cohorts start without imports."""
    os.environ["PYTHONSAFEPATH"] = "1"  # or it would import what lies in the folder that it is started in
    ctx = multiprocessing.get_context("forkserver")
    ctx.set_forkserver_preload(["segbench.training.work"])
    return ctx


def call(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` in a process of its own; its result, or its `UserError` raised here."""
    process, ours = _spawn(_call, function, args)
    try:
        kind, value = ours.recv()
    except EOFError:
        process.join()
        raise UserError(f"the process that looks at the sweep died ({_exit(process.exitcode)})") from None
    except BaseException:
        process.kill()
        raise
    finally:
        ours.close()
    process.join()
    if kind == "user_error":
        raise UserError(value)
    if kind == "error":
        raise RuntimeError(f"in the process that looks at the sweep:\n{value}")
    return value


def own_gpu(cohort: Cohort, place: int) -> str | None:
    """``CUDA_VISIBLE_DEVICES`` for the cohort in that place of those that run side by side; None to leave it.

    Where there are more places than GPUs, they are shared.
    """
    run, visible = cohort.runs[0], os.environ.get("CUDA_VISIBLE_DEVICES")
    here = bool(visible) or run.facts.gpus > 0  # or in a job on a machine that the plan was not made on
    if run.facts.accelerator != "cuda" or not here:
        return None
    names = visible.split(",") if visible else [str(i) for i in range(run.facts.gpus)]
    return names[place % len(names)]


def _spawn(target: Callable[..., None], *args: Any) -> tuple[Any, Connection]:
    """Start ``target(connection, *args)`` from the fork server; the process and our end of the connection.

    The signals of a stop are blocked meanwhile, and stay so in the children: a terminal sends Ctrl-C, and a batch
    system its SIGTERM, to every process of the group, but it is the runner that tells the cohorts to stop.
    """
    ours, theirs = multiprocessing.Pipe()
    process = context().Process(target=target, args=(theirs, *args))
    resource_tracker.ensure_running()  # here, since its start unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return process, ours


def _ended(child: _Child) -> Ended:
    """How it ended, its process being at its end."""
    child.process.join()
    child.connection.close()
    if child.ended is not None:
        return child.ended
    died = Failure(f"the cohort's process died ({_exit(child.process.exitcode)})")
    if child.process.exitcode == -signal.SIGKILL and oom_kills() > child.oom_kills:
        died = Failure(f"{OUT_OF_MEMORY} (the system killed the cohort's process)", out_of_memory=True)
    return Ended.lost(child.cohort, died)


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _tell(connection: Connection, message: object) -> None:
    with contextlib.suppress(OSError):  # it has just ended; the next receive sees that
        connection.send(message)


def _call(connection: Connection, function: Callable[..., Any], args: Sequence[Any]) -> None:
    from segbench.training.cohort import quiet

    for s in STOP_SIGNALS:
        signal.signal(s, signal.SIG_DFL)  # nothing to save: end at once, without a word
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    quiet()
    try:
        _tell(connection, ("value", function(*args)))
    except UserError as error:
        _tell(connection, ("user_error", str(error)))
    except Exception as error:
        failure = Failure.of(error)
        _tell(connection, ("user_error", failure.reason) if failure.out_of_memory else ("error", failure.traceback))


def _work(connection: Connection, cohort: Cohort, threads: int, gpu: str | None) -> None:
    """The whole life of a cohort's process."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is first used
    from segbench.training.work import work

    last = [0.0]

    def report(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] > 0.2 or done == total:
            last[0] = now
            _tell(connection, Progress(phase, done, total))

    def should_stop() -> bool:
        try:
            return connection.poll() and connection.recv() == "stop"
        except (EOFError, OSError):
            return True  # the runner is gone

    _tell(connection, work(cohort, threads, report, should_stop))
    connection.close()
    os._exit(0)  # at once: nothing is left to flush, and threads of libraries may hang at exit
