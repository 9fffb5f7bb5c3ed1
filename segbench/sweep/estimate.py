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
from segbench.config import SweepConfig
from segbench.errors import Failure, UserError
from segbench.launch import local
from segbench.loading.cache import LEFT_FREE
from segbench.runs import Cohort, Run, make_cohorts
from segbench.sweep.files import KNOWN
from segbench.sweep.plan import Plan
from segbench.sweep.status import duration

TRAIN_S, WARM_UP, FEWEST_STEPS, IMAGES = 10.0, 2, 3, 6  # of a trial
FEATURES = "features"  # where it keeps them


class Filling(NamedTuple):
    """What it takes to keep the features of a set that are not kept yet (``launch.features``)."""

    name: str  # of the set
    missing: float  # images of the evaluation that are not kept; of views, `_missing_views` says it
    seconds_each: float  # more than with kept ones
    bytes_each: float


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
    views: Filling | None = None  # with kept features, for which all the above stands then
    images: Filling | None = None


class Estimate(NamedTuple):
    """What is left of a sweep will take about this, on this machine."""

    seconds: float  # from the command to its table
    memory_bytes: int  # resident, of all cohorts that run at a time
    gpu_bytes: int  # of one cohort, as torch allocates them
    kept_bytes: int  # on the disk in the end
    running_bytes: int  # on the disk beside that, while cohorts run: their checkpoints
    features_bytes: int = 0  # of the features that are not kept yet


def estimate(plan: Plan, say: Callable[[str], None] = lambda what: None) -> Estimate:
    """Try each kind of cohort for some seconds, as many at a time as the sweep will run, and reckon up.

    With ``tune`` the search comes first; a run for which it has not chosen yet is tried as the sweep says.

    Args:
        say: told what is being tried.

    Raises:
        UserError: a run fails in its trial.
    """
    if plan.search is not None:
        cohorts = make_cohorts([*plan.todo, *plan.awaited]) if plan.search.todo else plan.cohorts
        parts = plan.search, replace(plan, search=None, cohorts=cohorts)
        return _one_after_the_other([estimate(part, say) for part in parts if part.cohorts])
    trials: dict[tuple[str, ...], Trial] = {}
    used: dict[str, Filling] = {}  # sets of features
    keeps = any(cohort.runs[0].config.launch.features for cohort in plan.cohorts)
    missing: dict[str, float] = local.call(_missing_views, plan.cohorts, plan.threads) if keeps else {}
    at_once = min(plan.jobs, len(plan.cohorts))
    seconds, memory, gpu, kept, running = [], [], [], 0.0, []
    for cohort in plan.cohorts:
        kind = tuple(f"{run.title} {run.variant}" for run in cohort.runs)
        if kind not in trials:
            say(f"trying {cohort.name}: {cohort.titles()}")
            gpus = [local.own_gpu(cohort, place) for place in range(at_once)]
            with ThreadPoolExecutor(at_once) as pool:
                found = pool.map(lambda gpu, c=cohort: local.call(trial, c, plan.threads, gpu), gpus)
                trials[kind] = _mean(list(found))
        took, config, images = trials[kind], cohort.runs[0].config, cohort.runs[0].facts.eval_images
        steps, every = config.recipe.steps - cohort.start_step, config.evaluation.every
        counted = images * (1 + (steps // every if every else 0))
        seconds.append(took.start_s + steps * took.step_s + counted * took.image_s)
        memory.append(took.memory_bytes)
        used |= {filling.name: filling for filling in (took.views, took.images) if filling is not None}
        gpu.append(took.gpu_bytes)
        kept += took.kept_bytes + images * took.image_bytes
        running.append(took.checkpoint_bytes)
    fill = [(missing.get(f.name, f.missing), f) for f in used.values()]
    filling_s = sum(number * f.seconds_each for number, f in fill) / max(1, at_once)
    total_s = plan.planning_s + _makespan(seconds, plan.jobs) + filling_s
    most, most_running = (round(sum(sorted(sizes)[-at_once:])) for sizes in (memory, running))
    features = round(sum(number * f.bytes_each for number, f in fill))
    return Estimate(total_s, most, round(max(gpu, default=0.0)), round(kept), most_running, features)


def _one_after_the_other(parts: Sequence[Estimate]) -> Estimate:
    """What is kept and the times add up; of what is held meanwhile the most counts."""
    sums = {"seconds", "kept_bytes", "features_bytes"}
    columns = zip(Estimate._fields, zip(*parts, strict=True), strict=True)
    return Estimate(*(sum(values) if name in sums else max(values) for name, values in columns))


def _mean(found: Sequence[Trial]) -> Trial:
    """Of cohorts that were tried side by side."""
    means = map(fmean, zip(*(trial[:-2] for trial in found), strict=True))
    named: dict[str, Any] = dict(zip(Trial._fields, means, strict=False))
    return found[0]._replace(**named)


def _makespan(seconds: Sequence[float], jobs: int) -> float:
    """When the last cohort ends, where each starts as soon as one before it has ended."""
    free = [0.0] * jobs
    for cohort_s in seconds:
        heapq.heappush(free, heapq.heappop(free) + cohort_s)
    return max(free)


def trial(cohort: Cohort, threads: int, gpu: str | None) -> Trial:
    """Train the cohort from its first step for some seconds and evaluate a few images, in a folder that is thrown away.

    Where features are kept, it does so twice, first without any and then with all that it asks for.

    Args:
        gpu: ``CUDA_VISIBLE_DEVICES`` of the process that this is called in; None to leave it.

    Raises:
        UserError: a run of it failed.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is first used
    config = cohort.runs[0].config
    with tempfile.TemporaryDirectory(prefix="segbench-trial-") as place:
        first, steps = _tried(cohort, threads, Path(place))
        if config.launch.features is None:
            return first
        again, _ = _tried(cohort, threads, Path(place), steps)
        sets = _fillings(cohort, Path(place))
        if "train" in sets:
            more = (first.step_s - again.step_s) / config.recipe.batch_size
            again = again._replace(views=sets["train"]._replace(seconds_each=max(0.0, more)))
        if "val" in sets:
            more = first.image_s - again.image_s
            again = again._replace(images=sets["val"]._replace(seconds_each=max(0.0, more)))
        return again


def _missing_views(cohorts: Sequence[Cohort], threads: int) -> dict[str, float]:
    """Name of a set of training features -> how many of the views that these cohorts ask for are not in it."""
    import torch

    from segbench.data import open_data
    from segbench.loading.features import KeptFeatures, open_features
    from segbench.loading.pipeline import TrainStream

    torch.set_num_threads(threads)  # which a set's name has
    sets: dict[str, tuple[KeptFeatures, set[tuple[int, int]]]] = {}
    for cohort in cohorts:
        run = cohort.runs[0]
        config, recipe, dataset = run.config, run.config.recipe, open_data(run.config.data, "train")
        if (kept := open_features(config, run.facts, "train", dataset)) is not None and recipe.views:
            stream = TrainStream(dataset, recipe, run.seed, cohort.start_step * recipe.batch_size)
            items = range(min(len(stream), (recipe.views + 1) * len(dataset)))  # which see all views
            _, views = sets.setdefault(kept.folder.name, (kept, set()))
            views.update(stream.place(item)[1:] for item in items)
    return {name: kept.missing(views) for name, (kept, views) in sets.items()}


def _fillings(cohort: Cohort, place: Path) -> dict[str, Filling]:
    """``train`` and ``val`` -> what is kept of them already, and what a file of those that the trial wrote takes.

    A set of which it could write nothing, as the disk is full, is left out.
    """
    from segbench.data import open_data
    from segbench.loading.features import feature_sets, open_features

    config, facts, found = cohort.runs[0].config, cohort.runs[0].facts, {}
    tried = {kept.folder.name: kept for kept in feature_sets(place / FEATURES) if kept.files}
    for which in ("train", "val"):
        dataset = open_data(config.data, which)
        kept = open_features(config, facts, which, dataset)
        if kept is not None and (mine := tried.get(kept.folder.name)):
            # Of the evaluation, an image has a file for each window of each view.
            each = mine.files / min(IMAGES, len(dataset)) if which == "val" else 1
            there = sum(1 for _ in kept.folder.glob("??/*.safetensors")) / each
            found[which] = Filling(kept.folder.name, max(0, len(dataset) - there), 0.0, each * mine.size / mine.files)
    return found


def _tried(cohort: Cohort, threads: int, place: Path, most_steps: int | None = None) -> tuple[Trial, int]:
    """The trial, of at most so many steps, and how many there were; features are kept in ``place``."""
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
        long = len(steps) >= WARM_UP + FEWEST_STEPS and steps[-1] - steps[WARM_UP - 1] > TRAIN_S
        return (long or len(steps) == most_steps) and not times["evaluate"]

    config = cohort.runs[0].config
    runs_dir = place / ("first" if most_steps is None else "again")
    kept = {"features": str(place / FEATURES)} if config.launch.features else {}
    launch = config.launch.model_copy(update={"trackers": [], **kept})
    evaluation = config.evaluation.model_copy(update={"every": None})
    quietly = {"launch": launch, "evaluation": evaluation}
    runs = [
        replace(run, config=run.config.model_copy(update=quietly), folder=runs_dir / run.folder.name)
        for run in cohort.runs
    ]
    runs_dir.mkdir()
    with contextlib.suppress(FileNotFoundError):  # which spares the cohort reading labels
        shutil.copy(cohort.runs[0].folder.parent / KNOWN, runs_dir)
    began = time.perf_counter()
    checkpoint_bytes = 0
    try:
        run_cohort(Cohort(tuple(runs), 0), failures, note, enough, threads, IMAGES)
    except Stopped:
        checkpoint_bytes = _bytes(runs, store.CHECKPOINTS)
        steps = len(times["train"])
        runs = [replace(run, config=_shortened(run.config, steps)) for run in runs]
        run_cohort(Cohort(tuple(runs), steps), failures, note, lambda: False, threads, IMAGES)
    if failures:
        raise UserError("; ".join(f"{run.name}: {failures[run.key].reason}" for run in runs if run.key in failures))
    counts_bytes = _bytes(runs, store.COUNTS)
    kept_bytes = _bytes(runs, "*") - counts_bytes
    step_s, image_s = _mean_gap(times["train"], WARM_UP), _mean_gap(times["evaluate"], 1)
    start_s, image_bytes = max(0.0, times["train"][0] - began - step_s), counts_bytes / len(times["evaluate"])
    gpu_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    memory_bytes = peak_memory()
    sizes = memory_bytes, gpu_bytes, kept_bytes, image_bytes, checkpoint_bytes
    return Trial(start_s, step_s, image_s, *sizes), len(times["train"])


def _shortened(config: SweepConfig, steps: int) -> SweepConfig:
    return config.model_copy(update={"recipe": config.recipe.model_copy(update={"steps": steps})})


def _mean_gap(times: list[float], skip: int) -> float:
    """Seconds from one time to the next, the first ``skip`` left out where there are more."""
    skip = min(skip, len(times) - 1)
    return (times[-1] - times[skip - 1]) / (len(times) - skip) if skip else 0.0


def _bytes(runs: list[Run], pattern: str) -> int:
    return sum(path.stat().st_size for run in runs for path in run.folder.glob(pattern) if path.is_file())


def in_words(found: Estimate, folder: Path, features: str | None = None) -> str:
    """An estimate in lines, beside what this machine has; ``features`` is ``launch.features``."""
    free, memory = _free(folder), _memory()
    disk = f"{decimal(found.kept_bytes)}, and {decimal(found.running_bytes)} while it runs; {decimal(free)} are free"
    lines = [
        f"time    about {duration(found.seconds)}",
        f"memory  about {decimal(found.memory_bytes)}" + (f" of {decimal(memory)}" if memory else ""),
        f"disk    about {disk}",
    ]
    if found.gpu_bytes:
        lines.insert(2, f"GPU     about {decimal(found.gpu_bytes)} of each cohort, as torch allocates it")
    if features:
        left = max(0, _free(Path(features)) - LEFT_FREE)
        lines.append(
            f"features about {decimal(found.features_bytes)} to keep in {features}; {decimal(left)} are free for it"
        )
        if found.features_bytes > left:
            lines.append("more features than there is room for: what is not kept is computed each time")
    if memory and found.memory_bytes > memory:
        lines.append("more memory than there is: lower launch.jobs, recipe.batch_size or recipe.crop")
    if found.kept_bytes + found.running_bytes > free:
        lines.append("more disk than is free: make room, or set runs_dir to another disk")
    return "\n".join(lines)


def _free(folder: Path) -> int:
    """Bytes that are free on the disk on which a folder is, or would be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def _memory() -> int:
    """Bytes of this machine, or what its control group may use; 0 where that is not said."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(Path(path).read_text()))
    return min(found, default=0)
