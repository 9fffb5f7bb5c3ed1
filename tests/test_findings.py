"""Data that mislead: each kind on a small set of its own, found by `data check` and said by the sweep."""

import csv

import cv2
import numpy as np
import pytest
from PIL import Image

from segbench.cli import main
from segbench.config import DataConfig, RecipeConfig
from segbench.errors import UserError
from segbench.loading.check import check_data
from tests.test_loading_check import CLASSES, write


@pytest.fixture
def root(tmp_path):
    """Four training images and two to evaluate on, of 32x48, each with all classes."""
    labels = np.tile(np.arange(48, dtype=np.uint8) // 16, (32, 1))
    for i in range(6):
        write(tmp_path, "train" if i < 4 else "val", f"{i}", labels, i)
    return tmp_path


def warnings(root, recipe=None, **more):
    config = DataConfig(name="folder", root=str(root), **{"classes": CLASSES, **more})
    found = check_data(config, processes=1, recipe=recipe)
    assert found.errors == []
    return found.warnings


def test_nothing_is_said_of_sound_data(root):
    assert warnings(root, RecipeConfig(steps=1, crop=32)) == []


def test_12_bits_in_16_are_read_as_black(root):
    for path in (root / "images" / "train").glob("*.png"):
        values = np.random.default_rng(0).integers(0, 4096, (32, 48, 3)).astype(np.uint16)
        assert cv2.imwrite(str(path), values)
    said = warnings(root)
    assert said == [
        "train: 3 images are copies of others, such as 1 of 0",
        "train: no pixel of any image is above 32 of 255: images of 10 or 12 bits in 16-bit files are read as black; "
        "store them with the full range",
    ]
    assert cv2.imwrite(str(root / "images/train/0.png"), np.full((32, 48, 3), 40_000, np.uint16))
    assert not any("no pixel" in line for line in warnings(root))


def test_a_photo_that_is_turned_by_its_exif_data(root):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: its size stays what it is, so that nothing else shows it
    (root / "images/train/0.png").unlink()
    photo.save(root / "images/train/0.jpg", exif=exif)
    assert warnings(root) == ["train: 1 images are turned as their EXIF data say, such as 0: are their labels too?"]


def test_an_image_of_another_size_by_far(root):
    write(root, "val", "large", np.tile(np.arange(480, dtype=np.uint8) // 160, (320, 1)), 9)
    assert warnings(root) == ["val: image large is 480x320, 100 times the pixels of the median one"]


def test_labels_in_a_lossy_format(root):
    write(root, "val", "5", np.full((32, 48), 1, np.uint8), 5)
    Image.open(root / "masks/val/5.png").save(root / "masks/val/5.jpg", quality=100)
    (root / "masks/val/5.png").unlink()
    (said,) = warnings(root)
    assert said.startswith("val: 1 label files are JPEG or WebP, such as ")
    assert said.endswith("masks/val/5.jpg: labels change in them; store PNG")


def test_images_that_are_smaller_than_the_crop(root):
    (said,) = warnings(root, RecipeConfig(steps=1, crop=(16, 64)))
    assert said == "train: 4 of 4 images are smaller than recipe.crop, 16x64: the rest of a crop is void"


def test_the_sweep_says_so_too(root, write_sweep, capsys):
    data = {"name": "folder", "root": str(root), "classes": CLASSES}
    path = write_sweep(recipe={"crop": 64})
    assert main(["sweep", str(path), f"data={data}", "decoders=[nearest]"]) == 0
    assert "note train: 4 of 4 images are smaller than recipe.crop, 64x64" in capsys.readouterr().err
    assert main(["data", "check", str(path), f"data={data}"]) == 0
    assert "warning  train: 4 of 4 images are smaller than recipe.crop, 64x64" in capsys.readouterr().out


def test_many_classes_take_few_lines(root, write_sweep, capsys):
    data = {"name": "folder", "root": str(root), "classes": [*CLASSES, *(f"class{i}" for i in range(147))]}
    assert main(["data", "check", str(write_sweep(recipe={"crop": 32})), f"data={data}"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 20
    assert "147 classes nowhere: no score, and left out of the means: class0, class1, " in out
    assert "class9, and 137 more" in out
    assert max(map(len, out.splitlines())) < 200


def test_hidden_files_are_no_masks(root):
    (root / "masks/train/._0.png").write_bytes(b"Mac OS X")
    assert warnings(root) == []


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_with_other_delimiters(root, delimiter):
    with open(root / "table.csv", "w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["image", "mask", "split"])
        for split, names in (("train", "0123"), ("val", "45")):
            rows.writerows([f"images/{split}/{n}.png", f"masks/{split}/{n}.png", split] for n in names)
    assert warnings(root, table=str(root / "table.csv")) == []


def test_colours_are_refused_with_the_way_out(root):
    for path in (root / "masks").rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    found = check_data(DataConfig(name="folder", root=str(root), classes=CLASSES), processes=1)
    assert len(found.errors) == 3 + 1 + 2
    assert found.errors[3] == "... and 1 more like this"
    assert "where colours stand for classes, say masks: rgb and palette: [[r, g, b], ...]" in found.errors[0]


def test_a_list_without_brackets(root):
    with pytest.raises(UserError, match=r"classes should be a list, not 'sky,road,car' \(write \[sky, road, car\]\)"):
        check_data(DataConfig(name="folder", root=str(root), classes="sky,road,car"))
