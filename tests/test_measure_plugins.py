"""A measure is one file: a user's goes through a whole sweep, its table and its page; faulty ones get one line each."""

import csv
import io
import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import segbench
from segbench import store
from segbench.cli import main
from segbench.columns import load_measures, make_measure
from segbench.config import PluginConfig
from segbench.decoders.base import Decoder
from segbench.errors import UserError
from segbench.measures.base import CountMeasure, RunMeasure, Sample, Trained, check_labels
from segbench.measures.macs import Macs
from segbench.registry import MEASURES, parameters
from segbench.report import formats
from segbench.report.analysis import Analysis
from segbench.report.metrics import available
from segbench.report.page import write_report
from segbench.report.runs import read_sweep
from segbench.report.table import make_table
from segbench.sweep.plan import make_plan
from tests.conftest import ROOT
from tests.fakes import Reader
from tests.test_sweep import sweep

EXAMPLE = ROOT / "experiments/plug_in_a_measure/contour_distance.py"
HEAD = "contour dist. (20)"

FAULTY = """
import numpy as np
from segbench.measures.base import CountMeasure, RunMeasure

class Late(CountMeasure):
    def count(self, sample):
        if sample.size == (64, 64):
            raise RuntimeError("not on such\\nimages")
        return sample.region
    def score(self, counts):
        return counts[..., 0, :] / counts[..., 2, :].clip(1)

class Runs(RunMeasure):
    unit = "furlongs"
    higher_is_better = True
    def measure(self, run):
        return run.train_s + len(run.channels)

class Nothing(RunMeasure):
    def measure(self, run):
        return float("nan")

class Raises(CountMeasure):
    def count(self, sample):
        return 1 / 0
    score = Late.score

class Floats(Late):
    def count(self, sample):
        return sample.region / 2

class Flat(Late):
    def count(self, sample):
        return sample.region.sum(0)

class Fewer(Late):
    def count(self, sample):
        return sample.region[:, 1:]

class Negative(Late):
    def count(self, sample):
        return sample.region - 10**6

class Nan(Late):
    def score(self, counts):
        return np.full(counts.shape[:-2] + counts.shape[-1:], np.nan)

class Shape(Late):
    def score(self, counts):
        return counts.sum(-1)

class Bounds(Late):
    def score(self, counts):
        return 1.0 * counts[..., 0, :]

class region(Late):
    pass

class Init(Late):
    def __init__(self):
        raise OSError("no such table")

class Typed(Late):
    def __init__(self, width_px: int):
        self.width_px = width_px

class Plain:
    pass
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    path = tmp_path_factory.mktemp("plug-ins") / "faulty.py"
    path.write_text(FAULTY)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, faulty):
    """A sweep with the example, a measure of runs, one that fails on real images and one that gives NaN."""
    from segbench.config_file import build_config
    from tests.conftest import tiny

    measures = [str(EXAMPLE) + ":ContourDistance", *(f"{faulty}:{name}" for name in ("Late", "Runs", "Nothing"))]
    runs = tmp_path_factory.mktemp("runs")
    config = build_config(tiny(measures=measures, seeds=[0, 1], data={"val": 4}, runs_dir=str(runs)))
    _, code, out = sweep(config)
    assert code == 0, out
    return runs / "tiny"


def test_the_example_counts_what_it_says():
    """Every distance by hand, pixel pair by pixel pair."""
    rng = np.random.default_rng(0)
    truth, prediction = (np.kron(rng.integers(0, 3, (4, 5)), np.ones((3, 4))).astype(np.uint8) for _ in range(2))
    measure = make_measure(f"{EXAMPLE}:ContourDistance", {"cap_px": 5})
    sample = Sample(check_labels(truth, 4), prediction)
    found = measure.score(measure.count(sample))
    for c in range(4):
        own, other = (np.argwhere(m.band(1) & (m.labels == c)) for m in (sample.prediction, sample.truth))
        nearest = [min([5.0, *(math.dist(a, b) for b in other)]) for a in own]
        assert found[c] == pytest.approx(np.mean(nearest), abs=0.01) if nearest else math.isnan(found[c])


def test_a_column_of_a_user_s_is_everywhere(folder, capsys):
    table = make_table(folder, columns=["n", "score", "ci", "delta", "rank", "Runs", "Nothing", "train"])
    assert [f"{HEAD}", f"{HEAD} 95 %", f"Δ {HEAD}", f"rank by {HEAD}"] == [h for h in table.headings if HEAD in h]
    assert table.blocks[-1] == ["Runs", "Nothing", "train s"]
    sweep = read_sweep(folder)
    metric = next(m for m in available(sweep.results) if m.name == "ContourDistance@20")
    for row in table.rows:
        runs = sweep.groups[0].of(row["decoder"])
        by_hand = [metric.measure.score(r.counts["ContourDistance@20"].sum(0)) for r in runs]
        assert row[HEAD].mean == pytest.approx(np.mean([np.nanmean(v) for v in by_hand]))
        assert row[f"{HEAD} 95 %"] == (row[HEAD].low, row[HEAD].high)
        assert 0 <= row[HEAD].low <= row[HEAD].mean <= row[HEAD].high
        assert row["Runs"] == pytest.approx(row["train s"] + 4)
    best = min(table.rows, key=lambda row: row[HEAD].mean)
    assert best[f"rank by {HEAD}"].rank == 1
    assert formats.best_rows(table)[HEAD] == table.rows.index(best)
    assert rf"\textbf{{{formats.text(best[HEAD])}}}".replace("±", r"$\pm$") in formats.as_tex(table)
    line = next(iter(csv.DictReader(io.StringIO(formats.as_csv(table)))))
    assert float(line[f"{HEAD} high"]) == table.rows[0][HEAD].high
    assert float(line[f"Δ {HEAD} p_holm"] or "nan") == pytest.approx(math.nan, nan_ok=True)
    first = [row["decoder"] for row in make_table(folder, sort=HEAD).rows]
    assert first[0] == best["decoder"]
    assert make_table(folder, sort="Runs").rows[0]["Runs"] == max(row["Runs"] for row in table.rows)
    assert any(note.startswith("Mean ± sd over 2 seeds, in % (mIoU") for note in table.notes)
    assert main(["table", str(folder), "--metric", "ContourDistance", "--per-class"]) == 0
    told = capsys.readouterr()
    assert f"/source/0/{EXAMPLE.name}\n" in told.err
    assert f"{HEAD} per class" in told.out
    frame = segbench.load(folder)
    value = frame.query("metric == 'ContourDistance@20' and `class` == 'mean' and decoder == 'bilinear' and seed == 0")
    result = next(r for r in sweep.results if (r.row["decoder"], r.row["seed"]) == ("bilinear", 0))
    assert value["value"].item() == pytest.approx(metric.mean(result))
    assert value["Runs"].item() == result.row["values"]["Runs"]


def test_lower_is_better_in_verdicts_words_and_plots(folder, monkeypatch):
    sweep = read_sweep(folder)
    metric = next(m for m in available(sweep.results) if m.name == "ContourDistance@20")
    contrast = Analysis(sweep.groups[0], metric).against("bilinear")
    found = contrast.difference("nearest")
    assert found.higher_is_better is False
    for value, verdict in ((-1.0, "better"), (1.0, "worse")):
        moved = type(found)(**vars(found) | {"value": value, "p": 0.001, "p_holm": 0.002})
        assert moved.verdict == verdict
    written = write_report(folder, gallery=False)
    text = written.path.read_text("utf-8")
    read = Reader(text)
    assert 'data-verdict="ContourDistance@20"' in text
    assert "Down and to the left is better" in text
    assert "Left of zero is better than the baseline" in text
    assert "in contour distance (20)" in text or "leads contour distance (20)" in text
    section = read.json["sections"][0]
    row = make_table(folder).rows[1]
    numbers = section["metrics"]["ContourDistance@20"]["mean"]["nearest"]
    assert numbers["score"]["mean"] == row[HEAD].mean
    assert numbers["deltas"]["bilinear"]["low"] == row[f"Δ {HEAD}"].low
    assert section["costs"]["Runs"]["nearest"] == row["Runs"]
    heads = [tag for tag in read.tags if tag[1].get("data-first") == "ascending"]
    assert any("contour pixels from the truth" in tag[1].get("title", "") for tag in heads)
    figures = {p.stem for p in (folder / "figures").iterdir()}
    assert {"contourdistance-20-difference", "contourdistance-20-macs", "contourdistance-20-ranks"} <= figures


def test_a_measure_that_fails_takes_nothing_with_it(folder, faulty):
    """The run is done, its other columns are there, and the table says what failed and where."""
    assert all(store.is_done(folder / run["folder"]) for run in store.read_manifest(folder)["runs"])
    table = make_table(folder)
    assert [formats.cell_text(table, row, "Late") for row in table.rows] == ["0 of 2 runs"] * 2
    assert [formats.cell_text(table, row, "Nothing") for row in table.rows] == ["-"] * 2
    assert not any(math.isnan(row["mIoU"].mean) for row in table.rows)
    notes = [note for note in table.notes if note.startswith("Missing")]
    late, nothing = sorted(notes)
    where = re.escape(f"{faulty}:Late")
    assert re.fullmatch(
        rf"Missing: all runs: measure '{where}' fails on image \S+: RuntimeError: not on such images", late
    )
    assert nothing == f"Missing: all runs: measure '{faulty}:Nothing' fails: ValueError: it gives NaN"


def test_a_measure_that_is_gone_leaves_the_other_columns(folder, faulty, tmp_path):
    import shutil

    from tests.conftest import write_again

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for run in copy.glob("*-s*"):
        measures = store.read_json(run / "result.json")["measures"]
        named = [m | {"plug_in": m["plug_in"].replace("contour_distance", "gone")} for m in measures]
        write_again(run, measures=named)
    table = make_table(copy)
    assert HEAD not in table.headings
    gone = next(m["plug_in"] for m in named if "gone" in m["plug_in"])
    (note,) = [note for note in table.notes if note.startswith("Missing: ContourDistance@20 cannot be shown: ")]
    assert f" holds no copy of '{gone}'" in note


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Raises", "does not keep the contract: ZeroDivisionError: division by zero"),
        ("Floats", r"count gives float64 \(3, 7\); wanted integers \(C, 7\)"),
        ("Flat", r"count gives int64 \(7,\); wanted integers \(C, 7\)"),
        ("Fewer", r"count gives int64 \(3, 6\); wanted integers \(C, 7\)"),
        ("Negative", "counts are not negative"),
        ("Nan", "score gives NaN for every class"),
        ("Shape", r"score gives \(2, 3\) for counts \(2, 3, 7\); wanted \(2, 7\)"),
        ("Bounds", r"score gives 64 to 192; it says that its bounds are 0 to 100|its bounds are 0 to 100"),
        ("Init", "cannot be made: OSError: no such table"),
        ("region", "counts are kept by name, and .region. is taken; rename the class"),
        ("Typed", "width_px is missing"),
        ("Plain", "is no subclass of segbench.measures.base.Measure"),
        ("Lost", "has no class 'Lost'"),
    ],
)
def test_a_faulty_measure_is_named_before_anything_starts(make_config, faulty, name, said):
    with pytest.raises(UserError, match=said) as error:
        make_plan(make_config(measures=[f"{faulty}:{name}"]))
    assert str(faulty) in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_two_measures_of_one_name(make_config, faulty, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(FAULTY)
    with pytest.raises(UserError, match=r"both called 'Late'; rename one") as error:
        make_plan(make_config(measures=[f"{faulty}:Late", f"{other}:Late"]))
    assert str(faulty) in str(error.value)
    assert str(other) in str(error.value)
    names = [m.name for m in load_measures([PluginConfig(name="biou", params={"ratio": r}) for r in (0.02, 0.005)])]
    assert sorted(n for n in names if n.startswith("biou")) == ["biou@0.005", "biou@0.02"]


def test_another_parameter_or_source_is_another_run(make_config, faulty, tmp_path):
    def key(*measures):
        return make_plan(make_config(decoders=["nearest"], measures=list(measures))).runs[0].key

    mine = tmp_path / "mine.py"
    mine.write_text(FAULTY)
    example = f"{EXAMPLE}:ContourDistance"
    keys = [key(), key(example), key({"name": example, "params": {"cap_px": 5}}), key(f"{mine}:Late")]
    mine.write_text(FAULTY + "\nMORE = 1\n")
    keys.append(key(f"{mine}:Late"))
    assert len(set(keys)) == 5
    assert key({"name": "biou", "params": {"ratio": 0.02}}) == keys[0]  # which every sweep has


STANDARD = load_measures([])


@pytest.mark.parametrize("measure", STANDARD, ids=lambda m: m.name)
def test_built_in_measures_say_all_that_there_is_to_say(measure):
    assert measure.short
    assert measure.long
    assert measure.help
    assert isinstance(measure, CountMeasure | RunMeasure)
    assert measure.params.keys() == parameters(type(measure), MEASURES.given).keys()
    given = [v if isinstance(v, str) else f"{v:g}" for v in measure.params.values() if v is not None]
    assert measure.name == measure.kind + ("@" + ",".join(given) if given else "")


def test_names_are_distinct_and_in_order():
    assert len({m.name for m in STANDARD}) == len(STANDARD)
    shown = [m.name for m in STANDARD if m.table_place is not None]
    assert shown == ["miou", "biou@0.02", "accuracy", "params", "macs", "train", "eval"]


class NeedsValues(Decoder):
    """A convolution, of which the meta device cannot say whether it is made."""

    def __init__(self, channels, strides, num_classes):
        super().__init__(channels, strides, num_classes)
        self.conv = nn.Conv2d(channels[0], num_classes, 1)

    def forward(self, features, image):
        if float(features[0].sum()) > -1e9:
            return nn.functional.interpolate(self.conv(features[0]), image.shape[-2:])
        raise AssertionError


def test_macs_are_those_of_the_arithmetic():
    """By hand: a 1x1 convolution on a 128x128 map, with and without the meta device; nothing changes in the decoder."""
    decoder = NeedsValues((3,), (4,), 5)
    weights = decoder.conv.weight.clone()
    run = Trained(decoder, (3,), (4,), 0.0, 0.0, 0)
    assert Macs().measure(run) == 128 * 128 * 3 * 5
    plain = Trained(nn.Module(), (3, 2), (4, 8), 0.0, 0.0, 0)
    conv = nn.Conv2d(2, 7, 3, padding=1)
    plain.decoder.forward = lambda features, image: conv.to(features[1].device)(features[1])
    assert Macs().measure(plain) == 64 * 64 * 2 * 7 * 9
    assert torch.equal(decoder.conv.weight, weights)
    assert decoder.conv.weight.device.type == "cpu"


def test_lower_is_better_on_the_pareto_front():
    from segbench.report.figures import pareto

    points = {n: (cost, score) for n, (cost, score) in zip("abcd", itertools.product((1, 2), (3.0, 4.0)), strict=True)}
    assert pareto({n: (cost, -score) for n, (cost, score) in points.items()}) == ["a"]


def test_list_shows_the_measures(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "measures" in out
    for name in MEASURES.builtin():
        assert re.search(rf"^  {name} +\S", out, re.M)


def test_json_is_whole(folder):
    rows = json.loads(formats.as_json(make_table(folder)))["rows"]
    assert rows[0][HEAD]["wanted"] == 2
    assert rows[0]["Nothing"] is None
