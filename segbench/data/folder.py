"""Your own images: images/<split> and masks/<split> with matching stems, or a CSV of image, mask, split."""

import contextlib
import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from segbench.data.base import (
    VOID,
    Pair,
    PairedFiles,
    Pixels,
    is_folder,
    list_folder,
    read_image,
    read_labels,
    voc_palette,
)
from segbench.errors import UserError, unknown

LAYOUT = "expected: images/<split>/NAME.jpg and masks/<split>/NAME.png, or data.table=FILE.csv with image,mask,split"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
RGB = tuple[int, int, int]


class Folder(PairedFiles):
    """Images and masks of one's own.

    Args:
        split: a folder below ``images`` and ``masks``, or a value in the table's column ``split``.
        root: the folder that holds ``images`` and ``masks``; paths in the table are relative to it.
        classes: names, in the order of the labels.
        palette: an RGB colour for each class; needed where ``masks`` is ``rgb``, else VOC's colours by default.
        masks: ``index`` where a mask holds labels (grey or palette, 8 or 16 bit), ``rgb`` where it holds colours.
        void: the stored label that counts nowhere, or null.
        void_color: the colour that counts nowhere, where ``masks`` is ``rgb``.
        table: a CSV (commas, semicolons or tabs) with the columns image, mask and split, in place of folders.

    Raises:
        UserError: missing folders or columns, images without a mask or masks without an image, two files with one stem.
    """

    def __init__(
        self,
        split: str,
        root: Path,
        classes: list[str],
        palette: list[RGB] | None = None,
        masks: Literal["index", "rgb"] = "index",
        void: int | None = 255,
        void_color: RGB | None = None,
        table: Path | None = None,
    ) -> None:
        if not is_folder(root):
            raise UserError(f"data.root: no folder {root}; {LAYOUT}")
        if not 2 <= len(classes) <= 254:
            raise UserError(f"data.classes should be 2 to 254 names, not {len(classes)}")
        if palette is not None and len(palette) != len(classes):
            raise UserError(f"data.palette has {len(palette)} colours for {len(classes)} classes")
        if masks == "rgb" and palette is None:
            raise UserError("data.palette is missing: masks: rgb needs a colour for each class")
        if void is not None and 0 <= void < len(classes):
            raise UserError(f"data.void: {void} is the label of class '{classes[void]}'")
        self.classes = tuple(classes)
        self.palette = palette or voc_palette(len(classes))
        self.void = VOID if masks == "rgb" else void
        self._codes: Pixels | None = None
        if masks == "rgb":
            assert palette is not None
            codes = np.full(2**24, 254, np.uint8)  # no class has that label
            if void_color is not None:
                codes[_code(np.array(void_color))] = VOID
            codes[_code(np.array(palette))] = np.arange(len(palette))
            self._codes = codes
        self.splits, pairs = _from_table(root, table, split) if table else files_of(root, split)
        super().__init__(split, pairs, LAYOUT, table)

    def decode(self, path: Path) -> Pixels:
        if self._codes is None:
            try:
                return read_labels(path)
            except UserError as error:
                if not _is_coloured(path):
                    raise
                hint = "where colours stand for classes, say masks: rgb and palette: [[r, g, b], ...]"
                raise UserError(f"{error}; {hint}") from None
        colours = read_image(path)
        labels = self._codes[_code(colours)]
        strange = np.argwhere(labels == 254)
        if len(strange):
            y, x = strange[0]
            raise UserError(
                f"{path} holds the colour {tuple(colours[y, x].tolist())} at ({x}, {y}), which is in no palette"
            )
        return labels


Pairs = list[Pair]


def _is_coloured(path: Path) -> bool:
    with contextlib.suppress(Exception), Image.open(path) as picture:  # only a hint hangs on it
        return picture.mode in ("RGB", "RGBA")
    return False


def _code(colours: np.ndarray) -> np.ndarray:
    r, g, b = np.moveaxis(colours.astype(np.int32), -1, 0)
    return (r << 16) | (g << 8) | b


def files_of(root: Path, split: str) -> tuple[tuple[str, ...], Pairs]:
    """The splits of a folder, and the (id, image, mask) of one."""
    if not is_folder(root / "images"):
        raise UserError(f"data.root: {root} has no folder images; {LAYOUT}")
    splits = tuple(p.name for p in list_folder(root / "images", LAYOUT) if is_folder(p))
    if not splits:
        raise UserError(f"data.root: {root / 'images'} has no folder of a split, such as {split}; {LAYOUT}")
    if split not in splits:
        raise unknown("split", split, splits)
    images, masks = (_by_stem(root / kind / split) for kind in ("images", "masks"))
    for ours, theirs, what in ((images, masks, "mask"), (masks, images, "image")):
        alone = sorted(ours.keys() - theirs.keys())
        if alone:
            more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
            raise UserError(f"{ours[alone[0]]} has no {what}{more}; {LAYOUT}")
    return splits, [(stem, images[stem], masks[stem]) for stem in sorted(images)]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_folder(folder, LAYOUT):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):  # such as macOS's ._NAME.png
            continue
        if path.stem in found:
            raise UserError(f"two files with one stem: {found[path.stem]} and {path}")
        found[path.stem] = path
    return found


def _from_table(root: Path, table: Path, split: str) -> tuple[tuple[str, ...], Pairs]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            text = file.read()
        header = text.partition("\n")[0]
        rows = list(csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data.table: cannot read {table}: {error}") from None
    missing = [c for c in ("image", "mask", "split") if not rows or c not in rows[0]]
    if missing:
        raise UserError(f"data.table: {table} has no column '{missing[0]}'; wanted are image, mask and split")
    splits = tuple(sorted({row["split"] for row in rows if row["split"]}))
    if split not in splits:
        raise unknown("split", split, splits)
    pairs: Pairs = []
    for row in rows:
        if row["split"] == split:
            if not row["image"] or not row["mask"]:
                raise UserError(f"data.table: {table} has a row without image or mask: {row['image'] or row['mask']}")
            pairs.append((str(Path(row["image"]).with_suffix("")), root / row["image"], root / row["mask"]))
    return splits, pairs
