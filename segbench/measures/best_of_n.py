"""The best of the evaluations during training, for protocols that publish that; chosen on the split that it scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from segbench.measures.base import RunMeasure, Trained


class BestOfN(RunMeasure):
    """The highest mIoU among ``n`` evaluations on the evaluation split, the last included.

    Only to stand beside tables that were made so: the maximum of n noisy scores is above what any of them is worth, and
    it has no interval. ``evaluation.every`` says when a run is evaluated.

    Args:
        n: evaluations that there are to be.
    """

    short = "best mIoU of n"
    long = "best mIoU among the evaluations during training"
    help = "Highest mIoU among n evaluations on the evaluation split, chosen on that split"
    unit = "%"
    higher_is_better = True
    table_place = 12

    def __init__(self, n: int) -> None:
        self.n = n

    def measure(self, run: Trained) -> float:
        scores = [row["val_miou"] for row in run.history if "val_miou" in row]
        if len(scores) != self.n:
            raise ValueError(f"n is {self.n}, but there were {len(scores)} evaluations (evaluation.every)")
        return max(scores)

    def note(self, rows: Sequence[Mapping[str, Any]]) -> str:
        return f"Best mIoU of n: of {self.n} evaluations, chosen on the evaluation split itself, and so too high."
