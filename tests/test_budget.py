"""``budget:``: the width of each decoder by which all cost the same."""

import pytest
import yaml

from segbench import store
from segbench.build import look_up
from segbench.cli import main
from segbench.config import DecoderConfig
from segbench.config_file import build_config
from segbench.measures.base import Trained
from segbench.measures.macs import Macs
from segbench.report.table import make_table
from segbench.sweep import budget as fitting
from segbench.sweep.plan import make_plan
from tests.conftest import tiny
from tests.test_sweep import sweep

CHANNELS, STRIDES = (24, 40, 112, 320), (4, 8, 16, 32)  # of the default encoder
DECODERS = ["bilinear", "deconv", "subpixel", "bilinear_conv", "nearest_conv"]


def cost(name, width, by):
    """Of a decoder with 7 classes, by its own measure or by counting its weights."""
    decoder = look_up(DecoderConfig(name=name, params={"width": width})).build(CHANNELS, STRIDES, 7, 0)
    if by == "params":
        return sum(p.numel() for p in decoder.parameters())
    return Macs().measure(Trained(decoder, CHANNELS, STRIDES, 0.0, 0.0, 0))


def budgets(tmp_path, budget, **changes):
    return build_config(tiny(budget=budget, runs_dir=str(tmp_path / "runs"), **({"decoders": DECODERS} | changes)))


@pytest.mark.parametrize("budget", [{"macs": 4e8}, {"params": 30_000}, {"params": 29_000.5}])
def test_the_width_whose_cost_is_nearest_is_chosen(tmp_path, budget):
    """By trying every width."""
    [(by, asked)] = budget.items()
    for run in make_plan(budgets(tmp_path, budget)).runs:
        found = run.found["budget"]
        costs = {width: cost(run.title, width, by) for width in range(1, 61)}
        assert costs[60] > asked
        assert found["width"] == min(costs, key=lambda width: abs(costs[width] - asked))
        assert found == {"width": found["width"], "cost": costs[found["width"]], "asked": asked, "by": by}
        assert run.decoder.params["width"] == found["width"] == run.facts.decoders[run.title].params["width"]


def test_like_another_decoder_which_keeps_its_width(tmp_path):
    runs = {run.title: run for run in make_plan(budgets(tmp_path, {"like": "bilinear_conv"})).runs}
    asked = cost("bilinear_conv", 8, "macs")
    assert runs["bilinear_conv"].found["budget"]["width"] == 8
    for title, run in runs.items():
        assert run.found["budget"]["asked"] == asked
        assert run.found["budget"]["cost"] == cost(title, run.found["budget"]["width"], "macs")
    by_params = make_plan(budgets(tmp_path, {"like": "bilinear_conv", "by": "params"})).runs
    assert {run.found["budget"]["asked"] for run in by_params} == {cost("bilinear_conv", 8, "params")}


def test_a_sweep_trains_what_the_budget_says_beside_what_the_sweep_says(tmp_path):
    """The measured MACs are the budget's, what does not change is trained once, and the table says widths."""
    config = build_config(
        tiny(
            decoders=["bilinear", "bilinear_conv", "nearest_conv"],
            grid={"budget": [None, {"like": "bilinear_conv"}]},
            runs_dir=str(tmp_path / "runs"),
        )
    )
    _, code, out = sweep(config)
    assert code == 0
    assert "5 runs, 0 done before, 5 to do" in out
    folder = tmp_path / "runs" / "tiny"
    for row in store.read_plan(folder)["runs"]:
        result = store.read_result(folder / row["folder"]).row
        assert ("budget" in row) == (row["variant"]["budget"] is not None)
        if found := row.get("budget"):
            assert result["values"]["macs"] == found["cost"]
            kept = yaml.safe_load((folder / row["folder"] / "config.yaml").read_text())
            assert kept["decoders"][0]["params"]["width"] == found["width"]
            assert kept["budget"] is None
    table = make_table(folder)
    assert [(r["decoder"], r["budget"]) for r in table.rows] == [
        (d, b) for b in ("none", "like bilinear_conv") for d in ("bilinear", "bilinear_conv", "nearest_conv")
    ]
    assert [r["width"] for r in table.rows[:3]] == [None] * 3
    assert table.rows[4]["width"] == 8
    assert table.rows[4]["of budget"] == "+0.0 %"
    assert table.rows[1]["mIoU"] == table.rows[4]["mIoU"]
    off = {r["decoder"]: float(r["of budget"].removesuffix(" %")) for r in table.rows[3:]}
    wanted = {r["decoder"]: 100 * (r["MACs"] / table.rows[4]["MACs"] - 1) for r in table.rows[3:]}
    assert off == pytest.approx(wanted, abs=0.05)
    assert any(
        "widths chosen so that each decoder costs" in note and "multiply-accumulates" in note for note in table.notes
    )


def test_what_is_not_within_5_percent_is_said(tmp_path):
    """At a width of 2 or 3, one more channel is more than a tenth of the cost."""
    costs = [cost("nearest", width, "params") for width in (2, 3)]
    config = budgets(tmp_path, {"params": sum(costs) / 2 + 1}, decoders=["nearest", "bilinear"])
    sweep(config)
    off = 100 * (costs[1] / (sum(costs) / 2 + 1) - 1)
    assert off > 5
    [said] = [note for note in make_table(tmp_path / "runs" / "tiny").notes if note.startswith("Not within")]
    assert said == f"Not within 5 % of that at any width, so the nearest: nearest {off:+.1f} %, bilinear {off:+.1f} %."


@pytest.fixture
def clock(monkeypatch):
    """Times that grow with the width but for the narrowest, never quite the same again; returns how many were taken."""
    taken = []

    def milliseconds(decoder, *given):
        taken.append(1)
        width = decoder.classifier.in_channels
        return (40.0 if width < 3 else width * 0.5) + 1e-3 * len(taken)

    monkeypatch.setattr(fitting, "_milliseconds", milliseconds)
    monkeypatch.setattr("segbench.launch.local.call", lambda call, *args: call(*args))
    return taken


def test_a_time_is_found_where_a_wider_decoder_takes_longer(tmp_path, clock):
    """Not among the narrow ones, which may take longer than wider ones."""
    runs = make_plan(budgets(tmp_path, {"ms": 6.1}, decoders=["bilinear", "deconv"])).runs
    assert [run.found["budget"]["width"] for run in runs] == [12, 12]


def test_a_time_is_taken_once_for_a_sweep_and_its_search(tmp_path, clock):
    """So that no second call changes a width, and so a key; nor one with fewer decoders, or the search's own plan."""
    tune = {"search": {"recipe.lr": [0.001, 0.002]}, "seeds": [5], "holdout": 0.4}
    config = budgets(tmp_path, {"ms": 6.1}, decoders=["bilinear", "deconv"], tune=tune)
    first = make_plan(config)
    before = len(clock)
    again = make_plan(config)
    fewer = make_plan(config.model_copy(update={"decoders": config.decoders[1:]}))
    assert len(clock) == before
    assert [run.key for run in again.runs] == [run.key for run in first.runs]
    assert [run.key for run in fewer.runs] == [run.key for run in first.runs if run.title == "deconv"]
    widths = {run.title: run.decoder.params["width"] for run in first.runs}
    assert all(run.decoder.params["width"] == widths[run.title] for run in first.search.runs)


def test_like_another_s_time(tmp_path, clock):
    runs = make_plan(budgets(tmp_path, {"like": "deconv", "by": "ms"}, decoders=["bilinear", "deconv"])).runs
    assert {run.found["budget"]["width"] for run in runs} == {8}
    assert {round(run.found["budget"]["asked"]) for run in runs} == {4}


def test_time_is_measured(tmp_path):
    """On this machine; a wider decoder takes longer, by more than such a machine's noise."""
    config = budgets(tmp_path, {"ms": 1.0}, decoders=["bilinear"])
    own = fitting._Costs(config, config.decoders[0], "ms", (CHANNELS, STRIDES, 7), ("cpu", 1))
    times = [own.at(width) for width in (8, 64, 192)]
    assert 0 < times[0] < times[1] < times[2]


def test_channels_that_come_in_groups_are_kept(tmp_path):
    plugin = tmp_path / "grouped.py"
    plugin.write_text(
        "from torch import nn\n\n\nclass Grouped(nn.Module):\n"
        "    def __init__(self, channels, scale, guide_channels):\n        super().__init__()\n"
        "        groups, scale = 4 if channels != 7 else 1, int(scale)\n"
        "        self.conv = nn.ConvTranspose2d(channels, channels, scale, scale, groups=groups)\n"
        "\n    def forward(self, x):\n        return self.conv(x)\n"
    )
    config = budgets(tmp_path, {"params": 30_000}, decoders=[f"{plugin}:Grouped"])
    [run] = make_plan(config).runs
    assert run.found["budget"]["width"] % 4 == 0
    assert run.found["budget"]["width"] > 4


def test_like_one_without_a_width_which_stays_as_it_is(tmp_path):
    """And has no difference from the budget to be said."""
    smp = {"name": "smp", "params": {"architecture": "fpn"}}
    runs = {run.title: run for run in make_plan(budgets(tmp_path, {"like": "smp"}, decoders=["bilinear", smp])).runs}
    assert runs["smp"].found == {}
    found = runs["bilinear"].found["budget"]
    assert found["cost"] == pytest.approx(found["asked"], rel=0.05)
    assert "width" not in runs["smp"].decoder.params


FAILS = """
from torch import nn

class Fails(nn.Module):
    def __init__(self, channels, scale, guide_channels):
        super().__init__()
        self.up = nn.Upsample(scale_factor=int(scale))
    def forward(self, x):
        if x.shape[1] {when}:
            raise RuntimeError("these channels are not mine")
        return self.up(x)
"""


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("not in (7, *range(0, 4096, 8))", None),
        ("not in (7, 8)", "budget: decoder 'Fails' cannot have other widths: RuntimeError: these channels are not"),
        ("> 100", "budget: decoder 'Fails' fails at width 128: RuntimeError: these channels are not mine"),
    ],
)
def test_a_decoder_that_fails_at_some_width_is_told_in_one_line(tmp_path, capsys, when, message):
    plugin = tmp_path / "fails.py"
    plugin.write_text(FAILS.replace("{when}", when))
    path = tmp_path / "tiny.yaml"
    given = tiny(budget={"macs": 5e9}, runs_dir=str(tmp_path / "runs"), decoders=[f"{plugin}:Fails"])
    path.write_text(yaml.safe_dump(given))
    if message is None:
        [run] = make_plan(build_config(given)).runs
        assert run.found["budget"]["width"] % 8 == 0
        return
    assert main(["sweep", str(path)]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert message in err[-1]
    assert "Traceback" not in "".join(err)


@pytest.mark.parametrize(
    ("budget", "changes", "message"),
    [
        ({"params": 10}, {}, "decoder 'bilinear' cannot cost 10 parameters: at width 1 it costs 55"),
        ({"macs": 6e6}, {}, "cannot cost 6 M multiply-accumulates: at width 1 it costs 10.3 M"),
        ({"macs": 1e8}, {"grid": {"decoder.width": [8, 9]}}, "decoder.width may change what a decoder costs"),
        (
            {"macs": 1e8},
            {"tune": {"search": {"decoder.init": ["a", "b"]}}},
            "decoder.init may change what a decoder costs",
        ),
        ({"macs": 1e17}, {}, "cannot cost 1e+08 G multiply-accumulates: at width 4096 it costs"),
        ({"like": "bilinaer"}, {}, "no decoder of the sweep is 'bilinaer' (did you mean 'bilinear'?); add it, or"),
        ({"macs": 1e8, "params": 5}, {}, "one of macs, params, ms and like should be given, not macs and params"),
        ({}, {}, "one of macs, params, ms and like should be given, not none"),
        ({"macs": 1e8, "by": "ms"}, {}, "by: ms is for like; macs says by itself which cost it is"),
        ({"macs": -1}, {}, "budget.macs should be"),
        ({"params": 1e5}, {"decoders": ["smp"]}, "decoder 'smp' has no parameter width"),
        (
            {"params": 1e5},
            {"decoders": ["bilinear", {"name": "bilinear", "label": "wide", "params": {"width": 99}}]},
            "are the same decoder with the same parameters, at the width that the budget gives; a sweep",
        ),
    ],
)
def test_a_budget_that_cannot_be_met_is_told_in_one_line(tmp_path, capsys, budget, changes, message):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny(budget=budget, runs_dir=str(tmp_path / "runs"), **changes)))
    assert main(["sweep", str(path)]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1
