"""What the diagnosis of a group points at, in sentences: for whom the winner wins, where, and what there is to win."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from segbench.measures.base import mean_over_classes
from segbench.report.analysis import Analysis
from segbench.report.metrics import of_runs, value
from segbench.report.words import interval, listed, times

COSTS = {"eval": "decoder time per image", "macs": "multiply-accumulates", "params": "parameters"}
TOLD = ("distance_error", "kernel")  # the first in a sentence of its own; a narrow kernel is not for that better
CLEARLY = 2.0  # points by which a share differs from another to be said to


def diagnosed(analyses: Mapping[str, Analysis], main: Analysis, baseline: str, classes: Sequence[str]) -> list[str]:
    """Sentences on where and for whom the leader wins beside a baseline, what the best costs, and who is worst at what.

    Args:
        analyses: of the group, by the names of their measures.
        classes: their names.
    """
    kinds: dict[str, Analysis] = {}
    for a in analyses.values():
        kinds.setdefault(a.metric.measure.kind, a)
    said = list(_ceiling(kinds["ceiling"], classes)) if "ceiling" in kinds else []
    best = leader(main, baseline)
    if best is not None and "thin" in kinds:
        said += _thin(kinds["thin"], best, baseline)
    if best is not None and "distance_error" in kinds:
        said += _where(kinds["distance_error"], best, baseline)
    measures = {a: a.metric.measure for a in analyses.values()}
    own = [a for a, m in measures.items() if m.table_place is None and not m.per_class and m.kind not in TOLD]
    return [*said, *_costs(main, baseline), *_extremes(own, baseline)]


def leader(main: Analysis, baseline: str) -> str | None:
    """Of the decoders that are better than the baseline the one with the best mean; None where none is."""
    sign = 1 if main.metric.measure.higher_is_better else -1
    found = {d: main.cell(d).mean for d in main.decoders if main.against(baseline).delta(d).verdict == "better"}
    return max(found, key=lambda d: sign * found[d]) if found else None


def _costs(main: Analysis, baseline: str) -> Iterator[str]:
    """What the decoder with the best mean costs, beside the baseline; by itself where that is the best."""
    if baseline not in main.decoders or len(main.decoders) < 2:
        return
    up = 1 if main.metric.measure.higher_is_better else -1
    best = max(main.decoders, key=lambda d: up * main.cell(d).mean)
    there = {m.name: m for m in of_runs(list(main.group.results.values()))}
    found = {
        what: [value(there[n], main.group.of(d)) for d in (best, baseline)] for n, what in COSTS.items() if n in there
    }
    ratios = {what: ours / theirs for what, (ours, theirs) in found.items() if theirs > 0 and ours > 0}
    if best == baseline:
        name = main.metric.words
        yield f"{best}, the baseline, has the best mean {name}: no cost beyond its own is shown to buy more."
    elif ratios:
        said = listed([f"{times(ratio)} times the {what}" for what, ratio in ratios.items()])
        yield f"{best} has the best mean {main.metric.words}, at {said} of {baseline}."


def _extremes(analyses: Sequence[Analysis], baseline: str) -> Iterator[str]:
    """Who is farthest from the baseline, beyond noise, in each of these: a sentence for worse, and one for better."""
    for verdict in ("worse", "better"):
        said = []
        for a in analyses:
            deltas = {d: a.against(baseline).delta(d) for d in a.decoders}
            named = [d for d in deltas if deltas[d].verdict == verdict]
            if named:
                far = max(named, key=lambda d: abs(deltas[d].mean))
                said.append(f"{far} in {a.metric.column} ({interval(deltas[far], a.metric.points, sign_shown=True)})")
        if said:
            yield f"Beyond noise {verdict} than {baseline}, and the most so: {listed(said)}."


def _ceiling(a: Analysis, classes: Sequence[str]) -> Iterator[str]:
    if not a.decoders:
        return
    scores = a.metric.measure.score(a.counts[0, 0].sum(0))  # of the data alone, so the same for each decoder
    if np.isnan(scores).all():
        return
    hardest, stride = int(np.nanargmin(scores)), a.metric.measure.params["stride"]
    yield (
        f"For scale: the truth itself, reduced to stride {stride} and brought back, has an IoU of "
        f"{float(mean_over_classes(scores)):.1f}, at the lowest {scores[hardest]:.1f} in {classes[hardest]}; what is "
        "above that comes from within the cells."
    )


def _thin(a: Analysis, best: str, baseline: str) -> Iterator[str]:
    delta = a.against(baseline).delta(best)
    if delta.verdict:
        by = interval(delta, a.metric.points, sign_shown=True)
        how = {
            "better": "better too", "worse": "worse", "inconclusive": "inconclusive after Holm's correction"
        }.get(delta.verdict, "not shown to differ")  # fmt: skip
        yield f"In {a.metric.words} {best} is {how}: {by}."


def _more(fewer: float) -> str:
    return f"{abs(fewer):.2f} {'fewer' if fewer >= 0 else 'more'}"


def _where(a: Analysis, best: str, baseline: str) -> Iterator[str]:
    """Of the pixels that the leader gets right and the baseline wrong, on balance: how many lie near a boundary."""
    if best not in a.decoders or baseline not in a.decoders:
        return
    wrong = {d: a.counts[a.decoders.index(d)][..., 0].sum(1).mean(0) for d in (best, baseline)}  # over seeds
    rings = len(wrong[best]) // 2
    axis, within_px = a.metric.measure.axis, a.metric.measure.params["within_px"]
    assert axis is not None
    near = np.array(axis[1]) <= within_px
    fewer, every = (wrong[baseline] - wrong[best])[:rings], wrong[baseline][:rings]
    gained, pixels = fewer.sum(), wrong[baseline][rings:].sum()
    if gained <= 0:
        yield f"In all {best} gets no fewer pixels wrong than {baseline}: {100 * -gained / pixels:.2f} % of them more."
        return
    if min(fewer[near].sum(), fewer[~near].sum()) < 0:  # then there are no shares of what is gained
        here, there = (_more(100 * part.sum() / pixels) for part in (fewer[near], fewer[~near]))
        yield (
            f"Within {within_px} px of a true boundary {best} gets {here} wrong than {baseline}, elsewhere {there}, in "
            "percent of all pixels."
        )
        return
    share, before = 100 * fewer[near].sum() / gained, 100 * every[near].sum() / every.sum()
    how = "their share"
    if abs(share - before) >= CLEARLY:
        how = (
            "more than their share: it places boundaries" if share > before else "less than their share: it recognises"
        )
    yield (
        f"{best} gets {100 * gained / pixels:.2f} % of the pixels right that {baseline} gets wrong, on balance; "
        f"{share:.0f} % of them lie within {within_px} px of a true boundary, where {before:.0f} % of {baseline}'s "
        f"errors are, {how}."
    )
