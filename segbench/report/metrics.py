"""The measures of finished runs, loaded again: the scores that their counts give, and what was measured of each."""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segbench import store
from segbench.columns import make_measure, measure_counts_regions
from segbench.errors import UserError, unknown
from segbench.kept import name_in
from segbench.measures.base import CountMeasure, Floats, Ints, Measure, RunMeasure, mean_over_classes
from segbench.measures.biou import band_width


@dataclass(frozen=True)
class Metric:
    """A measure of counts, called as the runs' image sizes ask for.

    Attributes:
        column: its heading.
        words: its name in a sentence.
    """

    measure: CountMeasure
    column: str
    words: str

    @property
    def name(self) -> str:
        return self.measure.name

    @property
    def points(self) -> str:
        """What a difference is counted in."""
        return "points" if self.measure.unit == "%" else self.measure.unit

    def there(self, result: store.Result) -> bool:
        """Whether the run has its counts: a measure can fail on an image."""
        return measure_counts_regions(self.measure) or self.name in result.counts

    def counts(self, result: store.Result) -> Ints:
        """(N, C, K), image by image."""
        return result.counts["region" if measure_counts_regions(self.measure) else self.name]

    def per_class(self, result: store.Result) -> Floats:
        """(K,) in the measure's unit, NaN for absent classes; one value where there are no classes."""
        return self.measure.score(self.counts(result).sum(0))

    def mean(self, result: store.Result) -> float:
        """Over the classes that have a score."""
        return float(mean_over_classes(self.per_class(result)))


def available(results: Sequence[store.Result]) -> list[Metric]:
    """Every score that the counts of these runs give, in the order of the table's columns."""
    sizes = np.concatenate([r.counts["sizes"] for r in results])
    found, headings = [], set()
    for measure in _measures(results)[0]:
        if isinstance(measure, CountMeasure):
            suffix = measure.suffix(sizes)
            heading = f"{measure.short}{suffix}"
            heading = f"{heading} [{measure.name}]" if heading in headings else heading
            headings.add(heading)
            found.append(Metric(measure, heading, f"{measure.long}{suffix}"))
    return found


def of_runs(results: Sequence[store.Result]) -> list[RunMeasure]:
    """What was measured once of each of these runs, in the order of the table's columns."""
    return [measure for measure in _measures(results)[0] if isinstance(measure, RunMeasure)]


def value(measure: RunMeasure, results: Sequence[store.Result]) -> float:
    """The mean over runs; NaN without one."""
    found = [r.row["values"].get(measure.name) for r in results]
    return float(np.mean([np.nan if v is None else v for v in found])) if found else float("nan")


def lost(results: Sequence[store.Result]) -> list[str]:
    """What can no longer be shown, or failed in some runs, and why; a sentence for each."""
    said: dict[str, list[str]] = {}
    for result in results:
        for why in result.row["broken"].values():
            said.setdefault(why, []).append(f"{result.row['decoder']}-s{result.row['seed']}")
    named = {
        why: "all runs" if len(runs) == len(results) > 1 else ", ".join(sorted(runs)) for why, runs in said.items()
    }
    return [*_measures(results)[1], *(f"{runs}: {why}" for why, runs in named.items())]


def choose(results: Sequence[store.Result], names: Sequence[str]) -> list[Metric]:
    """The metrics of those names or kinds, such as ``trimap@4`` or ``trimap``; by default those of the table.

    Raises:
        UserError: a name that these runs' counts do not give.
    """
    there = available(results)
    for name in names:
        if not any(name in (m.name, m.measure.kind) for m in there):
            raise unknown("metric", name, [m.name for m in there])
    asked = {m.name: m for name in names for m in there if name in (m.name, m.measure.kind)}
    return list(asked.values()) or [m for m in there if m.measure.table_place is not None]


def thin_bands(results: Sequence[store.Result], names: Iterable[str]) -> list[str]:
    """Which trimap bands and Boundary IoUs among ``names`` hold nearly no contour, in sentences.

    A void rim along the contours, as VOC's of about 5 px, leaves the narrow bands nearly empty: one that holds under a
    tenth of the next wider one's pixels is thin, and so are those within it.
    """
    asked, there = set(names), available(results)
    bands = sorted((m for m in there if m.measure.kind == "trimap"), key=lambda m: m.measure.params["width_px"])
    bands = [m for m in bands if all(m.there(r) for r in results)]
    pixels = [sum(int(m.counts(r)[:, 2].sum()) for r in results) for m in bands]
    widths = [int(m.measure.params["width_px"]) for m in bands]
    last = max((i for i in range(len(bands) - 1) if 10 * pixels[i] < pixels[i + 1]), default=-1)
    if last < 0:
        return []
    shown = any(m.name in asked for m in bands)
    said = (
        f"The band of {widths[last]} px holds {100 * pixels[last] / pixels[last + 1]:.1f} % of the pixels of that of "
        f"{widths[last + 1]} px: void lies along the contours, so that it and narrower ones say nearly nothing."
    )
    sizes = np.concatenate([r.counts["sizes"] for r in results])
    for m in there:
        if m.name in asked and m.measure.kind == "biou":
            px = band_width(m.measure.params["ratio"], *np.median(sizes, 0).tolist())
            if px < widths[last + 1]:
                shown = True
                said += f" {m.words} is of such a band, and so nearly of the image's border alone."
    return [said] if shown else []


def _measures(results: Iterable[store.Result]) -> tuple[list[Measure], list[str]]:
    """Those that the runs were made with, and why others cannot be loaded."""
    found: dict[str, Measure] = {}
    why: dict[str, None] = {}
    firsts: dict[str, store.Result] = {}
    for result in results:
        for told in result.row["measures"]:
            firsts.setdefault(json.dumps(told, sort_keys=True), result)
    for text, first in firsts.items():
        measure = _load(text, first.folder, json.dumps(first.row.get("sources")))
        if isinstance(measure, Measure):
            found.setdefault(measure.name, measure)
        else:
            why[measure] = None
    return sorted(found.values(), key=lambda m: 1000 if m.table_place is None else m.table_place), list(why)


@functools.cache
def _load(text: str, folder: Path, sources: str) -> Measure | str:
    """A measure as a row in ``folder`` describes it, or why it cannot be loaded."""
    told = json.loads(text)
    try:
        return make_measure(name_in(folder, json.loads(sources), told["plug_in"]), told["params"])
    except UserError as error:
        return f"{told['name']} cannot be shown: {error}"
