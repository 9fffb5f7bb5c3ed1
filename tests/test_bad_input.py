"""Faults of files and folders: each is told in one line that names the file, and odd but sound images are read."""

import errno
import os
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from segbench.data.base import VOID, is_file, is_folder, list_folder, read_image, read_labels, read_list
from segbench.data.folder import Folder
from segbench.data.voc import VOC
from segbench.errors import UserError
from tests.conftest import segbench, tiny

CLASSES = ["a", "b", "c"]
RNG = np.random.default_rng(0)
PHOTO = cv2.GaussianBlur(RNG.integers(0, 255, (20, 30, 3), np.uint8), (0, 0), 3)  # smooth, so that JPEG keeps it
LABELS = (np.arange(20 * 30) % 3).astype(np.uint8).reshape(20, 30)


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path, **options)


def palette_image(array, **options):
    image = Image.fromarray(array, "P")
    image.putpalette([200, 0, 10, 0, 200, 10, 9, 9, 9])
    return image.convert(**options) if options else image


@pytest.fixture
def own(tmp_path):
    """images/ and masks/ with train (one, two) and val (four); 20x30."""
    for split, names in {"train": ("one", "two"), "val": ("four",)}.items():
        for name in names:
            save(tmp_path / "images" / split / f"{name}.jpg", PHOTO)
            save(tmp_path / "masks" / split / f"{name}.png", LABELS)
    return tmp_path


@pytest.fixture
def voc(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "JPEGImages" / f"{name}.jpg", PHOTO)
        save(tmp_path / "SegmentationClass" / f"{name}.png", LABELS)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    return tmp_path


def told(data, message):
    """``data()`` raises a `UserError` of one line."""
    with pytest.raises(UserError, match=message) as caught:
        data()
    assert "\n" not in str(caught.value)


def read_all(root, split="val", **options):
    data = Folder(split, root, CLASSES, **options)
    return [data.read(i) for i in range(len(data))]


def truncate(path, keep=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def turned(array, orientation):
    image = Image.fromarray(array)
    image.getexif()[0x0112] = orientation
    return image


def save_turned(path, array, orientation):
    image = turned(array, orientation)
    image.save(path, exif=image.getexif(), quality=100, subsampling=0)


IMAGE, MASK = "images/val/four.jpg", "masks/val/four.png"
FAULTS = {
    "mask missing": (lambda r: (r / MASK).unlink(), r"images/val/four\.jpg has no mask; expected"),
    "image missing": (lambda r: (r / IMAGE).unlink(), r"masks/val/four\.png has no image; expected"),
    "extra image": (lambda r: save(r / "images/val/five.jpg", PHOTO), r"images/val/five\.jpg has no mask"),
    "extra mask": (lambda r: save(r / "masks/val/five.png", LABELS), r"masks/val/five\.png has no image"),
    "two files with one stem": (
        lambda r: save(r / "images/val/four.png", PHOTO),
        r"two files with one stem: .*images/val/four\.jpg and .*images/val/four\.png",
    ),
    "palette saved as RGB": (
        lambda r: palette_image(LABELS, mode="RGB").save(r / MASK),
        r"masks/val/four\.png has mode RGB; a label map is one channel",
    ),
    "mask with alpha": (lambda r: Image.new("LA", (30, 20)).save(r / MASK), r"val/four\.png has mode LA; a label map"),
    "label 254": (
        lambda r: save(r / MASK, np.where(LABELS == 1, 254, 0).astype(np.uint8)),
        r"masks/val/four\.png holds label 254; allowed are 0 to 2, and 255 for void",
    ),
    "16-bit label": (
        lambda r: save(r / MASK, LABELS.astype(np.uint16) * 200),
        r"masks/val/four\.png holds label 400; labels go from 0 to 255",
    ),
    "negative label": (
        lambda r: (save(r / "masks/val/four.tif", LABELS.astype(np.int32) - 1), (r / MASK).unlink()),
        r"masks/val/four\.tif holds label -1; labels go from 0 to 255",
    ),
    "truncated JPEG": (lambda r: truncate(r / IMAGE), r"images/val/four\.jpg is truncated: it breaks off after \d+"),
    "truncated PNG": (lambda r: truncate(r / MASK), r"masks/val/four\.png is truncated: it breaks off after \d+ bytes"),
    "empty image": (lambda r: (r / IMAGE).write_bytes(b""), r"images/val/four\.jpg is empty \(0 bytes\)"),
    "empty mask": (lambda r: (r / MASK).write_bytes(b""), r"masks/val/four\.png is empty \(0 bytes\)"),
    "text for an image": (lambda r: (r / IMAGE).write_text("404"), r"images/val/four\.jpg is not an image that can be"),
    "text for a mask": (lambda r: (r / MASK).write_text("404"), r"masks/val/four\.png is not an image that can be"),
    "other size": (
        lambda r: save(r / MASK, LABELS[:, 1:]),
        r"images/val/four\.jpg is 30x20 but its labels .*masks/val/four\.png are 29x20",
    ),
    "EXIF-turned photo, mask not": (
        lambda r: save_turned(r / IMAGE, PHOTO, 6),
        r"images/val/four\.jpg is 20x30, turned as its EXIF data say, but its labels .*four\.png are 30x20",
    ),
    "image is a loop": (
        lambda r: ((r / IMAGE).unlink(), (r / IMAGE).symlink_to("four.jpg")),
        r"cannot read .*images/val/four\.jpg: Too many levels of symbolic links",
    ),
    "mask folder is a loop": (
        lambda r: ((r / "masks").rename(r / "old"), (r / "masks").symlink_to("masks")),
        r"cannot read .*masks/val: Too many levels of symbolic links",
    ),
    "image is a dead link": (
        lambda r: ((r / IMAGE).unlink(), (r / IMAGE).symlink_to("nowhere.jpg")),
        r"no file .*images/val/four\.jpg; expected",
    ),
    "image is a folder": (
        lambda r: ((r / IMAGE).unlink(), (r / IMAGE).mkdir()),
        r"no file .*images/val/four\.jpg; expected",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_in_one_line_that_names_the_file(own, spoil, message):
    spoil(own)
    told(lambda: read_all(own), message)


LISTS = {
    "absent id": (lambda r, f: f.write_text("a\nnope\n"), r"train\.txt: no file .*JPEGImages/nope\.jpg \(and 1 more\)"),
    "empty": (lambda r, f: f.write_text(" \n"), r"train\.txt lists no images"),
    "missing": (lambda r, f: f.unlink(), r"no list .*train\.txt; expected"),
    "twice": (lambda r, f: f.write_text("a\na\n"), r"split 'train' holds 'a' twice"),
    "not UTF-8": (lambda r, f: f.write_bytes(b"\xe9t\xe9\n"), r"train\.txt is not UTF-8 text"),
    "UTF-16": (lambda r, f: f.write_bytes("a\n".encode("utf-16-le")), r"'.*JPEGImages/a\\x00\.jpg' cannot be the name"),
    "name too long": (lambda r, f: f.write_text("n" * 300), r"cannot read .*nnn\.jpg: File name too long"),
    "a loop": (
        lambda r, f: (f.unlink(), f.symlink_to(f.name)),
        r"cannot read .*train\.txt: Too many levels of symbolic links",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), LISTS.values(), ids=LISTS)
def test_a_faulty_list_is_told_in_one_line(voc, spoil, message):
    spoil(voc, voc / "ImageSets/Segmentation/train.txt")
    told(lambda: VOC("train", voc), message)


def test_a_list_of_windows_is_read(voc):
    (voc / "ImageSets/Segmentation/train.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert VOC("train", voc).ids == ["a", "b"]


def deny(monkeypatch, function, denied, number=errno.EACCES):
    """``function`` of a module or class fails for that path as the system would; root may read what it likes."""
    owner, name = function
    real = getattr(owner, name)

    def denying(path, *args, **kwargs):
        if Path(path) == denied:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(owner, name, denying)


@pytest.mark.parametrize(
    ("function", "denied"),
    [
        ((os, "stat"), "images"),
        ((os, "stat"), "masks/val"),
        ((os, "stat"), IMAGE),
        ((Path, "iterdir"), "images"),
        ((Path, "iterdir"), "masks/val"),
        ((Path, "read_bytes"), IMAGE),
        ((Path, "read_bytes"), MASK),
    ],
)
def test_what_may_not_be_read_is_named(own, monkeypatch, function, denied):
    deny(monkeypatch, function, own / denied)
    told(lambda: read_all(own), rf"cannot read .*{denied}: Permission denied")


def test_a_folder_without_permission(own):
    if os.geteuid() == 0:
        pytest.skip("root may read any folder; the test above makes the system refuse")
    (own / "masks/val").chmod(0)
    try:
        told(lambda: read_all(own), r"cannot read .*masks/val.*: Permission denied")
    finally:
        (own / "masks/val").chmod(0o755)


def test_lists_and_fingerprints_name_what_may_not_be_read(voc, monkeypatch):
    data = VOC("train", voc)
    listing = voc / "ImageSets/Segmentation/train.txt"
    for function, denied, call in (
        ((Path, "read_text"), listing, lambda: read_list(listing, "")),
        ((os, "stat"), data.pairs[1][1], data.fingerprint),
        ((Path, "read_bytes"), data.pairs[1][2], data.fingerprint),
    ):
        with monkeypatch.context() as patch:
            deny(patch, function, denied, errno.EIO)
            told(call, f"cannot read {denied}: Input/output error")
    data.pairs[0][1].unlink()
    told(data.fingerprint, r"no file .*JPEGImages/a\.jpg")


def test_files_and_folders_are_told_apart(own):
    assert is_file(own / IMAGE)
    assert not is_file(own / "images")
    assert not is_file(own / IMAGE / "below a file")
    assert is_folder(own / "images")
    assert not is_folder(own / IMAGE)
    assert [p.name for p in list_folder(own, "")] == ["images", "masks"]
    told(lambda: list_folder(own / "nope", "expected: x"), "no folder .*nope; expected: x")


def test_a_name_that_is_no_utf8_is_told(own):
    try:
        (own / os.fsdecode(b"images/val/\xe9.jpg")).touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names only")
    told(lambda: read_all(own), r"images/val/\\udce9\.jpg' has a name that is not UTF-8 text; rename it")


@pytest.mark.parametrize("name", ["with spaces", "été", "写真", "quote'\"", "[a]{b}", "a.b", " leading"])
def test_names_with_spaces_and_letters_of_any_script(own, name):
    save(own / f"images/val/{name}.jpg", PHOTO)
    save(own / f"masks/val/{name}.png", LABELS)
    data = Folder("val", own, CLASSES)
    np.testing.assert_array_equal(data.read(data.ids.index(name))[1], LABELS)
    assert data.fingerprint()


def test_a_photo_is_turned_as_its_exif_data_say(own):
    """All eight ways; labels fit the photo as it is seen."""
    for orientation in range(1, 9):
        save_turned(own / IMAGE, PHOTO, orientation)
        seen = np.asarray(Image.open(own / IMAGE).convert("RGB"))
        flips = {2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
        seen = np.flip(seen.transpose(1, 0, 2) if orientation > 4 else seen, flips)
        save(own / MASK, np.zeros(seen.shape[:2], np.uint8))
        ((image, _),) = read_all(own)
        assert np.abs(image.astype(int) - seen).max() <= 2, orientation  # two JPEG decoders


ODD = {
    "grey": (lambda p: save(p, PHOTO[..., 0]), lambda: np.repeat(PHOTO[..., :1], 3, 2)),
    "alpha": (lambda p: save(p, np.dstack([PHOTO, PHOTO[..., 0]])), lambda: PHOTO),
    "grey with alpha": (
        lambda p: Image.merge("LA", [Image.fromarray(PHOTO[..., i].copy()) for i in (0, 1)]).save(p),
        lambda: np.repeat(PHOTO[..., :1], 3, 2),
    ),
    "palette": (lambda p: palette_image(LABELS).save(p), lambda: np.asarray(palette_image(LABELS, mode="RGB"))),
    "1x1": (lambda p: save(p, PHOTO[:1, :1]), lambda: PHOTO[:1, :1]),
    "1xN": (lambda p: save(p, PHOTO[:1]), lambda: PHOTO[:1]),
}


@pytest.mark.parametrize(("write", "wanted"), ODD.values(), ids=ODD)
def test_odd_images_are_read(tmp_path, write, wanted):
    write(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), wanted())


def test_cmyk_is_read(tmp_path):
    image = Image.fromarray(PHOTO).convert("CMYK")
    image.save(tmp_path / "x.jpg", quality=100, subsampling=0)
    assert np.abs(read_image(tmp_path / "x.jpg").astype(int) - PHOTO).max() < 8


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_a_label_map_of_one_pixel_and_any_depth(tmp_path, mode):
    Image.new(mode, (1, 1), 1).save(tmp_path / "x.png")
    assert read_labels(tmp_path / "x.png").tolist() == [[1]]


def plain_png(path, width, height, rows=None):
    """A black grey-scale PNG, written row by row; ``rows`` fewer than ``height`` make it a lie."""
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(bytes(width + 1)) for _ in range(height if rows is None else rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", body + packer.flush()), (b"IEND", b"")]
    data = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_an_image_of_100_million_pixels_is_read(tmp_path):
    """Pillow would warn of a decompression bomb from 89 million on."""
    plain_png(tmp_path / "x.png", 10_000, 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_labels(tmp_path / "x.png").shape == (10_000, 10_000)
        assert read_image(tmp_path / "x.png").shape == (10_000, 10_000, 3)


@pytest.mark.parametrize("read", [read_image, read_labels])
def test_more_pixels_than_can_be_read_are_told(tmp_path, read):
    plain_png(tmp_path / "x.png", 60_000, 60_000, 1)
    told(lambda: read(tmp_path / "x.png"), r"x\.png is not an image that can be read.*(limit|2\^30 pixels)")


def test_broken_data_between_sound_ends_are_told(tmp_path):
    save(tmp_path / "x.png", RNG.integers(0, VOID, (50, 50), np.uint8))
    data = bytearray((tmp_path / "x.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "x.png").write_bytes(data)
    for read in (read_image, read_labels):
        told(lambda read=read: read(tmp_path / "x.png"), r"x\.png is not an image that can be read")


def test_a_table_with_a_hole_is_told(own):
    table = own / "table.csv"
    table.write_text(f"image,mask,split\n{IMAGE},{MASK},val\n{IMAGE}\n{IMAGE},,val\n")
    told(lambda: read_all(own, table=table), r"table\.csv has a row without image or mask: images/val/four\.jpg")
    table.write_bytes(b"image,mask,split\n\xe9,b,val\n")
    told(lambda: read_all(own, table=table), r"cannot read .*table\.csv")


def test_a_sweep_on_a_bad_file_says_so_in_one_line_and_leaves_no_run(own):
    truncate(own / "images/train/two.jpg")
    runs = own / "runs"
    config = tiny(runs_dir=str(runs)) | {"data": {"name": "folder", "root": str(own), "classes": CLASSES}}
    (own / "tiny.yaml").write_text(yaml.safe_dump(config))
    done = segbench("sweep", own / "tiny.yaml")
    assert done.returncode == 2, done.stderr
    assert "images/train/two.jpg is truncated" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p for p in runs.rglob("*") if p.is_file()] == []
