"""What runs out, dies or grows: memory, loader workers, and fifty cohorts one after the other."""

import io
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from segbench import store
from segbench.errors import Failure, out_of_memory
from segbench.launch import local
from segbench.outcomes import Done, Ended, Failed, Lost
from segbench.runs import make_cohorts
from segbench.sweep.plan import make_plan
from segbench.sweep.run import run_sweep
from segbench.training.work import work
from tests.conftest import WHOLE
from tests.test_sweep import same, sweep

HUNGRY = (
    WHOLE
    + """
import resource, torch

class Hungry(Whole):
    allowance = 3
    def forward(self, features, image):
        if image.shape[-1] == 64:
            import gc, segbench.training.lockstep
            count = max(len(m.members) for m in gc.get_objects() if isinstance(m, segbench.training.lockstep.Lockstep))
            if count > self.allowance:
                soft, hard = resource.getrlimit(resource.RLIMIT_AS)
                used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, hard))
                try:
                    torch.empty(2**31, dtype=torch.uint8).fill_(1)  # memory really runs out
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        return super().forward(features, image)

class Hungry2(Hungry):
    pass

class Greedy(Hungry):
    allowance = 0
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_for_what_comes():
    """Three blocks of 30 MiB are 23,040 pages, of which in the end none has to be asked for."""
    told = """
import ctypes, resource, sys
from segbench.training.memory import keep_freed
if sys.argv[1] == "kept":
    keep_freed()
libc, size = ctypes.CDLL(None), 30 * 2**20
libc.malloc.restype, libc.memset.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(3)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in reversed(blocks):
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    command = [sys.executable, "-c", told]
    plainly = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    given = {"capture_output": True, "text": True, "env": plainly}
    found = [subprocess.run([*command, how], check=True, **given) for how in ("kept", "not")]
    kept, plain = (int(done.stdout) for done in found)
    assert kept < 1000
    assert plain > 10_000  # or nothing is to be gained here any more


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="the system has none")
def test_a_cohort_s_process_asks_for_huge_pages():
    """The system may still have none to give, where its memory is in pieces."""
    assert "hg" in local.call(flags_of_a_large_tensor)


def flags_of_a_large_tensor():
    """``VmFlags`` of its memory; ``hg`` stands for madvise(MADV_HUGEPAGE)."""
    import torch

    large = torch.ones(2**26)
    place, inside = large.data_ptr(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= place < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise LookupError("no mapping holds it")


def test_out_of_memory_is_told_with_what_to_change(make_config, tmp_path):
    (tmp_path / "hungry.py").write_text(HUNGRY)
    config = make_config(decoders=["nearest", f"{tmp_path / 'hungry.py'}:Greedy"])
    results, code, out = sweep(config)
    assert code == 1
    assert list(results) == [("nearest", 0)]
    assert "failed Greedy-s0: out of memory: with launch.on_oom=split fewer decoders are trained at a time" in out
    assert "recipe.batch_size or recipe.crop" in out


def test_a_cohort_that_is_too_large_is_split_and_gives_the_same_numbers(make_config, tmp_path):
    (tmp_path / "hungry.py").write_text(HUNGRY.replace("allowance = 3", "allowance = 2"))
    names = [f"{tmp_path / 'hungry.py'}:{name}" for name in ("Hungry", "Hungry2")]
    changes = {"decoders": ["nearest", *names, "deconv"]}
    whole = make_config(**changes, name="alone", launch={"on_oom": "split"})
    (tmp_path / "hungry.py").write_text(HUNGRY.replace("allowance = 3", "allowance = 2"))
    results, code, out = sweep(whole)
    assert code == 0, out
    assert "out of memory seed 0: Hungry-s0, Hungry2-s0 again" in out
    assert len(results) == 4
    for decoder in changes["decoders"]:
        alone, code, _ = sweep(make_config(decoders=[decoder], name=f"alone-{decoder[-7:].replace(':', '')}"))
        assert code == 0
        (key,) = alone
        assert same(alone[key], results[key])


def test_a_decoder_that_is_too_large_by_itself_fails_by_itself(make_config, tmp_path):
    (tmp_path / "hungry.py").write_text(HUNGRY)
    decoders = ["nearest", f"{tmp_path / 'hungry.py'}:Greedy"]
    results, code, out = sweep(make_config(decoders=decoders, launch={"on_oom": "split"}))
    assert code == 1
    assert list(results) == [("nearest", 0)]
    assert out.count("failed Greedy-s0: out of memory") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the limit holds on Linux")
def test_what_counts_as_out_of_memory():
    import torch

    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not out_of_memory(RuntimeError("the plug-in is broken"))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, hard))
    try:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(2**33, dtype=torch.uint8)
        with pytest.raises(MemoryError):
            np.ones(2**33, np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert Failure.of(caught.value).out_of_memory


def test_a_cohort_of_which_every_run_is_too_large_is_halved(make_config):
    from segbench.sweep.run import _Sweep

    config = make_config(decoders=["nearest", "bilinear", "deconv"], launch={"on_oom": "split"})
    plan = make_plan(config)
    console = Console(file=io.StringIO(), width=200)
    halving = _Sweep(plan, console)
    (whole,) = plan.cohorts
    halving._ended(whole, Ended.alike(whole, Lost(Failure("killed", out_of_memory=True))))
    assert [[run.title for run in cohort.runs] for cohort in halving.again] == [["nearest", "bilinear"], ["deconv"]]
    assert halving.code == 0
    halving._ended(halving.again[1], Ended.alike(halving.again[1], Lost(Failure("killed", out_of_memory=True))))
    assert halving.code == 1
    assert "failed deconv-s0: killed" in console.file.getvalue()


KILLED = (
    WHOLE
    + """
import os

class Killed(Whole):
    def forward(self, features, image):
        if image.shape[-1] == 64:
            os.kill(os.getpid(), 9)
        return super().forward(features, image)
"""
)


def test_a_process_that_the_system_kills_for_memory_is_told_from_another(make_config, tmp_path, monkeypatch):
    plugin = tmp_path / "killed.py"
    plugin.write_text(KILLED)
    config = make_config(decoders=[f"{plugin}:Killed"])
    monkeypatch.setattr(local, "oom_kills", lambda: 0)
    _, _, out = sweep(config)
    assert "the cohort's process died (signal SIGKILL)" in out
    kills = itertools.count()  # Linux's counter, which goes up
    monkeypatch.setattr(local, "oom_kills", lambda: next(kills))
    _, _, out = sweep(config)
    assert "out of memory" in out
    assert "the system killed the cohort's process" in out


DYING_DATA = """
import os, signal
from multiprocessing import parent_process
from segbench.data.shapes import Shapes
from torch.utils.data import get_worker_info

class Dying(Shapes):
    def __init__(self, split, dies=-1, **params):
        super().__init__(split, **params)
        self.dies = dies
    def read(self, index):
        if get_worker_info() is not None and self.dies == ("train", "val").index(self.split):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)
"""


@pytest.mark.parametrize("split", [0, 1])
def test_a_dead_loader_worker_fails_its_cohort_only(make_config, tmp_path, split):
    (tmp_path / "dying.py").write_text(DYING_DATA)
    config = make_config(
        data={"name": f"{tmp_path / 'dying.py'}:Dying"}, decoders=["nearest"], launch={"workers": 1},
        grid={"data.dies": [split, -1]},
    )  # fmt: skip
    folder, code, _ = run_sweep(config, Console(file=(out := io.StringIO()), width=200))
    assert code == 1
    assert "DataLoader worker" in out.getvalue()
    states = sorted(json.loads(path.read_text())["state"] for path in folder.glob("*/status.json"))
    assert states == ["done", "failed"]


def test_a_loader_worker_that_the_system_kills_for_memory_is_told_from_another(make_config, tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text(DYING_DATA)
    data = {"name": f"{tmp_path / 'dying.py'}:Dying", "dies": 0}
    (cohort,) = make_cohorts(make_plan(make_config(data=data, launch={"workers": 1})).runs, lambda run: 0)
    kills = itertools.count()
    for count, memory in ((lambda: 0, False), (lambda: next(kills), True)):
        monkeypatch.setattr("segbench.training.work.oom_kills", count)
        ended = work(cohort, 1, lambda *_: None, lambda: False)
        failures = {ended.outcomes[run.key].failure for run in cohort.runs}
        assert {failure.out_of_memory for failure in failures} == {memory}
        assert all(("out of memory" in failure.reason) == memory for failure in failures)
        assert all("DataLoader worker" in failure.reason for failure in failures)


SHORT = (
    WHOLE
    + """

class Short(Whole):
    def forward(self, features, image):
        if image.shape[-1] == 64:
            raise MemoryError
        return super().forward(features, image)
"""
)


@pytest.mark.parametrize(("on_oom", "state"), [("split", "stopped"), ("fail", "failed")])
def test_a_run_that_will_be_tried_again_has_not_failed(make_config, tmp_path, on_oom, state):
    """Or another runner would take it for lost."""
    (tmp_path / "short.py").write_text(SHORT)
    config = make_config(decoders=["nearest", f"{tmp_path / 'short.py'}:Short"], launch={"on_oom": on_oom})
    (cohort,) = make_cohorts(make_plan(config).runs, lambda run: 0)
    ended = work(cohort, 1, lambda *_: None, lambda: False)
    nearest, short = cohort.runs
    assert ended.outcomes[nearest.key] == Done()
    assert isinstance(ended.outcomes[short.key], Failed)
    assert ended.outcomes[short.key].failure.out_of_memory
    assert store.read_json(short.folder / store.STATUS)["state"] == state
    assert store.is_done(nearest.folder)


@pytest.mark.slow
def test_nothing_grows_over_fifty_cohorts(make_config, tmp_path):
    """File descriptors, threads and memory of the runner and of the fork server; a cohort's own end with it."""
    import psutil

    config = make_config(
        seeds=list(range(50)), decoders=["nearest"], recipe={"steps": 1}, data={"train": 2, "val": 1, "size": 32},
        launch={"trackers": []},
    )  # fmt: skip
    seen = []

    class Watch(io.StringIO):
        def write(self, text):
            if text.startswith("done seed"):
                me = psutil.Process()
                family = [me, *(c for c in me.children() if "forkserver" in " ".join(c.cmdline()))]
                seen.append([(p.num_fds(), p.num_threads(), p.memory_info().rss / 2**20) for p in family])
            return super().write(text)

    began = time.monotonic()
    _, code, _ = run_sweep(config, Console(file=Watch(), width=200))
    assert code == 0
    figures = np.array(seen)  # (cohorts, processes, figures)
    assert figures.shape == (50, 2, 3)
    early, late = figures[5:15].mean(0), figures[40:].mean(0)
    print(f"\n50 cohorts in {time.monotonic() - began:.0f} s; fds, threads, MiB, of runner and fork server:")
    print(f"cohorts 6 to 15: {early.round(1).tolist()}; 41 to 50: {late.round(1).tolist()}")
    assert (late[:, 0] - early[:, 0]).max() < 1
    assert (late[:, 1] - early[:, 1]).max() < 1
    assert (late[:, 2] - early[:, 2]).max() < 5  # MiB
