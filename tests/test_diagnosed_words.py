"""What the page says that the diagnosis points at, for sweeps whose counts are set by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from segbench.columns import described, make_measure
from segbench.report.analysis import Analysis, Delta
from segbench.report.diagnosed import _thin, diagnosed, leader
from segbench.report.metrics import available
from segbench.report.page import write_report
from segbench.report.runs import read_sweep
from segbench.store import read_result
from tests.conftest import described_measures, write_again
from tests.fakes import CLASSES, METRICS, Reader, fake_sweep

MORE = [
    make_measure("ceiling", {"stride": 4, "by": "majority"}),
    make_measure("thin", {"below_px": 5, "by": "recall"}),
    make_measure("distance_error", {"within_px": 2}),
]
CEILING, THIN, NEAR = (measure.name for measure in MORE)
RINGS, STEPS = 12, 6  # of distance_error and of thin


def diagnosed_sweep(path, effects, wrong, found):
    """``wrong``: decoder -> wrong pixels of an image near a boundary, and elsewhere; ``found``: thin ones of 400."""
    fake_sweep(path, effects, images=40)
    for folder in sorted(path.glob("run*")):
        result = read_result(folder)
        d, n, k = result.row["decoder"], result.row["images"], len(CLASSES)
        rng = np.random.default_rng([result.row["seed"], len(d)])
        counts = dict(result.counts)
        counts[CEILING] = np.tile(np.array([[90, 40, 60, 0], [100, 50, 100, 0], [100, 80, 100, 0]]), (n, 1, 1))
        thin = np.zeros((n, 3 * STEPS, k), np.int64)
        thin[:, 1, :3] = found[d] + rng.integers(0, 3, (n, 3))
        thin[:, STEPS + 1, :3] = 400
        errors = np.zeros((n, 2 * RINGS, 1), np.int64)
        errors[:, [1, 8], 0] = wrong[d]
        errors[:, RINGS:, 0] = 1000
        counts |= {THIN: thin, NEAR: errors}
        np.savez(folder / "counts.npz", ids=result.ids, **counts)
        write_again(folder, measures=[*described_measures(*METRICS), *described(MORE)])
    return path


def said(path, metric="miou"):
    group = read_sweep(path).groups[0]
    analyses = {m.name: Analysis(group, m) for m in available(list(group.results.values()))}
    return diagnosed(analyses, analyses[metric], "bilinear", CLASSES), analyses


def test_for_whom_the_leader_wins_and_where(tmp_path):
    path = diagnosed_sweep(
        tmp_path / "s",
        {"bilinear": 0.0, "a": 0.1, "b": 0.2},
        {"bilinear": (120, 180), "a": (100, 170), "b": (60, 160)},
        {"bilinear": 200, "a": 220, "b": 260},
    )
    words, analyses = said(path)
    delta = analyses[THIN].against("bilinear").delta("b")
    assert leader(analyses["miou"], "bilinear") == "b"
    ceilings = [100 * v for v in (90 / 110, 40 / 90, 60 / 140)]
    assert words == [
        "For scale: the truth itself, reduced to stride 4 and brought back, has an IoU of "
        f"{np.mean(ceilings):.1f}, at the lowest {ceilings[2]:.1f} in pole; what is above that comes from within the "
        "cells.",
        f"In recall of thin regions (<5px) b is better too: +{delta.mean:.1f} [+{delta.low:.1f}, +{delta.high:.1f}] "
        "points.",
        # 60 of 80 pixels fewer lie near a boundary, where 120 of bilinear's 300 errors are; an image has 12,000 pixels
        "b gets 0.67 % of the pixels right that bilinear gets wrong, on balance; 75 % of them lie within 2 px of a "
        "true boundary, where 40 % of bilinear's errors are, more than their share: it places boundaries.",
        "b has the best mean mIoU, at 1.5 times the decoder time per image, 0.3 times the multiply-accumulates and 3.0 "
        "times the parameters of bilinear.",
    ]
    assert delta.mean == pytest.approx(15, abs=0.5)  # 60 of 400, but for what is drawn


def b_beside_bilinear(path, wrong, found, effect=0.2):
    effects = {"bilinear": 0.0, "b": effect}
    return diagnosed_sweep(path, effects, {"bilinear": (120, 180), "b": wrong}, {"bilinear": 200, "b": found})


def test_a_leader_that_recognises_and_misses_thin_things(tmp_path):
    words, _ = said(b_beside_bilinear(tmp_path / "s", (100, 40), 120))
    assert words[1].startswith("In recall of thin regions (<5px) b is worse: −")
    assert words[2].endswith(
        "12 % of them lie within 2 px of a true boundary, where 40 % of bilinear's errors are, less than their "
        "share: it recognises."
    )  # 20 of 160


def test_a_leader_that_gains_everywhere_alike(tmp_path):
    """80 of 200 pixels fewer lie near, as 120 of 300 errors do."""
    words, _ = said(b_beside_bilinear(tmp_path / "s", (40, 60), 200))
    assert words[2].endswith(
        "40 % of them lie within 2 px of a true boundary, where 40 % of bilinear's errors are, their share."
    )


def test_a_leader_that_gets_more_pixels_wrong(tmp_path):
    """As by a mean over classes it may."""
    words, _ = said(b_beside_bilinear(tmp_path / "s", (120, 300), 200))
    assert words[1].startswith("In recall of thin regions (<5px) b is not shown to differ: ")
    assert words[2] == "In all b gets no fewer pixels wrong than bilinear: 1.00 % of them more."


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ((40, 250), "b gets 0.67 fewer wrong than bilinear, elsewhere 0.58 more, in percent of all pixels."),
        ((150, 100), "b gets 0.25 more wrong than bilinear, elsewhere 0.67 fewer, in percent of all pixels."),
    ],
)
def test_a_leader_that_wins_in_one_place_and_loses_in_another(tmp_path, wrong, sentence):
    """Then what it gains has no shares; an image has 12,000 pixels."""
    words, _ = said(b_beside_bilinear(tmp_path / "s", wrong, 200))
    assert words[2] == f"Within 2 px of a true boundary {sentence}"


def test_without_a_leader_the_data_and_the_cost_speak(tmp_path):
    words, analyses = said(b_beside_bilinear(tmp_path / "s", (60, 160), 260, effect=0.0))
    assert leader(analyses["miou"], "bilinear") is None
    cells = {d: analyses["miou"].cell(d).mean for d in ("bilinear", "b")}
    best = max(cells, key=cells.get)
    assert len(words) == 2
    assert words[0].startswith("For scale: ")
    assert words[1].startswith(f"{best}{', the baseline,' * (best == 'bilinear')} has the best mean mIoU")


def test_the_baseline_may_be_the_best(tmp_path):
    words, _ = said(b_beside_bilinear(tmp_path / "s", (60, 160), 260, effect=-0.2))
    assert words[-1] == "bilinear, the baseline, has the best mean mIoU: no cost beyond its own is shown to buy more."


def test_inconclusive_is_not_called_no_difference():
    delta = Delta(1.0, 0.1, 1.9, 0.04, 0.12, "inconclusive")
    analysis = SimpleNamespace(
        against=lambda base: SimpleNamespace(delta=lambda d: delta),
        metric=SimpleNamespace(points="points", words="recall"),
    )
    assert list(_thin(analysis, "b", "bilinear")) == [
        "In recall b is inconclusive after Holm's correction: +1.0 [+0.1, +1.9] points."
    ]


def test_who_is_worst_and_best_at_what(tmp_path):
    """Of measures that are no part of the table: phase errors in wrong pixels of 2 x 2 phases, set by hand."""
    path = b_beside_bilinear(tmp_path / "s", (60, 160), 260)
    phases = make_measure("phase_error", {"stride": 2})
    spread = {"bilinear": 20, "b": 50}
    for folder in path.glob("run*"):
        result = read_result(folder)
        rng = np.random.default_rng([result.row["seed"], len(result.row["decoder"])])
        wrong = np.tile([[10], [10], [10], [spread[result.row["decoder"]]]], (len(result.ids), 1, 1))
        wrong += rng.integers(0, 2, wrong.shape)
        every = np.full((len(result.ids), 4, 1), 1000)
        counts = dict(result.counts) | {phases.name: np.concatenate([wrong, every], 1)}
        np.savez(folder / "counts.npz", ids=result.ids, **counts)
        measures = [*described_measures(*METRICS), *described([*MORE, phases])]
        write_again(folder, measures=measures)
    words, analyses = said(path)
    delta = analyses[phases.name].against("bilinear").delta("b")
    assert delta.mean == pytest.approx(3, abs=0.1)  # 40 of 1000 pixels, beside 10
    assert words[-1] == (
        f"Beyond noise worse than bilinear, and the most so: b in phase err. (s = 2) (+{delta.mean:.1f} "
        f"[+{delta.low:.1f}, +{delta.high:.1f}] points)."
    )


def test_the_page_has_it(tmp_path):
    path = b_beside_bilinear(tmp_path / "s", (60, 160), 260)
    shown = " ".join(Reader(write_report(path, gallery=False).path.read_text()).words)
    words, _ = said(path, "biou@0.02")
    assert len(words) == 4
    assert all(sentence in shown for sentence in words)
