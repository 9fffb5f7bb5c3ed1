"""What a run was made on: versions, hardware, memory."""

import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import segbench


def environment(threads: int, accelerator: str) -> dict[str, Any]:
    """Versions, hardware, threads and the state of the project's git checkout."""
    names = (
        "torch",
        "pytorch_lightning",
        "segmentation_models_pytorch",
        "timm",
        "albumentations",
        "cv2",
        "numpy",
        "torchvision",
    )
    versions = {n: getattr(sys.modules[n], "__version__", "?") for n in names if n in sys.modules}
    here = Path(segbench.__file__).parent
    git: dict[str, str | None] = {}
    for what, asked in (("commit", ["rev-parse", "HEAD"]), ("changes", ["status", "--porcelain", "--", str(here)])):
        try:
            command = ["git", "--no-optional-locks", "-C", str(here), *asked]  # a commit at the same time goes on
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
            git[what] = None
        else:
            git[what] = done.stdout.strip()
    return {
        "versions": versions | {"segbench": segbench.__version__, "python": platform.python_version()},
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if accelerator == "cuda" else None,
        "threads": threads,
        "platform": platform.platform(),
        "git": git,
    }


def peak_memory(workers: int) -> int:
    """Bytes: the largest resident size of this process so far, and that of its loader workers."""
    unit = 1 if sys.platform == "darwin" else 1024
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return unit * (own + workers * child)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
