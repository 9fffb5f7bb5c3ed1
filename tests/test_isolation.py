"""What a plug-in does while it trains harms no other run: their weights and counts are those of a sweep without it."""

import io
import json

import pytest
import torch
from rich.console import Console

from segbench import build, store
from segbench.config_file import build_config
from segbench.errors import Failure
from segbench.outcomes import Ended, Lost
from segbench.sweep.plan import make_plan
from segbench.sweep.run import _Sweep
from tests.conftest import WHOLE, tiny
from tests.test_sweep import same, sweep

HARMS = (
    WHOLE
    + """
import ctypes, logging, os, random, time
import numpy as np
import torch

class Harms(Whole):
    passes = 0
    def forward(self, features, image):
        self.passes += self.training
        if self.passes == 3:
            self.harm(features, image)
        return super().forward(features, image)

def harms(name, harm):
    globals()[name] = type(name, (Harms,), {"harm": lambda self, features, image: harm(features, image)})

def fail(error):
    raise error

harms("Grad", lambda *_: torch.set_grad_enabled(False))
mode = torch.inference_mode()
harms("Inference", lambda *_: mode.__enter__())
harms("Dtype", lambda *_: torch.set_default_dtype(torch.float64))
harms("Threads", lambda *_: torch.set_num_threads(7))
harms("Deterministic", lambda *_: torch.use_deterministic_algorithms(True))
harms("Autocast", lambda *_: torch.set_autocast_enabled("cpu", True))
harms("Denormal", lambda *_: torch.set_flush_denormal(True))
harms("Numpy", lambda *_: np.seterr(all="raise"))
harms("Folder", lambda *_: os.chdir("/"))
harms("Exit", lambda *_: fail(SystemExit("bye")))
harms("Interrupt", lambda *_: fail(KeyboardInterrupt()))
harms("Strange", lambda *_: fail(BaseException("neither")))
harms("Seeds", lambda *_: (torch.manual_seed(1), np.random.seed(1), random.seed(1)))
harms("Data", lambda features, image: [t.data.mul_(0.5) for t in (*features, image)])
harms("Memory", lambda features, image: [t.numpy().fill(0) for t in (*features, image)])

harms("Dies", lambda *_: os._exit(0))
harms("Crashes", lambda *_: ctypes.string_at(0))
harms("Hangs", lambda *_: time.sleep(3600))

class Prints(Whole):
    def forward(self, features, image):
        print("[b]forward[/b]")
        logging.warning("hm")
        os.write(2, b"from below\\n")
        return super().forward(features, image)

class Floods(Whole):
    def forward(self, features, image):
        print("x" * 600_000)
        return super().forward(features, image)

class Draws(Whole):  # from generators that nobody asked it to use
    def forward(self, features, image):
        return super().forward(features, image) + np.random.rand() + random.random()
"""
)
CHANGES = {
    "Grad": "torch.set_grad_enabled",
    "Inference": "torch.inference_mode and torch.set_grad_enabled",
    "Dtype": "torch.set_default_dtype",
    "Threads": "torch.set_num_threads",
    "Deterministic": "torch.use_deterministic_algorithms",
    "Autocast": "torch.set_autocast_enabled",
    "Denormal": "torch.set_flush_denormal",
    "Numpy": "numpy.seterr",
    "Folder": "os.chdir",
}
RAISES = {"Exit": "SystemExit: bye", "Interrupt": "KeyboardInterrupt", "Strange": "BaseException: neither"}
ESCAPES_ALL_CHECKS = ["Seeds", "Data", "Memory"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    runs_dir = str(tmp_path_factory.mktemp("undisturbed"))
    results, code, out = sweep(build_config(tiny(decoders=["subpixel", "deconv"], runs_dir=runs_dir)))
    assert code == 0, out
    return results


@pytest.fixture
def plug_ins(tmp_path):
    """Names of plug-ins -> their entries in ``decoders:``."""
    (tmp_path / "harms.py").write_text(HARMS)
    return lambda *names: [f"{tmp_path / 'harms.py'}:{name}" for name in names]


def statuses(folder):
    paths = sorted(folder.glob(f"*/{store.STATUS}"))
    return {path.parent.name.rpartition("-s0-")[0]: json.loads(path.read_text()) for path in paths}


def test_what_a_plug_in_changes_or_raises_stays_with_it(undisturbed, make_config, tmp_path, plug_ins):
    every = plug_ins(*CHANGES, *RAISES, *ESCAPES_ALL_CHECKS)
    config = make_config(decoders=["subpixel", *every, "deconv"])
    results, code, out = sweep(config)
    assert code == 1
    assert sorted(d for d, _ in results) == sorted(["subpixel", "deconv", *ESCAPES_ALL_CHECKS])
    assert all(same(results[key], undisturbed[key]) for key in undisturbed)
    said = statuses(tmp_path / "runs" / "tiny")
    for name, setting in CHANGES.items():
        assert said[name]["reason"].startswith("ChangedGlobalState: it changes what all decoders"), said[name]
        assert f", as {setting} does;" in said[name]["reason"]
    for name, reason in RAISES.items():
        assert said[name]["reason"] == reason
    for name in (*CHANGES, *RAISES):
        assert f"failed {name}-s0: " in out
        traceback = next((tmp_path / "runs" / "tiny").glob(f"{name}-*")) / "traceback.txt"
        assert ("harms.py" in traceback.read_text()) == (name in RAISES)


@pytest.mark.slow
def test_where_the_process_ends_only_the_culprit_fails(undisturbed, make_config, tmp_path, plug_ins):
    every = plug_ins("Dies", "Crashes", "Hangs")
    config = make_config(decoders=[every[0], "subpixel", *every[1:], "deconv"], launch={"timeout_min": 0.4})
    results, code, out = sweep(config)
    assert code == 1
    assert all(same(results[key], undisturbed[key]) for key in undisturbed), out
    assert results.keys() == undisturbed.keys()
    said, folder = statuses(tmp_path / "runs" / "tiny"), tmp_path / "runs" / "tiny"
    assert said["Dies"]["reason"] == "the cohort's process died (exit code 0)"
    assert said["Crashes"]["reason"] == "the cohort's process died (signal SIGSEGV)"
    assert said["Hangs"]["reason"].startswith("no step or image for 0.4 minutes (launch.timeout_min)")
    for name in ("Crashes", "Hangs"):  # where it was
        assert "harms.py" in (next(folder.glob(f"{name}-*")) / "traceback.txt").read_text()
    assert "Dies-s0 and subpixel-s0, Crashes-s0, Hangs-s0, deconv-s0 again" in out


def test_without_a_word_of_whose_turn_it_was_halves_are_tried(make_config):
    plan = make_plan(make_config(decoders=["nearest", "bilinear", "deconv"]))
    settling = _Sweep(plan, Console(file=io.StringIO(), width=200))
    (whole,) = plan.cohorts
    settling._ended(whole, Ended.alike(whole, Lost(Failure("its process died"))))
    assert [[run.title for run in cohort.runs] for cohort in settling.again] == [["nearest", "bilinear"], ["deconv"]]
    assert not settling.short  # memory was not: as many cohorts at a time as before


def test_what_a_plug_in_prints_is_in_its_folder(undisturbed, make_config, tmp_path, plug_ins, capfd):
    results, code, out = sweep(make_config(decoders=["subpixel", *plug_ins("Prints", "Floods"), "deconv"]))
    assert code == 0, out
    assert all(same(results[key], undisturbed[key]) for key in undisturbed)
    folder = results["Prints", 0].folder
    printed = (folder / store.OUTPUT).read_text()
    assert printed.count("[b]forward[/b]\n") == printed.count("hm\n") == printed.count("from below\n") >= 4 + 3
    lines = printed.count("\n")
    assert f"Prints-s0 printed: [b]forward[/b] ... {lines - 1} more lines in {folder / store.OUTPUT}" in out
    flood = (results["Floods", 0].folder / store.OUTPUT).read_text()
    assert len(flood) < 1_300_000
    assert flood.endswith("... all after 1,000,000 bytes is left out\n")
    assert not (results["subpixel", 0].folder / store.OUTPUT).exists()
    captured = capfd.readouterr()
    assert "forward" not in captured.out + captured.err


def test_random_numbers_of_any_generator_are_a_function_of_seed_and_step(make_config, tmp_path, plug_ins):
    """Alone or in company, the plug-in draws the same from NumPy and Python; it is no member of any sweep's key."""
    alone, code, out = sweep(make_config(name="alone", decoders=plug_ins("Draws")))
    assert code == 0, out
    beside, code, out = sweep(make_config(name="beside", decoders=plug_ins("Seeds", "Draws")))
    assert code == 0, out
    assert same(alone["Draws", 0], beside["Draws", 0])


@pytest.mark.parametrize("there", [False, True])
def test_seeds_are_torch_s(monkeypatch, there):
    monkeypatch.setattr(build, "_has_accelerator", lambda: there)
    torch.manual_seed(2**62 + 1)
    wanted = torch.rand(3)
    build.seed_torch(2**62 + 1)
    assert torch.equal(torch.rand(3), wanted)
