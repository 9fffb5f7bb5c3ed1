"""Trainable parameters of the decoder."""

from segbench.measures.base import RunMeasure, Trained


class Params(RunMeasure):
    """Those of the decoder alone; a trained encoder's are not counted."""

    short = "params"
    long = "parameters of the decoder"
    help = "Parameters of the decoder"
    prefix = "M"
    standard = ({},)
    table_place = 60
    plotted = True

    def measure(self, run: Trained) -> float:
        return float(sum(p.numel() for p in run.decoder.parameters() if p.requires_grad))
