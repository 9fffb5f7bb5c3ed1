import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from segbench.config import RecipeConfig
from segbench.data.base import VOID, read_image, read_labels
from segbench.data.camvid import CamVid
from segbench.data.pipeline import TrainStream, augmentation, evaluation_images, train_loader
from segbench.data.shapes import Shapes, _coverage, _pen
from segbench.errors import UserError
from segbench.registry import DATASETS, check_params


@pytest.fixture
def small_camvid(tmp_path):
    """CamVid's layout in miniature, drawn; the lists hold paths of another machine, as published."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", 2)):
        lines = []
        for folder in (split, f"{split}annot"):
            (tmp_path / folder).mkdir()
        for i in range(number):
            Image.fromarray(rng.integers(0, 255, (36, 48, 3), np.uint8)).save(tmp_path / split / f"{i}.png")
            Image.fromarray(rng.integers(0, 12, (36, 48)).astype(np.uint8)).save(
                tmp_path / f"{split}annot" / f"{i}.png"
            )
            lines.append(f"/SegNet/CamVid/{split}/{i}.png /SegNet/CamVid/{split}annot/{i}.png")
        (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def test_shapes_are_a_function_of_seed_split_and_index():
    a, b = Shapes("train", 64, 4, 2), Shapes("train", 64, 4, 2)
    forward = [a.read(i) for i in range(4)]
    backward = {i: b.read(i) for i in (3, 1, 0, 2)}
    for i in range(4):
        assert all(np.array_equal(x, y) for x, y in zip(forward[i], backward[i], strict=True))
    assert not np.array_equal(forward[0][0], forward[1][0])
    assert not np.array_equal(forward[0][0], Shapes("val", 64, 4, 2).read(0)[0])
    assert not np.array_equal(forward[0][0], Shapes("train", 64, 4, 2, seed=1).read(0)[0])


def test_shapes_of_any_size_hold_every_class():
    data = Shapes("train", (50, 131), 40, 2)
    images = [data.read(i) for i in range(len(data))]
    assert all(x.shape == (50, 131, 3) and x.dtype == np.uint8 and y.shape == (50, 131) for x, y in images)
    assert set(np.unique(np.stack([y for _, y in images]))) == set(range(len(data.classes)))
    assert len(data.classes) >= 6


def test_colour_does_not_give_the_class_away():
    """The mean colours of the classes over many scenes are alike, next to the spread of colours within a class."""
    data = Shapes("train", 64, 150, 1)
    colours = {c: [] for c in range(7)}
    for i in range(len(data)):
        image, labels = data.read(i)
        for c in np.unique(labels):
            colours[int(c)].append(image[labels == c].mean(0))
    means = np.array([np.mean(colours[c], 0) for c in range(7)])
    spread = np.mean([np.std(colours[c], 0) for c in range(7)])
    assert np.abs(means - means.mean(0)).max() < spread / 2


def test_coverage_is_exact():
    """A box with sub-pixel corners covers what the product of its overlaps says, to the 1/8 px of the sampling."""
    box = np.array([[2.25, 3.5], [7.75, 3.5], [7.75, 6.0], [2.25, 6.0]])
    alpha, (top, left) = _coverage([[box]], 12, 12)
    full = np.zeros((12, 12))
    full[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
    edges = lambda low, high: np.clip(np.minimum(np.arange(12) + 1, high) - np.maximum(np.arange(12), low), 0, 1)  # noqa: E731
    wanted = np.outer(edges(3.5, 6.0), edges(2.25, 7.75))
    np.testing.assert_allclose(full, wanted, atol=0.13)  # fillPoly draws its border: half a sub-pixel on each side
    assert abs(full.sum() - wanted.sum()) < 0.08 * wanted.sum()


def test_lines_have_the_width_they_are_drawn_with():
    for width in (1.0, 2.5, 4.0):
        alpha, _ = _coverage(_pen(np.array([[5.3, 6.1], [55.2, 41.7]]), width), 50, 64)
        length = np.hypot(49.9, 35.6)
        assert alpha.sum() == pytest.approx(length * width + np.pi * width**2 / 4, rel=0.12)


def test_camvid_reroots_and_maps_void(small_camvid):
    data = CamVid("train", small_camvid)
    image, labels = data.read(2)
    raw = np.asarray(Image.open(small_camvid / "trainannot/2.png"))
    assert image.shape == (36, 48, 3)
    assert data.ids == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(labels == VOID, raw == 11)
    np.testing.assert_array_equal(labels[raw < 11], raw[raw < 11])
    np.testing.assert_array_equal(image, np.asarray(Image.open(small_camvid / "train/2.png")))


def test_real_camvid(camvid_root):
    train, val = CamVid("train", camvid_root), CamVid("val", camvid_root)
    assert (len(train), len(val), len(train.classes)) == (367, 101, 11)
    image, labels = val.read(0)
    assert (image.shape, labels.shape) == ((360, 480, 3), (360, 480))
    assert set(np.unique(labels)) <= {*range(11), VOID}


def test_fingerprint_follows_content_not_place(small_camvid, tmp_path_factory):
    before = CamVid("train", small_camvid).fingerprint()
    moved = tmp_path_factory.mktemp("elsewhere") / "camvid"
    shutil.copytree(small_camvid, moved)
    assert CamVid("train", moved).fingerprint() == before
    labels = np.asarray(Image.open(moved / "trainannot/1.png")).copy()
    labels[0, 0] = (labels[0, 0] + 1) % 11
    Image.fromarray(labels).save(moved / "trainannot/1.png")
    assert CamVid("train", moved).fingerprint() != before


def _truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _labels(value):
    return lambda path: Image.fromarray(np.full((36, 48), value, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("train/1.png", _truncate, r"train/1\.png is truncated: it breaks off after \d+ bytes"),
        ("train/1.png", lambda p: p.write_bytes(b""), r"train/1\.png is empty \(0 bytes\)"),
        ("train/1.png", lambda p: p.write_bytes(b"GIF, or so"), r"train/1\.png is not an image that can be read"),
        ("trainannot/1.png", _truncate, r"trainannot/1\.png is truncated"),
        (
            "trainannot/1.png",
            lambda p: p.write_bytes(b"nothing"),
            r"trainannot/1\.png is not an image that can be read",
        ),
        ("trainannot/1.png", _labels(12), r"trainannot/1\.png holds label 12; allowed are 0 to 10, and 11 for void"),
        ("trainannot/1.png", _labels(255), r"trainannot/1\.png holds label 255; allowed are 0 to 10, and 11 for void"),
        (
            "trainannot/1.png",
            lambda p: Image.new("L", (47, 36)).save(p),
            r"1\.png is 48x36 but its labels .*1\.png are 47x36",
        ),
        (
            "trainannot/1.png",
            lambda p: Image.new("RGB", (48, 36)).save(p),
            r"has mode RGB; a label map is one channel",
        ),
    ],
)
def test_a_bad_file_is_named(small_camvid, file, spoil, message):
    spoil(small_camvid / file)
    with pytest.raises(UserError, match=message) as caught:
        CamVid("train", small_camvid).read(1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "train.txt").unlink(), r"no list .*train\.txt; expected: train\.txt"),
        (lambda r: (r / "train.txt").write_text("\n"), r"train\.txt lists no images"),
        (
            lambda r: (r / "train.txt").write_text("one\n"),
            r"train\.txt: should hold an image and a label path on each line, not 'one'",
        ),
        (lambda r: (r / "trainannot/2.png").unlink(), r"train\.txt: no file .*trainannot/2\.png"),
    ],
)
def test_a_bad_layout_is_explained(small_camvid, spoil, message):
    spoil(small_camvid)
    with pytest.raises(UserError, match=message):
        CamVid("train", small_camvid)


def test_wrong_split_and_parameters():
    with pytest.raises(UserError, match=r"unknown split 'vall' \(did you mean 'val'\?\)"):
        Shapes("vall")
    with pytest.raises(UserError, match="data set 'camvid': root is missing"):
        check_params(DATASETS, "camvid", CamVid, {})
    with pytest.raises(UserError, match=r"data set 'shapes' has no parameter 'sice' \(did you mean 'size'\?\)"):
        check_params(DATASETS, "shapes", Shapes, {"sice": 3})
    with pytest.raises(UserError, match="data set 'shapes': train should be a valid integer"):
        check_params(DATASETS, "shapes", Shapes, {"train": "many"})


def test_palette_labels_give_indices(tmp_path):
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 5
    image = Image.fromarray(indices, "P")
    image.putpalette([i * 7 % 256 for i in range(768)])
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "p.png"), indices)


def test_truncated_jpeg_is_refused(tmp_path):
    """OpenCV would fill the rest with grey."""
    path = tmp_path / "x.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    assert read_image(path).shape == (64, 64, 3)
    _truncate(path)
    assert cv2.imread(str(path)) is not None
    with pytest.raises(UserError, match="truncated"):
        read_image(path)


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
        seen = list(evaluation_images(data, workers))
        assert [i for i, _, _ in seen] == [0, 1, 2, 3, 4]
        assert all(np.array_equal(image, data.read(i)[0]) for i, image, _ in seen)
