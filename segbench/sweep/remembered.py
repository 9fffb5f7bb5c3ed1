"""When facts that were found before still hold, so that a finished sweep answers without building anything.

Imports no torch.
"""

import hashlib
import json
import os
import platform
import sys
from pathlib import Path

import segbench
from segbench.config import SweepConfig
from segbench.data.base import file_status

DEVICES = Path("/dev")
OF_RUNS = {"name", "runs_dir", "seeds", "baseline"}  # of a config, what no facts depend on


def place(variant: SweepConfig, on_cluster: bool) -> str:
    """Hash of all that the facts of a variant without plug-ins come from, its data aside.

    That is its config, segbench's files, the installed packages, a weights file's size and dates, and this machine's
    GPUs. Weights that a library loads by name are taken to be those of that name.
    """
    weights = file_status(Path(variant.encoder.weights))
    stamp = (weights.st_size, weights.st_mtime_ns, weights.st_ctime_ns) if weights else None
    parts = [variant.model_dump(mode="json", exclude=OF_RUNS), on_cluster, stamp, _sources(), _packages(), _machine()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sources() -> list[tuple[str, int, int]]:
    stamps = ((path, file_status(path)) for path in sorted(Path(segbench.__file__).parent.rglob("*.py")))
    # An editor's lock is a link to nothing.
    return [(str(path), status.st_size, status.st_mtime_ns) for path, status in stamps if status is not None]


def _packages() -> list[str]:
    folders = {Path(folder) for folder in sys.path}
    return sorted(str(path) for folder in folders for path in folder.glob("*.dist-info"))


def _machine() -> list[str | None]:
    gpus = [str(path) for path in sorted(DEVICES.glob("nvidia[0-9]*"))]
    return [platform.node(), sys.version, os.environ.get("CUDA_VISIBLE_DEVICES"), *gpus]
