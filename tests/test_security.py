"""Files and configs from strangers: nothing in them runs, writes elsewhere or fetches; plug-ins run if named."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from segbench import store
from segbench.config import EncoderConfig
from segbench.config_file import build_config, load_config
from segbench.encoders import build_encoder
from segbench.errors import UserError
from segbench.sweep.plan import code_files
from tests.conftest import segbench, tiny, write_again
from tests.test_sweep import sweep


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def fuse(tmp_path):
    """The path that exists once something went off."""
    path = tmp_path / "went-off"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.is_dir()  # the bomb is one
    path.rmdir()
    return path


@pytest.fixture
def plugin(tmp_path, fuse):
    """A plug-in that says when it is imported."""
    path = tmp_path / "plug.py"
    path.write_text(
        f"import os, sys\nos.makedirs({str(fuse)!r}, exist_ok=True)\nprint('imported', file=sys.stderr, flush=True)\n"
        "from segbench.data.shapes import Shapes\nfrom segbench.upsamplers import Bilinear\n"
        "class Mine(Bilinear): pass\nclass Data(Shapes): pass\n"
    )
    return path


# Weights, checkpoints and counts are data


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("whole", [True, False])
def test_encoder_weights_are_not_unpickled(tmp_path, fuse, suffix, whole):
    path = tmp_path / f"weights{suffix}"
    if whole:
        torch.save({"w": Bomb(fuse)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(fuse)))
    with warnings.catch_warnings(action="error"), pytest.raises(UserError) as told:
        build_encoder(EncoderConfig(weights=str(path)))
    kept = "cannot be read" if suffix == ".safetensors" else "holds something else than tensors; it is not read"
    assert kept in str(told.value)
    assert "weights_only" not in str(told.value)
    assert not fuse.exists()


def test_safetensors_are_read_as_such(tmp_path):
    """The format without code is taken: wrong tensors are named, so the file was read."""
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="tensors are missing"):
        build_encoder(EncoderConfig(weights=str(tmp_path / "weights.safetensors")))


def test_a_checkpoint_is_not_unpickled(make_config, fuse):
    config = make_config(decoders=["nearest"])
    results, _, _ = sweep(config)
    folder = results["nearest", 0].folder
    (folder / store.RESULT).unlink()
    store.write_checkpoint(folder, 2, pickle.dumps(Bomb(fuse)))  # with the checksum in its name
    _, code, out = sweep(config)
    assert code == 2
    assert "cannot be read" in out
    assert not fuse.exists()


def test_counts_are_not_unpickled(make_config, fuse):
    results, _, _ = sweep(make_config(decoders=["nearest"]))
    folder = results["nearest", 0].folder
    with np.load(folder / store.COUNTS) as arrays:
        counts = dict(arrays)
    np.savez(folder / store.COUNTS, **counts | {"ids": np.array([Bomb(fuse)], dtype=object)})
    write_again(folder)  # its checksum fits
    assert store.read_row(folder)
    with pytest.raises(store.Damaged, match=r"counts\.npz cannot be read \(Object arrays"):
        store.read_result(folder)
    assert segbench("table", folder.parent).returncode == 2
    assert not fuse.exists()


def test_a_decoders_weights_are_not_unpickled(make_config, fuse):
    results, _, _ = sweep(make_config(decoders=["nearest"]))
    folder = results["nearest", 0].folder
    torch.save({"w": Bomb(fuse)}, folder / store.WEIGHTS)
    write_again(folder)
    done = segbench("export", folder)
    assert done.returncode == 2, done
    assert "decoder.safetensors does not fit" in done.stderr
    assert not fuse.exists()


# YAML is data


def tagged(fuse):
    return f"!!python/object/apply:os.mkdir ['{fuse}']"


def test_tags_in_a_config_or_an_override_make_no_objects(write_sweep, fuse):
    path = write_sweep()
    with pytest.raises(UserError, match="is not a YAML value"):
        load_config(path, [f"recipe.steps={tagged(fuse)}"])
    path.write_text(f"{path.read_text()}\nbaseline: {tagged(fuse)}\n")
    done = segbench("sweep", path)
    assert done.returncode == 2
    assert "is not valid YAML" in done.stderr
    assert not fuse.exists()


def test_tags_in_a_runs_config_make_no_objects(make_config, fuse):
    results, _, _ = sweep(make_config(decoders=["nearest"]))
    folder = results["nearest", 0].folder
    (folder / store.CONFIG).write_text(f"name: {tagged(fuse)}\n")
    write_again(folder)
    assert segbench("export", folder).returncode == 2
    assert "is not valid YAML" in segbench("report", folder.parent).stderr
    assert not fuse.exists()


# A plug-in runs once it is named


def test_a_plug_in_is_named_before_it_runs(write_sweep, plugin, fuse):
    path = write_sweep(decoders=[f"{plugin}:Mine"])
    runs = path.parent / "runs" / "tiny"
    for command in (["sweep", path], ["export", runs / "RUN"], ["report", runs]):
        argv = (next(runs.glob("Mine-*")) if part == runs / "RUN" else part for part in command)
        done = segbench(*argv, cwd=path.parent)  # a process of its own
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        named = plugin if command[0] == "sweep" else next(runs.glob("Mine-*/source/0")) / plugin.name
        assert lines.index(f"runs the code in {named}") < lines.index("imported")

    fuse.rmdir()  # and what shows results alone does not run it
    for command in (
        ["table", runs],
        ["status", runs],
        ["report", runs, "--no-gallery"],
        ["compare", runs, runs],
        ["list"],
    ):
        done = segbench(*command, cwd=path.parent)
        assert done.returncode == 0, done.stderr
        assert not fuse.exists(), command


@pytest.mark.parametrize(
    "changes",
    [
        {"decoders": ["{plugin}:Mine"]},
        {"data": {"name": "{plugin}:Data"}},
        {"grid": {"data.name": ["shapes", "{plugin}:Data"]}},
    ],
)
def test_wherever_a_config_names_a_plug_in_its_file_is_found(plugin, fuse, changes):
    values = yaml.safe_load(yaml.safe_dump(tiny(**changes)).replace("{plugin}", str(plugin)))
    assert code_files(build_config(values)) == [plugin]
    assert not fuse.exists()


def test_files_beside_a_config_do_not_run(write_sweep, tmp_path, plugin, fuse):
    """Neither a file named as something that segbench imports, nor one named as a built-in decoder."""
    for name in ("sitecustomize.py", "torch.py", "yaml.py", "bilinear.py", "conftest.py", "nearest.py"):
        (tmp_path / name).write_text(plugin.read_text())
    script = Path(sys.executable).with_name("segbench")  # `python -m` would put the folder on Python's path
    path = write_sweep()
    command = [script, "plan", path, "--no-trial"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not fuse.exists()


# A config's strings are data


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "a/b", "..", "", "a\nb", "-rf"])
def test_a_sweep_cannot_be_called_like_another_folder(name):
    with pytest.raises(UserError, match="name"):
        build_config(tiny(name=name))


def test_labels_write_nothing_outside_of_the_runs(write_sweep, tmp_path):
    labels = ["../../../elsewhere", "/elsewhere", "$(touch elsewhere)", "a;touch elsewhere", "..", "ä b\\c"]
    decoders = [{"name": "nearest", "label": s, "params": {"width": 8 + i}} for i, s in enumerate(labels)]
    runs = tmp_path / "so" / "deep" / "that" / "nothing" / "leaves" / "here" / "runs"
    launch = {"trackers": ["csv", "tensorboard"]}
    path = write_sweep(decoders=decoders, recipe={"steps": 1}, launch=launch)
    before = set(tmp_path.rglob("*"))
    done = segbench("sweep", path, f"runs_dir={runs}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    new = {p for p in set(tmp_path.rglob("*")) - before if p not in runs.parents}
    assert all(p == runs or runs in p.parents for p in new)
    assert len(list((runs / "tiny").glob("*/result.json"))) == len(labels)
    assert len(list((runs / "tiny").rglob("*tfevents*"))) == len(labels)
    assert not any(p.name == "elsewhere" for p in new)
    assert not Path("/elsewhere").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"launch": {"slurm": {"partition": "main\ntouch elsewhere"}}}, "launch.slurm.partition should"),
        ({"launch": {"slurm": {"setup": ["touch elsewhere"]}}}, "unknown key 'launch.slurm.setup'"),
        ({"launch": {"slurm": {"slurm_setup": ["touch elsewhere"]}}}, "unknown key 'launch.slurm.slurm_setup'"),
        ({"runs_dir": "runs\ntouch elsewhere"}, "runs_dir should"),
        ({"decoders": ["plug.py\n:Mine"]}, "name should be text of one line, without characters that do not show"),
        ({"decoders": ["plug.py\u202e:Mine"]}, "name should"),
        ({"decoders": [{"name": "nearest", "label": "\x1b[1A\x1b[2K"}]}, "label should"),
        ({"data": {"name": "plug.py\x1b[2K:Data"}}, "name should"),
    ],
)
def test_no_value_can_add_a_line_to_a_job_script_or_hide_one_from_the_terminal(changes, message):
    with pytest.raises(UserError, match=message):
        build_config(tiny(**changes))


def test_a_file_cannot_choose_whose_cluster_to_join(write_sweep):
    """Who runs a cluster can send its drivers anything to unpickle."""
    path = write_sweep(launch={"launcher": "ray", "address": "192.0.2.1:6379"})
    with pytest.raises(UserError, match=r"line \d+: launch.address should be auto here"):
        load_config(path)
    path = write_sweep(launch={"launcher": "ray", "address": "auto"})
    assert load_config(path, ["launch.address=192.0.2.1:6379"]).launch.address == "192.0.2.1:6379"


def test_nor_can_it_by_a_merge(write_sweep):
    path = write_sweep()
    kept = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "launch"}
    merged = "launch:\n  <<: {launcher: ray, address: '192.0.2.1:6379'}\n"
    path.write_text(yaml.safe_dump(kept) + merged)
    with pytest.raises(UserError, match=r"launch.address should be auto here"):
        load_config(path)


# Nothing is fetched unasked

WATCH = """
import os, socket
def watched(method):
    def call(self, address, *args):
        if self.family != socket.AF_UNIX and not (isinstance(address, tuple) and address[0] in LOCAL):
            with open(LOG, "a") as log:
                log.write(f"{os.getpid()} {method.__name__} {address!r}\\n")
            raise OSError(f"no network in this test: {address!r}")
        return method(self, address, *args)
    return call
for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, watched(getattr(socket.socket, name)))
def resolved(host, *args, **kwargs):
    with open(LOG, "a") as log:
        log.write(f"{os.getpid()} getaddrinfo {host!r}\\n")
    raise OSError(f"no network in this test: {host!r}")
socket.getaddrinfo = resolved
"""


def test_nothing_is_fetched_unasked(write_sweep, tmp_path):
    """Every process of every command notes and refuses each connection; `data get`, which asks for one, shows that."""
    watch, log = tmp_path / "watch", tmp_path / "connections"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(f"LOG, LOCAL = {str(log)!r}, ()\n{WATCH}")
    path = write_sweep(decoders=["bilinear", "deconv"])
    folder = tmp_path / "runs" / "tiny"
    environment = os.environ | {"PYTHONPATH": str(watch)}
    for command in (["plan", path], ["sweep", path], ["table", folder], ["report", folder], ["status", folder],
                    ["compare", folder, folder], ["list"], ["check", "deconv"], ["data", "check", path]):  # fmt: skip
        done = segbench(*command, env=environment)
        assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()
    assert len(list(folder.glob("*/result.json"))) == 2

    done = segbench("data", "get", "camvid", tmp_path / "data", env=environment)
    assert done.returncode == 2, done
    assert "getaddrinfo" in log.read_text()


@pytest.mark.parametrize("change", [{"folder": "../../../etc"}, {"folder": ".."}, {"folder": 3}, "no run"])
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path, change):
    """A sweep's folder from a stranger."""
    run = {"key": "0123456789", "decoder": "nearest", "seed": 0, "variant": {}, "folder": "nearest-s0-0123456789"}
    runs = [run | change if isinstance(change, dict) else change]
    (tmp_path / store.MANIFEST).write_text(json.dumps({"config": tiny(), "runs": runs}))
    for command in ("table", "status", "report"):
        done = segbench(command, tmp_path)
        assert done.returncode == 2, done
        assert "folders outside of" in done.stderr or "is damaged" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "files", [{"/etc/hostname": "0"}, {"../../other": "0"}, {"/dev/zero": "0"}, ["counts.npz"], None]
)
def test_a_result_vouches_for_its_own_files_only(tmp_path, files):
    """What it names is read for its checksum."""
    row = {"result_version": store.RESULT_VERSION, "layout": store.LAYOUT} | ({} if files is None else {"files": files})
    store.write_json(tmp_path / store.RESULT, row | {"checksum": store._checksum(row)})
    with pytest.raises(store.Damaged, match="vouches for other files"):
        store.read_row(tmp_path)


def test_status_of_a_stranger_s_folder_removes_nothing(tmp_path):
    """Its locks lie, by a link, where a file of ours has the name of one."""
    (ours := tmp_path / "ours").mkdir()
    (ours / "id").write_text("mine")
    (folder := tmp_path / "runs").mkdir()
    (folder / ".locks").symlink_to(ours)
    run = {"key": "id", "decoder": "nearest", "seed": 0, "variant": {}, "folder": "nearest-s0-id"}
    (folder / store.MANIFEST).write_text(json.dumps({"config": tiny(), "runs": [run]}))
    done = segbench("status", folder)
    assert done.returncode in (0, 1), done
    assert "waiting" in done.stdout
    assert (ours / "id").read_text() == "mine"
