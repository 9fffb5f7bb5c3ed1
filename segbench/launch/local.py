"""Cohorts as processes of this machine, from a preloaded fork server. Imports no torch in the parent."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from segbench import store
from segbench.errors import OUT_OF_MEMORY, Failure, UserError, located, oom_kills
from segbench.launch.base import STOP_SIGNALS, Launcher, Progress, blocked
from segbench.outcomes import Ended, Failed, Lost
from segbench.runs import Cohort
from segbench.training.memory import in_huge_pages


@dataclass
class _Child:
    cohort: Cohort
    oom_kills: int  # before it could be one of them
    process: Any
    connection: Connection
    heard_s: float = field(default_factory=time.monotonic)


class Local(Launcher):
    """A process for each cohort; each has a GPU of its own, where there are as many."""

    def start(self, cohort: Cohort, place: int) -> _Child:
        return _Child(cohort, oom_kills(), *_spawn(_work, cohort, self.threads, own_gpu(cohort, place)))

    def wait(self, handles: Sequence[_Child]) -> None:
        wait([child.connection for child in handles], timeout=0.2)

    def poll(self, handle: _Child) -> Progress | Ended | None:
        if not handle.connection.poll():
            return None
        message: Progress | Ended | None = None
        with contextlib.suppress(EOFError, OSError):
            message = handle.connection.recv()
        if isinstance(message, Progress):
            handle.heard_s = time.monotonic()
            return message
        handle.process.join()
        handle.connection.close()
        if message is not None:
            return message
        silent_min, limit_min = (time.monotonic() - handle.heard_s) / 60, self.launch.timeout_min
        if handle.process.exitcode == 1 and limit_min is not None and silent_min > 0.8 * limit_min:  # not all is told
            hung = Failure(f"no step or image for {limit_min:g} minutes (launch.timeout_min), so its process was ended")
            stuck = {run.key for run in handle.cohort.runs if store.in_turn(run.folder)}
            return Ended({r.key: Failed(hung) if r.key in stuck else Lost(hung) for r in handle.cohort.runs})
        died = Failure(f"the cohort's process died ({_exit(handle.process.exitcode)})")
        if handle.process.exitcode == -signal.SIGKILL and oom_kills() > handle.oom_kills:
            died = Failure(f"{OUT_OF_MEMORY} (the system killed the cohort's process)", out_of_memory=True)
        return Ended.alike(handle.cohort, Lost(died))

    def stop(self, handle: _Child) -> None:
        _tell(handle.connection, "stop")

    def kill(self, handle: _Child) -> None:
        handle.process.kill()


def context() -> Any:
    """A fork server that has preloaded torch, so later cohorts start without imports."""
    os.environ["PYTHONSAFEPATH"] = "1"  # or it would import what lies in the folder that it is started in
    in_huge_pages()
    ctx = multiprocessing.get_context("forkserver")
    ctx.set_forkserver_preload(["segbench.training.work"])
    return ctx


class At(NamedTuple):
    """What a process that `call` started looks at, should it die of that."""

    what: str


def looking_at(what: str) -> None:
    """Tell the process that waits in `call`, if one does."""
    for connection in _waiting:
        _tell(connection, At(what))


_waiting: list[Connection] = []  # in a process that `call` started


def call(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` in a process of its own; its result, or its `UserError` raised here."""
    process, ours = _spawn(_call, function, args)
    answer: Any = At("")
    with ours:
        try:
            while isinstance(answer, At):
                at = answer.what
                answer = ours.recv()
        except EOFError:
            process.join()
            where = f" at {at}" if at else ""
            raise UserError(f"the process that looks at the sweep died{where} ({_exit(process.exitcode)})") from None
        except BaseException:
            process.kill()
            raise
    process.join()
    if not isinstance(answer, Failure):
        return answer
    if answer.traceback and not answer.out_of_memory:
        raise RuntimeError(f"in the process that looks at the sweep:\n{answer.traceback}")
    raise UserError(answer.reason)


def own_gpu(cohort: Cohort, place: int) -> str | None:
    """``CUDA_VISIBLE_DEVICES`` for the cohort in that place of those that run side by side; None to leave it.

    Where there are more places than GPUs, they are shared.
    """
    facts = cohort.runs[0].facts  # of the machine that the plan was made on, while a job may be on another
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(facts.gpus)))
    each = names.split(",")
    return each[place % len(each)] if facts.accelerator == "cuda" and names else None


def _spawn(target: Callable[..., None], *args: Any) -> tuple[Any, Connection]:
    """Start ``target(connection, *args)`` from the fork server; the process and our end of the connection."""
    ours, theirs = multiprocessing.Pipe()
    process = context().Process(target=target, args=(theirs, *args))
    resource_tracker.ensure_running()  # here, since its start unblocks signals
    with theirs, blocked(STOP_SIGNALS):
        process.start()
    return process, ours


def _exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _tell(connection: Connection, message: object) -> None:
    with contextlib.suppress(OSError):  # it has just ended; the next receive sees that
        connection.send(message)


def _call(connection: Connection, function: Callable[..., Any], args: Sequence[Any]) -> None:
    from segbench.training.cohort import quiet

    _waiting.append(connection)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to save: end at once, without a word
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    quiet()
    try:
        _tell(connection, function(*args))
    except (SystemExit, KeyboardInterrupt) as error:  # a plug-in's
        _tell(connection, Failure(f"while the sweep is looked at: {located(error)}"))
    except Exception as error:
        _tell(connection, Failure.of(error))


def _work(connection: Connection, cohort: Cohort, threads: int, gpu: str | None) -> None:
    """The whole life of a cohort's process, which stops at a word of the runner, or when the runner is gone."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is first used
    from segbench.training.work import work

    told_s = 0.0

    def report(phase: str, done: int, total: int) -> None:
        nonlocal told_s
        if time.monotonic() > told_s + 0.2 or done == total:
            told_s = time.monotonic()
            _tell(connection, Progress(phase, done, total))

    _tell(connection, work(cohort, threads, report, connection.poll))
    connection.close()
    os._exit(0)  # at once: nothing is left to flush, and threads of libraries may hang at exit
