"""Milliseconds per evaluated image of the decoder alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from segbench.measures.base import RunMeasure, Trained


class Eval(RunMeasure):
    """From features to labels at the image's size; the encoder is shared by the cohort."""

    short = "eval ms"
    long = "time of the decoder"
    help = "Milliseconds per evaluated image, of the decoder alone"
    unit = "ms per image"
    digits = 1
    standard = ({},)
    table_place = 63
    plotted = True

    def measure(self, run: Trained) -> float:
        return run.eval_ms

    def note(self, rows: Sequence[Mapping[str, Any]]) -> str:
        encoder = sum(row["eval_encoder_ms_per_image"] for row in rows) / len(rows)
        return f"Eval ms: of the decoder alone; plus {encoder:.0f} ms per image for the encoder, shared by all."
