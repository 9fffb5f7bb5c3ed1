"""Planning builds each thing once for the whole grid, and the keys are those of each variant planned alone."""

from collections import Counter

import pytest

from segbench.config_file import expand_grid
from segbench.errors import UserError
from segbench.sweep.plan import make_plan
from tests.conftest import WHOLE, segbench

COUNTED = """
import sys
from torch import nn
import torch.nn.functional as F

def note(what):
    with open({log!r}, "a") as file:
        file.write(what + chr(10))

class Encoder(nn.Module):
    channels, strides = (4, 8), (4, 8)
    def __init__(self, width: int = 4):
        note(f"encoder {{width}}")
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, c, 1) for c in self.channels])
    def forward(self, image):
        return [layer(F.avg_pool2d(image, s)) for layer, s in zip(self.layers, self.strides)]
"""
DECODER = """
from counted import note

class Counted(Whole):
    def __init__(self, channels, strides, num_classes, *, width=64):
        note(f"decoder {width}")
        super().__init__(channels, strides, num_classes, width=width)
"""
DATA = """
from segbench.data.shapes import Shapes
from counted import note

class Data(Shapes):
    def fingerprint(self):
        note(f"data {self.split}")
        return super().fingerprint()
"""
MEASURE = """
from segbench.measures.miou import MIoU
from counted import note

class Mine(MIoU):
    short, long, standard = "mine", "mine", ()
    def count(self, sample):
        note("measure")
        return super().count(sample)
"""


@pytest.fixture
def counted(tmp_path, make_config):
    """A sweep whose parts say when they are built, opened or tried; and how often each did since it was last asked."""
    log = tmp_path / "log"
    for name, text in (
        ("counted", COUNTED.format(log=str(log))), ("dec", WHOLE + DECODER), ("dat", DATA), ("mea", MEASURE),
    ):  # fmt: skip
        (tmp_path / f"{name}.py").write_text(text)
    decoder = f"{tmp_path}/dec.py:Counted"

    def config(**changes):
        return make_config(
            decoders=[{"name": decoder, "label": str(w), "params": {"width": w}} for w in (4, 8)], decoder_defaults={},
            encoder={"name": f"{tmp_path}/counted.py:Encoder", "weights": "default"},
            data={"name": f"{tmp_path}/dat.py:Data"}, measures=[f"{tmp_path}/mea.py:Mine"], **changes,
        )  # fmt: skip

    def said():
        lines = Counter(log.read_text().splitlines())
        log.unlink()
        return lines

    return config, said


def test_a_grid_over_the_recipe_builds_everything_once(counted):
    config, said = counted
    plan = make_plan(config(grid={"recipe.lr": [0.1, 0.01, 0.001]}))
    assert len({run.key for run in plan.runs}) == 6
    once = {"encoder 4": 1, "decoder 4": 1, "decoder 8": 1, "data train": 1, "data val": 1, "measure": 2}
    assert said() == once  # a measure is tried on two images


def test_a_grid_over_the_encoder_builds_each_once(counted):
    config, said = counted
    make_plan(config(grid={"encoder.params": [{"width": 4}, {"width": 6}], "recipe.lr": [0.1, 0.01]}))
    built = said()
    assert {what: built[what] for what in ("encoder 4", "encoder 6")} == {"encoder 4": 1, "encoder 6": 1}
    assert built["data train"] == built["data val"] == 1
    assert built["decoder 4"] == built["decoder 8"] == 2  # once on each encoder


@pytest.mark.parametrize(
    "grid",
    [
        {"recipe.lr": [0.1, 0.01], "encoder.strides": [[4, 8], [8]]},
        {"data.train": [4, 5], "evaluation.flip": [True, False], "encoder.trainable": [True, False]},
        {"trainer.precision": ["32-true", "bf16-mixed"], "encoder.name": ["tf_efficientnet_lite0", "resnet18"],
         "encoder.weights": ["none"]},
    ],
)  # fmt: skip
def test_the_keys_of_a_grid_are_those_of_each_variant_alone(make_config, grid):
    config = make_config(grid=grid)
    alone = [run.key for _, variant in expand_grid(config) for run in make_plan(variant).runs]
    assert [run.key for run in make_plan(config).runs] == alone


def test_each_decoder_that_fails_is_said_once_over_a_grid(write_sweep, tmp_path):
    path = write_sweep(decoders=["nearest", "nothing", "bilnear"], grid={"recipe.lr": [0.1, 0.01]})
    said = segbench("plan", path, "--no-trial")
    assert said.returncode == 2
    assert "tiny: 2 runs, 0 done, 2 to do" in said.stdout
    assert [line.split("'")[1] for line in said.stdout.splitlines() if "fails: " in line] == ["nothing", "bilnear"]
    assert segbench("sweep", path).returncode == 2
    said = segbench("plan", path, "decoders=[nothing, bilnear]")
    assert said.returncode == 2
    assert [line.split("'")[1] for line in said.stdout.splitlines()] == ["nothing", "bilnear"]


def test_a_default_that_no_decoder_takes(make_config):
    """A misspelt one would train all decoders otherwise than asked; one of an absent decoder is noted."""
    with pytest.raises(UserError, match=r"decoder_defaults: no decoder takes 'widht' \(did you mean 'width'\?\)"):
        make_plan(make_config(decoder_defaults={"widht": 8}))
    plan = make_plan(make_config(decoder_defaults={"width": 8, "init": "icnr"}))
    assert plan.findings == ["decoder_defaults: no decoder here takes 'init'"]
    assert "  note: decoder_defaults: no decoder here takes 'init'" in str(plan)
    assert make_plan(make_config(decoders=["subpixel"], decoder_defaults={"init": "icnr"})).findings == []
