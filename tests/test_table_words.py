"""What a table says beside its scores: grids, collapsed runs, versions, starts and strides; and a part of a sweep."""

import csv
import io
import itertools
import json
import re

import numpy as np
import pandas
import pytest
from rich.console import Console

import segbench
from segbench import store
from segbench.cli import main
from segbench.config_file import build_config
from segbench.errors import UserError
from segbench.report import formats, page
from segbench.report import table as tables
from segbench.report.analysis import Analysis, PValue
from segbench.report.compare import compare
from segbench.report.metrics import available
from segbench.report.page import write_report
from segbench.report.runs import read_sweep
from segbench.runs import ClassFacts, Facts, grid_names, make_cohorts, make_runs
from segbench.tuning import variants
from tests.conftest import tiny, write_again
from tests.fakes import CLASSES, EFFECTS, Reader, counts_of, fake_sweep, table_of, write_run


@pytest.fixture
def folder(tmp_path):
    return fake_sweep(tmp_path / "my_sweep", EFFECTS)


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(page._Section, "draw", lambda self: None)


def grid_sweep(path, grid, classes=CLASSES):
    """A sweep's folder with two decoders for each combination of ``grid``."""
    runs = []
    for n, values in enumerate(itertools.product(*grid.values())):
        for number, decoder in enumerate(("bilinear", "a")):
            counts = counts_of(0.1 * number, 0, 6, len(classes), 0.002, number)
            variant = dict(zip(grid, values, strict=True))
            runs.append(write_run(path, decoder, 0, counts, 2 * n + number, classes, variant=variant))
    store.write_json(path / "sweep.json", {"config": {"seeds": [0], "baseline": None}, "runs": runs})
    return path


TWO_NAMES = {"data.name": ["shapes", "camvid"], "encoder.name": ["tiny", "large"], "recipe.lr": [0.0005, 0.1]}


def test_two_keys_with_the_same_last_part_are_both_shown(tmp_path, capsys, undrawn):
    path = grid_sweep(tmp_path / "runs" / "s", TWO_NAMES)
    table = tables.make_table(path, ["miou"])
    assert table.headings[:4] == ["decoder", "data.name", "encoder.name", "lr"]
    shown = [tuple(row[h] for h in table.headings[1:4]) for row in table.rows[::2]]
    assert shown == list(itertools.product(*TWO_NAMES.values()))
    assert read_sweep(path).groups[3].label == "data.name=shapes, encoder.name=large, lr=0.1"
    assert main(["status", str(path)]) == 0
    assert "a data.name=camvid encoder.name=tiny lr=0.1" in capsys.readouterr().out
    read = Reader(write_report(path, gallery=False).path.read_text())
    assert read.json["sections"][0]["label"] == "data.name=shapes, encoder.name=tiny, lr=0.0005"
    lines = list(csv.DictReader(io.StringIO(formats.as_csv(table))))
    assert lines[-1]["data.name"] == "camvid"


def test_cohorts_are_named_by_the_same_rule(tmp_path):
    config = build_config(tiny(runs_dir=str(tmp_path), decoders=["bilinear"], grid={**TWO_NAMES, "recipe.lr": [0.1]}))
    numbers = itertools.count()  # other encoder weights each time, so that no two runs are one

    def find_facts(_):
        bilinear = ClassFacts("Bilinear", {}, "source")
        return Facts("cpu", 0, str(next(numbers)), ("a",), ["Shapes"], 3, (4, 8), {"bilinear": bilinear}, [])

    cohorts = make_cohorts(make_runs(list(variants(config, {})), find_facts), lambda run: 0)
    assert [c.name for c in cohorts] == [
        f"seed 0 data.name={d} encoder.name={e} lr=0.1" for d in ("shapes", "camvid") for e in ("tiny", "large")
    ]


def test_a_grid_key_that_is_called_as_another_column_is_shown_whole(tmp_path):
    path = grid_sweep(tmp_path / "s", {"data.n": [3, 4], "data.params": [1], "data.train": [5], "data.sky": [1]})
    headings = tables.make_table(path, ["miou"]).headings
    assert headings[:6] == ["decoder", "data.n", "data.params", "sky", "train", "n"]
    assert tables.make_table(path, ["miou"], True).headings[:6] == [
        "decoder", "data.n", "params", "data.sky", "train", "n",
    ]  # fmt: skip
    assert grid_names(["a.x", "b.y", "c.x"]) == {"a.x": "a.x", "b.y": "y", "c.x": "c.x"}


def test_only_a_p_value_is_written_as_one(tmp_path):
    path = grid_sweep(tmp_path / "s", {"recipe.lr": [0.0005, 0.25, 1e-7]})
    table = tables.make_table(path, ["miou"], columns=["score", "p"])
    assert {line[1] for line in formats.grid(table)[1]} == {"0.0005", "0.25", "1e-07"}
    assert [row["lr"] for row in tables.make_table(path, sort="lr").rows][::2] == [1e-7, 0.0005, 0.25]
    assert formats.text(PValue(0.0005)) == "< 0.001"
    assert formats.text(PValue(0.0123)) == "0.012"
    assert formats.text(PValue("nan")) == "-"
    p = [row["p mIoU"] for row in table.rows]
    assert [row["p mIoU"] for row in json.loads(formats.as_json(table))["rows"]] == p
    assert pandas.read_csv(io.StringIO(formats.as_csv(table)))["p mIoU"].iloc[1] == p[1]
    assert pandas.read_parquet(io.BytesIO(formats.as_parquet(table)))["p mIoU"].iloc[1] == p[1]


def test_a_measure_is_called_by_its_heading_and_its_words(folder):
    found = {m.name: (m.column, m.words) for m in available(read_sweep(folder).results)}
    assert found["miou"] == ("mIoU", "mIoU")
    assert found["biou@0.02"] == ("BIoU 0.02 (5px)", "Boundary IoU 0.02 (5px)")
    assert found["bf1@3"] == ("BF1 (3px)", "Boundary F1 (3px)")
    assert found["trimap@4"] == ("trimap (4px)", "trimap IoU (4px)")
    assert found["accuracy"] == ("pixel acc.", "pixel accuracy")


def collapse(run, top, stray):
    """All pixels but ``stray`` in an image are predicted as the class at ``top``."""
    arrays = dict(np.load(run / "counts.npz"))
    truth = arrays["region"][:, 2].copy()
    region = np.zeros_like(arrays["region"])
    region[:, 2] = truth
    region[:, 1, top], region[:, 1, (top + 1) % 3] = truth.sum(1) - stray, stray
    region[:, 0, top] = truth[:, top]
    np.savez(run / "counts.npz", **(arrays | {"region": region}))
    write_again(run)
    return 100 * (1 - stray * len(truth) / truth.sum())


def test_collapsed_runs_are_marked(folder, undrawn):
    share = collapse(folder / "run2-s1", 1, 3)
    assert share > 99
    table = tables.make_table(folder, ["miou"], columns=["score"])
    note = f"Collapsed: deconv-s1 predicts road for {share:.1f} % of the pixels."
    assert [n for n in table.notes if n.startswith("Collapsed")] == [note]
    assert table.headings[:2] == ["decoder", "collapsed"]
    assert [row["collapsed"] for row in table.rows] == [0, 0, 1, 0]
    assert [line[1] for line in formats.grid(table)[1]] == ["", "", "1", ""]
    assert pandas.read_csv(io.StringIO(formats.as_csv(table)))["collapsed"].tolist() == [0, 0, 1, 0]
    read = Reader(write_report(folder, gallery=False).path.read_text())
    _, rows = table_of(read, "decoder")
    assert rows["deconv"][0] == {"value": "3", "text": "3 1 collapsed"}
    assert rows["nearest"][0] == {"value": "3", "text": "3"}
    assert read.json["sections"][0]["collapsed"] == ["deconv-s1"]
    words = " ".join(" ".join(read.words).split())
    assert "deconv has collapsed in 1 of 3 runs" in words
    assert note in words


@pytest.mark.parametrize("width", [80, 100, 120, 240])
def test_nothing_is_broken_in_a_terminal(tmp_path, width):
    """Two baselines, as in the default sweep: at 80 columns a cell has two lines, its verdict being the second."""
    effects = {"nearest": -0.05, "bilinear": 0.0, "bilinear_conv": 0.02, "deconv": 0.03, "fractional": 0.001}
    table = tables.make_table(fake_sweep(tmp_path / "s", effects, baseline=["bilinear", "bilinear_conv"]))
    formats.print_terminal(table, Console(file=(out := io.StringIO()), width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    body = [line for line in lines if line.startswith(tuple(effects))]
    assert len(body) == len(effects) * (2 if width == 240 else 3)  # grids
    cells = [cell for line in body for cell in re.split(" {3,}", line.rstrip())]
    whole = [
        line for row in table.rows for h in table.headings for line in formats.cell_text(table, row, h).splitlines()
    ]
    assert all(any(text.startswith(cell) for text in whole) for cell in cells), cells
    verdicts = [line.split("   ") for line in lines if line.startswith("     ") and "]" not in line and "Δ" not in line]
    words = {part.strip() for parts in verdicts for part in parts} & {"better", "worse", "within noise"}
    assert words == ({"better", "worse", "within noise"} if width == 80 else set())
    intervals = re.findall(r"\[[-+]\d+\.\d\d, [-+]\d+\.\d\d\]", "\n".join(body))
    assert len(intervals) == 2 * 2 * (len(effects) - 1)


def test_sound_runs_are_not_marked(folder):
    table = tables.make_table(folder)
    assert "collapsed" not in table.headings
    assert not any("ollapsed" in note for note in table.notes)


def test_every_table_carries_the_result_version_once(folder, undrawn):
    said = f"result version {store.RESULT_VERSION}"
    table, out = tables.make_table(folder), io.StringIO()
    formats.print_terminal(table, Console(file=out, width=120))
    both = compare_itself(folder)
    texts = [formats.as_md(table), formats.as_tex(table), formats.as_json(table), out.getvalue(), formats.as_md(both)]
    texts += [formats.as_md(tables.make_table(folder, classes=True))]
    texts += [" ".join(Reader(write_report(folder, gallery=False).path.read_text()).words)]
    assert [text.lower().count(said) for text in texts] == [1] * len(texts)


def compare_itself(folder):
    manifest = store.read_json(folder / "sweep.json")
    decoders = [{"name": d, "label": "", "params": {}} for d in EFFECTS]
    store.write_json(folder / "sweep.json", manifest | {"config": manifest["config"] | {"decoders": decoders}})
    return compare(folder, folder, ["miou"]).table


@pytest.mark.parametrize(
    ("strides", "words"),
    [
        ([1, 1, 1, 1], ""),
        ([None, None, None, None], ""),
        ([4, 4, 4, 4], ", upsampled to stride 4"),
        ([4, 4, None, 4], ", upsampled to stride 4"),
        ([1, 1, 4, 1], ", deconv upsampled to stride 4"),
        ([1, 2, 4, 4], ", nearest upsampled to stride 2, deconv and subpixel upsampled to stride 4"),
    ],
)
def test_the_stride_at_which_techniques_end_is_said(folder, undrawn, strides, words):
    for n, stride in enumerate(strides):
        for s in range(3):
            write_again(folder / f"run{n}-s{s}", output_stride=stride)
    assert tables.make_table(folder).title == f"my_sweep: shapes, 12 images, frozen tiny, 40 steps{words}"
    sweep = read_sweep(folder)
    assert page.compared(sweep, sweep.groups[0]).endswith(f"3 seeds of 40 steps{words}.")


@pytest.mark.parametrize(
    ("hashes", "words"),
    [
        (["a{s}"] * 4, []),
        (
            ["a{s}", "b{s}", "c{s}", "a{s}"],
            ["nearest and deconv have another width or skeleton than bilinear. Such differences carry the noise"],
        ),
        (["a{s}", None, "a{s}", "a{s}"], ["nearest has a skeleton of its own. Such"]),
        (
            ["a{s}", "b{s}", None, None],
            ["nearest has another width or skeleton than bilinear; deconv and subpixel have a skeleton of their own."],
        ),
    ],
)
def test_skeletons_that_do_not_start_equal_are_named(folder, hashes, words):
    for n, form in enumerate(hashes):
        for s in range(3):
            write_again(folder / f"run{n}-s{s}", skeleton_hash=None if form is None else form.format(s=s))
    found = [n for n in tables.make_table(folder).notes if n.startswith("Skeletons")]
    assert len(found) == len(words)
    for note, said in zip(found, words, strict=True):
        assert note.startswith(f"Skeletons do not start equal: {said}")


def test_a_part_of_a_sweep_is_as_if_it_had_no_others(folder, tmp_path, undrawn, capsys):
    part = ["bilinear", "deconv", "nearest"]
    alone = fake_sweep(tmp_path / "alone" / "my_sweep", EFFECTS)
    manifest = store.read_json(alone / "sweep.json")
    store.write_json(alone / "sweep.json", manifest | {"runs": [r for r in manifest["runs"] if r["decoder"] in part]})
    columns = ["score", "delta", "p", "rank"]
    shown, wanted = tables.make_table(folder, columns=columns, only=part), tables.make_table(alone, columns=columns)
    assert formats.as_json(shown) == formats.as_json(wanted)
    pair = tables.make_table(folder, columns=columns, only=["bilinear", "subpixel"]).rows[1]["Δ mIoU"]
    whole = tables.make_table(folder, columns=columns).rows[3]["Δ mIoU"]
    assert pair.p == pair.p_holm == whole.p  # a family of one
    assert whole.p_holm == pytest.approx(3 * whole.p)  # the smallest of three
    assert main(["table", str(folder), "--only", ",".join(part), "--format", "csv"]) == 0
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "bilinear", "nearest", "deconv",
    ]  # fmt: skip
    assert main(["table", str(folder), "--only", "deconv,billinear"]) == 2
    assert "unknown decoder 'billinear' (did you mean 'bilinear'?)" in capsys.readouterr().err
    with pytest.raises(UserError, match="unknown decoder 'x'; there is: bilinear, deconv, nearest, subpixel"):
        read_sweep(folder, only=["x"])
    assert set(segbench.load(folder, only=part)["decoder"]) == set(part)
    out = tmp_path / "part.html"
    assert main(["report", str(folder), "--no-gallery", "--only", ",".join(part), "--out", str(out)]) == 0
    read = Reader(out.read_text())
    _, rows = table_of(read, "decoder")
    assert list(rows) == ["bilinear", "nearest", "deconv"]
    assert "9 of 9 runs are done" in " ".join(read.words)


def test_a_missing_run_of_a_decoder_that_is_not_shown_is_not_named(folder):
    for s in (0, 1):
        (folder / f"run3-s{s}" / "result.json").unlink()
    assert any(n.startswith("Missing: subpixel") for n in tables.make_table(folder).notes)
    assert not any("subpixel" in n for n in tables.make_table(folder, only=["bilinear", "deconv"]).notes)


def test_seeds_are_those_of_the_runs(folder):
    """A folder's manifest is the union of several calls; the config is the last one's."""
    manifest = store.read_json(folder / "sweep.json")
    store.write_json(folder / "sweep.json", manifest | {"config": manifest["config"] | {"seeds": [2, 7]}})
    group = read_sweep(folder).groups[0]
    assert group.seeds == [0, 1, 2]
    assert group.whole == list(EFFECTS)
    assert not np.isnan(Analysis(group, available(list(group.results.values()))[0]).cell("deconv").mean)
