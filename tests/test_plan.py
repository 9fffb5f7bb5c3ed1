"""The key, over every field of a config; `segbench plan`; `segbench status`."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from pydantic import BaseModel
from rich.console import Console

from segbench import store
from segbench.config import EvaluationConfig, RecipeConfig, SweepConfig, TrainerConfig
from segbench.config_file import build_config
from segbench.errors import UserError
from segbench.launch import local
from segbench.runs import ClassFacts, Cohort, Facts, make_runs, run_key
from segbench.sweep.estimate import _makespan, estimate
from segbench.sweep.facts import resolve_accelerator
from segbench.sweep.plan import make_plan, resources
from segbench.sweep.progress import Display
from segbench.sweep.status import duration, read_status
from segbench.tuning import variants
from tests.conftest import ROOT, segbench, tiny, until
from tests.test_sweep import in_training, slow_sweep, sweep

FACTS = Facts(
    "cpu", 0, "weights", ("a", "b"), ["Shapes", "source", "params", "train", "val"], 3, (4, 8, 16, 32),
    {"bilinear": ClassFacts("Bilinear", {"width": 8}, "source")}, [["MIoU", {}, "source"]],
)  # fmt: skip

# For every field another value than the default (of `tiny`), and whether it changes the numbers of a run.
CHANGES = {
    "name": ("other", False),
    "data": (None, True),  # by the data set's own facts, below
    "decoders": (["bilinear", "nearest", "deconv"], False),
    "decoder_defaults": (None, True),  # by the decoder's facts, below
    "skeleton": (None, True),  # by the decoder's facts, below
    "seeds": ([0, 5], False),  # of another run
    "grid": ({"recipe.lr": [0.002]}, False),
    # What is chosen by these stands in the run's own recipe and parameters.
    "tune": ({"search": {"recipe.lr": [0.1, 0.2]}}, False), "budget": ({"params": 1e5}, False),
    "baseline": ("nearest", False),
    "runs_dir": ("elsewhere", False),
    "encoder.params": (None, True),  # by the encoder's facts, below
    "encoder.name": ("resnet18", True), "encoder.weights": ("a/file/with/the/same.weights", False),  # their hash counts
    "encoder.dtype": ("bfloat16", True),
    "encoder.trainable": (True, True), "encoder.lr_factor": (0.5, False), "encoder.strides": ([4, 8], True),
    "task.name": (None, True), "task.params": (None, True),  # by the task's facts, below
    "recipe.steps": (5, True), "recipe.batch_size": (4, True), "recipe.crop": (32, True),
    "recipe.scale": ([1.0, 1.0], True), "recipe.flip": (0.0, True), "recipe.color_jitter": (0.1, True),
    "recipe.optimizer": ("sgd", True), "recipe.lr": (0.1, True), "recipe.weight_decay": (0.5, True),
    "recipe.momentum": (0.5, True), "recipe.schedule": ("poly", True), "recipe.power": (0.5, True),
    "recipe.resize": (48, True), "recipe.views": (2, True), "recipe.min_lr": (1e-4, True),
    "recipe.cosine_steps": (2, True),
    "recipe.warmup_steps": (1, True), "recipe.clip_norm": (1.0, True), "recipe.class_weights": ([1.0, 2.0], True),
    "evaluation.mode": (None, True), "evaluation.window": (None, True), "evaluation.stride": (None, True),  # below
    "evaluation.flip": (True, True), "evaluation.scales": ([1.0, 0.5], True),
    "evaluation.fit": ("resize", True), "evaluation.resize": (48, True), "evaluation.label_size": (48, True),
    "evaluation.padding": ("replicate", True), "measures": (None, True),  # by their own facts, below
    "evaluation.every": (2, False),
    "trainer.accelerator": (None, True),  # as it was resolved, below
    "trainer.precision": ("bf16-mixed", True), "trainer.compile": (True, True), "trainer.deterministic": (True, True),
    "trainer.benchmark": (True, True),
    "launch.launcher": ("ray", False), "launch.params": ({"queue": "gpu"}, False), "launch.address": ("auto", False),
    "launch.slurm.cluster": ("local", False),  # where, not what
    **{f"launch.slurm.{name}": (7, False)
       for name in ("timeout_min", "signal_delay_s", "cpus_per_task", "gpus_per_node", "mem_gb")},
    **{f"launch.slurm.{name}": ("x", False)
       for name in ("partition", "account", "qos", "constraint", "gres", "nodelist", "exclude")},
    "launch.on_oom": ("split", False), "launch.jobs": (3, False), "launch.threads": (3, False),
    "launch.timeout_min": (7.0, False),
    "launch.workers": (3, False), "launch.trackers": ([], False), "launch.checkpoint_minutes": (1.0, False),
    "launch.cache": ("/dev/shm", False), "launch.features": ("/dev/shm", False),
}  # fmt: skip


def fields(model=SweepConfig, prefix=""):
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name != "data":
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def key(changes=None, facts=FACTS, seed=0):
    values = tiny()
    for dotted, value in (changes or {}).items():
        *section, last = dotted.split(".")
        place = values
        for name in section:
            place = place.setdefault(name, {})
        place[last] = value
    config = build_config(values)
    return run_key(config, facts, config.decoders[0], seed)


def test_every_field_is_judged():
    """A new field must say here whether it changes numbers."""
    assert sorted(fields()) == sorted(CHANGES)


@pytest.mark.parametrize("field", [f for f, (value, _) in CHANGES.items() if value is not None])
def test_a_field_makes_a_new_run_where_it_changes_numbers_and_only_there(field):
    value, counts = CHANGES[field]
    assert (key({field: value}) != key()) == counts


@pytest.mark.parametrize(
    "changes",
    [
        {"accelerator": "cuda"}, {"encoder_hash": "other"}, {"classes": ("b", "a")}, {"strides": (4, 8, 16)},
        *({"data": [v if i != j else "other" for j, v in enumerate(FACTS.data)]} for i in range(5)),
        *({"decoders": {"bilinear": dataclasses.replace(FACTS.decoders["bilinear"], **change)}}
          for change in ({"class_name": "B"}, {"params": {"width": 9}}, {"source": "other"})),
        {"measures": [["MIoU", {}, "other"]]},
        {"encoder": ClassFacts("E", {}, "source")},
        {"task": ClassFacts("T", {}, "source")},
    ],
)  # fmt: skip
def test_what_names_stand_for_is_in_the_key(changes):
    assert key(facts=dataclasses.replace(FACTS, **changes)) != key()


def test_what_a_plugged_in_encoder_is_stands_in_the_key_and_not_where_its_file_lies():
    plugin = ClassFacts("Mine", {"width": 8}, "source")
    own = lambda name="a.py:Mine", **changes: key(  # noqa: E731
        {"encoder.name": name}, dataclasses.replace(FACTS, encoder=dataclasses.replace(plugin, **changes))
    )
    assert own("moved/a.py:Mine") == own()
    changed = ({"class_name": "Other"}, {"params": {"width": 9}}, {"source": "other"})
    assert len({key(), own(), *(own(**change) for change in changed)}) == 5


def test_seed_and_window_are_in_the_key_and_the_number_of_gpus_is_not():
    assert key(seed=1) != key()
    slide = {"evaluation.mode": "slide", "evaluation.window": 64}
    assert len({key(), key(slide), key(slide | {"evaluation.window": 32}), key(slide | {"evaluation.stride": 8})}) == 4
    crop = {"evaluation.mode": "crop", "evaluation.window": 64}
    assert len({key(), key(slide), key(crop), key(crop | {"evaluation.window": 32})}) == 4
    trained = {"encoder.trainable": True}
    assert len({key(trained), key(trained | {"encoder.lr_factor": 0.5})}) == 2  # its learning rate, where it learns
    assert key(facts=dataclasses.replace(FACTS, gpus=4)) == key()
    assert key({"recipe.steps": RecipeConfig(steps=4).steps}) == key()
    assert key({"evaluation.padding": EvaluationConfig().padding}) == key()


def test_what_a_folder_s_labels_mean_is_in_the_key(make_config, tmp_path):
    """The files are the same; void, the order of classes and the colour table are not."""
    import numpy as np
    from PIL import Image

    for which in ("train", "val"):
        for kind, values in (("images", (64, 64, 3)), ("masks", (64, 64))):
            place = tmp_path / "own" / kind / which
            place.mkdir(parents=True)
            pixels = np.full(values, 1, np.uint8)
            pixels[:9] = 0
            Image.fromarray(pixels).save(place / "a.png")

    def keys(root="own", **params):
        data = {"name": "folder", "root": str(tmp_path / root), "classes": ["a", "b"], **params}
        config = build_config(tiny(runs_dir=str(tmp_path / "runs")) | {"data": data})
        return [run.key for run in make_plan(config).runs]

    base = keys()
    assert keys(void=7) != base
    assert keys(classes=["b", "a"]) != base
    (tmp_path / "own").rename(tmp_path / "moved")
    assert keys(root="moved") == base


def test_plan_says_what_is_to_do_and_estimates_it(make_config, write_sweep, tmp_path):
    config = make_config(decoders=["nearest"])
    sweep(config)
    path = write_sweep(decoders=["nearest", "deconv"], seeds=[0, 1])
    said = segbench("plan", path)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[:4] == [
        "tiny: 4 runs, 1 done, 3 to do", "  seed 0: deconv", "  seed 1: nearest, deconv",
        "1 cohort at a time, 1 thread each",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[4:]] == ["time", "memory", "disk"]
    assert sorted(p.name.split("-")[0] for p in (tmp_path / "runs" / "tiny").glob("*-s*")) == ["nearest"]


@pytest.mark.slow
def test_an_estimate_is_near_the_truth(make_config):
    """Of memory and disk, which noise of the machine leaves alone; of time, that it is of the right order."""
    alone = {"jobs": 1, "threads": 1, "workers": 0}  # a busy machine would start loader processes in one of the two
    config = make_config(
        decoders=["nearest", "deconv"], recipe={"steps": 60, "crop": 96}, data={"val": 30}, launch=alone
    )
    planned = make_plan(config)
    found = estimate(planned)
    began = time.monotonic()
    results, code, _ = sweep(config)
    took = time.monotonic() - began
    if not 0.3 < found.seconds / took < 3:  # the machine's load has changed meanwhile
        found = estimate(planned)
    assert code == 0
    kept = sum(p.stat().st_size for r in results.values() for p in r.folder.rglob("*") if p.is_file())
    assert 0.7 < found.kept_bytes / kept < 1.3
    assert 0.7 < found.memory_bytes / results["nearest", 0].row["values"]["memory"] < 1.3
    assert 0.3 < found.seconds / took < 3


def test_plan_names_each_decoder_that_fails(write_sweep, tmp_path):
    (tmp_path / "bad.py").write_text(
        "from torch import nn\n"
        "class Bad(nn.Module):\n    def __init__(self, channels, scale, guide_channels):\n"
        "        raise RuntimeError('broken here')\n    def forward(self, x): return x\n"
    )
    said = segbench("plan", write_sweep(decoders=["nearest", f"{tmp_path / 'bad.py'}:Bad", "nothing"]))
    assert said.returncode == 2
    assert "tiny: 1 runs, 0 done, 1 to do" in said.stdout
    fails = [line for line in said.stdout.splitlines() if line.startswith("fails: ")]
    assert len(fails) == 2
    assert "broken here" in fails[0]
    assert "unknown decoder 'nothing'" in fails[1]
    assert f"runs the code in {tmp_path / 'bad.py'}" in said.stderr


def test_plan_of_what_fails_as_a_whole(write_sweep):
    said = segbench("plan", write_sweep(data={"size": 2}))
    assert said.returncode == 2
    assert said.stdout.startswith("fails: ")
    assert len(said.stdout.splitlines()) == 1


def test_status_of_a_sweep_that_runs_was_killed_and_is_done(write_sweep, tmp_path):
    path = write_sweep(**slow_sweep(tmp_path) | {"decoders": [f"{tmp_path / 'slow.py'}:Slow"]})
    process = subprocess.Popen(
        [sys.executable, "-m", "segbench.cli", "sweep", str(path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    folder = tmp_path / "runs" / "tiny"
    until(lambda: in_training(tmp_path, 1))
    said = segbench("status", folder)
    assert said.stdout.startswith("tiny: 2 runs: 1 running, 1 waiting")
    assert re.search(r"step \d+ of 24, \d+ s ago, by process \d+ on ", said.stdout)
    process.kill()
    process.wait()
    until(lambda: [s.state for _, s in read_status(folder)] == ["stopped", "waiting"])  # the cohort notices, and saves
    (tmp_path / "go").touch()
    assert segbench("sweep", path).returncode == 0
    said = segbench("status", folder)
    assert said.stdout.startswith("tiny: 2 runs: 2 done")
    assert len(re.findall(r"20\d\d-\d\d-\d\d \d\d:\d\d, trained for \d+ s, beside \d+ s that", said.stdout)) == 2


def test_status_tells_a_killed_run_from_a_failed_and_a_damaged_one(make_config):
    runs = make_plan(make_config(decoders=["nearest", "bilinear", "deconv"])).runs
    folder = runs[0].folder.parent
    store.write_json(
        folder / store.MANIFEST,
        {
            "config": {},
            "runs": [
                {"key": r.key, "decoder": r.title, "seed": 0, "variant": {}, "folder": r.folder.name} for r in runs
            ],
        },
    )
    store.set_status(runs[0].folder, "running", phase="train", done=3, total=4)
    store.fail(runs[1].folder, store.Failure("broken"))
    store.write_json(runs[2].folder / store.RESULT, {"result_version": store.RESULT_VERSION, "checksum": "none"})
    found = [status for _, status in read_status(folder)]
    assert [status.state for status in found] == ["killed", "failed", "damaged"]
    assert found[1].more.startswith("broken (")
    with store.locked(runs[0].folder):
        assert read_status(folder)[0][1].more == "which does not say how far it is"
        since = (time.time() - 30, 1)
        store.set_status(runs[0].folder, "running", phase="train", done=11, total=41, since=since)
        status = read_status(folder)[0][1]
        assert status.state == "running"
        assert re.match(r"step 11 of 41, \d s ago, by .*, about 1 min 30 s of this phase to go$", status.more)
    assert json.loads((runs[0].folder / store.STATUS).read_text())["pid"] == os.getpid()


def test_the_last_cohort_to_end_ends_the_sweep():
    assert _makespan([3, 3, 3], 2) == 6
    assert _makespan([1, 5, 1, 1], 2) == 5
    assert _makespan([], 2) == 0


def test_words_for_times():
    assert [duration(s) for s in (11.6, 200, 7512)] == ["12 s", "3 min 20 s", "2 h 5 min"]


@pytest.mark.parametrize(
    ("place", "number", "visible", "wanted"),
    [(0, 4, "", "0"), (3, 4, "", "3"), (1, 2, "5,7", "7"), (2, 2, "5,7", "5"), (1, 1, "", "0"), (0, 0, "", None)],
)
def test_each_cohort_gets_its_own_gpu(place, number, visible, wanted, monkeypatch):
    from segbench.launch.local import own_gpu

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    facts = dataclasses.replace(FACTS, accelerator="cuda", gpus=number)
    config = build_config(tiny(decoders=["bilinear"]))

    def cohort(facts):
        [run] = make_runs(list(variants(config, {})), lambda config: facts)
        return Cohort((run,), 0)

    assert own_gpu(cohort(facts), place) == wanted
    assert own_gpu(cohort(dataclasses.replace(facts, accelerator="cpu")), place) is None


@pytest.mark.parametrize(("cores", "wanted"), [(1, (1, 1)), (2, (2, 1)), (8, (2, 4))])
def test_two_cohorts_at_a_time_share_the_cores(monkeypatch, cores, wanted):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert resources(build_config(tiny(launch={"jobs": None, "threads": None})), "cpu", 0) == wanted


def test_a_damaged_result_is_named_by_plan(make_config, write_sweep):
    results, _, _ = sweep(make_config(decoders=["nearest", "bilinear"]))
    path = results["nearest", 0].folder / store.RESULT
    path.write_text("{")
    said = segbench("plan", write_sweep(decoders=["nearest", "bilinear"]), "--no-trial")
    assert said.returncode == 0
    assert "tiny: 2 runs, 1 done, 1 to do" in said.stdout
    assert f"damaged nearest-s0: {path} is damaged (Expecting" in said.stdout
    assert path.exists()


def too_large():
    raise MemoryError


def test_a_trial_for_which_memory_is_too_small_says_so():
    with pytest.raises(UserError, match=r"out of memory: with launch\.on_oom=split"):
        local.call(too_large)


def test_the_second_process_starts_at_once():
    """Imports are the fork server's; the best of five, since the machine may be busy."""
    local.call(os.getpid)
    times = []
    for _ in range(5):
        began = time.monotonic()
        local.call(os.getpid)
        times.append(time.monotonic() - began)
    assert min(times) < 1


def test_a_run_that_ends_while_it_is_looked_at_was_not_killed(tmp_path, monkeypatch):
    run = {"key": "key", "decoder": "nearest", "seed": 0, "variant": {}, "folder": "nearest-s0-key"}
    store.write_json(tmp_path / store.MANIFEST, {"config": {}, "runs": [run]})
    store.set_status(tmp_path / run["folder"], "running", phase="evaluate", done=3, total=4)
    held = [True]
    monkeypatch.setattr(store, "is_locked", lambda folder: held[0])
    monkeypatch.setattr(store, "newest_checkpoint", lambda folder: (held.__setitem__(0, False) or 0, None))
    assert [status.state for _, status in read_status(tmp_path)] == ["running"]


def test_as_many_cohorts_as_gpus():
    config = build_config(tiny(launch={"jobs": None}))
    gpus = [dataclasses.replace(FACTS, accelerator="cuda", gpus=number) for number in (0, 1, 4)]
    assert [resources(config, f.accelerator, f.gpus)[0] for f in gpus] == [1, 1, 4]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_of_a_cluster_need_not_be_here():
    """A login node plans for nodes that have what it lacks."""
    trainer = TrainerConfig(accelerator="gpu")
    assert resolve_accelerator(trainer, on_cluster=True) == "cuda"
    with pytest.raises(UserError, match="this machine has no 'gpu'"):
        resolve_accelerator(trainer)
    with pytest.raises(UserError, match="say cpu or gpu"):
        resolve_accelerator(TrainerConfig(accelerator="auto"), on_cluster=True)


def test_where_there_is_no_terminal_a_line_a_minute_says_how_far_it_is(make_config, monkeypatch):
    cohorts = make_plan(make_config(seeds=[0, 1], recipe={"steps": 40})).cohorts
    console, out = Console(file=io.StringIO(), width=200), lambda: console.file.getvalue().splitlines()
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Display(console, cohorts) as display:
        for seconds in range(150):
            clock[0] += 1
            display.update(cohorts[seconds % 2], "train", 1 + seconds // 10, 40)
        (first, second) = out()
        assert re.match(
            r"\d\d:\d\d 15 % after 1 min 0 s, about \d+ min \d+ s to go; seed 0: train, step 6 of 40; ", first
        )
        assert "30 % after 2 min 0 s" in second
        display.end(cohorts[0])
        clock[0] += 60
        display.update(cohorts[1], "evaluate", 2, 3)
    assert re.match(r"\d\d:\d\d 10?\d? ?.*; seed 1: evaluate, image 2 of 3$", out()[2])
    assert "seed 0" not in out()[2]
