"""Integer counts per image and class, and the scores made from them. Imports nothing else of segbench.

Scores from counts (`iou`, `contour_f1`, ...) are NumPy and import no torch; counts (`Truth`), and the torchmetrics
classes and functions (`MeanIoU`, `mean_iou`, ...) import it when first asked for. Definitions: docs/metrics.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

from segbench.metrics.scores import collapsed, contour_f1, iou, mean_over_classes, pixel_accuracy

if TYPE_CHECKING:
    from segbench.metrics.counts import VOID, Counts, Truth, band_width, boundary_band
    from segbench.metrics.modules import (
        BoundaryF1,
        BoundaryIoU,
        MeanIoU,
        TrimapIoU,
        boundary_f1,
        boundary_iou,
        mean_iou,
        trimap_iou,
    )

_LAZY = {
    **dict.fromkeys(("VOID", "Counts", "Truth", "band_width", "boundary_band"), "segbench.metrics.counts"),
    **dict.fromkeys(("BoundaryF1", "BoundaryIoU", "MeanIoU", "TrimapIoU"), "segbench.metrics.modules"),
    **dict.fromkeys(("boundary_f1", "boundary_iou", "mean_iou", "trimap_iou"), "segbench.metrics.modules"),
}
__all__ = [
    "VOID",
    "BoundaryF1",
    "BoundaryIoU",
    "Counts",
    "MeanIoU",
    "TrimapIoU",
    "Truth",
    "band_width",
    "boundary_band",
    "boundary_f1",
    "boundary_iou",
    "collapsed",
    "contour_f1",
    "iou",
    "mean_iou",
    "mean_over_classes",
    "pixel_accuracy",
    "trimap_iou",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'segbench.metrics' has no attribute '{name}'")
