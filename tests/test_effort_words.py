"""What the report says of tuning and budgets, for sweeps whose outcome is known."""

import json

import numpy as np
import pytest

from segbench import store
from segbench.report.analysis import Analysis
from segbench.report.drawing import Look
from segbench.report.effort import gains
from segbench.report.metrics import available
from segbench.report.page import write_report
from segbench.report.runs import read_sweep
from segbench.report.searched import best_at, trials
from segbench.report.stats import holm
from segbench.report.table import make_table
from segbench.report.words import compared, effects
from segbench.tuning import Choice
from tests.fakes import Reader, fake_sweep

TUNE = {"search": {"recipe.lr": [0.1, 0.2, 0.4]}, "holdout": {"share": 0.25, "group": None}, "seeds": [8, 9]}
LIKE = {"like": "b"}


def choice(lr=0.2, **changes):
    scores = [[{"recipe.lr": 0.1}, 40.0], [{"recipe.lr": 0.2}, 43.5], [{"recipe.lr": 0.4}, None]]
    own = {"values": {"recipe.lr": lr}, "measure": "miou", "scores": scores, "edges": [], "images": 7, "flatness": 3.5}
    return own | {"highest_is_best": True} | changes


def sweep_of(path, parts):
    """One folder of several: (variant, effects, what was found for each decoder)."""
    runs = []
    for number, (variant, given, found) in enumerate(parts):
        part = fake_sweep(path.parent / f"part{number}", given, images=40, baseline="a")
        path.mkdir(exist_ok=True)
        manifest = json.loads((part / "sweep.json").read_text())
        for row in manifest["runs"]:
            more = found.get(row["decoder"], {})
            place = path / f"part{number}-{row['folder']}"
            (part / row["folder"]).rename(place)
            runs.append({**row, "folder": place.name, "variant": variant, **more})
    store.write_json(path / "sweep.json", manifest | {"config": manifest["config"] | {"tune": TUNE}, "runs": runs})
    return path


FIXED = {"a": 0.0, "b": 0.1, "c": 0.05}


def tuned_sweep(path, tuned):
    found = {d: {"choice": choice()} for d in tuned}
    return sweep_of(path, [({"setting": "fixed"}, FIXED, {}), ({"setting": "tuned"}, tuned, found)])


def said(path, number=1, metric="miou"):
    sweep = read_sweep(path)
    group = sweep.groups[number]
    of = next(m for m in available(list(group.results.values())) if m.name == metric)
    return effects(sweep, group, Analysis(group, of)), sweep, group, of


def test_what_tuning_changes_and_the_order(tmp_path):
    path = tuned_sweep(tmp_path / "s", {"a": 0.0, "b": 0.1, "c": 0.2})
    words, sweep, group, of = said(path)
    delta = gains(sweep, group, of)["c"]
    assert words == [
        f"Tuning changes the mIoU of c by +{delta.mean:.1f} [+{delta.low:.1f}, +{delta.high:.1f}] points; of the other "
        "2 not beyond noise.",
        "By mIoU the order tuned is c, b, a; with the sweep's own settings it is b, c, a.",
    ]
    assert delta.low > 0
    assert said(path, 0)[0] == []  # of the fixed ones there is nothing to say


def test_tuning_that_changes_nothing(tmp_path):
    words, *_ = said(tuned_sweep(tmp_path / "s", dict(FIXED)))
    assert words == [
        "Tuning changes the mIoU of no decoder beyond noise.",
        "By mIoU the order tuned is as with the sweep's own settings: b, c, a.",
    ]


def test_gains_that_the_correction_takes_back_are_named(tmp_path):
    """One change between noise and a claim, beside a claim, and with nothing beside it."""
    for b, start in ((0.11, "b by +1.1 [+1.1, +1.2] points"), (0.1, "no decoder beyond noise")):
        words, sweep, group, of = said(tuned_sweep(tmp_path / f"b{b}" / "s", {"a": 0.0, "b": b, "c": 0.05015}))
        delta = gains(sweep, group, of)["c"]
        assert delta.verdict == "inconclusive"
        by = f"{delta.mean:+.3f} [{delta.low:+.3f}, {delta.high:+.3f}] points"
        rest = "; of the other 1 not beyond noise" if b == 0.11 else ""
        assert words[0] == (
            f"Tuning changes the mIoU of {start}; "
            f"the change of c by {by} is inconclusive after Holm's correction{rest}."
        )


def test_gains_are_paired_and_corrected_over_the_decoders(tmp_path):
    """By hand: the mean difference of the scores, and Holm's correction of the single comparisons' p-values."""
    path = tuned_sweep(tmp_path / "s", {"a": 0.004, "b": 0.1, "c": 0.06})
    _, sweep, group, of = said(path)
    found = gains(sweep, group, of)
    for decoder, delta in found.items():
        means = [np.mean([of.mean(r) for r in g.of(decoder)]) for g in sweep.groups]
        assert delta.mean == pytest.approx(means[1] - means[0])
    assert [d.p_holm for d in found.values()] == pytest.approx(holm([d.p for d in found.values()]))
    assert any(d.p_holm > d.p for d in found.values())
    table = {(r["decoder"], r["setting"]): r for r in make_table(path).rows}
    for decoder, delta in found.items():
        assert table[decoder, "tuned"]["Δ mIoU tuned from fixed"] == delta
        assert table[decoder, "fixed"]["Δ mIoU tuned from fixed"] is None


def test_what_was_compared_says_how(tmp_path):
    sweep = read_sweep(tuned_sweep(tmp_path / "s", dict(FIXED)))
    fixed, tuned = (compared(sweep, group) for group in sweep.groups)
    assert fixed.endswith("3 seeds of 40 steps. Not tuned: all with the sweep's own settings.")
    assert tuned.endswith(
        " Tuned: each decoder with the best of 3 settings (lr) by miou on 7 of the training images, held out, over "
        "2 seeds of the search's own; then trained on all of them."
    )


def budget(cost, width=8):
    return {"budget": {"width": width, "cost": cost, "asked": 2e9, "by": "macs"}}


def test_a_budget_says_what_it_is_who_misses_it_and_the_order(tmp_path):
    found = {"a": budget(2.05e9, 11), "b": budget(2e9), "c": budget(1.8e9, 3)}
    path = sweep_of(
        tmp_path / "s", [({"budget": None}, FIXED, {}), ({"budget": LIKE}, {"a": 0.2, "b": 0.1, "c": 0.0}, found)]
    )
    words, sweep, group, _ = said(path)
    assert words == ["By mIoU the order at this budget is a, b, c; at the sweep's own widths it is b, c, a."]
    assert compared(sweep, group).endswith(
        "Budget: widths chosen so that each decoder costs 2 G multiply-accumulates. Not within 5 % of that at any "
        "width, so the nearest: c -10.0 %."
    )
    table = make_table(path)
    assert [(r["width"], r["of budget"]) for r in table.rows[3:]] == [(11, "+2.5 %"), (8, "+0.0 %"), (3, "-10.0 %")]
    assert [n for n in table.notes if n.startswith(("Budget", "Not within"))] == [
        "Budget: widths chosen so that each decoder costs 2 G multiply-accumulates.",
        "Not within 5 % of that at any width, so the nearest: c -10.0 %.",
    ]


def test_the_page_says_it_all_and_draws_what_was_tried(tmp_path):
    path = tuned_sweep(tmp_path / "s", {"a": 0.0, "b": 0.1, "c": 0.2})
    text = write_report(path, gallery=False).path.read_text()
    words = Reader(text).words
    shown = " ".join(words)
    sentences, *_ = said(path, metric="biou@0.02")  # the first by which a verdict is given
    assert all(sentence in shown for sentence in sentences)
    assert "Tuned: each decoder with the best of 3 settings (lr)" in shown
    assert text.count('data-figure="g1-search"') == 1
    assert 'data-figure="g0-search"' not in text


def test_the_plot_of_a_search_has_the_best_score_at_each_value(tmp_path):
    by_hand = [[{"recipe.lr": lr, "decoder.width": w}, 10 * w + lr] for lr in (0.1, 0.2) for w in (1, 2)]
    found = Choice(**choice(scores=by_hand))
    assert best_at(found, "recipe.lr") == {0.1: 20.1, 0.2: 20.2}
    assert best_at(found, "decoder.width") == {1: 10.2, 2: 20.2}
    assert best_at(Choice(**choice(scores=by_hand, highest_is_best=False)), "recipe.lr") == {0.1: 10.1, 0.2: 10.2}
    sweep = read_sweep(tuned_sweep(tmp_path / "s", dict(FIXED)))
    [plot] = trials(sweep, sweep.groups[1], Look(["a", "b", "c"], "a"), "")
    [axes] = plot.figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in lines] == [[0.1, 0.2]] * 3  # 0.4 diverged
    assert [list(line.get_ydata()) for line in lines] == [[40.0, 43.5]] * 3
    assert [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 1] == [[0.2]] * 3
    assert axes.get_xscale() == "log"


def columns_of(table):
    """Heading -> (sort value, text) of each row, of a table of the page whose headings are in its second row."""
    heads = [" ".join(cell["text"].split()) for cell in table[1]]
    return {
        head: [(row[i]["value"], " ".join(row[i]["text"].split())) for row in table[2:]] for i, head in enumerate(heads)
    }


def test_the_page_has_fixed_and_tuned_side_by_side(tmp_path):
    path = tuned_sweep(tmp_path / "s", {"a": 0.0, "b": 0.1, "c": 0.2})
    page = Reader(write_report(path, gallery=False).path.read_text())
    sweep = read_sweep(path)
    metric = next(m for m in available(sweep.results) if m.name == "biou@0.02")
    delta = gains(sweep, sweep.groups[1], metric)["c"]
    fixed = Analysis(sweep.groups[0], metric).cell("c")
    groups = {tuple(cell["text"].strip() for cell in table[0]): table for table in page.tables}
    [tuned] = [
        columns_of(table) for titles, table in groups.items() if f"tuned beside fixed, in {metric.column}" in titles
    ]
    value, text = tuned["Δ from fixed"][2]
    assert float(value) == pytest.approx(delta.mean)
    assert f"[{delta.low:+.2f}, {delta.high:+.2f}]" in text.replace("−", "-")
    assert float(tuned["fixed"][2][0]) == pytest.approx(fixed.mean)
    assert [text for _, text in tuned["chosen"]] == ["lr=0.2"] * 3
    assert tuned["trials"] == [("3.0", "3")] * 3
    assert tuned["best − median"] == [("3.5", "3.50")] * 3
    assert "not compared with each other, but for what is tuned with what is fixed." in " ".join(page.words)


def test_the_page_says_the_width_that_a_budget_gives(tmp_path):
    found = {
        d: {"budget": {"width": 30 + i, "cost": 102.5 - i, "asked": 100.0, "by": "macs"}} for i, d in enumerate("abc")
    }
    path = sweep_of(tmp_path / "s", [({}, FIXED, found)])
    page = Reader(write_report(path, gallery=False).path.read_text())
    [columns] = [columns_of(t) for t in page.tables if any(cell["text"].strip() == "budget" for cell in t[0])]
    assert [text for _, text in columns["width"]] == ["30", "31", "32"]
    assert columns["of budget"] == [("2.5", "+2.5 %"), ("1.5", "+1.5 %"), ("0.5", "+0.5 %")]


def test_a_search_of_names_has_no_plot(tmp_path):
    path = tuned_sweep(tmp_path / "s", dict(FIXED))
    manifest = json.loads((path / "sweep.json").read_text())
    for row in manifest["runs"]:
        if "choice" in row:
            scores = [[{"recipe.optimizer": name}, 1.0] for name in ("sgd", "adamw")]
            row["choice"] = choice(values={"recipe.optimizer": "sgd"}, scores=scores)
    store.write_json(path / "sweep.json", manifest)
    sweep = read_sweep(path)
    assert [*trials(sweep, sweep.groups[1], Look(["a", "b", "c"], "a"), "")] == []
