"""The report's images: chosen as the rule says, predicted from stored weights, and what is said where they are not."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from segbench import store
from segbench.config_file import build_config
from segbench.export import load_run, predictions
from segbench.report import gallery, page
from segbench.report.page import write_report
from segbench.report.runs import read_sweep
from tests.conftest import tiny
from tests.fakes import CLASSES, EFFECTS, Reader, fake_sweep, iou_by_hand
from tests.test_sweep import sweep as run_sweep


@pytest.fixture
def undrawn(monkeypatch):
    """Without figures, which take most of the time."""
    monkeypatch.setattr(page._Section, "draw", lambda self: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_sweep(tmp_path_factory.mktemp("runs") / "my sweep", EFFECTS)


def test_the_choice_of_images_is_what_the_rule_says(folder):
    group = read_sweep(folder).groups[0]
    chosen, rule = gallery.choose(group)
    scores = []  # (D, N): by hand, image by image
    for n in range(4):
        runs = [np.load(folder / f"run{n}-s{s}" / "counts.npz")["biou@0.02"] for s in range(3)]
        scores.append([np.mean([np.nanmean(iou_by_hand(r[i])) for r in runs]) for i in range(12)])
    scores = np.array(scores)
    assert gallery.per_image(group) * 100 == pytest.approx(scores)
    spread = np.ptp(scores, axis=0)
    places = [c.place for c in chosen]
    assert places[:2] == list(np.argsort(-spread, kind="stable")[:2])
    assert [c.why for c in chosen] == [
        "largest disagreement", "largest disagreement", "median image", "hardest thin structures", "random", "random",
    ]  # fmt: skip
    mean = scores.mean(0)
    left = [i for i in range(12) if i not in places[:2]]
    lower_median = sorted(range(12), key=lambda i: mean[i])[5]
    assert lower_median in left
    assert places[2] == lower_median
    truth = np.load(folder / "run0-s0" / "counts.npz")
    shares = truth["biou@0.02"][:, 2].sum(0)[:3] / truth["region"][:, 2].sum(0)[:3]
    thin = int(np.argmax(shares))
    assert f"thin classes ({CLASSES[thin]})" in rule
    pixels = truth["region"][:, 2, thin]
    runs = [np.load(p)["region"][:, :, thin] for p in folder.glob("*/counts.npz")]
    ious = np.mean([r[:, 0] / (r[:, 1] + r[:, 2] - r[:, 0]) for r in runs], 0)
    left = [i for i in range(12) if i not in places[:3] and pixels[i] >= np.median(pixels)]
    assert places[3] == min(left, key=lambda i: ious[i])
    assert len(set(places)) == 6
    assert gallery.choose(group)[0] == chosen


def test_error_map_against_brute_force():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 255], (12, 15), p=[0.5, 0.4, 0.1]).astype(np.uint8)
    predicted = rng.integers(0, 2, labels.shape).astype(np.uint8)
    band = rng.random(labels.shape) < 0.5
    found = gallery.error_map(labels, predicted, band)
    for y, x in np.ndindex(labels.shape):
        if labels[y, x] == 255:
            expected = gallery.NOWHERE
        elif not band[y, x]:
            expected = 0
        else:
            expected = gallery.WRONG if labels[y, x] != predicted[y, x] else gallery.RIGHT
        assert found[y, x] == expected


def test_focus_is_where_predictions_differ():
    predicted = np.zeros((3, 100, 200), np.uint8)
    predicted[1, 70:80, 150:160] = 1
    labels = np.zeros((100, 200), np.uint8)
    x, y = gallery.focus_point(predicted, labels)
    assert abs(x - 155 / 200) < 0.11
    assert abs(y - 75 / 100) < 0.21


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A real sweep, small; its baseline is set, so that a run alone lacks it."""
    runs = tmp_path_factory.mktemp("runs")
    config = build_config(tiny(runs_dir=str(runs), seeds=[0, 1], baseline="bilinear", recipe={"steps": 12}))
    _, code, out = run_sweep(config)
    assert code == 0, out
    return runs / "tiny"


def decoded(uri):
    head, _, body = uri.partition(",")
    assert re.fullmatch(r"data:image/(png|webp);base64", head)
    return np.array(Image.open(io.BytesIO(base64.b64decode(body))))


@pytest.mark.slow
def test_gallery_shows_what_the_weights_predict(trained):
    done = write_report(trained)
    assert done.notes == []
    read = Reader(done.path.read_text())
    images = read.json["galleries"][0]["images"]
    assert len(images) == 3  # all that there are
    assert len({i["id"] for i in images}) == 3
    for d in ("bilinear", "nearest"):
        run = next(trained.glob(f"{d}-s0-*"))
        made = load_run(run, None, ["baseline=null"])
        counts = np.load(run / "counts.npz")
        for index, pixels, labels, predicted in predictions(made):
            image = next(i for i in images if i["id"] == made.dataset.ids[index])
            tile = next(t for t in image["tiles"] if t["decoder"] == d)
            assert np.array_equal(decoded(tile["prediction"]), predicted)
            assert np.array_equal(decoded(image["truth"]), labels)
            assert np.abs(decoded(image["image"]).astype(int) - pixels).mean() < 6
            assert (image["width"], image["height"]) == (64, 64)
            by_hand_score = np.nanmean(iou_by_hand(counts["biou@0.02"][index]))
            assert tile["score"] == pytest.approx(by_hand_score)
            errors = decoded(tile["errors"])
            padded = np.pad(labels, 2, constant_values=99)  # 0.02 of the diagonal is 2 px; outside is another class
            windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
            band = (windows != labels[..., None, None]).any((2, 3))
            assert np.array_equal(errors == gallery.WRONG, band & (labels != predicted))
            assert np.array_equal(errors == gallery.RIGHT, band & (labels == predicted))


@pytest.mark.slow
def test_gallery_says_why_it_is_not_there(trained, tmp_path, undrawn):
    copy = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(trained, copy)
    for file in copy.glob("nearest-s0-*/decoder.safetensors"):
        file.unlink()
    done = write_report(copy)
    assert len(done.notes) == 1
    assert re.match(r"nearest cannot be shown: .*decoder.safetensors does not fit", done.notes[0])
    read = Reader(done.path.read_text())
    assert [t["decoder"] for t in read.json["galleries"][0]["images"][0]["tiles"]] == ["bilinear"]
    done = write_report(copy, overrides=["data.size=48"])
    assert "has other labels than those that were counted" in done.notes[-1]
    words = " ".join(Reader(done.path.read_text()).words)
    assert "has other labels than those that were counted" in words
    assert "There are no images here:" in words
    assert "the report was made without them" in " ".join(
        Reader(write_report(copy, gallery=False).path.read_text()).words
    )


@pytest.mark.slow
def test_gallery_keeps_to_the_size(trained, undrawn, monkeypatch):
    monkeypatch.setattr(page, "LIMIT", 300_000)
    monkeypatch.setattr(page, "RESERVE", 0)
    bare = write_report(trained, gallery=False).size
    monkeypatch.setattr(page, "LIMIT", bare + 12_000)
    done = write_report(trained)
    images = Reader(done.path.read_text()).json["galleries"][0]["images"]
    assert 0 < len(images) < 3
    assert done.notes == [f"{3 - len(images)} of 3 images are left out: the page would be too large."]


@pytest.mark.slow
def test_the_config_repeats_the_sweep(trained, undrawn):
    read = Reader(write_report(trained, gallery=False).path.read_text())
    config = yaml.safe_load(read.json["files"]["tiny.yaml"])
    assert (
        build_config(config).model_dump()
        == build_config(store.read_json(trained / "sweep.json")["config"]).model_dump()
    )
    words = " ".join(read.words)
    row = store.read_json(next(trained.glob("bilinear-s0-*")) / "result.json")
    assert row["encoder_hash"] in words
    assert row["features_hash"] in words
    cells = [c["text"] for t in read.tables for line in t for c in line]
    assert row["key"] in cells
    assert store.read_json(next(trained.glob("bilinear-s0-*")) / "environment.json")["cpu"] in words
