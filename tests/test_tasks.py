"""Another task on the same features and skeleton: reconstruction, its scores, and both tasks in one sweep."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from scipy.stats import spearmanr
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from segbench import store
from segbench.cli import main
from segbench.config_file import build_config
from segbench.data import open_data
from segbench.measures.base import ImageSample
from segbench.measures.psnr import Psnr
from segbench.measures.ssim import Ssim
from segbench.report import across
from segbench.report.analysis import Analysis
from segbench.report.drawing import Look
from segbench.report.metrics import available
from segbench.report.page import write_report
from segbench.report.runs import read_sweep
from segbench.report.table import make_table
from segbench.sweep.plan import make_plan
from segbench.tasks.reconstruction import Reconstruction
from segbench.training.lockstep import Lockstep, Member
from tests.conftest import tiny
from tests.fakes import Reader
from tests.test_lockstep import IMAGES, LABELS, Head, RecipeConfig, lockstep, one_step
from tests.test_sweep import all_same, sweep

RNG = np.random.default_rng(0)
BOTH = ["segmentation", "reconstruction", {"name": "reconstruction", "params": {"factor": 2}}]


def pictures(number=3, size=(40, 56)):
    """(truth, something like it) in 8-bit colours."""
    found = []
    for _ in range(number):
        truth = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
        noise = RNG.normal(0, RNG.uniform(3, 40), truth.shape)
        found.append((truth, np.clip(truth + noise, 0, 255).astype(np.uint8)))
    return found


def as_tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


def test_psnr_is_torchmetrics():
    measure, pairs = Psnr(), pictures()
    counts = np.stack([measure.count(ImageSample(truth, made)) for truth, made in pairs])
    theirs = PeakSignalNoiseRatio(data_range=255.0)
    for truth, made in pairs:
        theirs.update(as_tensor(made), as_tensor(truth))
    assert measure.score(counts.sum(0))[0] == pytest.approx(float(theirs.compute()), abs=1e-4)
    truth, made = pairs[0]
    by_hand = 10 * np.log10(255**2 / np.mean((truth.astype(float) - made) ** 2))
    assert measure.score(counts)[0, 0] == pytest.approx(by_hand)
    assert np.isfinite(measure.score(measure.count(ImageSample(truth, truth))))


def test_ssim_is_torchmetrics():
    measure, pairs = Ssim(), [*pictures(), (np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 255, np.uint8))]
    counts = np.stack([measure.count(ImageSample(truth, made)) for truth, made in pairs])
    theirs = []
    for truth, made in pairs:
        metric = StructuralSimilarityIndexMeasure(data_range=255.0)
        theirs.append(float(metric(as_tensor(made), as_tensor(truth))))
    assert measure.score(counts)[:, 0] == pytest.approx(theirs, abs=2e-6)
    assert measure.score(counts.sum(0))[0] == pytest.approx(np.mean(theirs), abs=2e-6)


def test_an_image_of_another_shape_is_no_reconstruction():
    with pytest.raises(ValueError, match=r"prediction is \(4, 4, 3\) uint8, truth \(5, 4, 3\) uint8"):
        ImageSample(np.zeros((5, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_what_is_seen_is_the_mean_of_blocks_brought_back(factor):
    """By hand on a size that the factor divides; elsewhere the last block is filled up with the edge."""
    image = torch.from_numpy(RNG.integers(0, 256, (1, 3, 24, 36)).astype(np.uint8))
    means = image.float().reshape(1, 3, 24 // factor, factor, 36 // factor, factor).mean((3, 5))
    wanted = F.interpolate(means, (24, 36), mode="bicubic", align_corners=False).round().clamp(0, 255).byte()
    assert torch.equal(Reconstruction(factor).seen(image), wanted)
    cut = image[..., :-1, :]
    filled, seen = torch.cat([cut, cut[..., -1:, :]], 2), Reconstruction(factor).seen(cut)
    assert torch.equal(seen, Reconstruction(factor).seen(filled)[..., :-1, :])
    assert (seen.shape, seen.dtype) == (cut.shape, torch.uint8)
    assert torch.equal(Reconstruction(1).seen(image), image)


def test_the_loss_is_the_mean_absolute_error_of_the_colours():
    recipe = RecipeConfig(steps=10)
    base = lockstep(recipe)
    module = Lockstep(base.encoder, {"a": Member(Head(), recipe)}, recipe, seed=0, task=Reconstruction(2))
    seen = Reconstruction(2).seen(IMAGES)
    x = (seen.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        output = module.members["a"].decoder(module.encoder(x), x)
    one_step(module, IMAGES, LABELS)
    wanted = (output - IMAGES.float() / 255).abs().mean()  # of what was not seen, and void pixels count too
    assert module.members["a"].history[0]["loss"] == pytest.approx(float(wanted), rel=1e-5)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("tasks")
    values = tiny(
        decoders=["bilinear", "nearest", "deconv"],
        seeds=[0, 1],
        grid={"task": BOTH},
        measures=[{"name": "biou", "params": {"ratio": 0.01}}],
        runs_dir=str(tmp_path),
    )
    config = build_config(values)
    _, code, out = sweep(config)
    assert code == 0, out
    return values, make_plan(config).folder


def test_one_sweep_runs_both_tasks(both):
    _, folder = both
    rows = {}
    for planned in store.read_plan(folder)["runs"]:
        result = store.read_result(folder / planned["folder"])
        rows.setdefault(str(planned["variant"]["task"]), []).append(result)
        segments = planned["variant"]["task"] == "segmentation"
        assert ("region" in result.counts, "psnr" in result.counts) == (segments, not segments)
        assert ("miou" in [m["name"] for m in result.row["measures"]]) == segments
        assert "macs" in result.row["values"]
        assert result.row["broken"] == {}
    assert [len(results) for results in rows.values()] == [6, 6, 6]
    assert rows[str(BOTH[2])][0].row["task_params"] == {"factor": 2}
    table = make_table(folder)
    assert [str(row["task"]) for row in table.rows[::3]] == [
        "segmentation",
        "reconstruction",
        "reconstruction factor 2",
    ]
    for row in table.rows:
        segments = row["task"] == "segmentation"
        assert (row["mIoU"] is None, row["PSNR"] is None, row["BIoU 0.01 (1px)"] is None) == (
            not segments, segments, not segments,
        )  # fmt: skip
    assert table.rows[4]["Δ PSNR"].mean == pytest.approx(table.rows[4]["PSNR"].mean - table.rows[3]["PSNR"].mean)


def test_segmentation_beside_another_task_is_as_alone(both, tmp_path):
    """The same runs by key, bit for bit, as those of a sweep that names no task."""
    values, folder = both
    alone = build_config({k: v for k, v in values.items() if k != "grid"} | {"runs_dir": str(tmp_path)})
    results, _, _ = sweep(alone)
    planned = [p for p in store.read_plan(folder)["runs"] if p["variant"]["task"] == "segmentation"]
    beside = {(p["decoder"], p["seed"]): store.read_result(folder / p["folder"]) for p in planned}
    assert {r.row["key"] for r in results.values()} == {r.row["key"] for r in beside.values()}
    assert all_same(results, beside)


def test_scores_are_those_of_what_the_decoder_puts_out(tmp_path):
    """A decoder that puts out one colour everywhere: PSNR by hand, from the images alone."""
    plugin = tmp_path / "grey.py"
    plugin.write_text(
        "import torch\nfrom torch import nn\nfrom segbench.decoders.base import Decoder\n\n\n"
        "class Grey(Decoder):\n    def __init__(self, channels, strides, num_classes):\n"
        "        super().__init__(channels, strides, num_classes)\n        self.own = nn.Parameter(torch.zeros(1))\n"
        "        self.number = num_classes\n\n    def forward(self, features, image):\n"
        "        return 0.4 + 0 * self.own + image.new_zeros(len(image), self.number, *image.shape[2:])\n"
    )
    values = tiny(decoders=[f"{plugin}:Grey"], task="reconstruction", runs_dir=str(tmp_path / "runs"))
    config = build_config(values)
    results, code, _ = sweep(config)
    assert code == 0
    data = open_data(config.data, "val")
    off = np.stack([data.read(i)[0].astype(float) - 102 for i in range(len(data))])
    measure = Psnr()
    counts = results["Grey", 0].counts["psnr"]
    assert measure.score(counts.sum(0))[0] == pytest.approx(10 * np.log10(255**2 / (off**2).mean()))
    assert counts[:, 1, 0].tolist() == [64 * 64 * 3] * 3


def test_kept_features_are_shared_where_the_encoder_sees_the_same(tmp_path):
    values = tiny(
        decoders=["nearest"], recipe={"views": 2}, launch={"features": str(tmp_path / "kept")}, grid={"task": BOTH},
        runs_dir=str(tmp_path / "runs"),
    )  # fmt: skip
    _, code, out = sweep(build_config(values))
    assert code == 0, out
    kinds = sorted(p.name.partition("-")[0] for p in (tmp_path / "kept").iterdir() if p.is_dir())
    assert kinds == ["train", "train", "val", "val"]  # of images as they are, and of reduced ones


def test_views_are_averaged(tmp_path):
    """Mirrored, and at two sizes: a finite score, unlike that of one view."""
    scores = []
    for evaluation in ({}, {"flip": True, "scales": [1.0, 0.5]}):
        values = tiny(
            decoders=["nearest"],
            task="reconstruction",
            evaluation=evaluation,
            runs_dir=str(tmp_path / str(len(scores))),
        )
        results, code, out = sweep(build_config(values))
        assert code == 0, out
        scores.append(Psnr().score(results["nearest", 0].counts["psnr"].sum(0))[0])
    assert scores[0] != scores[1]
    assert np.isfinite(scores).all()


def test_the_page_plots_one_task_against_the_other(both, tmp_path):
    _, folder = both
    sweep = read_sweep(folder)
    text = write_report(folder, tmp_path / "report.html", gallery=False).path.read_text()
    assert [f'data-figure="g{i}-across"' in text for i in range(3)] == [False, True, True]
    assert "reconstruction from images reduced 2 times" in text
    tables = [t for t in Reader(text).tables if any(cell["text"].strip() == "PSNR" for cell in t[0])]
    heads = [[cell["text"].strip() for cell in table[1]] for table in tables]
    assert [(h.count("mean ± sd"), h.count("Δ from bilinear")) for h in heads] == [(2, 2), (2, 2)]  # and SSIM
    group, other = sweep.groups[2], sweep.groups[0]
    assert across.beside(sweep, group) is other
    assert across.beside(sweep, other) is None
    [plot] = across.against_segmentation(sweep, group, Look(group.decoders, "bilinear"), "")
    assert [axes.get_ylabel() for axes in plot.figure.axes] == ["BIoU 0.02 (2px), %", "mIoU, %"]
    psnr = next(Analysis(group, m) for m in available(list(group.results.values())) if m.name == "psnr")
    miou = next(Analysis(other, m) for m in available(list(other.results.values())) if m.name == "miou")
    means = [[a.cell(d).mean for d in group.decoders] for a in (psnr, miou)]
    wanted = spearmanr(*means).statistic
    said = across.rank_correlation(psnr, miou, group.decoders)
    assert said.startswith(f"{wanted:+.2f} [")
    assert f"mIoU: {said}." in plot.caption


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "reconstrution"}, "unknown task 'reconstrution' (did you mean 'reconstruction'?)"),
        ({"task": {"name": "reconstruction", "params": {"factor": 5}}}, "factor should be 1, 2, 3 or 4, not 5"),
        (
            {"task": "reconstruction", "recipe": {"class_weights": [1.0] * 7}},
            "recipe.class_weights is for segmentation",
        ),
        ({"task": "reconstruction", "evaluation": {"label_size": 32}}, "evaluation.label_size is for segmentation"),
        (
            {"task": "reconstruction", "measures": ["miou"]},
            "measure 'miou' is of task segmentation; the sweep has recon",
        ),
        ({"measures": ["psnr"]}, "measure 'psnr' is of task reconstruction; the sweep has segmentation"),
    ],
)
def test_what_does_not_fit_a_task_is_told_in_one_line(tmp_path, capsys, changes, message):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny(runs_dir=str(tmp_path / "runs"), **changes)))
    assert main(["sweep", str(path)]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1


def test_labels_are_exported_and_varied_of_segmentation_alone(both, capsys):
    _, folder = both
    [run, *_] = [p["folder"] for p in store.read_plan(folder)["runs"] if p["variant"]["task"] == "reconstruction"]
    for command in ("export", "evaluate"):
        assert main([command, str(folder / run)]) == 2
        err = capsys.readouterr().err.strip()
        assert "is a run of task reconstruction" in err
        assert len(err.splitlines()) == 1


def test_tuning_chooses_by_a_measure_of_the_task(tmp_path):
    tune = {"search": {"recipe.lr": [0.001, 0.01]}, "holdout": 0.4, "measure": "psnr"}
    values = tiny(decoders=["nearest"], task="reconstruction", tune=tune, runs_dir=str(tmp_path))
    _, code, out = sweep(build_config(values))
    assert code == 0, out
    [row] = [r for r in store.read_plan(tmp_path / "tiny")["runs"] if "choice" in r]
    assert row["choice"]["measure"] == "psnr"
