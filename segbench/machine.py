"""What numbers are made on: versions of libraries, and hardware."""

import importlib
import platform
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import segbench
from segbench import checkout


def versions(libraries: Iterable[str]) -> dict[str, str]:
    return {name: str(getattr(importlib.import_module(name), "__version__", "?")) for name in libraries}


def cpu_name() -> str:
    with suppress(OSError):
        if found := re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.M):
            return found[1].strip()
    return platform.processor()


def environment(threads: int, accelerator: str) -> dict[str, Any]:
    """Versions, hardware, threads and the state of the project's git checkout."""
    libraries = "torch pytorch_lightning segmentation_models_pytorch timm albumentations cv2 numpy torchvision"
    used = [name for name in libraries.split() if name in sys.modules]
    return {
        "versions": versions(used) | {"segbench": segbench.__version__, "python": platform.python_version()},
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if accelerator == "cuda" else None,
        "threads": threads,
        "platform": platform.platform(),
        "git": checkout.of_segbench(),
    }
