"""The speed of sweeps on a CUDA device: eight decoders against one, kept features, precision, loader workers.

Prints, for each way to run it, wall seconds of `segbench sweep` in a new folder and seconds of its training steps, and
at last the ratios: eight decoders to one (aim: 2 at most in bf16), float32 to bf16, drawn views to kept ones. Then
`benchmarks/limit.py` on the same sweep. Data are drawn scenes unless `data...` says otherwise. Ends with a line where
there is no CUDA device; nobody has run it on one yet.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

EIGHT = ["bilinear", "nearest", "bilinear_conv", "nearest_conv", "deconv", "subpixel", "carafe", "dysample"]
LARGE = [
    "data={name: shapes, size: 512, train: 400, val: 50}", "decoder_defaults={width: 64}",
    "recipe.crop=512", "recipe.batch_size=16", "recipe.steps=200",
]  # fmt: skip


def sweep(config: str, decoders: list[str], scratch: Path, *overrides: str) -> tuple[float, float] | str:
    """Wall seconds of a sweep in a new folder, and those of its training steps; the end of what it says if it fails."""
    with tempfile.TemporaryDirectory(dir=scratch) as runs:
        fixed = [f"decoders=[{','.join(decoders)}]", "seeds=[0]", "baseline=null", f"runs_dir={runs}"]
        command = [sys.executable, "-m", "segbench.cli", "sweep", config, *overrides, *fixed]
        start = time.perf_counter()
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wall = time.perf_counter() - start
        if done.returncode:
            return f"failed: {done.stdout.strip()[-500:]}"
        rows = [json.loads(path.read_text()) for path in Path(runs).glob("*/*/result.json")]
    return wall, rows[0]["train_shared_s"] + sum(row["values"]["train"] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/default.yaml")
    parser.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_intermixed_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: torch.cuda.is_available() is False")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    base = [*LARGE, *args.overrides, "trainer.accelerator=gpu"]
    half = [*base, "trainer.precision=bf16-mixed"]
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        kept = [*half, "recipe.views=2", "encoder.dtype=bfloat16", f"launch.features={scratch / 'features'}"]
        ways = {
            "1 decoder, bf16": (EIGHT[:1], half),
            "8 decoders, bf16": (EIGHT, half),
            "8 decoders, bf16, 4 workers": (EIGHT, [*half, "launch.workers=4"]),
            "8 decoders, bf16, compiled": (EIGHT, [*half, "trainer.compile=true"]),
            "8 decoders, float32": (EIGHT, base),
            "8 decoders, two views, to be kept": (EIGHT, kept),
            "8 decoders, two views, kept": (EIGHT, kept),
        }
        found = {}
        for name, (decoders, overrides) in ways.items():
            took = sweep(args.config, decoders, scratch, *overrides)
            if isinstance(took, str):
                print(f"{name}: {took}", flush=True)
            else:
                found[name] = took
                print(f"{name}: {took[0]:.1f} s, of them {took[1]:.1f} s training", flush=True)
    for what, a, b in (
        ("eight decoders to one", "8 decoders, bf16", "1 decoder, bf16"),
        ("float32 to bf16", "8 decoders, float32", "8 decoders, bf16"),
        ("views to be kept to kept ones", "8 decoders, two views, to be kept", "8 decoders, two views, kept"),
    ):
        if a in found and b in found:
            wall, training = (found[a][i] / found[b][i] for i in (0, 1))
            print(f"{what}: {wall:.2f} times the wall time, {training:.2f} times the training", flush=True)
    limit = [sys.executable, str(Path(__file__).with_name("limit.py")), "--config", args.config, "--repeats", "1"]
    failed = subprocess.run([*limit, *half], check=False).returncode
    sys.exit(failed or int(len(found) < len(ways)))


if __name__ == "__main__":
    main()
