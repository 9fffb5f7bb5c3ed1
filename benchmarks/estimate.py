"""`segbench plan` against the truth: estimated and measured time, memory and disk of a whole sweep, in a new folder."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from segbench.config import load_config
from segbench.estimate import estimate, look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--runs-dir", help="where the sweep is kept; default: a folder that is thrown away")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as scratch:
        overrides = [*args.overrides, f"runs_dir={args.runs_dir or scratch}"]
        planned, failing = look(load_config(args.config, overrides))
        if planned is None or failing:
            sys.exit("\n".join(failing))
        start = time.perf_counter()
        found = estimate(planned)
        trial_s = time.perf_counter() - start
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "segbench.cli", "sweep", args.config, *overrides], check=True)
        sweep_s = time.perf_counter() - start
        folders = [run.folder for run in planned.runs]
        peaks = [json.loads((folder / "result.json").read_text())["peak_memory_bytes"] for folder in folders]
        at_once = min(planned.jobs, len(planned.cohorts))
        kept = sum(p.stat().st_size for folder in folders for p in Path(folder).rglob("*") if p.is_file())
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; the trial took {trial_s:.0f} s")
        for what, guess, truth, unit in (
            ("time", found.seconds, sweep_s, 1.0),
            ("memory", found.memory_bytes, at_once * max(peaks), 1e9),
            ("disk", found.kept_bytes, kept, 1e6),
        ):
            print(f"{what}: estimated {guess / unit:.2f}, measured {truth / unit:.2f}, ratio {guess / truth:.3f}")


if __name__ == "__main__":
    main()
