"""Run a sweep: plan, start what is missing, show progress, keep what ended."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, assert_never

from rich.console import Console
from rich.markup import escape

from segbench import store
from segbench.config import SweepConfig
from segbench.errors import Failure, UserError
from segbench.launch.base import run_cohorts
from segbench.outcomes import Busy, Done, Ended, Failed, Lost, Outcome, Stopped
from segbench.runs import Cohort, Run, as_text, make_cohorts, should_split, spelled_variant
from segbench.sweep.manifest import make_manifest, write_manifest
from segbench.sweep.plan import Plan, code_files, make_plan
from segbench.sweep.progress import Display
from segbench.sweep.status import last_said
from segbench.tuning import SETTING, Choice

UNCHOSEN = "trials of it failed, or all of them diverged"


def run_sweep(config: SweepConfig, console: Console) -> tuple[Path, int, dict[str, Any]]:
    """Run what is missing of a sweep. Any number of processes may do so at once: they share the work.

    Returns:
        The sweep's folder; an exit code: 0 done, 1 some runs failed, 2 bad data or folders, 130 interrupted; and the
        list of runs that was written, whatever other commands have written since.

    Raises:
        UserError: something that would make every run fail; nothing was started.
    """
    for file in code_files(config, launches=True):
        console.print(f"runs the code in {escape(str(file))}", highlight=False, soft_wrap=True)
    plan, searched = make_plan(config), 0
    if plan.search is not None and plan.search.todo:
        # So that `segbench status` knows of the sweep meanwhile.
        listed = write_manifest(config, plan.runs, plan.awaited, "the search has not chosen its setting yet")
        _tell(console, "damaged", [listed.damage])
        _tell(console, "replaced", [listed.replaced])
        searched, _ = _run(plan.search, console)
        if searched == 130:
            return plan.folder, searched, listed.manifest
        plan = make_plan(config)
        _tell(console, "chosen", _chosen(plan))
    code, manifest = _run(plan, console)
    return plan.folder, max(code, searched), manifest


def _chosen(plan: Plan) -> Iterator[str]:
    """What the search chose for each decoder, and for which it could choose nothing, in lines."""
    tuned = [run for run in [*plan.runs, *plan.awaited] if run.awaited or "choice" in run.found]
    for run in {(run.title, as_text(run.variant)): run for run in tuned}.values():
        said = f"nothing: {UNCHOSEN}" if run.awaited else Choice(**run.found["choice"]).words()
        where = [v for v in spelled_variant(run.variant) if v != f"{SETTING}=tuned"]
        yield f"{' '.join([run.title, *where])}: {said}"


def _run(plan: Plan, console: Console) -> tuple[int, dict[str, Any]]:
    """What is missing of a plan; the exit code, and the list of runs that was written."""
    began, config, runs, folder = time.monotonic(), plan.config, plan.runs, plan.folder
    store.tidy_sweep(folder)
    try:
        damages = list(repair(plan))
        listed = write_manifest(config, runs, plan.awaited, UNCHOSEN)
    except UserError as error:
        if plan.todo:
            raise
        _tell(console, "as it is", [f"nothing is to do, so that the table can be made all the same: {error}"])
        damages, listed = [], make_manifest(config, runs, plan.awaited, UNCHOSEN)
    _tell(console, "damaged", [*damages, listed.damage])
    _tell(console, "replaced", [listed.replaced])
    _tell(console, "note", plan.findings)
    name = f"{folder.parent.name}/{folder.name}" if plan.searching else config.name
    console.print(f"[bold]{escape(name)}[/]: {plan.counted} before, {len(plan.todo)} to do")
    if not plan.todo:
        return 0, listed.manifest
    code = _Sweep(plan, console).run()
    listed = write_manifest(
        config, runs, plan.awaited, UNCHOSEN
    )  # another command on this folder may have listed its own meanwhile
    _tell(console, "replaced", [listed.replaced])
    folders = {run.folder for run in runs}
    done = sum(map(store.is_done, folders))
    console.print(
        f"{done} of {len(folders)} runs done in {time.monotonic() - began:.0f} s, in {escape(str(folder))}",
        soft_wrap=True,
    )
    return code, listed.manifest


def _tell(console: Console, what: str, lines: Iterable[str]) -> None:
    for line in filter(None, lines):
        console.print(f"[yellow]{what}[/] {escape(line)}", highlight=False, soft_wrap=True)


def repair(plan: Plan) -> Iterator[str]:
    """Clear away what killed processes left, and set damaged results and checkpoints aside; yields what was damaged.

    Runs that another process works on are left alone.
    """
    todo = {run.key for run in plan.todo}
    for run in plan.runs:
        if not run.folder.is_dir():
            continue
        with store.locked(run.folder) as mine:
            if not mine:
                continue
            store.tidy(run.folder)
            try:
                if run.key in todo and store.read_row(run.folder) is None:
                    for path in store.damaged_checkpoints(run.folder):
                        yield f"{path} (its checksum differs): set aside; the run goes on from an older one, or anew"
            except store.Damaged as error:
                yield f"{run.name}: {error}; set aside as {store.set_aside(run.folder)}, the run is made again"


class _Sweep:
    """The runs of a sweep that are to do, until each is done or has failed once."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self.plan, self.console = plan, console
        self.open = {run.key: run for run in plan.todo}
        self.before = {run.key: last_said(run.folder) for run in plan.todo}
        self.again: list[Cohort] = []  # parts of a cohort for which memory was too small, or whose process died
        self.short = False  # whether memory was too small for one of them
        self.code = 0

    def run(self) -> int:
        """Returns the exit code."""
        cohorts, jobs = self.plan.cohorts, self.plan.jobs
        try:
            while self.open:
                if cohorts and not self._round(cohorts, jobs) and self.open:
                    raise KeyboardInterrupt
                jobs = 1 if self.short else self.plan.jobs  # one after the other
                cohorts, self.again, self.short = self.again, [], False
                cohorts = cohorts or make_cohorts(self._wait())
        except KeyboardInterrupt:
            self.console.print("[yellow]stopped[/]; the same command goes on from what is saved")
            return 130
        return self.code

    def _wait(self) -> list[Run]:
        """Until other processes have done the runs that they hold; returns what they gave up undone."""
        free: list[Run] = []
        with self.console.status("") as status:
            while self.open and not free:
                for run in list(self.open.values()):
                    with store.locked(run.folder) as mine:
                        found = last_said(run.folder)
                        if store.is_done(run.folder):
                            del self.open[run.key]
                        elif mine and found.get("state") == "failed" and found != self.before[run.key]:
                            reason = f"{found.get('reason')} (in another process)"
                            self._failed([run], reason, diverged=found.get("diverged") is True)
                        elif mine:
                            free.append(run)
                if self.open and not free:
                    status.update(
                        f"{len(self.open)} runs are worked on by other processes; `segbench status` shows them"
                    )
                    time.sleep(1)
        return free

    def _failed(self, runs: Sequence[Run], reason: str, code: int = 1, diverged: bool = False) -> None:
        """They are done with; that one diverged is no failure of a search, but what it finds of that setting."""
        names, found = ", ".join(run.name for run in runs), diverged and self.plan.searching
        said = "[yellow]diverged[/]" if found else "[red]failed[/]"
        self.console.print(f"{said} {escape(f'{names}: {reason}')}", highlight=False, soft_wrap=True)
        self.code = max(self.code, 0 if found else code)
        for run in runs:
            del self.open[run.key]

    def _ended(self, cohort: Cohort, ended: Ended) -> None:
        """Settle what a cohort did; what is left open was stopped, is held by another process, or is tried again."""
        done: list[Run] = []
        short: list[Run] = []
        lost: dict[str, list[Run]] = {}  # by reason, those whose process died
        failed: dict[Failure, list[Run]] = {}  # by why, tracebacks aside
        for run in cohort.runs:
            match outcome := _outcome(run, ended):
                case Done() | Busy():  # whoever did the second says so
                    done += [run] if outcome == Done() else []
                    if store.is_done(run.folder):
                        del self.open[run.key]
                case Failed(failure) | Lost(failure):
                    if not should_split(cohort, failure, isinstance(outcome, Lost)):
                        if _note(run, failure) or isinstance(outcome, Failed):
                            failed.setdefault(replace(failure, traceback=""), []).append(run)
                    elif failure.out_of_memory:
                        short.append(run)
                    else:
                        lost.setdefault(failure.reason, []).append(run)
                case Stopped():
                    pass
                case _:
                    assert_never(outcome)
        if short:
            self.short = True
            parts = _halves(short) if len(short) == len(cohort.runs) else [short]
            self._again(cohort, "out of memory", parts)
        for reason, runs in lost.items():
            suspects = [run for run in runs if store.in_turn(run.folder)]
            parts = [suspects, [run for run in runs if run not in suspects]]
            if not all(parts):  # whose turn it was is not known, or it has failed
                parts = _halves(runs) if len(runs) == len(cohort.runs) else [runs]
            self._again(cohort, reason, parts)
        for failure, members in failed.items():
            where = "" if failure.user_error else f" ({members[0].folder / store.TRACEBACK})"
            self._failed(members, f"{failure.reason}{where}", 2 if failure.user_error else 1, failure.diverged)
        if done:
            self.console.print(f"[green]done[/] {escape(cohort.name)}: {escape(cohort.titles(done))}", highlight=False)
        for run in cohort.runs:
            if run.key not in self.open and (printed := _printed(run)):
                self.console.print(
                    f"[dim]{escape(f'{run.name} printed: {printed}')}[/]", highlight=False, soft_wrap=True
                )

    def _again(self, cohort: Cohort, why: str, parts: Sequence[Sequence[Run]]) -> None:
        self.again += [smaller for part in parts for smaller in make_cohorts(part)]
        how = " and ".join(", ".join(run.name for run in part) for part in parts)
        self.console.print(f"[yellow]{escape(why)}[/] {escape(cohort.name)}: {escape(how)} again", soft_wrap=True)

    def _round(self, cohorts: Sequence[Cohort], jobs: int) -> bool:
        """Run cohorts and show how far they are; False where it was interrupted."""
        with Display(self.console, cohorts) as display:

            def on_end(cohort: Cohort, ended: Ended) -> None:
                display.end(cohort)
                self._ended(cohort, ended)

            launch = self.plan.config.launch
            launch = launch.model_copy(update={"jobs": jobs}) if jobs < self.plan.jobs else launch
            return not run_cohorts(launch, cohorts, jobs, self.plan.threads, display.update, on_end)


def _outcome(run: Run, ended: Ended) -> Outcome:
    """How it ended: a result that is there counts, whatever was said, and one that is not there does not."""
    nothing = Lost(Failure("the cohort ended without its result"))
    said = ended.outcomes.get(run.key, nothing)
    if store.is_done(run.folder):
        return said if isinstance(said, Busy) else Done()
    return nothing if isinstance(said, Done) else said


def _halves(runs: list[Run]) -> list[list[Run]]:
    middle = -(-len(runs) // 2)
    return [part for part in (runs[:middle], runs[middle:]) if part]


def _printed(run: Run) -> str:
    """The first line of what a run's code printed, and where the rest is; empty where it printed nothing."""
    path = run.folder / store.OUTPUT
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        first = "".join(c for c in file.readline(200) if c.isprintable())
        more = sum(1 for _ in file)
        return f"{first} ... {more} more lines in {path}" if more else first
    return ""


def _note(run: Run, failure: Failure) -> bool:
    """Mark a run as failed that its process has not, with what it printed last; False where another works on it."""
    with contextlib.suppress(OSError):
        if not failure.traceback:
            printed = (run.folder / store.OUTPUT).read_text("utf-8", "replace")
            failure = replace(failure, traceback=f"{failure.reason}\n\n{printed[-20_000:]}")
    with contextlib.suppress(UserError), store.locked(run.folder) as mine:
        if not mine:
            return False
        store.fail(run.folder, failure)
    return True  # on a full disk it is at least printed
