"""What each command does with its arguments; each returns an exit code.

Nothing here imports torch; the commands that need it do so themselves, or in another process.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segbench.errors import UserError

if TYPE_CHECKING:
    from segbench.config import SweepConfig
    from segbench.report.table import Table

BINARY = "parquet is binary: --out FILE says where to write it"
FORMATS = ("terminal", "md", "csv", "tex", "json", "parquet")


def sweep(args: argparse.Namespace) -> int:
    from rich.console import Console

    from segbench.config_file import load_config
    from segbench.report.formats import print_terminal
    from segbench.report.table import make_table
    from segbench.sweep.run import run_sweep

    console = _console()
    config = load_config(args.config, args.overrides)
    folder, code, listed = run_sweep(config, Console(stderr=True))
    if code != 130:
        try:
            print_terminal(make_table(folder, manifest=listed), console)
        except UserError as error:
            print(f"segbench: {error}", file=sys.stderr)
            return max(code, 1)
    return code


def plan(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape

    from segbench.config_file import load_config
    from segbench.sweep.estimate import estimate, in_words
    from segbench.sweep.plan import make_plan

    config = load_config(args.config, args.overrides)
    console = Console(stderr=True)
    _print_plugin_files([config], launches=True)
    with console.status("looking at encoder, decoders and data"):
        plan = make_plan(config, partly=True)
    if plan.runs:
        print(plan)
    for why in plan.failing:
        print(f"fails: {why}")
    left = plan.cohorts or (plan.search and plan.search.todo)
    if left and not plan.failing and not args.no_trial:
        with console.status("") as status:
            found = estimate(plan, lambda what: status.update(escape(what)))
        print(in_words(found, Path(config.runs_dir), config.launch.features))
    return 2 if plan.failing else 0  # as `sweep`


def status(args: argparse.Namespace) -> int:
    from segbench.store import MANIFEST, SEARCH
    from segbench.sweep.status import print_status

    folder = _folder(args.folder, args.runs_dir)
    if (search := folder / SEARCH / MANIFEST).is_file():
        print_status(search.parent, f"{folder.name}/{SEARCH}", _console())
    print_status(folder, folder.name, _console())
    return 0


def table(args: argparse.Namespace) -> int:
    from segbench.report import formats
    from segbench.report.table import make_table

    folder, how = _folder(args.folder, args.runs_dir), _format(args)
    _print_measure_files(folder)
    if args.long:
        from segbench.report.frame import load

        _write(formats.long(load(folder, args.allow_mixed, _names(args.only)), how), args.out)
        return 0
    columns, only = _names(args.columns), _names(args.only)
    table = make_table(folder, args.metric or (), args.per_class, columns, args.sort, args.allow_mixed, only)
    _show(table, how, args.out)
    return 0


def report(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape

    from segbench.report.page import write_report
    from segbench.store import read_plan

    folder, only = _folder(args.folder, args.runs_dir), _names(args.only)
    _print_measure_files(folder)
    if not args.no_gallery:
        shown = [row["folder"] for row in read_plan(folder)["runs"] if not only or row["decoder"] in only]
        _print_plugin_files(config for run in shown for config in _run_configs(folder / run, args.set or ()))
    with Console(stderr=True).status("") as status:
        done = write_report(
            folder, args.out, not args.no_gallery, args.set or (), lambda what: status.update(escape(what)), only
        )
    for note in done.notes:
        print(f"gallery: {note}", file=sys.stderr)
    print(f"{done.path}  {done.size / 1e6:.1f} MB, {done.figures} figures in {done.path.parent / 'figures'}")
    return 0


def compare(args: argparse.Namespace) -> int:
    from segbench.report.compare import compare

    first, second, how = _folder(args.first, args.runs_dir), _folder(args.second, args.runs_dir), _format(args)
    _print_measure_files(first, second)
    found = compare(first, second, args.metric or ())
    if how == "terminal":
        print("\n".join(f"{key}: {a} -> {b}" for key, a, b in found.changes) or "the configs are the same")
    _show(found.table, how, args.out)
    return 0


def _names(listed: str | None) -> list[str]:
    return listed.split(",") if listed else []


def _folder(given: Path | None, runs_dir: str) -> Path:
    """The folder that is meant: as given, or by that name in ``runs_dir``; the newest sweep's where none is given."""
    from segbench.sweep.status import newest_sweep

    if given is None:
        return newest_sweep(Path(runs_dir))
    inside = Path(runs_dir) / given
    return inside if inside.is_dir() and not given.exists() else given


def _format(args: argparse.Namespace) -> str:
    """As asked, or by the name of the file to write."""
    if args.format or not args.out:
        return args.format or "terminal"
    suffix: str = args.out.suffix.removeprefix(".")
    if suffix in FORMATS[1:]:
        return suffix
    raise UserError(f"--out {args.out}: its name should end in .{', .'.join(FORMATS[1:])}, or say --format")


def _show(table: "Table", how: str, out: Path | None) -> None:
    from segbench.report import formats

    _check_out(how, out)
    if how == "terminal":
        formats.print_terminal(table, _console())
    else:
        write = {"md": formats.as_md, "csv": formats.as_csv, "tex": formats.as_tex, "json": formats.as_json}
        _write(formats.as_parquet(table) if how == "parquet" else write[how](table), out)


def _check_out(how: str, out: Path | None) -> None:
    if how == "terminal" and out:
        raise UserError(f"--out takes no --format terminal; there is: {', '.join(FORMATS[1:])}")
    if how == "parquet" and not out:
        raise UserError(BINARY)


def _write(content: str | bytes, out: Path | None) -> None:
    from segbench.store import write_atomic

    data = content if isinstance(content, bytes) else content.rstrip("\n").encode() + b"\n"
    if out:
        write_atomic(out, lambda file: file.write(data))
    elif isinstance(content, bytes):
        raise UserError(BINARY)
    else:
        print(content.rstrip("\n"))


def export(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from segbench import store

    args.run = _folder(args.run, args.runs_dir)
    store.read_finished(args.run)  # before torch is imported, which takes seconds
    from segbench.export import export, for_submission, in_words, load_run
    from segbench.kept import changed_since
    from segbench.training.cohort import quiet

    quiet()
    _print_plugin_files(_run_configs(args.run, args.overrides))
    for change in changed_since(args.run):
        print(change, file=sys.stderr)
    run, left_out = for_submission(load_run(args.run, args.split, args.overrides))
    if left_out:
        print(left_out, file=sys.stderr)
    out = args.out or args.run / f"predictions-{run.dataset.split}"
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("predicting", total=len(run.dataset))
        region = export(run, out, lambda done, total: progress.update(task, completed=done))
    print(f"{len(run.dataset)} predictions of {args.run.name} in {out}")
    if run.dataset.labelled:
        print(in_words(run, region))
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from segbench.vary import Asked, finished_runs

    how = _format(args)
    _check_out(how, args.out)
    items = [*args.runs, *args.overrides]
    overrides = [item for item in items if "=" in item and not Path(item).exists()]
    folders = [_folder(Path(item), args.runs_dir) for item in items if item not in overrides]
    results, unfinished = finished_runs(folders or [_folder(None, args.runs_dir)])
    asked = Asked.read(results[0].folder, args.vary or (), overrides, args.images)  # before torch is imported
    from segbench.evaluate import evaluate
    from segbench.kept import changed_since
    from segbench.training.cohort import quiet

    quiet()
    folders = [result.folder for result in results]
    _print_plugin_files(config for folder in folders for config in _run_configs(folder, overrides))
    for change in dict.fromkeys(line for folder in folders for line in changed_since(folder)):
        print(change, file=sys.stderr)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("predicting", total=None)
        table = evaluate(results, asked, unfinished, lambda n, all_: progress.update(task, completed=n, total=all_))
    _show(table, how, args.out)
    return 0


def data_check(args: argparse.Namespace) -> int:
    from rich.console import Console

    from segbench.config_file import load_config
    from segbench.loading.check import check_data, draw, print_check

    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes should be 1 or more, not {args.processes}")
    config = load_config(args.config, args.overrides)
    _print_plugin_files([config], data_only=True)
    check = check_data(config.data, args.processes, Console(stderr=True), config.recipe)
    print_check(check, f"{config.data.name}, by {args.config}", _console())
    if args.picture:
        draw(check, args.picture)
        print(f"drawn in {args.picture}")
    return 1 if check.errors else 0


def data_get(args: argparse.Namespace) -> int:
    from segbench.download import get

    default = Path("data", "cityscapes") if args.name == "cityscapes" else Path("data")
    get(args.name, args.folder or default, args.url, _console())
    return 0


def features(args: argparse.Namespace) -> int:
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table as Grid

    from segbench.loading.features import clear, feature_sets

    grid = Grid(box=None, pad_edge=False)
    for heading in ("set", "encoder", "data", "split", "views", "files", "size"):
        grid.add_column(heading, justify="right" if heading in ("views", "files", "size") else "left", overflow="fold")
    found = [kept for kept in feature_sets(args.folder) if args.only in (None, kept.folder.name)]
    if args.only and not found:
        raise UserError(f"{args.folder} has no set {args.only}")
    for kept in found:
        said = [str(kept.about.get(key) or "") for key in ("encoder", "data", "split", "views")]
        grid.add_row(*map(escape, (kept.folder.name, *said)), str(kept.files), decimal(kept.size))
        if args.clear:
            clear(kept)
    _console().print(grid)
    print(f"{decimal(sum(kept.size for kept in found))} {'cleared' if args.clear else 'kept'} in {args.folder}")
    return 0


def list_(args: argparse.Namespace) -> int:
    from segbench.listing import print_plug_ins

    print_plug_ins()
    return 0


def show(args: argparse.Namespace) -> int:
    from segbench.reference import describe

    code = 0
    for name in args.names:
        try:
            print("\n".join(describe(name)))
        except UserError as error:
            print(f"{name}  FAILED: {error}")
            code = 1
    return code


def config(args: argparse.Namespace) -> int:
    from segbench.reference import keys

    print("\n".join(keys(args.key or "")))
    return 0


def new_upsampler(args: argparse.Namespace) -> int:
    from segbench.new import new_upsampler

    _print_next(args.path, new_upsampler(args.path))
    return 0


def new_config(args: argparse.Namespace) -> int:
    from segbench.new import new_config

    found, then = new_config(args.path, args.data)
    print(f"found {found}")
    _print_next(args.path, then)
    return 0


def _print_next(path: Path, commands: Sequence[str]) -> None:
    print("\n  ".join([f"{path} is written; next:", *commands]))


def check(args: argparse.Namespace) -> int:
    from segbench.check import check_decoder
    from segbench.config_file import load_config, parse_overrides

    config = load_config(args.config) if args.config else None
    return check_decoder(args.decoder, parse_overrides(args.params), print, args.skeleton, config)


def _run_configs(folder: Path, overrides: Sequence[str]) -> "list[SweepConfig]":
    """Of a run's folder; none where it cannot be read, of which more is said later."""
    from segbench.kept import read_config

    with contextlib.suppress(UserError):
        return [read_config(folder, ["baseline=null", *overrides])]
    return []


def _print_plugin_files(configs: "Iterable[SweepConfig]", data_only: bool = False, launches: bool = False) -> None:
    """Say which plug-ins' files are about to run: what a config names may be another's choice."""
    from segbench.sweep.plan import code_files

    _runs_the_code_in(file for config in configs for file in code_files(config, data_only, launches))


def _print_measure_files(*folders: Path) -> None:
    """The same of the measures that the runs of these sweeps say that they were made with."""
    from segbench import store
    from segbench.kept import name_in
    from segbench.registry import MEASURES

    first: dict[str, str] = {}
    for path in (path for folder in folders for path in sorted(folder.glob(f"*/{store.RESULT}"))):
        with contextlib.suppress(UserError, TypeError, KeyError, AttributeError):  # damaged: more is said later
            row = store.read_json(path)
            for measure in row["measures"]:
                first.setdefault(measure["plug_in"], name_in(path.parent, row.get("sources"), measure["plug_in"]))
    _runs_the_code_in(file for name in first.values() if (file := MEASURES.code_file(name)))


def _runs_the_code_in(files: Iterable[Path]) -> None:
    for file in dict.fromkeys(files):
        print(f"runs the code in {file}", file=sys.stderr)


def _console():  # type: ignore[no-untyped-def]
    from rich.console import Console

    # Piped output has no width; a table must not be folded to 80 columns for it.
    return Console() if sys.stdout.isatty() else Console(width=int(os.environ.get("COLUMNS", "240")))
