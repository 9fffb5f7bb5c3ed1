"""One cohort of six decoders against six cohorts of one: the same work and process settings, in one run.

Prints the wall times and their ratio. Each way is a whole sweep in new run folders, process start and evaluation
included, one cohort at a time; A and B take turns.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIX = ["bilinear", "nearest", "bilinear_conv", "deconv", "fractional", "subpixel"]


def seconds(decoders: list[str], runs_dir: Path, config: str, overrides: list[str]) -> float:
    """Wall time of `segbench sweep` for these decoders, in a new folder."""
    fixed = [
        f"runs_dir={runs_dir}",
        f"decoders=[{','.join(decoders)}]",
        f"baseline={decoders[0]}",
        "seeds=[0]",
        "launch.jobs=1",
    ]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "segbench.cli", "sweep", config, *fixed, *overrides], check=True, capture_output=True
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/default.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--decoders", default=",".join(SIX))
    parser.add_argument("overrides", nargs="*", default=["recipe.steps=60"])
    args = parser.parse_args()
    decoders = args.decoders.split(",")
    together, alone = [], []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            together.append(seconds(decoders, Path(scratch) / "together", args.config, args.overrides))
            alone.append(sum(seconds([d], Path(scratch) / d, args.config, args.overrides) for d in decoders))
        print(
            f"together {together[-1]:.1f} s, alone {alone[-1]:.1f} s, ratio {alone[-1] / together[-1]:.2f}", flush=True
        )
    ratios = [a / t for a, t in zip(alone, together, strict=True)]
    print(f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
