"""Seconds of training of the decoder alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from segbench.measures.base import RunMeasure, Trained


class Train(RunMeasure):
    """Its own forward, backward and optimizer; data and encoder are shared by the cohort."""

    short = "train s"
    long = "training time of the decoder"
    help = "Seconds of training, of the decoder alone"
    unit = "s"
    digits = 1
    standard = ({},)
    table_place = 62

    def measure(self, run: Trained) -> float:
        return run.train_s

    def note(self, rows: Sequence[Mapping[str, Any]]) -> str:
        shared = sum(row["train_shared_s"] for row in rows) / len(rows)
        return (
            f"Train s: of the decoder alone; plus {shared:.0f} s per cohort for data and encoder, shared by its "
            "decoders."
        )
