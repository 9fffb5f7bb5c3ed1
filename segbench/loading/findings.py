"""What is wrong with a data set that has been looked at, and what one should know of it. Imports no torch."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from segbench.config import RecipeConfig
from segbench.data.base import VOID, Dataset, PairedFiles

LISTED = 3  # faults of a kind that are named; the rest is counted
NAMED = 10  # classes that a line names
DARK = 32  # of 255; 12 bits in 16-bit files are read as 0 to 15
LARGE = 16  # times the pixels of the median image
LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Look:
    """What one image and its labels hold.

    Attributes:
        size: (height, width) in pixels.
        labels: (256,) pixels of each label, 255 being void.
        content: hash of the image's pixels.
        brightest: the image's largest value, 0 to 255.
        turned: whether the image is turned or mirrored as its EXIF data say, which its labels are not.
        fault, kind: what is wrong, and whether that is ``size``, ``label`` or ``unreadable``; empty where nothing is.
    """

    index: int
    size: tuple[int, int] = (0, 0)
    labels: npt.NDArray[np.int64] | None = None
    content: str = ""
    brightest: int = 0
    turned: bool = False
    fault: str = ""
    kind: str = ""


@dataclass
class Split:
    """What a split holds, and what is wrong with it as a whole, such as a file that is missing."""

    name: str
    dataset: Dataset | None = None
    looks: list[Look] = field(default_factory=list)
    fault: str = ""

    def good(self) -> list[Look]:
        return [look for look in self.looks if not look.fault]

    def faults(self, kind: str) -> list[str]:
        return [look.fault for look in self.looks if look.kind == kind]

    def pixels(self) -> npt.NDArray[np.int64]:
        """(256,) pixels of each label over the split."""
        return sum((look.labels for look in self.good() if look.labels is not None), np.zeros(256, np.int64))

    def images_with(self) -> npt.NDArray[np.int64]:
        """(256,) images that hold each label."""
        there = [look.labels > 0 for look in self.good() if look.labels is not None]
        return np.sum(there, axis=0, initial=0) + np.zeros(256, np.int64)


@dataclass(frozen=True)
class Check:
    """The result: both splits, and findings in words.

    Attributes:
        errors: what would make a training fail or mislead.
        warnings: what one should know.
        meaningless: those errors after which no score would mean anything.
    """

    splits: list[Split]
    errors: list[str]
    warnings: list[str]
    meaningless: list[str]


def look_at(dataset: Dataset, index: int, decoded: Dataset | None = None) -> Look:
    """What image ``index`` and its labels hold.

    Args:
        decoded: the same data set, of which it is read instead.

    Raises:
        UserError: they cannot be read, or do not fit.
    """
    image, labels = (decoded or dataset).read(index)
    content = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
    there = np.bincount(labels.ravel(), minlength=256)
    turned = isinstance(dataset, PairedFiles) and _is_turned(dataset.pairs[index][1])
    return Look(index, image.shape[:2], there, content, int(image.max(initial=0)), turned)


def _is_turned(path: Path) -> bool:
    if path.suffix.lower() in LOSSY:
        with contextlib.suppress(Exception), Image.open(path) as image:  # only a hint hangs on it
            return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return False


def findings(splits: Sequence[Split], recipe: RecipeConfig | None = None) -> Check:
    """What is wrong with splits that have been looked at, and what one should know.

    Args:
        recipe: by which the first of them is trained on.
    """
    errors = [f"{split.name}: {split.fault}" for split in splits if split.fault]
    meaningless, warnings = list[str](), list[str]()
    for split in splits:
        for kind in ("unreadable", "size", "label"):
            errors += _shortened([f"{split.name}: {fault}" for fault in split.faults(kind)])
        meaningless += [f"{split.name}: {line}" for line in _emptiness(split)]
        warnings += [f"{split.name}: {line}" for line in (*_repeats(split), *_hidden(split), *_files(split))]
    errors += meaningless
    if all(split.dataset is not None for split in splits):
        errors += _shortened(list(_shared(*splits)))
        train, val = (split.pixels() for split in splits)
        for names, said_in, text in (
            (_named(splits, (val > 0) & (train == 0)), errors, "in {val} but not in {train}: IoU can only be 0"),
            (_named(splits, (val == 0) & (train > 0)), warnings, "in {train} only: no score, or 0 where predicted"),
            (_named(splits, (val == 0) & (train == 0)), warnings, "nowhere: no score, and left out of the means"),
        ):
            if names:
                said = text.format(train=splits[0].name, val=splits[1].name)
                more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
                said_in.append(
                    f"{len(names)} class{'es' if len(names) > 1 else ''} {said}: {', '.join([*names[:NAMED], *more])}"
                )
        if not (train[0] or val[0]) and (train[1:VOID].any() or val[1:VOID].any()):
            warnings.append(f"no pixel has label 0, '{classes_of(splits)[0]}': do the masks' labels start at 1?")
    if recipe is not None:
        warnings += [f"{splits[0].name}: {line}" for line in _smaller(splits[0], recipe)]
    return Check(list(splits), errors, warnings, meaningless)


def _named(splits: Sequence[Split], which: npt.NDArray[np.bool_]) -> list[str]:
    return [name for name, there in zip(classes_of(splits), which, strict=False) if there]


def _emptiness(split: Split) -> Iterator[str]:
    if split.dataset is None or not split.good():
        return
    if not split.dataset.labelled:
        yield "the split has no labels, so nothing can be trained or scored on it"
        return
    there = np.flatnonzero(split.pixels()[:VOID])
    if not len(there):
        yield "every pixel is void"
    elif len(there) == 1:
        cause = ""
        if there[0] == 0 and split.pixels()[VOID]:
            cause = (
                ". Where masks hold 0 and 255 for background and foreground, 255 is read as void: store 0 and 1, or "
                "say data.masks=rgb data.palette=[[0,0,0],[255,255,255]]"
            )
        yield f"only class '{split.dataset.classes[there[0]]}' has pixels, so that any model scores 100 %{cause}"


def _hidden(split: Split) -> Iterator[str]:
    """A class that is void in some of the masks: missing from exactly those that hold void."""
    looks = [look.labels for look in split.good() if look.labels is not None and look.labels[:VOID].any()]
    if split.dataset is None or not looks:
        return
    there = np.stack(looks) > 0  # (N, 256)
    void = there[:, VOID]
    for number, name in enumerate(split.dataset.classes):
        if void.any() and not void.all() and np.array_equal(there[:, number], ~void):
            yield (
                f"class '{name}' is missing from exactly the {void.sum()} masks that hold void, of {len(looks)}: is "
                "void its label in those?"
            )


def _files(split: Split) -> Iterator[str]:
    """What a picture's format or size does without a word."""
    if split.dataset is None or not (good := split.good()):
        return
    ids = split.dataset.ids
    if max(look.brightest for look in good) <= DARK:
        yield (
            f"no pixel of any image is above {DARK} of 255: images of 10 or 12 bits in 16-bit files are read as black; "
            "store them with the full range"
        )
    if turned := [ids[look.index] for look in good if look.turned]:
        yield f"{len(turned)} images are turned as their EXIF data say, such as {turned[0]}: are their labels too?"
    pixels = np.array([look.size[0] * look.size[1] for look in good])
    if pixels.max() > LARGE * np.median(pixels):
        large, times = good[int(pixels.argmax())], pixels.max() / np.median(pixels)
        size = f"{large.size[1]}x{large.size[0]}"
        yield f"image {ids[large.index]} is {size}, {times:.0f} times the pixels of the median one"
    if isinstance(split.dataset, PairedFiles):
        lossy = [mask for _, _, mask in split.dataset.pairs if mask is not None and mask.suffix.lower() in LOSSY]
        if lossy:
            yield f"{len(lossy)} label files are JPEG or WebP, such as {lossy[0]}: labels change in them; store PNG"


def _smaller(split: Split, recipe: RecipeConfig) -> Iterator[str]:
    good = split.good()
    less = [look for look in good if look.size[0] < recipe.crop[0] or look.size[1] < recipe.crop[1]]
    if 10 * len(less) > len(good):
        crop = f"{recipe.crop[0]}x{recipe.crop[1]}"
        yield f"{len(less)} of {len(good)} images are smaller than recipe.crop, {crop}: the rest of a crop is void"


def _repeats(split: Split) -> Iterator[str]:
    if split.dataset is None:
        return
    ids = split.dataset.ids
    void = [ids[look.index] for look in split.good() if look.labels is not None and not look.labels[:VOID].any()]
    if void and split.pixels()[:VOID].any():
        yield f"{len(void)} images hold nothing but void, such as {void[0]}"
    first: dict[str, int] = {}
    same = [(first.setdefault(look.content, look.index), look.index) for look in split.good()]
    same = [(a, b) for a, b in same if a != b]
    if same:
        yield f"{len(same)} images are copies of others, such as {ids[same[0][1]]} of {ids[same[0][0]]}"


def _shared(train: Split, val: Split) -> Iterator[str]:
    assert train.dataset is not None
    assert val.dataset is not None
    known = {look.content: train.dataset.ids[look.index] for look in train.good()}
    for look in val.good():
        if look.content in known:
            yield (
                f"{val.name}: image {val.dataset.ids[look.index]} is also in {train.name}, as {known[look.content]}: "
                "scores on it are too good"
            )


def _shortened(lines: list[str]) -> list[str]:
    more = len(lines) - LISTED
    return lines if more <= 0 else [*lines[:LISTED], f"... and {more} more like this"]


def classes_of(splits: Sequence[Split]) -> tuple[str, ...]:
    """Of the data set whose splits they are."""
    return next(split.dataset.classes for split in splits if split.dataset is not None)
