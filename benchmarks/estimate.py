"""`segbench plan` against the truth: estimated and measured time, memory and disk of a whole sweep, in a new folder.

Memory is measured from outside, twice a second: the proportional set sizes (in which shared pages count once) of the
runner and all its descendants. So are the checkpoints on the disk.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from segbench import store
from segbench.config_file import load_config
from segbench.sweep.estimate import estimate
from segbench.sweep.plan import make_plan


def run(command: list[str], folder: Path) -> tuple[float, int, int]:
    """Seconds that the command takes, and the most bytes of memory, and of checkpoints below ``folder``, meanwhile."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    memory, checkpoints = [0], [0]
    while process.poll() is None:
        sizes = []
        with contextlib.suppress(psutil.Error):
            for member in [me := psutil.Process(process.pid), *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    sizes.append(member.memory_full_info().pss)
        memory.append(sum(sizes))
        with contextlib.suppress(FileNotFoundError):  # one is removed in between
            checkpoints.append(sum(p.stat().st_size for p in folder.glob(f"*/{store.CHECKPOINTS}")))
        time.sleep(0.5)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - start, max(memory), max(checkpoints)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--runs-dir", help="where the sweep is kept; default: a folder that is thrown away")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as scratch:
        overrides = [*args.overrides, f"runs_dir={args.runs_dir or scratch}"]
        planned = make_plan(load_config(args.config, overrides), partly=True)
        if planned.failing:
            sys.exit("\n".join(planned.failing))
        start = time.perf_counter()
        found = estimate(planned)
        trial_s = time.perf_counter() - start
        folders = [run.folder for run in planned.runs]
        command = [sys.executable, "-m", "segbench.cli", "sweep", args.config, *overrides]
        sweep_s, memory, checkpoints = run(command, folders[0].parent)
        kept = sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; the trial took {trial_s:.0f} s")
        for what, guess, truth, unit in (
            ("time, s", found.seconds, sweep_s, 1.0),
            ("memory, GB", found.memory_bytes, memory, 1e9),
            ("disk, MB", found.kept_bytes, kept, 1e6),
            ("checkpoints, MB", found.running_bytes, checkpoints, 1e6),
        ):
            print(f"{what}: estimated {guess / unit:.2f}, measured {truth / unit:.2f}, ratio {guess / truth:.3f}")


if __name__ == "__main__":
    main()
