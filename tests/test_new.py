"""`segbench new`: what it writes works as it is."""

import cv2
import numpy as np
import pytest

from segbench.cli import main
from segbench.config_file import load_config
from segbench.data import open_data

COLOURS = np.array([[0, 0, 0], [200, 30, 0], [10, 90, 250]], np.uint8)


@pytest.fixture
def images(tmp_path):
    """Make images/ and masks/ of two splits, of which the masks are what ``paint`` makes of labels 0 to 2."""

    def make(paint, splits=("train", "val"), number=3, size=(80, 112)):
        rng = np.random.default_rng(0)
        for split in splits:
            for i in range(number):
                labels = rng.integers(0, 3, (size[0] // 16, size[1] // 16)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
                for kind, picture in (("images", rng.integers(0, 255, (*size, 3), np.uint8)), ("masks", paint(labels))):
                    folder = tmp_path / "own" / kind / split
                    folder.mkdir(parents=True, exist_ok=True)
                    assert cv2.imwrite(str(folder / f"{i}.png"), picture)
        return tmp_path / "own"

    return make


def test_a_new_upsampler_keeps_the_contract_and_is_swept(tmp_path, write_sweep, capsys):
    path = tmp_path / "my_up.py"
    assert main(["new", "upsampler", str(path)]) == 0
    assert f"segbench check {path}:MyUp\n" in capsys.readouterr().out
    assert main(["check", f"{path}:MyUp", "width=8", "kernel=5"]) == 0
    said = capsys.readouterr().out
    assert "FAIL" not in said
    assert "starts as it says: bilinear" in said
    assert main(["sweep", str(write_sweep(decoders=["bilinear", f"{path}:MyUp"]))]) == 0
    assert "MyUp" in capsys.readouterr().out
    before = path.read_text()
    assert main(["new", "upsampler", str(path)]) == 2
    assert capsys.readouterr().err == f"segbench: {path} exists; nothing is written over it\n"
    assert path.read_text() == before
    assert main(["new", "upsampler", str(tmp_path / "my-up.txt")]) == 2


@pytest.mark.parametrize(
    ("paint", "classes", "said"),
    [
        (lambda labels: labels, 3, "3 classes, stored as labels 0 to 2"),
        (lambda labels: np.where(labels == 2, 255, labels).astype(np.uint8), 2, "0 to 1, and 255 for void"),
        (lambda labels: np.where(labels == 1, 0, labels).astype(np.uint8), 3, "labels 0 to 2 without 1"),
        (lambda labels: COLOURS[labels][..., ::-1], 3, "stored as colours"),
        (lambda labels: (labels > 0).astype(np.uint8) * 255, 2, "stored as 0 and 255"),
        (lambda labels: (labels > 0).astype(np.uint16) * 65535, 2, "stored as 0 and 65535"),
    ],
    ids=["labels", "void", "gap", "colours", "0 and 255", "16 bits"],
)
def test_a_new_config_reads_what_the_masks_hold(images, tmp_path, capsys, paint, classes, said):
    root, path = images(paint), tmp_path / "own.yaml"
    assert main(["new", "config", str(path), "--data", str(root)]) == 0
    out = capsys.readouterr().out
    assert f"found 3 images to train on, 3 to evaluate on, {classes} classes, stored as" in out
    assert said in out
    assert out.splitlines()[-1] == f"  segbench sweep {path}"
    config = load_config(path)
    assert config.recipe.crop == (64, 64)
    train = open_data(config.data, "train")
    assert len(train.classes) == classes
    labels = np.unique([train.read(i)[1] for i in range(3)])
    assert set(labels) <= {*range(classes), 255}
    assert len(set(labels) - {255}) == classes - ("without" in said)
    if said == "stored as colours":
        assert set(map(tuple, train.palette)) == set(map(tuple, COLOURS.tolist()))
    assert main(["data", "check", str(path)]) == 0


def test_a_folder_with_quotes_and_backslashes_in_its_name(images, tmp_path, capsys):
    root, path = images(lambda labels: labels), tmp_path / "own.yaml"
    strange = root.rename(tmp_path / 'it\'s "a" \\n b: #é')
    assert main(["new", "config", str(path), "--data", str(strange)]) == 0
    assert load_config(path).data.params["root"] == str(strange)
    assert main(["data", "check", str(path)]) == 0


def test_names_of_classes_from_a_file(images, tmp_path, capsys):
    root, path = images(lambda labels: labels), tmp_path / "own.yaml"
    (root / "classes.txt").write_text("road\nsky: blue\n'car'\n")
    assert main(["new", "config", str(path), "--data", str(root)]) == 0
    assert load_config(path).data.params["classes"] == ["road", "sky: blue", "'car'"]
    (root / "classes.txt").write_text("road\n")
    assert main(["new", "config", str(tmp_path / "other.yaml"), "--data", str(root)]) == 2
    assert "classes.txt names 1 classes; the masks hold 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("paint", "splits", "said"),
    [
        (lambda labels: labels, ("train",), "should have a folder train and a folder val; there is: train"),
        (lambda labels: labels * 0, ("train", "val"), "the masks hold one label only, 0"),
        (lambda labels: COLOURS[labels * 0], ("train", "val"), "the masks hold one colour only, (0, 0, 0)"),
        (
            lambda labels: (np.arange(labels.size) % 300).astype(np.uint16).reshape(labels.shape),
            ("train", "val"),
            "254 labels",
        ),
        (lambda labels: labels.astype(np.uint16) * 900, ("train", "val"), "hold label 1800; labels go from 0 to 253"),
    ],
    ids=["one split", "one label", "one colour", "many labels", "large labels"],
)
def test_what_no_sweep_can_be_made_of_is_said_in_a_line(images, tmp_path, capsys, paint, splits, said):
    assert main(["new", "config", str(tmp_path / "own.yaml"), "--data", str(images(paint, splits))]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "own.yaml").exists()


def test_no_data(tmp_path, capsys):
    assert main(["new", "config", str(tmp_path / "own.yaml"), "--data", str(tmp_path / "nowhere")]) == 2
    assert "has no folders images and masks; expected: images/<split>/NAME.jpg" in capsys.readouterr().err
