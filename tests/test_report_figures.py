"""The report's figures: what they draw, and the files that they are."""

import re

import numpy as np
import pytest

from segbench.measures.params import Params
from segbench.report import curves, figures
from segbench.report.drawing import PALETTE, Look, point_to_the_far, settle, style
from segbench.report.page import write_report
from segbench.report.runs import read_sweep
from tests.fakes import CLASSES, EFFECTS, Reader, analyses, by_hand, fake_sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_sweep(tmp_path_factory.mktemp("runs") / "my sweep", EFFECTS)


@pytest.fixture(scope="module")
def written(folder):
    return write_report(folder, gallery=False)


@pytest.fixture(scope="module")
def read(written):
    return Reader(written.path.read_text("utf-8"))


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
        plot = next(curves.curves(list(sweep.groups[0].results.values()), look, ""))
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


def test_inline_figures_are_well_formed_and_their_ids_are_their_own(written):
    text = written.path.read_text()
    assert len(re.findall(r"<svg[^>]*role=\"img\"", text)) == written.figures
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'<use href="#([^"]+)"', text))
    assert used <= set(ids)
    assert "#1c1f24" not in "".join(re.findall("<svg.*?</svg>", text, re.S))  # ink follows the theme


def test_long_names_fit_into_figures():
    look = Look(["bilinear", "x" * 300], "bilinear")
    with style():
        figure = figures.new_figure(2.0)
        figure.add_subplot()
        figures.legend(figure, look, ["bilinear", "x" * 300, "_hidden"][:2])
        settle(figure)
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == ["bilinear", "x" * 21 + "…"]


KINDS = {name: "learned" if i % 2 else "guided" for i, name in enumerate("abcdefghijkl")}


@pytest.mark.parametrize(
    ("along", "higher_is_better", "arrow", "edge"), [("x", True, "<", 0), ("x", False, ">", 1), ("y", True, "v", 0)]
)
def test_one_far_behind_does_not_press_the_others_together(along, higher_is_better, arrow, edge):
    sign = 1 if higher_is_better else -1
    values = dict(zip(KINDS, [*range(10), float("nan"), -60], strict=True))  # quartiles 2 and 7.5 or so, fence -16
    points = [(d, sign * float(v), row) for row, (d, v) in enumerate(values.items())]
    axes = figures.new_figure(2.0).add_subplot()
    axes.set_xlim(-100, 100)
    axes.set_ylim(-100, 100)
    point_to_the_far(axes, along, points, Look(list(KINDS), "a", KINDS), higher_is_better)
    limits, other = (axes.get_xlim(), axes.get_ylim())[:: 1 if along == "x" else -1]
    assert limits == pytest.approx((-0.54, 100) if higher_is_better else (-100, 0.54))
    assert other == (-100, 100)
    [line] = axes.lines
    assert line.get_marker() == arrow
    assert line.get_xydata().tolist() == [[edge, 11] if along == "x" else [11, edge]]
    assert line.get_gid().startswith("decoder-11-")
    point_to_the_far(axes, along, points, Look(list(KINDS), "a", KINDS), higher_is_better, keep=sign * -2)
    limits = (axes.get_xlim(), axes.get_ylim())[along == "y"]
    assert limits == pytest.approx((-2.66, 100) if higher_is_better else (-100, 2.66))


@pytest.mark.parametrize("kinds", [KINDS, {}], ids=["none far", "few decoders"])
def test_an_axis_shows_all_that_is_not_far_behind(kinds):
    axes = figures.new_figure(2.0).add_subplot()
    last = -12.0 if kinds else -1000.0
    points = [(d, v, row) for row, (d, v) in enumerate(zip(KINDS, [*map(float, range(11)), last], strict=True))]
    limits = axes.get_xlim()
    point_to_the_far(axes, "x", points, Look(list(KINDS), "a", kinds), True)
    assert not axes.lines
    assert axes.get_xlim() == limits
