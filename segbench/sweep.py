"""Run a sweep: plan, start what is missing, show progress, keep what ended."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from segbench import store
from segbench.config import SweepConfig
from segbench.errors import UserError
from segbench.launch import local
from segbench.plan import Cohort, Facts, Run, make_cohorts, make_runs


def plan(config: SweepConfig) -> list[Run]:
    """Every run of the sweep. Builds encoder and decoders once, in a process of its own, to see what they are.

    Raises:
        UserError: something that would make every run fail.
    """
    return make_runs(config, _probe)


def _probe(config: SweepConfig) -> Facts:
    facts: Facts = local.call(_probe_there, config)
    return facts


def _probe_there(config: SweepConfig) -> Facts:
    from segbench.probe import probe

    return probe(config)


def _check_files_there(config: SweepConfig, marker: Path) -> None:
    from segbench.probe import check_files

    check_files(config, marker)


def run_sweep(config: SweepConfig, console: Console) -> tuple[Path, int]:
    """Run what is missing of a sweep.

    Returns:
        The sweep's folder and an exit code: 0 done, 1 some runs failed, 2 bad data or folders, 130 interrupted.

    Raises:
        UserError: something that would make every run fail; nothing was started.
    """
    began = time.monotonic()
    runs = plan(config)
    folder = Path(config.runs_dir) / config.name
    todo = [run for run in runs if not store.is_done(run.folder)]
    for variant in {repr(run.variant): run.config for run in todo}.values():
        local.call(_check_files_there, variant, folder / ".checked")
    store.write_json(folder / store.MANIFEST, _manifest(config, runs))
    say = f"[bold]{escape(config.name)}[/]: {len(runs)} runs, {len(runs) - len(todo)} done before, {len(todo)} to do"
    console.print(say)
    if not todo:
        return folder, 0
    cohorts = make_cohorts(todo, lambda run: max(store.checkpoints(run.folder), default=0))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = config.launch.jobs or (min(2, cores) if runs[0].facts.accelerator == "cpu" else 1)
    threads = config.launch.threads or max(1, cores // jobs)
    code = _run(cohorts, jobs, threads, console)
    done = sum(store.is_done(run.folder) for run in runs)
    console.print(
        f"{done} of {len(runs)} runs done in {time.monotonic() - began:.0f} s, in {escape(str(folder))}", soft_wrap=True
    )
    return folder, code


def _manifest(config: SweepConfig, runs: Sequence[Run]) -> dict[str, Any]:
    """What the table needs to know of the sweep: which runs belong to it, done or not."""
    rows = [
        {"key": r.key, "decoder": r.title, "seed": r.seed, "variant": r.variant, "folder": r.folder.name} for r in runs
    ]
    return {"config": config.model_dump(), "runs": rows}


def _run(cohorts: Sequence[Cohort], jobs: int, threads: int, console: Console) -> int:
    code = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, speed_estimate_period=300) as progress:
        steps = {id(c): c.runs[0].config.recipe.steps - c.start_step for c in cohorts}
        images = {id(c): c.runs[0].facts.eval_images for c in cohorts}
        # One unit of the whole is a training step; an image of the evaluation costs about a fifth of one.
        total = progress.add_task("whole sweep", total=sum(steps.values()) + sum(images.values()) / 5)
        tasks: dict[int, TaskID] = {}
        units: dict[int, float] = {}

        def on_progress(cohort: Cohort, phase: str, done: int, of: int) -> None:
            place = id(cohort)
            key = escape(f"{cohort.name}: {phase}")
            if place not in tasks:
                tasks[place] = progress.add_task(key, total=of, completed=done)
            progress.update(tasks[place], description=key, total=of, completed=done)
            units[place] = done - cohort.start_step if phase == "train" else steps[place] + done / 5
            progress.update(total, completed=sum(units.values()))

        def on_end(ended: local.Ended) -> None:
            nonlocal code
            place = id(ended.cohort)
            if place in tasks:
                progress.remove_task(tasks.pop(place))
            units[place] = steps[place] + images[place] / 5
            failures = dict(ended.failures)
            if ended.died:
                for run in ended.cohort.runs:
                    if not store.is_done(run.folder):
                        failures[run.key] = ended.died.reason
                        with contextlib.suppress(UserError):  # a full disk: it is at least printed
                            store.fail(run.folder, ended.died)
            by_reason: dict[str, list[Run]] = {}
            for run in ended.cohort.runs:
                if run.key in failures:
                    by_reason.setdefault(failures[run.key], []).append(run)
            for reason, members in by_reason.items():
                names = ", ".join(run.name for run in members)
                where = "" if ended.user_error else f" ({members[0].folder / store.TRACEBACK})"
                console.print(f"[red]failed[/] {escape(f'{names}: {reason}{where}')}", highlight=False, soft_wrap=True)
            if failures:
                code = max(code, 2 if ended.user_error else 1)
            elif not ended.stopped:
                progress.console.print(
                    f"[green]done[/] {ended.cohort.name}: {', '.join(r.title for r in ended.cohort.runs)}"
                )

        whole = local.run_cohorts(cohorts, jobs, threads, on_progress, on_end)
    if not whole:
        console.print("[yellow]stopped[/]; the state is saved, the same command goes on from here")
        return 130
    return code
