"""Cohorts as processes of this machine, from a preloaded fork server. Imports no torch in the parent."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from segbench.errors import Failure, UserError
from segbench.plan import Cohort

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
STOP_GRACE_S = 30.0  # for a step in progress and a checkpoint, after which a cohort is killed


@dataclass(frozen=True)
class Ended:
    """How a cohort ended: every run of it done, but for ``failures`` (run key -> reason).

    Attributes:
        stopped: it was asked to stop and saved its state, or was killed because it did not in time.
        died: why the process as a whole ended; the runs that are not done failed with it.
        user_error: a mistake of the user's was why.
    """

    cohort: Cohort
    failures: dict[str, str]
    stopped: bool = False
    died: Failure | None = None
    user_error: bool = False


@dataclass
class _Child:
    process: Any
    connection: Connection
    cohort: Cohort
    ended: Ended | None = None
    killed: bool = False


def context() -> Any:
    """The fork server, with what a cohort imports already imported, so that the second one starts at once."""
    ctx = multiprocessing.get_context("forkserver")
    ctx.set_forkserver_preload(["segbench.cohort"])
    return ctx


def call(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` in a process of its own; its result, or its `UserError` raised here."""
    process, ours = _spawn(_call, function, args)
    try:
        kind, value = ours.recv()
    except EOFError:
        process.join()
        raise UserError(f"the process that looks at the sweep died ({_exit(process.exitcode)})") from None
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
    on_progress: Callable[[Cohort, str, int, int], None],
    on_end: Callable[[Ended], None],
) -> bool:
    """Run every cohort, ``jobs`` at a time. On Ctrl-C the running ones save their state and stop.

    Returns:
        False where it was interrupted before all had ended.
    """
    waiting = list(cohorts)
    running: list[_Child] = []
    interrupted = threading.Event()
    previous = {s: signal.signal(s, lambda *_: interrupted.set()) for s in STOP_SIGNALS}
    kill_at, whole = None, True
    try:
        while running or (waiting and not interrupted.is_set()):
            while waiting and len(running) < jobs and not interrupted.is_set():
                running.append(_start(waiting.pop(0), threads))
            if interrupted.is_set():
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
                    assert child.ended is not None
                    whole = whole and not child.ended.stopped
                    on_end(child.ended)
    finally:
        for child in running:
            child.process.kill()
        for s, handler in previous.items():
            signal.signal(s, handler)
    return whole and not waiting


def _start(cohort: Cohort, threads: int) -> _Child:
    process, ours = _spawn(_work, cohort, threads)
    return _Child(process, ours, cohort)


def _spawn(target: Callable[..., None], *args: Any) -> tuple[Any, Connection]:
    """Start ``target(connection, *args)`` from the fork server; the process and our end of the connection.

    The signals of a stop are blocked meanwhile, and stay so in the children: a terminal sends Ctrl-C, and a batch
    system its SIGTERM, to every process of the group, but it is the runner that tells the cohorts to stop.
    """
    ours, theirs = multiprocessing.Pipe()
    process = context().Process(target=target, args=(theirs, *args), daemon=target is _call)
    resource_tracker.ensure_running()  # here, since its start unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return process, ours


def _receive(child: _Child, on_progress: Callable[[Cohort, str, int, int], None]) -> bool:
    """Take one message; False at the end."""
    try:
        message = child.connection.recv()
    except (EOFError, OSError):
        child.process.join()
        if child.ended is None:
            reason = f"the cohort's process died ({_exit(child.process.exitcode)})"
            child.ended = Ended(child.cohort, {}, stopped=child.killed, died=None if child.killed else Failure(reason))
        return False
    if isinstance(message, Ended):
        child.ended = replace(message, cohort=child.cohort)  # ours, not its copy
    else:
        on_progress(child.cohort, *message)
    return True


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        hint = "; out of memory?" if code == -signal.SIGKILL else ""
        return f"signal {signal.Signals(-code).name}{hint}"
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
        _tell(connection, ("error", Failure.of(error).traceback))


def _work(connection: Connection, cohort: Cohort, threads: int) -> None:
    """The whole life of a cohort's process."""
    from segbench.cohort import Stopped, run_cohort

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

    try:
        ended = Ended(cohort, run_cohort(cohort, report, should_stop, threads))
    except Stopped as stop:
        ended = Ended(cohort, stop.failures, stopped=True)
    except BaseException as error:
        ended = Ended(cohort, {}, died=Failure.of(error), user_error=isinstance(error, UserError))
    _tell(connection, ended)
    connection.close()
    os._exit(0)  # at once: nothing is left to flush, and threads of libraries may hang at exit
