"""The scores that a run's counts give, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segbench import store
from segbench.errors import unknown
from segbench.metrics import contour_f1, iou, mean_over_classes, pixel_accuracy

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A score that can be made from a run's counts.

    Attributes:
        name: as it is asked for, such as ``biou@0.02``.
        column: its heading; that of a boundary score carries the pixels.
        counts: run -> (N, C, K), image by image.
        score: (..., C, K) summed over images -> (..., K) in 0 to 1, NaN for absent classes.
        classes: False for a score that is not made of classes.
    """

    name: str
    column: str
    counts: Callable[[store.Result], Ints]
    score: Callable[[Any], Floats]
    classes: bool = True

    def per_class(self, result: store.Result) -> Floats:
        """(K,) in percent, NaN for absent classes; one value where there are no classes."""
        return 100 * self.score(self.counts(result).sum(0))

    def mean(self, result: store.Result) -> float:
        """In percent, over the classes that have a score."""
        return float(mean_over_classes(self.per_class(result)))


def available(results: Sequence[store.Result]) -> list[Metric]:
    """Every metric that the counts of these runs hold."""
    protocol = results[0].row["evaluation"]
    found = [Metric("miou", "mIoU", lambda r: r.counts["region"], iou)]
    for i, ratio in enumerate(protocol["boundary_ratios"]):
        widths = sorted({int(w) for r in results for w in r.counts["widths_px"][:, i]})
        pixels = f"{widths[0]}px" if len(widths) == 1 else f"{widths[0]}-{widths[-1]}px"
        found.append(Metric(f"biou@{ratio:g}", f"BIoU {ratio:g} ({pixels})", _part("boundary", i), iou))
    for i, tolerance in enumerate(protocol["tolerances_px"]):
        found.append(Metric(f"bf1@{tolerance:g}", f"BF1 ({tolerance:g}px)", _part("contour", i), contour_f1))
    for i, width in enumerate(protocol["trimap_widths_px"]):
        found.append(Metric(f"trimap@{width}", f"trimap ({width}px)", _part("trimap", i), iou))
    found.append(Metric("accuracy", "pixel acc.", lambda r: r.counts["region"], _accuracy, classes=False))
    return found


def _part(array: str, index: int) -> Callable[[store.Result], Ints]:
    return lambda r: r.counts[array][:, index]


def _accuracy(counts: Any) -> Floats:
    return pixel_accuracy(counts)[..., None]


def choose(results: Sequence[store.Result], names: Sequence[str]) -> list[Metric]:
    """The metrics of those names; by default mIoU, every Boundary IoU and pixel accuracy.

    Raises:
        UserError: a name that these runs' counts do not give.
    """
    there = {m.name: m for m in available(results)}
    wanted = names or [n for n in there if n in ("miou", "accuracy") or n.startswith("biou")]
    for name in wanted:
        if name not in there:
            raise unknown("metric", name, there)
    return [there[name] for name in wanted]
