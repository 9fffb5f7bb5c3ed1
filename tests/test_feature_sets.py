"""Sets of kept features by themselves: what is read back, what their names and ``about.json`` say, what breaks."""

import errno
import shutil

import pytest
import torch
from safetensors.torch import save_file

from segbench.config import EncoderConfig
from segbench.config_file import build_config
from segbench.data import open_data
from segbench.encoders import build_encoder
from segbench.encoders.base import KnownEncoder
from segbench.errors import UserError
from segbench.loading import features
from segbench.loading.features import KeptFeatures, View, feature_sets
from segbench.sweep import estimate
from segbench.sweep.estimate import trial
from segbench.sweep.plan import make_plan
from segbench.training.cohort import run_cohort
from tests.conftest import segbench, tiny
from tests.test_features import in_this_process, kept_sweep, run


def test_a_view_comes_back_as_it_was_given(tmp_path):
    kept, device = KeptFeatures(tmp_path / "set", torch.float32), torch.device("cpu")
    level = torch.randn(2, 5, 4, 6).contiguous(memory_format=torch.channels_last)
    made = View(torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8), torch.zeros(8, 12, dtype=torch.uint8), [level[1]])
    assert kept.read_view(3, 1) is None
    kept.write_view(3, 1, made)
    found = KeptFeatures(tmp_path / "set", torch.float32).read_view(3, 1)
    assert torch.equal(found.image, made.image)
    assert torch.equal(found.labels, made.labels)
    (batch,) = features.channels_first(features.stacked([found.features, [level[0]]]), device)
    assert torch.equal(batch, level.flip(0))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert kept.read_view(3, 0) is None


def test_what_breaks_after_it_was_read_is_not_there(tmp_path):
    kept = KeptFeatures(tmp_path / "set", torch.float32)
    kept.prepare({"encoder": "x"})
    kept.write("0-0", {"level0": torch.arange(6.0).view(1, 2, 3)})
    assert torch.equal(kept.read("0-0")["level0"], torch.arange(6.0).view(1, 2, 3))
    (path,) = kept.folder.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    assert kept.read("0-0") is None
    assert not path.exists()
    (kept.folder / features.ABOUT).write_text("{")
    assert kept.about is None


def test_other_weights_than_those_that_were_kept_are_refused():
    encoder = build_encoder(EncoderConfig(weights="none"))
    about = features.described(build_config(tiny()), "val", encoder, encoder.features_hash())
    image = torch.zeros(1, 3, 32, 64)
    known = KnownEncoder(about, lambda: encoder)
    assert (known.loaded, known.channels, known.strides) == (False, encoder.channels, encoder.strides)
    assert known.features_hash() == encoder.features_hash()
    assert torch.equal(known.normalise(image.byte()), encoder.normalise(image.byte()))
    assert not known.loaded
    assert all(map(torch.equal, known(image), encoder(image)))
    assert known.loaded
    with pytest.raises(UserError, match="weights changed since its features were kept"):
        KnownEncoder(about | {"weights_hash": "another"}, lambda: encoder)(image)


def test_weights_that_change_for_a_while_spoil_no_set(tmp_path):
    """A cohort that finds others than were planned says so, and leaves nothing that a later one would believe."""
    encoder, path = build_encoder(EncoderConfig(name="resnet18", weights="none")), tmp_path / "weights.safetensors"
    tensors = {name: t.clone() for name, t in encoder.body.state_dict().items()}
    save_file(tensors, path)
    config = kept_sweep(tmp_path, encoder={"name": "resnet18", "weights": str(path)})
    plan = make_plan(build_config(config))
    save_file({name: t + 1 if t.is_floating_point() else t for name, t in tensors.items()}, path)
    with pytest.raises(UserError, match="weights changed after the sweep was planned"):
        run_cohort(plan.cohorts[0], {}, lambda *_: None, lambda: False, 1)
    save_file(tensors, path)
    run(config)
    assert {kept.about["weights_hash"] for kept in feature_sets(tmp_path / "kept")} == {encoder.weights_hash}


def test_a_plan_where_nothing_can_be_kept(tmp_path, monkeypatch, capfd):
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: full)
    found = trial(make_plan(build_config(kept_sweep(tmp_path))).cohorts[0], 1, None)
    assert (found.views, found.images) == (None, None)
    assert "what is not kept is computed each time" in capfd.readouterr().err


@pytest.mark.parametrize("broken", ["{", None])
def test_a_set_that_says_nothing_of_itself_is_listed_and_cleared(tmp_path, broken):
    """Its ``about.json`` is damaged, or it was cleared while a sweep used it."""
    kept = KeptFeatures(tmp_path / "train-0123456789abcdef", torch.float32)
    kept.prepare({"encoder": "x"})
    kept.write("0-0", {"level0": torch.ones(1, 2, 3)})
    about = kept.folder / features.ABOUT
    about.write_text(broken) if broken else about.unlink()
    (found,) = feature_sets(tmp_path)
    assert (found.folder, found.about, found.files) == (kept.folder, {}, 1)
    told = segbench("features", tmp_path, "--clear")
    assert (told.returncode, list(tmp_path.iterdir())) == (0, []), told.stderr


def test_nothing_but_features_is_cleared(tmp_path):
    """Not a user's folder of training images, nor a file that lies among the features, nor what a link leads to."""
    kept = KeptFeatures(tmp_path / "val-0123456789abcdef", torch.float32)
    kept.write("0-0", {"level0": torch.ones(1, 2, 3)})
    mine = [
        tmp_path / "train-images" / "1.jpg",
        tmp_path / "val-2017" / "ab" / "x.safetensors",
        kept.folder / "notes.txt",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    elsewhere = KeptFeatures(tmp_path / "elsewhere", torch.float32)
    elsewhere.write("0-0", {"level0": torch.ones(1, 2, 3)})
    (tmp_path / "train-0123456789abcdef").symlink_to(elsewhere.folder)
    told = segbench("features", tmp_path, "--clear")
    assert told.returncode == 0, told.stderr
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert elsewhere.read("0-0") is not None
    assert list(kept.folder.iterdir()) == [kept.folder / "notes.txt"]


def test_a_folder_that_cannot_be_used_costs_time_alone(tmp_path, capfd):
    """Where the system takes no folder, as below /proc, all is computed each time, and that is said."""
    config = kept_sweep(tmp_path, decoders=["nearest"]) | {
        "launch": {"features": "/proc/none", "jobs": 1, "threads": 1}
    }
    in_this_process(config)
    assert "launch.features: /proc/none/train-" in capfd.readouterr().err


def test_a_file_that_cannot_be_opened_now_is_left_alone(tmp_path, monkeypatch):
    kept = KeptFeatures(tmp_path / "set", torch.float32)
    kept.write("0-0", {"level0": torch.ones(1, 2, 3)})

    def too_many(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(features, "safe_open", too_many)
        assert kept.read("0-0") is None
    assert kept.read("0-0") is not None


def test_what_may_change_a_bit_is_in_a_set_s_name(tmp_path, monkeypatch):
    """The last bits of features depend on the thread count, the processor and the libraries."""
    config = build_config(kept_sweep(tmp_path))
    facts, data = make_plan(config).runs[0].facts, open_data(config.data, "val")

    def name():
        return features.open_features(config, facts, "val", data).folder.name

    names, threads = [name()], torch.get_num_threads()
    assert name() == names[0]
    torch.set_num_threads(threads + 1)
    names.append(name())
    torch.set_num_threads(threads)
    with monkeypatch.context() as patch:
        patch.setattr(features, "cpu_name", lambda: "another")
        names.append(name())
    with monkeypatch.context() as patch:
        patch.setattr("timm.__version__", "2.0")
        names.append(name())
    assert len(set(names)) == 4


def test_room_for_features_is_what_a_sweep_may_take(tmp_path, monkeypatch):
    """512 MiB of the disk stay free; and ``~`` is the home folder, not one of that name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = build_config(kept_sweep(tmp_path) | {"launch": {"features": "~/kept"}, "runs_dir": "~/runs"})
    assert (config.launch.features, config.runs_dir) == (f"{tmp_path}/kept", f"{tmp_path}/runs")
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: disk._replace(free=features.LEFT_FREE + 10**6))
    found = estimate.Estimate(1.0, 1, 0, 1, 0, 2 * 10**6)
    lines = estimate.in_words(found, tmp_path, config.launch.features).splitlines()
    assert f"features about 2.0 MB to keep in {tmp_path}/kept; 1.0 MB are free for it" in lines
    assert any(line.startswith("more features than there is room for") for line in lines)
