"""The page without a browser: numbers recomputed from the counts, words, hostile names, holes, downloads."""

import itertools
import re
import shutil

import numpy as np
import pytest
from scipy import stats as scipy_stats

from segbench import store
from segbench.cli import main
from segbench.errors import UserError
from segbench.report import curves, page, ranking, stats
from segbench.report.drawing import Look
from segbench.report.page import write_report
from segbench.report.runs import read_sweep
from tests.conftest import described_measures, write_again
from tests.fakes import (
    CLASSES,
    EFFECTS,
    HOSTILE,
    METRICS,
    Reader,
    by_hand,
    counts_of,
    fake_sweep,
    iou_by_hand,
    table_of,
    write_run,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_sweep(tmp_path_factory.mktemp("runs") / "my sweep", EFFECTS)


@pytest.fixture(scope="module")
def written(folder):
    return write_report(folder, gallery=False)


@pytest.fixture(scope="module")
def read(written):
    return Reader(written.path.read_text("utf-8"))


@pytest.fixture
def undrawn(monkeypatch):
    """Without figures, which take most of the time."""
    monkeypatch.setattr(page._Section, "draw", lambda self: None)


@pytest.mark.parametrize("name", METRICS)
def test_every_score_is_what_the_counts_give(folder, read, name):
    found, expected = read.json["sections"][0]["metrics"][name], by_hand(folder, name)
    assert list(read.json["sections"][0]["metrics"]) == METRICS
    base = expected["bilinear"]
    for d, values in expected.items():
        mean, own = found["mean"][d]["score"], np.nanmean(values, 1)
        assert mean["mean"] == pytest.approx(own.mean())
        assert mean["sd"] == pytest.approx(own.std(ddof=1))
        assert (mean["n"], mean["wanted"]) == (3, 3)
        assert mean["low"] < mean["mean"] < mean["high"]
        if d == "bilinear":
            assert found["mean"][d]["deltas"]["bilinear"] is None
        elif name != "accuracy":
            assert found["mean"][d]["deltas"]["bilinear"]["mean"] == pytest.approx(
                own.mean() - np.nanmean(base, 1).mean()
            )
        for k, c in enumerate(CLASSES if name != "accuracy" else []):
            cell = found["classes"][c][d]
            if c == "never":
                assert cell["score"]["mean"] is None
                continue
            assert cell["score"]["mean"] == pytest.approx(values[:, k].mean())
            if d != "bilinear":
                assert cell["deltas"]["bilinear"]["mean"] == pytest.approx((values - base)[:, k].mean())


@pytest.mark.parametrize(("name", "array"), [("miou", "region"), ("biou@0.02", "biou@0.02")])
def test_every_interval_is_what_the_statistics_give(folder, read, name, array):
    counts = np.array([[np.load(folder / f"run{n}-s{s}" / "counts.npz")[array] for s in range(3)] for n in range(4)])
    measured = stats.measure(counts)
    intervals, differences = stats.intervals(measured), stats.differences(measured, 0)
    ranks = ranking.ranks(measured, ranking.bootstrap(counts))
    found = read.json["sections"][0]["metrics"][name]
    for number, d in enumerate(EFFECTS):
        for place, cell in [(-1, found["mean"][d]), *((k, found["classes"][c][d]) for k, c in enumerate(CLASSES[:3]))]:
            interval = intervals[number][place]
            assert cell["score"]["low"] == pytest.approx(100 * interval.low)
            assert cell["score"]["high"] == pytest.approx(100 * interval.high)
            if number:
                wanted = differences[number][place]
                assert cell["deltas"]["bilinear"]["low"] == pytest.approx(100 * wanted.low)
                assert cell["deltas"]["bilinear"]["high"] == pytest.approx(100 * wanted.high)
                assert cell["deltas"]["bilinear"]["p_holm"] == pytest.approx(wanted.p_holm)
                assert cell["deltas"]["bilinear"]["verdict"] == wanted.verdict
        assert read.json["sections"][0]["ranks"][name][d] == vars(ranks[number])


def test_where_images_are_alike_the_intervals_are_students(tmp_path, undrawn):
    path = fake_sweep(tmp_path / "s", EFFECTS, noise=0.02)
    for file in path.glob("*/counts.npz"):
        arrays = dict(np.load(file))
        for name in arrays.keys() - {"ids", "confusion", "sizes"}:
            arrays[name] = np.repeat(arrays[name][:1], 12, 0)
        np.savez(file, **arrays)
        write_again(file.parent)
    found = Reader(write_report(path, gallery=False).path.read_text())
    scores = {d: np.nanmean(v, 1) for d, v in by_hand(path, "biou@0.02").items()}
    for d in ("nearest", "deconv", "subpixel"):
        test = scipy_stats.ttest_rel(scores[d], scores["bilinear"])
        delta = found.json["sections"][0]["metrics"]["biou@0.02"]["mean"][d]["deltas"]["bilinear"]
        assert (delta["low"], delta["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert delta["p"] == pytest.approx(test.pvalue)


def test_the_cells_show_the_numbers(read, folder):
    heads, rows = table_of(read, "decoder")
    assert heads == [
        "decoder", "n", "mean ± sd", "Δ from bilinear", "mean ± sd", "Δ from bilinear", "mean ± sd", "params", "MACs",
        "train s", "eval ms",
    ]  # fmt: skip
    metrics = read.json["sections"][0]["metrics"]
    for number, (d, cells) in enumerate(rows.items()):
        assert cells[0]["text"] == "3"
        for column, name in ((1, "miou"), (3, "biou@0.02"), (5, "accuracy")):
            score = metrics[name]["mean"][d]["score"]
            assert float(cells[column]["value"]) == score["mean"]
            assert cells[column]["text"].split() == [f"{score['mean']:.2f}", "±", f"{score['sd']:.2f}"]
        for column, name in ((2, "miou"), (4, "biou@0.02")):
            delta = metrics[name]["mean"][d]["deltas"]["bilinear"]
            if d == "bilinear":
                assert cells[column] == {"value": None, "text": "baseline"}
                continue
            assert float(cells[column]["value"]) == delta["mean"]
            words = cells[column]["text"].replace("−", "-").split()
            assert words[:3] == [f"{delta['mean']:+.2f}", f"[{delta['low']:+.2f},", f"{delta['high']:+.2f}]"]
            assert " ".join(words[4:]) == delta["verdict"]
        costs = [float(c["value"]) for c in cells[6:]]
        assert costs == [10**6 * (number + 1), 10**9 * (3 - number % 3), 4.0, 4.0 + number]
        assert [c["text"] for c in cells[6:8]] == [f"{number + 1}.00 M", f"{3 - number % 3}.00 G"]


def test_the_cells_of_classes_show_the_numbers(read):
    metrics = read.json["sections"][0]["metrics"]
    tables = [t for t in read.tables if t[0][0]["text"].strip() == "class"]
    assert len(tables) == 3
    for table, name in zip(tables, ("miou", "biou@0.02", "bf1@3"), strict=True):
        assert [c["text"].strip() for c in table[0][1:]] == list(EFFECTS)
        for line in table[1:]:
            for d, cell in zip(EFFECTS, line[1:], strict=True):
                numbers = metrics[name]["classes"][line[0]["text"]][d]
                if line[0]["text"] == "never":
                    assert cell == {"value": None, "text": "–"}
                    continue
                assert float(cell["value"]) == numbers["score"]["mean"]
                shown = [float(x) for x in re.findall(r"[-+]?\d+\.\d+", cell["text"].replace("−", "-"))]
                expected = [numbers["score"]["mean"]]
                if numbers["deltas"]["bilinear"]:
                    expected += [numbers["deltas"]["bilinear"][k] for k in ("mean", "low", "high")]
                    assert cell["text"].endswith(numbers["deltas"]["bilinear"]["verdict"])
                assert shown == pytest.approx(expected, abs=0.0501)


def test_downloads_are_the_tables_of_the_command_line(read, folder, capsys):
    assert main(["table", str(folder), "--format", "csv"]) == 0
    assert read.json["files"]["my-sweep.csv"] == capsys.readouterr().out
    assert main(["table", str(folder), "--format", "tex"]) == 0
    assert read.json["files"]["my-sweep.tex"] == capsys.readouterr().out
    names = [f"my-sweep-{m}-classes.{k}" for m in ("miou", "biou-0.02", "bf1-3") for k in ("csv", "tex")]
    assert set(names) < set(read.json["files"])
    assert read.json["files"]["my-sweep-bf1-3-classes.csv"].startswith("decoder,n,sky,sky sd")


def test_the_page_fetches_nothing_and_is_small(written, read):
    assert written.size == written.path.stat().st_size < 2_000_000
    for tag, attrs in read.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attrs.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, (tag, value)
    text = written.path.read_text()
    assert "url(http" not in text
    assert "@import" not in text


def test_the_policy_names_what_is_in_the_page(written):
    text = written.path.read_text()
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    css = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert page.policy(css, scripts).replace("'", "&#39;") in text
    assert "unsafe-inline" not in page.policy(css, scripts).replace("style-src-attr 'unsafe-inline'", "")


def test_holes_are_shown_and_named(tmp_path, undrawn):
    path = fake_sweep(tmp_path / "s", EFFECTS)
    for run, status in (("run2-s1", {"state": "failed", "reason": "ValueError: it <b>broke</b>"}), ("run3-s0", None)):
        shutil.rmtree(path / run)
        if status:
            store.write_json(path / run / "status.json", status)
            (path / run / "traceback.txt").write_text("Traceback\n  <i>line</i>\n")
    read = Reader(write_report(path, gallery=False).path.read_text())
    _, rows = table_of(read, "decoder")
    assert rows["deconv"][0]["text"] == "2"
    assert rows["deconv"][1] == {"value": None, "text": "2 of 3 runs"}
    assert rows["deconv"][2] == {"value": None, "text": "–"}
    assert read.json["sections"][0]["metrics"]["miou"]["mean"]["deconv"]["score"]["mean"] is None
    words = " ".join(" ".join(read.words).split())
    assert "2 runs are missing." in words
    assert "deconv and subpixel have missing runs and take no part." in words
    assert "deconv, seed 1 : failed – ValueError: it <b>broke</b>" in words
    assert "<i>line</i>" in words
    assert "subpixel, seed 0 : not started" in words
    assert not any(tag in ("b",) for tag, _ in read.tags)


@pytest.mark.slow
def test_a_baseline_with_a_hole(tmp_path):
    path = fake_sweep(tmp_path / "s", EFFECTS)
    shutil.rmtree(path / "run0-s1")
    done = write_report(path, gallery=False)
    words = " ".join(Reader(done.path.read_text()).words)
    assert "No difference in mIoU can be given: the baseline bilinear has missing runs." in words
    assert "There is no difference to show" in words
    assert not list((path / "figures").glob("*difference*"))


@pytest.mark.slow
def test_one_seed_one_image(tmp_path):
    path = fake_sweep(tmp_path / "s", EFFECTS, seeds=[4], images=1)
    read = Reader(write_report(path, gallery=False).path.read_text())
    score = read.json["sections"][0]["metrics"]["miou"]["mean"]["deconv"]["score"]
    assert score["low"] is score["sd"] is None
    assert score["mean"] == pytest.approx(np.nanmean(by_hand(path, "miou")["deconv"]))


def test_a_grid_gives_a_section_for_each_group(tmp_path, undrawn):
    path, runs = tmp_path / "s", []
    for n, (lr, (number, decoder)) in enumerate(itertools.product((0.1, 0.2), enumerate(("bilinear", "a")))):
        for seed in (0, 1):
            counts = counts_of(0.1 * number + lr, seed, 6, 4, 0.002, n)
            runs.append(write_run(path, decoder, seed, counts, n, CLASSES, variant={"recipe.lr": lr}))
    store.write_json(path / "sweep.json", {"config": {"seeds": [0, 1], "baseline": None}, "runs": runs})
    read = Reader(write_report(path, gallery=False).path.read_text())
    assert [s["label"] for s in read.json["sections"]] == ["lr=0.1", "lr=0.2"]
    ids = [a["id"] for _, a in read.tags if "id" in a]
    assert {"g0", "g1", "g0-table", "g1-table", "g1-gallery"} < set(ids)
    assert len(ids) == len(set(ids))
    for number, section in enumerate(read.json["sections"]):
        mean = section["metrics"]["miou"]["mean"]["a"]["score"]["mean"]
        files = [path / f"run{2 * number + 1}-s{s}" / "counts.npz" for s in (0, 1)]
        assert mean == pytest.approx(np.mean([np.nanmean(iou_by_hand(np.load(f)["region"].sum(0))) for f in files]))


def test_groups_that_were_counted_differently(tmp_path, undrawn):
    path = fake_sweep(tmp_path / "s", {"bilinear": 0.0, "a": 0.1})
    for seed in range(3):
        fewer = described_measures("miou", "trimap@1")
        write_again(path / f"run1-s{seed}", evaluation={"flip": True}, measures=fewer)
    read = Reader(write_report(path, gallery=False).path.read_text())
    assert [list(s["metrics"])[:2] for s in read.json["sections"]] == [["miou", "biou@0.02"], ["miou", "trimap@1"]]
    assert list(read.json["files"]) == ["s.yaml"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Names that would do harm in HTML, JSON, SVG, or LaTeX, wherever a name stands."""
    path = tmp_path_factory.mktemp("runs") / "a'b\"c<script>alert(1)<&script> ü"
    effects = {"bilinear": 0.0} | {name: 0.02 * i for i, name in enumerate(HOSTILE)}
    fake_sweep(path, effects, classes=[*HOSTILE, "never"], images=6, data="<script>alert(2)</script>")
    shutil.rmtree(path / "run6-s2")
    store.write_json(path / "run6-s2" / "status.json", {"state": "failed", "reason": HOSTILE[2]})
    return path


@pytest.mark.slow
def test_hostile_names_stay_text(hostile):
    done = write_report(hostile, gallery=False)
    text = done.path.read_text()
    read = Reader(text)
    assert [a.get("type") for tag, a in read.tags if tag == "script"] == ["application/json", None, None, None]
    assert not any(tag == "img" for tag, _ in read.tags)
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    _, rows = table_of(read, "decoder")
    assert list(rows) == ["bilinear", *(h.strip() for h in HOSTILE)]
    assert list(read.json["sections"][0]["metrics"]["miou"]["classes"]) == [*HOSTILE, "never"]
    assert not re.search("<(script|img|&)[^>]*>?(alert|document|src)", text)
    assert "alert(1)" in text
    for file in (hostile / "figures").glob("*.svg"):
        assert "<script" not in file.read_text()


def test_the_paragraph_for_a_paper_says_what_the_page_says_first(folder, read):
    words = " ".join(" ".join(read.words).split())
    sweep = read_sweep(folder)
    section = page._Section(sweep, sweep.groups[0], 0, folder)
    assert section.text in words
    (_, verdicts), *more = section.answers
    assert more == []
    assert section.text.startswith(f"{page.compared(sweep, sweep.groups[0])} {' '.join(str(v) for _, v in verdicts)} ")
    assert section.text.endswith(f"the interval holds zero. Made with segbench {page.__version__}.")
    assert "in a folder of git commit 0123abc : segbench sweep 'my file.yaml' seeds=[0,1,2]" in words


def test_facts_that_differ_between_runs_are_counted(read):
    words = " ".join(" ".join(read.words).split())
    assert "CPU 0 (8 runs)" in words
    assert "CPU 1 (4 runs)" in words
    assert "torch 2.7" in words


def test_command_line(folder, tmp_path, capsys, undrawn, monkeypatch):
    out = tmp_path / "deep" / "r.html"
    assert main(["report", str(folder), "--no-gallery", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{out}  ")
    assert " MB" in said
    assert out.is_file()
    runs = tmp_path / "runs"
    shutil.copytree(folder, runs / "copied")
    assert main(["report", "--no-gallery", "--runs-dir", str(runs)]) == 0
    assert (runs / "copied" / "report.html").is_file()
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(folder, tmp_path, undrawn):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_report(folder, tmp_path / "file" / "r.html", gallery=False)


def test_a_copy_without_history_and_environment(tmp_path, undrawn):
    path = fake_sweep(tmp_path / "s", EFFECTS)
    for file in (*path.glob("*/history.csv"), *path.glob("*/environment.json")):
        file.unlink()
    assert "hold no environment.json" in write_report(path, gallery=False).path.read_text()
    assert list(curves.curves(read_sweep(path).results, Look(list(EFFECTS), "bilinear"), "")) == []
