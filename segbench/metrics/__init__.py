"""Integer counts per image and class, and the scores made from them. Imports nothing else of segbench."""

from segbench.metrics.counts import VOID, Counts, Truth, band_width
from segbench.metrics.scores import iou, mean_iou, pixel_accuracy

__all__ = ["VOID", "Counts", "Truth", "band_width", "iou", "mean_iou", "pixel_accuracy"]
