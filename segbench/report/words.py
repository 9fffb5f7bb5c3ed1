"""What a sweep says, in sentences: what was compared on what, and the verdict with its uncertainty."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segbench import store
from segbench.report import effort
from segbench.report.analysis import Analysis, Contrast, Delta
from segbench.report.metrics import Metric, of_runs, value
from segbench.report.runs import Group, Sweep
from segbench.tuning import SETTING


@dataclass(frozen=True)
class Verdict:
    """The outcome by one metric in a sentence, and what else a reader must know of it, if anything."""

    main: str
    more: str = ""

    def __str__(self) -> str:
        return f"{self.main} {self.more}".strip()


Answers = list[tuple[str, list[tuple[str, Verdict]]]]  # a question, and for each metric its name and the verdict
SPELLED_OUT = 3  # decoders that a sentence lists with their numbers
QUESTIONS = {
    **dict.fromkeys(("bilinear", "nearest"), "Better than interpolation?"),
    **dict.fromkeys(("bilinear_conv", "nearest_conv"), "Better than interpolation with a convolution?"),
}


def compared(sweep: Sweep, group: Group) -> str:
    """What was compared on what, in a sentence."""
    rows = [r.row for r in group.results.values()]
    row = rows[0]
    encoder = f"{'fine-tuned' if row['encoder_trainable'] else 'frozen'} {_one([r['encoder'] for r in rows])}"
    seeds = f"{_count(len(group.seeds), 'seed')} of {_count(_one([r['steps'] for r in rows]), 'step')}"
    how = f", evaluated with {row['evaluation_title']}" if row["evaluation_title"] else ""
    effort = "".join(f" {said}" for said in _effort(sweep, group))
    return (
        f"{_count(len(group.decoders), 'decoder')} on {_one([r['data'] for r in rows])}: "
        f"{_count(row['images'], 'image')}, {_trained_for(row)}, {encoder}, {seeds}"
        f"{upsampled(list(group.results.values()))}{how}.{effort}"
    )


def _effort(sweep: Sweep, group: Group) -> Iterator[str]:
    """What was made equal beside the recipe: the effort of tuning, and the cost."""
    if SETTING in group.variant:
        how = effort.tuned_how(sweep, group)
        yield f"Tuned: {how}." if how else "Not tuned: all with the sweep's own settings."
    yield from effort.budget_said(group)


def effects(sweep: Sweep, group: Group, analysis: Analysis) -> list[str]:
    """What tuning, or a budget, does to each decoder's score and to their order, in sentences; none where neither is.

    Args:
        analysis: of the group, by the question's own measure.
    """
    metric, said = analysis.metric, []
    if (fixed := effort.fixed_beside(sweep, group)) is not None:
        said.append(_gains(effort.gains(sweep, group, metric), metric, len(group.seeds)))
        if same := [d for d in group.decoders if effort.as_fixed(sweep, group, d)]:
            said.append(f"For {listed(same)} the search chose the sweep's own setting.")
        said.append(_order(analysis, Analysis(fixed, metric), "tuned", "with the sweep's own settings"))
    if (free := effort.without_budget(sweep, group)) is not None:
        said.append(_order(analysis, Analysis(free, metric), "at this budget", "at the sweep's own widths"))
    return [sentence for sentence in said if sentence]


def _gains(found: Mapping[str, Delta], metric: Metric, seeds: int) -> str:
    """Which decoders tuning makes better or worse, beyond noise."""
    if not found or seeds == 1:
        return ""
    moved = [d for d in found if found[d].verdict in ("better", "worse")]
    unsure = [d for d in found if found[d].verdict == "inconclusive"]
    by = {d: f"{d} by {interval(found[d], metric.points, sign_shown=True)}" for d in (*moved, *unsure)}
    said = listed([by[d] for d in moved]) if moved else "no decoder beyond noise"
    parts = [f"Tuning changes the {metric.words} of {said}"]
    if unsure:
        changes = f"the change{'s' * (len(unsure) > 1)} of {listed([by[d] for d in unsure])}"
        parts.append(f"{changes} {_are(unsure)} inconclusive after Holm's correction")
    if moved and (rest := len(found) - len(moved) - len(unsure)):
        parts.append(f"of the other {rest} not beyond noise")
    return "; ".join(parts) + "."


def _order(analysis: Analysis, other: Analysis, here: str, there: str) -> str:
    """The decoders from the best mean to the worst, beside another group's order."""
    ours, theirs = _ordered(analysis), _ordered(other)
    if len(ours) < 2 or set(ours) != set(theirs):
        return ""
    name = analysis.metric.words
    if ours == theirs:
        return f"By {name} the order {here} is as {there}: {', '.join(ours)}."
    return f"By {name} the order {here} is {', '.join(ours)}; {there} it is {', '.join(theirs)}."


def _ordered(analysis: Analysis) -> list[str]:
    return sorted(analysis.decoders, key=lambda d: -_up(analysis) * analysis.cell(d).mean)


def _trained_for(row: Mapping[str, Any]) -> str:
    """Such as ``7 classes``, or the task where it is another one."""
    if row.get("task", "segmentation") == "segmentation":
        return _count(len(row["classes"]), "class")
    factor = row["task_params"].get("factor", 1)
    return f"{row['task']}" + (f" from images reduced {factor} times" if factor > 1 else "")


def upsampled(results: Sequence[store.Result]) -> str:
    """``, upsampled to stride 4`` where techniques end before image size; by name where not all end at one stride."""
    strides: dict[int, list[str]] = {}
    for row in (r.row for r in results):
        if row.get("output_stride") is not None:
            strides.setdefault(row["output_stride"], []).append(row["decoder"])
    named = len(strides) > 1
    return "".join(
        f", {listed(list(dict.fromkeys(decoders))) + ' ' if named else ''}upsampled to stride {stride}"
        for stride, decoders in sorted(strides.items())
        if stride != 1
    )


def unequal_starts(group: Group, baselines: Sequence[str]) -> str:
    """Which decoders' skeletons start from other weights than the baseline's for some seed; empty where none does."""
    hashes = {run: r.row["skeleton_hash"] for run, r in group.results.items() if "skeleton_hash" in r.row}
    common = next((d for d in (*baselines, *group.decoders) if any(hashes.get((d, s)) for s in group.seeds)), None)
    own = dict.fromkeys(d for (d, _), found in hashes.items() if found is None)
    other = dict.fromkeys(
        d for (d, s), found in hashes.items() if found and hashes.get((str(common), s)) not in (found, None)
    )
    if not other and (not own or len(group.decoders) == 1):
        return ""
    said = [f"{listed(list(other))} {_have(other)} another width or skeleton than {common}"] if other else []
    said += [f"{listed(list(own))} {_have(own)} a skeleton of {'its' if len(own) == 1 else 'their'} own"] if own else []
    return f"Skeletons do not start equal: {'; '.join(said)}. Such differences carry the noise of the start."


def as_text(compared: str, answers: Answers, effects: Sequence[str], caveats: Sequence[str]) -> str:
    """What was compared, every verdict and how it was come by, in a paragraph."""
    said = [compared]
    for question, verdicts in answers:
        said += [question] * (len(answers) > 1) + [str(words) for _, words in verdicts]
    by_itself = ", for each baseline by itself" if len(answers) > 1 else ""
    said += [*effects, *caveats]
    said.append(
        "Differences are paired by seed and image, with 95 % intervals; better and worse: p < 0.05 after Holm's "
        f"correction over the decoders{by_itself}; within noise: the interval holds zero."
    )
    return " ".join(said)


def caveats(group: Group, baselines: Sequence[str]) -> list[str]:
    """What a reader of any verdict must know of its decoders: holes and collapsed runs."""
    holes = [d for d in group.decoders if d not in group.whole and d not in baselines]
    said = []
    if holes:
        said.append(
            f"{listed(holes)} {_have(holes)} missing runs and {'takes' if len(holes) == 1 else 'take'} no part."
        )
    for d in group.decoders:
        if number := sum(decoder == d for decoder, _ in group.collapsed):
            of = _count(len(group.of(d)), "run")
            said.append(
                f"{d} has collapsed in {number} of {of}: one class nearly everywhere, which is no segmentation."
            )
    return said


def questions(baselines: Sequence[str]) -> list[str]:
    """What a comparison with each baseline answers."""
    said = [QUESTIONS.get(b, f"Better than {b}?") for b in baselines]
    return said if len(set(said)) == len(said) else [f"Better than {b}?" for b in baselines]


def unanswered(group: Group, baseline: str) -> str:
    """Why there is no difference from a baseline; empty where there is."""
    if baseline in group.whole:
        return ""
    return f"the baseline {baseline} " + (
        "has missing runs" if baseline in group.decoders else "is not among the decoders"
    )


def verdict(contrast: Contrast) -> Verdict:
    """The outcome by one metric, in words, as the corrected comparisons with one baseline and the ranks give it.

    Args:
        contrast: of a metric that is made of classes.
    """
    analysis, group, base, name = contrast.analysis, contrast.group, contrast.baseline, contrast.metric.words
    if why := unanswered(group, base):
        return Verdict(f"No difference in {name} can be given: {why}.", _highest(analysis))
    found = {d: contrast.delta(d) for d in analysis.decoders if d != base}
    if not found:
        return Verdict(f"Only {base} is whole: there is nothing to compare it with in {name}.")
    if analysis.measured is None:
        return Verdict(f"One image: nothing can be said about the noise of {name}.")
    if len(group.seeds) == 1:
        return _one_seed(analysis, found, base, name)
    better = sorted((d for d in found if found[d].verdict == "better"), key=lambda d: -abs(found[d].mean))
    worse = sorted((d for d in found if found[d].verdict == "worse"), key=lambda d: -abs(found[d].mean))
    unsure = sorted((d for d in found if found[d].verdict == "inconclusive"), key=lambda d: -abs(found[d].mean))
    open_ = [d for d in found if found[d].verdict == "within noise"]
    points, up = contrast.metric.points, _up(analysis)
    parts = []
    if better:
        parts.append(_leader(analysis, better, found, base, name))
    if worse:
        of = "" if better else f" than {base} in {name}"
        parts.append(f"{_with_numbers(worse, found, points, -up)} {_are(worse)} worse{of}")
    if not parts and not unsure:
        rest = "the difference is" if len(open_) == 1 else f"all {len(open_)} differences are"
        return Verdict(f"No decoder is better or worse than {base} in {name}: {rest} within noise.")
    if not parts:
        parts.append(f"No decoder is shown to be better or worse than {base} in {name}")
    if unsure:
        parts.append(f"{_with_numbers(unsure, found, points)} {_are(unsure)} inconclusive after Holm's correction")
    if open_:
        parts.append(f"the other {'difference is' if len(open_) == 1 else 'differences are'} within noise")
    return Verdict("; ".join(parts) + ".", _openness(analysis, better[0]) if better else "")


def _leader(analysis: Analysis, better: Sequence[str], found: dict[str, Delta], base: str, name: str) -> str:
    first, more = better[0], better[1:]
    points, up = analysis.metric.points, _up(analysis)
    by = interval(found[first], points, up)
    leads = analysis.ranks[first].rank == 1  # another mean may be higher, though its difference is within noise
    said = f"{first} leads {name} by {by} over {base}" if leads else f"{first} is better than {base} in {name} by {by}"
    said += _pace(analysis.group, first, base)
    return said + (f", {_with_numbers(more, found, points, up)} {_are(more)} better than {base} too" if more else "")


def _pace(group: Group, decoder: str, base: str) -> str:
    """`` at 4.0 times the decoder time per image``; empty where it was not measured."""
    for measure in of_runs(list(group.results.values())):
        if measure.name == "eval":
            ratio = value(measure, group.of(decoder)) / (value(measure, group.of(base)) or math.nan)
            return "" if math.isnan(ratio) else f" at {times(ratio)} times the decoder time per image"
    return ""


def _openness(analysis: Analysis, best: str) -> str:
    rank = analysis.ranks[best]
    if rank.low == rank.high:
        return ""
    among = f"its rank is {rank.low} to {rank.high} of {len(analysis.decoders)}"
    return f"Whether {best} is the best of all stays open: {among}."


def _one_seed(analysis: Analysis, found: dict[str, Delta], base: str, name: str) -> Verdict:
    up = _up(analysis)
    best = max(analysis.decoders, key=lambda d: up * analysis.cell(d).mean)
    most = "highest" if up > 0 else "lowest"
    if best == base:
        said = f"{base}, the baseline, is {most} in {name}"
    else:
        said = f"{best} is {most} in {name}, by {interval(found[best], analysis.metric.points, up)} over {base}"
    return Verdict(f"One seed says nothing about the recipe. Of these trained models on such images, {said}.")


def _highest(analysis: Analysis) -> str:
    means = {d: analysis.cell(d).mean for d in analysis.decoders}
    means = {d: m for d, m in means.items() if not math.isnan(m)}
    if not means:
        return ""
    up = _up(analysis)
    best = max(means, key=lambda d: up * means[d])
    most = "highest" if up > 0 else "lowest"
    return f"Of the whole ones {best} has the {most} mean, {means[best]:.1f}." if len(means) > 1 else ""


def _up(analysis: Analysis) -> int:
    """1 where a higher score is better, else -1."""
    return 1 if analysis.metric.measure.higher_is_better else -1


def interval(delta: Delta, points: str = "points", sign: int = 1, sign_shown: bool = False) -> str:
    """``1.2 [0.7, 1.6] points``, with as many digits as keep the end nearer to zero from being rounded to it."""
    value, low, high = sign * delta.mean, *sorted((sign * delta.low, sign * delta.high))
    nearest = min((abs(low), abs(high)))
    digits = 1 if math.isnan(nearest) or nearest >= 0.1 or low <= 0 <= high else 2 if nearest >= 0.01 else 3
    plus = "+" if sign_shown else "-"
    if math.isnan(low):
        return f"{value:{plus}.{digits}f} {points}".rstrip()
    return f"{value:{plus}.{digits}f} [{low:{plus}.{digits}f}, {high:{plus}.{digits}f}] {points}".rstrip().replace(
        "-", "−"
    )


def _with_numbers(decoders: Sequence[str], found: dict[str, Delta], points: str, sign: int = 1) -> str:
    said = [f"{d} (by {interval(found[d], points, sign)})" for d in decoders[:SPELLED_OUT]]
    more = len(decoders) - len(said)
    return listed(said + ([f"{more} more"] if more else []))


def times(ratio: float) -> str:
    """A ratio with two digits or more."""
    return f"{ratio:.{int(ratio < 9.95)}f}"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _are(words: Sequence[str]) -> str:
    return "is" if len(words) == 1 else "are"


def _have(words: Collection[str]) -> str:
    return "has" if len(words) == 1 else "have"


def _one(values: Sequence[object]) -> object:
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else "several"


def _count(number: object, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
