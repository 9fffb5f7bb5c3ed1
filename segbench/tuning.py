"""The search of ``tune:``: its settings, the sweep that tries them, and what it chooses. Imports no torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from segbench import store
from segbench.columns import load_measures, measure_counts_regions
from segbench.config import SweepConfig
from segbench.config_effort import LogRange, TuneConfig
from segbench.config_file import build_config, combinations, expand_grid, with_setting
from segbench.errors import UserError, unknown
from segbench.measures.base import CountMeasure, mean_over_classes
from segbench.runs import Run, Variant, as_text, grid_names, spelled

SETTING = "setting"  # what tells the two runs of a decoder apart: fixed, as the sweep says, or tuned


def settings(tune: TuneConfig) -> list[dict[str, Any]]:
    """Dotted key -> value, of each setting that is tried; the same ones for every decoder, so that they share batches.

    Of lists all combinations; of one range that many, its ends included, evenly spread by the logarithm; of a range and
    more, points of Halton's sequence (Halton 1960), which fill the space evenly however many there are. What lies
    between is rounded, to three digits or to whole numbers, and tried once where two become one.
    """
    keys, spaces, trials = list(tune.search), list(tune.search.values()), tune.trials
    if trials is None:
        return combinations({key: space for key, space in tune.search.items() if isinstance(space, list)})
    if len(keys) == 1:
        points = np.linspace(0, 1, trials)[:, None]
    else:
        from scipy.stats import qmc  # takes a second, which other commands need not wait

        points = qmc.Halton(len(keys), scramble=False).random(trials + 1)[1:]  # the first is a corner
    found = [{k: _at(s, u) for k, s, u in zip(keys, spaces, point, strict=True)} for point in points.tolist()]
    return [setting for place, setting in enumerate(found) if setting not in found[:place]]


def _at(space: list[Any] | LogRange, share: float) -> Any:
    if isinstance(space, list):
        return space[min(int(share * len(space)), len(space) - 1)]
    if share in (0, 1):
        return space.high if share else space.low
    value = space.low * (space.high / space.low) ** share
    whole = isinstance(space.low, int) and isinstance(space.high, int)
    return min(max(round(value) if whole else float(f"{value:.3g}"), space.low), space.high)


def search_of(config: SweepConfig) -> SweepConfig:
    """The sweep that tries every setting with every decoder, on a part of the training images.

    Raises:
        UserError: a setting that the sweep cannot have, a measure that one of its tasks has not, or too many runs.
    """
    assert config.tune is not None
    for _, resolved in expand_grid(config):
        _measure(config.tune, resolved)
    tried = settings(config.tune)
    for setting in tried:
        with_setting(config, setting, "tune.search")
    values = config.model_dump()
    own = {
        "name": store.SEARCH,
        "runs_dir": str(Path(config.runs_dir) / config.name),
        "seeds": config.tune.seeds,
        "grid": [outer | setting for outer in combinations(config.grid) for setting in tried],
        "tune": None,
        "data": values["data"] | {"holdout": config.tune.holdout.model_dump()},
        "evaluation": values["evaluation"] | {"every": None},
    }
    return build_config(values | own, "tune")


def _measure(tune: TuneConfig, config: SweepConfig) -> CountMeasure:
    """By which a search chooses, of the task of a run."""
    there: list[CountMeasure] = []
    for configs in ([], config.measures):  # code of the user's is loaded only where it is needed
        there = [m for m in load_measures(configs, config.task.title) if isinstance(m, CountMeasure)]
        for measure in there:
            if tune.measure in (measure.name, measure.kind):
                return measure
    raise unknown(f"measure of tune for {config.task.title}", tune.measure, [m.name for m in there])


@dataclass(frozen=True)
class Choice:
    """What a search chose for a decoder.

    Attributes:
        values: dotted key -> the value that scored best, of what the decoder takes.
        measure: name of the measure of the scores.
        scores: (setting, its mean over the search's seeds) of each trial; None for one that diverged.
        edges: keys of which the best value was the lowest or highest that was tried.
        images: how many were held out.
        flatness: the best score less the trials' median, in the measure's unit and at least 0: how much a setting
            that is only middling costs; None where too many diverged.
    """

    values: dict[str, Any]
    measure: str
    scores: list[tuple[dict[str, Any], float | None]]
    edges: list[str]
    images: int
    flatness: float | None
    highest_is_best: bool = True

    def setting(self) -> str:
        """The values in words, such as ``lr=0.02 (highest tried)``."""
        names = grid_names(self.values)
        if not self.values:
            return "nothing, as it takes none of it"
        return ", ".join(f"{names[key]}={spelled(value)}{self._end(key)}" for key, value in self.values.items())

    def words(self) -> str:
        """What was chosen, of how many, and how it scored, in words."""
        best = next(score for setting, score in self.scores if setting == self.values)
        return f"{self.setting()}, the best of {len(self.scores)}: {best:.2f} {self.measure} on the images held out"

    def _end(self, key: str) -> str:
        if key not in self.edges:
            return ""
        highest = self.values[key] == max(setting[key] for setting, _ in self.scores)
        return f" ({'highest' if highest else 'lowest'} tried)"


Choices = Mapping[tuple[str, str], Choice]  # by variant, as text, and title of a decoder


def choose(config: SweepConfig, runs: Sequence[Run], diverged: Sequence[str]) -> dict[tuple[str, str], Choice]:
    """What the search chose, for every decoder and variant of which each trial has ended.

    Args:
        config: of the sweep that the search is for.
        runs: of the search.
        diverged: keys of those whose loss became infinite, which no other setting is worse than.

    Raises:
        UserError: a result that cannot be read.
    """
    assert config.tune is not None
    searched = set(config.tune.search)
    trials: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        outer = as_text({k: v for k, v in run.variant.items() if k not in searched})
        trials.setdefault((outer, run.title), {}).setdefault(as_text(run.variant), []).append(run)
    found = {}
    for place, tried in trials.items():
        # Settings of what a decoder does not take are one run, and nothing that was chosen for it.
        by_runs: dict[tuple[str, ...], list[Run]] = {}
        for of in tried.values():
            by_runs.setdefault(tuple(run.key for run in of), of)
        distinct = list(by_runs.values())
        measure = _measure(config.tune, distinct[0][0].config)
        keys = [key for key in config.tune.search if len({repr(of[0].variant[key]) for of in distinct}) > 1]
        taken = distinct[0][0].facts.decoders[distinct[0][0].title].params
        keys = [key for key in keys if not key.startswith("decoder.") or key.partition(".")[2] in taken]
        means = [_mean(keys, of, measure, diverged) for of in distinct]
        ended = [mean for mean in means if mean is not None]
        if len(ended) == len(means) and (choice := _chosen(ended, measure, distinct[0][0].facts.eval_images)):
            found[place] = choice
    return found


def _mean(
    keys: Sequence[str], of: Sequence[Run], measure: CountMeasure, diverged: Sequence[str]
) -> tuple[dict[str, Any], float] | None:
    """A setting, and its mean over the search's seeds; None where one of them has not ended."""
    scores = [score for run in of if (score := _score(run, measure, diverged)) is not None]
    setting = {key: of[0].variant[key] for key in keys}
    return (setting, float(np.mean(scores))) if len(scores) == len(of) else None


def _score(run: Run, measure: CountMeasure, diverged: Sequence[str]) -> float | None:
    """Of a trial; NaN where it diverged, None where it has not ended."""
    if run.key in diverged:
        return math.nan
    result = store.read_result(run.folder)
    if result is None:
        return None
    name = "region" if measure_counts_regions(measure) else measure.name
    if name not in result.counts:
        raise UserError(f"tune.measure: {measure.name} failed in {run.folder}; choose another, or mend it")
    score = float(mean_over_classes(measure.score(result.counts[name].sum(0))))
    if math.isnan(score):
        raise UserError(f"tune.measure: {measure.name} has no value in {run.folder}; choose another, or hold out more")
    return score


def _chosen(means: Sequence[tuple[dict[str, Any], float]], measure: CountMeasure, images: int) -> Choice | None:
    """None where every trial diverged."""
    sign = 1 if measure.higher_is_better else -1
    known = [(setting, score) for setting, score in means if not math.isnan(score)]
    if not known:
        return None
    best, score = max(known, key=lambda trial: sign * trial[1])  # of equals the first
    worst = -math.inf
    middle = median([sign * value if not math.isnan(value) else worst for _, value in means])
    edges = []
    for key, value in best.items():
        values = [setting[key] for setting, _ in means]
        if all(is_number(v) for v in values) and value in (min(values), max(values)):
            edges.append(key)
    scores = [(setting, None if math.isnan(value) else value) for setting, value in means]
    flatness = None if middle == worst else sign * score - middle
    return Choice(best, measure.name, scores, edges, images, flatness, measure.higher_is_better)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def variants(config: SweepConfig, choices: Choices) -> Iterator[Variant]:
    """All variants of a sweep: those of its grid, and with ``tune`` each of them fixed and tuned.

    A decoder for which nothing is chosen yet is awaited, and stands as the sweep says.
    """
    titles = [decoder.title for decoder in config.decoders]
    for values, resolved in expand_grid(config):
        if config.tune is None:
            yield Variant(values, resolved, titles)
            continue
        yield Variant(values | {SETTING: "fixed"}, resolved, titles)
        alike: dict[str, list[str]] = {}
        for title in titles:
            choice = choices.get((as_text(values), title))
            alike.setdefault("" if choice is None else as_text(choice.values), []).append(title)
        tuned = values | {SETTING: "tuned"}
        for chosen, mine in alike.items():
            if not chosen:
                yield Variant(tuned, resolved, mine, awaited=True, tune=config.tune)
                continue
            found = {title: choices[as_text(values), title] for title in mine}
            setting = with_setting(resolved, found[mine[0]].values, "tune")
            rows = {title: {"choice": asdict(choice)} for title, choice in found.items()}
            yield Variant(tuned, setting, mine, rows, before=resolved, tune=config.tune)
