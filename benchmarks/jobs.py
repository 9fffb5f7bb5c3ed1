"""Cohorts side by side with one thread each, or one after the other with all; and how soon a cohort starts.

Prints how long the first and the second process take from their start until they have worked, imports included; then
wall times of whole sweeps of as many cohorts as there are cores, which take turns, and their ratio.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from segbench.launch import local


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
        print(f"{which} process: {time.perf_counter() - start:.2f} s until it has worked")
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
