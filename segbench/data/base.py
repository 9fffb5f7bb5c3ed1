"""The contract of a data set, and reading image files so that a bad one is named. Imports no torch."""

import collections
import functools
import hashlib
import io
import json
import os
import stat
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from segbench.errors import UserError, unknown

VOID = 255
Image.MAX_IMAGE_PIXELS = 2**30  # as OpenCV's limit for the image beside the labels; Pillow's default is for uploads
Pixels = npt.NDArray[np.uint8]
Pair = tuple[str, Path, Path | None]  # id, image, labels


class SizeMismatch(UserError):
    """An image and its labels differ in size."""


class LabelOutOfRange(UserError):
    """A stored label is neither a class nor void."""


class Dataset(ABC):
    """One split of a data set: images and label maps by index.

    A subclass sets ``classes``, ``palette`` and ``splits``, and its constructor takes the split and whatever else it
    needs; those parameters are then keys under ``data:`` in a sweep.

    Attributes:
        classes: names of the K classes, in label order.
        palette: (K, 3) RGB, 0 to 255.
        splits: names of the splits that there are.
        ids: a name for each image, unique within the split.
        from_files: False where nothing is read that could be broken.
        labelled: False for a split without labels, whose predictions can be exported but not scored.
    """

    classes: tuple[str, ...]
    palette: Sequence[tuple[int, int, int]]
    splits: tuple[str, ...] = ("train", "val")
    from_files: bool = True
    labelled: bool = True
    ids: Sequence[str]

    def __init__(self, split: str) -> None:
        if split not in self.splits:
            raise unknown("split", split, self.splits)
        self.split = split

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def whole(self) -> "Dataset":
        """The data set that this one is a part of, or itself."""
        return self

    @abstractmethod
    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """Image (H, W, 3) uint8 RGB and labels (H, W) uint8, classes 0 to K-1, 255 void; not to be written to.

        Raises:
            UserError: unreadable or truncated file, sizes that differ, or a label out of range; the file is named.
        """

    def submission(self, index: int, prediction: Pixels) -> tuple[str, Image.Image]:
        """File name and picture with which (H, W) uint8 predicted classes are handed in to the data set's owner.

        By default ``<id>.png``, a palette image of the class indices.
        """
        return f"{self.ids[index]}.png", palette_image(prediction, self.palette)

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the data do, and not when they are moved."""


class Part(Dataset):
    """The images of a data set with these ``indices``; ``split`` is what they are called, by default as it is."""

    def __init__(self, dataset: Dataset, indices: Sequence[int], split: str = "") -> None:
        self.classes, self.palette, self.splits = dataset.classes, dataset.palette, dataset.splits
        self.split, self.labelled = split or dataset.split, dataset.labelled
        self.indices, self.dataset, self.from_files = indices, dataset, dataset.from_files
        self.ids = [dataset.ids[i] for i in indices]

    @property
    def whole(self) -> Dataset:
        return self.dataset.whole

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        return self.dataset.read(self.indices[index])

    def submission(self, index: int, prediction: Pixels) -> tuple[str, Image.Image]:
        return self.dataset.submission(self.indices[index], prediction)

    def fingerprint(self) -> str:
        return self.fingerprint_by(self.dataset.fingerprint())

    def fingerprint_by(self, fingerprint: str) -> str:
        """Its own, by that of the data set that it is a part of."""
        return hashlib.sha256(json.dumps([fingerprint, list(self.ids)]).encode()).hexdigest()


class PairedFiles(Dataset):
    """A data set of image files with a label file each.

    A subclass fills ``pairs`` with (id, image, labels), labels being None in a split that has none, and may override
    ``decode`` and ``submission``.

    Attributes:
        void: the stored label of pixels that count nowhere; None where there is none.
    """

    void: int | None = VOID

    def __init__(self, split: str, pairs: Sequence[Pair], layout: str = "", listed_in: Path | None = None) -> None:
        """``layout`` and ``listed_in`` (the list that names the files) say what to do where a file is missing."""
        super().__init__(split)
        self.pairs = list(pairs)
        self.ids = [name for name, _, _ in self.pairs]
        if not self.pairs:
            raise UserError(f"split '{split}' is empty; {layout}" if layout else f"split '{split}' is empty")
        twice = sorted({name for name, n in collections.Counter(self.ids).items() if n > 1})
        if twice:
            raise UserError(f"split '{split}' holds '{twice[0]}' twice")
        existing([path for _, *paths in self.pairs for path in paths if path is not None], layout, listed_in)
        self.labelled = all(labels is not None for _, _, labels in self.pairs)

    def decode(self, path: Path) -> Pixels:
        """(H, W) uint8 labels as stored, to be checked against the classes and ``void``."""
        return read_labels(path)

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        _, image_path, labels_path = self.pairs[index]
        image = read_image(image_path)
        if labels_path is None:
            return image, np.full(image.shape[:2], VOID, np.uint8)
        labels = self.decode(labels_path)
        check_pair(image, labels, len(self.classes), image_path, labels_path, self.void)
        if self.void in (VOID, None):
            return image, labels
        return image, relabel(labels, np.where(np.arange(256) == self.void, VOID, np.arange(256)).astype(np.uint8))

    def fingerprint(self) -> str:
        return hash_files(self.pairs)


def read_list(path: Path, layout: str) -> list[str]:
    """The lines of a list file that hold something.

    Raises:
        UserError: no such file, not to be read, no UTF-8 text, or it lists nothing.
    """
    if not is_file(path):
        raise UserError(f"no list {path}; {layout}")
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} lists no images")
    return lines


def existing(paths: Sequence[Path], layout: str, listed_in: Path | None = None) -> None:
    """Raise a `UserError` that names the first of ``paths`` that is no file, and says how many more are not."""
    missing = [path for path in paths if not is_file(path)]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{f'{listed_in}: ' if listed_in else ''}no file {missing[0]}{more}; {layout}")


def is_file(path: Path) -> bool:
    """Whether it is a file; unlike ``Path.is_file`` a `UserError` on a loop, or where the system will not say."""
    status = file_status(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: Path) -> bool:
    """Whether it is a folder; unlike ``Path.is_dir`` a `UserError` on a loop, or where the system will not say."""
    status = file_status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def list_folder(folder: Path, layout: str) -> list[Path]:
    """What is in a folder, sorted; unlike ``Path.glob`` a `UserError` where it is missing or cannot be read."""
    if not is_folder(folder):
        raise UserError(f"no folder {folder}; {layout}")
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    for path in paths:
        if path.name != path.name.encode(errors="replace").decode():  # bytes that are no UTF-8, in Python's disguise
            raise UserError(f"{str(path)!r} has a name that is not UTF-8 text; rename it")
    return paths


def file_status(path: Path) -> os.stat_result | None:
    """Size, date and kind; None where there is nothing; a `UserError` that names it where the system will not say."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # a null byte, as in a list in UTF-16
        raise UserError(f"{str(path)!r} cannot be the name of a file") from None


def voc_palette(number: int) -> list[tuple[int, int, int]]:
    """The first colours of PASCAL VOC's palette: the bits of the label spread over the channels, high bits first."""
    colours = []
    for label in range(number):
        # Bit 3 i + c of the label is bit 7 - i of channel c.
        channels = [sum((label >> (3 * i + c) & 1) << (7 - i) for i in range(3)) for c in range(3)]
        colours.append((channels[0], channels[1], channels[2]))
    return colours


def palette_image(labels: Pixels, palette: Sequence[tuple[int, int, int]]) -> Image.Image:
    """A palette PNG's picture of (H, W) labels."""
    picture = Image.fromarray(labels, "L")
    picture.putpalette([channel for colour in palette for channel in colour])  # the mode becomes P
    return picture


def read_image(path: Path) -> Pixels:
    """(H, W, 3) uint8 RGB; 16 bits are scaled down, alpha is dropped, a photo is turned as its EXIF data say.

    Raises:
        UserError: the file is missing, no image, or breaks off before its end.
    """
    data = _read_whole(path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        limit = "2^30 pixels are the most, memory permitting"
        raise UserError(f"{path} is not an image that can be read ({limit}): {error.err}") from None
    if image is None:
        raise UserError(f"{path} is not an image that can be read")
    return np.asarray(image, np.uint8)


def read_labels(path: Path) -> Pixels:
    """(H, W) uint8, the values as stored: palette images give their indices, not colours.

    Raises:
        UserError: the file is missing, broken, not a single channel, or holds a label above 255.
    """
    data = _read_whole(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("L", "P", "1", "I;16", "I;16B", "I"):
                raise UserError(f"{path} has mode {image.mode}; a label map is one channel (grey or palette)")
            labels = np.array(image)
    except UserError:
        raise
    except Exception as error:  # a broken file fails in many ways
        raise UserError(f"{path} is not an image that can be read: {' '.join(str(error).split())}") from None
    if labels.dtype not in (np.uint8, np.bool_):
        for value in (int(labels.min()), int(labels.max())):
            if not 0 <= value <= VOID:
                raise UserError(f"{path} holds label {value}; labels go from 0 to {VOID}")
    return labels.astype(np.uint8, copy=False)


def relabel(labels: Pixels, table: Pixels) -> Pixels:
    """``table[labels]`` for (H, W) labels and (256,) ``table``, several times faster."""
    return np.asarray(cv2.LUT(labels, table), np.uint8)


def check_pair(
    image: Pixels, labels: Pixels, num_classes: int, image_path: Path, labels_path: Path, void: int | None = VOID
) -> None:
    """Raise a `UserError` where the sizes differ or a label, as stored, is neither a class nor void."""
    if image.shape[:2] != labels.shape:
        (h, w), (hl, wl) = image.shape[:2], labels.shape
        turned = ", turned as its EXIF data say," if _is_turned(image_path) else ""
        raise SizeMismatch(f"{image_path} is {w}x{h}{turned} but its labels {labels_path} are {wl}x{hl}")
    wrong = relabel(labels, _forbidden(num_classes, void))
    if wrong.any():
        allowed = f"0 to {num_classes - 1}" + (f", and {void} for void" if void is not None else "")
        raise LabelOutOfRange(f"{labels_path} holds label {labels[wrong > 0].min()}; allowed are {allowed}")


@functools.cache
def _forbidden(num_classes: int, void: int | None) -> Pixels:
    """(256,) 1 for each label that is neither a class nor void."""
    return np.array([num_classes <= label != void for label in range(256)], np.uint8)


def _is_turned(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception:  # only a hint hangs on it
        return False


def hash_files(pairs: Sequence[Pair], hash_labels: Callable[[Path], bytes] | None = None) -> str:
    """Hash over (id, image, labels): ids, the sizes of the image files in bytes, and the content of the label files.

    Args:
        hash_labels: path -> SHA-256 of a label file; default: of what is read from it.
    """
    digest = hashlib.sha256()
    for name, image, labels in pairs:
        status = file_status(image)
        if status is None:
            raise UserError(f"no file {image}")
        digest.update(f"{name}\0{status.st_size}\0".encode())
        if labels is not None:
            digest.update((hash_labels or hash_file)(labels))
    return digest.hexdigest()


def hash_file(path: Path) -> bytes:
    """SHA-256 of an image file; a `UserError` that names it where it is missing, empty or truncated."""
    return hashlib.sha256(_read_whole(path)).digest()


def _read_whole(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not data:
        raise UserError(f"{path} is empty (0 bytes)")
    # Decoders fill the rest of a truncated picture with grey and say nothing, so look for the end mark.
    tail = data[-4096:]
    png, jpeg = data.startswith(b"\x89PNG"), data.startswith(b"\xff\xd8")
    if (png and struct.pack(">I", 0) + b"IEND" not in tail) or (jpeg and b"\xff\xd9" not in tail):
        raise UserError(f"{path} is truncated: it breaks off after {len(data)} bytes")
    return data
