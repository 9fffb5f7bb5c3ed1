"""A tiny sweep's counts, frozen: a change of the code that moves a number has to raise the result version.

On the type of processor that made the file the counts are equal, pixel for pixel. On others, and with another torch,
rounding differs, and so do a few pixels: `TOLERANCE` of them.
"""

import json
import platform
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from segbench import store
from segbench.config import build_config
from segbench.registry import DECODERS
from tests.conftest import ROOT, tiny
from tests.test_sweep import sweep

GOLDEN = Path(__file__).parent / "golden.json"
TOLERANCE = 0.01  # share of an image's pixels; with oneDNN held to AVX2 0.0007 of them moved, in one decoder of seven


def processor() -> str:
    """What decides how torch rounds here: the processor's model, the instructions that torch uses, torch's version."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    model = [told.get(name, "") for name in ("vendor_id", "cpu family", "model")]
    return " ".join([platform.machine(), *model, torch.backends.cpu.get_cpu_capability(), torch.__version__])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Decoder -> predicted pixels of each class, and right ones, of each image: after 12 steps of a cohort."""
    recipe = {"steps": 12, "batch_size": 4, "lr": 0.01, "scale": [0.8, 1.25], "color_jitter": 0.3, "warmup_steps": 2}
    data = {"size": 96, "train": 12, "val": 4}
    changes = {"decoders": list(DECODERS.builtin()), "recipe": recipe, "data": data, "seeds": [0]}
    results, code, out = sweep(build_config(tiny(runs_dir=str(tmp_path_factory.mktemp("golden")), **changes)))
    assert code == 0, out
    return {
        decoder: {name: result.counts[name].tolist() for name in ("region", "boundary")}
        for (decoder, _), result in sorted(results.items())
    }


def moved(found, golden):
    """Decoder -> largest share of an image's pixels by which a count differs."""
    shares = {}
    for decoder in golden:
        gaps = [np.abs(np.subtract(found[decoder][n], golden[decoder][n])).max() for n in ("region", "boundary")]
        shares[decoder] = float(max(gaps)) / 96**2
    return {decoder: share for decoder, share in shares.items() if share}


def test_golden(found, request):
    """After a change that is meant to move numbers: raise RESULT_VERSION in segbench/store.py, then --write-golden."""
    there = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"result_version": 0, "processor": "", "counts": {}}
    if request.config.getoption("write_golden"):
        same = there["processor"] == processor() and there["counts"].keys() == found.keys()
        if same and moved(found, there["counts"]) and there["result_version"] == store.RESULT_VERSION:
            pytest.fail(
                f"numbers moved and RESULT_VERSION in segbench/store.py is still {store.RESULT_VERSION}: raise it"
            )
        new = {"result_version": store.RESULT_VERSION, "processor": processor(), "counts": found}
        GOLDEN.write_text(json.dumps(new, separators=(",", ":")).replace('},"', '},\n"') + "\n")
        return
    assert there["result_version"] == store.RESULT_VERSION, "make it again: pytest tests/test_golden.py --write-golden"
    assert there["counts"].keys() == found.keys(), "a decoder came or went: pytest tests/test_golden.py --write-golden"
    allowed = 0.0 if there["processor"] == processor() else TOLERANCE
    too_far = {decoder: share for decoder, share in moved(found, there["counts"]).items() if share > allowed}
    assert not too_far, (
        f"the change moves numbers (share of an image's pixels: {too_far}). If it is meant to, raise RESULT_VERSION in "
        f"segbench/store.py, make tables anew, and run pytest tests/test_golden.py --write-golden"
    )


def test_the_golden_counts_would_show_a_change():
    """They are not of an untrained or collapsed cohort: decoders differ, and each predicts several classes."""
    counts = json.loads(GOLDEN.read_text())["counts"]
    regions = {decoder: np.array(of["region"]).sum(0) for decoder, of in counts.items()}
    assert len({region.tobytes() for region in regions.values()}) == len(counts)
    assert all((region[1] > 0).sum() >= 3 for region in regions.values())


PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "experiments").glob("**/*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_published_tables_are_of_this_result_version(page):
    """Each section that shows a sweep's table says of which version it is, and it is this one."""
    for section in re.split(r"^#+ ", (ROOT / page).read_text("utf-8"), flags=re.M):
        versions = {int(v) for v in re.findall(r"result version (\d+)", section, re.I)}
        where = f"{page}, '{section.partition(chr(10))[0]}'"
        assert versions <= {store.RESULT_VERSION}, f"{where}: a table of an older result version; make it again"
        if re.search(r"^(\| decoder \||  decoder  )", section, re.M):
            assert versions, f"{where}: a table does not say its result version"
