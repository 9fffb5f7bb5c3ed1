"""Input that would hang or crash: one line and exit code 2, at once."""

import json
import os
import subprocess

import numpy as np
import pytest

from segbench import store
from segbench.config import MOST_RUNS
from segbench.report import page
from segbench.report.table import make_table
from tests.conftest import ROOT, segbench, write_again
from tests.fakes import EFFECTS, fake_sweep

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES = {
    "laughs": (LAUGHS, "holds 20,000 values or more, aliases counted"),
    "merged laughs": (MERGES, "holds 20,000 values or more, aliases counted"),
    "an alias in itself": ("data: &d {name: shapes, x: *d}", "is nested too deeply, or an alias holds itself"),
    "depth": ("[" * 3000, "is nested too deeply, or an alias holds itself"),
    "digits": (f"recipe: {{steps: {'9' * 5000}}}", "holds a value that cannot be read: Exceeds the limit"),
    "no date": ("name: 2024-13-01", "holds a value that cannot be read: month must be in 1..12"),
    "a large file": (f"name: {'x' * 1_000_001}", "has 1,000,007 bytes; a config has at most 1,000,000"),
}


def told(done, said):
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr
    assert len(done.stderr) < 500


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_grows_without_end_or_breaks_its_reader(tmp_path, name):
    text, said = FILES[name]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    told(segbench("plan", "--no-trial", path), said)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    told(segbench("plan", tmp_path / "pipe.yaml"), "pipe.yaml is no file")
    told(segbench("plan", "/dev/zero"), "/dev/zero is no file")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (f"recipe.steps={'9' * 5000}", "override 'recipe.steps=99999"),
        (f"recipe.x={'[' * 3000}", "override 'recipe.x=[["),
        (f"recipe.steps={10**26}", "recipe.steps should be less than or equal to 100000000, not 1000"),
        ("recipe.lr=.inf", "recipe.lr should be a finite number, not .inf"),
        ("recipe.weight_decay=.inf", "recipe.weight_decay should be a finite number, not .inf"),
        ("recipe.scale=[1,.inf]", "recipe.scale.1 should be a finite number, not .inf"),
        ("recipe.crop=100000000", "recipe.crop.0 should be less than or equal to 16384"),
        ("recipe.batch_size=1000000000", "recipe.batch_size should be less than or equal to 65536"),
        ("launch.jobs=1000000000", "launch.jobs should be less than or equal to 1024"),
        ("launch.threads=1000000", "launch.threads should be less than or equal to 1024"),
        ("data.train=100000000000", "train and val 1 to 1,000,000, not 64, 100,000,000,000, 3"),
        ("data.size=10000000", "size should be 8 to 8192 px"),
        (f"seeds=[{','.join(map(str, range(6000)))}]", f"make 12,000 runs; a sweep has at most {MOST_RUNS:,}"),
        (
            f"grid={{recipe.lr: [{','.join(f'0.{i + 1}' for i in range(1000))}], recipe.flip: [0,.1,.2,.3,.4,.5]}}",
            f"make 12,000 runs; a sweep has at most {MOST_RUNS:,}",
        ),
    ],
    ids=lambda value: value[:25],
)  # fmt: skip
def test_a_number_without_bounds(write_sweep, override, said):
    told(segbench("sweep", write_sweep(), override), said)
    assert segbench("plan", "--no-trial", write_sweep(), override).returncode == 2


PLUG_INS = """
import os, torch
from segbench.upsamplers import Bilinear

class Dtype(Bilinear):
    def forward(self, x):
        torch.set_default_dtype(torch.float64)
        return super().forward(x)
class Interrupts(Bilinear):
    def forward(self, x): raise KeyboardInterrupt
class Exits(Bilinear):
    def forward(self, x): raise SystemExit("bye")
class Dies(Bilinear):
    def forward(self, x): os._exit(0)
"""


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (
            "Dtype",
            "decoder 'Dtype': ChangedGlobalState: it changes what all decoders of the process share, as torch.set",
        ),
        ("Interrupts", "decoder 'Interrupts': KeyboardInterrupt (FILE, line 10)"),
        ("Exits", "decoder 'Exits': SystemExit: bye (FILE, line 12)"),
        ("Dies", "the process that looks at the sweep died at decoder 'Dies' (exit code 0)"),
    ],
)
def test_a_plug_in_that_harms_the_planning_is_named(write_sweep, tmp_path, cls, said):
    (tmp_path / "bad.py").write_text(PLUG_INS)
    path = write_sweep(decoders=["bilinear", f"{tmp_path / 'bad.py'}:{cls}"])
    done = segbench("sweep", path)
    done.stderr = "".join(line for line in done.stderr.splitlines(True) if "runs the code" not in line)
    told(done, said.replace("FILE", str(tmp_path / "bad.py")))


@pytest.fixture
def fake(tmp_path):
    return fake_sweep(tmp_path / "runs" / "fake", EFFECTS)


def test_a_damaged_file_hides_no_other_run(fake):
    (fake / "run0-s0" / store.RESULT).write_text("[" * 100_000)
    (fake / "run1-s0" / store.RESULT).unlink()
    (fake / "run1-s0" / store.STATUS).write_text("[" * 100_000)
    table = make_table(fake)
    assert any("bilinear-s0, damaged" in note for note in table.notes)
    for command in ("table", "status"):
        done = segbench(command, fake)
        assert done.returncode == 0, done.stderr
        assert "damaged" in done.stdout
        assert "deconv" in done.stdout


@pytest.mark.parametrize("command", ["table", "status", "report"])
def test_a_damaged_manifest_is_told(fake, command):
    (fake / store.MANIFEST).write_text("[" * 100_000)
    told(segbench(command, fake), f"{fake / store.MANIFEST} is damaged; the sweep's command makes it again")
    run = {"key": "k", "decoder": "d", "seed": 0, "variant": {}, "folder": "f"}
    (fake / store.MANIFEST).write_text(json.dumps({"config": {}, "runs": [run] * 400_000}))
    told(segbench(command, fake), "lists 400,000 runs; a sweep has at most 10,000")


POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, POSIX], ids=["ascii", "POSIX"])
@pytest.mark.parametrize("how", ["terminal", "md", "tex"])
def test_a_terminal_without_unicode(fake, environment, how):
    done = segbench("table", fake, "--format", how, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    assert "bilinear" in done.stdout


@pytest.mark.parametrize(
    ("stray", "said"),
    [("recipe.steps=500", 'make sweep ARGS="recipe.steps=500"'), ("CONFG=configs/voc.yaml", "does not know CONFG")],
)
def test_make_takes_no_variable_that_it_does_not_know(stray, said):
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    how = {"cwd": ROOT, "env": outside, "capture_output": True, "text": True}
    done = subprocess.run(["make", "-n", "sweep", stray], **how, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    known = ["CONFIG=configs/voc.yaml", "ARGS=recipe.steps=500", "VENV=.venv", "PYTHON=python3"]
    done = subprocess.run(["make", "-n", "sweep", *known], **how, check=True)
    assert "segbench sweep configs/voc.yaml recipe.steps=500" in done.stdout


def forged(fake, change_row=None, change_counts=None):
    """A result that is not as a run writes it, with a right checksum."""
    run = fake / "run0-s0"
    if change_counts:
        with np.load(run / store.COUNTS) as arrays:
            counts = dict(arrays)
        change_counts(counts)
        np.savez(run / store.COUNTS, **counts)
    write_again(run, **(change_row or {}))


FORGED_ROWS = {
    "values.macs": {"values": {"macs": None}},
    "values.eval": {"values": {"eval": 1e400}},
    "classes": {"classes": None},
    "images": {"images": "12"},
    "measures.0": {"measures": [7]},
    "broken": {"broken": ["it"]},
    "eval_encoder_ms_per_image": {"eval_encoder_ms_per_image": float("nan")},
    "finished": {"finished": 7},
}
FORGED_COUNTS = {
    "no region": lambda counts: counts.pop("region"),
    "region: int64 (11, 3, 4)": lambda counts: counts.update(region=counts["region"][1:]),
    "region: float64": lambda counts: counts.update(region=counts["region"] * 1.5),
    "region: -1 is no count": lambda counts: np.put(counts["region"], 0, -1),
    "biou@0.02: int64 (12, 3, 3)": lambda counts: counts.update({"biou@0.02": counts["biou@0.02"][..., 1:]}),
    "(11,); wanted the names of 12 images": lambda counts: counts.update(ids=counts["ids"][1:]),
}


@pytest.mark.parametrize("said", [*FORGED_ROWS, *FORGED_COUNTS])
def test_a_forged_result_is_damaged_and_hides_no_other(fake, said, monkeypatch):
    forged(fake, FORGED_ROWS.get(said), FORGED_COUNTS.get(said))
    (note,) = [note for note in make_table(fake).notes if note.startswith("Missing: bilinear-s0, damaged: ")]
    assert said in note
    monkeypatch.setattr(page._Section, "draw", lambda self: None)  # figures take most of the time
    assert said in page.write_report(fake).path.read_text()
