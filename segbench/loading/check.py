"""Look at all of a data set before training: what is broken, what would mislead. Imports no torch."""

import hashlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from segbench.config import DataConfig
from segbench.data import open_data
from segbench.data.base import VOID, Dataset, LabelOutOfRange, SizeMismatch
from segbench.errors import UserError, brief

SPLITS = ("train", "val")
LISTED = 10  # faults of a kind that are named; the rest is counted


@dataclass(frozen=True)
class Look:
    """What one image and its labels hold.

    Attributes:
        size: (height, width) in pixels.
        labels: (256,) pixels of each label, 255 being void.
        content: hash of the image's pixels.
        fault, kind: what is wrong, and whether that is ``size``, ``label`` or ``unreadable``; empty where nothing is.
    """

    index: int
    size: tuple[int, int] = (0, 0)
    labels: npt.NDArray[np.int64] | None = None
    content: str = ""
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


def check_data(config: DataConfig, processes: int | None = None, console: Console | None = None) -> Check:
    """Read every image of both splits.

    Args:
        processes: that read; default: one for each core.
        console: shows the progress.

    Raises:
        UserError: no such data set or parameter, or a reading process that dies.
    """
    splits = []
    for which in SPLITS:
        split = Split(getattr(config, f"{which}_split"))
        try:
            split.dataset = open_data(config, which)
        except UserError as error:
            split.fault = str(error)
        splits.append(split)
    if all(split.dataset is None for split in splits):
        raise UserError("; ".join(dict.fromkeys(split.fault for split in splits)))
    _read(config, splits, processes, console)
    return findings(splits)


def look_at(dataset: Dataset, index: int) -> Look:
    """What image ``index`` and its labels hold.

    Raises:
        UserError: they cannot be read, or do not fit.
    """
    image, labels = dataset.read(index)
    content = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
    return Look(index, image.shape[:2], np.bincount(labels.ravel(), minlength=256), content)


def _read(config: DataConfig, splits: Sequence[Split], processes: int | None, console: Console | None) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    number = processes or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["segbench.loading.check"])
    work = [(i, n) for i, split in enumerate(splits) if split.dataset is not None for n in range(len(split.dataset))]
    with (
        ProcessPoolExecutor(number, context, _Reader.start, (config,)) as pool,
        Progress(*columns, console=console, transient=True, disable=console is None) as progress,
    ):
        task = progress.add_task("reading", total=len(work))
        chunk = max(1, min(16, len(work) // (4 * number)))
        try:
            for (i, _), look in zip(work, pool.map(_Reader.look, work, chunksize=chunk), strict=True):
                splits[i].looks.append(look)
                progress.advance(task)
        except BrokenProcessPool:
            raise UserError("a process died while reading the data (out of memory?); try --processes 1") from None
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


class _Reader:
    """Lives in each reading process; opens the data there, since a plug-in's class cannot be sent."""

    datasets: ClassVar[list[Dataset | None]] = []

    @classmethod
    def start(cls, config: DataConfig) -> None:
        for which in SPLITS:
            try:
                cls.datasets.append(open_data(config, which))
            except UserError:
                cls.datasets.append(None)

    @classmethod
    def look(cls, place: tuple[int, int]) -> Look:
        dataset = cls.datasets[place[0]]
        assert dataset is not None
        try:
            return look_at(dataset, place[1])
        except UserError as error:
            kind = {SizeMismatch: "size", LabelOutOfRange: "label"}.get(type(error), "unreadable")
            return Look(place[1], fault=str(error), kind=kind)
        except Exception as error:  # a plug-in can raise anything
            return Look(place[1], fault=f"{dataset.ids[place[1]]}: {brief(error)}", kind="unreadable")


def findings(splits: Sequence[Split]) -> Check:
    """What is wrong with splits that have been looked at, and what one should know."""
    errors = [f"{split.name}: {split.fault}" for split in splits if split.fault]
    meaningless, warnings = list[str](), list[str]()
    for split in splits:
        for kind in ("unreadable", "size", "label"):
            errors += _shortened([f"{split.name}: {fault}" for fault in split.faults(kind)])
        meaningless += [f"{split.name}: {line}" for line in _emptiness(split)]
        warnings += [f"{split.name}: {line}" for line in (*_repeats(split), *_hidden(split))]
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
                said_in.append(f"{len(names)} class{'es' if len(names) > 1 else ''} {said}: {', '.join(names)}")
        if not (train[0] or val[0]) and (train[1:VOID].any() or val[1:VOID].any()):
            warnings.append(f"no pixel has label 0, '{_classes(splits)[0]}': do the masks' labels start at 1?")
    return Check(list(splits), errors, warnings, meaningless)


def _named(splits: Sequence[Split], which: npt.NDArray[np.bool_]) -> list[str]:
    return [name for name, there in zip(_classes(splits), which, strict=False) if there]


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


def _classes(splits: Sequence[Split]) -> tuple[str, ...]:
    return next(split.dataset.classes for split in splits if split.dataset is not None)


def print_check(check: Check, title: str, console: Console) -> None:
    """Two tables and the findings."""
    overview = Table(box=box.SIMPLE_HEAD)
    for name in ("split", "images", "unreadable", "sizes differ", "labels wrong", "width x height", "void %"):
        overview.add_column(name, justify="left" if name == "split" else "right")
    for split in check.splits:
        if split.dataset is None:
            overview.add_row(split.name, "?")
            continue
        faults = [str(len(split.faults(kind))) for kind in ("unreadable", "size", "label")]
        total, void = int(split.pixels().sum()), int(split.pixels()[VOID])
        share = f"{100 * void / total:.2f}" if total else ""
        overview.add_row(split.name, str(len(split.dataset)), *faults, _sizes(split), share)
    console.print(f"[bold]{escape(title)}[/]", soft_wrap=True)
    console.print(overview)
    console.print(_class_table(check.splits))
    for line in check.errors:
        console.print(f"[red]error[/]    {escape(line)}", highlight=False, soft_wrap=True)
    for line in check.warnings:
        console.print(f"[yellow]warning[/]  {escape(line)}", highlight=False, soft_wrap=True)
    if not check.errors:
        console.print("[green]ok[/]       nothing that would make a training fail or mislead", highlight=False)


def _sizes(split: Split) -> str:
    sizes = sorted({look.size for look in split.good()})
    if not sizes:
        return ""
    if len(sizes) == 1:
        return f"{sizes[0][1]}x{sizes[0][0]}"
    (low_h, low_w), (high_h, high_w) = np.min(sizes, 0), np.max(sizes, 0)
    return f"{low_w}x{low_h} to {high_w}x{high_h}"


def _class_table(splits: Sequence[Split]) -> Table:
    """Each class's share of the pixels that are not void, and the number of images that hold it."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("label", justify="right")
    table.add_column("class")
    for split in splits:
        table.add_column(f"{split.name} %", justify="right")
        table.add_column("images", justify="right")
    for i, name in enumerate(_classes(splits)):
        cells = []
        for split in splits:
            pixels, images = split.pixels(), split.images_with()
            labelled = int(pixels[:VOID].sum())
            cells += [f"{100 * pixels[i] / labelled:.2f}" if labelled else "", str(images[i])]
        table.add_row(str(i), escape(name), *cells)
    return table


def draw(check: Check, path: Path, number: int = 4) -> None:
    """Write one PNG: of each split a few images, evenly spread, beside their labels, over the classes in their colours.

    Raises:
        UserError: no image can be read, or the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    from segbench.store import write_atomic

    width, font = 320, ImageFont.load_default(14)
    tiles = []
    for split in check.splits:
        good = split.good()
        chosen = [good[i] for i in np.unique(np.linspace(0, len(good) - 1, number).round().astype(int))] if good else []
        for look in chosen:
            assert split.dataset is not None
            image, labels = split.dataset.read(look.index)
            overlay = blend(image, labels, split.dataset.palette)
            height = max(1, round(width * image.shape[0] / image.shape[1]))
            tile = Image.new("RGB", (2 * width, height + 20), "white")
            for i, picture in enumerate((image, overlay)):
                tile.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS), (i * width, 20))
            ImageDraw.Draw(tile).text((4, 2), f"{split.name}: {split.dataset.ids[look.index]}", "black", font)
            tiles.append(tile)
    if not tiles:
        raise UserError(f"no picture {path}: not one image could be read")
    dataset = next(split.dataset for split in check.splits if split.dataset is not None)
    legend = [*zip(dataset.classes, dataset.palette, strict=True), ("void", (255, 255, 255))]
    per_row = 8
    rows = -(-len(legend) // per_row)
    columns = [tiles[0::2], tiles[1::2]]
    heights = [sum(tile.height for tile in column) for column in columns]
    sheet = Image.new("RGB", (4 * width, max(heights) + 22 * rows + 8), "white")
    for i, column in enumerate(columns):
        top = 0
        for tile in column:
            sheet.paste(tile, (2 * width * i, top))
            top += tile.height
    pen = ImageDraw.Draw(sheet)
    for i, (name, colour) in enumerate(legend):
        x, y = (i % per_row) * (4 * width // per_row) + 4, max(heights) + 8 + 22 * (i // per_row)
        pen.rectangle((x, y, x + 14, y + 14), tuple(colour), "black")
        pen.text((x + 20, y - 1), name[:16], "black", font)
    write_atomic(path, lambda file: sheet.save(file, "PNG"))


def blend(
    image: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], palette: Sequence[Sequence[int]]
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8: the image with its labels' colours laid over it at 60 %, void in white."""
    colours = np.full((256, 3), 255.0)
    colours[: len(palette)] = np.asarray(palette, float)
    return np.asarray((0.4 * image + 0.6 * colours[labels]).round(), np.uint8)
