import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file

from segbench.config_file import build_config, load_config
from segbench.data import open_data
from segbench.data.base import VOID, voc_palette
from segbench.errors import UserError
from segbench.export import export, in_words, load_run, predictions
from segbench.measures.base import iou, mean_over_classes
from segbench.report import page
from tests.conftest import ROOT, segbench, tiny, write_again
from tests.test_sweep import sweep
from tests.test_voc_cityscapes import mask


def blocks(rng, values, size=(64, 96)):
    """(H, W) uint8 of 8-px blocks."""
    return np.kron(rng.choice(values, (size[0] // 8, size[1] // 8)), np.ones((8, 8))).astype(np.uint8)


@pytest.fixture(scope="module")
def cityscapes_run(tmp_path_factory):
    """A finished run on a generated Cityscapes tree, ids of every kind in its label maps."""
    root, rng = tmp_path_factory.mktemp("cityscapes"), np.random.default_rng(0)
    for split, cities in {"train": ("aachen", "bochum"), "val": ("ulm", "weimar"), "test": ("berlin",)}.items():
        for city in cities:
            name = f"{city}_000001_000019"
            labels = blocks(rng, np.arange(34))
            image = np.stack([labels * 7, 255 - labels * 5, labels * 3], -1)
            for path, picture in (
                (root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", image),
                (root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", labels),
            ):
                path.parent.mkdir(parents=True)
                Image.fromarray(picture).save(path)
            instances = labels.astype(np.int32) * np.where((labels >= 24) & (labels <= 33), 1000, 1)
            Image.fromarray(instances.astype(np.uint16)).save(
                root / f"gtFine/{split}/{city}/{name}_gtFine_instanceIds.png"
            )
    config = build_config(
        tiny(
            runs_dir=str(root / "runs"),
            data={"name": "cityscapes", "root": str(root)},
            decoders=["bilinear"],
            recipe={"steps": 12},
        )
        | {"data": {"name": "cityscapes", "root": str(root)}}
    )
    results, code, out = sweep(config)
    assert code == 0, out
    return root, results["bilinear", 0]


def test_what_is_exported_is_what_was_counted(cityscapes_run, tmp_path):
    _, result = cityscapes_run
    region = export(load_run(result.folder), tmp_path)
    assert np.array_equal(region, result.counts["region"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ulm_000001_000019_pred_labelIds.png",
        "weimar_000001_000019_pred_labelIds.png",
    ]


def test_export_says_how_far_it_is_from_what_was_counted(cityscapes_run, tmp_path):
    _, result = cityscapes_run
    miou = 100 * mean_over_classes(iou(result.counts["region"].sum(0)))
    done = segbench("export", result.folder, "--out", tmp_path / "own")
    said = f"mIoU of what was written: {miou:.2f}; the run counted {miou:.2f} (0.0 points, 0 pixels differ)\n"
    assert done.stdout.endswith(said), done
    done = segbench("export", result.folder, "--split", "train", "--out", tmp_path / "train")
    assert done.stdout.splitlines()[-1].startswith("mIoU of what was written: ")
    assert "counted" not in done.stdout

    run, before = load_run(result.folder), result.counts["region"].copy()
    for moves, wanted in (
        ([(1, 0, 1)], "at least 1 pixels in 1 images differ"),  # one wrong pixel becomes wrong in another way
        ([(1, 0, 1)] * 3 + [(0, 2, 1)], "at least 4 pixels in 2 images differ"),
    ):
        region = before.copy()
        for image, old, new in moves:
            region[image, 1, old] -= 1
            region[image, 1, new] += 1
        assert wanted in in_words(run, region)
    region = before.copy()
    region[0, 0, 3] += 2  # a right pixel more, and one that became right in the place of another that did not
    assert "at least 2 pixels in 1 images differ" in in_words(run, region)


def test_export_is_done_with_the_threads_of_the_run(make_config, tmp_path):
    """From a process that has another number, every pixel as it was counted."""
    results, code, out = sweep(make_config(decoders=["bilinear", "deconv"], launch={"threads": 2}))
    assert code == 0, out
    for (decoder, _), result in results.items():
        out = tmp_path / decoder
        script = (
            "import sys, torch\nfrom pathlib import Path\nfrom segbench.export import export, load_run\n"
            "torch.set_num_threads(1)\nrun = load_run(Path(sys.argv[1]))\nprint(torch.get_num_threads())\n"
            "export(run, Path(sys.argv[2]))\n"
        )
        command = [sys.executable, "-c", script, str(result.folder), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.stdout == "2\n", done.stderr
        dataset = open_data(load_config(result.folder / "config.yaml").data, "val")
        confusion, region = np.zeros((7, 7), np.int64), []
        for index in range(3):
            predicted = np.asarray(Image.open(out / dataset.submission(index, dataset.read(index)[1])[0]))
            labels = dataset.read(index)[1]
            here = np.zeros((7, 7), np.int64)
            np.add.at(here, (labels[labels != VOID], predicted[labels != VOID]), 1)
            region.append([np.diag(here), here.sum(0), here.sum(1)])
            confusion += here
        assert np.array_equal(region, result.counts["region"])
        assert np.array_equal(confusion, result.counts["confusion"])


MINE = """
import helper_of_mine
from segbench.data.shapes import Shapes
from segbench.measures.base import CountMeasure, iou
from segbench.upsamplers import Bilinear

class Mine(Bilinear):
    pass

class Drawn(Shapes):
    pass

class Again(CountMeasure):
    short, unit, table_place = "again", "%", 50
    def score(self, counts):
        return 100 * iou(counts)
"""


def test_what_was_run_is_kept_and_used(make_config, tmp_path, monkeypatch):
    """From any folder, whatever has become of the files that the sweep named, relative to where it was started."""
    monkeypatch.chdir(tmp_path)
    plug_in, helper = tmp_path / "mine.py", tmp_path / "helper_of_mine.py"
    plug_in.write_text(MINE)
    helper.write_text("")
    data = {"name": "mine.py:Drawn", "size": 64, "train": 6, "val": 3}
    path = tmp_path / "own.yaml"
    values = tiny(data=data, decoders=["nearest", "mine.py:Mine"], measures=["mine.py:Again"], runs_dir="runs")
    path.write_text(yaml.safe_dump(values))
    done = segbench("sweep", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / "tiny").glob("Mine-*")
    (other,) = (tmp_path / "runs" / "tiny").glob("nearest-*")
    for run in (folder, other):
        assert {p.name: p.read_bytes() for p in (run / "source" / "0").iterdir()} == {
            "mine.py": plug_in.read_bytes(), helper.name: b"",
        }  # fmt: skip

    helper.write_text("raise RuntimeError('today it does something else')\n")
    plug_in.write_text("raise RuntimeError('today it does something else')\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = segbench("export", folder, "--out", elsewhere / "out", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("(0.0 points, 0 pixels differ)\n")
    assert f"runs the code in {folder / 'source/0/mine.py'}" in done.stderr
    assert f"'mine.py:Mine' has changed since; the copy in {folder} is used" in done.stderr
    done = segbench("table", folder.parent, "--metric", "Again", "--format", "csv", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("decoder,again,") or ",again," in done.stdout.splitlines()[0]

    monkeypatch.setattr(page._Section, "draw", lambda self: None)  # figures take most of the time
    monkeypatch.setattr(sys, "path", list(sys.path))  # which the copies' folders are added to, in this process
    report = page.write_report(folder.parent)
    assert report.notes == []
    assert report.path.read_text().count("class Mine(Bilinear)") == 1  # once, for both runs

    kept = folder / "source/0/mine.py"
    kept.write_text(MINE + "EDITED = True\n")
    done = segbench("export", folder)
    assert done.returncode == 2
    assert f"{kept} is damaged or was edited" in done.stderr
    shutil.rmtree(folder / "source")
    done = segbench("export", folder)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"segbench: {folder} holds no copy of 'mine.py:Drawn', which it was made with; run its sweep again\n"
    )


def test_the_paths_of_a_run_hold_in_any_folder(cityscapes_run, tmp_path, monkeypatch):
    root, _ = cityscapes_run
    monkeypatch.chdir(root.parent)
    config = build_config(tiny(decoders=["nearest"], runs_dir=str(tmp_path / "runs")))
    config = config.model_copy(update={"data": type(config.data)(name="cityscapes", root=root.name)})
    results, code, out = sweep(config)
    assert code == 0, out
    monkeypatch.chdir(tmp_path)
    assert load_run(results["nearest", 0].folder).config.data.params["root"] == str(root)


def test_miou_is_what_the_evaluation_of_cityscapes_says(cityscapes_run, tmp_path, monkeypatch):
    evaluation = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    root, result = cityscapes_run
    export(load_run(result.folder), tmp_path)
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # the package uses the name that NumPy 2.4 dropped
    args = evaluation.args
    monkeypatch.setattr(args, "predictionPath", str(tmp_path))
    monkeypatch.setattr(args, "predictionWalk", None)
    monkeypatch.setattr(args, "quiet", True)
    monkeypatch.setattr(args, "JSONOutput", False)
    truths = sorted(str(p) for p in root.glob("gtFine/val/*/*_labelIds.png"))
    found = [evaluation.getPrediction(args, truth) for truth in truths]
    with contextlib.redirect_stdout(io.StringIO()):
        scores = evaluation.evaluateImgLists(found, truths, args)
    assert scores["averageScoreClasses"] == pytest.approx(
        float(mean_over_classes(iou(result.counts["region"].sum(0)))), abs=1e-12
    )
    assert 0 < scores["averageScoreClasses"] < 1


def test_a_split_without_labels_is_exported_but_not_swept(cityscapes_run, make_config):
    root, result = cityscapes_run
    done = segbench("export", result.folder, "--split", "test", "--out", root / "out")
    assert done.returncode == 0, done.stderr
    assert "mIoU" not in done.stdout
    predicted = np.asarray(Image.open(root / "out" / "berlin_000001_000019_pred_labelIds.png"))
    assert predicted.shape == (64, 96)
    assert set(np.unique(predicted)) <= {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    config = make_config(decoders=["bilinear"])
    data = type(config.data)(name="cityscapes", root=str(root), val_split="test")
    with pytest.raises(UserError, match="split 'test' of 'cityscapes' has no labels"):
        sweep(config.model_copy(update={"data": data}))


def test_voc_predictions_are_palette_pngs_under_the_official_name(tmp_path, make_config):
    root, rng = tmp_path / "VOCdevkit" / "VOC2012", np.random.default_rng(1)
    lists = root / "ImageSets" / "Segmentation"
    for folder in (lists, root / "JPEGImages"):
        folder.mkdir(parents=True)
    for split, names in {"train": ("a", "b"), "val": ("c",), "test": ("d",)}.items():
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            labels = blocks(rng, [0, 5, 20, VOID])
            Image.fromarray(np.stack([labels] * 3, -1)).save(root / "JPEGImages" / f"{name}.jpg")
            if split != "test":
                mask(root / "SegmentationClass" / f"{name}.png", labels)
    config = make_config(decoders=["bilinear"])
    config = config.model_copy(update={"data": type(config.data)(name="voc", root=str(tmp_path))})
    results, code, out = sweep(config)
    assert code == 0, out
    for split, name in (("val", "c"), ("test", "d")):
        done = segbench("export", results["bilinear", 0].folder, "--split", split, "--out", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        picture = Image.open(tmp_path / f"out/results/VOC2012/Segmentation/comp6_{split}_cls/{name}.png")
        assert picture.mode == "P"
        assert picture.getpalette()[: 3 * 21] == [c for colour in voc_palette(21) for c in colour]
        run = load_run(results["bilinear", 0].folder, split)
        _, image, _, predicted = next(predictions(run))
        np.testing.assert_array_equal(np.asarray(picture), predicted)
        assert image.shape == (64, 96, 3)


def test_mistakes_are_named(cityscapes_run, tmp_path, monkeypatch):
    _, result = cityscapes_run
    with pytest.raises(UserError, match="holds no finished run"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="unknown split 'vall' .did you mean 'val'"):
        load_run(result.folder, "vall")
    copy = tmp_path / "copy"
    shutil.copytree(result.folder, copy)
    weights = load_file(copy / "decoder.safetensors")
    save_file({k: v for k, v in weights.items() if "laterals" not in k}, copy / "decoder.safetensors")
    with pytest.raises(UserError, match=r"copy/decoder\.safetensors is damaged or was edited"):
        load_run(copy)
    write_again(copy)
    with pytest.raises(UserError, match=r"copy/decoder\.safetensors does not fit upsampler 'bilinear'"):
        load_run(copy)
    (copy / "decoder.safetensors").write_bytes(b"broken")
    write_again(copy)
    with pytest.raises(UserError, match="does not fit upsampler"):
        load_run(copy)
    write_again(copy, encoder_hash="other")
    with pytest.raises(UserError, match="other weights of encoder"):
        load_run(copy)
    run = load_run(result.folder)
    monkeypatch.setattr(run.dataset, "ids", ["../../evil", "b"])
    out = tmp_path / "a" / "out"
    with pytest.raises(UserError, match=r"image id '\.\./\.\./evil' names a file outside"):
        export(run, out)
    assert not list(Path(tmp_path).glob("**/evil*"))
