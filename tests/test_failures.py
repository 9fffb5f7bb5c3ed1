"""What becomes of the others, and of what is on the disk, where a run, a process or the disk fails."""

import errno
import json
import os
import subprocess

import pytest
import yaml

from segbench import store
from segbench.config_file import build_config
from segbench.errors import UserError
from tests.conftest import WHOLE, segbench, tiny
from tests.test_sweep import same, sweep


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The decoders beside which others fail."""
    runs_dir = str(tmp_path_factory.mktemp("undisturbed"))
    results, code, out = sweep(build_config(tiny(decoders=["subpixel", "deconv"], runs_dir=runs_dir)))
    assert code == 0, out
    return results


FAILING = (
    WHOLE
    + """
import os, signal, torch

class Base(Whole):
    passes = 0
    def forward(self, features, image):
        self.passes += self.training
        return self.spoil(super().forward(features, image))

class Nan(Base):
    def spoil(self, logits):
        return logits * float("nan") if self.passes == 3 else logits

class Raises(Base):
    def spoil(self, logits):
        if self.passes == 2:
            raise RuntimeError("the plug-in is broken")
        return logits

class EvalRaises(Base):
    def spoil(self, logits):
        if not self.training and self.passes != 1:  # one is the probe
            raise RuntimeError("only in evaluation")
        return logits

class InPlace(Base):
    def spoil(self, logits):
        if self.passes == 2:
            self.shared[0].mul_(0.5)
        return logits
    def forward(self, features, image):
        self.shared = features
        return super().forward(features, image)

class EvalInPlace(InPlace):
    def spoil(self, logits):
        if not self.training and self.passes != 1:
            self.shared[0].mul_(0.5)
        return logits

class LateSize(torch.nn.Module):
    guided, spoils, calls = True, "size", 0
    def __init__(self, channels, scale, guide_channels):
        super().__init__()
    def forward(self, x, guide):
        self.calls += self.training
        if self.calls == 3 and self.spoils == "guide":
            guide.mul_(0.5)
        return x if self.calls == 3 and self.spoils == "size" else torch.nn.functional.interpolate(x, scale_factor=2)

class LateLogits(Base):
    def spoil(self, logits):
        return torch.nn.functional.pad(logits, (1, 1, 1, 1)) if self.passes == 2 else logits

class LateGuide(LateSize):
    spoils = "guide"

class Dies(Base):
    def spoil(self, logits):
        if self.passes == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return logits
"""
)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        ("Nan", "Diverged: the loss is nan at step 2; the last finite loss was "),
        ("Raises", "RuntimeError: the plug-in is broken"),
        ("EvalRaises", "RuntimeError: only in evaluation"),
        ("InPlace", "ChangedInPlace: InPlace changes features[0] in place, which all decoders share"),
        ("EvalInPlace", "ChangedInPlace: EvalInPlace changes features[0] in place, which all decoders share"),
        ("LateGuide", "BrokenUpsampler: the upsampler LateGuide changes its guide in place"),
        ("LateLogits", "ValueError: LateLogits returns (2, 7, 66, 66); wanted logits of (2, 'K', 64, 64)"),
        ("LateSize", "BrokenUpsampler: the upsampler LateSize returns (2, 8, 2, 2) for (2, 8, 2, 2) and scale 2"),
    ],
)
def test_a_failed_run_leaves_the_others_as_if_it_had_never_been(undisturbed, make_config, tmp_path, cls, reason):
    (tmp_path / "bad.py").write_text(FAILING)
    config = make_config(decoders=["subpixel", f"{tmp_path / 'bad.py'}:{cls}", "deconv"])
    results, code, out = sweep(config)
    assert code == 1
    assert f"failed {cls}-s0" in out
    assert sorted(results) == [("deconv", 0), ("subpixel", 0)]
    assert all(same(results[key], undisturbed[key]) for key in results)
    folder = next((tmp_path / "runs" / "tiny").glob(f"{cls}-*"))
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert reason in status["reason"]
    assert "Traceback" in (folder / "traceback.txt").read_text()
    _, code, out = sweep(config)  # tried again
    assert code == 1
    assert "1 to do" in out


def test_a_wrong_size_is_named_before_the_sweep(make_config, tmp_path):
    (tmp_path / "bad.py").write_text(FAILING.replace("self.calls == 3", "True"))
    with pytest.raises(UserError, match=r"LateSize returns \(2, 8, 2, 3\) .* wanted \(2, 8, 4, 6\)"):
        sweep(make_config(decoders=["bilinear", f"{tmp_path / 'bad.py'}:LateSize"]))
    assert not list((tmp_path / "runs").glob("*/*/result.json"))


def test_a_dead_process_leaves_other_cohorts_standing(make_config, tmp_path):
    (tmp_path / "bad.py").write_text(FAILING)
    config = make_config(decoders=[f"{tmp_path / 'bad.py'}:Dies"], seeds=[0], grid={"recipe.steps": [4, 1]})
    results, code, out = sweep(config)
    assert code == 1
    assert [r.row["steps"] for r in results.values()] == [1]
    assert "the cohort's process died (signal SIGKILL)" in out


def test_a_full_disk_loses_nothing(make_config, tmp_path, monkeypatch):
    """Writing a result meets a full disk: one line, nothing half-written, and the next call goes on."""
    folder = tmp_path / "x"
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match="the disk is full: cannot write .*result.json"):
        store.write_json(folder / "result.json", {"a": 1})
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file system that can be filled")
def test_a_really_full_disk(tmp_path):
    """A small tmpfs fills up in mid-sweep."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a file system needs rights that this user lacks")
    try:
        path = tmp_path / "full.yaml"
        path.write_text(
            yaml.safe_dump(tiny(runs_dir=str(mount), decoders=["nearest", "deconv"], decoder_defaults={"width": 16}))
        )
        done = segbench("sweep", path)
        assert done.returncode == 2, done.stderr
        assert "the disk is full: cannot write" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(mount.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=10m", str(mount)], check=True)
        done = segbench("sweep", path)
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_folder_that_cannot_be_written(make_config, tmp_path):
    (tmp_path / "runs").write_text("a file is in the way")
    with pytest.raises(UserError, match=r"cannot read .*runs.*: Not a directory"):
        sweep(make_config())


def test_brackets_in_messages_are_not_markup(make_config, tmp_path):
    (tmp_path / "bad.py").write_text(FAILING.replace("the plug-in is broken", "cannot open [/data/x] of [b, c]"))
    _, code, out = sweep(make_config(decoders=[{"name": f"{tmp_path / 'bad.py'}:Raises", "label": "[/x]"}]))
    assert code == 1
    assert "failed [/x]-s0: RuntimeError: cannot open [/data/x] of [b, c]" in out


def test_tied_weights_can_be_stored(make_config, tmp_path):
    (tmp_path / "tied.py").write_text(
        f"{WHOLE}\n"
        "class Tied(Whole):\n"
        "    def __init__(self, *args, width):\n"
        "        super().__init__(*args, width=width)\n"
        "        self.blocks[0] = self.blocks[1]\n"
    )
    _, code, out = sweep(make_config(decoders=[f"{tmp_path / 'tied.py'}:Tied"]))
    assert code == 0, out
