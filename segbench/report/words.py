"""What a sweep says, in sentences: what was compared on what, and the verdict with its uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segbench.report.analysis import Analysis, Delta
from segbench.report.metrics import Metric
from segbench.report.runs import Group, Sweep


@dataclass(frozen=True)
class Verdict:
    """The outcome by one metric in a sentence, and what else a reader must know of it, if anything."""

    main: str
    more: str = ""

    def __str__(self) -> str:
        return f"{self.main} {self.more}".strip()


SPELLED_OUT = 3  # decoders that a sentence lists with their numbers


def compared(sweep: Sweep, group: Group) -> str:
    """What was compared on what, in a sentence."""
    rows = [r.row for r in group.results.values()]
    row = rows[0]
    encoder = f"{'fine-tuned' if row['encoder_trainable'] else 'frozen'} {_one([r['encoder'] for r in rows])}"
    seeds = f"{_count(len(group.seeds), 'seed')} of {_count(_one([r['steps'] for r in rows]), 'step')}"
    how = f", evaluated with {row['evaluation_title']}" if row["evaluation_title"] else ""
    return (
        f"{_count(len(group.decoders), 'decoder')} on {_one([r['data'] for r in rows])}: "
        f"{_count(row['images'], 'image')}, {_count(len(row['classes']), 'class')}, {encoder}, {seeds}{how}."
    )


def spelled(metric: Metric) -> str:
    """A metric's name as a sentence says it."""
    long = {"biou": "Boundary IoU", "bf1": "Boundary F1", "trimap": "trimap IoU", "accuracy": "pixel accuracy"}
    kind = metric.name.partition("@")[0]
    return f"{long[kind]} {metric.column.partition(' ')[2]}" if kind in ("biou", "bf1") else long.get(kind, "mIoU")


def verdict(analysis: Analysis, wanted: str) -> Verdict:
    """The outcome by one metric, in words, as the corrected comparisons with the baseline and the ranks give it.

    Args:
        analysis: of a metric that is made of classes.
        wanted: the baseline that was asked for.
    """
    name, group = spelled(analysis.metric), analysis.group
    holes = [d for d in group.decoders if d not in analysis.decoders]
    said = _outcome(analysis, wanted, name)
    if not holes or wanted in holes:
        return said
    one = len(holes) == 1
    lacking = f"{_listed(holes)} {'has' if one else 'have'} missing runs and {'takes' if one else 'take'} no part."
    return Verdict(said.main, f"{said.more} {lacking}".strip())


def _outcome(analysis: Analysis, wanted: str, name: str) -> Verdict:
    group, base = analysis.group, analysis.baseline
    if base is None:
        why = "has missing runs" if wanted in group.decoders else "is not among the decoders"
        return Verdict(f"No difference in {name} can be given: the baseline {wanted} {why}.", _highest(analysis))
    found = {d: analysis.delta(d) for d in analysis.decoders if d != base}
    if not found:
        return Verdict(f"Only {base} is whole: there is nothing to compare it with in {name}.")
    if analysis.measured is None:
        return Verdict(f"One image: nothing can be said about the noise of {name}.")
    if len(group.seeds) == 1:
        return _one_seed(analysis, found, base, name)
    better = sorted((d for d in found if found[d].verdict == "better"), key=lambda d: -found[d].mean)
    worse = sorted((d for d in found if found[d].verdict == "worse"), key=lambda d: found[d].mean)
    unsure = sorted((d for d in found if found[d].verdict == "inconclusive"), key=lambda d: -abs(found[d].mean))
    open_ = [d for d in found if found[d].verdict == "within noise"]
    parts = []
    if better:
        parts.append(_leader(analysis, better, found, base, name))
    if worse:
        of = "" if better else f" than {base} in {name}"
        parts.append(f"{_with_numbers(worse, found, -1)} {_are(worse)} worse{of}")
    if not parts and not unsure:
        rest = "the difference is" if len(open_) == 1 else f"all {len(open_)} differences are"
        return Verdict(f"No decoder is better or worse than {base} in {name}: {rest} within noise.")
    if not parts:
        parts.append(f"No decoder is shown to be better or worse than {base} in {name}")
    if unsure:
        parts.append(f"{_with_numbers(unsure, found, 1)} {_are(unsure)} inconclusive after Holm's correction")
    if open_:
        parts.append(f"the other {'difference is' if len(open_) == 1 else 'differences are'} within noise")
    return Verdict("; ".join(parts) + ".", _openness(analysis, better[0]) if better else "")


def _leader(analysis: Analysis, better: Sequence[str], found: dict[str, Delta], base: str, name: str) -> str:
    first, more = better[0], better[1:]
    by = interval(found[first])
    leads = analysis.ranks[first].rank == 1  # another mean may be higher, though its difference is within noise
    said = f"{first} leads {name} by {by} over {base}" if leads else f"{first} is better than {base} in {name} by {by}"
    return said + (f", {_with_numbers(more, found, 1)} {_are(more)} better than {base} too" if more else "")


def _openness(analysis: Analysis, best: str) -> str:
    rank = analysis.ranks[best]
    if rank.low == rank.high:
        return ""
    among = f"its rank is {rank.low} to {rank.high} of {len(analysis.decoders)}"
    return f"Whether {best} is the best of all stays open: {among}."


def _one_seed(analysis: Analysis, found: dict[str, Delta], base: str, name: str) -> Verdict:
    best = max(analysis.decoders, key=lambda d: analysis.cell(d).mean)
    if best == base:
        said = f"{base}, the baseline, is highest in {name}"
    else:
        said = f"{best} is highest in {name}, by {interval(found[best])} over {base}"
    return Verdict(f"One seed says nothing about the recipe. Of these trained models on such images, {said}.")


def _highest(analysis: Analysis) -> str:
    means = {d: analysis.cell(d).mean for d in analysis.decoders}
    means = {d: m for d, m in means.items() if not math.isnan(m)}
    if not means:
        return ""
    best = max(means, key=lambda d: means[d])
    return f"Of the whole ones {best} has the highest mean, {means[best]:.1f}." if len(means) > 1 else ""


def interval(delta: Delta, sign: int = 1) -> str:
    """``1.2 [0.7, 1.6] points``, with as many digits as keep the end nearer to zero from being rounded to it."""
    value, low, high = sign * delta.mean, *sorted((sign * delta.low, sign * delta.high))
    nearest = min((abs(low), abs(high)))
    digits = 1 if math.isnan(nearest) or nearest >= 0.1 or low <= 0 <= high else 2 if nearest >= 0.01 else 3
    if math.isnan(low):
        return f"{value:.{digits}f} points"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] points".replace("-", "−")


def _with_numbers(decoders: Sequence[str], found: dict[str, Delta], sign: int) -> str:
    said = [f"{d} (by {interval(found[d], sign)})" for d in decoders[:SPELLED_OUT]]
    more = len(decoders) - len(said)
    return _listed(said + ([f"{more} more"] if more else []))


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _are(words: Sequence[str]) -> str:
    return "is" if len(words) == 1 else "are"


def _one(values: Sequence[object]) -> object:
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else "several"


def _count(number: object, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
