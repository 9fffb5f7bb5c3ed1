"""The report without a browser: numbers recomputed from the counts, words, hostile names, holes, gallery, figures."""

import itertools
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats as scipy_stats

from segbench import store
from segbench.cli import main
from segbench.errors import UserError
from segbench.measures.params import Params
from segbench.report import figures, page, ranking, stats
from segbench.report.analysis import Analysis
from segbench.report.drawing import PALETTE, Look, settle, style
from segbench.report.metrics import available
from segbench.report.page import write_report
from segbench.report.runs import read_sweep
from tests.conftest import described_measures, write_again

CLASSES = ["sky", "road", "pole", "never"]
METRICS = ["miou", "biou@0.02", "accuracy", "bf1@3", "trimap@1", "trimap@2", "trimap@4"]
HOSTILE = [
    "<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "</script><script>document.title='x'</script>",
    "$x_{a}$ _b", "_under", "long " * 12 + "w" * 200,
]  # fmt: skip


def counts_of(effect, seed, images, classes, noise, own):
    """Counts of images that are hard or easy for every decoder alike; the last class is in none of them."""
    shared, rng = np.random.default_rng(5), np.random.default_rng([seed, own])
    truth = shared.integers(200, 900, (images, classes))
    quality = (
        shared.uniform(0.3, 0.6, (images, classes)) + effect + rng.normal(0, noise) + rng.normal(0, 0.004, truth.shape)
    )
    truth[:, -1] = 0
    right = np.round(truth * quality.clip(0.01, 0.99)).astype(np.int64)
    region = np.stack([right, truth - right // 4, truth], 1)  # (N, 3, K)
    boundary = np.stack([right // 3, (truth - right // 4) // 2, truth // 2], 1)
    contour = np.stack([right // 5, truth // 4, right // 6, truth // 4], 1)
    trimap = {f"trimap@{width}": region // w for width, w in ((1, 8), (2, 4), (4, 2))}
    sizes = np.full((images, 2), [150, 200])  # 0.02 of the diagonal are 5 px
    confusion = np.zeros((classes, classes), np.int64)
    own = {"biou@0.02": boundary, "bf1@3": contour, **trimap}
    return {"region": region, "confusion": confusion, "sizes": sizes, **own}


def write_run(folder, decoder, seed, counts, number, classes, **changes):
    """A finished run as a cohort leaves it, without weights."""
    run = folder / f"run{number}-s{seed}"
    row = {
        "result_version": store.RESULT_VERSION, "key": f"k{number}{seed}", "variant": {}, "data_fingerprints": ["d"],
        "decoder": decoder, "seed": seed, "data": "shapes", "images": len(counts["region"]), "classes": list(classes),
        "evaluation": {"flip": False}, "broken": {}, "measures": described_measures(*METRICS),
        "encoder": "tiny", "encoder_hash": "e", "features_hash": "f", "steps": 40,
        "encoder_trainable": False, "last_loss": 0.5, "evaluation_title": "", "train_shared_s": 1.0,
        "values": {
            "params": 1e6 * (number + 1), "macs": 1e9 * (3 - number % 3), "train": 3.0 + seed, "eval": 4.0 + number,
            "memory": 1e9,
        },
        "eval_encoder_ms_per_image": 2.0, "finished": "2026-01-02T03:04:05+00:00", **changes,
    }  # fmt: skip
    run.mkdir(parents=True)
    np.savez(run / "counts.npz", ids=np.array([f"image{i}" for i in range(len(counts["region"]))]), **counts)
    lines = [f"{s},{2 / (s + 1) + 0.01 * seed},0.1," for s in range(1, 41)] + ["20,,,31.0"]
    (run / "history.csv").write_text("step,loss,lr,val_miou\n" + "\n".join(lines) + "\n")
    store.write_json(run / "environment.json", {"cpu": f"CPU {seed % 2}", "threads": 1, "versions": {"torch": "2.7"}})
    store.write_result(run, row)
    return {"key": row["key"], "decoder": decoder, "seed": seed, "variant": row["variant"], "folder": run.name}


def fake_sweep(path, effects, seeds=(0, 1, 2), images=12, noise=0.002, classes=CLASSES, baseline="bilinear", **changes):
    """A sweep's folder; ``effects``: decoder -> how much better it is, in IoU or so."""
    runs = []
    for number, (decoder, effect) in enumerate(effects.items()):
        for seed in seeds:
            counts = counts_of(effect, seed, images, len(classes), noise, number)
            runs.append(write_run(path, decoder, seed, counts, number, classes, **changes))
    config = {"name": "fake", "seeds": list(seeds), "baseline": baseline, "data": {"root": "/<data>"}}
    store.write_json(path / "sweep.json", {"config": config, "runs": runs})
    return path


EFFECTS = {"bilinear": 0.0, "nearest": 0.001, "deconv": 0.15, "subpixel": -0.1}


class Reader(HTMLParser):
    """Elements, the JSON data, and the text of each table's cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.data, self.words = [], [], "", []
        self._script = self._cell = None
        self.feed(text)
        self.json = json.loads(self.data)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "script":
            self._script = attrs.get("type", "code")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables and self.tables[-1]:
            self._cell = {"value": attrs.get("data-v"), "text": ""}
            self.tables[-1][-1].append(self._cell)

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None
        elif tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        if self._script == "application/json":
            self.data += data
        elif self._cell is not None:
            self._cell["text"] += data
        elif self._script is None:
            self.words.append(data)


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


def analyses(folder, group=0):
    sweep = read_sweep(folder, True)
    chosen = sweep.groups[group]
    return {m.name: Analysis(chosen, m) for m in available(list(chosen.results.values()))}


def iou_by_hand(counts):
    """(3, K) -> percent by class, absent ones left out as NaN; written out anew."""
    found = []
    for right, predicted, truth in counts.T.tolist():
        union = predicted + truth - right
        found.append(100 * right / union if union else np.nan)
    return np.array(found)


def f1_by_hand(counts):
    found = []
    for near, predicted, hit, truth in counts.T.tolist():
        precision, recall = (near / predicted, hit / truth) if truth else (np.nan, np.nan)
        found.append(100 * 2 * precision * recall / (precision + recall))
    return np.array(found)


def by_hand(folder, name):
    """decoder -> (S, K) percent, from the files alone."""
    scores = {}
    for path in sorted(folder.glob("*/counts.npz"), key=lambda p: p.parent.name):
        row = json.loads((path.parent / "result.json").read_text())
        counts = np.load(path)
        if name == "accuracy":
            total = counts["region"].sum(0)
            values = np.array([100 * total[0].sum() / total[2].sum()])
        elif name == "miou":
            values = iou_by_hand(counts["region"].sum(0))
        elif name == "bf1@3":
            values = f1_by_hand(counts[name].sum(0))
        else:
            values = iou_by_hand(counts[name].sum(0))
        scores.setdefault(row["decoder"], []).append(values)
    return {d: np.array(v) for d, v in scores.items()}


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


def table_of(read, first):
    """Row name -> cells of the table whose first heading is ``first``."""
    table = next(t for t in read.tables if any(row and row[0]["text"].strip() == first for row in t))
    start = next(i for i, row in enumerate(table) if row[0]["text"].strip() == first)
    return [c["text"].strip() for c in table[start]], {row[0]["text"].strip(): row[1:] for row in table[start + 1 :]}


def test_the_cells_show_the_numbers(read, folder):
    heads, rows = table_of(read, "decoder")
    assert heads == [
        "decoder", "n", "mean ± sd", "Δ bilinear", "mean ± sd", "Δ bilinear", "mean ± sd", "params", "MACs", "train s",
        "eval ms",
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


def drawn_bars(figure):
    """(x, y, low, high) of every error bar, in the order of drawing; low and high along the bar."""
    found = []
    for container in figure.axes[0].containers:
        line, _, (bars,) = container
        along = 0 if container.has_xerr else 1
        for x, y, segment in zip(*line.get_data(), bars.get_segments(), strict=True):
            found.append((float(x), float(y), float(segment[0][along]), float(segment[1][along])))
    return found


def test_plots_show_the_numbers(folder, read):
    found = analyses(folder)
    a, numbers = found["biou@0.02"], read.json["sections"][0]["metrics"]["biou@0.02"]
    look = Look(list(EFFECTS), "bilinear")
    others = [d for d in EFFECTS if d != "bilinear"]
    with style():
        forest = figures.difference(a.against("bilinear"), look, others)
        values = {d: 1e6 * (number + 1) for number, d in enumerate(EFFECTS)}
        cost = figures.against_cost(a, look, list(EFFECTS), Params(), values)
        classes = figures.per_class(a.against("bilinear"), look, others, [0, 1, 2])
        widths = [found[f"trimap@{w}"] for w in (1, 2, 4)]
        trimap = next(iter(figures.over(widths, look, "trimap", {"": "bilinear"}))).figure
        ranks = figures.ranks(a, look)
    deltas = [numbers["mean"][d]["deltas"]["bilinear"] for d in others]
    assert drawn_bars(forest) == [pytest.approx((v["mean"], row, v["low"], v["high"])) for row, v in enumerate(deltas)]
    scores = [numbers["mean"][d]["score"] for d in EFFECTS]
    assert drawn_bars(cost) == [
        pytest.approx((number + 1, v["mean"], v["low"], v["high"])) for number, v in enumerate(scores)
    ]
    expected = [numbers["classes"][c][d]["deltas"]["bilinear"] for d in others for c in CLASSES[:3]]
    assert [(x, low, high) for x, _, low, high in drawn_bars(classes)] == [
        pytest.approx((v["mean"], v["low"], v["high"])) for v in expected
    ]
    expected = [
        read.json["sections"][0]["metrics"][f"trimap@{w}"]["mean"][d]["score"] for d in EFFECTS for w in (1, 2, 4)
    ]
    assert [bar[1:] for bar in drawn_bars(trimap)] == [
        pytest.approx((v["mean"], v["low"], v["high"])) for v in expected
    ]
    places = read.json["sections"][0]["ranks"]["biou@0.02"]
    order = sorted(places, key=lambda d: places[d]["rank"])
    shown = [[float(v) for v in line.get_xdata()] for line in ranks.axes[0].lines]
    assert shown == [v for d in order for v in ([places[d]["low"], places[d]["high"]], [places[d]["rank"]])]
    assert [t.get_text() for t in ranks.axes[0].texts] == [f"best in {100 * places[d]['p_best']:.0f} %" for d in order]


def test_curves_end_with_the_final_evaluation(folder):
    sweep = read_sweep(folder)
    look = Look(list(EFFECTS), "bilinear")
    with style():
        plot = next(figures.curves(list(sweep.groups[0].results.values()), look, ""))
    loss, score = plot.figure.axes
    assert len(loss.lines) == len(score.lines) == 12
    assert list(loss.lines[0].get_xdata()) == list(range(1, 41))
    finals = [np.nanmean(v) for values in by_hand(folder, "miou").values() for v in values]
    for line, final in zip(score.lines, finals, strict=True):
        assert list(line.get_xdata()) == [20, 40]
        assert list(line.get_ydata()) == pytest.approx([31, final])


def test_the_pareto_front_holds_what_nothing_beats():
    points = {"a": (1, 5.0), "b": (2, 4.0), "c": (2, 7.0), "d": (3, 7.0), "e": (4, 9.0), "f": (1, 4.0)}
    assert figures.pareto(points) == ["a", "c", "e"]
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = {str(i): tuple(map(float, rng.integers(0, 6, 2))) for i in range(8)}
        front = figures.pareto(points)
        for name, (cost, score) in points.items():
            beaten = any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points.values())
            assert beaten or any(points[f] == (cost, score) for f in front)
            assert name not in front or not beaten


def test_figures_are_files_at_paper_size(written, folder):
    names = {p.name for p in (folder / "figures").iterdir()}
    stems = [
        f"{m}-{k}" for m in ("miou", "biou-0.02") for k in ("difference", "eval", "macs", "params", "classes", "ranks")
    ]
    stems += ["trimap", "trimap-difference", "training"]
    assert names == {f"{s}.{kind}" for s in stems for kind in ("svg", "pdf")}
    assert written.figures == len(stems)
    for stem in stems:
        pdf = (folder / "figures" / f"{stem}.pdf").read_bytes()
        width = float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", pdf)[1])
        assert width == pytest.approx(72 * 3.5)
        assert b"/Type3" not in pdf
        svg = (folder / "figures" / f"{stem}.svg").read_text()
        assert float(re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)[1]) == pytest.approx(72 * 3.5)


def test_one_colour_for_a_decoder_everywhere(read):
    look = Look(["a", "bilinear", *map(str, range(20))], "bilinear")
    assert look.colour("bilinear") == PALETTE[0]
    assert look.colour("a") == PALETTE[1]
    pairs = [(look.colour(d), look.marker(d)) for d in look.place]
    assert len(set(pairs)) == len(pairs)


def test_the_page_fetches_nothing_and_is_small(written, read):
    assert written.size == written.path.stat().st_size < 2_000_000
    for tag, attrs in read.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attrs.get(name) or ""
            assert value.startswith(("#", "data:", "figures/")) or not value, (tag, value)
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
    assert [a.get("type") for tag, a in read.tags if tag == "script"] == ["application/json", None, None]
    assert not any(tag == "img" for tag, _ in read.tags)
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    _, rows = table_of(read, "decoder")
    assert list(rows) == ["bilinear", *(h.strip() for h in HOSTILE)]
    assert list(read.json["sections"][0]["metrics"]["miou"]["classes"]) == [*HOSTILE, "never"]
    assert not re.search("<(script|img|&)[^>]*>?(alert|document|src)", text)
    assert "alert(1)" in text
    for file in (hostile / "figures").glob("*.svg"):
        assert "<script" not in file.read_text()


def test_inline_figures_are_well_formed_and_their_ids_are_their_own(written):
    text = written.path.read_text()
    assert len(re.findall(r"<svg[^>]*role=\"img\"", text)) == written.figures
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'<use href="#([^"]+)"', text))
    assert used <= set(ids)
    assert "#1c1f24" not in text.split("</style>")[1]  # ink follows the theme


def test_long_names_fit_into_figures():
    look = Look(["bilinear", "x" * 300], "bilinear")
    with style():
        figure = figures.new_figure(2.0)
        figure.add_subplot()
        figures.legend(figure, look, ["bilinear", "x" * 300, "_hidden"][:2])
        settle(figure)
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == ["bilinear", "x" * 21 + "…"]


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
    assert list(figures.curves(read_sweep(path).results, Look(list(EFFECTS), "bilinear"), "")) == []
