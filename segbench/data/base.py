"""The contract of a data set, and reading image files so that a bad one is named. Imports no torch."""

import collections
import hashlib
import io
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segbench.errors import UserError, unknown

VOID = 255
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
    from_files: ClassVar[bool] = True
    labelled: bool = True
    ids: Sequence[str]

    def __init__(self, split: str) -> None:
        if split not in self.splits:
            raise unknown("split", split, self.splits)
        self.split = split

    def __len__(self) -> int:
        return len(self.ids)

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
        return image, labels if self.void in (VOID, None) else np.where(labels == self.void, np.uint8(VOID), labels)

    def fingerprint(self) -> str:
        return hash_files(self.pairs)


def read_list(path: Path, layout: str) -> list[str]:
    """The lines of a list file that hold something.

    Raises:
        UserError: no such file, or it lists nothing.
    """
    if not path.is_file():
        raise UserError(f"no list {path}; {layout}")
    lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} lists no images")
    return lines


def existing(paths: Sequence[Path], layout: str, listed_in: Path | None = None) -> None:
    """Raise a `UserError` that names the first of ``paths`` that is no file, and says how many more are not."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{f'{listed_in}: ' if listed_in else ''}no file {missing[0]}{more}; {layout}")


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
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
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
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not an image that can be read: {error}") from None
    if labels.size and int(labels.max()) > VOID:
        raise UserError(f"{path} holds label {int(labels.max())}; labels go up to {VOID}")
    return labels.astype(np.uint8)


def check_pair(
    image: Pixels, labels: Pixels, num_classes: int, image_path: Path, labels_path: Path, void: int | None = VOID
) -> None:
    """Raise a `UserError` where the sizes differ or a label, as stored, is neither a class nor void."""
    if image.shape[:2] != labels.shape:
        (h, w), (hl, wl) = image.shape[:2], labels.shape
        raise SizeMismatch(f"{image_path} is {w}x{h} but its labels {labels_path} are {wl}x{hl}")
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    wrong = [int(v) for v in present if num_classes <= v != void]
    if wrong:
        raise LabelOutOfRange(
            f"{labels_path} holds label {wrong[0]}; allowed are 0 to {num_classes - 1}, and {void} for void"
        )


def hash_files(pairs: Sequence[Pair]) -> str:
    """Hash over (id, image, labels): ids, the sizes of the image files in bytes, and the content of the label files."""
    digest = hashlib.sha256()
    for name, image, labels in pairs:
        digest.update(f"{name}\0{os.stat(image).st_size}\0".encode())
        if labels is not None:
            digest.update(hashlib.sha256(_read_whole(labels)).digest())
    return digest.hexdigest()


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
