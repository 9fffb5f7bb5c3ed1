"""Diagnosis measures in sweeps: every kind of decoder has all of them, in the table and on the page."""

import ast

import numpy as np
import pytest

from segbench.columns import make_measure
from segbench.config_file import build_config
from segbench.decoders.smp import SHIPPED
from segbench.registry import UPSAMPLERS
from segbench.report.metrics import available
from segbench.report.page import slug, write_report
from segbench.report.table import make_table
from segbench.upsamplers.base import is_one_shot
from tests.conftest import ROOT, tiny
from tests.test_sweep import sweep

ASKS = """
import numpy as np, torch
from segbench.measures.base import CountMeasure, iou

class Asks(CountMeasure):
    def count(self, sample):
        model = sample.model
        if type(model).__name__ == "_Drawn":
            return sample.region
        found = model.probabilities
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
        assert np.array_equal(np.where(sample.truth.inside, found.argmax(0), 255), sample.prediction.labels)
        assert np.array_equal(model.predict(model.pixels), found.argmax(0))
        assert not np.array_equal(model.predict(255 - model.pixels), found.argmax(0))
        logits = model.decoder(model.features, model.image)
        assert not logits.requires_grad and logits.shape[2:] == (96, 96)
        assert model.stride == 4 and model.classes[1] == "disc"
        up = model.upsampling
        assert up.ratio == 4 and torch.equal(up.call(up.x, up.guide), logits)
        start, now = model.initial.state_dict(), model.decoder.state_dict()
        assert start.keys() == now.keys() and model.initial is model.initial
        assert not torch.equal(start["classifier.weight"], now["classifier.weight"])
        assert not model.initial.training and not torch.is_grad_enabled()
        return sample.region
    def score(self, counts):
        return 100 * iou(counts)
"""


def test_a_measure_can_ask_for_all_of_the_model(tmp_path):
    """Each assertion is the plug-in's; one that failed would stand in ``broken``."""
    (tmp_path / "asks.py").write_text(ASKS)
    changes = {"data": {"size": 96}, "decoders": ["bilinear", "deconv", "sapa"], "recipe": {"steps": 8, "lr": 0.01}}
    changes |= {"runs_dir": str(tmp_path / "runs"), "measures": [f"{tmp_path}/asks.py:Asks"]}
    results, code, out = sweep(build_config(tiny(**changes)))
    assert code == 0, out
    for result in results.values():
        assert result.row["broken"] == {}
        assert np.array_equal(result.counts["Asks"], result.counts["region"])


def test_measures_import_nothing_of_segbench_but_their_folder():
    for file in (ROOT / "segbench/measures").glob("*.py"):
        imports = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
        names = [getattr(n, "module", None) or n.names[0].name for n in imports]
        assert all(n.startswith("segbench.measures.") for n in names if n.startswith("segbench")), file


EVERY = [
    "shift",
    "spectrum",
    "checkerboard",
    {"name": "checkerboard", "params": {"at": "start"}},
    "equivariance",
    {"name": "equivariance", "params": {"px": 1}},
    "kernel",
    "calibration",
    {"name": "calibration", "params": {"where": "inside"}},
    {"name": "ceiling", "params": {"by": "mean"}},
    {"name": "cldice", "params": {"classes": ["line", "ring"]}},
    {"name": "thin", "params": {"by": "iou"}},
]
KINDS = {
    "pyramid": {
        "decoders": ["bilinear", "subpixel", "carafe", "sapa", {"name": "smp", "params": {"architecture": "fpn"}}]
    },
    "linear": {"skeleton": "linear", "decoders": ["bilinear", "jafar", {"name": "smp", "label": "unet"}]},
    "vit": {
        "encoder": {"name": "vit_small_patch14_dinov2", "weights": "none", "params": {"blocks": [0, 1]}},
        "decoders": ["bilinear", "deconv", "carafe"],
    },
}


@pytest.fixture(scope="module", params=KINDS)
def swept(request, tmp_path_factory):
    """A sweep with all measures, of each kind of decoder."""
    runs = tmp_path_factory.mktemp("runs")
    config = build_config(tiny(runs_dir=str(runs), measures=EVERY, **KINDS[request.param]))
    results, code, out = sweep(config)
    assert code == 0, out
    return runs / "tiny", results


@pytest.fixture(scope="module")
def page(swept):
    return write_report(swept[0], gallery=False).path.read_text("utf-8")


def test_every_kind_of_decoder_has_every_measure(swept):
    _, results = swept
    names = {m.name for m in available(list(results.values()))}
    assert {m.partition("@")[0] for m in names} >= {e if isinstance(e, str) else e["name"] for e in EVERY}
    for (decoder, _), result in results.items():
        assert result.row["broken"] == {}, decoder
        assert all(name in result.counts for name in names - {"miou", "accuracy"}), decoder


def test_phases_of_resized_images_are_left_out_and_the_table_says_why(tmp_path):
    config = build_config(tiny(runs_dir=str(tmp_path / "runs"), evaluation={"resize": 96}))
    results, code, out = sweep(config)
    assert code == 0, out
    assert all("phase_error" not in r.counts and "distance_error@2" in r.counts for r in results.values())
    [note] = [note for note in make_table(tmp_path / "runs" / "tiny").notes if note.startswith("Missing")]
    assert note.startswith("Missing: all runs: measure 'phase_error' fails on image ")
    assert "cells of stride 4 are no blocks of the labels' pixels: images or labels are resized" in note


ONE_SHOT = [name for name in UPSAMPLERS.builtin() if is_one_shot(UPSAMPLERS.load(name))]
STEPWISE = [name for name in UPSAMPLERS.builtin() if name not in ONE_SHOT]
SMP = [{"name": "smp", "label": f"smp_{name}", "params": {"architecture": name}} for name in SHIPPED]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("skeleton", "decoders"), [("pyramid", [*STEPWISE, "ifa", *SMP]), ("linear", ONE_SHOT)], ids=["pyramid", "linear"]
)
def test_every_built_in_decoder_has_every_measure(skeleton, decoders, make_config):
    """Values, not only columns; those of what is upsampled alone where a decoder has that."""
    config = make_config(data={"val": 1}, skeleton=skeleton, decoders=decoders, measures=EVERY)
    results, code, out = sweep(config)
    assert code == 0, out
    assert len(results) == len(decoders)
    still = []
    for (decoder, _), result in results.items():
        assert result.row["broken"] == {}, decoder
        alone = decoder in UPSAMPLERS.builtin()
        for metric in available([result]):
            if metric.name.partition("@")[0] in ("equivariance", "kernel"):
                assert np.isfinite(metric.mean(result)) == alone, (decoder, metric.name)
            elif metric.name == "spectrum" and not result.counts["spectrum"][:, :2].all():
                still.append(decoder)  # so early it may predict one constant, which has no power
            else:
                assert np.isfinite(metric.mean(result)), (decoder, metric.name)
    assert len(still) <= 3, still


def test_every_measure_is_on_the_page_with_a_plot_and_in_the_table(swept, page):
    folder, results = swept
    figures = {p.stem for p in (folder / "figures").iterdir()}
    assert 'id="g0-diagnosis"' in page
    for metric in available(list(results.values())):
        if metric.measure.axis or metric.measure.plotted:
            assert slug(metric.name) in figures
            assert f'data-figure="{slug(metric.name)}"' in page
            row = make_table(folder, [metric.name], columns=["score", "ci"]).rows[0]
            assert row[metric.column].mean == pytest.approx(metric.mean(results[row["decoder"], 0]), nan_ok=True)
    assert "phase_error-picture" not in figures
    assert "phase-error-picture" in figures


def test_what_is_counted_at_another_stride_is_shown_and_not_compared(swept):
    folder, results = swept
    row = next(
        (r for r in make_table(folder, ["phase_error"], columns=["score", "ci"]).rows if r["decoder"] == "unet"), None
    )
    if row is not None:  # beside decoders of stride 16
        assert row["phase err."].mean == make_measure("phase_error", {}).score(
            results["unet", 0].counts["phase_error"].sum(0)
        )
        assert np.isnan(row["phase err."].low)


def test_images_that_are_too_small_lose_the_column_in_one_line(make_config):
    results, code, out = sweep(
        make_config(decoders=["nearest"], measures=[{"name": "shift", "params": {"stride": 32}}])
    )
    assert code == 0, out
    (result,) = results.values()
    (said,) = result.row["broken"].values()
    assert ": an image of 64x64 is too small for shifts by up to 31 px of stride 32" in said
    assert "\n" not in said


def test_a_ceiling_is_the_same_for_every_decoder_and_drawn_once(swept, page):
    _, results = swept
    counts = [result.counts["ceiling@4,majority"] for result in results.values()]
    assert all(np.array_equal(counts[0], other) for other in counts)
    assert "The same for all decoders." in page
