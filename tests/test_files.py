"""Label files are read for their hash once, unless they are not as they were."""

import os
import time
from collections import Counter

import numpy as np
import pytest
import yaml
from PIL import Image

from segbench.config import DataConfig
from segbench.data import base, open_data
from segbench.sweep.files import KNOWN, SETTLED_NS, KnownFiles
from segbench.sweep.plan import make_plan
from segbench.training.work import work
from tests.conftest import segbench, tiny
from tests.test_sweep import sweep

COUNTED = """
from segbench.data import base
from segbench.data.folder import Folder

hash_file = base.hash_file

def noted(path):
    with open({log!r}, "a") as file:
        file.write(str(path) + chr(10))
    return hash_file(path)

base.hash_file = noted

class Counted(Folder):
    def read(self, index):
        with open({log!r} + ".read", "a") as file:
            file.write(str(self.pairs[index][1]) + chr(10))
        return super().read(index)
"""


def write_labels(path, value=1):
    labels = np.full((64, 64), value, np.uint8)
    labels[:9] = 0
    Image.fromarray(labels).save(path, compress_level=0)  # of one size whatever the value


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The section ``data`` of a data set of five files, older than `SETTLED_NS`; its label files."""
    monkeypatch.setattr(base, "hash_file", base.hash_file)  # which the plug-in below replaces
    root = tmp_path / "own"
    for which, number in (("train", 3), ("val", 2)):
        for kind in ("images", "masks"):
            (root / kind / which).mkdir(parents=True)
        for i in range(number):
            Image.fromarray(np.full((64, 64, 3), i, np.uint8)).save(root / f"images/{which}/{i}.png")
            write_labels(root / f"masks/{which}/{i}.png")
    time.sleep(SETTLED_NS / 1e9 + 0.1)
    (tmp_path / "counted.py").write_text(COUNTED.format(log=str(tmp_path / "log")))
    data = {"name": f"{tmp_path}/counted.py:Counted", "root": str(root), "classes": ["a", "b"]}
    return data, sorted(root.glob("masks/*/*"))


@pytest.fixture
def make(make_config, own):
    """The tiny sweep on those files."""
    return lambda **changes: make_config(**changes).model_copy(update={"data": DataConfig(**own[0])})


@pytest.fixture
def hashed(tmp_path):
    """How often each label file was read for its hash since it was last asked."""

    def hashed():
        log = tmp_path / "log"
        lines = Counter(log.read_text().splitlines()) if log.exists() else {}
        log.unlink(missing_ok=True)
        return lines

    return hashed


def test_a_sweep_of_four_cohorts_hashes_each_label_once(make, own, hashed):
    once = {str(path): 1 for path in own[1]}
    config = make(decoders=["nearest"], seeds=[0, 1], grid={"recipe.lr": [0.1, 0.01]})
    results, code, out = sweep(config)
    assert (code, len(results)) == (0, 2), out
    assert "4 of 4 runs done" in out
    assert hashed() == once
    assert "4 done before" in sweep(config)[2]
    assert hashed() == {}


def test_a_young_file_is_read_each_time(make, own, hashed):
    """It may change again within one tick of its file system's clock."""
    later = time.time() + 3600  # young for as long as the test takes
    os.utime(own[1][0], (later, later))
    (cohort,) = make_plan(make(decoders=["nearest"])).cohorts
    assert hashed() == {str(path): 1 for path in own[1]}
    work(cohort, 1, lambda *_: None, lambda: False)
    assert hashed() == {str(own[1][0]): 1}


def other_size(path):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(path, compress_level=9)


def other_content(path):
    """Of the same size, and as old."""
    before = path.stat()
    data = path.read_bytes()
    write_labels(path, 0)
    assert path.stat().st_size == len(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [other_size, other_content])
def test_a_label_file_that_changes_after_the_plan_is_noticed(make, own, hashed, change):
    config = make(decoders=["nearest"])
    plan = make_plan(config)
    hashed()
    change(own[1][1])
    ended = work(plan.cohorts[0], 1, lambda *_: None, lambda: False)
    assert hashed() == {str(own[1][1]): 1}
    (outcome,) = ended.outcomes.values()
    assert "the data changed after the sweep was planned" in outcome.failure.reason
    again = make_plan(config)
    assert again.runs[0].key != plan.runs[0].key
    assert again.failing == []


def test_a_touched_file_is_read_again_and_the_key_stays(make, own, hashed):
    config = make(decoders=["nearest"])
    plan = make_plan(config)
    hashed()
    os.utime(own[1][1])
    assert make_plan(config).runs[0].key == plan.runs[0].key
    assert hashed() == {str(own[1][1]): 1}


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: b"\xff\x00 not JSON",
        lambda text: text.replace(b'"hashes"', b'"hushes"'),
        lambda text: text[:-30] + bytes([text[-30] ^ 1]) + text[-29:],  # one digit of a hash
    ],
)
def test_a_damaged_memory_is_ignored_and_made_again(make, own, hashed, harm):
    config = make(decoders=["nearest"])
    plan = make_plan(config)
    path = plan.folder / KNOWN
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    hashed()
    assert make_plan(config).runs[0].key == plan.runs[0].key
    assert hashed() == {str(path): 1 for path in own[1]}
    assert path.read_bytes() == whole


def test_images_are_read_once_and_a_bad_one_is_named_by_plan_and_sweep(own, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny(runs_dir=str(tmp_path / "runs"), decoders=["nearest"]) | {"data": own[0]}))
    image = tmp_path / "own/images/val/1.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:-20])
    said = segbench("plan", path)
    assert said.returncode == 2
    assert said.stdout.splitlines()[-1] == f"fails: {image} is truncated: it breaks off after {len(whole) - 20} bytes"
    assert "tiny: 1 runs, 0 done, 1 to do" in said.stdout
    assert segbench("sweep", path).returncode == 2
    image.write_bytes(whole)
    assert segbench("plan", path, "--no-trial").returncode == 0
    assert len(KnownFiles.read(tmp_path / "runs/tiny").good) == 2


@pytest.mark.parametrize("cache", [True, False])
def test_a_sweep_with_a_cache_reads_files_for_it_alone(make, own, tmp_path, cache):
    """The look at all images, the training and the evaluation are of what is decoded already."""
    log = tmp_path / "log.read"

    def reads():
        lines = Counter(log.read_text().splitlines()) if log.exists() else Counter()
        log.unlink(missing_ok=True)
        return lines

    launch = {"cache": str(tmp_path / "cache")} if cache else {}
    (cohort,) = make_plan(make(decoders=["nearest"], launch=launch)).cohorts
    images = {str(path) for path in (tmp_path / "own").glob("images/*/*")}
    assert reads() == Counter(dict.fromkeys(images, 2 if cache else 1))  # up to 16 also for how large it will be
    work(cohort, 1, lambda *_: None, lambda: False)
    assert set(reads()) == (set() if cache else images)


def test_a_fingerprint_of_known_files_is_the_data_set_s_own(own):
    data, known = open_data(DataConfig(**own[0]), "val"), KnownFiles()
    before = data.fingerprint()
    assert known.fingerprint(data) == before
    assert [*known.hashes] == [str(path) for path in own[1][-2:]]
    assert known.fingerprint(data) == before
    other_content(own[1][-1])
    assert known.fingerprint(data) == data.fingerprint() != before
