"""What a sweep will do and take, before it runs, and where it stands while it does. Imports no torch."""

import heapq
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segbench import store
from segbench.config import DecoderConfig, SweepConfig
from segbench.config_file import expand_grid
from segbench.errors import UserError
from segbench.launch import local
from segbench.runs import Cohort, Run, make_cohorts
from segbench.sweep.run import check_files, plan, resources, step_of

if TYPE_CHECKING:
    from segbench.training.trial import Trial


@dataclass(frozen=True)
class Plan:
    """What a sweep consists of.

    Attributes:
        runs: all of them.
        cohorts: of what is to do.
        damaged: results that will be set aside and made again, in one line each.
        jobs: cohorts at a time.
        threads: of each.
        planning_s: seconds that looking at it took, which a sweep takes too.
    """

    runs: list[Run]
    cohorts: list[Cohort]
    damaged: list[str]
    jobs: int
    threads: int
    planning_s: float


@dataclass(frozen=True)
class Estimate:
    """What is left of a sweep will take about this, on this machine.

    Attributes:
        seconds: from the command to its table.
        memory_bytes: resident, of all cohorts that run at a time.
        gpu_bytes: of one cohort, as torch allocates them.
        kept_bytes: on the disk in the end.
        running_bytes: on the disk beside that, while cohorts run: their checkpoints.
    """

    seconds: float
    memory_bytes: float
    gpu_bytes: float
    kept_bytes: float
    running_bytes: float


def look(config: SweepConfig) -> tuple[Plan | None, list[str]]:
    """The plan of a sweep, and what fails its checks, in one line each; without a plan where all of it fails."""
    began = time.monotonic()
    failing: list[str] = []
    try:
        runs = plan(config)
    except UserError as error:
        whys = {decoder.title: _why_not(config, decoder) for decoder in config.decoders}
        good = [decoder for decoder in config.decoders if not whys[decoder.title]]
        if not good or len(good) == len(whys):  # the fault is not of some decoders
            return None, [str(error)]
        failing = [why for why in whys.values() if why]
        runs = plan(config.model_copy(update={"decoders": good}))
    folder = Path(config.runs_dir) / config.name
    for _, variant in expand_grid(config):
        try:
            check_files(variant, folder)
        except UserError as error:
            failing.append(str(error))
    todo, damaged = [], []
    for run in runs:
        try:
            if store.read_row(run.folder) is not None:
                continue
        except store.Damaged as error:
            damaged.append(f"{run.name}: {error}; it will be set aside, and the run made again")
        todo.append(run)
    jobs, threads = resources(config, runs[0].facts)
    return Plan(runs, make_cohorts(todo, step_of), damaged, jobs, threads, time.monotonic() - began), failing


def _why_not(config: SweepConfig, decoder: DecoderConfig) -> str:
    try:
        plan(config.model_copy(update={"decoders": [decoder], "baseline": None}))
    except UserError as error:
        return str(error)
    return ""


def estimate(planned: Plan, say: Callable[[str], None] = lambda what: None) -> Estimate:
    """Try each kind of cohort for some seconds, as many at a time as the sweep will run, and reckon up.

    Args:
        say: told what is being tried.

    Raises:
        UserError: a run fails in its trial.
    """
    trials: dict[tuple[str, ...], list[Trial]] = {}
    for cohort in planned.cohorts:
        kind = (repr(cohort.runs[0].variant), *(run.title for run in cohort.runs))
        if kind not in trials:
            say(f"trying {cohort.name}: {', '.join(run.title for run in cohort.runs)}")
            at_once = min(planned.jobs, len(planned.cohorts))
            gpus = [local.own_gpu(cohort, place) for place in range(at_once)]
            with ThreadPoolExecutor(at_once) as pool:
                trials[kind] = list(pool.map(lambda g, c=cohort: local.call(_try, c, planned.threads, g), gpus))
    seconds, memory, gpu, kept, running = [], [], [], 0.0, []
    for cohort in planned.cohorts:
        found = trials[(repr(cohort.runs[0].variant), *(run.title for run in cohort.runs))]

        def mean(name: str, found: Sequence["Trial"] = found) -> float:
            return sum(getattr(t, name) for t in found) / len(found)

        config, images = cohort.runs[0].config, cohort.runs[0].facts.eval_images
        steps, every = config.recipe.steps - cohort.start_step, config.evaluation.every
        counted = images * (1 + (steps // every if every else 0))
        seconds.append(mean("start_s") + steps * mean("step_s") + counted * mean("image_s"))
        memory.append(mean("memory_bytes"))
        gpu.append(mean("gpu_bytes"))
        kept += mean("kept_bytes") + images * mean("image_bytes")
        running.append(mean("checkpoint_bytes"))
    at_once = min(planned.jobs, len(seconds))
    return Estimate(
        planned.planning_s + _makespan(seconds, planned.jobs),
        sum(sorted(memory)[-at_once:]),
        max(gpu, default=0.0),
        kept,
        sum(sorted(running)[-at_once:]),
    )


def _makespan(seconds: Sequence[float], jobs: int) -> float:
    """When the last cohort ends, where each starts as soon as one before it has ended."""
    free = [0.0] * jobs
    for duration in seconds:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def _try(cohort: Cohort, threads: int, gpu: str | None) -> "Trial":
    from segbench.training.trial import trial

    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is first used
    return trial(cohort, threads)


def describe(config: SweepConfig, planned: Plan) -> str:
    """Runs and cohorts, what is done and what is to do, in lines."""
    done = len(planned.runs) - sum(len(c.runs) for c in planned.cohorts)
    lines = [f"{config.name}: {len(planned.runs)} runs, {done} done, {len(planned.runs) - done} to do"]
    lines += [f"  damaged {damage}" for damage in planned.damaged]
    for cohort in planned.cohorts:
        start = f", from step {cohort.start_step}" if cohort.start_step else ""
        lines.append(f"  {cohort.name}: {', '.join(run.title for run in cohort.runs)}{start}")
    if planned.cohorts:
        at_a_time = min(planned.jobs, len(planned.cohorts))
        one = "1 cohort at a time" if at_a_time == 1 else f"{at_a_time} cohorts at a time"
        where = "" if config.launch.launcher == "local" else f" on {config.launch.launcher}"
        lines.append(f"{one}, {planned.threads} thread{'s' * (planned.threads > 1)} each{where}")
    return "\n".join(lines)


def in_words(found: Estimate, folder: Path) -> str:
    """An estimate in lines, beside what this machine has."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    memory = _memory()
    lines = [
        f"time    about {duration(found.seconds)}",
        f"memory  about {size(found.memory_bytes)}" + (f" of {size(memory)}" if memory else ""),
        f"disk    about {size(found.kept_bytes)}, and {size(found.running_bytes)} while it runs; {size(free)} are free",
    ]
    if found.gpu_bytes:
        lines.insert(2, f"GPU     about {size(found.gpu_bytes)} of each cohort, as torch allocates it")
    if memory and found.memory_bytes > memory:
        lines.append("more memory than there is: lower launch.jobs, recipe.batch_size or recipe.crop")
    if found.kept_bytes + found.running_bytes > free:
        lines.append("more disk than is free: make room, or set runs_dir to another disk")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Such as ``2 h 5 min``, ``3 min 20 s`` or ``12 s``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def size(number: float) -> str:
    """Bytes, such as ``1.2 GB``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number / 1e3:.0f} kB"


def _memory() -> int:
    """Bytes of this machine, or what its control group may use; 0 where that is not said."""
    found = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    try:
        with open("/proc/meminfo") as file:
            found.append(1024 * int(next(line.split()[1] for line in file if line.startswith("MemTotal:"))))
    except (OSError, StopIteration):
        pass
    return min(found, default=0)
