"""How soon commands answer: `--help`, `list`, `show`, and a sweep that has nothing to do.

Prints median and range of wall seconds, each a process of its own. The sweep has 100 finished runs, which are made
first, of few steps on small drawn scenes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

RUNS = [
    "data={name: shapes, size: 32, train: 4, val: 2}", "recipe={steps: 1, batch_size: 2, crop: 32}", "grid={}",
    "decoders=[bilinear,nearest,bilinear_conv,nearest_conv,deconv,subpixel,bicubic,lanczos,carafe,dysample]",
    "decoder_defaults={width: 4}", "seeds=[0,1,2,3,4,5,6,7,8,9]",
]  # fmt: skip


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "segbench.cli", *command], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sweep = ["sweep", "configs/default.yaml", *RUNS, f"runs_dir={scratch}"]
        print(f"100 runs made in {seconds(*sweep):.0f} s", flush=True)
        commands = {
            "--help": ["--help"],
            "list": ["list"],
            "show carafe": ["show", "carafe"],
            "a finished sweep of 100 runs": sweep,
            "status of it": ["status", f"{scratch}/default"],
            "table of it": ["table", f"{scratch}/default"],
        }
        for name, command in commands.items():
            taken = [seconds(*command) for _ in range(args.repeats)]
            print(f"{name}: {statistics.median(taken):.2f} s ({min(taken):.2f} to {max(taken):.2f})", flush=True)


if __name__ == "__main__":
    main()
