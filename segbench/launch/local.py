"""Cohorts as processes of this machine, from a preloaded fork server. Imports no torch in the parent."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from segbench.errors import UserError
from segbench.plan import Cohort

STOP_GRACE_S = 30.0  # for a step in progress and a checkpoint, after which a cohort is killed


@dataclass(frozen=True)
class Ended:
    """How a cohort ended: every run of it done, but for ``failures`` (run key -> reason).

    Attributes:
        stopped: it was asked to stop and saved its state.
        died: why the process as a whole ended, with the traceback; the runs that are not done failed with it.
    """

    cohort: Cohort
    failures: dict[str, str]
    stopped: bool = False
    died: tuple[str, str] | None = None
    user_error: bool = False


@dataclass
class _Child:
    process: Any
    connection: Connection
    cohort: Cohort
    ended: Ended | None = None


def context() -> Any:
    """The fork server, with what a cohort imports already imported, so that the second one starts at once."""
    ctx = multiprocessing.get_context("forkserver")
    ctx.set_forkserver_preload(["segbench.cohort"])
    return ctx


def call(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` in a process of its own; its result, or its `UserError` raised here."""
    ours, theirs = multiprocessing.Pipe()
    process = context().Process(target=_call, args=(theirs, function, args), daemon=True)
    process.start()
    theirs.close()
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
        False where it was interrupted.
    """
    waiting = list(cohorts)
    running: list[_Child] = []
    interrupted = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    previous_term = signal.signal(signal.SIGTERM, lambda *_: interrupted.set())
    kill_at = None
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
                        child.process.kill()
            for connection in wait([c.connection for c in running], timeout=0.2):
                child = next(c for c in running if c.connection is connection)
                if not _receive(child, on_progress):
                    running.remove(child)
                    assert child.ended is not None
                    on_end(child.ended)
    finally:
        for child in running:
            child.process.kill()
        signal.signal(signal.SIGINT, previous)
        signal.signal(signal.SIGTERM, previous_term)
    return not interrupted.is_set()


def _start(cohort: Cohort, threads: int) -> _Child:
    ours, theirs = multiprocessing.Pipe()
    process = context().Process(target=_work, args=(theirs, cohort, threads), name=cohort.name)
    process.start()
    theirs.close()
    return _Child(process, ours, cohort)


def _receive(child: _Child, on_progress: Callable[[Cohort, str, int, int], None]) -> bool:
    """Take one message; False at the end."""
    try:
        message = child.connection.recv()
    except (EOFError, OSError):
        child.process.join()
        if child.ended is None:
            child.ended = Ended(
                child.cohort, {}, died=(f"the cohort's process died ({_exit(child.process.exitcode)})", "")
            )
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
    from segbench.cohort import _quiet, cohort_failure

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _quiet()
    try:
        connection.send(("value", function(*args)))
    except UserError as error:
        connection.send(("user_error", str(error)))
    except Exception as error:
        connection.send(("error", cohort_failure(error)[1]))


def _work(connection: Connection, cohort: Cohort, threads: int) -> None:
    """The whole life of a cohort's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the runner passes it on
    from segbench.cohort import Stopped, cohort_failure, run_cohort

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
    except Stopped:
        ended = Ended(cohort, {}, stopped=True)
    except BaseException as error:
        ended = Ended(cohort, {}, died=cohort_failure(error), user_error=isinstance(error, UserError))
    _tell(connection, ended)
    connection.close()
    os._exit(0)  # at once: nothing is left to flush, and threads of libraries may hang at exit
