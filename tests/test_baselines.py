"""Two baselines: each question by itself, in every format, on the page and in words; one measure for each metric."""

import csv
import io
import json
import math
import shutil

import numpy as np
import pandas
import pytest
from rich.console import Console
from scipy import stats as scipy_stats

from segbench import store
from segbench.cli import main
from segbench.report import formats, page, ranking, stats
from segbench.report import table as tables
from segbench.report.page import write_report
from segbench.report.runs import read_sweep
from segbench.report.words import questions, verdict
from tests.fakes import Reader, by_hand, fake_sweep, table_of

EFFECTS = {"bilinear": 0.0, "bilinear_conv": 0.05, "deconv": 0.15, "subpixel": 0.049}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_sweep(tmp_path_factory.mktemp("runs") / "two", EFFECTS, baseline=None, noise=0.004)


def change(folder, **config):
    manifest = store.read_json(folder / "sweep.json")
    store.write_json(folder / "sweep.json", manifest | {"config": manifest["config"] | config})


def copied(folder, tmp_path, **config):
    path = tmp_path / folder.name
    shutil.copytree(folder, path)
    change(path, **config)
    return path


def holm_by_hand(p):
    found, highest = {}, 0.0
    for i, (d, value) in enumerate(sorted(p.items(), key=lambda kv: kv[1])):
        highest = max(highest, min(1.0, value * (len(p) - i)))
        found[d] = highest
    return found


def alike(folder, tmp_path):
    """A copy whose images are all alike, so that only seeds vary and every difference is Student's."""
    path = copied(folder, tmp_path)
    for run in path.glob("run*"):
        row = {k: v for k, v in store.read_json(run / "result.json").items() if k not in ("checksum", "files")}
        arrays = dict(np.load(run / "counts.npz"))
        for name in arrays.keys() - {"ids", "confusion", "sizes"}:
            arrays[name] = np.repeat(arrays[name][:1], 12, 0)
        np.savez(run / "counts.npz", **arrays)
        store.write_result(run, row)
    return path


def test_each_difference_is_students_and_holms_correction_is_for_each_baseline(folder, tmp_path):
    path = alike(folder, tmp_path)
    rows = {row["decoder"]: row for row in tables.make_table(path, ["miou"]).rows}
    scores = {d: np.nanmean(v, 1) for d, v in by_hand(path, "miou").items()}
    for base in ("bilinear", "bilinear_conv"):
        tests = {d: scipy_stats.ttest_rel(v, scores[base]) for d, v in scores.items() if d != base}
        adjusted = holm_by_hand({d: t.pvalue for d, t in tests.items()})
        assert rows[base][f"Δ mIoU from {base}"] is None
        for d, test in tests.items():
            delta = rows[d][f"Δ mIoU from {base}"]
            assert (delta.low, delta.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
            assert delta.p == pytest.approx(test.pvalue)
            assert delta.p_holm == pytest.approx(adjusted[d])


@pytest.mark.parametrize("named", [None, ["bilinear", "bilinear_conv"], ["subpixel", "bilinear"]])
def test_two_baselines_say_what_each_alone_says(folder, tmp_path, named):
    columns = ["score", "delta", "p", "seeds", "images", "rank"]
    both = tables.make_table(copied(folder, tmp_path, baseline=named), ["biou@0.02"], columns=columns)
    for base in named or ("bilinear", "bilinear_conv"):
        alone = tables.make_table(copied(folder, tmp_path / base, baseline=base), ["biou@0.02"], columns=columns)
        for one, two in zip(alone.rows, both.rows, strict=True):
            for what in ("Δ {}", "p {}", "seeds for Δ {}", "images for Δ {}"):
                name = what.format("BIoU 0.02 (5px)")
                assert one[name] == two[f"{name} from {base}"], (base, name)
            assert one["rank by BIoU 0.02 (5px)"] == two["rank by BIoU 0.02 (5px)"]
    assert any("over the decoders, for each baseline by itself." in note for note in both.notes)
    assert not any("by itself" in note for note in alone.notes)


def test_per_class_too(folder, tmp_path):
    columns = ["score", "delta"]
    both = tables.make_table(folder, ["miou"], True, columns)
    alone = tables.make_table(copied(folder, tmp_path, baseline="bilinear_conv"), ["miou"], True, columns)
    assert both.headings[:4] == ["decoder", "sky", "Δ sky from bilinear", "Δ sky from bilinear_conv"]
    assert [row["Δ sky from bilinear_conv"] for row in both.rows] == [row["Δ sky"] for row in alone.rows]
    for run in (fewer := copied(folder, tmp_path / "few")).glob("run*"):
        row = {k: v for k, v in store.read_json(run / "result.json").items() if k not in ("checksum", "files")}
        arrays = {k: v[:5] if len(v) == 12 else v for k, v in np.load(run / "counts.npz").items()}
        np.savez(run / "counts.npz", **arrays)
        store.write_result(run, row | {"images": 5})
    notes = tables.make_table(fewer, ["miou"], True, columns).notes
    assert "Present in fewer than 10 images; intervals are too narrow: sky, road, pole." in notes


def test_what_knows_no_baseline_is_made_once_for_each_metric(folder, monkeypatch):
    calls = {"measure": 0, "bootstrap": 0, "intervals": 0, "ranks": 0}
    for name in calls:
        module = stats if hasattr(stats, name) else ranking
        real = getattr(module, name)

        def counted(*args, real=real, name=name, **options):
            calls[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(module, name, counted)
    tables.make_table(folder, ["miou", "biou@0.02"], columns=["score", "ci", "delta", "p", "rank"])
    assert calls == dict.fromkeys(calls, 2)


def test_every_format_holds_both(folder, tmp_path):
    table = tables.make_table(folder, ["miou"])
    heads = ["Δ mIoU from bilinear", "Δ mIoU from bilinear_conv"]
    assert table.headings[:5] == ["decoder", "n", "mIoU", *heads]
    deconv = table.rows[2]
    assert "| decoder | n | mIoU | Δ mIoU from bilinear | Δ mIoU from bilinear_conv |" in formats.as_md(table)
    assert r"$\Delta$ mIoU from bilinear\_conv" in formats.as_tex(table)
    row = json.loads(formats.as_json(table))["rows"][2]
    line = list(csv.DictReader(io.StringIO(formats.as_csv(table))))[2]
    (tmp_path / "t.parquet").write_bytes(formats.as_parquet(table))
    stored = pandas.read_parquet(tmp_path / "t.parquet")
    for head in heads:
        assert row[head]["mean"] == float(line[head]) == stored[head][2] == deconv[head].mean
        assert row[head]["p_holm"] == float(line[f"{head} p_holm"]) == deconv[head].p_holm
    by_second = tables.make_table(folder, ["miou"], sort=heads[1])
    assert by_second.rows[0]["decoder"] == "deconv"
    assert by_second.rows[-1]["decoder"] == "bilinear_conv"


@pytest.mark.parametrize("width", [64, 80, 100, 140, 240])
def test_no_cell_is_broken_in_a_word(folder, width):
    table = tables.make_table(folder)
    out = io.StringIO()
    formats.print_terminal(table, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    header, body = formats.grid(table)
    for cell in [*header, *(c for line in body for c in line)]:
        assert set(cell.split()) <= set(words), cell
    grids = [line.split() for line in text.splitlines() if line.strip().startswith("decoder ")]
    assert all(grid[:2] == ["decoder", "n"] for grid in grids)
    assert len(grids) == {100: 3, 140: 3, 240: 2}.get(width, len(grids))


def test_defaults_are_the_two_that_take_part(folder):
    assert read_sweep(folder).baselines == ["bilinear", "bilinear_conv"]
    assert read_sweep(folder, only=["deconv", "bilinear_conv"]).baselines == ["bilinear_conv"]
    assert read_sweep(folder, only=["deconv", "subpixel"]).baselines == ["bilinear"]  # which is said not to be there
    assert "Δ mIoU" in tables.make_table(folder, only=["deconv", "bilinear_conv"]).headings


def verdicts(folder, only=()):
    sweep = read_sweep(folder, True, only)
    section = page._Section(sweep, sweep.groups[0], 0, folder)
    return {question: [str(words) for _, words in said] for question, said in section.answers}


def test_a_baseline_with_a_hole_is_said_for_its_question_only(folder, tmp_path):
    path = copied(folder, tmp_path)
    shutil.rmtree(path / "run1-s1")
    said = verdicts(path)
    first, second = said["Better than interpolation?"], said["Better than interpolation with a convolution?"]
    assert first[0].startswith("deconv leads Boundary IoU")
    assert all("No difference" not in words for words in first)
    assert "the baseline bilinear_conv has missing runs." in second[0]
    table = tables.make_table(path)
    assert "Δ mIoU from bilinear" in table.headings
    assert "Δ mIoU from bilinear_conv" not in table.headings
    assert "No Δ: the baseline bilinear_conv has missing runs." in table.notes
    gone = tables.make_table(copied(folder, tmp_path / "x", baseline=["bilinear", "nearest"])).notes
    assert "No Δ: the baseline nearest is not among the decoders." in gone


def test_the_questions_have_names():
    assert questions(["nearest", "nearest_conv"]) == [
        "Better than interpolation?", "Better than interpolation with a convolution?",
    ]  # fmt: skip
    assert questions(["deconv"]) == ["Better than deconv?"]
    assert questions(["bilinear", "nearest"]) == ["Better than bilinear?", "Better than nearest?"]


def test_the_verdict_of_each_question_is_about_its_own_baseline(folder):
    sweep = read_sweep(folder)
    a = page._Section(sweep, sweep.groups[0], 0, folder).analyses["miou"]
    first, second = (verdict(a.against(b)).main for b in ("bilinear", "bilinear_conv"))
    delta = a.against("bilinear_conv").delta("deconv")
    assert "over bilinear at 1.5 times the decoder time per image," in first
    assert second.startswith(f"deconv leads mIoU by {delta.mean:.1f} [{delta.low:.1f}, {delta.high:.1f}] points over")
    assert "over bilinear_conv at 1.2 times the decoder time per image; bilinear (by " in second


def test_the_page_answers_both(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(page._Section, "draw", lambda self: None)
    read = Reader(write_report(folder, tmp_path / "r.html", gallery=False).path.read_text())
    heads, rows = table_of(read, "decoder")
    assert heads[:8] == [
        "decoder", "n", "mean ± sd", "Δ from bilinear", "Δ from bilinear_conv", "mean ± sd", "Δ from bilinear",
        "Δ from bilinear_conv",
    ]  # fmt: skip
    numbers = {row["decoder"]: row for row in tables.make_table(folder).rows}
    metrics = read.json["sections"][0]["metrics"]
    for d, cells in rows.items():
        for column, base in ((2, "bilinear"), (3, "bilinear_conv")):
            if d == base:
                assert cells[column] == {"value": None, "text": "baseline"}
                assert metrics["miou"]["mean"][d]["deltas"][base] is None
                continue
            wanted = numbers[d][f"Δ mIoU from {base}"]
            assert float(cells[column]["value"]) == wanted.mean
            assert metrics["miou"]["mean"][d]["deltas"][base] == vars(wanted)
    words = " ".join(" ".join(read.words).split())
    assert words.index("Better than interpolation? deconv") < words.index("with a convolution? deconv")
    options = [attrs["value"] for tag, attrs in read.tags if tag == "option"]
    assert options[:2] == ["miou from bilinear", "miou from bilinear_conv"]
    classes = [t for t in read.tables if t[0][0]["text"].strip() == "class"]
    assert len(classes) == len(options) == 6
    per_class = tables.make_table(folder, ["miou"], True, ["delta"])
    for table, base in zip(classes, ("bilinear", "bilinear_conv"), strict=False):
        cell = table[1][list(EFFECTS).index("deconv") + 1]
        assert f"{per_class.rows[2][f'Δ sky from {base}'].mean:+.1f} [" in cell["text"].replace("−", "-")
    assert main(["table", str(folder), "--format", "csv"]) == 0


@pytest.mark.slow
def test_figures_for_each_baseline(folder, tmp_path):
    done = write_report(folder, tmp_path / "r.html", gallery=False)
    stems = {p.stem for p in (tmp_path / "figures").iterdir()}
    for stem in ("miou-difference", "biou-0.02-classes", "trimap-difference"):
        assert {stem, f"{stem}-from-bilinear-conv"} < stems
    assert done.figures == len(stems) == 6 * 2 + 2 * 2 + 3 + 1
    text = done.path.read_text()
    assert "mIoU: difference from bilinear_conv" in text
    svg = (tmp_path / "figures" / "miou-difference-from-bilinear-conv.svg").read_text()
    assert "#40454c" in svg  # the first baseline keeps its grey, where it is a row too


def test_one_image_and_one_seed(tmp_path):
    path = fake_sweep(tmp_path / "s", EFFECTS, seeds=[3], images=1, baseline=None)
    rows = tables.make_table(path, ["miou"]).rows
    assert all(row[h] is None or math.isnan(row[h].mean) for row in rows for h in row if h.startswith("Δ"))
