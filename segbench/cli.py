"""The command line: commands, their arguments and exit codes."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from segbench import __version__, commands
from segbench.errors import UserError

SWEEP = "a sweep's folder, or its name in runs/; default: the newest there"


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Exit codes: 0 done, 1 runs or checks failed, 2 a user's mistake, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter shows a question mark
    args = _parse(argv)
    try:
        code: int = args.function(args)
    except UserError as error:
        print(f"segbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ``key=value`` may stand behind options too, where argparse takes no more positional ones."""
    parser = _parser()
    args, more = parser.parse_known_args(argv)
    pool = hasattr(args, "runs")  # in which runs stand too
    fit = [not item.startswith("-") and ("=" in item or pool) for item in more]
    if not all(fit) or (more and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.overrides = [*args.overrides, *more]
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segbench", description="Which upsampling should a segmentation decoder use?")
    parser.add_argument("--version", action="version", version=__version__)
    add = parser.add_subparsers(required=True, metavar="COMMAND").add_parser

    sweep = add("sweep", help="run what is missing of a sweep, then print its table")
    sweep.add_argument("config", help="a YAML file, such as configs/default.yaml")
    sweep.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as recipe.steps=500 or seeds=[0,1]"
    )
    sweep.set_defaults(function=commands.sweep)

    planned = add("plan", help="what a sweep will do and take: runs, checks, time, memory, disk")
    planned.add_argument("config", help="a YAML file, such as configs/default.yaml")
    planned.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as recipe.steps=500 or seeds=[0,1]"
    )
    planned.add_argument("--no-trial", action="store_true", help="leave out the estimate, for which cohorts are tried")
    planned.set_defaults(function=commands.plan)

    status = add("status", help="where a sweep stands, while it runs or after it stopped")
    status.add_argument("folder", nargs="?", type=Path, help=SWEEP)
    status.add_argument("--runs-dir", default="runs", help="where sweeps are kept")
    status.set_defaults(function=commands.status)

    table = add("table", help="the table of a sweep, from its run folders")
    table.add_argument("folder", nargs="?", type=Path, help=SWEEP)
    table.add_argument("--format", choices=commands.FORMATS, help="default: as --out is called, else terminal")
    table.add_argument("--metric", action="append", metavar="NAME", help="miou, biou@0.02, bf1@3, ...; repeatable")
    table.add_argument("--per-class", action="store_true", help="the (first) metric of each class")
    table.add_argument("--columns", metavar="A,B,...", help="such as n,score,delta,rank,macs; a wrong one lists all")
    table.add_argument("--sort", metavar="HEADING", help="such as mIoU or 'train s'; default: as in the sweep")
    table.add_argument("--long", action="store_true", help="a row for each run, metric and class; for pandas")
    table.add_argument("--allow-mixed", action="store_true", help="show runs that must not be compared, in groups")
    table.add_argument("--only", metavar="A,B,...", help="these decoders, as if the sweep had no others")
    table.add_argument("--out", type=Path, metavar="FILE", help="write it there")
    table.add_argument("--runs-dir", default="runs", help="where sweeps are kept")
    table.set_defaults(function=commands.table)

    report = add("report", help="one HTML file: verdict, table, plots, gallery, provenance")
    report.add_argument("folder", nargs="?", type=Path, help=SWEEP)
    report.add_argument("--out", type=Path, metavar="FILE", help="default: FOLDER/report.html; figures/ lies beside it")
    report.add_argument("--only", metavar="A,B,...", help="these decoders, as if the sweep had no others")
    report.add_argument("--no-gallery", action="store_true", help="leave out the images, for which models are run")
    report.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="what differs here, such as data.root=...; for the gallery"
    )
    report.add_argument("--runs-dir", default="runs", help="where sweeps are kept")
    report.set_defaults(function=commands.report)

    compare = add("compare", help="two sweeps: what changed in config and in numbers")
    compare.add_argument("first", type=Path, help="a sweep's folder")
    compare.add_argument("second", type=Path, help="another's")
    compare.add_argument("--metric", action="append", metavar="NAME", help="miou, biou@0.02, bf1@3, ...; repeatable")
    compare.add_argument("--format", choices=commands.FORMATS, help="default: as --out is called, else terminal")
    compare.add_argument("--out", type=Path, metavar="FILE", help="write it there")
    compare.add_argument("--runs-dir", default="runs", help="where sweeps are kept")
    compare.set_defaults(function=commands.compare)

    export = add("export", help="a run's predictions, as the data set's owner takes them")
    export.add_argument("run", type=Path, help="the folder of a finished run: runs/SWEEP/RUN")
    export.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="what differs here, such as data.root=..."
    )
    export.add_argument("--split", help="default: the one that the run was evaluated on")
    export.add_argument("--out", type=Path, help="default: RUN/predictions-SPLIT")
    export.add_argument("--runs-dir", default="runs", help="where sweeps are kept")
    export.set_defaults(function=commands.export)

    again = add("evaluate", help="finished runs predicted again under several evaluations, in one table")
    again.add_argument(
        "runs",
        nargs="*",
        metavar="RUN|key=value",
        help="a run's folder, or a sweep's or its name in runs/ (default: the newest); or what differs here, such as "
        "data.root=...",
    )
    again.add_argument(
        "--vary",
        action="append",
        metavar="KEY=[VALUE,...]",
        help="of evaluation:, each by itself from the runs' own, such as label_size=[448,224]; with companions: "
        "'evaluation=[{mode: crop, window: 224}, {flip: true}]'; repeatable; default: what fits the data",
    )
    again.add_argument("--images", type=int, metavar="N", help="so many, evenly spread over the split; default: all")
    again.add_argument("--format", choices=commands.FORMATS, help="default: as --out is called, else terminal")
    again.add_argument("--out", type=Path, metavar="FILE", help="write it there")
    again.add_argument("--runs-dir", default="runs", help="where sweeps are kept")
    again.set_defaults(function=commands.evaluate, overrides=[])

    data = add("data", help="look at a data set before training, or download one")
    of_data = data.add_subparsers(required=True, metavar="COMMAND")
    look = of_data.add_parser(
        "check", help="read every image of a config's data; non-zero where training would mislead"
    )
    look.add_argument("config", help="a sweep file, such as configs/voc.yaml")
    look.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="such as data.root=/data/VOCdevkit")
    look.add_argument("--picture", metavar="FILE.png", type=Path, help="also draw a few images with their labels")
    look.add_argument("--processes", type=int, help="that read; default: one for each core")
    look.set_defaults(function=commands.data_check)
    get = of_data.add_parser("get", help="download a data set, or say how to come by it")
    get.add_argument("name", help="voc, sbd, camvid, cityscapes or ade20k")
    get.add_argument("folder", nargs="?", type=Path, help="where to; default: data (cityscapes: data/cityscapes)")
    get.add_argument("--url", help="a mirror; the checksum must be the same")
    get.set_defaults(function=commands.data_get)

    kept = add("features", help="what launch.features keeps: encoders, data, sizes; and clear it")
    kept.add_argument("folder", type=Path, help="as launch.features names it")
    kept.add_argument("--only", metavar="SET", help="this one, as listed")
    kept.add_argument("--clear", action="store_true", help="remove what is listed; it is computed anew when asked for")
    kept.set_defaults(function=commands.features)

    listing = add("list", help="upsamplers, decoders, encoders, data sets, ..., and plug-ins that do not import")
    listing.set_defaults(function=commands.list_)

    show = add("show", help="all about a plug-in: what it computes, parameters; of an upsampler also cost and kernel")
    show.add_argument("names", nargs="+", metavar="NAME", help="such as carafe, folder or path/to/file.py:Class")
    show.set_defaults(function=commands.show)

    keys = add("config", help="every key of a sweep file: what it takes, its default and what it means")
    keys.add_argument("key", nargs="?", metavar="KEY", help="a section or key, such as recipe or recipe.lr")
    keys.set_defaults(function=commands.config)

    new = add("new", help="a file to start from: an upsampler of your own, or a sweep over your images")
    of_new = new.add_subparsers(required=True, metavar="COMMAND")
    upsampler = of_new.add_parser("upsampler", help="a plug-in to change, which passes `segbench check`")
    upsampler.add_argument("path", type=Path, metavar="FILE.py", help="which is written")
    upsampler.set_defaults(function=commands.new_upsampler)
    sweep_file = of_new.add_parser("config", help="a sweep file, with the classes that the masks of a folder hold")
    sweep_file.add_argument("path", type=Path, metavar="FILE.yaml", help="which is written")
    sweep_file.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with images/ and masks/ in it")
    sweep_file.set_defaults(function=commands.new_config)

    check = add("check", help="does an upsampler or decoder keep the contract?")
    check.add_argument("decoder", help="a name, path/to/file.py:Class or package.module:Class")
    check.add_argument("params", nargs="*", default=[], metavar="key=value", help="its parameters, or its skeleton's")
    check.add_argument("--skeleton", metavar="NAME", help="what an upsampler is checked in; default: pyramid")
    check.add_argument("--config", metavar="FILE.yaml", help="a sweep, whose encoder, classes and recipe are taken")
    check.set_defaults(function=commands.check)
    return parser


if __name__ == "__main__":
    sys.exit(main())
