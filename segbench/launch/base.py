"""What a launcher is, and the one loop that all of them share. Imports no torch.

A launcher is a class that starts a cohort, is asked how far it is, and stops or kills it. What it runs, wherever it
does, is `segbench.training.work.work`.
"""

import contextlib
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from segbench.config import LaunchConfig
from segbench.errors import Failure, UserError, brief
from segbench.outcomes import Ended, Failed, Lost, Stopped
from segbench.registry import LAUNCHERS, check_params
from segbench.runs import Cohort

# Ctrl-C, a closed terminal, and what batch systems send before they kill.
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
KILLS = 4  # how often a cohort is killed, a grace apart, before it is left behind


class Progress(NamedTuple):
    """How far a cohort is: steps (phase ``train``) or images (``evaluate``)."""

    phase: str
    done: int
    total: int


OnProgress = Callable[[Cohort, str, int, int], None]  # cohort, phase, done, total
OnEnd = Callable[[Cohort, Ended], None]


class Launcher(ABC):
    """Runs cohorts somewhere. Made for one round of a sweep, and used from one thread.

    Arguments that a constructor takes beside these four are set by ``launch.params``. A method that raises fails the
    cohort that it was called for; a `UserError` ends the sweep with its message.

    Attributes:
        grace_s: seconds that a cohort has to save its state, from `stop` to `kill`.
        jobs: how many cohorts are started at a time; a launcher that hands them to a queue sets it to their number.
        threads: of each cohort.
        launch: the config's section.
    """

    grace_s: float = 30.0

    def __init__(self, cohorts: Sequence[Cohort], launch: LaunchConfig, jobs: int, threads: int) -> None:
        self.launch, self.jobs, self.threads = launch, jobs, threads

    @classmethod
    def on_cluster(cls, launch: LaunchConfig) -> bool:
        """Whether cohorts run on machines with other devices than this one's, whose accelerator has to be named."""
        return False

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Around everything else: what all cohorts need, and its end."""
        yield

    @abstractmethod
    def start(self, cohort: Cohort, place: int) -> Any:
        """Start `segbench.training.work.work` of the cohort and return at once what stands for it from here on.

        Args:
            place: from 0 to ``jobs`` - 1, which no other cohort has that runs.
        """

    @abstractmethod
    def poll(self, handle: Any) -> Progress | Ended | None:
        """What is new of a cohort, or how it ended, after which nothing of it is asked. Returns at once."""

    @abstractmethod
    def stop(self, handle: Any) -> None:
        """Ask a cohort to save its state and end. Returns at once; `poll` tells the end."""

    @abstractmethod
    def kill(self, handle: Any) -> None:
        """End a cohort now. Returns at once; `poll` tells the end."""

    def wait(self, handles: Sequence[Any]) -> None:
        """Return when one of them may have news, or after some tenths of a second."""
        time.sleep(0.1)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collects stop signals instead of dying from them; ignored signals (nohup) stay ignored."""
    caught: list[int] = []
    with contextlib.ExitStack() as stack:
        for s in STOP_SIGNALS:
            if signal.getsignal(s) != signal.SIG_IGN:
                stack.callback(signal.signal, s, signal.signal(s, lambda number, _: caught.append(number)))
        yield caught


@contextlib.contextmanager
def blocked(signals: Collection[int]) -> Iterator[None]:
    """Processes that start meanwhile never get these, which are the runner's alone to heed.

    A terminal sends Ctrl-C, and a batch system its SIGTERM, to every process of the group.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def as_user_error(launch: LaunchConfig, method: str) -> Iterator[None]:
    """Turn what a method of the launcher raises into a `UserError` that names both."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"launcher '{launch.launcher}': {method} raises {brief(error)}") from error


def load(launch: LaunchConfig) -> tuple[type[Launcher], dict[str, Any]]:
    """The launcher's class and ``launch.params``, its defaults filled in.

    Raises:
        UserError: there is none of that name, its package is not installed, or it does not take these.
    """
    cls = LAUNCHERS.load(launch.launcher)
    return cls, check_params(LAUNCHERS, launch.launcher, cls, launch.params)


def run_cohorts(
    launch: LaunchConfig, cohorts: Sequence[Cohort], jobs: int, threads: int, on_progress: OnProgress, on_end: OnEnd
) -> Sequence[int]:
    """Run every cohort, ``jobs`` at a time; on Ctrl-C (or another of `STOP_SIGNALS`) the running ones save their state.

    Args:
        on_progress: called now and then.
        on_end: called once for each cohort that was started.

    Returns:
        The signals that interrupted it.

    Raises:
        UserError: something that holds for all cohorts, such as a cluster that is not there.
    """
    cls, params = load(launch)
    with contextlib.ExitStack() as stack:
        with as_user_error(launch, "its constructor"):
            launcher = cls(cohorts, launch, jobs, threads, **params)
            if launcher.jobs < 1:
                raise UserError(f"launcher '{launch.launcher}': jobs should be 1 or more, not {launcher.jobs}")
        with as_user_error(launch, "opened"):
            stack.enter_context(launcher.opened())
        caught = stack.enter_context(caught_signals())
        run_until(caught, launcher, cohorts, on_progress, on_end)
        return caught


@dataclass(eq=False)
class _Running:
    cohort: Cohort
    place: int
    handle: Any = None


def run_until(
    caught: Sequence[int], launcher: Launcher, cohorts: Sequence[Cohort], on_progress: OnProgress, on_end: OnEnd
) -> None:
    """`run_cohorts` with a launcher that is open, until ``caught`` holds a signal."""
    waiting, running, places = list(cohorts), list[_Running](), list(range(launcher.jobs))
    asked, ask_s = 0, 0.0  # how often the cohorts were asked to end, and when to ask again

    def ask(one: _Running, method: str, *args: Any) -> Any:
        """What the launcher answers; None, where it raises, for then the cohort has failed."""
        try:
            answer = getattr(launcher, method)(*args)
            if method == "poll" and not isinstance(answer, Progress | Ended | None):
                raise TypeError(f"it returned {answer!r}; wanted None, Progress or Ended")
            return answer
        except UserError:
            raise
        except Exception as error:
            with contextlib.suppress(Exception):
                launcher.kill(one.handle)
            reason = f"launcher '{launcher.launch.launcher}': {method} raises {brief(error)}"
            end(one, Ended.alike(one.cohort, Failed(Failure(reason, Failure.of(error).traceback))))

    def end(one: _Running, ended: Ended) -> None:
        running.remove(one)
        places.append(one.place)
        on_end(one.cohort, ended)

    try:
        while running or (waiting and not caught):
            while waiting and places and not caught:
                running.append(one := _Running(waiting.pop(0), places.pop(0)))
                one.handle = ask(one, "start", one.cohort, one.place)
            if caught and time.monotonic() > ask_s:
                asked, ask_s = asked + 1, time.monotonic() + launcher.grace_s
                for one in list(running):
                    if asked <= 1 + KILLS:
                        ask(one, "stop" if asked == 1 else "kill", one.handle)
                    else:
                        end(one, Ended.alike(one.cohort, Stopped()))
            if running:
                with as_user_error(launcher.launch, "wait"):
                    launcher.wait([one.handle for one in running])
            for one in list(running):
                news = ask(one, "poll", one.handle)
                if isinstance(news, Progress):
                    on_progress(one.cohort, *news)
                elif news is not None:
                    wanted = Lost if asked else ()  # which was not to go on
                    outcomes = {key: Stopped() if isinstance(o, wanted) else o for key, o in news.outcomes.items()}
                    end(one, Ended(outcomes))
    finally:
        for one in running:
            with contextlib.suppress(Exception):
                launcher.kill(one.handle)
