"""A finished sweep answers from what its folder remembers, and only where all that it hangs on is as it was."""

import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from segbench import store
from segbench.config import DataConfig, EncoderConfig
from segbench.encoders import build_encoder
from segbench.launch import local
from segbench.sweep import remembered
from segbench.sweep.files import KNOWN, KnownFiles
from segbench.sweep.plan import _folder, _look, make_plan
from segbench.tuning import variants
from tests.conftest import WHOLE, tiny
from tests.test_sweep import sweep


@pytest.fixture
def root(tmp_path):
    """A data set of two and two images."""
    for which in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "own" / kind / which).mkdir(parents=True)
        for i in range(2):
            labels = np.full((64, 64), i, np.uint8)
            labels[:9] = 1 - i
            Image.fromarray(labels).save(tmp_path / f"own/masks/{which}/{i}.png")
            Image.fromarray(np.full((64, 64, 3), 40 * i + 9 * len(which), np.uint8)).save(
                tmp_path / f"own/images/{which}/{i}.png"
            )
    return tmp_path / "own"


@pytest.fixture
def make(make_config, root):
    """The tiny sweep on it."""
    data = DataConfig(name="folder", root=str(root), classes=["a", "b"])
    return lambda **changes: make_config(**changes).model_copy(update={"data": data})


@pytest.fixture
def looks(monkeypatch):
    """How often a sweep was looked at in a process of its own since this was last asked."""
    calls, call = [], local.call
    monkeypatch.setattr(local, "call", lambda *args: calls.append(args) or call(*args))

    def looks():
        number = len(calls)
        calls.clear()
        return number

    return looks


def test_a_finished_sweep_is_not_looked_at_again(make, looks):
    config = make(decoders=["nearest", "bilinear"], seeds=[0, 1])
    results, code, _ = sweep(config)
    assert (code, len(results), looks()) == (0, 4, 1)
    plan = make_plan(config)
    assert (looks(), plan.todo, plan.cohorts, plan.failing) == (0, [], [], [])
    assert sorted(run.key for run in plan.runs) == sorted(result.row["key"] for result in results.values())
    assert sweep(config)[0].keys() == results.keys()
    assert looks() == 0
    assert make_plan(make(decoders=["nearest"], seeds=[1])).todo == []
    assert looks() == 1  # of these decoders nothing was remembered
    assert (len(make_plan(make(decoders=["nearest"], seeds=[0, 2])).todo), looks()) == (1, 1)


def test_a_finished_sweep_imports_no_torch(tmp_path, root):
    path, data = tmp_path / "tiny.yaml", {"name": "folder", "root": str(root), "classes": ["a", "b"]}
    path.write_text(yaml.safe_dump(tiny(runs_dir=str(tmp_path / "runs"), decoders=["nearest"]) | {"data": data}))
    told = "import sys; from segbench.cli import main; code = main(['plan', sys.argv[1]]); "
    told += "print(code, 'torch' in sys.modules, 'multiprocessing.forkserver' in sys.modules)"
    said = []
    for _ in range(2):
        said.append(subprocess.run([sys.executable, "-c", told, path], capture_output=True, text=True, check=True))
        subprocess.run([sys.executable, "-m", "segbench.cli", "sweep", path], capture_output=True, check=True)
    assert [s.stdout.splitlines()[-1] for s in said] == ["0 False True", "0 False False"]
    assert said[1].stdout.splitlines()[0] == "tiny: 1 runs, 1 done, 0 to do"


def test_what_has_changed_is_looked_at(make, root, looks, monkeypatch):
    config = make(decoders=["nearest"])
    results, _, _ = sweep(config)
    (result,) = results.values()
    assert (make_plan(config).todo, looks()) == ([], 1)
    with monkeypatch.context() as patch:
        patch.setattr(remembered, "place", lambda *_: "another")
        assert (make_plan(config).todo, looks()) == ([], 1)
    assert (make_plan(config).todo, looks()) == ([], 0)
    memory = result.folder.parent / KNOWN
    memory.write_bytes(memory.read_bytes()[:-9])
    assert (make_plan(config).todo, looks()) == ([], 1)
    whole = (result.folder / store.RESULT).read_text()
    (result.folder / store.RESULT).write_text(whole.replace('"steps"', '"stops"'))
    assert (len(make_plan(config).damaged), looks()) == (1, 1)
    (result.folder / store.RESULT).write_text(whole)
    assert (make_plan(config).todo, looks()) == ([], 0)
    assert (len(make_plan(make(decoders=["nearest"], recipe={"lr": 1e-4})).todo), looks()) == (1, 1)
    Image.fromarray(np.ones((64, 64), np.uint8)).save(root / "masks/val/0.png")
    assert (len(make_plan(config).todo), looks()) == (1, 1)


def test_what_facts_hang_on(make, tmp_path, monkeypatch):
    """Each of these changes the place by which they are remembered; an editor's lock, a link to nothing, does not."""
    code, packages, devices = (tmp_path / name for name in ("segbench", "packages", "dev"))
    code.mkdir()
    (code / "__init__.py").write_text("")
    monkeypatch.setattr(remembered.segbench, "__file__", str(code / "__init__.py"))
    monkeypatch.setattr(remembered, "DEVICES", devices)
    monkeypatch.syspath_prepend(packages)
    config = make(decoders=["nearest"])
    places = [remembered.place(config, False)]
    for change in (
        lambda: (code / "upsampler.py").write_text("scale = 2"),
        lambda: (code / "upsampler.py").write_text("scale = 13"),
        lambda: (packages / "timm-2.0.dist-info").mkdir(parents=True),
        lambda: (devices / "nvidia0").mkdir(parents=True),
        lambda: monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0"),
    ):
        change()
        places.append(remembered.place(config, False))
        (code / f".#{len(places)}.py").symlink_to("me@host.1:2")
        assert remembered.place(config, False) == places[-1]
    places += [remembered.place(config, True), remembered.place(make(decoders=["bilinear"]), False)]
    assert len(set(places)) == len(places) == 8
    assert remembered.place(make(decoders=["nearest"], seeds=[4], name="other"), False) == places[5]


def test_facts_are_not_remembered_where_something_changed_while_they_were_found(make, monkeypatch):
    config, places = make(decoders=["nearest"]), iter(["before", "after", "same", "same"])
    monkeypatch.setattr(remembered, "place", lambda *_: next(places))
    for there in ([], ["same"]):
        _look(config, list(variants(config, {})), False, False)
        assert list(KnownFiles.read(_folder(config)).facts) == there


def test_a_weights_file_that_changes_is_looked_at(make_config, tmp_path, looks):
    encoder, path = build_encoder(EncoderConfig(name="resnet18", weights="none")), tmp_path / "weights.safetensors"
    tensors = {name: t.clone() for name, t in encoder.body.state_dict().items()}
    save_file(tensors, path)
    config = make_config(decoders=["nearest"], encoder={"name": "resnet18", "weights": str(path)})
    sweep(config)
    assert (make_plan(config).todo, looks()) == ([], 2)  # of drawn data, a plan alone leaves no folder
    assert (make_plan(config).todo, looks()) == ([], 0)
    save_file({name: t + 1 if t.is_floating_point() else t for name, t in tensors.items()}, path)
    assert (len(make_plan(config).todo), looks()) == (1, 1)


def test_code_of_the_user_s_is_always_looked_at(make_config, tmp_path, looks):
    (tmp_path / "own.py").write_text(WHOLE)
    config = make_config(decoders=["nearest", f"{tmp_path}/own.py:Whole"])
    sweep(config)
    assert (make_plan(config).todo, looks()) == ([], 2)


def test_what_is_remembered_is_what_was_found(make):
    plan = make_plan(make(decoders=["nearest", "carafe"]))
    (facts,) = KnownFiles.read(plan.folder).facts.values()
    assert facts == plan.runs[0].facts
