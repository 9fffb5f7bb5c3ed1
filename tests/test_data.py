"""Data sets of files, CamVid's layout for one, and the errors that name a bad file."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from segbench.data.base import VOID, read_image, read_labels
from segbench.data.camvid import CamVid
from segbench.data.shapes import Shapes
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
    with pytest.raises(UserError, match="data set 'shapes': train should be a whole number"):
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
