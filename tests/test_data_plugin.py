"""A data set of a user's own in one file, `experiments/plug_in_a_data_set`, through all that a sweep does with data."""

import numpy as np
import pytest
import yaml
from PIL import Image

from segbench import store
from segbench.config import DataConfig
from segbench.data import open_data
from segbench.errors import UserError
from tests.conftest import ROOT, segbench, tiny

FILE = ROOT / "experiments" / "plug_in_a_data_set" / "nuclei.py"
SIZE = 64


@pytest.fixture
def root(tmp_path):
    """Ten images in the layout of stage 1, each with two square nuclei, three pixels apart, in a file each."""
    for number in range(10):
        folder = tmp_path / "bowl" / "stage1_train" / f"image{number}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        image = np.full((SIZE, SIZE, 4), 255, np.uint8)
        for nucleus, left in enumerate((10, 23)):
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[10 + number : 20 + number, left : left + 10] = 255
            image[mask > 0, :3] = 40
            Image.fromarray(mask).save(folder / "masks" / f"{nucleus}.png")
        Image.fromarray(image).save(folder / "images" / f"image{number}.png")
    return tmp_path / "bowl"


def test_labels_of_two_nuclei(root):
    val = open_data(DataConfig(name=f"{FILE}:Nuclei", root=str(root)), "val")
    assert list(val.ids) == ["image0", "image5"]
    wanted = np.zeros((SIZE, SIZE), np.uint8)
    wanted[10:20, 10:20] = wanted[10:20, 23:33] = 1
    wanted[8:22, 21:22] = 2  # columns 10 to 19 reach to 21, columns 23 to 32 to 21
    image, labels = val.read(0)
    np.testing.assert_array_equal(labels, wanted)
    assert image.shape == (SIZE, SIZE, 3)
    assert image[12, 12].tolist() == [40, 40, 40]


def test_one_file_is_a_data_set_of_a_sweep(root, tmp_path):
    path = tmp_path / "tiny.yaml"
    own = {"data": {"name": f"{FILE}:Nuclei", "root": str(root)}}
    path.write_text(yaml.safe_dump(tiny(runs_dir=str(tmp_path / "runs"), decoders=["nearest"]) | own))
    checked = segbench("data", "check", path)
    assert "border" in checked.stdout, checked.stderr
    done = segbench("sweep", path)
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("runs/tiny/*/result.json")
    row = store.read_json(result)
    assert row["classes"] == ["background", "nucleus", "border"]
    assert row["images"] == 2
    per_class = segbench("table", result.parent.parent, "--per-class", "--format", "csv").stdout
    assert "border" in per_class
    # Another border is other labels, so other runs; nothing else has to be said for that.
    planned = segbench("plan", path, "data.border_px=1", "--no-trial").stdout
    assert "1 runs, 0 done" in planned
    assert "1 runs, 1 done" in segbench("plan", path, "--no-trial").stdout


def test_what_is_wrong_is_named(root):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "stage1_train" / "image0" / "masks" / "0.png")
    with pytest.raises(UserError, match=r"image0\.png is 64x64 but its labels .*masks/0\.png are 9x9"):
        open_data(DataConfig(name=f"{FILE}:Nuclei", root=str(root)), "val").read(0)
    for mask in (root / "stage1_train" / "image5" / "masks").iterdir():
        mask.write_bytes(b"")
    with pytest.raises(UserError, match=r"image5/masks/0\.png is empty"):
        open_data(DataConfig(name=f"{FILE}:Nuclei", root=str(root)), "val").read(1)
    with pytest.raises(UserError, match="no folder .*nowhere/stage1_train; expected: stage1_train/ID/images"):
        open_data(DataConfig(name=f"{FILE}:Nuclei", root=str(root / "nowhere")), "val")
