"""Look at all of a data set before training: what is broken, what would mislead. Imports no torch."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from segbench.config import DataConfig, RecipeConfig
from segbench.data import open_data
from segbench.data.base import VOID, Dataset, LabelOutOfRange, SizeMismatch
from segbench.errors import UserError, brief
from segbench.loading.findings import Check, Look, Split, classes_of, findings, look_at

FEW = 20  # classes up to which those that are nowhere have a row too
SPLITS = ("train", "val")


def check_data(
    config: DataConfig,
    processes: int | None = None,
    console: Console | None = None,
    recipe: RecipeConfig | None = None,
) -> Check:
    """Read every image of both splits.

    Args:
        processes: that read; default: one for each core.
        console: shows the progress.
        recipe: by which it is trained on.

    Raises:
        UserError: no such data set or parameter, or a reading process that dies.
    """
    splits = []
    for which in SPLITS:
        split = Split(config.split(which))
        try:
            split.dataset = open_data(config, which)
        except UserError as error:
            split.fault = str(error)
        splits.append(split)
    if all(split.dataset is None for split in splits):
        raise UserError("; ".join(dict.fromkeys(split.fault for split in splits)))
    _read(config, splits, processes, console)
    return findings(splits, recipe)


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
    names, everywhere = classes_of(splits), np.sum([split.pixels() for split in splits], axis=0)
    for i, name in enumerate(names):
        if len(names) > FEW and not everywhere[i]:  # of which a line says how many they are
            continue
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
