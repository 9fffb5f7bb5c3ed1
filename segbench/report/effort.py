"""What a table says of decoders that were tuned, or brought to one budget."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from segbench.config import OF_OPTIMIZER
from segbench.report import stats
from segbench.report.analysis import Analysis, Delta
from segbench.report.metrics import Metric
from segbench.report.runs import Group, Sweep
from segbench.runs import CLOSE, grid_names, priced
from segbench.tuning import SETTING, Choice

TUNED = " tuned"  # what a decoder's name adds where it stands beside itself


def choice_of(group: Group, decoder: str) -> Choice | None:
    """What the search chose for it; None in a group that is not tuned."""
    found = group.found.get(decoder, {}).get("choice")
    return None if found is None else Choice(**found)


def chosen(sweep: Sweep, group: Group, decoder: str) -> str | None:
    """Such as ``lr=0.02 (highest tried)``, or ``lr=0.003, as fixed``."""
    choice = choice_of(group, decoder)
    if choice is None:
        return None
    return choice.setting() + (", as fixed" if choice.values and as_fixed(sweep, group, decoder) else "")


def trials(group: Group, decoder: str) -> int | None:
    choice = choice_of(group, decoder)
    return None if choice is None else len(choice.scores)


def flatness(group: Group, decoder: str) -> str | None:
    choice = choice_of(group, decoder)
    if choice is None:
        return None
    return "most diverged" if choice.flatness is None else f"{choice.flatness:.2f}"


def as_fixed(sweep: Sweep, group: Group, decoder: str) -> bool:
    """Whether a tuned decoder's runs are those of the sweep's own setting."""
    fixed = fixed_beside(sweep, group)
    folders = [{r.folder for (d, _), r in g.results.items() if d == decoder} for g in (group, fixed) if g is not None]
    return len(folders) == 2 and folders[0] == folders[1]


def gains(sweep: Sweep, group: Group, metric: Metric) -> dict[str, Delta]:
    """Decoder -> the difference of the tuned from the fixed one, paired by seed and image; none in a fixed group.

    None either of a decoder for which the search chose what the sweep says, whose runs are the same.
    The p-values are corrected over the decoders (Holm 1979), as those of differences from a baseline are.
    """
    fixed = fixed_beside(sweep, group)
    if fixed is None:
        return {}
    found = {}
    for decoder in group.decoders:
        if as_fixed(sweep, group, decoder):
            continue
        both = {(decoder, seed): r for (d, seed), r in fixed.results.items() if d == decoder}
        both |= {(decoder + TUNED, seed): r for (d, seed), r in group.results.items() if d == decoder}
        pair = replace(group, decoders=[decoder, decoder + TUNED], results=both)
        if difference := Analysis(pair, metric).against(decoder).difference(decoder + TUNED):
            found[decoder] = difference
    adjusted = stats.holm([difference.p for difference in found.values()]) if found else ()
    corrected = {d: replace(found[d], p_holm=float(p)) for d, p in zip(found, adjusted, strict=True)}
    return {d: Delta(c.value, c.low, c.high, c.p, c.p_holm, c.verdict) for d, c in corrected.items()}


def fixed_beside(sweep: Sweep, group: Group) -> Group | None:
    """The group of the same runs as the sweep says, for one that is tuned."""
    if group.variant.get(SETTING) != "tuned":
        return None
    return next((other for other in sweep.groups if other.variant == group.variant | {SETTING: "fixed"}), None)


def width(group: Group, decoder: str) -> int | None:
    found = group.found.get(decoder, {}).get("budget")
    return None if found is None else int(found["width"])


def of_budget(group: Group, decoder: str) -> str | None:
    """How much more or less it costs than the budget, such as ``-1.2 %``."""
    found = group.found.get(decoder, {}).get("budget")
    return None if found is None else f"{100 * _off(found):+.1f} %"


def _off(found: Mapping[str, Any]) -> float:
    return float(found["cost"] / found["asked"] - 1)


def side_by_side(groups: Sequence[Group]) -> list[tuple[Group, str]]:
    """Groups and decoders by row: the fixed and the tuned of one decoder one below the other."""
    order: dict[str, dict[str, int]] = {}
    placed = []
    for group in groups:
        tells = SETTING in group.variant
        outer = {k: v for k, v in group.variant.items() if k != SETTING} if tells else group.label
        decoders = order.setdefault(str(outer), {})
        for d in group.decoders:
            place = list(order).index(str(outer)), decoders.setdefault(d, len(decoders)) if tells else 0
            placed.append((place, group, d))
    return [(group, decoder) for _, group, decoder in sorted(placed, key=lambda row: row[0])]


def notes(sweep: Sweep) -> Iterator[str]:
    """How decoders were tuned and which do not cost what they should, in sentences."""
    if tuned := tuned_how(sweep):
        yield f"Tuned: {tuned}."
        yield (
            "Best − median: how much better the chosen setting did there than the median of those tried; near 0 the "
            "optimum is flat."
        )
        keys = dict.fromkeys(k for group in sweep.groups for d in group.decoders for k in _of_batches(group, d))
        if keys:
            named = ", ".join(grid_names(keys).values())
            yield f"Tuned decoders differ in {named}, and so in their batches; their differences carry that noise too."
    yield from dict.fromkeys(said for group in sweep.groups for said in budget_said(group))


def _of_batches(group: Group, decoder: str) -> list[str]:
    """What was searched for it that makes other batches."""
    choice = choice_of(group, decoder)
    own = [] if choice is None else [key for key in choice.values if key.startswith("recipe.")]
    return [key for key in own if key.partition(".")[2] not in OF_OPTIMIZER]


def budget_said(group: Group) -> Iterator[str]:
    """What the decoders cost, and which could not be brought to that, in sentences."""
    found = {d: of["budget"] for d in group.decoders if (of := group.found.get(d, {})).get("budget")}
    for asked, by in dict.fromkeys((b["asked"], b["by"]) for b in found.values()):
        own = {d: b for d, b in found.items() if (b["asked"], b["by"]) == (asked, by)}
        yield f"Budget: widths chosen so that each decoder costs {priced(asked, by)}."
        if far := [f"{d} {100 * _off(b):+.1f} %" for d, b in own.items() if abs(_off(b)) > CLOSE]:
            yield f"Not within {100 * CLOSE:.0f} % of that at any width, so the nearest: {', '.join(far)}."


def without_budget(sweep: Sweep, group: Group) -> Group | None:
    """The group of the same decoders at the sweep's own widths, for one that is brought to a budget."""
    if not group.variant.get("budget"):
        return None
    return next((other for other in sweep.groups if other.variant == group.variant | {"budget": None}), None)


def tuned_how(sweep: Sweep, *groups: Group) -> str:
    """How the settings of these groups, or of all, were chosen, in words; empty where nothing was tuned."""
    choices = [c for group in groups or sweep.groups for d in group.decoders if (c := choice_of(group, d))]
    tune = sweep.config.get("tune")
    if not choices or not isinstance(tune, dict):
        return ""
    numbers = sorted({len(c.scores) for c in choices})
    number = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    names = grid_names(itertools.chain.from_iterable(c.values for c in choices))
    images, seeds = choices[0].images, len(tune["seeds"])
    by = " in whole groups" if tune["holdout"]["group"] else ""
    return (
        f"each decoder with the best of {number} settings ({', '.join(names.values())}) by {choices[0].measure} on "
        f"{images} of the training images, held out{by}, over {seeds} seed{'s' * (seeds > 1)} of the "
        "search's own; then trained on all of them"
    )
