"""Training batches and evaluation images: what they hold, whatever the workers, the start and the epoch."""

import os
import sys

import cv2
import numpy as np
import pytest
import torch

from segbench.config import RecipeConfig
from segbench.data.base import VOID
from segbench.data.shapes import Shapes
from segbench.loading import pipeline
from segbench.loading.pipeline import Batches, TrainStream, Workers, augmentation, evaluation_images, train_loader
from segbench.runs import Facts
from segbench.sweep.plan import spare_cores


class Clock:
    """That goes on when it is told to."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Slow(Shapes):
    """Which takes a second to read an image, by its clock."""

    def read(self, index):
        self.clock.now += 1
        return super().read(index)


RECIPE = RecipeConfig(steps=7, batch_size=4, crop=(32, 48), color_jitter=0.3)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_do_not_depend_on_workers(workers):
    """7 batches of 4 over 6 images: more than four epochs, each augmented anew."""
    data = Shapes("train", 40, 6, 1)
    wanted = list(train_loader(data, RECIPE, seed=3, start_step=0, workers=0))
    got = list(train_loader(data, RECIPE, seed=3, start_step=0, workers=workers))
    assert len(got) == 7
    for a, b in zip(wanted, got, strict=True):
        assert (a[0].shape, a[1].shape) == ((4, 3, 32, 48), (4, 32, 48))
        assert (a[0] == b[0]).all()
        assert (a[1] == b[1]).all()


def test_a_later_start_gives_the_same_batches():
    data = Shapes("train", 40, 6, 1)
    whole = list(train_loader(data, RECIPE, 3, 0, 0))
    rest = list(train_loader(data, RECIPE, 3, 5, 2))
    assert len(rest) == 2
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(whole[5:], rest, strict=True))


@pytest.mark.parametrize(("asked", "spare", "most"), [(None, 2, 1), (None, 0, 0), (0, 2, 0), (1, 0, 1)])
def test_workers_are_chosen_where_reading_takes_time(monkeypatch, asked, spare, most):
    """A batch takes two seconds to read, and three to use."""
    clock = Clock()
    monkeypatch.setattr(pipeline, "time", clock)
    monkeypatch.setattr(Workers, "most", 0)
    recipe, data = RecipeConfig(steps=20, batch_size=2, crop=(32, 48)), Slow("train", 40, 6, 1)
    data.clock = clock
    found = []
    for batch in Batches(data, recipe, 3, 1, Workers(asked, spare)):
        clock.now += 3
        found.append(batch)
    wanted = list(train_loader(data, recipe, 3, 1, 0))
    assert len(found) == len(wanted) == 19
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, wanted, strict=True))
    assert Workers.most == most


@pytest.mark.parametrize(("read_s", "use_s", "wanted"), [(0.001, 0.1, 0), (0.05, 0.1, 1), (0.1, 0.1, 2), (1.0, 0.1, 3)])
def test_as_many_workers_as_keep_up_on_the_cores_that_are_left(read_s, use_s, wanted):
    assert Workers(None, 3).enough(read_s, use_s) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="loader processes are chosen on Linux only")
@pytest.mark.parametrize(
    ("launcher", "jobs", "threads", "accelerator", "wanted"),
    [
        ("local", None, 4, "cpu", 0),  # two cohorts on eight cores
        ("local", 1, 5, "cpu", 3),
        ("local", 1, 16, "cpu", 0),
        ("local", None, 8, "cuda", 7),
        ("local", 4, 2, "cuda", 1),
        ("ray", 1, 4, "cpu", 0),
        ("slurm", 1, 4, "cuda", 3),
    ],
)
def test_cores_that_are_left_to_loader_processes(
    make_config, monkeypatch, launcher, jobs, threads, accelerator, wanted
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    config = make_config(launch={"launcher": launcher, "jobs": jobs})
    facts = Facts(accelerator, 1, "", ("a", "b"), [], 1, (4,), {}, [])
    assert spare_cores(config, facts, threads) == wanted


def test_every_image_once_an_epoch_and_never_the_same_twice():
    data = Shapes("train", 40, 6, 1)
    stream = TrainStream(data, RECIPE, 0, 0)
    drawn = []
    stream.dataset = type("Spy", (), {"__len__": lambda s: 6, "read": lambda s, i: drawn.append(i) or data.read(i)})()
    samples = [stream[i] for i in range(24)]
    assert all(sorted(drawn[e * 6 : e * 6 + 6]) == list(range(6)) for e in range(4))
    assert drawn[:6] != drawn[6:12]
    assert len({image.tobytes() for image, _ in samples}) == 24


def test_augmentation_keeps_labels_labels():
    """Scaled and cropped labels are labels of the image or void, and stay over what they label."""
    labels = np.zeros((60, 60), np.uint8)
    labels[20:40, 20:40] = 5
    image = np.repeat(labels[..., None] * 40, 3, 2)
    augment = augmentation(RecipeConfig(steps=1, crop=(48, 80), scale=(0.5, 2.0)))
    for seed in range(20):
        augment.set_random_seed(seed)
        out = augment(image=image, mask=labels)
        assert out["image"].shape == (48, 80, 3)
        assert set(np.unique(out["mask"])) <= {0, 5, VOID}
        inner = cv2.erode((out["mask"] == 5).astype(np.uint8), np.ones((5, 5))) > 0
        assert (out["image"][inner] == 200).all()


def test_evaluation_sees_each_image_once_whole():
    data = Shapes("val", (40, 56), 1, 5)
    for workers in (0, 2):
        seen = list(evaluation_images(data, Workers(workers, 0)))
        assert [i for i, _, _ in seen] == [0, 1, 2, 3, 4]
        assert all(np.array_equal(image, data.read(i)[0]) for i, image, _ in seen)
        assert [i for i, _, _ in evaluation_images(data, Workers(workers, 0), 3)] == [3, 4, 0, 1, 2]
