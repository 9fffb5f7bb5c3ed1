"""segbench: which upsampling should a segmentation decoder use? Measured side by side, with evidence."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Decoder", "__version__", "load"]

if TYPE_CHECKING:
    from segbench.decoders.base import Decoder
    from segbench.report.frame import load


def __getattr__(name: str) -> Any:
    """`Decoder` imports torch, `load` pandas, so they are imported when first asked for."""
    if name == "Decoder":
        from segbench.decoders.base import Decoder

        return Decoder
    if name == "load":
        from segbench.report.frame import load

        return load
    raise AttributeError(f"module 'segbench' has no attribute '{name}'")
