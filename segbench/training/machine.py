"""What a run was made on: versions, hardware, memory."""

import platform
import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import segbench

LIBRARIES = "torch pytorch_lightning segmentation_models_pytorch timm albumentations cv2 numpy torchvision"


def environment(threads: int, accelerator: str) -> dict[str, Any]:
    """Versions, hardware, threads and the state of the project's git checkout."""
    versions = {n: getattr(sys.modules[n], "__version__", "?") for n in LIBRARIES.split() if n in sys.modules}
    here = str(Path(segbench.__file__).parent)
    return {
        "versions": versions | {"segbench": segbench.__version__, "python": platform.python_version()},
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if accelerator == "cuda" else None,
        "threads": threads,
        "platform": platform.platform(),
        "git": {"commit": _git(here, "rev-parse", "HEAD"), "changes": _git(here, "status", "--porcelain", "--", here)},
    }


def peak_memory(workers: int) -> int:
    """Bytes: the largest resident size of this process so far, and that of its loader workers."""
    unit = 1 if sys.platform == "darwin" else 1024
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return unit * (own + workers * child)


def _git(here: str, *asked: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", here, *asked]  # a commit at the same time goes on
    with suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None


def _cpu_name() -> str:
    with suppress(OSError):
        if found := re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.M):
            return found[1].strip()
    return platform.processor()
