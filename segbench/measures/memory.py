"""Largest memory of the process in which the decoder was trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from segbench.measures.base import RunMeasure, Trained


class Memory(RunMeasure):
    """Resident bytes of the cohort's process and its loader workers: its decoders share them."""

    short = "memory"
    long = "memory of the cohort"
    help = "Largest resident memory of the cohort, in bytes"
    unit = "bytes"
    prefix = "G"
    standard = ({},)
    table_place = None

    def measure(self, run: Trained) -> float:
        return float(run.peak_memory_bytes)

    def note(self, rows: Sequence[Mapping[str, Any]]) -> str:
        return "Memory: resident bytes of the whole cohort, which its decoders share."
