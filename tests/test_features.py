"""Features that are computed once: the same numbers with and without, by any number of processes, whatever breaks."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from segbench import store
from segbench.config import RecipeConfig
from segbench.config_file import build_config
from segbench.data.shapes import Shapes
from segbench.loading import features
from segbench.loading.features import KeptFeatures, View, feature_sets
from segbench.loading.pipeline import TrainStream, train_loader
from segbench.sweep.plan import make_plan
from segbench.training.cohort import run_cohort
from tests.conftest import ROOT, segbench, tiny, until
from tests.test_sweep import all_same, sweep

LOGGING = """
from tests.own_encoder import OwnEncoder

class Logging(OwnEncoder):
    def __init__(self, *, log: str):
        super().__init__(dropout=0.0)
        with open(log, "a") as file:
            file.write("built\\n")
"""
EVALUATION = {"flip": True, "mode": "slide", "window": 48, "stride": 32}


def kept_sweep(tmp_path, kept="kept", runs="runs", **changes):
    """A sweep with two seeds and two views an image, that keeps features in a folder."""
    recipe = {"views": 2, "steps": 5} | changes.pop("recipe", {})
    launch = {"features": str(tmp_path / kept)} if kept else {}
    where = {"runs_dir": str(tmp_path / runs)}
    return tiny(seeds=[0, 1], recipe=recipe, launch=launch, evaluation=EVALUATION, **where, **changes)


def run(values):
    results, code, out = sweep(build_config(values))
    assert code == 0, out
    return results


def files(folder):
    """Each kept file -> its bytes and the time at which it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.glob("*/*/*.safetensors"))}


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """What is to come out, with no features kept."""
    return run(kept_sweep(tmp_path_factory.mktemp("without"), kept=None))


def test_weights_and_counts_are_bit_equal_with_and_without(tmp_path, without):
    first, again = run(kept_sweep(tmp_path)), run(kept_sweep(tmp_path, runs="again"))
    assert all_same(first, without)
    assert all_same(again, without)
    assert {r.row["key"] for r in first.values()} == {r.row["key"] for r in without.values()}
    assert {r.row["features_hash"] for r in again.values()} == {r.row["features_hash"] for r in without.values()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_so_they_are_in_half_precision(tmp_path, without, dtype):
    kept, plain = (
        run(kept_sweep(tmp_path, kept=k, runs=r, encoder={"dtype": dtype})) for k, r in (("kept", "a"), (None, "b"))
    )
    assert all_same(kept, plain)
    key = "bilinear", 0
    assert kept[key].row["key"] != without[key].row["key"]
    (there,) = (s for s in feature_sets(tmp_path / "kept") if s.folder.name.startswith("train"))
    tensors = KeptFeatures(there.folder, getattr(torch, dtype))
    name = next(there.folder.glob("*/*.safetensors")).stem
    raw = tensors.read(name)
    assert raw["level0"].dtype == torch.float32
    assert torch.equal(raw["level0"], raw["level0"].to(getattr(torch, dtype)).float())


def test_the_encoder_is_not_loaded_once_all_is_kept(tmp_path):
    log, code = tmp_path / "log", tmp_path / "logging_encoder.py"
    code.write_text(LOGGING)
    encoder = {"name": f"{code}:Logging", "weights": "default", "params": {"log": str(log)}}

    def built(**changes):
        log.write_text("")
        run(kept_sweep(tmp_path, encoder=encoder, **changes))
        return len(log.read_text().splitlines())

    planning = 1
    assert built(kept=None, runs="plain") == planning + 2  # a cohort for each seed
    # Five steps of two are under two epochs of six images: of the twelve views a seed can ask for others than the last.
    assert planning + 1 <= built(recipe={"steps": 6}) <= planning + 2
    before = files(tmp_path / "kept")
    assert len([path for path in before if path.parts[-3].startswith("train")]) == 12
    assert built(runs="again", recipe={"steps": 6}) == planning
    assert built(runs="longer", recipe={"steps": 9}, decoders=["bilinear", "deconv"]) == planning  # another decoder
    assert files(tmp_path / "kept") == before  # none was written again


def test_what_is_damaged_is_computed_again(tmp_path, without):
    run(kept_sweep(tmp_path))
    paths = list(files(tmp_path / "kept"))
    whole = [path.read_bytes() for path in paths]
    for i, path in enumerate(paths):
        data = bytearray(whole[i])
        match i % 4:
            case 0:
                data[-3] ^= 1
            case 1:
                del data[len(data) // 2 :]
            case 2:
                data.clear()
            case 3:
                data[20] ^= 255  # of the header
        path.write_bytes(data)
    assert all_same(run(kept_sweep(tmp_path, runs="again")), without)
    assert [path.read_bytes() for path in paths] == whole


@pytest.mark.parametrize("asked", [0, 6])
def test_a_full_disk_costs_time_alone(tmp_path, without, monkeypatch, capfd, asked):
    """Whether it is full from the start or becomes so."""
    written, plenty = [], shutil.disk_usage(tmp_path)

    def soon_full(folder):
        written.append(folder)
        return plenty if len(written) <= asked else plenty._replace(free=features.LEFT_FREE - 1)

    monkeypatch.setattr(features.shutil, "disk_usage", soon_full)
    assert all_same(in_this_process(kept_sweep(tmp_path)), without)
    assert len(files(tmp_path / "kept")) == max(0, asked - 2)  # two sets were made
    assert "would be free; what is not kept is computed each time" in capfd.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, write_sweep):
    (tmp_path / "file").write_text("")
    told = segbench("sweep", write_sweep(recipe={"views": 2}), f"launch.features={tmp_path / 'file'}")
    assert told.returncode == 2
    assert f"launch.features: {tmp_path / 'file'} is no folder" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_trainable_encoder_keeps_none(tmp_path, write_sweep):
    told = segbench("sweep", write_sweep(), f"launch.features={tmp_path / 'kept'}", "encoder.trainable=true")
    assert (told.returncode, "launch.features: a trainable encoder's features change" in told.stderr) == (2, True)


def start(values, path):
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "segbench.cli", "sweep", str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


@pytest.mark.slow
def test_two_sweeps_at_once_and_a_killed_writer(tmp_path, without):
    """One of the two is killed in the midst of its writing, with all its processes; its next call goes on."""
    left, right = (kept_sweep(tmp_path, runs=name) for name in ("left", "right"))
    doomed, other = start(left, tmp_path / "left.yaml"), start(right, tmp_path / "right.yaml")
    until(lambda: len(files(tmp_path / "kept")) > 3 or doomed.poll() is not None)
    os.killpg(doomed.pid, signal.SIGKILL)
    doomed.wait()
    out, _ = other.communicate(timeout=300)
    assert other.returncode == 0, out.decode()
    results = run(left)
    assert all_same(results, without)
    assert all_same(run(right), without)


def test_a_half_written_file_of_a_writer_that_is_gone_is_removed(tmp_path, without):
    """By the next cohort that uses the set."""
    run(kept_sweep(tmp_path))
    place = next((tmp_path / "kept").glob("*/*/*.safetensors")).parent
    old, new = place / ".0-1.safetensors.host-1.tmp", place / ".0-2.safetensors.host-2.tmp"
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert all_same(run(kept_sweep(tmp_path, runs="again")), without)
    assert (old.exists(), new.exists()) == (False, True)


def in_this_process(config):
    """Its cohorts, one after the other; its results."""
    plan = make_plan(build_config(config))
    for cohort in plan.cohorts:
        failures = {}
        run_cohort(cohort, failures, lambda *_: None, lambda: False, 1)
        assert not failures
    return {(r.title, r.seed): store.read_result(r.folder) for r in plan.runs}


def test_seeds_begin_their_evaluation_at_different_images(tmp_path, without, monkeypatch):
    """So that those which run side by side find what the others have kept; counts are in the split's order."""
    asked, keeper = [], KeptFeatures.keeper
    monkeypatch.setattr(KeptFeatures, "keeper", lambda self, i, device: asked.append(i) or keeper(self, i, device))
    assert all_same(in_this_process(kept_sweep(tmp_path)), without)
    assert asked == ["0", "1", "2", "1", "2", "0"]


# Views


def drawn(seed, views, epochs=4, number=5):
    recipe = RecipeConfig(steps=epochs, batch_size=number, crop=(32, 32), views=views)
    stream = TrainStream(Shapes("train", 40, number, 1), recipe, seed, 0)
    return [(*stream.place(i)[1:], stream[i]) for i in range(epochs * number)]


def test_views_are_those_of_the_image_and_not_of_the_seed():
    views = {}
    for seed in (0, 1, 7):
        found = drawn(seed, views=2)
        for index, view, (image, labels) in found:
            before = views.setdefault((index, view), (image, labels))
            np.testing.assert_array_equal(before[0], image)
            np.testing.assert_array_equal(before[1], labels)
        for index in range(5):  # each of its views in turn
            mine = [view for i, view, _ in found if i == index]
            assert mine[0] != mine[1]
            assert mine[:2] == mine[2:]
    assert sorted(views) == [(index, view) for index in range(5) for view in range(2)]
    assert all(not np.array_equal(views[i, 0][0], views[i, 1][0]) for i in range(5))
    assert len({tuple(view for _, view, _ in drawn(seed, 2)[:5]) for seed in range(8)}) > 1  # seeds begin elsewhere


def test_without_a_number_of_views_each_epoch_has_its_own():
    images = [image for index, _, (image, _) in drawn(0, None) if index == 2]
    assert all(not np.array_equal(a, b) for i, a in enumerate(images) for b in images[:i])


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_views_and_drawn_ones_make_the_same_batches(tmp_path, workers):
    recipe = RecipeConfig(steps=6, batch_size=4, crop=(32, 32), views=2)
    data, kept = Shapes("train", 40, 5, 1), KeptFeatures(tmp_path / "set", torch.float32)
    plain = list(train_loader(data, recipe, 3, 0, workers))
    for batch in plain[:2]:
        for i, place in enumerate(batch.views):
            kept.write_view(*place, View(batch.images[i], batch.labels[i], [torch.full((1, 2, 2), float(place[0]))]))
    there = {place for batch in plain[:2] for place in batch.views}
    for wanted, found in zip(plain, train_loader(data, recipe, 3, 0, workers, kept), strict=True):
        assert torch.equal(wanted.images, found.images)
        assert torch.equal(wanted.labels, found.labels)
        assert wanted.views == found.views
        assert found.kept == [i for i, place in enumerate(found.views) if place in there]
        for level in found.features:
            assert level.shape == (len(found.kept), 2, 2, 1)
            assert level.mean((1, 2, 3)).tolist() == [found.views[i][0] for i in found.kept]
        assert len(found.features) == bool(found.kept)


def test_the_number_of_views_and_the_dtype_are_in_the_key_and_the_folder_is_not(make_config, tmp_path):
    def key(**changes):
        return make_plan(make_config(decoders=["bilinear"], **changes)).runs[0].key

    plain = key()
    assert len({plain, key(recipe={"views": 1}), key(recipe={"views": 2}), key(encoder={"dtype": "float16"})}) == 4
    assert key(launch={"features": str(tmp_path / "kept")}) == plain


# What is told of them


@pytest.mark.slow
def test_plan_tells_their_size_and_keeps_none(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(kept_sweep(tmp_path, recipe={"steps": 40})))
    told = segbench("plan", path)
    assert told.returncode == 0, told.stderr
    assert not (tmp_path / "kept").exists()
    (line,) = (line for line in told.stdout.splitlines() if line.startswith("features"))
    assert f"to keep in {tmp_path / 'kept'}" in line

    def said(line):
        return float(line.split()[2]) * {"bytes": 1, "kB": 1e3, "MB": 1e6}[line.split()[3]]

    assert segbench("sweep", path).returncode == 0
    real = sum(kept.size for kept in feature_sets(tmp_path / "kept"))
    assert said(line) == pytest.approx(real, rel=0.1)
    told = segbench("plan", path, "seeds=[0,1,2]").stdout  # the third asks for what is there
    assert "features about 0 bytes to keep" in told
    few = ["data.train=40", "recipe.steps=3", f"runs_dir={tmp_path / 'few'}"]  # of 80 views seed 0 draws 6
    for seeds in ("[0]", "[0,1,2]"):
        lines = segbench("plan", path, *few, f"seeds={seeds}").stdout.splitlines()
        (line,) = (line for line in lines if line.startswith("features"))
        assert segbench("sweep", path, *few, f"seeds={seeds}").returncode == 0
        now = sum(kept.size for kept in feature_sets(tmp_path / "kept"))
        assert said(line) == pytest.approx(now - real, rel=0.1)
        real = now


def test_they_are_listed_and_cleared(tmp_path, without, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run(kept_sweep(tmp_path, decoders=["nearest"]))
    told = segbench("features", tmp_path / "kept")
    train, val = (
        next(line for line in told.stdout.splitlines() if line.startswith(w)).split() for w in ("train", "val")
    )
    assert train[1:5] == ["tf_efficientnet_lite0", "shapes", "train", "2"]
    assert val[1:4] == ["tf_efficientnet_lite0", "shapes", "val"]
    assert int(val[4]) == 3 * 2 * 4  # images, mirrored or not, windows
    told = segbench("features", tmp_path / "kept", "--only", train[0], "--clear")
    assert told.returncode == 0
    assert [kept.folder.name for kept in feature_sets(tmp_path / "kept")] == [val[0]]
    assert segbench("features", tmp_path / "kept", "--only", train[0]).returncode == 2
    assert "no folder" in segbench("features", tmp_path / "gone").stderr
    again = run(kept_sweep(tmp_path, runs="again", decoders=["nearest"]))
    assert all_same(again, {key: r for key, r in without.items() if key[0] == "nearest"})
