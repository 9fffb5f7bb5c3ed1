"""`segbench evaluate`: the same weights under several evaluations."""

import csv
import io
import json

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image

from segbench import store
from segbench.config import EvaluationConfig
from segbench.config_file import build_config
from segbench.data.base import VOID
from segbench.encoders.base import Encoder
from segbench.errors import UserError
from segbench.evaluate import evaluate
from segbench.export import export, for_submission, load_run, predictions
from segbench.measures.base import iou, mean_over_classes
from segbench.report import gallery, stats
from segbench.report.formats import cell_text
from segbench.report.runs import read_sweep
from segbench.report.table import make_table
from segbench.training.prediction import predict
from segbench.vary import Asked, finished_runs, fitting, varied
from tests.conftest import segbench, tiny
from tests.test_sweep import sweep

SIZE = (70, 100)  # of the images: no multiple of 32
DATA = {"size": SIZE, "val": 4}
RECIPE = {"steps": 12, "crop": 48}


def config_of(folder, **changes):
    values = {"decoders": ["bilinear", "deconv"], "seeds": [0, 1], "data": DATA, "recipe": RECIPE} | changes
    return build_config(tiny(runs_dir=str(folder / "runs"), **values))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Two decoders, two seeds, evaluated as is usual."""
    results, code, out = sweep(config_of(tmp_path_factory.mktemp("plain")))
    assert code == 0, out
    return results


@pytest.fixture(scope="module")
def cropped(tmp_path_factory):
    """The same trainings, evaluated on the centre with shrunk labels."""
    evaluation = {"mode": "crop", "window": [40, 60], "label_size": 30}
    results, code, out = sweep(config_of(tmp_path_factory.mktemp("cropped"), evaluation=evaluation))
    assert code == 0, out
    return results


def run(results, vary, images=None, overrides=()):
    found, unfinished = finished_runs([results["bilinear", 0].folder.parent])
    asked = Asked.read(found[0].folder, vary, overrides, images)
    return evaluate(found, asked, unfinished, lambda done, total: None)


def by_row(table):
    return {(row["evaluation"], row["decoder"]): row for row in table.rows}


def test_what_a_run_counts_is_what_it_is_counted_at_by_hand(plain, cropped):
    """The trainings are the same; the counts are those of the plain run's logits, cut and shrunk by hand."""
    window, size = np.s_[15:55, 20:80], (20, 30)
    rows, columns = (np.array([int((i + 0.5) * 2) for i in range(n)]) for n in size)
    for key, result in cropped.items():
        made = load_run(plain[key].folder)
        regions = []
        for index in range(4):
            pixels, labels = made.dataset.read(index)
            pixels, labels = np.ascontiguousarray(pixels[window]), labels[window][rows][:, columns]
            [(_, found)] = predict(made.encoder, {"": made.decoder}, pixels, EvaluationConfig())
            logits = F.interpolate(found.scores[None], size, mode="bilinear", align_corners=False)[0]
            predicted, inside = logits.argmax(0).numpy(), labels != VOID
            k = np.arange(7)[:, None, None]
            there, said = (labels == k) & inside, (predicted == k) & inside
            regions.append([(there & said).sum((1, 2)), said.sum((1, 2)), there.sum((1, 2))])
        assert np.array_equal(result.counts["region"], regions)
        assert result.counts["sizes"].tolist() == [[20, 30]] * 4
        assert result.row["evaluation"]["label_size"] == 30
        assert result.row["evaluation_title"] == "centre crop 40x60, labels at 30 px"
    table = make_table(cropped["bilinear", 0].folder.parent)
    assert table.title.endswith("12 steps, centre crop 40x60, labels at 30 px")
    assert "BIoU 0.02 (1px)" in table.headings


@pytest.fixture(scope="module")
def table(plain):
    return run(plain, ["label_size=[null,50]", "evaluation=[{mode: crop, window: [40, 60], label_size: 30}]"])


def test_the_runs_own_evaluation_gives_what_they_counted(plain, table):
    own = {row["decoder"]: row for row in make_table(plain["bilinear", 0].folder.parent).rows}
    rows = by_row(table)
    assert len(rows) == 3 * 2  # label_size: null is the runs' own
    for decoder in ("bilinear", "deconv"):
        row = rows["whole images (own)", decoder]
        assert row["mIoU"] == own[decoder]["mIoU"]
        assert row["n"] == 2
        assert row["counted at"] == "70x100"
        assert row["Δ mIoU"] is None
    assert "Predicted anew, the runs' own evaluation gives the counts that they have." in table.notes


def test_rows_and_differences_are_those_of_runs_that_were_evaluated_so(plain, cropped, table):
    """A crop's counts stand in runs of their own; score, interval and paired difference follow from both runs'."""
    rows = by_row(table)
    for name, heading in (("region", "mIoU"), ("biou@0.02", "BIoU 0.02 (1-2px)")):
        for decoder in ("bilinear", "deconv"):
            counts = np.stack([np.stack([r[decoder, s].counts[name] for s in (0, 1)]) for r in (plain, cropped)])
            measured = stats.measure(counts, lambda c: 100 * iou(c))
            interval = stats.intervals(measured, (0, 100))[1][-1]
            difference = stats.differences(measured, 0, (0, 100))[1][-1]
            row = rows["centre crop 40x60, labels at 30 px", decoder]
            cell, delta = row[heading], row[f"Δ {heading}"]
            each = [100 * mean_over_classes(iou(counts[1, s].sum(0))) for s in (0, 1)]
            assert cell.mean == pytest.approx(np.mean(each))
            assert cell.sd == pytest.approx(np.std(each, ddof=1))
            assert (cell.low, cell.high) == pytest.approx((interval.low, interval.high))
            assert row[f"{heading} 95 %"] == (cell.low, cell.high)
            assert (delta.mean, delta.low, delta.high, delta.p) == pytest.approx(
                (difference.value, difference.low, difference.high, difference.p)
            )
            assert delta.p <= delta.p_holm <= 2 * delta.p + 1e-12  # of two evaluations
            assert row["counted at"] == "20x30"
    assert table.scores == []  # none is marked as the best


def test_one_encoder_pass_serves_all_decoders_seeds_and_label_sizes(plain, monkeypatch):
    passes = []
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x: passes.append(x.shape) or forward(self, x))
    found = run(plain, ["label_size=[50,30,10]", "flip=[true]"])
    looked = [p for p in passes if tuple(p[-2:]) == (96, 128)]  # building an encoder takes passes of its own
    assert len(looked) == 4 * (1 + 2)  # images; whole at four sizes, and whole and mirrored
    assert len(found.rows) == 5 * 2


def test_a_decoder_alone_gets_the_same_row(plain, table):
    results, _ = finished_runs([plain["deconv", 0].folder, plain["deconv", 1].folder])
    asked = Asked.read(results[0].folder, ["label_size=[50]"], [], None)
    alone = by_row(evaluate(results, asked, [], lambda done, total: None))
    for row in ("whole images (own)", "labels at 50 px"):
        for heading in ("mIoU", "BIoU 0.02 (1-2px)"):
            assert alone[row, "deconv"][heading] == by_row(table)[row, "deconv"][heading]


def test_a_part_of_the_images_is_said(plain):
    found = run(plain, ["flip=[true]"], images=2)
    assert "2 of 4 images" in found.title
    assert "2 of the 4 images, evenly spread over the split." in found.notes
    counts = np.stack([plain["deconv", s].counts["region"][[0, 3]].sum(0) for s in (0, 1)])
    cell = by_row(found)["whole images (own)", "deconv"]["mIoU"]
    assert cell.mean == pytest.approx(100 * mean_over_classes(iou(counts)).mean())
    one = run(plain, ["flip=[true]"], images=1)
    assert "One image: no interval can be made." in one.notes
    assert np.isnan(by_row(one)["flip", "deconv"]["mIoU"].low)
    other = run(plain, ["flip=[true]"], overrides=["data.val=2"])
    assert "These are not the images that the runs were evaluated on." in other.notes
    for override in (
        "encoder.params.blocks=[3]",
        "encoder.dtype=float16",
        "recipe.steps=3",
        "seeds=[0]",
        "skeleton=linear",
    ):
        with pytest.raises(UserError, match=r"would make another run of .*; here only these may differ: data, launch"):
            run(plain, ["flip=[true]"], overrides=[override])


def test_a_decoder_that_fails_under_one_evaluation_leaves_a_hole_there_alone(plain, monkeypatch):
    from segbench import evaluate as module

    def load(folder, *args):
        made = load_run(folder, *args)
        if folder == plain["deconv", 1].folder:
            made.decoder.register_forward_pre_hook(small)
        return made

    def small(decoder, inputs):
        if inputs[1].shape[-1] == 64:
            raise RuntimeError("too small for me")

    monkeypatch.setattr(module, "load_run", load)
    found = run(plain, ["scales=[0.5]", "flip=[true]"])  # 35x50 is padded to 64x64
    monkeypatch.undo()
    expected, rows = by_row(run(plain, ["scales=[0.5]", "flip=[true]"])), by_row(found)
    hole = rows["scales 0.5", "deconv"]
    assert cell_text(found, hole, "mIoU") == "1 of 2 runs"
    assert (hole["n"], hole["Δ mIoU"].verdict) == (1, "")
    assert "deconv-s1 fails under 'scales 0.5': RuntimeError: too small for me." in found.notes
    assert rows["scales 0.5", "bilinear"] == expected["scales 0.5", "bilinear"]
    assert rows["flip", "deconv"]["mIoU"] == expected["flip", "deconv"]["mIoU"]
    assert rows["flip", "deconv"]["Δ mIoU"].p == expected["flip", "deconv"]["Δ mIoU"].p


@pytest.mark.slow
def test_a_trained_encoder_is_each_run_s_own(tmp_path):
    results, code, out = sweep(config_of(tmp_path, seeds=[0], encoder={"trainable": True}))
    assert code == 0, out
    found = run(results, ["flip=[true]"])
    assert "Predicted anew, the runs' own evaluation gives the counts that they have." in found.notes
    assert "fine-tuned" in found.title
    assert "One seed" in found.notes[0]


@pytest.mark.slow
def test_through_the_command_line(plain, tmp_path):
    folder = plain["bilinear", 0].folder.parent
    runs = folder.parent
    done = segbench(
        "evaluate",
        "tiny",
        "--vary",
        "mode=[whole,slide,crop]",
        "--format",
        "json",
        "launch.threads=1",
        "--runs-dir",
        runs,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    titles = ["whole images (own)", "slide 48x48 by 32x32", "centre crop 48x48"]  # the training crop
    assert [row["evaluation"] for row in rows] == [t for t in titles for _ in range(2)]
    out = tmp_path / "table.csv"
    done = segbench("evaluate", plain["deconv", 1].folder, "--out", out)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [line["evaluation"] for line in lines] == [
        "whole images (own)", "resized to fit", "flip", "scales 0.75 1 1.25", "slide 48x48 by 32x32",
        "centre crop 48x48",
    ]  # fmt: skip
    assert {line["decoder"] for line in lines} == {"deconv"}
    assert float(lines[0]["mIoU"]) == pytest.approx(
        100 * mean_over_classes(iou(plain["deconv", 1].counts["region"].sum(0)))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "labelsize=[9]"], "unknown key of evaluation to vary 'labelsize' (did you mean 'label_size'?)"),
        (
            ["--vary", "label_size=[-1]"],
            "--vary label_size=[-1]: evaluation.label_size should be greater than 0, not -1",
        ),
        (["--vary", "evaluation=[{windw: 3}]"], "unknown key 'evaluation.windw' (did you mean 'window'?)"),
        (["--vary", "evaluation=[{mode: crop, window: 80}]"], "a crop of 80x80 is larger than image val-00000"),
        (["--vary", "window=[50]"], "window and stride are for mode: slide"),
        (["--vary", "flip"], "--vary flip: it should look like KEY=[VALUE,...]"),
        (["--images", "0"], "--images should be 1 or more, not 0"),
        (["evaluation.flip=true"], "'evaluation.flip=true' would change the runs' own evaluation; --vary"),
        (["--out", "x.txt"], "--out x.txt: its name should end in .md"),
        (["no/such/run"], "no/such/run holds no finished run (result.json is missing)"),
    ],
)
def test_mistakes_are_named_in_one_line(plain, arguments, message, capsys):
    from segbench.cli import main

    assert main(["evaluate", str(plain["bilinear", 0].folder), *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert said[-1].startswith("segbench: ")


def test_runs_that_do_not_go_together_are_named(plain, cropped, tmp_path):
    own = plain["bilinear", 0].folder
    with pytest.raises(UserError, match="different evaluations of their own .whole images; centre crop 40x60, labels"):
        finished_runs([own, cropped["bilinear", 0].folder])
    results, code, out = sweep(config_of(tmp_path, seeds=[0], encoder={"weights": "none"}))
    assert code == 0, out
    with pytest.raises(UserError, match="share no encoder and data: rows with different encoder_hash"):
        finished_runs([own, results["bilinear", 0].folder])
    (results["deconv", 0].folder / store.RESULT).unlink()
    found, unfinished = finished_runs([results["bilinear", 0].folder.parent] * 2)
    assert [r.row["decoder"] for r in found] == ["bilinear"]
    assert unfinished == ["deconv-s0"]
    (results["bilinear", 0].folder / store.RESULT).unlink()
    with pytest.raises(UserError, match="no run of .* is finished"):
        finished_runs([results["bilinear", 0].folder.parent])


def changes(config, item):
    own = config.evaluation.model_dump()
    return [{k: v for k, v in e.model_dump().items() if v != own[k]} for e in varied(config, item)]


def test_what_a_value_needs_beside_it(tmp_path):
    config = config_of(tmp_path, evaluation={"mode": "slide", "window": 40, "stride": 30})
    assert changes(config, "mode=[slide, whole]") == [{}, {"mode": "whole", "window": None, "stride": None}]
    assert changes(config, "evaluation.window=[20]") == [{"window": (20, 20), "stride": None}]
    assert changes(config, "mode=crop") == [{"mode": "crop", "stride": None}]
    assert changes(config, "scales=[0.5,1]") == [{"scales": [0.5, 1.0]}]
    assert changes(config, "scales=[[0.5],[2]]") == [{"scales": [0.5]}, {"scales": [2.0]}]
    edge = config_of(tmp_path, evaluation={"padding": "replicate"})
    assert changes(edge, "fit=[resize]") == [{"fit": "resize", "padding": "mean"}]
    assert changes(edge, "mode=[slide]") == [{"mode": "slide", "window": (48, 48)}]
    assert changes(edge, "fit=[pad]") == [{}]


@pytest.mark.parametrize(
    ("sizes", "titles"),
    [
        ([(360, 480), (500, 300)],
         ["labels at 448 px", "labels at 224 px", "labels at 100 px", "resized to fit", "flip", "scales 0.75 1 1.25",
          "slide 256x256 by 171x171", "centre crop 256x256"]),
        ([(256, 256)], ["labels at 224 px", "labels at 100 px", "flip", "scales 0.75 1 1.25"]),
        ([(300, 200)], ["labels at 224 px", "labels at 100 px", "resized to fit", "flip", "scales 0.75 1 1.25",
                        "slide 256x256 by 171x171"]),
    ],
)  # fmt: skip
def test_the_default_set_fits_the_data(tmp_path, sizes, titles):
    config = config_of(tmp_path, recipe={"steps": 4, "crop": 256})
    assert [e.title for e in fitting(config, np.array(sizes), 32)] == titles


@pytest.mark.parametrize(
    ("own", "titles"),
    [
        ({"fit": "resize"}, ["", "flip, resized to fit", "scales 0.75 1 1.25, resized to fit",
                             "slide 256x256 by 171x171, resized to fit", "centre crop 256x256, resized to fit"]),
        ({"mode": "slide", "window": 256, "flip": True},
         ["slide 256x256 by 171x171, flip, resized to fit", "slide 256x256 by 171x171",
          "slide 256x256 by 171x171, flip, scales 0.75 1 1.25", "flip", "centre crop 256x256, flip"]),
        ({"mode": "crop", "window": 256, "scales": [2]},
         ["centre crop 256x256, scales 2, resized to fit", "centre crop 256x256, flip, scales 2",
          "centre crop 256x256", "scales 2", "slide 256x256 by 171x171, scales 2"]),
    ],
)  # fmt: skip
def test_the_default_set_has_what_is_not_the_runs_own(tmp_path, own, titles):
    config = config_of(tmp_path, recipe={"steps": 4, "crop": 256}, evaluation=own)
    found = [e for e in fitting(config, np.array([(360, 480)]), 32) if e.label_size is None]
    assert [e.title for e in found] == titles


@pytest.mark.slow
def test_export_writes_whole_images(plain, cropped, tmp_path):
    folder = cropped["bilinear", 0].folder
    done = segbench("export", folder, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    said = "whole images are written, at their own size; the run was counted with centre crop 40x60, labels at 30 px"
    assert said in done.stderr.splitlines()
    assert "counted" not in done.stdout
    region = export(load_run(plain["bilinear", 0].folder), tmp_path / "plain")
    assert np.array_equal(region, export(load_run(folder), tmp_path / "again"))
    for path in (tmp_path / "plain").iterdir():
        for other in ("out", "again"):
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(tmp_path / other / path.name)))
        assert np.asarray(Image.open(path)).shape == SIZE
    own = load_run(plain["bilinear", 0].folder)
    assert for_submission(own) == (own, "")


def test_predictions_and_gallery_are_as_they_were_counted(cropped):
    made = load_run(cropped["deconv", 1].folder)
    for index, pixels, labels, predicted in predictions(made):
        assert pixels.shape == (40, 60, 3)
        right = labels[(labels == predicted) & (labels != VOID)]
        found = np.bincount(right, minlength=7)
        assert np.array_equal(found, cropped["deconv", 1].counts["region"][index, 0])
    notes = []
    group = read_sweep(cropped["deconv", 0].folder.parent).groups[0]
    shown = gallery._predict(group, [0, 2], [], notes, lambda what: None)
    assert notes == []
    assert shown.images[2][0].shape == (40, 60, 3)
    assert shown.images[2][1].shape == shown.predicted["deconv"][2].shape == (20, 30)
