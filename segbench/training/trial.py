"""What a cohort takes, from a short trial of it: the real thing, for some seconds and on a few images."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from segbench import store
from segbench.errors import Failure, UserError
from segbench.runs import Cohort, Run
from segbench.training.cohort import run_cohort
from segbench.training.control import Stopped
from segbench.training.machine import peak_memory

TRAIN_S, WARM_UP, FEWEST_STEPS, IMAGES = 10.0, 2, 3, 6


@dataclass(frozen=True)
class Trial:
    """What one cohort took.

    Attributes:
        start_s: seconds from its start to its first step: encoder, data, decoders.
        step_s: seconds per training step of all decoders together.
        image_s: seconds per evaluated image of all decoders together.
        memory_bytes: the largest resident size of its process, its loader workers' added.
        gpu_bytes: the most that torch had allocated on the GPU.
        kept_bytes: of the finished run folders, without what grows with the images.
        image_bytes: what they grow by with each image.
        checkpoint_bytes: of the checkpoints of all its runs, while it trains; 0 where it was too short for one.
    """

    start_s: float
    step_s: float
    image_s: float
    memory_bytes: float
    gpu_bytes: float
    kept_bytes: float
    image_bytes: float
    checkpoint_bytes: float


def trial(cohort: Cohort, threads: int) -> Trial:
    """Train the cohort from its first step for some seconds and evaluate a few images, in a folder that is thrown away.

    Raises:
        UserError: a run of it failed.
    """
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
        quietly = config.model_copy(
            update={
                "launch": config.launch.model_copy(update={"trackers": []}),
                "evaluation": config.evaluation.model_copy(update={"every": None}),
            }
        )
        runs = [
            replace(run, config=quietly, folder=Path(place) / f"{i}-{run.key}") for i, run in enumerate(cohort.runs)
        ]
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
    step_s = _mean_gap(times["train"], WARM_UP)
    return Trial(
        max(0.0, times["train"][0] - began - step_s),
        step_s,
        _mean_gap(times["evaluate"], 1),
        peak_memory(config.launch.workers),
        torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        kept_bytes,
        counts_bytes / len(times["evaluate"]),
        checkpoint_bytes,
    )


def _mean_gap(times: list[float], skip: int) -> float:
    """Seconds from one time to the next, the first ``skip`` left out where there are more."""
    skip = min(skip, len(times) - 1)
    return (times[-1] - times[skip - 1]) / (len(times) - skip) if skip else 0.0


def _bytes(runs: list[Run], pattern: str) -> int:
    return sum(path.stat().st_size for run in runs for path in run.folder.glob(pattern) if path.is_file())
