"""segbench: which upsampling should a segmentation decoder use? Measured side by side, with evidence."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Decoder", "PyramidDecoder", "__version__", "load"]

if TYPE_CHECKING:
    from segbench.decoders.base import Decoder, PyramidDecoder
    from segbench.report.frame import load


def __getattr__(name: str) -> Any:
    """`Decoder` and `PyramidDecoder` import torch, `load` pandas, so they are imported when first asked for."""
    if name in ("Decoder", "PyramidDecoder"):
        from segbench.decoders import base

        return getattr(base, name)
    if name == "load":
        from segbench.report.frame import load

        return load
    raise AttributeError(f"module 'segbench' has no attribute '{name}'")
