"""Cohorts as processes of this machine, from a preloaded fork server. Imports no torch in the parent."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from segbench.config import LaunchConfig
from segbench.errors import OUT_OF_MEMORY, Failure, UserError
from segbench.launch import STOP_GRACE_S, STOP_SIGNALS, Ended, OnEnd, OnProgress, caught_signals, oom_kills
from segbench.plan import Cohort


@dataclass
class _Child:
    process: Any
    connection: Connection
    cohort: Cohort
    oom_kills: int
    place: int
    ended: Ended | None = None
    killed: bool = False


def context() -> Any:
    """The fork server, with what a cohort imports already imported, so that the second one starts at once."""
    os.environ["PYTHONSAFEPATH"] = "1"  # or it would import what lies in the folder that it is started in
    ctx = multiprocessing.get_context("forkserver")
    ctx.set_forkserver_preload(["segbench.launch.work"])
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


def run_cohorts(
    cohorts: Sequence[Cohort],
    jobs: int,
    threads: int,
    launch: LaunchConfig,
    on_progress: OnProgress,
    on_end: OnEnd,
) -> bool:
    """See `segbench.launch.Launcher`."""
    with caught_signals() as caught:
        return run_until(caught, cohorts, jobs, threads, on_progress, on_end)


def run_until(
    caught: Sequence[int],
    cohorts: Sequence[Cohort],
    jobs: int,
    threads: int,
    on_progress: OnProgress,
    on_end: OnEnd,
) -> bool:
    """`run_cohorts`, which stops once ``caught`` holds a signal."""
    waiting = list(cohorts)
    running: list[_Child] = []
    places = list(range(jobs))  # each with a GPU of its own
    kill_at = None
    try:
        while running or (waiting and not caught):
            while waiting and len(running) < jobs and not caught:
                running.append(_start(waiting.pop(0), threads, places.pop(0)))
            if caught:
                if kill_at is None:
                    kill_at = time.monotonic() + STOP_GRACE_S
                    for child in running:
                        _tell(child.connection, "stop")
                elif time.monotonic() > kill_at:
                    for child in running:
                        child.killed = True
                        child.process.kill()
            for connection in wait([c.connection for c in running], timeout=0.2):
                child = next(c for c in running if c.connection is connection)
                if not _receive(child, on_progress):
                    running.remove(child)
                    places.append(child.place)
                    assert child.ended is not None
                    on_end(child.ended)
    finally:
        for child in running:
            child.process.kill()
    return not caught


def _start(cohort: Cohort, threads: int, place: int) -> _Child:
    kills = oom_kills()  # before it can be one of them
    process, ours = _spawn(_work, cohort, threads, own_gpu(cohort, place))
    return _Child(process, ours, cohort, kills, place)


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


def _receive(child: _Child, on_progress: OnProgress) -> bool:
    """Take one message; False at the end."""
    try:
        message = child.connection.recv()
    except (EOFError, OSError):
        child.process.join()
        if child.ended is None:
            died = Failure(f"the cohort's process died ({_exit(child.process.exitcode)})")
            if child.process.exitcode == -signal.SIGKILL and oom_kills() > child.oom_kills:
                died = Failure(f"{OUT_OF_MEMORY} (the system killed the cohort's process)", out_of_memory=True)
            child.ended = Ended(child.cohort, stopped=child.killed, died=None if child.killed else died)
        return False
    if isinstance(message, Ended):
        child.ended = replace(message, cohort=child.cohort)  # ours, not its copy
    else:
        on_progress(child.cohort, *message)
    return True


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _tell(connection: Connection, message: object) -> None:
    with contextlib.suppress(OSError):  # it has just ended; the next receive sees that
        connection.send(message)


def _call(connection: Connection, function: Callable[..., Any], args: Sequence[Any]) -> None:
    from segbench.cohort import quiet

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
    from segbench.launch.work import work

    last = [0.0]

    def report(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] > 0.2 or done == total:
            last[0] = now
            _tell(connection, (phase, done, total))

    def should_stop() -> bool:
        try:
            return connection.poll() and connection.recv() == "stop"
        except (EOFError, OSError):
            return True  # the runner is gone

    _tell(connection, work(cohort, threads, report, should_stop))
    connection.close()
    os._exit(0)  # at once: nothing is left to flush, and threads of libraries may hang at exit
