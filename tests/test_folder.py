import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from segbench.config_file import build_config
from segbench.data.base import VOID, read_image
from segbench.data.camvid import CamVid
from segbench.data.folder import Folder
from segbench.errors import UserError
from tests.conftest import tiny

CLASSES = ["a", "b", "c"]
PALETTE = [(0, 0, 0), (200, 0, 10), (0, 200, 10)]
LABELS = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16) % 3


@pytest.fixture
def own(tmp_path):
    rng = np.random.default_rng(0)
    for split, names in {"train": ("one", "zwei drei", "été"), "val": ("four",)}.items():
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
        for name in names:
            Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).save(
                tmp_path / "images" / split / f"{name}.jpg"
            )
            Image.fromarray(LABELS).save(tmp_path / "masks" / split / f"{name}.png")
    return tmp_path


def test_matching_stems_with_spaces_and_accents(own):
    data = Folder("train", own, CLASSES)
    assert data.ids == ["one", "zwei drei", "été"]
    assert data.splits == ("train", "val")
    np.testing.assert_array_equal(data.read(2)[1], LABELS)


def _palette(path):
    image = Image.fromarray(LABELS, "P")
    image.putpalette([v for colour in PALETTE for v in colour])
    image.save(path)


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (_palette, {}),
        (lambda p: Image.fromarray(LABELS.astype(np.uint16)).save(p), {}),
        (lambda p: Image.fromarray(np.array(PALETTE, np.uint8)[LABELS]).save(p), {"masks": "rgb", "palette": PALETTE}),
    ],
    ids=["palette", "16 bit", "rgb"],
)
def test_masks_of_any_kind_give_the_same_labels(own, write, options):
    write(own / "masks/val/four.png")
    np.testing.assert_array_equal(Folder("val", own, CLASSES, **options).read(0)[1], LABELS)


def test_void_by_label_or_by_colour(own):
    data = Folder("val", own, ["a", "b"], void=2)
    np.testing.assert_array_equal(data.read(0)[1], np.where(LABELS == 2, VOID, LABELS))
    Image.fromarray(np.array(PALETTE, np.uint8)[LABELS]).save(own / "masks/val/four.png")
    data = Folder("val", own, ["a", "b"], palette=PALETTE[:2], masks="rgb", void_color=PALETTE[2])
    np.testing.assert_array_equal(data.read(0)[1], np.where(LABELS == 2, VOID, LABELS))


def test_a_table_in_place_of_folders(own):
    (own / "list.csv").write_text(
        "image,mask,split\nimages/train/one.jpg,masks/train/one.png,train\nimages/val/four.jpg,masks/val/four.png,test\n"
    )
    data = Folder("test", own, CLASSES, table=own / "list.csv")
    assert (data.splits, data.ids) == (("test", "train"), ["images/val/four"])


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda r: (r / "masks/val/four.png").unlink(), {}, r"images/val/four\.jpg has no mask; expected"),
        (lambda r: (r / "images/val/four.jpg").unlink(), {}, r"masks/val/four\.png has no image"),
        (
            lambda r: shutil.copy(r / "images/val/four.jpg", r / "images/val/four.png"),
            {},
            r"two files with one stem: .*four\.jpg and .*four\.png",
        ),
        (lambda r: shutil.rmtree(r / "masks/val"), {}, r"no folder .*masks/val"),
        (lambda r: shutil.rmtree(r / "images/val"), {}, r"unknown split 'val'.*there is: train"),
        (lambda r: shutil.rmtree(r / "images"), {}, r"has no folder images"),
        (
            lambda r: [shutil.rmtree(p) for p in (r / "images").iterdir()],
            {},
            r"images has no folder of a split, such as (train|val); expected: images/<split>/NAME\.jpg",
        ),
        (lambda r: (r / "masks/val/four.png").write_bytes(b""), {}, r"four\.png is empty \(0 bytes\)"),
        (
            lambda r: Image.fromarray(LABELS * 100).save(r / "masks/val/four.png"),
            {},
            r"holds label 100; allowed are 0 to 2, and 255 for void",
        ),
        (
            lambda r: Image.fromarray(LABELS.astype(np.uint16) * 200).save(r / "masks/val/four.png"),
            {},
            r"holds label 400; labels go from 0 to 255",
        ),
        (
            lambda r: None,
            {"masks": "rgb", "palette": [(9, 9, 9), (1, 1, 1), (2, 2, 3)]},
            r"holds the colour \(0, 0, 0\) at \(0, 0\), which is in no palette",
        ),
        (lambda r: None, {"masks": "rgb"}, r"data\.palette is missing"),
        (lambda r: None, {"palette": [(0, 0, 0)]}, r"data\.palette has 1 colours for 3 classes"),
        (lambda r: None, {"void": 1}, r"data\.void: 1 is the label of class 'b'"),
        (
            lambda r: (r / "t.csv").write_text("image,split\n"),
            {"table": "t.csv"},
            r"has no column 'image'|has no column 'mask'",
        ),
    ],
)
def test_faults_are_named(own, spoil, options, message):
    spoil(own)
    if "table" in options:
        options = {"table": own / options["table"]}
    with pytest.raises(UserError, match=message) as caught:
        Folder("val", own, CLASSES, **options).read(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "write",
    [
        lambda p, a: Image.fromarray(a[..., 0]).save(p.with_suffix(".png")),
        lambda p, a: Image.fromarray(np.dstack([a, a[..., :1]])).save(p.with_suffix(".png")),
        lambda p, a: Image.fromarray(a).convert("CMYK").save(p.with_suffix(".jpg")),
        lambda p, a: cv2.imwrite(str(p.with_suffix(".png")), a[..., ::-1].astype(np.uint16) * 257),
        lambda p, a: Image.fromarray(a[:1, :1]).save(p.with_suffix(".bmp")),
        lambda p, a: Image.fromarray(a).save(p.with_suffix(".tif")),
        lambda p, a: Image.fromarray(a).save(p.with_suffix(".webp"), lossless=True),
    ],
    ids=["grey", "alpha", "CMYK", "16 bit", "1x1", "tiff", "webp"],
)
def test_any_image_becomes_rgb(tmp_path, write):
    array = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    write(tmp_path / "x", array)
    path = next(tmp_path.iterdir())
    image = read_image(path)
    assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
    if path.suffix != ".jpg" and image.shape[0] > 1 and not (image[..., 0] == image[..., 1]).all():
        np.testing.assert_array_equal(image, array)


def test_the_same_images_through_camvid_and_folder(camvid_root, tmp_path):
    """Twelve real pairs, copied into a folder set for this test only: batches and labels are the same."""
    root = tmp_path / "own"
    sets = {split: CamVid(split, camvid_root) for split in ("train", "val")}
    lists = tmp_path / "camvid"
    for split, data in sets.items():
        for kind, folder in (("images", split), ("masks", f"{split}annot")):
            (root / kind / split).mkdir(parents=True)
            (lists / folder).mkdir(parents=True)
        lines = []
        for name, image, labels in data.pairs[:6]:
            shutil.copy(image, root / "images" / split)
            shutil.copy(labels, root / "masks" / split)
            shutil.copy(image, lists / split)
            shutil.copy(labels, lists / f"{split}annot")
            lines.append(f"x/{split}/{name}.png x/{split}annot/{name}.png\n")
        (lists / f"{split}.txt").write_text("".join(lines))
    from tests.test_sweep import same, sweep

    results = []
    for data in (
        {"name": "camvid", "root": str(lists)},
        {"name": "folder", "root": str(root), "classes": list(CamVid.classes), "void": 11},
    ):
        config = build_config(tiny(runs_dir=str(tmp_path / data["name"])) | {"data": data})
        found, code, out = sweep(config)
        assert code == 0, out
        results.append(found)
    assert all(same(results[0][key], results[1][key]) for key in results[0])
