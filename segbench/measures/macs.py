"""Multiply-accumulates of the decoder on one image of 512x512 pixels."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from segbench.measures.base import RunMeasure, Trained

SIZE = 512  # height and width of the image, in pixels


class Macs(RunMeasure):
    """Those of one image through the decoder alone, half of what torch's flop counter counts.

    It counts convolutions, matrix products and attention, not interpolation, normalisation or activations. Nothing is
    computed: torch's meta device knows shapes only. A decoder that needs values is run on random ones.
    """

    short = "MACs"
    long = "multiply-accumulates of the decoder"
    unit = "at 512×512"
    help = "Multiply-accumulates of the decoder on a 512×512 image"
    prefix = "G"
    standard = ({},)
    table_place = 61
    plotted = True

    def measure(self, run: Trained) -> float:
        try:
            return self._count(copy.deepcopy(run.decoder).to("meta"), run, "meta")
        except Exception:  # a plug-in that needs values, or a device, raises anything
            return self._count(copy.deepcopy(run.decoder).cpu(), run, "cpu")

    def _count(self, decoder: Any, run: Trained, device: str) -> float:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        features = [
            torch.randn(1, c, -(-SIZE // s), -(-SIZE // s), device=device)
            for c, s in zip(run.channels, run.strides, strict=True)
        ]
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            decoder.eval()(features, torch.randn(1, 3, SIZE, SIZE, device=device))
        return float(counter.get_total_flops() // 2)

    def note(self, rows: Sequence[Mapping[str, Any]]) -> str:
        return f"MACs: of the decoder alone on a {SIZE}x{SIZE} image."
