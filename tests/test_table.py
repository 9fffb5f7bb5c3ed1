import csv
import io
import json
import math
import shutil

import numpy as np
import pandas
import pytest
from rich.console import Console
from scipy import stats

import segbench
from segbench import store
from segbench.cli import main
from segbench.errors import Failure, UserError
from segbench.report import formats
from segbench.report import table as tables
from segbench.report.compare import compare
from segbench.sweep.status import newest_sweep
from tests.conftest import described_measures, write_again

CLASSES = ["sky", "pole", "never"]
MEASURES = ["miou", "biou@0.02", "bf1@3", "trimap@1", "trimap@2", "accuracy"]


def counts_of(quality: float, seed: int) -> dict[str, np.ndarray]:
    """Counts of two images with 100 pixels of each of two classes, ``quality`` of them right."""
    right = round(100 * quality)
    region = np.zeros((2, 3, 3), np.int64)
    region[:, 0, :2] = right + seed, right
    region[:, 1, :2] = 100 + seed, 100 - seed
    region[:, 2, :2] = 100
    boundary = region // 2
    return {
        "region": region,
        "biou@0.02": boundary,
        "bf1@3": np.repeat(boundary, [1, 2, 1], axis=1),
        "trimap@1": boundary,
        "trimap@2": boundary,
        "sizes": np.full((2, 2), [150, 200]),  # 0.02 of the diagonal are 5 px
        "confusion": np.zeros((3, 3), np.int64),
    }


def write_run(folder, decoder, seed, quality, **changes):
    """A finished run as a cohort leaves it."""
    run = folder / f"{decoder}-s{seed}-k{decoder}{seed}"
    row = {
        "result_version": store.RESULT_VERSION, "key": f"k{decoder}{seed}", "variant": {}, "data_fingerprints": ["d"],
        "decoder": decoder, "seed": seed, "data": "shapes", "images": 2, "classes": CLASSES,
        "evaluation": {"flip": False}, "broken": {}, "measures": described_measures(*MEASURES),
        "encoder": "tiny", "encoder_hash": "e", "features_hash": "f", "encoder_trainable": False, "steps": 7,
        "values": {"params": 1.5e6, "macs": 2e9, "train": 3.0 + seed, "eval": 4.0, "memory": 1e9},
        "evaluation_title": "", "train_shared_s": 1.0, "eval_encoder_ms_per_image": 2.0, **changes,
    }  # fmt: skip
    run.mkdir(parents=True)
    np.savez(run / "counts.npz", ids=np.array(["a", "b"]), **counts_of(quality, seed))
    store.write_result(run, row)
    return {"key": f"k{decoder}{seed}", "decoder": decoder, "seed": seed, "variant": {}, "folder": run.name}


QUALITY = {
    "bilinear": (0.50, 0.55, 0.53),
    "better": (0.60, 0.65, 0.64),
    "same": (0.51, 0.53, 0.54),
    "worse": (0.4, 0.44, 0.43),
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "my_sweep"
    runs = [write_run(path, d, s, q) for d, values in QUALITY.items() for s, q in enumerate(values)]
    store.write_json(path / "sweep.json", {"config": {"seeds": [0, 1, 2], "baseline": "bilinear"}, "runs": runs})
    return path


def by_hand(decoder, seed):
    """mIoU in percent, worked out anew: classes that never appear are left out."""
    region = counts_of(QUALITY[decoder][seed], seed)["region"].sum(0).astype(float)
    return 100 * np.mean([region[0, c] / (region[1, c] + region[2, c] - region[0, c]) for c in (0, 1)])


def test_cells_are_mean_and_sd_over_seeds(folder):
    table = tables.make_table(folder)
    for row in table.rows:
        values = [by_hand(row["decoder"], s) for s in range(3)]
        assert row["mIoU"].mean == pytest.approx(np.mean(values))
        assert row["mIoU"].sd == pytest.approx(np.std(values, ddof=1))
        assert (row["mIoU"].n, row["n"]) == (3, 3)
    assert table.scores == ["mIoU", "BIoU 0.02 (5px)", "pixel acc."]


def test_differences_are_paired_t_intervals(folder):
    rows = {row["decoder"]: row for row in tables.make_table(folder).rows}
    for name in ("better", "same", "worse"):
        a, b = ([by_hand(d, s) for s in range(3)] for d in (name, "bilinear"))
        test = stats.ttest_rel(a, b)
        interval = test.confidence_interval(0.95)
        found = rows[name]["Δ mIoU"]
        # The two images are alike, so that only the seeds vary.
        assert found.low == pytest.approx(interval.low)
        assert found.high == pytest.approx(interval.high)
        assert found.p == pytest.approx(test.pvalue)
        assert (found.verdict == "within noise") == (found.p > 0.05) == (found.low <= 0 <= found.high)
        assert found.p_holm >= found.p
    assert [rows[n]["Δ mIoU"].verdict for n in ("better", "same", "worse")] == ["better", "within noise", "worse"]
    assert rows["bilinear"]["Δ mIoU"] is None


def test_no_mean_over_holes(folder):
    shutil.rmtree(next(folder.glob("better-s1-*")))
    store.fail(folder / "better-s1-kbetter1", Failure("ValueError: it broke"))
    table = tables.make_table(folder)
    row = next(r for r in table.rows if r["decoder"] == "better")
    assert math.isnan(row["mIoU"].mean)
    assert row["n"] == 2
    assert math.isnan(row["Δ mIoU"].mean)
    assert "Missing: better-s1, failed: ValueError: it broke" in table.notes
    assert "2 of 3 runs" in formats.as_md(table)


def test_one_seed_has_no_interval(tmp_path):
    path = tmp_path / "s"
    runs = [write_run(path, d, 0, QUALITY[d][0]) for d in ("bilinear", "better")]
    store.write_json(path / "sweep.json", {"config": {"seeds": [0], "baseline": "bilinear"}, "runs": runs})
    better = tables.make_table(path).rows[1]
    assert math.isnan(better["mIoU"].sd)
    assert better["Δ mIoU"].verdict == "one seed"


def test_absent_classes_are_named(folder):
    assert (
        "Absent from the ground truth and never predicted, so left out of the means: never."
        in tables.make_table(folder).notes
    )


def test_per_class(folder):
    table = tables.make_table(folder, classes=True)
    assert table.scores == CLASSES
    row = table.rows[0]
    region = [counts_of(QUALITY["bilinear"][s], s)["region"].sum(0) for s in range(3)]
    assert row["sky"].mean == pytest.approx(np.mean([100 * r[0, 0] / (r[1, 0] + r[2, 0] - r[0, 0]) for r in region]))
    assert math.isnan(row["never"].mean)
    assert "BIoU 0.02 (5px) per class" in tables.make_table(folder, ["biou@0.02"], True).title


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder_hash", "another"),
        ("features_hash", "another"),
        ("data_fingerprints", ["other images"]),
        ("classes", ["sky", "pole", "tree"]),
        ("evaluation", {"flip": True}),
    ],
)
def test_runs_that_must_not_be_compared_are_not(folder, name, value):
    shutil.rmtree(next(folder.glob("worse-s2-*")))
    write_run(folder, "worse", 2, 0.4, **{name: value})
    with pytest.raises(UserError, match="rows with different .* cannot stand in one table; --allow-mixed shows them"):
        tables.make_table(folder)
    table = tables.make_table(folder, allow_mixed=True)
    assert len(table.rows) == 5
    groups = {row["group"] for row in table.rows}
    assert len(groups) == 2
    alone = [row for row in table.rows if row["decoder"] == "worse"]
    assert [row["n"] for row in alone] == [2, 1]
    assert all(math.isnan(row["mIoU"].mean) for row in alone)  # in neither group is it whole


def test_groups_with_other_protocols_show_what_they_have(folder):
    for run in folder.glob("worse-*"):
        write_again(run, evaluation={"flip": True}, measures=described_measures("miou"))
    table = tables.make_table(folder, ["bf1@3", "miou"], allow_mixed=True)
    cells = {row["decoder"]: row for row in table.rows}
    assert cells["worse"]["BF1 (3px)"] is None
    assert cells["worse"]["mIoU"].mean == pytest.approx(np.mean([by_hand("worse", s) for s in range(3)]))
    assert cells["better"]["BF1 (3px)"].n == 3
    assert "| worse |" in formats.as_md(table)


def test_runs_on_other_images_are_not_compared(folder):
    run = next(folder.glob("worse-s2-*"))
    np.savez(run / "counts.npz", ids=np.array(["a", "c"]), **counts_of(0.4, 2))
    write_again(run)
    with pytest.raises(UserError, match="counted on different images"):
        tables.make_table(folder)


def test_results_of_another_version_are_named(folder):
    run = next(folder.glob("worse-s2-*"))
    write_again(run, result_version=1)
    with pytest.raises(UserError, match=r"worse-s2-kworse2 was made by another version"):
        tables.make_table(folder)


def test_columns_and_sorting(folder):
    table = tables.make_table(
        folder, ["miou"], columns=["params", "score", "ci", "delta", "p", "seeds", "images", "rank", "n"]
    )
    assert table.headings == [
        "decoder", "params", "mIoU", "mIoU 95 %", "Δ mIoU", "p mIoU", "seeds for Δ mIoU",
        "images for Δ mIoU", "rank by mIoU", "n",
    ]  # fmt: skip
    # The images are alike, so only seeds can help: few for a large difference, more for a small one.
    seeds = {row["decoder"]: row["seeds for Δ mIoU"] for row in table.rows}
    assert seeds["bilinear"] is None
    assert 2 <= int(seeds["better"]) <= 10
    assert seeds["same"] == "no number"  # none up to a thousand
    assert {row["images for Δ mIoU"] for row in table.rows if row["decoder"] == "same"} == {"no number"}
    ranks = {row["decoder"]: row["rank by mIoU"] for row in table.rows}
    assert [ranks[d].rank for d in ("better", "bilinear", "same", "worse")] == [1, 2, 3, 4]
    assert ranks["better"].p_best > 0.99
    assert all(rank.low <= rank.rank <= rank.high for rank in ranks.values())
    ordered = tables.make_table(folder, sort="mIoU")
    assert [row["decoder"] for row in ordered.rows] == ["better", "bilinear", "same", "worse"]
    assert [row["decoder"] for row in tables.make_table(folder, sort="decoder").rows] == sorted(QUALITY)
    for wrong in ({"sort": "miou"}, {"columns": ["scores"]}):
        with pytest.raises(UserError, match="unknown column"):
            tables.make_table(folder, **wrong)


def test_classes_in_few_images_are_named(folder):
    table = tables.make_table(folder, ["miou"], classes=True, columns=["score", "ci"])
    assert "Present in fewer than 10 images; intervals are too narrow: sky, pole." in table.notes
    assert not any("too narrow" in note for note in tables.make_table(folder, classes=True).notes)


def test_the_long_form_holds_every_score(folder):
    frame = segbench.load(folder)
    assert len(frame) == 12 * (5 * 4 + 1)  # runs x (five metrics x (three classes and the mean) + accuracy)
    one = frame.query("decoder == 'better' and seed == 1 and metric == 'miou'").set_index("class")["value"]
    assert one["mean"] == pytest.approx(by_hand("better", 1))
    assert math.isnan(one["never"])
    mean = frame.query("metric == 'miou' and `class` == 'mean'").groupby("decoder")["value"].mean()
    assert mean["same"] == pytest.approx(np.mean([by_hand("same", s) for s in range(3)]))
    assert {"params", "macs", "train", "eval", "memory", "images", "encoder_hash", "key"} <= set(frame.columns)


def test_parquet_and_long_files(folder, tmp_path, capsys):
    out = tmp_path / "t.parquet"
    assert main(["table", str(folder), "--format", "parquet", "--out", str(out)]) == 0
    frame = pandas.read_parquet(out)
    assert frame["mIoU"].tolist() == [row["mIoU"].mean for row in tables.make_table(folder).rows]
    assert frame["Δ mIoU verdict"].fillna("").tolist() == ["", "better", "within noise", "worse"]
    assert main(["table", str(folder), "--long", "--format", "csv", "--out", str(tmp_path / "l.csv")]) == 0
    assert len(pandas.read_csv(tmp_path / "l.csv")) == 12 * 21
    assert main(["table", str(folder), "--format", "parquet"]) == 2
    assert main(["table", str(folder), "--out", "x"]) == 2
    assert main(["table", str(folder), "--out", str(tmp_path / "x.csv"), "--format", "terminal"]) == 2
    for suffix in ("md", "csv", "tex", "json"):
        assert main(["table", str(folder), "--out", str(tmp_path / f"t.{suffix}")]) == 0
        assert main(["table", str(folder), "--format", suffix]) == 0
        assert (tmp_path / f"t.{suffix}").read_text() == capsys.readouterr().out
    assert main(["table", str(folder), "--out", str(tmp_path / "t.csv"), "--format", "md"]) == 0
    assert (tmp_path / "t.csv").read_text() == (tmp_path / "t.md").read_text()


def test_a_sweep_is_found_by_its_name_and_a_run_is_told_from_it(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    where = ["--runs-dir", folder.parent.name]
    for command in (
        ["table", folder.name],
        ["status", folder.name],
        ["table", folder.name, "--long", "--format", "csv"],
    ):
        assert main([*command, *where]) == 0
    assert "bilinear" in capsys.readouterr().out
    assert main(["compare", folder.name, "none", *where]) == 2
    assert "none holds no sweep" in capsys.readouterr().err
    run = next(folder.glob("worse-s2-*"))
    assert main(["table", str(run)]) == 2
    assert capsys.readouterr().err == f"segbench: {run} holds no sweep; its sweep is {folder}\n"
    assert main(["table", str(folder), "--long", "--format", "md"]) == 2


@pytest.fixture
def other(tmp_path):
    """The same decoders but one, each ten points better, by another recipe."""
    path = tmp_path / "other_sweep"
    runs = [write_run(path, d, s, q + 0.1) for d, v in QUALITY.items() if d != "same" for s, q in enumerate(v)]
    config = sweep_config(recipe={"steps": 9})
    store.write_json(path / "sweep.json", {"config": config, "runs": runs})
    return path


def sweep_config(**changes):
    return {
        "seeds": [0, 1, 2], "baseline": "bilinear", "name": "x", "recipe": {"steps": 7, "lr": 0.1},
        "decoders": [{"name": d, "label": "", "params": {}} for d in QUALITY],
    } | changes  # fmt: skip


def test_compare_joins_by_decoder(folder, other, capsys):
    manifest = store.read_json(folder / "sweep.json")
    store.write_json(folder / "sweep.json", manifest | {"config": sweep_config()})
    found = compare(folder, other, ["miou"])
    assert found.changes == [("recipe.lr", "0.1", "-"), ("recipe.steps", "7", "9")]
    assert [row["decoder"] for row in found.table.rows] == ["bilinear", "better", "worse"]
    assert "Only in my_sweep: same." in found.table.notes
    row = found.table.rows[0]
    gaps = [row["mIoU in other_sweep"].mean - row["mIoU in my_sweep"].mean]
    assert row["Δ mIoU"].mean == pytest.approx(gaps[0])
    assert row["Δ mIoU"].verdict == "better"
    assert main(["compare", str(folder), str(other)]) == 0
    assert "recipe.steps: 7 -> 9" in capsys.readouterr().out


def test_compare_says_of_the_very_same_runs_that_nothing_can_differ(folder, tmp_path):
    """The other sweep has one seed less, so that its means are others."""
    manifest = store.read_json(folder / "sweep.json")
    store.write_json(folder / "sweep.json", manifest | {"config": sweep_config()})
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    runs = [run for run in manifest["runs"] if (run["decoder"], run["seed"]) != ("better", 2)]
    store.write_json(again / "sweep.json", {"config": sweep_config(), "runs": runs})
    table = compare(folder, again, ["miou"]).table
    assert all(math.isnan(row["Δ mIoU"].mean) for row in table.rows)
    (note,) = [note for note in table.notes if "very same runs" in note]
    assert note.endswith("(seeds 0, 1, 2): bilinear, better, same, worse.")


def test_compare_makes_no_difference_of_what_was_counted_differently(folder, other):
    for d in ("bilinear", "better", "worse"):
        for run in other.glob(f"{d}-*"):
            row = store.read_json(run / "result.json")
            write_again(run, evaluation=row["evaluation"] | {"flip": True})
    manifest = store.read_json(folder / "sweep.json")
    store.write_json(folder / "sweep.json", manifest | {"config": sweep_config()})
    table = compare(folder, other, ["miou"]).table
    assert all(math.isnan(row["Δ mIoU"].mean) for row in table.rows)
    assert "No difference is made: the evaluation protocols differ." in table.notes


def test_json_and_csv_are_whole(folder):
    table = tables.make_table(folder)
    rows = json.loads(formats.as_json(table))["rows"]
    assert rows[1]["mIoU"]["mean"] == table.rows[1]["mIoU"].mean
    assert rows[1]["Δ mIoU"]["verdict"] == "better"
    lines = list(csv.DictReader(io.StringIO(formats.as_csv(table))))
    assert float(lines[1]["mIoU"]) == table.rows[1]["mIoU"].mean
    assert lines[0]["Δ mIoU"] == ""


def test_md_and_tex(folder):
    table = tables.make_table(folder)
    lines = formats.as_md(table).splitlines()
    assert lines[2].startswith("| decoder | n | mIoU | Δ mIoU | BIoU 0.02 (5px) |")
    assert {line.count("|") for line in lines[2:8]} == {12}
    tex = formats.as_tex(table)
    assert tex.count(r"\\") == 5
    assert all(rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert tex.count(r"\textbf{") == 3  # the best of each score
    assert "±" not in tex.split(r"\toprule")[1]


def test_hostile_names_do_no_harm(tmp_path):
    path = tmp_path / "s"
    name = r"[bold]a_b|c%{x}\y"
    runs = [write_run(path, "bilinear", 0, 0.5), write_run(path, "x", 0, 0.6) | {"decoder": name}]
    store.write_json(path / "sweep.json", {"config": {"seeds": [0], "baseline": "bilinear"}, "runs": runs})
    table = tables.make_table(path)
    assert r"\|c%" in formats.as_md(table)
    assert r"{[}bold]a\_b$|$c\%\{x\}\textbackslash{}y" in formats.as_tex(table)
    out = io.StringIO()
    formats.print_terminal(table, Console(file=out, width=200))
    assert name in out.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_fits(folder, width):
    out = io.StringIO()
    formats.print_terminal(tables.make_table(folder), Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert all(d in text for d in QUALITY)
    assert text.count("decoder ") >= (2 if width == 80 else 1)


def test_broken_folders_are_explained(folder, tmp_path):
    with pytest.raises(UserError, match="holds no sweep"):
        tables.make_table(tmp_path)
    with pytest.raises(UserError, match="no sweep in .*; `make sweep`"):
        newest_sweep(tmp_path / "nothing")
    run = next(folder.glob("worse-s2-*"))
    (run / "counts.npz").write_bytes(b"PK\x03\x04 broken")
    assert any("counts.npz is damaged or was edited" in note for note in tables.make_table(folder).notes)
    (run / "result.json").write_text('{"decoder": ')
    assert any("result.json is damaged" in note for note in tables.make_table(folder).notes)
