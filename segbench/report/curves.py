"""The report's plot of training: loss, and scores where they were evaluated midway."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas

from segbench import store
from segbench.report.drawing import Look, in_lines, legend, new_figure
from segbench.report.figures import Plot, label_of
from segbench.report.metrics import available

CURVE_POINTS = 120  # of one run's loss


def curves(runs: Sequence[store.Result], look: Look, slug: str) -> Iterator[Plot]:
    """Loss, and the scores where they were evaluated midway, over the steps: a line for each run."""
    histories = [(r.row["decoder"], _with_final(h, r)) for r in runs if (h := _history(r)) is not None]
    shown = {"loss": "training loss"}
    for metric in available(list(runs)):
        if metric.measure.verdict_place is not None:
            shown[f"val_{metric.name}"] = label_of(f"validation {metric.column}", metric.measure.unit)
    panels = [
        (label, [(d, h.dropna(subset=column)) for d, h in histories if column in h.columns], column)
        for column, label in shown.items()
    ]
    panels = [p for p in panels if any(len(h) for _, h in p[1])]
    if not panels:
        return
    figure = new_figure(0.5 + 1.9 * len(panels))
    drawn = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    per_point = 1
    for axes, (label, lines, column) in zip(drawn, panels, strict=True):
        for d, history in lines:
            if column == "loss":
                per_point = max(per_point, len(history) // CURVE_POINTS)
            steps, values = _thinned(history, column, per_point if column == "loss" else 1)
            marker = look.marker(d) if column != "loss" else None
            line = axes.plot(steps, values, color=look.colour(d), linewidth=0.8, alpha=0.85, marker=marker, ms=2.8)
            look.mark(d, line[0])
        axes.set_ylabel(in_lines(label))
    drawn[-1].set_xlabel("step")
    decoders = list(dict.fromkeys(d for d, _ in histories))
    legend(figure, look, decoders)
    mean = f" Each point of the loss is the mean of {per_point} steps." if per_point > 1 else ""
    yield Plot(f"{slug}training", "Training, a line for each seed", f"The last checkpoint counts.{mean}", "", figure)


def _history(run: store.Result) -> pandas.DataFrame | None:
    try:
        found = pandas.read_csv(run.folder / "history.csv")
    except (OSError, ValueError):  # left behind when the folder was copied, or broken off
        return None
    return found if {"step", "loss"} <= set(found.columns) else None


def _with_final(history: pandas.DataFrame, run: store.Result) -> pandas.DataFrame:
    """With the final evaluation as the last point, where there are others."""
    final = {
        f"val_{m.name}": m.mean(run)
        for m in available([run])
        if f"val_{m.name}" in history.columns and m.there(run) and not history[f"val_{m.name}"].isna().all()
    }
    if not final:
        return history
    midway = history[list(final)].isna().all(axis=1) | (history["step"] < run.row["steps"])
    return pandas.concat([history[midway], pandas.DataFrame([{"step": run.row["steps"], **final}])])


def _thinned(history: pandas.DataFrame, column: str, each: int) -> tuple[np.ndarray, np.ndarray]:
    whole = len(history) // each * each
    steps, values = (history[c].to_numpy(float)[:whole].reshape(-1, each).mean(1) for c in ("step", column))
    return steps, values
