"""Published protocols as sweep files: each line has its source, and each file trains."""

import re

import pytest
import yaml

from segbench.config_file import load_config
from segbench.measures.base import iou, mean_over_classes
from tests.conftest import ROOT
from tests.test_sweep import sweep

FILES = sorted((ROOT / "configs" / "protocols").glob("*.yaml"))
# What makes them small enough to be tried on drawn scenes; the rest is as published.
SMALL = [
    "data.name=shapes", "data.root=null", "data.train_split=train", "encoder.weights=none", "recipe.steps=8",
    "recipe.batch_size=2", "recipe.crop=32", "launch.jobs=1", "launch.threads=1", "seeds=[0]",
    "recipe.resize=64", "evaluation.resize=64",
]  # fmt: skip
OWN = {
    "dinov2-linear": ["recipe.warmup_steps=2", "evaluation.window=32", "evaluation.stride=24", "evaluation.every=2"],
    "dinov3-linear": ["recipe.warmup_steps=2", "evaluation.window=32", "evaluation.stride=24", "evaluation.every=1"],
    "jafar-probe": ["evaluation.label_size=[40,40]", "grid={recipe.cosine_steps: [2, 8]}"],
    "mmseg-40k": ["encoder.name=resnet18", "decoder_defaults.width=8", "evaluation.every=4"],
}


def test_all_four_are_there():
    assert [path.stem for path in FILES] == list(OWN)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_line_says_where_it_is_from(path):
    inside, said = False, 0
    for line in path.read_text("utf-8").splitlines():
        section = re.match(r"(\w+):", line)
        inside = section[1] in ("data", "encoder", "decoder_defaults", "recipe", "evaluation") if section else inside
        if inside and re.match(r" +\w+: ", line):
            assert "  # " in line, line
            said += 1
    assert said > 15


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_trains_and_is_evaluated(path, tmp_path):
    small = {item.partition("=")[0]: item for item in [*SMALL, *OWN[path.stem]]}
    if "vit" in path.read_text("utf-8"):
        small["encoder.name"] = "encoder.name=vit_tiny_patch16_224"
    data = ["data={name: shapes, size: 64, train: 6, val: 3}"]
    overrides = [item for key, item in small.items() if not key.startswith("data.")]
    results, code, out = sweep(load_config(path, [*data, *overrides, "baseline=null", f"runs_dir={tmp_path}"]))
    assert code == 0, out
    named = [
        d.get("label", d["name"]) if isinstance(d, dict) else d
        for d in yaml.safe_load(path.read_text("utf-8"))["decoders"]
    ]
    assert {result.row["decoder"] for result in results.values()} == set(named)
    assert {result.row["images"] for result in results.values()} == {3}
    if path.stem == "dinov3-linear":
        for result in results.values():
            text = (result.folder / "history.csv").read_text().splitlines()
            place = text[0].split(",").index("val_miou")
            scores = [float(cells[place]) for line in text[1:] if (cells := line.split(","))[place]]
            assert len(scores) == 7
            scores.append(float(mean_over_classes(iou(result.counts["region"].sum(0)))))
            assert result.row["values"]["best_of_n@8"] == pytest.approx(max(scores), abs=1e-9)
    if path.stem == "jafar-probe":
        assert all((result.counts["sizes"] == 40).all() for result in results.values())
