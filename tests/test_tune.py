"""The search of ``tune:``: what is tried, on which images, what it chooses, and what the sweep does with it."""

import json
import math
import shutil
from statistics import median

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from segbench import store
from segbench.cli import main
from segbench.config_file import build_config
from segbench.report import formats
from segbench.report.frame import load
from segbench.report.table import make_table
from segbench.sweep import run as running
from segbench.sweep.plan import make_plan
from segbench.tuning import search_of
from tests.conftest import tiny
from tests.test_sweep import sweep

RATES = [0.001, 0.004, 0.016]


def folder_data(root, **splits):
    """A data set of files: ``train=8, val=3`` images of 64 px, a bright box of class 1 on noise."""
    rng = np.random.default_rng(0)
    for split, number in splits.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(number):
            labels = np.zeros((64, 64), np.uint8)
            y, x = rng.integers(4, 30, 2)
            labels[y : y + 25, x : x + 25] = 1
            image = rng.integers(0, 90, (64, 64, 3), np.uint8) + labels[..., None] * np.uint8(120)
            Image.fromarray(image).save(root / "images" / split / f"{split}{i}.png")
            Image.fromarray(labels).save(root / "masks" / split / f"{split}{i}.png")
    return {"name": "folder", "root": str(root), "classes": ["a", "b"]}


def tuned(tmp_path, **changes):
    own = {"search": {"recipe.lr": RATES}, "holdout": 0.34, "seeds": [7, 8]} | changes.pop("tune", {})
    data = {"data": changes.pop("data")} if "data" in changes else {}
    return tiny(tune=own, runs_dir=str(tmp_path / "runs"), **({"seeds": [0, 1]} | changes)) | data


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A sweep of two decoders, tuned, whose evaluation split was away while it searched."""
    tmp_path = tmp_path_factory.mktemp("tune")
    data = folder_data(tmp_path / "data", train=9, val=3)
    config = build_config(tuned(tmp_path, data=data))
    plain, seen = running._run, []

    def hide_while_searching(plan, console):
        if not plan.searching:
            return plain(plan, console)
        seen.append((len(plan.cohorts), [len(cohort.runs) for cohort in plan.cohorts]))
        places = [tmp_path / "data" / kind / "val" for kind in ("images", "masks")]
        for place in places:
            place.rename(place.with_name("hidden"))
            place.mkdir()
        done = plain(plan, console)
        for place in places:
            place.rmdir()
            place.with_name("hidden").rename(place)
        return done

    running._run = hide_while_searching
    try:
        _, code, out = sweep(config)
    finally:
        running._run = plain
    return config, code, out, seen


def read(folder):
    """(decoder, variant as text, seed) -> result, of the runs that a sweep's folder lists."""
    rows = store.read_plan(folder)["runs"]
    return {(r["decoder"], json.dumps(r["variant"]), r["seed"]): store.read_result(folder / r["folder"]) for r in rows}


def miou(results):
    """By hand, over the images of each result; the mean over the results, in percent."""
    found = []
    for result in results:
        hit, predicted, true = result.counts["region"].sum(0).astype(float)
        found.append(100 * np.nanmean(hit / (predicted + true - hit)))
    return float(np.mean(found))


def test_the_search_reads_no_file_of_the_evaluation_split_and_shares_the_encoder(searched):
    config, code, out, seen = searched
    assert code == 0, out
    assert seen == [(2, [6, 6])]  # a cohort for each seed, with every decoder at every rate
    held = {name for r in read(search_of(config) and make_plan(config).folder / "search").values() for name in r.ids}
    assert len(held) == 3
    assert all(name.startswith("train") for name in held)


def test_the_best_setting_by_the_mean_over_the_search_s_seeds_is_chosen(searched):
    config, *_ = searched
    folder = make_plan(config).folder
    trials = read(folder / "search")
    for row in store.read_plan(folder)["runs"]:
        if row["variant"] == {"setting": "fixed"}:
            assert "choice" not in row
            continue
        of = [(row["decoder"], json.dumps({"recipe.lr": lr})) for lr in RATES]
        scores = [miou([r for (d, v, _), r in trials.items() if (d, v) == place]) for place in of]
        best = RATES[int(np.argmax(scores))]
        choice = row["choice"]
        assert choice["values"] == {"recipe.lr": best}
        assert [s for _, s in choice["scores"]] == pytest.approx(scores)
        assert choice["flatness"] == pytest.approx(max(scores) - median(scores))
        assert choice["edges"] == (["recipe.lr"] if best in (RATES[0], RATES[-1]) else [])


def test_what_is_chosen_trains_on_all_images_from_fresh_seeds_as_if_alone(searched, tmp_path):
    config, *_ = searched
    folder = make_plan(config).folder
    rows = [r for r in store.read_plan(folder)["runs"] if r["variant"] == {"setting": "tuned"}]
    assert {r["seed"] for r in rows} == {0, 1}
    for decoder in ("bilinear", "nearest"):
        [row] = [r for r in rows if (r["decoder"], r["seed"]) == (decoder, 1)]
        kept = yaml.safe_load((folder / row["folder"] / "config.yaml").read_text())
        lr = row["choice"]["values"]["recipe.lr"]
        assert (kept["data"]["holdout"], kept["tune"], kept["recipe"]["lr"]) == (None, None, lr)
        alone = tiny(decoders=[decoder], seeds=[1], recipe={"lr": lr}, runs_dir=str(tmp_path / decoder))
        results, _, _ = sweep(build_config(alone | {"data": config.data.model_dump()}))
        one, other = (
            load_file(f / "decoder.safetensors") for f in (folder / row["folder"], results[decoder, 1].folder)
        )
        assert all(np.array_equal(one[k], other[k]) for k in one)
        assert store.read_result(folder / row["folder"]).ids.tolist() == ["val0", "val1", "val2"]


def test_a_second_call_searches_nothing_again(searched):
    config, *_ = searched
    plan = make_plan(config)
    assert (plan.todo, plan.awaited, plan.search.todo) == ([], [], [])
    _, code, out = sweep(config)
    assert code == 0
    assert "search" not in out


def test_fixed_and_tuned_stand_side_by_side_with_what_was_chosen(searched):
    config, *_ = searched
    folder = make_plan(config).folder
    table = make_table(folder)
    assert [(r["decoder"], r["setting"]) for r in table.rows] == [
        ("bilinear", "fixed"), ("bilinear", "tuned"), ("nearest", "fixed"), ("nearest", "tuned"),
    ]  # fmt: skip
    runs = read(folder)
    choices = {r["decoder"]: r["choice"] for r in store.read_plan(folder)["runs"] if "choice" in r}
    for row in table.rows:
        of = [r for (d, v, _), r in runs.items() if (d, v) == (row["decoder"], json.dumps({"setting": row["setting"]}))]
        assert row["mIoU"].mean == pytest.approx(miou(of))
        if row["setting"] == "fixed":
            assert (row["chosen"], row["trials"], row["best − median"]) == (None, None, None)
            continue
        choice = choices[row["decoder"]]
        ends = {RATES[0]: " (lowest tried)", RATES[-1]: " (highest tried)"}
        lr = choice["values"]["recipe.lr"]
        assert row["chosen"] == f"lr={lr}{ends.get(lr, '')}"
        assert (row["trials"], row["best − median"]) == (3, f"{choice['flatness']:.2f}")
        fixed = [r for (d, v, _), r in runs.items() if (d, v) == (row["decoder"], '{"setting": "fixed"}')]
        assert row["Δ mIoU tuned from fixed"].mean == pytest.approx(miou(of) - miou(fixed))
    assert any("the best of 3 settings (lr) by miou on 3 of the training images" in note for note in table.notes)
    assert (
        "highest tried" in formats.as_csv(table)
        or "lowest tried" in formats.as_csv(table)
        or all(not c["edges"] for c in choices.values())
    )
    frame = load(folder)
    assert set(frame["setting"]) == {"fixed", "tuned"}
    assert len(frame[(frame.metric == "miou") & (frame["class"] == "mean")]) == 8


def test_status_shows_the_search_too(searched, capsys):
    config, *_ = searched
    assert main(["status", str(make_plan(config).folder)]) == 0
    out = capsys.readouterr().out
    assert "tiny/search: 12 runs: 12 done" in out
    assert "tiny: 8 runs: 8 done" in out
    assert "bilinear setting=tuned" in out


def test_a_damaged_choice_in_the_list_of_runs_is_told(searched, tmp_path, capsys):
    config, *_ = searched
    folder = tmp_path / "copy"
    shutil.copytree(make_plan(config).folder, folder)
    manifest = json.loads((folder / "sweep.json").read_text())
    for row in manifest["runs"]:
        if "choice" in row:
            row["choice"] = {"values": math.pi}
    (folder / "sweep.json").write_text(json.dumps(manifest))
    assert main(["table", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "sweep.json" in err
    assert len(err.strip().splitlines()) == 1
