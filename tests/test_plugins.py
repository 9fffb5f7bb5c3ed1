"""Plug-ins: one file and no edit for each kind, entry points, and plug-ins of several files."""

import os
import re
import subprocess
import sys

import pytest

from segbench.check import check_decoder
from segbench.config_file import load_config
from segbench.errors import UserError
from segbench.export import load_run
from segbench.sweep.plan import make_plan
from tests.conftest import segbench
from tests.test_sweep import sweep

UPSAMPLER = """
import torch
from torch import nn

class Blur(nn.Module):
    "Nearest-neighbour upsampling, then a box filter with a learned gain."
    ratios, starts_as = "integer", "random"

    def __init__(self, channels, scale=2, guide_channels=0, *, size: int = 3):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))
        self.up = nn.Sequential(nn.Upsample(scale_factor=scale), nn.AvgPool2d(size, 1, size // 2))

    def forward(self, x):
        return self.gain * self.up(x)
"""
DECODER = """
from segbench import Decoder
from torch import nn

class Coarsest(Decoder):
    "Logits from the coarsest features alone."
    def __init__(self, channels, strides, num_classes, *, kernel: int = 1):
        super().__init__(channels, strides, num_classes)
        self.head = nn.Conv2d(channels[-1], num_classes, kernel, padding=kernel // 2)

    def forward(self, features, image):
        return nn.functional.interpolate(self.head(features[-1]), size=image.shape[-2:], mode="bilinear")
"""
SKELETON = """
from fractions import Fraction
import torch
from segbench import Decoder
from segbench.decoders.base import Steps
from torch import nn

class Linear(Decoder):
    "The upsampler brings the logits of the finest features to image size."
    def __init__(self, channels, strides, num_classes, upsampler):
        super().__init__(channels, strides, num_classes)
        self.head = nn.Conv2d(channels[0], num_classes, 1)
        self.steps = Steps(upsampler, num_classes, 3, Fraction(strides[0]))

    def skeleton(self):
        return {"head": self.head}

    def forward(self, features, image):
        return self.steps(self.head(features[0]), image, tuple(image.shape[-2:]))
"""


def test_one_file_is_an_upsampler_a_decoder_or_a_skeleton(make_config, tmp_path):
    """Each with a parameter, in a real sweep, with no edit elsewhere."""
    (tmp_path / "own.py").write_text(UPSAMPLER + DECODER + SKELETON)
    own = tmp_path / "own.py"
    wide = {"name": f"{own}:Blur", "params": {"size": 5, "width": 4}, "label": "wide"}
    decoders = ["nearest", f"{own}:Blur", wide, {"name": f"{own}:Coarsest", "params": {"kernel": 3}}]
    results, code, out = sweep(make_config(decoders=decoders))
    assert code == 0, out
    rows = {title: result.row for (title, _), result in results.items()}
    shared = {title: row["skeleton_hash"] for title, row in rows.items()}
    assert shared["nearest"] == shared["Blur"] != shared["wide"]
    assert shared["Coarsest"] is None
    # three steps of 8 channels between the levels, two of 7 logits to image size
    assert rows["Blur"]["values"]["params"] - rows["nearest"]["values"]["params"] == 3 * 8 + 2 * 7
    assert rows["Coarsest"]["values"]["params"] == 320 * 7 * 9 + 7
    assert load_config(results["wide", 0].folder / "config.yaml").decoders[0].params == {
        "size": 5, "width": 4, "output_stride": 1,
    }  # fmt: skip

    config = make_config(decoders=["nearest", "deconv", f"{own}:Blur"], skeleton=f"{own}:Linear", name="linear")
    results, code, out = sweep(config)
    assert code == 0, out
    assert len({result.row["skeleton_hash"] for result in results.values()} | {None}) == 2
    assert results["nearest", 0].row["values"]["params"] == 24 * 7 + 7
    assert results["deconv", 0].row["values"]["params"] == 24 * 7 + 7 + 2 * (7 * 7 * 16 + 7)
    assert load_run(results["Blur", 0].folder).decoder.steps[0].gain.shape == (7, 1, 1)


@pytest.mark.parametrize("name", ["Blur", "Coarsest", "nearest"])
def test_check_takes_upsamplers_decoders_and_skeletons(tmp_path, name):
    (tmp_path / "own.py").write_text(UPSAMPLER + DECODER + SKELETON)
    said = []
    skeleton = "pyramid" if name == "Coarsest" else f"{tmp_path / 'own.py'}:Linear"
    name = name if name == "nearest" else f"{tmp_path / 'own.py'}:{name}"
    assert check_decoder(name, {}, said.append, skeleton) == 0, said


def test_the_key_knows_upsampler_skeleton_and_the_parameters_of_both(key, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(UPSAMPLER)
    (tmp_path / "frame.py").write_text(SKELETON + "class Other(Linear):\n    pass\n")
    blur = {"name": f"{own}:Blur"}
    frame = {"skeleton": f"{tmp_path / 'frame.py'}:Linear"}
    other = {"skeleton": f"{tmp_path / 'frame.py'}:Other"}
    keys = [
        key(blur), key(blur | {"params": {"size": 5}}), key(blur | {"params": {"width": 4}}), key("nearest"),
        key(blur, **frame), key("nearest", **frame), key(blur, **other),
    ]  # fmt: skip
    own.write_text(UPSAMPLER + "\nMORE = 1\n")
    keys += [key(blur), key(blur, **frame)]
    (tmp_path / "frame.py").write_text(SKELETON + "\nMORE = 1\n")
    keys += [key(blur, **frame)]
    assert len(set(keys)) == len(keys)
    assert key(blur) == keys[-3]  # which does not name the skeleton's file


def install(site, name, text, **groups):
    """A package of one module as pip would leave it, with its entry points: group -> lines."""
    (site / f"{name}.py").parent.mkdir(exist_ok=True)
    (site / f"{name}.py").write_text(text)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [line for group, own in groups.items() for line in (f"[segbench.{group}]", *own)]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def installed(*args, site):
    return segbench(*args, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *sys.path])})


def test_entry_points_of_both_kinds(tmp_path, write_sweep):
    site = tmp_path / "site"
    install(site, "kit", UPSAMPLER + DECODER + SKELETON,
            upsamplers=["blur = kit:Blur"], decoders=["coarsest = kit:Coarsest", "linear = kit:Linear"])  # fmt: skip
    listed = installed("list", site=site)
    assert listed.returncode == 0, listed.stderr
    assert "upsamplers, plugged in\n  blur  Nearest-neighbour upsampling, then a box filter" in listed.stdout
    assert "decoders, plugged in\n  coarsest  Logits from the coarsest features alone." in listed.stdout
    decoders = [{"name": "blur", "params": {"size": 5}}, "coarsest", "nearest"]
    done = installed("sweep", write_sweep(decoders=decoders), "skeleton=linear", site=site)
    assert done.returncode == 0, done.stderr
    assert all(re.search(rf"^ *{name} ", done.stdout, re.M) for name in ("blur", "coarsest", "nearest"))
    assert done.stderr.count(f"runs the code in {site / 'kit.py'}") == 1


def test_a_name_that_is_an_upsampler_and_a_decoder(tmp_path):
    """Of installed packages it is refused; a built-in one's stays that one's, and the list says so."""
    site = tmp_path / "site"
    install(site, "kit", UPSAMPLER + DECODER, upsamplers=["blur = kit:Blur"],
            decoders=["blur = kit:Coarsest", "bilinear = kit:Coarsest"])  # fmt: skip
    checked = installed("check", "blur", site=site)
    assert checked.returncode == 2
    assert checked.stderr == (
        "segbench: 'blur' stands for the decoder kit:Coarsest and the upsampler kit:Blur; "
        "write package.module:Class for the one meant\n"
    )
    kept = installed("check", "bilinear", "width=8", site=site)
    assert kept.returncode == 0, kept.stdout
    assert "starts as it says: bilinear" in kept.stdout
    listed = installed("list", site=site)
    assert listed.stdout.count("FAILED") == 3  # blur twice, and the decoder that is called as a built-in upsampler is
    assert "'bilinear' stands for the built-in upsampler bilinear and the decoder kit:Coarsest" in listed.stdout


PLUGIN = """
from segbench.data.shapes import Shapes
from segbench.upsamplers import Bilinear
from near import VALUE

class Mine(Bilinear):
    def __init__(self, *args, **kwargs):
        from lazy import LAZY
        super().__init__(*args, **kwargs)
        self.value = VALUE + LAZY

class Data(Shapes):
    pass
"""


@pytest.fixture
def folder(tmp_path):
    """A plug-in that imports `near`, that imports the package `far` and is imported by it, and `lazy`, late."""
    folder = tmp_path / "plugin"
    (folder / "far").mkdir(parents=True)
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "near.py").write_text("import far.away\nVALUE = 1\n")
    (folder / "far" / "__init__.py").write_text("")
    (folder / "far" / "away.py").write_text("import near\nfrom . import further\nfrom .further import DEEP as D\n")
    (folder / "far" / "further.py").write_text("DEEP = 1\n")
    (folder / "lazy.py").write_text("LAZY = 1\n")
    (folder / "unrelated.py").write_text("this is not even Python\n")
    return folder


@pytest.fixture
def key(make_config):
    def key(decoder="nearest", **changes):
        (run,) = make_plan(make_config(decoders=[decoder], **changes)).runs
        return run.key

    return key


@pytest.mark.parametrize("kind", ["decoder", "data set"])
def test_a_plug_in_imports_its_neighbours_and_is_a_new_run_where_one_changes(folder, key, tmp_path, kind):
    def now():
        return key(f"{folder}/mine.py:Mine") if kind == "decoder" else key(data={"name": f"{folder}/mine.py:Data"})

    seen = {now()}
    for name in ("near.py", "far/__init__.py", "far/away.py", "far/further.py", "lazy.py"):
        with open(folder / name, "a") as file:
            file.write("\nMORE = 1\n")
        seen.add(now())
    assert len(seen) == 6
    (folder / "unrelated.py").write_text("MORE = 1\n")
    folder = folder.rename(tmp_path / "moved")
    assert now() in seen


def test_a_run_of_several_files_is_trained_in_a_cohort_of_its_own_process(folder, make_config):
    config = make_config(decoders=[f"{folder}/mine.py:Mine"], data={"name": f"{folder}/mine.py:Data"})
    config = config.model_copy(update={"launch": config.launch.model_copy(update={"workers": 1})})
    results, code, out = sweep(config)
    assert code == 0, out
    assert list(results) == [("Mine", 0)]
    assert "near" not in sys.modules


def test_a_module_of_a_package_counts_the_modules_of_its_package(tmp_path, make_config, monkeypatch):
    package = tmp_path / "site" / "toolkit"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "up.py").write_text(
        "import helper\nfrom segbench.upsamplers import Bilinear\nfrom toolkit.parts import kernel\n"
        "class Up(Bilinear):\n    pass\n"
    )
    (package / "parts" / "__init__.py").write_text("")
    (package / "parts" / "kernel.py").write_text("from .. import shared\n")
    (package / "shared.py").write_text("")
    (package / "unrelated.py").write_text("")
    (package / "helper.py").write_text("")  # no name of Python's path
    (tmp_path / "site" / "helper.py").write_text("")  # beside the package, not in it

    script = tmp_path / "key.py"
    script.write_text(
        "import sys\nfrom segbench.registry import UPSAMPLERS, source_hash\n"
        "print(source_hash(UPSAMPLERS.load('toolkit.up:Up')))\n"
    )

    def now():
        path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
        command = [sys.executable, str(script)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=True
        )
        return done.stdout

    seen = [now()]
    for name in ("__init__.py", "up.py", "parts/__init__.py", "parts/kernel.py", "shared.py"):
        with open(package / name, "a") as file:
            file.write("\nMORE = 1\n")
        seen.append(now())
    assert len(set(seen)) == 6
    for path in (package / "unrelated.py", package / "helper.py", tmp_path / "site" / "helper.py"):
        path.write_text("MORE = 1\n")
    assert now() == seen[-1]


def test_two_folders_with_a_helper_of_one_name(folder, key, make_config, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "two.py").write_text(
        "import near\nfrom segbench.upsamplers import Bilinear\nclass Two(Bilinear):\n    pass\n"
    )
    (other / "near.py").write_text("")
    assert key(f"{other}/two.py:Two") != key(f"{folder}/mine.py:Mine")  # by itself each is as it was
    with pytest.raises(UserError, match="imports 'near'.*rename") as error:
        make_plan(make_config(decoders=[f"{folder}/mine.py:Mine", f"{other}/two.py:Two"]))
    said = str(error.value)
    assert str(folder / "near.py") in said
    assert str(other / "near.py") in said
    assert "\n" not in said


@pytest.mark.parametrize("name", ["yaml", "statistics"])
def test_a_neighbour_with_the_name_of_something_installed(folder, key, name):
    (folder / f"{name}.py").write_text("")
    assert key(f"{folder}/mine.py:Mine")  # which does not import it
    (folder / "near.py").write_text(f"import {name}\nVALUE = 1\n")
    with pytest.raises(UserError, match=f"imports '{name}'.*/{name}(.py|/)? *.*rename") as error:
        key(f"{folder}/mine.py:Mine")
    assert str(folder / f"{name}.py") in str(error.value)


def test_what_lies_in_the_folder_of_a_plug_in_and_is_not_imported_stays_out_of_python_s_reach(folder, tmp_path, key):
    """A name that something else asks for, such as an optional package that is not installed."""
    (folder / "alone.py").write_text(
        "from segbench.upsamplers import Bilinear\n"
        "class Alone(Bilinear):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "        try:\n            __import__('lazy')\n        except ModuleNotFoundError:\n            return\n"
        "        raise RuntimeError('it was found')\n"
    )
    assert key(f"{folder}/alone.py:Alone")
