"""What the report says in sentences, for sweeps whose outcome is known."""

import pytest

from segbench import store
from segbench.report.analysis import Analysis, Delta
from segbench.report.metrics import available
from segbench.report.runs import read_sweep
from segbench.report.words import interval, verdict
from tests.conftest import write_again
from tests.fakes import fake_sweep


def contrast(path, metric):
    sweep = read_sweep(path)
    group = sweep.groups[0]
    chosen = next(m for m in available(list(group.results.values())) if m.name == metric)
    return Analysis(group, chosen).against(sweep.baselines[0])


def say(tmp_path, effects, metric="biou@0.02", **options):
    a = contrast(fake_sweep(tmp_path / "s", effects, **options), metric)
    return verdict(a), a


def test_verdict_of_a_clear_leader(tmp_path):
    said, a = say(tmp_path, {"bilinear": 0.0, "nearest": 0.0001, "subpixel": 0.1}, images=40)
    delta = a.delta("subpixel")
    assert said.main == (
        f"subpixel leads Boundary IoU 0.02 (5px) by {delta.mean:.1f} [{delta.low:.1f}, {delta.high:.1f}] points over "
        "bilinear at 1.5 times the decoder time per image; the other difference is within noise."
    )
    assert [a.group.of(d)[0].row["values"]["eval"] for d in ("bilinear", "subpixel")] == [4.0, 6.0]  # 1.5 times
    assert delta.low > 0
    assert said.more == ""  # better than each of the others


def test_verdict_names_the_better_and_the_worse(tmp_path):
    said, a = say(tmp_path, {"bilinear": 0.0, "a": 0.1, "b": 0.2, "c": -0.1, "d": 0.0001}, "miou", images=40)
    assert said.main.startswith("b leads mIoU by ")
    assert f", a (by {a.delta('a').mean:.1f} [" in said.main
    assert "is better than bilinear too; c (by " in said.main
    assert said.main.endswith(" points) is worse; the other difference is within noise.")
    assert "−" not in said.main


def test_the_cost_of_the_leader_is_the_ratio_of_the_means(tmp_path):
    path = fake_sweep(tmp_path / "s", {"bilinear": 0.0, "a": 0.2}, images=40)
    for decoder, number, values in (("bilinear", 0, (1.0, 2.0, 3.0)), ("a", 1, (20.0, 50.0, 11.0))):
        for seed, eval_ms in enumerate(values):
            run = path / f"run{number}-s{seed}"
            row = store.read_json(run / "result.json")
            assert row["decoder"] == decoder
            write_again(run, values=row["values"] | {"eval": eval_ms})
    said = verdict(contrast(path, "miou"))
    assert " points over bilinear at 14 times the decoder time per image." in said.main  # 27 / 2 = 13.5
    for seed in range(3):
        row = store.read_json(path / f"run0-s{seed}" / "result.json")
        write_again(path / f"run0-s{seed}", values={k: v for k, v in row["values"].items() if k != "eval"})
    assert verdict(contrast(path, "miou")).main.endswith(" points over bilinear.")


def test_verdict_of_noise(tmp_path):
    said, _ = say(tmp_path, {"bilinear": 0.0, "a": 0.0, "b": 0.0, "c": 0.0}, noise=0.03)
    assert said.main == (
        "No decoder is better or worse than bilinear in Boundary IoU 0.02 (5px): all 3 differences are within noise."
    )


def test_verdict_of_what_the_correction_takes_back(tmp_path, monkeypatch):
    _, a = say(tmp_path, {"bilinear": 0.0, "a": 0.1, "b": 0.0, "c": 0.0}, noise=0.03)
    deltas = {
        "a": Delta(5.0, 1.0, 9.0, 0.02, 0.06, "inconclusive"),
        "b": Delta(0.1, -1.0, 1.2, 0.8, 0.9, "within noise"),
        "c": Delta(0.2, -1.0, 1.4, 0.7, 0.9, "within noise"),
    }
    monkeypatch.setattr(a, "delta", lambda d, place=-1: deltas[d])
    assert verdict(a).main == (
        "No decoder is shown to be better or worse than bilinear in Boundary IoU 0.02 (5px); a (by 5.0 [1.0, 9.0] "
        "points) is inconclusive after Holm's correction; the other differences are within noise."
    )
    deltas["c"] = Delta(3.0, 2.0, 4.0, 0.001, 0.003, "better")
    main_words = verdict(a).main
    assert "a (by 5.0 [1.0, 9.0] points) is inconclusive after Holm's correction; the other difference" in main_words


def test_verdict_of_one_seed_claims_nothing_about_the_recipe(tmp_path):
    said, a = say(tmp_path, {"bilinear": 0.0, "a": 0.2}, seeds=[0])
    assert said.main.startswith(
        "One seed says nothing about the recipe. Of these trained models on such images, a is highest in Boundary IoU "
        f"0.02 (5px), by {a.delta('a').mean:.1f} ["
    )


def test_verdict_where_the_leader_is_not_alone(tmp_path):
    said, a = say(tmp_path, {"bilinear": 0.0, "a": 0.1, "b": 0.1}, noise=0.01, images=40)
    best = max("ab", key=lambda d: a.delta(d).mean)
    assert said.main.startswith(f"{best} leads")
    assert said.more == f"Whether {best} is the best of all stays open: its rank is 1 to 2 of 3."


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"baseline": "other"}, "No difference in mIoU can be given: the baseline other is not among the decoders."),
        ({"images": 1}, "One image: nothing can be said about the noise of mIoU."),
    ],
)
def test_verdict_without_a_difference(tmp_path, options, words):
    assert say(tmp_path, {"bilinear": 0.0, "a": 0.1}, "miou", **options)[0].main == words


def test_verdict_of_one_decoder(tmp_path):
    assert "nothing to compare" in say(tmp_path, {"bilinear": 0.0}, "miou")[0].main


def test_small_intervals_are_not_rounded_to_zero():
    assert interval(Delta(1.23, 0.71, 1.64, 0, 0, "better")) == "1.2 [0.7, 1.6] points"
    assert interval(Delta(0.06, 0.02, 0.1, 0, 0, "better")) == "0.06 [0.02, 0.10] points"
    assert interval(Delta(-1.2, -2.0, -0.004, 0, 0, "worse"), "points", -1) == "1.200 [0.004, 2.000] points"
