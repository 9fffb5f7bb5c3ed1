"""A sweep before it runs: what it consists of, what is done, what fails. Imports no torch."""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from segbench.config import SweepConfig
from segbench.config_file import combinations, expand_grid
from segbench.data import open_data
from segbench.errors import UserError, suggest
from segbench.launch import local
from segbench.launch.base import as_user_error, load
from segbench.loading.cache import in_cache
from segbench.registry import (
    DATASETS,
    DECODERS,
    ENCODERS,
    LAUNCHERS,
    MEASURES,
    TASKS,
    UPSAMPLERS,
    check_params,
    find,
)
from segbench.runs import Cohort, Facts, Run, Variant, make_cohorts, make_runs, priced
from segbench.sweep import remembered
from segbench.sweep.files import KnownFiles
from segbench.sweep.status import RunStatus, run_status
from segbench.tuning import Choices, choose, search_of, variants

MOST_FACTS = 100  # variants of which a sweep's folder remembers them


@dataclass(frozen=True)
class Plan:
    """What a sweep consists of, and what is to do."""

    config: SweepConfig
    runs: list[Run]  # all of them whose setting is known; none where everything fails
    todo: list[Run]  # those that are not done, among them those of which a result is damaged
    damaged: list[str]  # what is wrong with such results, in one line each
    findings: list[str]  # what one should know, of the data where they were read for the first time
    cohorts: list[Cohort]  # of what is to do
    failing: list[str]  # what fails, a decoder by itself or all of them, in one line each
    jobs: int  # cohorts at a time
    threads: int  # of each
    planning_s: float  # which a sweep takes too
    search: "Plan | None" = None  # of what ``tune`` searches
    awaited: list[Run] = field(default_factory=list)  # for which it has not chosen yet
    searching: bool = False  # it is such a search
    diverged: list[str] = field(default_factory=list)  # keys of its runs that ended so

    @property
    def folder(self) -> Path:
        return _folder(self.config)

    def __str__(self) -> str:
        """Runs and cohorts, what is done and what is to do, in lines."""
        lines = [f"{self.config.name}: {self.counted}, {len(self.todo)} to do"]
        lines += [f"  damaged {damage}; it will be set aside, and the run made again" for damage in self.damaged]
        lines += [f"  note: {finding}" for finding in self.findings]
        lines += [f"  {line}" for line in dict.fromkeys(map(_widths, self.runs)) if line]
        for cohort in self.cohorts:
            start = f", from step {cohort.start_step}" if cohort.start_step else ""
            lines.append(f"  {cohort.name}: {cohort.titles()}{start}")
        if self.cohorts:
            at_once = min(self.jobs, len(self.cohorts))
            where = "" if self.config.launch.launcher == "local" else f" on {self.config.launch.launcher}"
            threads = f"{self.threads} thread{'s' * (self.threads > 1)} each"
            lines.append(f"{at_once} cohort{'s' * (at_once > 1)} at a time, {threads}{where}")
        if self.awaited and self.search and self.search.todo:
            lines.append(f"then {len(self.awaited)} tuned runs, each with the setting that the search chooses")
        elif self.awaited:
            names = ", ".join(dict.fromkeys(run.title for run in self.awaited))
            lines.append(f"  no setting is chosen for {names}: trials of it failed, or all of them diverged")
        return "\n".join([*([str(self.search)] if self.search else []), *lines])

    @property
    def counted(self) -> str:
        """How many runs there are and how many of them are done; one that stands in two variants counts once."""
        number = len({run.key for run in self.runs})
        return f"{number} runs, {number - len(self.todo)} done"


def _widths(run: Run) -> str:
    """What a budget chose for it, in words; empty without one."""
    if (found := run.found.get("budget")) is None:
        return ""
    off = 100 * (found["cost"] / found["asked"] - 1)
    return f"{run.title}: width {found['width']}, which costs {priced(found['cost'], found['by'])}, {off:+.1f} %"


def make_plan(config: SweepConfig, partly: bool = False, searching: bool = False) -> Plan:
    """Build what the sweep names once, in a process of its own, read what is done, and read every image that is new.

    Args:
        partly: plan the decoders that work where others fail, and say in `Plan.failing` what does; else it is raised.
        searching: of a search, in which a run that diverged has ended.

    Raises:
        UserError: something that would make every run fail; without ``partly``, a decoder that fails.
    """
    began = time.monotonic()
    if not partly:
        _check_names(config)
    runs, statuses, findings, search = list[Run](), dict[str, RunStatus](), list[str](), None
    try:
        launcher, _ = load(config.launch)
        with as_user_error(config.launch, "on_cluster"):
            on_cluster = launcher.on_cluster(config.launch)
        choices: Choices = {}
        if config.tune is not None:
            search = make_plan(search_of(config), partly, searching=True)
            choices = choose(config, search.runs, search.diverged)
        parts = list(variants(config, choices))
        looked = _finished(config, parts, on_cluster) or local.call(_look, config, parts, on_cluster, partly)
        runs, statuses, failing, findings = looked
    except UserError as error:
        if not partly:
            raise
        failing = [str(error)]
    if search is not None:
        failing = list(dict.fromkeys([*search.failing, *failing]))
    awaited, runs = [run for run in runs if run.awaited], [run for run in runs if not run.awaited]
    diverged = [key for key, status in statuses.items() if status.diverged] if searching else []
    left = {run.key: run for run in runs if statuses[run.key].state != "done" and run.key not in diverged}
    todo = list(left.values())
    damaged = [f"{run.name}: {statuses[run.key].more}" for run in todo if statuses[run.key].state == "damaged"]
    cohorts = make_cohorts(todo, lambda run: statuses[run.key].step)
    jobs, threads = resources(config, runs[0].facts.accelerator, runs[0].facts.gpus) if runs else (0, 0)
    planning_s = time.monotonic() - began
    more = search, awaited, searching, diverged
    return Plan(config, runs, todo, damaged, findings, cohorts, failing, jobs, threads, planning_s, *more)


def _check_names(config: SweepConfig) -> None:
    """Raise a `UserError` for wrong names, and wrong parameters of our data sets, before torch is imported."""
    for name in [d.name for d in config.decoders if ":" not in d.name]:
        find(name, DECODERS, UPSAMPLERS)
    for data in {repr(variant.data): variant.data for _, variant in expand_grid(config)}.values():
        if ":" not in data.name and find(data.name, DATASETS)[1] is None:
            check_params(DATASETS, data.name, DATASETS.load(data.name), data.params)


Looked = tuple[list[Run], dict[str, RunStatus], list[str], list[str]]  # runs, status by key, what fails, what to know


def _finished(config: SweepConfig, parts: Sequence[Variant], on_cluster: bool) -> Looked | None:
    """What `_look` would say of a finished sweep, from what is remembered; None where it has to look.

    A sweep with code of the user's is always looked at.
    """
    known, as_found = KnownFiles.read(_folder(config)), dict[str, list[str]]()
    if not known.facts or code_files(config, launches=True):
        return None

    def facts(variant: SweepConfig) -> Facts:
        found = known.facts[remembered.place(variant, on_cluster)]
        if (data := repr(variant.data)) not in as_found:
            splits = {which: open_data(variant.data, which) for which in ("train", "val")}
            as_found[data] = known.data_facts(variant.data, splits)
            if not known.all_good(splits, found.data[-2:]):
                raise LookupError
        if as_found[data] != found.data:
            raise LookupError
        return found

    try:
        runs = make_runs(parts, facts)
    except (LookupError, UserError):  # which `_look` raises too, if it is still there
        return None
    statuses = {run.key: run_status(run.folder) for run in runs}
    return (runs, statuses, [], []) if all(status.state == "done" for status in statuses.values()) else None


def _look(config: SweepConfig, parts: Sequence[Variant], on_cluster: bool, partly: bool) -> Looked:
    """Every run, its status by key, what fails, and what one should know."""
    from segbench.sweep.facts import FactFinder

    folder = _folder(config)
    known = KnownFiles.read(folder)
    facts_before, files_before = dict(known.facts), known.model_dump_json(exclude={"facts"})
    finder = FactFinder(on_cluster, partly, known)
    _check_searched(config)
    _check_measures(config, {part.config.task.title for part in parts})
    configs = [part.config for part in parts]
    places = [remembered.place(variant, on_cluster) for variant in configs]
    found = [finder.facts(variant) for variant in configs]
    failing = list(finder.failing.values())
    good = [replace(part, titles=[t for t in part.titles if t not in finder.failing]) for part in parts]
    if not any(part.titles for part in good):
        return [], {}, failing, []
    runs = make_runs(good, finder.facts)
    statuses = {run.key: run_status(run.folder) for run in runs}
    for status in statuses.values():
        if status.state == "unreadable":
            raise UserError(status.more)
    todo, findings = [run for run in runs if statuses[run.key].state != "done"], list(finder.unused.values())
    for variant in {repr(run.config.data): run.config for run in todo}.values():
        data, facts = finder.once(finder.open_both, variant.data)
        try:
            decoded = dict if on_cluster else functools.partial(in_cache, variant, data, facts)
            findings += known.check(data, facts[-2:], variant.recipe, decoded)
        except UserError as error:
            if not partly:
                raise
            failing.append(str(error))
    if not failing and not finder.unused and places == [remembered.place(v, on_cluster) for v in configs]:
        known.facts = dict([*(known.facts | dict(zip(places, found, strict=True))).items()][-MOST_FACTS:])
    read = known.model_dump_json(exclude={"facts"}) != files_before
    if read or (known.facts != facts_before and folder.is_dir()):
        # A finished sweep is only shown, and facts alone are not worth a failure.
        with contextlib.nullcontext() if todo and read else contextlib.suppress(UserError):
            known.write(folder)
    return runs, statuses, failing, findings


def _check_measures(config: SweepConfig, tasks: set[str]) -> None:
    """Refuse a named measure of a task that no run has."""
    for measure in config.measures:
        if (task := MEASURES.load(measure.name).task) and task not in tasks:
            raise UserError(f"measure '{measure.name}' is of task {task}; the sweep has {', '.join(sorted(tasks))}")


def _check_searched(config: SweepConfig) -> None:
    """Refuse a ``decoder.PARAMETER`` that no decoder of the sweep takes."""
    from segbench.build import look_up

    asked = {key for setting in combinations(config.grid) for key in setting if key.startswith("decoder.")}
    if not asked:
        return
    taken: set[str] = set()
    for decoder in config.decoders:
        with contextlib.suppress(UserError):  # what is wrong with it is said where it is built
            taken |= look_up(decoder, config.decoder_defaults, config.skeleton).params.keys()
    for name in sorted(key.partition(".")[2] for key in asked):
        if name not in taken:
            raise UserError(f"decoder.{name}: no decoder of the sweep takes '{name}'{suggest(name, taken)}")


def _folder(config: SweepConfig) -> Path:
    return Path(config.runs_dir) / config.name


def resources(config: SweepConfig, accelerator: str, gpus: int) -> tuple[int, int]:
    """(cohorts at a time, threads of each), as the config says or as suits this machine.

    On a CPU two cohorts with one thread each are faster than one with two (`benchmarks/jobs.py`); each GPU runs one
    cohort at a time.
    """
    cores = _cores()
    jobs = config.launch.jobs or (min(2, cores) if accelerator == "cpu" else max(1, gpus))
    return jobs, config.launch.threads or max(1, cores // jobs)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spare_cores(config: SweepConfig, facts: Facts, threads: int) -> int:
    """Cores that each cohort with so many threads leaves to loader processes; on a GPU it computes with one.

    A cluster gives it as many as it has threads. None but on Linux, where loader processes are forks: a plug-in's class
    cannot be sent to another process.
    """
    if sys.platform != "linux":
        return 0
    local_jobs = resources(config, facts.accelerator, facts.gpus)[0]
    given = _cores() // local_jobs if config.launch.launcher == "local" else threads
    return max(0, given - (threads if facts.accelerator == "cpu" else 1))


def code_files(config: SweepConfig, data_only: bool = False, launches: bool = False) -> list[Path]:
    """The files that the config names as plug-ins, and that looking at it runs; its launcher's if it ``launches``."""
    named = [LAUNCHERS.code_file(config.launch.launcher)] if launches else []
    named += [DATASETS.code_file(variant.data.name) for _, variant in expand_grid(config)]
    if not data_only:
        named += [ENCODERS.code_file(variant.encoder.name) for _, variant in expand_grid(config)]
        own = [d.name for d in config.decoders if d.name not in UPSAMPLERS.builtin() | DECODERS.builtin()]
        named += [kind.code_file(name) for name in own for kind in (UPSAMPLERS, DECODERS)]
        named.append(DECODERS.code_file(config.skeleton))
        named += [MEASURES.code_file(m.name) for m in config.measures]
        named += [TASKS.code_file(variant.task.name) for _, variant in expand_grid(config)]
    return list(dict.fromkeys(path for path in named if path is not None))
