"""A tiny sweep's counts, frozen: a change of the code that moves a number has to raise the result version.

On the type of processor that made the file the counts are equal, pixel for pixel, and the weights too, bit for bit. On
others, and with another torch, rounding differs, and so do a few pixels: `TOLERANCE` of them.
"""

import hashlib
import json
import platform
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from segbench import store
from segbench.config_file import build_config
from segbench.measures.biou import band_width
from segbench.registry import UPSAMPLERS
from segbench.report.runs import collapsed
from segbench.upsamplers.base import is_one_shot
from tests.conftest import ROOT, tiny
from tests.test_sweep import sweep

GOLDEN = Path(__file__).parent / "golden.json"
TOLERANCE = 0.01  # share of an image's pixels; with oneDNN held to AVX2 or SSE4.1 0.001 moved at most

# These predict less than four classes after so few steps, so that their counts would show little; and featup_jbu's
# rounding moves 1.1 % of an image's pixels on another processor. What they compute is held by tests/test_parity.py.
LEFT_OUT = {
    "carafe", "deconv_separable", "dlu", "eucb", "fade", "featup_jbu", "gai", "lda_aqu", "local_attender",
    "max_unpool", "resfu", "sapa",
}  # fmt: skip
FROZEN = [n for n in UPSAMPLERS.builtin() if n not in LEFT_OUT and not is_one_shot(UPSAMPLERS.load(n))]


def processor() -> str:
    """What decides how torch rounds here: the processor's model, the instructions that torch uses, torch's version."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    model = [told.get(name, "") for name in ("vendor_id", "cpu family", "model")]
    return " ".join([platform.machine(), *model, torch.backends.cpu.get_cpu_capability(), torch.__version__])


def bits(weights):
    """A hash of a decoder's weights, whatever their names and order."""
    each = sorted(hashlib.sha256(w.tobytes()).hexdigest() for w in weights.values())
    return hashlib.sha256("".join(each).encode()).hexdigest()


def frozen(counts):
    """The standard measures' counts as the golden file holds them: arrays of several widths side by side."""
    widths = [band_width(0.02, *size) for size in counts["sizes"].tolist()]
    arrays = {name: counts[name] for name in ("region", "confusion")}
    arrays |= {"boundary": counts["biou@0.02"][:, None], "contour": counts["bf1@3"][:, None]}
    trimap = np.stack([counts[f"trimap@{width}"] for width in (1, 2, 4, 8, 16)], 1)
    return {name: array.tolist() for name, array in arrays.items()} | {
        "trimap": trimap.tolist(),
        "widths_px": [[width] for width in widths],
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Decoder -> all counts of a run after 24 steps of a cohort, and a hash of its weights."""
    recipe = {"steps": 24, "batch_size": 4, "lr": 0.01, "scale": [0.8, 1.25], "color_jitter": 0.3, "warmup_steps": 2}
    recipe["class_weights"] = [0.3, 1, 1, 1, 1, 1, 1]
    data = {"size": 96, "train": 12, "val": 4}
    changes = {
        "decoders": FROZEN,
        "recipe": recipe,
        "data": data,
        "seeds": [0],
    }
    results, code, out = sweep(build_config(tiny(runs_dir=str(tmp_path_factory.mktemp("golden")), **changes)))
    assert code == 0, out
    return {
        decoder: frozen(result.counts) | {"weights": bits(load_file(result.folder / store.WEIGHTS))}
        for (decoder, _), result in sorted(results.items())
    }


def moved(found, there):
    """Decoder of both -> largest share of an image's pixels by which a count differs, where that is not allowed."""
    shares = {}
    for decoder in sorted(found.keys() & there["counts"].keys()):
        mine, golden = found[decoder], there["counts"][decoder]
        gaps = [np.abs(np.subtract(mine[name], golden[name])).max() for name in golden if name != "weights"]
        share = float(max(gaps)) / 96**2
        if mine != golden if there["processor"] == processor() else share > TOLERANCE:
            shares[decoder] = share
    return shares


def test_golden(found, request):
    """After a change that is meant to move numbers: raise RESULT_VERSION in segbench/store.py, then --write-golden."""
    there = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"result_version": 0, "processor": "", "counts": {}}
    if request.config.getoption("write_golden"):
        if moved(found, there) and there["result_version"] == store.RESULT_VERSION:
            pytest.fail(
                f"numbers moved and RESULT_VERSION in segbench/store.py is still {store.RESULT_VERSION}: raise it"
            )
        new = {"result_version": store.RESULT_VERSION, "processor": processor(), "counts": found}
        GOLDEN.write_text(json.dumps(new, separators=(",", ":")).replace('},"', '},\n"') + "\n")
        return
    assert there["result_version"] == store.RESULT_VERSION, "make it again: pytest tests/test_golden.py --write-golden"
    assert there["counts"].keys() == found.keys(), "a decoder came or went: pytest tests/test_golden.py --write-golden"
    too_far = moved(found, there)
    assert not too_far, (
        f"the change moves numbers (share of an image's pixels: {too_far}). If it is meant to, raise RESULT_VERSION in "
        f"segbench/store.py, make tables anew, and run pytest tests/test_golden.py --write-golden"
    )


def test_the_golden_counts_would_show_a_change():
    """They are not of an untrained or collapsed cohort: decoders differ, and each predicts most classes."""
    counts = json.loads(GOLDEN.read_text())["counts"]
    regions = {decoder: np.array(of["region"]).sum(0) for decoder, of in counts.items()}
    assert len({region.tobytes() for region in regions.values()}) == len(counts)
    for decoder, (_, predicted, truth) in regions.items():
        assert collapsed(regions[decoder]) is None, decoder
        assert ((predicted > 0.005 * truth.sum()) & (truth > 0)).sum() >= 4, (decoder, predicted.tolist())


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
