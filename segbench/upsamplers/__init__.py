"""Upsamplers, the rows of a table: one file each, on the contract of `segbench.upsamplers.base`.

Each is usable by itself: ``from segbench.upsamplers import Deconv; y = Deconv(64, 2)(x)``.
"""

from importlib import import_module
from pathlib import Path
from typing import Any


def __getattr__(name: str) -> Any:
    """The class of that name, from its file: ``BilinearConv`` is in ``bilinear_conv.py``. Imported when asked for."""
    for file in Path(__file__).parent.glob("*.py"):
        if file.stem.replace("_", "") == name.lower():
            return getattr(import_module(f"{__name__}.{file.stem}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
