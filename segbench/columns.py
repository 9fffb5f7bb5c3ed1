"""The measures of a sweep, loaded, tried and held to their contract. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from segbench.config import PluginConfig
from segbench.errors import UserError, brief
from segbench.measures.base import CountMeasure, Ints, LabelMap, Measure, RunMeasure, Sample, spelled
from segbench.registry import MEASURES, check_params, source_hash

COUNTED = ("ids", "sizes", "region", "confusion")  # of every evaluation, beside what measures count


def load_measures(configs: Sequence[PluginConfig]) -> list[Measure]:
    """The standard measures and those that ``configs`` name, in the order of the table's columns.

    Raises:
        UserError: one that cannot be loaded or made, or two different ones of one name.
    """
    standard = [make_measure(name, params) for name in MEASURES.builtin() for params in MEASURES.load(name).standard]
    found: dict[str, Measure] = {}
    for measure in [*standard, *(make_measure(c.name, c.params) for c in configs)]:
        other = found.setdefault(measure.name, measure)
        if type(other) is not type(measure):
            raise UserError(f"measures: {said(other)} and {said(measure)} are both called '{measure.name}'; rename one")
    return sorted(found.values(), key=lambda m: 1000 if m.table_place is None else m.table_place)


def make_measure(plug_in: str, params: Mapping[str, Any]) -> Measure:
    """The measure of that name, ``path.py:Class`` or ``package.module:Class``.

    Raises:
        UserError: it cannot be loaded, a parameter does not fit, or its constructor raises.
    """
    cls = MEASURES.load(plug_in)
    values = check_params(MEASURES, plug_in, cls, params)
    try:
        measure: Measure = cls(**values)
    except Exception as error:  # a plug-in can raise anything
        raise UserError(f"measure '{plug_in}' cannot be made: {brief(error)}") from error
    if not isinstance(measure, CountMeasure | RunMeasure):
        raise UserError(f"measure '{plug_in}' should be a CountMeasure or a RunMeasure of segbench.measures.base")
    measure.plug_in, measure.params, measure.kind = plug_in, values, plug_in.rpartition(":")[2]
    if measure.kind in COUNTED:
        raise UserError(
            f"measure '{plug_in}': counts are kept by name, and '{measure.kind}' is taken; rename the class"
        )
    measure.name = f"{measure.kind}@{','.join(map(spelled, values.values()))}" if values else measure.kind
    measure.short = measure.short or measure.kind
    measure.long = measure.long or measure.short
    return measure


def said(measure: Measure) -> str:
    """A measure as an error names it."""
    return f"measure '{measure.plug_in}'" + (f" {measure.params}" if measure.params else "")


def facts_of(measures: Iterable[Measure]) -> list[list[Any]]:
    """What stands for the measures in a run's key: class, parameters and source of each."""
    return [[type(m).__name__, m.params, source_hash(type(m))] for m in measures]


def described(measures: Iterable[Measure]) -> list[dict[str, Any]]:
    """What a result keeps of its measures, so that they can be made again."""
    return [{"name": m.name, "plug_in": m.plug_in, "params": m.params} for m in measures]


def counts_of(measure: CountMeasure, sample: Sample) -> Ints:
    """The counts of one image, (C, K) int64.

    Raises:
        ValueError: they are no non-negative integers, or of another shape.
    """
    counts = np.asarray(measure.count(sample))
    classes = sample.truth.num_classes if measure.per_class or measure_counts_regions(measure) else 1
    if not np.issubdtype(counts.dtype, np.integer) or counts.ndim != 2 or counts.shape[1] != classes:
        raise ValueError(f"count gives {counts.dtype} {counts.shape}; wanted integers (C, {classes})")
    if counts.size and counts.min() < 0:
        raise ValueError(f"count gives {counts.min()}; counts are not negative")
    return counts.astype(np.int64)


def measure_counts_regions(measure: CountMeasure) -> bool:
    """Whether it is scored from what every evaluation counts."""
    return type(measure).count is CountMeasure.count


def try_measure(measure: CountMeasure, num_classes: int) -> None:
    """Count and score two drawn images, one of them predicted without a fault.

    Raises:
        UserError: it raises, its counts or scores are not what `CountMeasure` says, or all of them are NaN.
    """
    rows, columns = np.mgrid[:24, :32]
    labels = ((rows // 8 + columns // 8) % num_classes).astype(np.uint8)
    truth = LabelMap(labels, num_classes)
    try:
        samples = [Sample(truth, np.roll(labels, shift, 1)) for shift in (0, 1)]
        counts = np.stack([counts_of(measure, sample) for sample in samples])
        scores = np.asarray(measure.score(counts))
        classes = num_classes if measure.per_class else 1
        if scores.shape != (2, classes):
            raise ValueError(f"score gives {scores.shape} for counts {counts.shape}; wanted {(2, classes)}")
        if np.isnan(scores).all():
            raise ValueError("score gives NaN for every class of an image")
        low, high = measure.bounds
        if not ((scores >= low) & (scores <= high) | np.isnan(scores)).all():
            found = f"{np.nanmin(scores):g} to {np.nanmax(scores):g}"
            raise ValueError(f"score gives {found}; it says that its bounds are {low:g} to {high:g}")
    except Exception as error:  # a plug-in can raise anything
        raise UserError(f"{said(measure)} does not keep the contract: {brief(error)}") from error
