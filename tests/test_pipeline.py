"""The augmentation against plain scale-then-crop, its distribution, batches, and the cache of decoded images."""

import errno
import multiprocessing
import os
import pickle
import random
import warnings
from collections import namedtuple
from fractions import Fraction

import albumentations as A
import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from segbench.config import RecipeConfig
from segbench.data.base import VOID
from segbench.data.folder import Folder
from segbench.data.shapes import Shapes
from segbench.errors import UserError
from segbench.loading import cache
from segbench.loading.cache import Cached, cached, decoded_bytes
from segbench.loading.pipeline import (
    MEAN_COLOUR,
    ScaledCrop,
    TrainStream,
    Workers,
    augmentation,
    evaluation_images,
    train_loader,
    window,
)

RNG = np.random.default_rng(0)


def pair(height, width):
    """Noise, where every pixel matters; labels too."""
    return RNG.integers(0, 256, (height, width, 3), np.uint8), RNG.integers(0, 20, (height, width)).astype(np.uint8)


def cut(image, labels, crop, scale, positions):
    transform, scales = ScaledCrop((1, 1), crop), np.broadcast_to(scale, 2).tolist()
    axes = [window(*side) for side in zip(image.shape[:2], crop, scales, positions, strict=True)]
    return transform.apply(image, scales, axes), transform.apply_to_mask(labels, scales, axes), axes


def by_hand(image, labels, crop, scale, axes):
    """Each pixel by itself, from the whole image, in floating point; a region that keeps its size is a copy."""
    out, out_labels = np.full((*crop, 3), float(MEAN_COLOUR)), np.full(crop, VOID)
    taps = []
    sizes = [axis.source.stop - axis.source.start for axis in axes]
    scales = np.broadcast_to(scale, 2).tolist()
    scales = [1.0, 1.0] if all(round(n * s) == n for n, s in zip(sizes, scales, strict=True)) else scales
    for axis, length, size, factor in zip(axes, image.shape[:2], crop, scales, strict=True):
        number = min(size, round(length * factor))
        scaled = np.arange(number) + axis.scaled.start
        at = np.clip(axis.source.start + (scaled + 0.5) / factor - 0.5, 0, length - 1)
        low = np.minimum(np.floor(at).astype(int), max(length - 2, 0))
        nearest = np.minimum(axis.source.start + np.floor((scaled + 0.5) / factor).astype(int), length - 1)
        taps.append((slice(axis.before, axis.before + number), low, np.minimum(low + 1, length - 1), at - low, nearest))
    (ys, y0, y1, fy, yn), (xs, x0, x1, fx, xn) = taps
    image = image.astype(float)
    rows = image[y0] * (1 - fy)[:, None, None] + image[y1] * fy[:, None, None]
    out[ys, xs] = rows[:, x0] * (1 - fx)[None, :, None] + rows[:, x1] * fx[None, :, None]
    out_labels[ys, xs] = labels[np.ix_(yn, xn)]
    return out, out_labels


def test_a_scaled_crop_is_what_each_pixel_by_itself_gives():
    """Sizes, scales and places at random, whole image and padding among them: labels equal, images within one level."""
    rng = random.Random(0)
    for number in range(300):
        image, labels = pair(rng.randint(1, 60), rng.randint(1, 60))
        crop = (rng.randint(1, 50), rng.randint(1, 50))
        scale = max(rng.uniform(0.3, 3), 1 / min(labels.shape))
        if number % 3 == 0:  # to a size with other proportions
            scale = (scale, max(rng.uniform(0.3, 3), 1 / min(labels.shape)))
        pixels, found, axes = cut(image, labels, crop, scale, (rng.random(), rng.random()))
        wanted, wanted_labels = by_hand(image, labels, crop, scale, axes)
        assert (pixels.shape, found.shape) == ((*crop, 3), crop)
        np.testing.assert_array_equal(found, wanted_labels)
        assert np.abs(pixels - wanted).max() <= 1


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.0, 1.25, 1.5, 2.0])
def test_a_scaled_crop_is_cut_from_the_scaled_image(scale):
    """Scaling the whole image and cropping after gives the same, bit for bit, where the grids fall together."""
    image, labels = pair(48, 64)
    whole = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    nearest = [[int((i + Fraction(1, 2)) / Fraction(scale)) for i in range(round(n * scale))] for n in (48, 64)]
    whole_labels = labels[np.ix_(*nearest)]  # of exact fractions: libraries differ where a centre lies on an edge
    compared = 0
    for position in np.linspace(0, 1, 50):
        pixels, found, axes = cut(image, labels, (16, 20), scale, (position, 1 - position))
        starts = [axis.source.start * scale + axis.scaled.start for axis in axes]
        if all(start == int(start) for start in starts):
            (y, x), compared = map(int, starts), compared + 1
            np.testing.assert_array_equal(pixels, whole[y : y + 16, x : x + 20])
            np.testing.assert_array_equal(found, whole_labels[y : y + 16, x : x + 20])
    assert compared >= 3


def test_padding_is_that_of_albumentations():
    image, labels = pair(30, 40)
    pixels, found, _ = cut(image, labels, (33, 48), 0.5, (0.3, 0.9))
    plain = A.Compose(
        [
            A.Resize(15, 20, interpolation=cv2.INTER_LINEAR, mask_interpolation=cv2.INTER_NEAREST_EXACT),
            A.PadIfNeeded(33, 48, border_mode=cv2.BORDER_CONSTANT, fill=MEAN_COLOUR, fill_mask=VOID),
        ]
    )(image=image, mask=labels)
    np.testing.assert_array_equal(pixels, plain["image"])
    np.testing.assert_array_equal(found, plain["mask"])


@pytest.mark.parametrize(("length", "crop"), [(1, 1), (1, 64), (7, 5), (500, 513), (500, 32), (2048, 1024)])
def test_a_window_has_the_crop_with_a_pixel_to_spare_on_each_side(length, crop):
    rng = random.Random(0)
    for _ in range(300):
        scale = max(rng.uniform(0.2, 4), 1 / length)
        position = rng.choice([0.0, 1.0, rng.random()])
        source, scaled, before = window(length, crop, scale, position)
        assert 0 <= source.start < source.stop <= length
        assert 0 <= scaled.start < scaled.stop <= round((source.stop - source.start) * scale)
        number = scaled.stop - scaled.start
        assert number == min(crop, round(length * scale))
        assert before == (crop - number) // 2
        # The source position of the first and the last pixel lies between pixels that are there, or at the image's rim.
        first, last = ((scaled.start + i + 0.5) / scale - 0.5 for i in (0, number - 1))
        assert first >= 0 or source.start == 0
        assert last <= source.stop - source.start - 1 or source.stop == length


class Grid:
    """One image of 90x120 whose pixels say where they are."""

    def __init__(self):
        y, x = np.mgrid[0:90, 0:120].astype(np.uint8)
        self.pair = np.dstack([y, x, x]), np.zeros((90, 120), np.uint8)

    def __len__(self):
        return 1

    def read(self, index):
        return self.pair


def test_scale_place_and_flip_are_uniform_and_know_nothing_of_each_other():
    recipe = RecipeConfig(steps=2000, batch_size=1, crop=(32, 40), scale=(0.5, 2.0))
    stream = TrainStream(Grid(), recipe, 3, 0)
    drawn = []
    for i in range(len(stream)):
        stream[i]
        crop, flip = stream.augment.transforms
        scale = crop.params["scales"][0]
        places = [
            (axis.source.start * scale + axis.scaled.start) / (length * scale - size)
            for axis, length, size in zip(crop.params["axes"], (90, 120), (32, 40), strict=True)
        ]
        drawn.append((scale, *places, bool(flip.params)))
    scales, ys, xs, flips = np.array(drawn, float).T
    for values, low, width in ((scales, 0.5, 1.5), (ys, 0, 1), (xs, 0, 1)):
        assert stats.kstest(values, "uniform", (low, width)).pvalue > 1e-3
    assert abs(flips.mean() - 0.5) < 0.04
    correlation = np.corrcoef([scales, ys, xs, flips])
    assert np.abs(correlation - np.eye(4)).max() < 0.09  # 4 sd of 2,000 independent draws


def test_samples_have_the_statistics_of_the_plain_order():
    """RandomScale, PadIfNeeded, RandomCrop and flip of albumentations: share of void, and where the content lies."""
    recipe = RecipeConfig(steps=1500, batch_size=1, crop=(64, 80), scale=(0.5, 2.0))
    steps = [
        A.RandomScale((-0.5, 1.0), interpolation=cv2.INTER_LINEAR, mask_interpolation=cv2.INTER_NEAREST_EXACT, p=1),
        A.PadIfNeeded(64, 80, border_mode=cv2.BORDER_CONSTANT, fill=MEAN_COLOUR, fill_mask=VOID),
        A.RandomCrop(64, 80),
        A.HorizontalFlip(p=0.5),
    ]
    plain = A.Compose(steps)
    image, labels = Grid().pair
    stream = TrainStream(Grid(), recipe, 0, 0)
    ours, theirs = [], []
    for i in range(len(stream)):
        plain.set_random_state(np.random.default_rng(i), random.Random(i))
        out = plain(image=image, mask=labels)
        for rows, (pixels, mask) in ((ours, stream[i]), (theirs, (out["image"], out["mask"]))):
            valid = mask != VOID
            content = pixels[valid]
            rows.append((1 - valid.mean(), *content.mean(0)[:2], *content.std(0)[:2]))
    for a, b in zip(np.array(ours).T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.parametrize(("resize", "wanted"), [(15, (15, 20)), ([24, 24], (24, 24)), (60, (60, 80))])
def test_an_image_is_brought_to_a_size_before_all_else(resize, wanted):
    """By its shorter side, or by both sides; scales relate to that size."""
    image, labels = pair(30, 40)
    recipe = RecipeConfig(steps=1, crop=wanted, scale=(1, 1), flip=0, resize=resize)
    out = augmentation(recipe)(image=image, mask=labels)
    plain = cv2.resize(image, wanted[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(out["image"].astype(int) - plain).max() <= 1
    assert VOID not in out["mask"]
    half = RecipeConfig(steps=1, crop=wanted, scale=(0.5, 0.5), resize=resize)
    mask = augmentation(half)(image=image, mask=labels)["mask"]
    assert (mask != VOID).mean() == pytest.approx(0.25, rel=0.1)


def test_a_one_pixel_image_is_a_sample():
    augment = augmentation(RecipeConfig(steps=1, crop=(32, 48), scale=(0.1, 0.2)))
    out = augment(image=np.full((1, 1, 3), 9, np.uint8), mask=np.full((1, 1), 3, np.uint8))
    assert (out["image"].shape, out["mask"].shape) == ((32, 48, 3), (32, 48))
    assert (out["mask"] == 3).sum() == 1


def test_a_batch_is_its_samples():
    recipe = RecipeConfig(steps=3, batch_size=4, crop=(32, 48))
    data = Shapes("train", 40, 6, 1)
    stream = TrainStream(data, recipe, 3, 4)
    batches = list(train_loader(data, recipe, 3, 1, 0))
    assert len(batches) == 2
    samples = [stream[i] for i in range(8)]
    np.testing.assert_array_equal(
        np.concatenate([batch.images.numpy() for batch in batches]),
        np.stack([i.transpose(2, 0, 1) for i, _ in samples]),
        np.stack([i.transpose(2, 0, 1) for i, _ in samples]),
    )
    np.testing.assert_array_equal(
        np.concatenate([batch.labels.numpy() for batch in batches]), np.stack([mask for _, mask in samples])
    )


@pytest.fixture
def own(tmp_path):
    """A folder of five images of different sizes, read by `Folder`."""
    for kind in ("images", "masks"):
        (tmp_path / "own" / kind / "train").mkdir(parents=True)
    for i in range(5):
        image, labels = pair(20 + i, 30 - i)
        Image.fromarray(image).save(tmp_path / "own" / "images" / "train" / f"{i}.png")
        Image.fromarray(labels).save(tmp_path / "own" / "masks" / "train" / f"{i}.png")
    return lambda: Folder("train", tmp_path / "own", [str(i) for i in range(20)])


RECIPE = RecipeConfig(steps=4, batch_size=3, crop=(24, 24))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_no_batch(own, tmp_path, workers):
    quick = cached(own(), tmp_path / "cache", "")
    assert isinstance(quick, Cached)
    assert (quick.classes, quick.ids, quick.split, len(quick)) == (own().classes, own().ids, "train", 5)
    assert (quick.fingerprint(), quick.labelled) == (own().fingerprint(), True)
    for i in range(5):
        for a, b in zip(own().read(i), pickle.loads(pickle.dumps(quick)).read(i), strict=True):
            np.testing.assert_array_equal(a, b)
            assert not b.flags.writeable
    wanted, found = (list(train_loader(data, RECIPE, 1, 0, workers)) for data in (own(), quick))
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(wanted, found, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(p.flags.writeable and q.flags.writeable for _, p, q in evaluation_images(quick, Workers(workers, 0)))


def test_a_cache_is_made_once_and_again_where_data_or_key_change(own, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(Folder, "read", lambda self, i, old=Folder.read: read.append(i) or old(self, i))
    data, folder = own(), tmp_path / "cache"
    cached(data, folder, "a").read(0)
    assert sorted(set(read)) == [0, 1, 2, 3, 4]
    read.clear()
    cached(data, folder, "a").read(0)
    assert read == []
    cached(data, folder, "b")
    assert len(list(folder.iterdir())) == 2
    os.utime(data.pairs[2][1], (1, 1))
    cached(own(), folder, "a")
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("keep", [0, 7, -1, -100])
def test_a_cache_that_was_cut_short_is_made_anew(own, tmp_path, keep):
    folder = tmp_path / "cache"
    first = cached(own(), folder, "")
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    with pytest.raises(UserError, match=rf"{file.name} is damaged; delete it"):
        first.read(0)
    np.testing.assert_array_equal(cached(own(), folder, "").read(4)[1], own().read(4)[1])
    assert file.read_bytes() == whole


def test_a_cache_that_does_not_fit_is_refused(own, tmp_path, monkeypatch):
    data, folder = own(), tmp_path / "cache"
    total = sum(4 * labels.size for _, labels in map(data.read, range(5)))
    assert decoded_bytes(data) == total
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage(10**12, 10**12, total - 1))
    with pytest.raises(UserError, match=r"split 'train' takes about 0\.0 GB decoded, .*cache has 0\.0 GB left"):
        cached(data, folder, "")
    monkeypatch.undo()

    def full(stream, dataset):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_fill", full)
    with pytest.raises(UserError, match="takes about"):
        cached(data, folder, "")
    assert list(folder.iterdir()) == []


def test_a_cache_of_bad_files_leaves_nothing(own, tmp_path):
    data = own()
    data.pairs[3][2].write_bytes(b"")
    with pytest.raises(UserError, match=r"3\.png is empty"):
        cached(data, tmp_path / "cache", "")
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"launch\.cache: cannot use .*file/.*"):
        cached(own(), tmp_path / "file" / "cache", "")


def test_drawn_data_need_no_cache(tmp_path):
    data = Shapes("train", 40, 6, 1)
    assert cached(data, tmp_path / "cache", "") is data
    assert not (tmp_path / "cache").exists()


def _build(data, folder, log):
    def read(index, old=data.read):
        with open(log, "ab", buffering=0) as file:
            file.write(b".")
        return old(index)

    data.read = read
    cached(data, folder, "")


def test_processes_that_want_one_cache_make_it_once(own, tmp_path):
    fork = multiprocessing.get_context("fork")
    work = [fork.Process(target=_build, args=(own(), tmp_path / "cache", tmp_path / "log")) for _ in range(3)]
    for process in work:
        process.start()
    for process in work:
        process.join(60)
    assert [process.exitcode for process in work] == [0, 0, 0]
    assert len((tmp_path / "log").read_bytes()) == 5 + 5  # all once, and once before to know the size
