"""The measures of a sweep, loaded, tried and held to their contract. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from segbench.config import PluginConfig
from segbench.errors import UserError, brief
from segbench.measures._model import Upsampling
from segbench.measures.base import (
    CountMeasure,
    DoesNotFit,
    Ints,
    LabelMap,
    Labels,
    Measure,
    RunMeasure,
    Sample,
    TooSmall,
    spelled,
)
from segbench.registry import MEASURES, check_params, source_hash

COUNTED = ("ids", "sizes", "region", "confusion")  # of every evaluation, beside what measures count


def load_measures(configs: Sequence[PluginConfig], task: str = "segmentation") -> list[Measure]:
    """The standard measures and those that ``configs`` name, as far as they are of a task, in the table's order.

    Raises:
        UserError: one that cannot be loaded or made, or two different ones of one name.
    """
    standard = [make_measure(name, params) for name in MEASURES.builtin() for params in MEASURES.load(name).standard]
    found: dict[str, Measure] = {}
    for measure in [*standard, *(make_measure(c.name, c.params) for c in configs)]:
        other = found.setdefault(measure.name, measure)
        if type(other) is not type(measure):
            raise UserError(f"measures: {said(other)} and {said(measure)} are both called '{measure.name}'; rename one")
    fitting = [measure for measure in found.values() if measure.task in ("", task)]
    return sorted(fitting, key=lambda m: 1000 if m.table_place is None else m.table_place)


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
    given = ",".join(spelled(value) for value in values.values() if value is not None)
    measure.name = f"{measure.kind}@{given}" if given else measure.kind
    measure.short = measure.short or measure.kind
    measure.long = measure.long or measure.short
    return measure


def said(measure: Measure) -> str:
    """A measure as an error names it."""
    given = {name: value for name, value in measure.params.items() if value is not None}
    return f"measure '{measure.plug_in}'" + (f" {given}" if given else "")


def facts_of(measures: Iterable[Measure]) -> list[list[Any]]:
    """What stands for the measures in a run's key: class, parameters and source of each."""
    return [[type(m).__name__, m.params, source_hash(type(m))] for m in measures]


def described(measures: Iterable[Measure]) -> list[dict[str, Any]]:
    """What a result keeps of its measures, so that they can be made again."""
    return [{"name": m.name, "plug_in": m.plug_in, "params": m.params} for m in measures]


def counts_of(measure: CountMeasure, sample: Any, num_classes: int) -> Ints:
    """The counts of one image, (C, K) int64.

    Raises:
        ValueError: they are no non-negative integers, or of another shape.
    """
    counts = np.asarray(measure.count(sample))
    classes = num_classes if measure.per_class or measure_counts_regions(measure) else 1
    if not np.issubdtype(counts.dtype, np.integer) or counts.ndim != 2 or counts.shape[1] != classes:
        raise ValueError(f"count gives {counts.dtype} {counts.shape}; wanted integers (C, {classes})")
    if counts.size and counts.min() < 0:
        raise ValueError(f"count gives {counts.min()}; counts are not negative")
    return counts.astype(np.int64)


def measure_counts_regions(measure: CountMeasure) -> bool:
    """Whether it is scored from what every evaluation counts."""
    return type(measure).count is CountMeasure.count


def drawn_samples(classes: Sequence[str]) -> list[Sample]:
    """Two drawn label maps, one of them predicted without a fault, with a model that can be asked."""
    num_classes = len(classes)
    part = np.repeat(np.arange(10), [1, 2, 3, 5, 9, 17, 34, 8, 9, 8])  # thin to thick
    labels = ((part[:, None] + part) % num_classes).astype(np.uint8)
    truth = LabelMap(labels, num_classes)
    return [Sample(truth, found, _Drawn(classes, found)) for found in (labels, np.roll(labels, 1, 1))]


def try_measure(measure: CountMeasure, samples: Sequence[Any], num_classes: int) -> None:
    """Count and score two drawn images, one of them predicted without a fault.

    One for which these are too small is not tried: the sweep's images may be larger.

    Raises:
        UserError: it does not fit these classes, it raises, its counts or scores are not what `CountMeasure` says, or
            all of them are NaN.
    """
    try:
        counts = np.stack([counts_of(measure, sample, num_classes) for sample in samples])
        scores = np.asarray(measure.score(counts))
        wanted = num_classes if measure.per_class else 1
        if scores.shape != (2, wanted):
            raise ValueError(f"score gives {scores.shape} for counts {counts.shape}; wanted {(2, wanted)}")
        if np.isnan(scores).all():
            raise ValueError("score gives NaN for every class of an image")
        low, high = measure.bounds
        if not ((scores >= low) & (scores <= high) | np.isnan(scores)).all():
            found = f"{np.nanmin(scores):g} to {np.nanmax(scores):g}"
            raise ValueError(f"score gives {found}; it says that its bounds are {low:g} to {high:g}")
        if measure.axis:
            shape, places = np.shape(measure.profile(counts)), len(measure.axis[1])
            if shape[:-1] != (2,) or (places and shape[-1] != places):
                raise ValueError(f"profile gives {shape} for counts {counts.shape}; wanted {(2, places or 'P')}")
        if (picture := measure.picture(counts.sum(0))) is not None and np.ndim(picture) != 2:
            raise ValueError(f"picture gives {np.shape(picture)}; wanted (h, w)")
    except TooSmall:
        return
    except DoesNotFit as error:
        raise UserError(f"{said(measure)}: {error}") from error
    except Exception as error:  # a plug-in can raise anything
        raise UserError(f"{said(measure)} does not keep the contract: {brief(error)}") from error


class _Drawn:
    """A `Model` that predicts the same of any image, from features at stride 4 by nearest neighbours."""

    stride = 4
    on_grid = True

    def __init__(self, classes: Sequence[str], labels: Labels) -> None:
        import torch
        from torch.nn.functional import interpolate

        class Nearest(torch.nn.Module):
            strides = (4,)

            def forward(self, features: Any, image: Any) -> Any:
                return interpolate(features[-1], scale_factor=4.0)

        self.classes, self._labels = classes, labels
        size, of_labels = labels.shape, torch.from_numpy(labels.astype(np.int64))
        self.probabilities = (0.1 / len(classes) + 0.9 * np.eye(len(classes), dtype=np.float32)[:, labels]).clip(0, 1)
        self.pixels = np.repeat(labels[..., None], 3, 2)
        self.features = [torch.nn.functional.one_hot(of_labels[::4, ::4], len(classes)).permute(2, 0, 1)[None].float()]
        self.image = torch.zeros(1, 3, *size)
        self.decoder = self.initial = Nearest()
        self.upsampling = Upsampling(lambda x, guide: self.decoder([x], guide), self.features[0], self.image, 4, 1)

    def predict(self, pixels: Labels) -> Labels:
        return self._labels
