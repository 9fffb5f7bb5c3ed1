"""Two sweeps of which one varies more than decoders, with numbers that are known."""

import math

import pytest

from segbench import store
from segbench.cli import main
from segbench.errors import UserError
from segbench.report import formats
from segbench.report.compare import compare
from segbench.report.runs import read_sweep
from tests.conftest import write_again
from tests.fakes import fake_sweep
from tests.test_effort_words import FIXED, sweep_of, tuned_sweep

TUNED = {"a": 0.0, "b": 0.1, "c": 0.2}


def listed(path):
    """A sweep whose config names its decoders, as a real one's does."""
    manifest = store.read_json(path / "sweep.json")
    decoders = [{"name": d, "label": "", "params": {}} for d in dict.fromkeys(r["decoder"] for r in manifest["runs"])]
    store.write_json(path / "sweep.json", manifest | {"config": manifest["config"] | {"decoders": decoders}})
    return path


@pytest.fixture
def tuned(tmp_path):
    return listed(tuned_sweep(tmp_path / "tuned", TUNED))


def rows_of(table, *keys):
    return {tuple(row[k] for k in keys): row for row in table.rows}


def test_a_sweep_is_compared_with_both_settings_of_a_tuned_one(tuned, tmp_path):
    """Each difference is that of the two sweeps' own means."""
    plain = listed(fake_sweep(tmp_path / "plain", {"a": 0.05, "c": 0.05}, images=40, baseline="a"))
    table = compare(plain, tuned, ["miou"]).table
    assert table.blocks[0] == ["decoder", "setting"]
    rows = rows_of(table, "decoder", "setting")
    assert list(rows) == [("a", "fixed"), ("c", "fixed"), ("a", "tuned"), ("c", "tuned")]
    for row in rows.values():
        gap = row["mIoU in tuned"].mean - row["mIoU in " + plain.name].mean
        assert row["Δ mIoU"].mean == pytest.approx(gap)
        assert row["Δ mIoU"].low < gap < row["Δ mIoU"].high
    assert rows["c", "tuned"]["mIoU in tuned"].mean > rows["c", "fixed"]["mIoU in tuned"].mean
    assert "Only in tuned: b." in table.notes
    assert any(note.startswith("Tuned in tuned: each decoder with the best of 3 settings (lr)") for note in table.notes)
    assert "| c | tuned |" in formats.as_md(table)


def test_what_both_vary_is_matched_by_its_value(tuned, tmp_path):
    again = listed(tuned_sweep(tmp_path / "again", TUNED | {"c": 0.3}))
    table = compare(tuned, again, ["miou"]).table
    rows = rows_of(table, "decoder", "setting")
    assert len(rows) == len(table.rows) == 6
    assert rows["c", "tuned"]["Δ mIoU"].mean > 1
    same = [note for note in table.notes if "very same runs" in note]
    assert same == [
        "The very same runs (setting=fixed), so that nothing can differ (seeds 0, 1, 2): a, b, c.",
        "The very same runs (setting=tuned), so that nothing can differ (seeds 0, 1, 2): a, b.",
    ]
    assert all(math.isnan(rows[d, "fixed"]["Δ mIoU"].mean) for d in FIXED)


def test_grids_of_other_keys_are_crossed_and_of_other_values_refused(tmp_path, capsys):
    def varied(name, key, *values):
        return listed(sweep_of(tmp_path / name, [({key: v}, FIXED, {}) for v in values]))

    rates, crops = varied("rates", "recipe.lr", 0.1, 0.2), varied("crops", "recipe.crop", 64, 128)
    table = compare(rates, crops, ["miou"]).table
    assert table.blocks[0] == ["decoder", "lr", "crop"]
    assert len(rows_of(table, "decoder", "lr", "crop")) == len(table.rows) == 3 * 2 * 2
    other = varied("other", "recipe.lr", 0.4, 0.8)
    with pytest.raises(UserError) as error:
        compare(rates, other)
    said = "no decoder is in both: a, b, c (lr=0.1; lr=0.2) and a, b, c (lr=0.4; lr=0.8)"
    assert str(error.value) == said
    assert main(["compare", str(rates), str(other)]) == 2
    assert said in capsys.readouterr().err


def test_runs_of_two_tasks_are_no_pair(tmp_path):
    """A grid of tasks beside a sweep that segments: each of its decoders once, as it segments."""
    both = listed(sweep_of(tmp_path / "both", [({"task": task}, FIXED, {}) for task in ("segmentation", "other")]))
    for run in both.glob("part1-*"):
        write_again(run, task="other")
    plain = listed(fake_sweep(tmp_path / "plain", FIXED, images=40, baseline="a"))
    assert len(read_sweep(both).groups) == 2
    table = compare(both, plain, ["miou"]).table
    assert [(row["decoder"], row["task"]) for row in table.rows] == [(d, "segmentation") for d in FIXED]
