"""Shared by all tests: tiny sweeps, the command line as a user runs it, and real data where it is there."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from segbench import store
from segbench.cli import main
from segbench.columns import described, load_measures
from segbench.config import SweepConfig
from segbench.config_file import build_config
from segbench.launch import local
from segbench.measures.base import RunMeasure

ROOT = Path(__file__).parent.parent
REAL_DATA = Path(os.environ.get("SEGBENCH_TEST_DATA", ROOT.parent / "shared" / "data"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

local.context()  # whichever test starts the fork server first, it has what cohorts import
torch.set_num_threads(1)  # tests run beside each other and beside cohorts; more threads on a busy machine only wait


# The head of a plug-in's file whose decoder overrides `forward(features, image)`.
WHOLE = """
from segbench.decoders.pyramid import Pyramid
from segbench.upsamplers import Bilinear

class Whole(Pyramid):
    def __init__(self, channels, strides, num_classes, *, width=64):
        super().__init__(channels, strides, num_classes, Bilinear, width=width)
"""


def tiny(**changes: Any) -> dict[str, Any]:
    """A sweep that runs in seconds: 4 steps on 64-px scenes."""
    values: dict[str, Any] = {
        "name": "tiny",
        "data": {"name": "shapes", "size": 64, "train": 6, "val": 3},
        "encoder": {"weights": "imagenet"},
        "decoders": ["bilinear", "nearest"],
        "decoder_defaults": {"width": 8},
        "seeds": [0],
        "recipe": {"steps": 4, "batch_size": 2, "crop": 64},
        "launch": {"jobs": 1, "threads": 1},
    }
    for key, value in changes.items():  # sections are merged, all else replaced
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return values


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--moments", type=int, default=8, help="how many times tests/test_chaos.py kills a sweep")
    parser.addoption("--golden", metavar="FOLDER", help="golden files of upsamplers, for tests/test_parity.py")
    parser.addoption("--write-golden", action="store_true", help="freeze the counts of tests/test_golden.py anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that processes which share the files out end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests/test_parity.py found of each golden file."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind)]
    for line in sorted(value for r in reports for name, value in r.user_properties if name == "parity"):
        terminalreporter.write_line(line)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., SweepConfig]:
    return lambda **changes: build_config(tiny(runs_dir=str(tmp_path / "runs"), **changes))


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Write a sweep file under ``tmp_path`` whose runs go there too."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(tiny(runs_dir=str(tmp_path / "runs"), **changes)))
        return path

    return write


def described_measures(*names: str) -> list[dict[str, Any]]:
    """What a result says of the standard measures of those names, and of those that are measured once of a run."""
    measures = load_measures([])
    return described(m for m in measures if m.name in names or isinstance(m, RunMeasure))


def write_again(folder: Path, **changes: Any) -> None:
    """Make a run's folder whole again, with its checksums, after a test has changed its files or now its row."""
    row = store.read_json(folder / store.RESULT)
    row = {key: value for key, value in row.items() if key not in ("checksum", "files")}
    store.write_result(folder, row | changes)


def segbench(*args: object, cwd: Path = ROOT, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """The console script in a process of its own.

    But for commands that run no plug-in in their own process: those run here, with the fork server that is there.
    """
    command = [sys.executable, "-m", "segbench.cli", *map(str, args)]
    if args[0] in ("sweep", "plan", "status") and cwd == ROOT == Path.cwd() and not kwargs:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                code = main([str(arg) for arg in args])
            except SystemExit as stop:  # by argparse
                code = int(stop.code or 0)
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False, **kwargs)


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for it; a test that waits in vain fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it does not happen within {seconds} s"
        time.sleep(0.05)


def real_data(folder: str) -> Path:
    """A folder of real data; the test skips, saying why, where it is missing."""
    root = REAL_DATA / folder
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; SEGBENCH_TEST_DATA names the folder that holds {folder}")
    return root


@pytest.fixture(scope="session")
def camvid_root() -> Path:
    return real_data("camvid")


@pytest.fixture(scope="session")
def voc_root() -> Path:
    return real_data("VOCdevkit")


@pytest.fixture(scope="session")
def voc_masks() -> Path:
    return real_data("voc2012_masks")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a file; whatever the console says, every request and dialog is kept, and none may be there in the end."""
    contexts, faults = [], []

    def open_page(path: Path, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: faults.append(f"console: {m.text}"))
        page.on("pageerror", lambda e: faults.append(f"error: {e}"))
        page.on("dialog", lambda d: (faults.append(f"dialog: {d.message}"), d.dismiss()))
        own = path.as_uri()
        page.on(
            "request",
            lambda r: (
                None if r.url == own or r.url.startswith(("data:", "blob:")) else faults.append(f"request: {r.url}")
            ),
        )
        page.goto(own)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
