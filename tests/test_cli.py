"""The command line as a user meets it: speed, exit codes, one line for a mistake."""

import json
import re
import resource
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT, segbench, tiny


@pytest.mark.parametrize("args", [["--help"], ["sweep", "--help"], ["list"]], ids=" ".join)
def test_answers_at_once_and_without_torch(args):
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = segbench(*args)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
    assert min(times) < 0.5  # of the processor, which others may keep busy
    code = (
        f"import sys; from segbench.cli import main\ntry: main({args!r})\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_list_shows_what_there_is():
    out = segbench("list").stdout
    for name in (
        "nearest",
        "bilinear",
        "deconv",
        "fractional",
        "subpixel",
        "camvid",
        "shapes",
        "tf_efficientnet_lite0",
    ):
        assert re.search(rf"^  {name} ", out, re.M), name


def test_show_names_plug_ins_that_fail(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_thing\n")
    done = segbench("show", f"{tmp_path}/broken.py:X", "experiments/plug_in_an_upsampler/carafe_lite.py:CarafeLite")
    assert done.returncode == 1
    assert re.search(
        r"broken\.py:X  FAILED: .*ModuleNotFoundError: No module named 'no_such_thing'.*line 1", done.stdout
    )
    assert re.search(r"^upsampler .*CarafeLite  \(/", done.stdout, re.M)


def test_sweep_table_and_formats(write_sweep, tmp_path):
    done = segbench("sweep", write_sweep(), "seeds=[0,1]")
    assert done.returncode == 0, done.stderr
    assert "bilinear" in done.stdout
    assert "4 of 4 runs done" in done.stderr
    runs = tmp_path / "runs"
    table = json.loads(segbench("table", "--runs-dir", runs, "--format", "json").stdout)
    assert [r["decoder"] for r in table["rows"]] == ["bilinear", "nearest"]
    assert table["rows"][0]["mIoU"]["n"] == 2
    for name, start in (("md", "**tiny"), ("csv", "decoder,"), ("tex", "% tiny")):
        assert segbench("table", runs / "tiny", "--format", name).stdout.startswith(start)
    assert "ring" in segbench("table", runs / "tiny", "--per-class").stdout
    assert (
        "BIoU 0.02 (2px) per class" in segbench("table", runs / "tiny", "--per-class", "--metric", "biou@0.02").stdout
    )
    some = segbench("table", runs / "tiny", "--metric", "bf1@3", "--metric", "trimap@8", "--format", "csv").stdout
    assert some.startswith("decoder,n,BF1 (3px),BF1 (3px) sd,BF1 (3px) low,BF1 (3px) high,")
    assert ",trimap (8px),trimap (8px) sd," in some.splitlines()[0]
    wrong = segbench("table", runs / "tiny", "--metric", "bf1@4")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "unknown metric 'bf1@4' (did you mean 'bf1@3'?); there is: accuracy, bf1@3, biou@0.02, cei" in wrong.stderr


BROKEN = "raise ValueError('at import')\n"
NO_DECODER = "class Plain: pass\n"
WRONG_SHAPE = """
from segbench import Decoder
class Half(Decoder):
    def forward(self, features, image):
        return image.new_zeros(image.shape[0], self.num_classes, image.shape[2] // 2, image.shape[3] // 2)
class Raises(Decoder):
    def forward(self, features, image):
        raise IndexError("nothing here\\nnor there")
class InPlace(Decoder):
    def forward(self, features, image):
        features[0].relu_()
        return image.new_zeros(image.shape[0], self.num_classes, *image.shape[2:])
class Wants(Decoder):
    def __init__(self, channels, strides, num_classes, *, size: int):
        super().__init__(channels, strides, num_classes)
"""

WRONG_UPSAMPLER = """
from torch import nn
class Half(nn.Identity):
    def __init__(self, channels, scale, guide_channels):
        super().__init__()
class Third(Half):
    ratios = "three"
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["decoders=[bilnear]"],
            r"unknown decoder 'bilnear' \(did you mean 'bilinear'\?\); there is: a2u, .*bilinear_conv",
        ),
        (["encoder.name=resnt18"], r"unknown encoder 'resnt18' \(did you mean 'resnet18'\?\)"),
        (["data.name=shape"], r"unknown data set 'shape' \(did you mean 'shapes'\?\); there is: ade20k, camvid, city"),
        (["data.name=camvid"], r"data set 'camvid' has no parameter 'size'"),
        (["data={name: camvid, root: /no/such}"], r"data\.root: no folder /no/such; expected: train\.txt"),
        (["data.sice=4"], r"data set 'shapes' has no parameter 'sice' \(did you mean 'size'\?\)"),
        (["data.train=0"], r"shapes: size should be 8 to 8192 px, train and val 1 to 1,000,000"),
        (["recipe.stps=4"], r"unknown key 'recipe\.stps' \(did you mean 'steps'\?\)"),
        (["recipe.class_weights=[1,2]"], r"recipe\.class_weights has 2 values; 'shapes' has 7 classes"),
        (["recipe.class_weights=[0,0,0,0,0,0,0]"], r"recipe\.class_weights are all 0, so that nothing"),
        (["trainer.accelerator=mps"], r"trainer\.accelerator: this machine has no 'mps'; use cpu or auto"),
        (["decoders=[{name: bilinear, params: {wdth: 3}}]"], r"has no parameter 'wdth' \(did you mean 'width'\?\)"),
        (
            ["decoders=[{name: subpixel, params: {init: no}}]"],
            r"upsampler 'subpixel': init should be 'nearest', 'icnr' or 'plain'",
        ),
        (["decoders=[{name: bilinear, params: {output_stride: 9}}]"], r"output_stride must be from 1 to the finest"),
        (["decoders=[nowhere.py:X]"], r"no such file: nowhere\.py"),
        (
            ["decoders=[{tmp}/broken.py:X]"],
            r"^segbench: upsampler or decoder '.*X' does not import: ValueError: at import \(.*broken\.py, line 1\)",
        ),
        (["decoders=[{tmp}/plain.py:Plain]"], r"is no subclass of torch\.nn\.Module"),
        (["decoders=[{tmp}/plain.py:Plan]"], r"has no class 'Plan' \(did you mean 'Plain'\?\); it has: Plain"),
        (["decoders=[{tmp}/plain.py]"], r"write .*plain\.py:ClassName for a class in a file"),
        (
            ["decoders=[{name: smp, params: {architecture: upernet}}]", "recipe.batch_size=1"],
            r"decoder 'smp' fails on a 64x96 image: ValueError: Expected more than 1 value per channel when training",
        ),
        (["decoders=[{tmp}/shape.py:Half]"], r"returns \(1, 7, 32, 48\); wanted logits of \(1, 7, 64, 96\)"),
        (["decoders=[{tmp}/shape.py:Raises]"], r"fails on a 64x96 image: IndexError: nothing here nor there"),
        (["decoders=[{tmp}/shape.py:InPlace]"], r"changes features or image in place"),
        (["decoders=[{tmp}/exits.py:X]"], r"does not import: SystemExit: 3"),
        (["recipe.batch_size=1", "recipe.crop=32"], r"batch_size 1 with crop \[32, 32\] leaves the coarsest level"),
        (["decoders=[{tmp}/shape.py:Wants]"], r"decoder '.*Wants': size is missing"),
        (
            ["decoders=[{tmp}/up.py:Half]"],
            r"upsampler '.*up\.py:Half' fails .*upsampler Half returns \(2, 8, 2, 3\)",
        ),
        (["decoders=[{tmp}/up.py:Third]"], r"upsampler '.*up\.py:Third': ratios = 'three'; it should be one of 'two'"),
        (["decoders=[pyramid]"], r"pyramid is a skeleton: name an upsampler, or set skeleton: pyramid"),
        (["skeleton=nearest"], r"skeleton: unknown decoder 'nearest'"),
        (["recipe.steps=1", "recipe.steps=2"], r"overrides contradict each other"),
        (["runs_dir=/proc/nothing"], r"cannot write /proc/nothing/tiny/sweep\.json: "),
    ],
    ids=lambda v: v if isinstance(v, str) else v[0][:40],
)
def test_a_mistake_gets_one_line_and_exit_code_2(tmp_path, capsys, overrides, message):
    """In process, so that the fork server is shared; the console script itself is run in the tests above and below."""
    from segbench.cli import main

    files = {"broken": BROKEN, "plain": NO_DECODER, "shape": WRONG_SHAPE, "up": WRONG_UPSAMPLER, "exits": "exit(3)\n"}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny(runs_dir=str(tmp_path / "runs"), decoders=["nearest"])))
    assert main(["sweep", str(path), *(o.replace("{tmp}", str(tmp_path)) for o in overrides)]) == 2
    err = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("runs the code in ")]
    assert len(err) == 1, err
    assert err[0].startswith("segbench: ")
    assert re.search(message, err[0])
    assert not list(tmp_path.glob("runs/*/*/*"))


def test_a_bad_file_is_found_before_training(tmp_path, capsys):
    from PIL import Image

    from segbench.cli import main

    root = tmp_path / "camvid"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for i in range(3):
            Image.new("RGB", (64, 64)).save(root / split / f"{i}.png")
            Image.new("L", (64, 64), 12 if (split, i) == ("val", 2) else i).save(root / f"{split}annot/{i}.png")
        (root / f"{split}.txt").write_text("".join(f"/x/{split}/{i}.png /x/{split}annot/{i}.png\n" for i in range(3)))
    path = tmp_path / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(tiny(runs_dir=str(tmp_path / "runs")) | {"data": {"name": "camvid", "root": str(root)}})
    )
    assert main(["sweep", str(path)]) == 2
    err = capsys.readouterr().err
    assert re.search(r"segbench: .*valannot/2\.png holds label 12; allowed are 0 to 10, and 11 for void\n$", err)
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/*/*/*"))
    Image.new("L", (64, 64), 1).save(root / "valannot/2.png")
    assert main(["sweep", str(path)]) == 0


def test_check_command():
    done = segbench("check", "experiments/plug_in_an_upsampler/carafe_lite.py:CarafeLite", "width=8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("CarafeLite: keeps the contract")
    assert all(line.startswith("pass  ") for line in done.stdout.splitlines()[:-1])
    wrong = segbench("check", "bilnear")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_a_plug_in_takes_part_with_no_edit_elsewhere(write_sweep):
    plug_in = ROOT / "experiments/plug_in_an_upsampler/carafe_lite.py"
    assert len(plug_in.read_text().partition("class ")[2].splitlines()) < 20
    small = {"name": f"{plug_in}:CarafeLite", "params": {"kernel": 3}, "label": "small"}
    done = segbench("sweep", write_sweep(decoders=["bilinear", f"{plug_in}:CarafeLite", small]))
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("CarafeLite", "small"))


def test_make_help_explains_each_target():
    out = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("sweep", "table", "list", "show", "check", "test", "lint", "types"):
        assert re.search(rf"^  make {target}\b.*\w", out, re.M), target


def test_the_runner_itself_never_imports_torch(write_sweep):
    """It plans, starts processes and reads files; what it does not import it cannot leak."""
    code = (
        "import sys; from segbench.cli import main; code = main(sys.argv[1:]); "
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    command = [sys.executable, "-c", code, "sweep", str(write_sweep())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
