"""Cohorts side by side with one thread each, or one after the other with all; and how soon a cohort starts.

Prints how long the first process and those after it take until they have worked, imports included; how long cohorts one
after the other take until their first training step is done (encoder, data, decoders and the step); then wall times of
whole sweeps of as many cohorts as there are cores, which take turns, and their ratio.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from segbench.config_file import load_config
from segbench.launch import local
from segbench.launch.base import run_cohorts
from segbench.outcomes import Ended
from segbench.runs import Cohort, make_cohorts
from segbench.sweep.plan import make_plan


def first_steps(config: str, overrides: list[str]) -> list[float]:
    """Seconds from the start of each of three cohorts, one after the other, until its first step is done."""
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load_config(config, [*overrides, f"runs_dir={scratch}", "seeds=[0,1,2]"])
        began, seconds = [time.perf_counter()], {}

        def on_progress(cohort: Cohort, phase: str, done: int, total: int) -> None:
            seconds.setdefault(cohort.runs[0].seed, time.perf_counter() - began[-1])

        def on_end(cohort: Cohort, ended: Ended) -> None:
            began.append(time.perf_counter())

        cohorts = make_cohorts(make_plan(loaded).runs, lambda run: 0)
        began[0] = time.perf_counter()
        run_cohorts(loaded.launch, cohorts, 1, os.cpu_count() or 1, on_progress, on_end)
        return list(seconds.values())


def seconds(jobs: int, threads: int, config: str, overrides: list[str]) -> float:
    """Wall time of `segbench sweep` in a new folder."""
    with tempfile.TemporaryDirectory() as scratch:
        fixed = [f"runs_dir={scratch}", f"launch.jobs={jobs}", f"launch.threads={threads}"]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "segbench.cli", "sweep", config, *fixed, *overrides], check=True, capture_output=True
        )
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/default.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", default=["recipe.steps=30"])
    args = parser.parse_intermixed_args()
    for which in ("first", "second", "third"):
        start = time.perf_counter()
        local.call(os.getpid)
        print(f"{which} process: {time.perf_counter() - start:.2f} s until it has worked", flush=True)
    steps = ", ".join(f"{s:.2f}" for s in first_steps(args.config, args.overrides))
    print(f"three cohorts, one after the other: {steps} s until the first step was done", flush=True)
    cores = os.cpu_count() or 1
    overrides = [*args.overrides, f"seeds={list(range(cores))}".replace(" ", "")]
    ratios = []
    for _ in range(args.repeats):
        one, many = seconds(1, cores, args.config, overrides), seconds(cores, 1, args.config, overrides)
        ratios.append(one / many)
        print(
            f"1 job with {cores} threads {one:.1f} s, {cores} jobs with 1 thread {many:.1f} s, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
