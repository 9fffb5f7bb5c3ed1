"""What the diagnosis of a group points at, in sentences: for whom the winner wins, where, and what there is to win."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from segbench.measures.base import mean_over_classes
from segbench.report.analysis import Analysis
from segbench.report.words import interval

CLEARLY = 2.0  # points by which a share differs from another to be said to


def diagnosed(analyses: Mapping[str, Analysis], main: Analysis, baseline: str, classes: Sequence[str]) -> list[str]:
    """Sentences on the decoder that leads by ``main``, beside a baseline; of the data alone where none is shown to.

    Args:
        analyses: of the group, by the names of their measures.
        classes: their names.
    """
    kinds: dict[str, Analysis] = {}
    for a in analyses.values():
        kinds.setdefault(a.metric.measure.kind, a)
    said = list(_ceiling(kinds["ceiling"], classes)) if "ceiling" in kinds else []
    best = leader(main, baseline)
    if best is None:
        return said
    if "thin" in kinds:
        said += _thin(kinds["thin"], best, baseline)
    if "distance_error" in kinds:
        said += _where(kinds["distance_error"], best, baseline)
    return said


def leader(main: Analysis, baseline: str) -> str | None:
    """Of the decoders that are better than the baseline the one with the best mean; None where none is."""
    sign = 1 if main.metric.measure.higher_is_better else -1
    found = {d: main.cell(d).mean for d in main.decoders if main.against(baseline).delta(d).verdict == "better"}
    return max(found, key=lambda d: sign * found[d]) if found else None


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
        how = {"better": "better too", "worse": "worse"}.get(delta.verdict, "not shown to differ")
        yield f"In {a.metric.words} {best} is {how}: {by}."


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
