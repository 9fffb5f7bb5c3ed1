"""SIGKILL to anything at any time, then the same command again: the table is that of an undisturbed sweep.

`make chaos` kills at 40 moments, the plain tests at fewer (``--moments``).
"""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from segbench import store
from segbench.report.formats import as_csv
from segbench.report.table import make_table
from tests.conftest import ROOT, WHOLE, tiny

STEPS, IMAGES, DECODERS, SEEDS = 6, 3, 2, 2

# Every Python process of the sweep imports this when it starts. `tick` counts what happens, over all processes, and at
# the fatal count kills the process that it happens in, the runner, or both.
FATE = """
import os, signal

os.environ.setdefault("FATE_RUNNER", str(os.getpid()))

def tick(kind):
    file = os.open(os.path.join(os.environ["FATE_FOLDER"], kind), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        os.write(file, b".")
        count = os.fstat(file).st_size
    finally:
        os.close(file)
    if os.environ.get("FATE_MOMENT") == f"{kind} {count}":
        if os.environ["FATE_VICTIM"] in ("runner", "both"):
            os.kill(int(os.environ["FATE_RUNNER"]), signal.SIGKILL)
        if os.environ["FATE_VICTIM"] == "server":
            os.kill(os.getppid(), signal.SIGKILL)
        if os.environ["FATE_VICTIM"] in ("cohort", "both"):
            os.kill(os.getpid(), signal.SIGKILL)

def ticking(function, before, after):
    def call(path, *args, **kwargs):
        ours = "/runs/" in str(path)
        if ours:
            tick(before)
        done = function(path, *args, **kwargs)
        if ours:
            tick(after)
        return done
    return call

os.replace = ticking(os.replace, "before-rename", "after-rename")
os.unlink = ticking(os.unlink, "before-unlink", "after-unlink")
"""

PLUGIN = (
    WHOLE
    + """
import torch.nn.functional as F

class Fated(Whole):
    def forward(self, features, image):
        if image.shape[-2:] == (64, 64):  # not what it is tried on before the sweep
            try:
                from sitecustomize import tick
            except ImportError:  # an undisturbed sweep
                tick = print
            tick("train" if self.training else "evaluate")
        return super().forward([F.dropout(f, 0.3, self.training) for f in features], image)
"""
)


@dataclass(frozen=True)
class Place:
    """Where one sweep of this module is run and watched."""

    folder: Path

    def __post_init__(self):
        for name in ("fate", "python"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "python" / "sitecustomize.py").write_text(FATE)
        plugin = self.folder.parent / "fated.py"
        plugin.write_text(PLUGIN)
        values = tiny(
            decoders=[f"{plugin}:Fated", "deconv"],
            seeds=list(range(SEEDS)),
            data={"val": IMAGES},
            recipe={"steps": STEPS},
            evaluation={"every": STEPS // 2},
            launch={"jobs": 2, "checkpoint_minutes": 1e-9},  # a checkpoint after each step
            runs_dir=str(self.folder / "runs"),
        )
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(values))

    def start(self, moment="", victim=""):
        watched = {"PYTHONPATH": str(self.folder / "python"), "FATE_FOLDER": str(self.folder / "fate")}
        environment = os.environ | watched | {"FATE_MOMENT": moment, "FATE_VICTIM": victim}
        command = [sys.executable, "-m", "segbench.cli", "sweep", str(self.folder / "tiny.yaml")]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self, process):
        out, _ = process.communicate(timeout=600)
        return process.returncode, out

    def count(self, kind):
        file = self.folder / "fate" / kind
        return file.stat().st_size if file.exists() else 0

    @property
    def sweep(self):
        return self.folder / "runs" / "tiny"

    def table(self):
        return as_csv(make_table(self.sweep, columns=("n", "score", "ci", "delta", "p", "params", "macs")))

    def files(self):
        """Name -> contents of all that must be the same, the counts without the date that zip archives hold."""
        found = {}
        for result in sorted(self.sweep.glob("*/result.json")):
            run = store.read_result(result.parent)
            name = f"{run.row['decoder']}-s{run.row['seed']}"
            found |= {f"{name} {file}": (run.folder / file).read_bytes() for file in (store.WEIGHTS, store.HISTORY)}
            found |= {f"{name} {k}": v.tobytes() for k, v in run.counts.items()}
            found[f"{name} ids"] = np.asarray(run.ids).tobytes()
        return found

    def leftovers(self):
        kinds = (".*.tmp", "*/.*.tmp", "*/*checkpoint*", "*/traceback.txt", ".locks/*", "damaged")
        return [path for kind in kinds for path in self.sweep.glob(kind)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("chaos") / "undisturbed")
    code, out = place.finish(place.start())
    assert code == 0, out
    arrays = 3 + 11  # counts of every evaluation, and of the standard measures
    assert len(place.files()) == DECODERS * SEEDS * (arrays + 3)
    assert place.leftovers() == []
    assert (place.count("train"), place.count("evaluate")) == (STEPS * SEEDS, 2 * IMAGES * SEEDS)
    return place


def moments(undisturbed, number):
    """(kind, count, victim): the kinds of moment in turn, each spread over the sweep, each with victims in turn."""
    shares = {"before-rename": 0.3, "after-rename": 0.15, "before-unlink": 0.1, "after-unlink": 0.05, "train": 0.18}
    shares |= {"evaluate": 0.12, "time": 0.1}  # the last: imports, planning and whatever else counts nothing
    victims = itertools.cycle(["runner", "cohort", "both"])
    rng = random.Random(0)
    for kind, share in shares.items():
        wanted = max(1, round(share * number))
        for i in range(wanted):
            if kind == "time":
                yield kind, rng.uniform(0.1, 8), ("runner", "both")[i % 2]
            else:
                last = undisturbed.count(kind)
                place = rng.random() if i or kind != "before-rename" else 0.0  # also that of the sweep's own file
                yield kind, 1 + round((i + place) / wanted * (last - 1)), next(victims)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_sweep_goes_on_to_the_same_table(undisturbed, tmp_path_factory, request):
    table, files = undisturbed.table(), undisturbed.files()
    killed = 0
    for kind, when, victim in moments(undisturbed, request.config.getoption("moments")):
        place = Place(tmp_path_factory.mktemp("chaos") / "killed")
        here = f"{kind} {when} {victim}"
        if kind == "time":
            process = place.start()
            time.sleep(when)
            others = psutil.Process(process.pid).children(recursive=True) if victim == "both" else []
            process.kill()
            for other in others:
                with contextlib.suppress(psutil.NoSuchProcess):
                    other.kill()
        else:
            process = place.start(f"{kind} {when}", victim)
        code, out = place.finish(process)
        was_killed = code != 0 or "the cohort's process died" in out  # whose runs are tried again at once
        killed += was_killed
        assert code in (0, 1, -signal.SIGKILL), f"{here}: {out}"
        code, out = place.finish(place.start())
        assert code == 0, f"{here}: {out}"
        assert place.table() == table, here
        assert place.files() == files, here
        assert place.leftovers() == [], here
        # One step of each cohort at most was done twice, since each step is saved.
        assert place.count("train") <= STEPS * SEEDS + SEEDS, here
        print(f"{here}: {'killed' if was_killed else 'ended before'}, same table, {place.count('train')} steps")
    assert killed >= 0.8 * request.config.getoption("moments")


@pytest.mark.slow
def test_a_killed_fork_server_harms_nothing(undisturbed, tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("chaos") / "killed")
    place.finish(place.start("train 1", "server"))
    assert place.count("train")
    code, out = place.finish(place.start())
    assert code == 0, out
    assert place.table() == undisturbed.table()
    assert place.leftovers() == []
