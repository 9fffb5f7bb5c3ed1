"""Every score of a sweep as a data frame."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbench.measures.base import mean_over_classes
from segbench.report.metrics import available, of_runs, value
from segbench.report.runs import read_sweep

if TYPE_CHECKING:
    import pandas


OF_RUN = ("images", "steps", "encoder", "data", "encoder_hash")


def load(path: str | Path, allow_mixed: bool = True, only: Sequence[str] = ()) -> "pandas.DataFrame":
    """The scores of every finished run of a sweep, in long form: a row for each run, metric and class.

    ===================  =========================================================================================
    column               meaning
    ===================  =========================================================================================
    decoder, seed, key   of the run; ``key`` is the hash of all that changes its numbers
    recipe.lr, ...       one column for each key of the sweep's ``grid``; ``setting`` (fixed, tuned) with ``tune``
    metric               ``miou``, ``biou@0.02``, ``bf1@3``, ``trimap@4``, ``accuracy``: as ``segbench table --metric``
    class                a class, or ``mean`` over the classes that have a score
    value                in the measure's unit, over the whole evaluation split; NaN for a class that never appears
    params, macs, ...    a column for each measure that is measured once of a run: also train, eval and memory
    images, steps        evaluated images, training steps
    encoder, data        names
    encoder_hash         of the weights
    ===================  =========================================================================================

    Args:
        path: ``runs/<sweep>``.
        allow_mixed: False to refuse runs that must not be compared.
        only: decoders; default: all.

    Raises:
        UserError: no sweep there, no finished run, or a file that cannot be read.
    """
    import pandas

    sweep = read_sweep(Path(path), allow_mixed, only)
    rows: list[dict[str, Any]] = []
    for variant, result in ((group.variant, r) for group in sweep.groups for r in group.results.values()):
        row = result.row
        run = {name: row[name] for name in ("decoder", "seed", "key")} | variant
        of_run = {m.name: value(m, [result]) for m in of_runs([result])} | {name: row[name] for name in OF_RUN}
        for metric in filter(lambda m: m.there(result), available([result])):
            values = metric.per_class(result)
            scores = dict(zip(row["classes"], values, strict=True)) if metric.measure.per_class else {}
            scores["mean"] = mean_over_classes(values)
            rows += [run | {"metric": metric.name, "class": c, "value": float(v)} | of_run for c, v in scores.items()]
    return pandas.DataFrame(rows)
