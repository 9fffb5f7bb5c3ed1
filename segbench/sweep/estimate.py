"""Estimates a sweep's time, memory and disk from short trials of its cohorts. Imports no torch, but in a trial."""

import contextlib
import heapq
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rich.filesize import decimal

from segbench import store
from segbench.errors import Failure, UserError
from segbench.launch import local
from segbench.runs import Cohort, Run
from segbench.sweep.files import KNOWN
from segbench.sweep.plan import Plan
from segbench.sweep.status import duration

TRAIN_S, WARM_UP, FEWEST_STEPS, IMAGES = 10.0, 2, 3, 6  # of a trial


class Trial(NamedTuple):
    """What one cohort took, of which some seconds and a few images were tried."""

    start_s: float  # from its start to its first step: encoder, data, decoders
    step_s: float  # for a training step of all decoders together
    image_s: float  # for an evaluated image of all decoders together
    memory_bytes: float  # the largest resident size of its process, its loader workers' added
    gpu_bytes: float  # the most that torch had allocated on the GPU
    kept_bytes: float  # of the finished run folders, without what grows with the images
    image_bytes: float  # what they grow by with each image
    checkpoint_bytes: float  # of all its runs, while it trains; 0 where it was too short for one


class Estimate(NamedTuple):
    """What is left of a sweep will take about this, on this machine."""

    seconds: float  # from the command to its table
    memory_bytes: int  # resident, of all cohorts that run at a time
    gpu_bytes: int  # of one cohort, as torch allocates them
    kept_bytes: int  # on the disk in the end
    running_bytes: int  # on the disk beside that, while cohorts run: their checkpoints


def estimate(plan: Plan, say: Callable[[str], None] = lambda what: None) -> Estimate:
    """Try each kind of cohort for some seconds, as many at a time as the sweep will run, and reckon up.

    Args:
        say: told what is being tried.

    Raises:
        UserError: a run fails in its trial.
    """
    trials: dict[tuple[str, ...], Trial] = {}
    at_once = min(plan.jobs, len(plan.cohorts))
    seconds, memory, gpu, kept, running = [], [], [], 0.0, []
    for cohort in plan.cohorts:
        titles = [run.title for run in cohort.runs]
        kind = (repr(cohort.runs[0].variant), *titles)
        if kind not in trials:
            say(f"trying {cohort.name}: {', '.join(titles)}")
            gpus = [local.own_gpu(cohort, place) for place in range(at_once)]
            with ThreadPoolExecutor(at_once) as pool:
                found = pool.map(lambda gpu, c=cohort: local.call(trial, c, plan.threads, gpu), gpus)
                trials[kind] = Trial(*map(fmean, zip(*found, strict=True)))
        took, config, images = trials[kind], cohort.runs[0].config, cohort.runs[0].facts.eval_images
        steps, every = config.recipe.steps - cohort.start_step, config.evaluation.every
        counted = images * (1 + (steps // every if every else 0))
        seconds.append(took.start_s + steps * took.step_s + counted * took.image_s)
        memory.append(took.memory_bytes)
        gpu.append(took.gpu_bytes)
        kept += took.kept_bytes + images * took.image_bytes
        running.append(took.checkpoint_bytes)
    total_s = plan.planning_s + _makespan(seconds, plan.jobs)
    most, most_running = (round(sum(sorted(sizes)[-at_once:])) for sizes in (memory, running))
    return Estimate(total_s, most, round(max(gpu, default=0.0)), round(kept), most_running)


def _makespan(seconds: Sequence[float], jobs: int) -> float:
    """When the last cohort ends, where each starts as soon as one before it has ended."""
    free = [0.0] * jobs
    for cohort_s in seconds:
        heapq.heappush(free, heapq.heappop(free) + cohort_s)
    return max(free)


def trial(cohort: Cohort, threads: int, gpu: str | None) -> Trial:
    """Train the cohort from its first step for some seconds and evaluate a few images, in a folder that is thrown away.

    Args:
        gpu: ``CUDA_VISIBLE_DEVICES`` of the process that this is called in; None to leave it.

    Raises:
        UserError: a run of it failed.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is first used
    import torch

    from segbench.training.cohort import run_cohort
    from segbench.training.control import Stopped
    from segbench.training.results import peak_memory

    times: dict[str, list[float]] = {"train": [], "evaluate": []}
    failures: dict[str, Failure] = {}

    def note(phase: str, done: int, total: int) -> None:
        times[phase].append(time.perf_counter())

    def enough() -> bool:
        steps = times["train"]
        done = len(steps) >= WARM_UP + FEWEST_STEPS and steps[-1] - steps[WARM_UP - 1] > TRAIN_S
        return done and not times["evaluate"]

    with tempfile.TemporaryDirectory(prefix="segbench-trial-") as place:
        config = cohort.runs[0].config
        launch = config.launch.model_copy(update={"trackers": []})
        evaluation = config.evaluation.model_copy(update={"every": None})
        quietly = config.model_copy(update={"launch": launch, "evaluation": evaluation})
        runs = [replace(run, config=quietly, folder=Path(place) / run.folder.name) for run in cohort.runs]
        with contextlib.suppress(FileNotFoundError):  # which spares the cohort reading labels
            shutil.copy(cohort.runs[0].folder.parent / KNOWN, place)
        began = time.perf_counter()
        checkpoint_bytes = 0
        try:
            run_cohort(Cohort(tuple(runs), 0), failures, note, enough, threads, IMAGES)
        except Stopped:
            checkpoint_bytes = _bytes(runs, store.CHECKPOINTS)
            steps = len(times["train"])
            short: dict[str, Any] = {"recipe": config.recipe.model_copy(update={"steps": steps})}
            runs = [replace(run, config=quietly.model_copy(update=short)) for run in runs]
            run_cohort(Cohort(tuple(runs), steps), failures, note, lambda: False, threads, IMAGES)
        if failures:
            raise UserError("; ".join(f"{run.name}: {failures[run.key].reason}" for run in runs if run.key in failures))
        counts_bytes = _bytes(runs, store.COUNTS)
        kept_bytes = _bytes(runs, "*") - counts_bytes
    step_s, image_s = _mean_gap(times["train"], WARM_UP), _mean_gap(times["evaluate"], 1)
    start_s, image_bytes = max(0.0, times["train"][0] - began - step_s), counts_bytes / len(times["evaluate"])
    gpu_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    memory_bytes = peak_memory(config.launch.workers)
    return Trial(start_s, step_s, image_s, memory_bytes, gpu_bytes, kept_bytes, image_bytes, checkpoint_bytes)


def _mean_gap(times: list[float], skip: int) -> float:
    """Seconds from one time to the next, the first ``skip`` left out where there are more."""
    skip = min(skip, len(times) - 1)
    return (times[-1] - times[skip - 1]) / (len(times) - skip) if skip else 0.0


def _bytes(runs: list[Run], pattern: str) -> int:
    return sum(path.stat().st_size for run in runs for path in run.folder.glob(pattern) if path.is_file())


def in_words(found: Estimate, folder: Path) -> str:
    """An estimate in lines, beside what this machine has."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free, memory = shutil.disk_usage(there).free, _memory()
    disk = f"{decimal(found.kept_bytes)}, and {decimal(found.running_bytes)} while it runs; {decimal(free)} are free"
    lines = [
        f"time    about {duration(found.seconds)}",
        f"memory  about {decimal(found.memory_bytes)}" + (f" of {decimal(memory)}" if memory else ""),
        f"disk    about {disk}",
    ]
    if found.gpu_bytes:
        lines.insert(2, f"GPU     about {decimal(found.gpu_bytes)} of each cohort, as torch allocates it")
    if memory and found.memory_bytes > memory:
        lines.append("more memory than there is: lower launch.jobs, recipe.batch_size or recipe.crop")
    if found.kept_bytes + found.running_bytes > free:
        lines.append("more disk than is free: make room, or set runs_dir to another disk")
    return "\n".join(lines)


def _memory() -> int:
    """Bytes of this machine, or what its control group may use; 0 where that is not said."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(Path(path).read_text()))
    return min(found, default=0)
