import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from segbench.config import DataConfig
from segbench.errors import UserError
from segbench.loading.check import blend, check_data, draw
from tests.conftest import segbench, tiny

CLASSES = ["sky", "road", "car"]


def write(root, split, name, labels, seed):
    image = np.random.default_rng(seed).integers(0, 255, (*labels.shape, 3), np.uint8)
    for kind, picture in (("images", image), ("masks", labels)):
        path = root / kind / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


@pytest.fixture
def root(tmp_path):
    """Three training and two evaluation images of 8x4; label i in column i, 255 in the last column."""
    columns = {
        "a": [0, 0, 1, 1, 1, 2, 0, 255],
        "b": [0] * 7 + [255],
        "c": [1] * 8,
        "d": [0, 1, 2] + [1] * 5,
        "e": [1] * 8,
    }
    for seed, (name, row) in enumerate(columns.items()):
        write(tmp_path, "train" if name in "abc" else "val", name, np.tile(np.array(row, np.uint8), (4, 1)), seed)
    return tmp_path


def check(root, **more):
    return check_data(DataConfig(name="folder", root=str(root), classes=CLASSES, **more), processes=2)


def test_counts_by_hand(root):
    found = check(root)
    assert found.errors == []
    assert found.warnings == []
    train, val = found.splits
    assert train.pixels()[[0, 1, 2, 255]].tolist() == [4 * 10, 4 * 11, 4, 4 * 2]
    assert train.images_with()[:3].tolist() == [2, 2, 1]
    assert val.pixels()[:3].tolist() == [4, 4 * 14, 4]
    assert {look.size for look in train.looks} == {(4, 8)}


def test_every_fault_is_found_and_counted_by_kind(root):
    write(root, "train", "f", np.full((4, 8), 7, np.uint8), 10)
    write(root, "train", "g", np.full((4, 8), 1, np.uint8), 11)
    Image.new("RGB", (9, 4)).save(root / "images/train/g.png")
    (root / "images/train/a.png").write_bytes((root / "images/train/a.png").read_bytes()[:60])
    (root / "masks/val/e.png").write_bytes(b"")
    found = check(root)
    train, val = found.splits
    assert [len(train.faults(kind)) for kind in ("unreadable", "size", "label")] == [1, 1, 1]
    assert [len(val.faults(kind)) for kind in ("unreadable", "size", "label")] == [1, 0, 0]
    said = "\n".join(found.errors)
    for part in (
        "train: .*images/train/a.png is truncated",
        "train: .*g.png is 9x4 but its labels .*g.png are 8x4",
        "train: .*f.png holds label 7; allowed are 0 to 2, and 255 for void",
        "val: .*e.png is empty",
    ):
        assert len([line for line in found.errors if re.search(part, line)]) == 1, said
    assert "1 class in val but not in train: IoU can only be 0: car" in said  # only the broken image showed one


def test_pairs_without_partner(root):
    (root / "masks/train/b.png").unlink()
    (root / "masks/train/c.png").unlink()
    found = check(root)
    assert "images/train/b.png has no mask (and 1 more)" in found.errors[0]
    assert found.splits[1].pixels().sum() == 2 * 32  # the other split is looked at all the same


def test_images_in_both_splits_are_found_by_content(root):
    image = Image.open(root / "images/train/b.png")
    image.save(root / "images/val/e.bmp")  # another name, another format, the same pixels
    (root / "images/val/e.png").unlink()
    found = check(root)
    assert found.errors == ["val: image e is also in train, as b: scores on it are too good"]
    shutil.copy(root / "images/train/a.png", root / "images/train/c.png")
    assert check(root).warnings == ["train: 1 images are copies of others, such as c of a"]


def test_absent_classes_and_void(root):
    write(root, "val", "d", np.full((4, 8), 255, np.uint8), 20)
    found = check_data(DataConfig(name="folder", root=str(root), classes=[*CLASSES, "bus"]), processes=1)
    assert found.errors == ["val: only class 'road' has pixels, so that any model scores 100 %"]
    assert found.warnings == [
        "val: 1 images hold nothing but void, such as d",
        "2 classes in train only: no score, or 0 where predicted: sky, car",
        "1 class nowhere: no score, and left out of the means: bus",
    ]
    write(root, "val", "e", np.full((4, 8), 255, np.uint8), 21)
    assert "val: every pixel is void" in check(root).errors


def test_wrong_names_are_a_users_mistake(root):
    with pytest.raises(UserError, match="unknown data set 'foldr' .did you mean 'folder'"):
        check_data(DataConfig(name="foldr"))
    with pytest.raises(UserError, match=r"data\.root: no folder"):
        check(root / "nowhere")


def test_many_faults_are_named_up_to_three(root):
    for i in range(14):
        write(root, "val", f"z{i:02}", np.full((4, 8), 9, np.uint8), 30 + i)
    found = check(root)
    assert len(found.errors) == 4
    assert found.errors[-1] == "... and 11 more like this"


def test_blend_shows_the_class_colours_and_void_in_white():
    image = np.full((1, 3, 3), 100, np.uint8)
    out = blend(image, np.array([[0, 1, 255]], np.uint8), [(0, 0, 0), (200, 10, 50)])
    assert out[0].tolist() == [[40, 40, 40], [160, 46, 70], [193, 193, 193]]


def test_the_command_prints_both_tables_draws_and_ends_non_zero(root):
    config = root / "own.yaml"
    data = f"data: {{name: folder, root: '{root}', classes: [sky, road, '[red]<b>']}}"
    config.write_text(f"{data}\ndecoders: [bilinear]\nrecipe: {{steps: 1}}\n")
    done = segbench("data", "check", config, "--picture", root / "overlays.png")
    assert done.returncode == 0, done.stderr
    assert "folder, by" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["train", "3", "0", "0", "0", "8x4", "8.33"] in rows
    assert ["1", "road", "50.00", "2", "87.50", "2"] in rows
    assert ["2", "[red]<b>", "4.55", "1", "6.25", "1"] in rows
    assert "nothing that would make a training fail" in done.stdout
    picture = Image.open(root / "overlays.png")
    assert picture.mode == "RGB"
    assert picture.width == 1280
    assert "torch" not in done.stderr
    (root / "images/train/b.png").unlink()
    done = segbench("data", "check", config)
    assert done.returncode == 1
    assert "masks/train/b.png has no image" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_no_picture_without_an_image(root, tmp_path):
    for path in (*root.glob("images/*/*"),):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="not one image could be read"):
        draw(check(root), tmp_path / "x.png")


def test_real_camvid(camvid_root):
    found = check_data(DataConfig(name="camvid", root=str(camvid_root)))
    assert [len(split.good()) for split in found.splits] == [367, 101]
    assert found.errors == []
    assert found.splits[0].pixels().sum() == 367 * 480 * 360


# Masks that lie


def foreground(root, values, val_values=None):
    """Three training and two evaluation masks: a foreground that is another one in each image."""
    for seed, name in enumerate("abcde"):
        split = "train" if name in "abc" else "val"
        low, high = (val_values or values) if split == "val" else values
        labels = np.full((64, 64), low, np.uint8)
        labels[8 : 24 + 4 * seed, 8:48] = high
        write(root, split, name, labels, seed)
    return {"name": "folder", "root": str(root), "classes": ["background", "crack"]}


def run(tmp_path, data, *more):
    path = tmp_path / "own.yaml"
    values = tiny(decoders=["bilinear"], runs_dir=str(tmp_path / "runs")) | {"data": data}
    path.write_text(yaml.safe_dump(values))
    return segbench("sweep", path, *more), segbench("data", "check", path, *more)


def test_masks_of_0_and_255_never_score_100(tmp_path):
    sweep, look = run(tmp_path, foreground(tmp_path, (0, 255)))
    assert sweep.returncode == 2
    assert "only class 'background' has pixels, so that any model scores 100 %" in sweep.stderr
    assert "data.masks=rgb data.palette=[[0,0,0],[255,255,255]]" in sweep.stderr
    assert sweep.stderr.count("\n") == 1
    assert look.returncode == 1
    assert "only class 'background' has pixels" in look.stdout
    sweep, look = run(
        tmp_path, foreground(tmp_path, (0, 255)), "data.masks=rgb", "data.palette=[[0,0,0],[255,255,255]]"
    )
    assert sweep.returncode == 0, sweep.stderr  # the way out
    assert look.returncode == 0, look.stdout
    scored = next((tmp_path / "runs" / "tiny").glob("*/counts.npz"))
    assert np.load(scored)["region"].sum(0)[2].tolist() == [2 * 64 * 64 - (28 + 32) * 40, (28 + 32) * 40]


def test_a_class_that_is_void_in_some_masks(tmp_path):
    data = foreground(tmp_path, (0, 1))
    labels = np.zeros((64, 64), np.uint8)
    labels[8:40, 8:48] = 255
    write(tmp_path, "train", "b", labels, 1)
    sweep, look = run(tmp_path, data)
    said = "train: class 'crack' is missing from exactly the 1 masks that hold void, of 3: is void its label in those?"
    assert sweep.returncode == look.returncode == 0
    assert f"note {said}" in sweep.stderr
    assert f"warning  {said}" in look.stdout
    again, _ = run(tmp_path, data)
    assert said not in again.stderr  # once, when they are read


def test_labels_from_one_on(tmp_path):
    data = foreground(tmp_path, (1, 2)) | {"classes": ["none", "background", "crack"]}
    _, look = run(tmp_path, data)
    assert "no pixel has label 0, 'none': do the masks' labels start at 1?" in look.stdout


def test_an_image_in_both_splits_is_said_by_the_sweep(tmp_path):
    data = foreground(tmp_path, (0, 1))
    shutil.copy(tmp_path / "images/train/a.png", tmp_path / "images/val/d.png")
    sweep, _ = run(tmp_path, data)
    assert sweep.returncode == 0, sweep.stderr
    assert "note val: image d is also in train, as a: scores on it are too good" in sweep.stderr


def test_two_splits_that_do_not_open_for_two_reasons(tmp_path):
    data = foreground(tmp_path, (0, 1))
    for split in ("train", "val"):
        for path in list((tmp_path / "masks" / split).iterdir()):
            path.rename(path.with_name(f"{path.stem}_mask.png"))
    sweep, look = run(tmp_path, data)
    for done in (sweep, look):
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "has no mask" in done.stderr


def test_two_classes_of_one_name(tmp_path):
    data = foreground(tmp_path, (0, 1)) | {"classes": ["crack", "crack"]}
    for done in run(tmp_path, data):
        assert done.returncode == 2
        assert "has two classes called 'crack'" in done.stderr
