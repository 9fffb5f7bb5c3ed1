import numpy as np
import pytest
import scipy.io
from PIL import Image

from segbench.data.ade20k import ADE20K
from segbench.data.base import VOID, voc_palette
from segbench.data.cityscapes import TRAIN_IDS, Cityscapes
from segbench.data.voc import VOC
from segbench.errors import UserError

RNG = np.random.default_rng(0)


def image(path, size=(24, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (*size[::-1], 3), np.uint8)).save(path)


def mask(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels, "P")
    picture.putpalette([v for colour in voc_palette(256) for v in colour])
    picture.save(path)


@pytest.fixture
def voc(tmp_path):
    """VOC 2012 in miniature with SBD beside it: train a b, val c d; SBD lists a, c (of val) and three more."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, ids in {"train": "ab", "val": "cd", "trainval": "abcd"}.items():
        (lists / f"{name}.txt").write_text("\n".join(ids) + "\n")
    for i, name in enumerate("abcdefg"):
        image(root / "JPEGImages" / f"{name}.jpg")
        labels = np.full((16, 24), i, np.uint8)
        labels[0] = VOID
        if name in "abcd":
            mask(root / "SegmentationClass" / f"{name}.png", labels)
    sbd = tmp_path / "benchmark_RELEASE" / "dataset"
    (sbd / "cls").mkdir(parents=True)
    (sbd / "train.txt").write_text("a\nc\ne\n")
    (sbd / "val.txt").write_text("f\ng\n")
    for i, name in enumerate("aefg"):
        content = {"GTcls": {"Segmentation": np.full((16, 24), 10 + i, np.uint8)}}
        scipy.io.savemat(sbd / "cls" / f"{name}.mat", content)
    return tmp_path, root, sbd


def test_voc_splits(voc):
    top, root, _ = voc
    for place in (top, top / "VOCdevkit", root):
        assert VOC("train", place).ids == ["a", "b"]
    val = VOC("val", top)
    pixels, labels = val.read(1)
    assert pixels.shape == (16, 24, 3)
    assert (labels[0] == VOID).all()
    assert (labels[1:] == 3).all()  # indices of the palette image, not its colours
    assert len(VOC("trainval", top)) == 4


def test_trainaug_from_sbd_leaves_val_out_and_takes_vocs_own_masks(voc):
    top, _, sbd = voc
    data = VOC("trainaug", top, sbd=sbd, trainaug_images=5)
    assert data.ids == ["a", "b", "e", "f", "g"]
    assert data.read(0)[1][5, 5] == 0  # VOC's mask, not SBD's
    assert data.read(2)[1][5, 5] == 11
    with pytest.raises(UserError, match="trainaug has 5 images, not 10582"):
        VOC("trainaug", top, sbd=sbd)


def test_trainaug_from_pngs(voc):
    top, root, _ = voc
    with pytest.raises(UserError, match=r"no folder .*SegmentationClassAug; expected"):
        VOC("trainaug", top)
    for name in "abcef":
        mask(root / "SegmentationClassAug" / f"{name}.png", np.full((16, 24), 7, np.uint8))
    data = VOC("trainaug", top, trainaug_images=4)
    assert data.ids == ["a", "b", "e", "f"]
    assert data.read(0)[1][5, 5] == 7


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t, r, s: (r / "JPEGImages/c.jpg").unlink(), r"val\.txt: no file .*c\.jpg; expected: JPEGImages"),
        (lambda t, r, s: (r / "ImageSets/Segmentation/val.txt").write_text("nope\n"), r"val\.txt: no file .*nope\.jpg"),
        (lambda t, r, s: (r / "ImageSets/Segmentation/val.txt").write_text("c\nc\n"), r"split 'val' holds 'c' twice"),
        (lambda t, r, s: (r / "ImageSets/Segmentation/val.txt").unlink(), r"no list .*val\.txt; expected"),
        (lambda t, r, s: Image.new("RGB", (24, 16)).save(r / "SegmentationClass/c.png"), r"c\.png has mode RGB"),
        (
            lambda t, r, s: mask(r / "SegmentationClass/c.png", np.full((16, 24), 254, np.uint8)),
            r"c\.png holds label 254; allowed are 0 to 20, and 255",
        ),
        (lambda t, r, s: image(r / "JPEGImages/c.jpg", (25, 16)), r"c\.jpg is 25x16 but its labels .*c\.png are 24x16"),
    ],
)  # fmt: skip
def test_voc_faults_are_named(voc, spoil, message):
    spoil(*voc)
    with pytest.raises(UserError, match=message) as caught:
        VOC("val", voc[0]).read(0)
    assert "\n" not in str(caught.value)


def test_broken_mat_is_named(voc):
    top, _, sbd = voc
    (sbd / "cls" / "e.mat").write_bytes(b"not a mat file at all")
    with pytest.raises(UserError, match=r"e\.mat is no mask of SBD that can be read"):
        VOC("trainaug", top, sbd=sbd, trainaug_images=5).read(2)


def test_four_real_voc_pairs(voc_root):
    data = VOC("trainval", voc_root)
    assert len(data) == 4
    for i in range(4):
        pixels, labels = data.read(i)
        raw = np.asarray(Image.open(data.pairs[i][2]))
        np.testing.assert_array_equal(labels, raw)
        assert pixels.shape[:2] == labels.shape
    palette = np.array(Image.open(data.pairs[0][2]).getpalette()).reshape(-1, 3)
    assert [tuple(c) for c in palette[:21].tolist()] == data.palette


@pytest.fixture
def cityscapes(tmp_path):
    """Two cities, all 34 ids in each label map."""
    for split, cities in {"train": ("aachen", "bochum"), "val": ("ulm",)}.items():
        for city in cities:
            name = f"{city}_000000_000019"
            image(tmp_path / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", (34, 4))
            labels = np.tile(np.arange(34, dtype=np.uint8), (4, 1))
            path = tmp_path / "gtFine" / split / city / f"{name}_gtFine_labelIds.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(labels).save(path)
    return tmp_path


def test_cityscapes_maps_ids_as_the_official_table_does(cityscapes):
    table = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    official = {label.id: label.trainId for label in table if 0 <= label.trainId < 19}
    assert official == TRAIN_IDS
    data = Cityscapes("train", cityscapes)
    assert data.ids == ["aachen_000000_000019", "bochum_000000_000019"]
    _, labels = data.read(0)
    assert labels[0].tolist() == [official.get(i, VOID) for i in range(34)]
    train = sorted((label for label in table if 0 <= label.trainId < 19), key=lambda label: label.trainId)
    assert data.classes == tuple(label.name for label in train)
    assert list(data.palette) == [label.color for label in train]


def test_cityscapes_prefers_train_ids(cityscapes):
    path = cityscapes / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelTrainIds.png"
    Image.fromarray(np.full((4, 34), 5, np.uint8)).save(path)
    assert (Cityscapes("val", cityscapes).read(0)[1] == 5).all()


def test_cityscapes_faults_are_named(cityscapes):
    with pytest.raises(UserError, match=r"no folder .*train_extra; expected: leftImg8bit"):
        Cityscapes("train_extra", cityscapes)
    with pytest.raises(UserError, match=r"no file .*gtCoarse.*_gtCoarse_labelIds\.png"):
        Cityscapes("train", cityscapes, coarse=True)
    path = next(cityscapes.glob("gtFine/val/*/*"))
    Image.fromarray(np.full((4, 34), 34, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"labelIds\.png holds label 34; allowed are the ids 0 to 33"):
        Cityscapes("val", cityscapes).read(0)
    path.unlink()
    with pytest.raises(UserError, match=r"no file .*ulm_000000_000019_gtFine_labelIds\.png"):
        Cityscapes("val", cityscapes)


@pytest.fixture
def ade20k(tmp_path):
    """One image a split; the label map holds 0 to 150."""
    root = tmp_path / "ADEChallengeData2016"
    for split, short in {"training": "train", "validation": "val"}.items():
        image(root / "images" / split / f"ADE_{short}_00000001.jpg", (151, 4))
        path = root / "annotations" / split / f"ADE_{short}_00000001.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.tile(np.arange(151, dtype=np.uint8), (4, 1))).save(path)
    rows = [f"{i}\t0.1\t1\t1\tthing {i}, other name" for i in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    return root


def test_ade20k_shifts_its_labels_and_reads_its_names(ade20k):
    for root in (ade20k, ade20k.parent):
        data = ADE20K("val", root)
        assert data.ids == ["ADE_val_00000001"]
        _, labels = data.read(0)
        assert labels[0].tolist() == [VOID, *range(150)]
        assert data.classes[:2] == ("thing 1", "thing 2")
        assert len(data.classes) == len(data.palette) == len(set(data.palette)) == 150
    name, picture = data.submission(0, labels[:, 1:])
    assert name == "ADE_val_00000001.png"
    assert np.asarray(picture)[0].tolist() == list(range(1, 151))


def test_ade20k_faults_are_named(ade20k):
    path = ade20k / "annotations/training/ADE_train_00000001.png"
    Image.fromarray(np.full((4, 151), 151, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"00001\.png holds label 151; allowed are 1 to 150, and 0 for void"):
        ADE20K("train", ade20k).read(0)
    path.unlink()
    with pytest.raises(UserError, match=r"no file .*ADE_train_00000001\.png; expected"):
        ADE20K("train", ade20k)
    with pytest.raises(UserError, match="unknown split 'training'"):
        ADE20K("training", ade20k)
    (ade20k / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    with pytest.raises(UserError, match=r"objectInfo150\.txt should list the classes 1 to 150"):
        ADE20K("val", ade20k)
    (ade20k / "objectInfo150.txt").unlink()
    with pytest.raises(UserError, match=r"no list .*objectInfo150\.txt; expected"):
        ADE20K("val", ade20k)


def test_several_missing_files_are_counted(voc):
    for name in "cd":
        (voc[1] / "SegmentationClass" / f"{name}.png").unlink()
    with pytest.raises(UserError, match=r"val\.txt: no file .*c\.png \(and 1 more\); expected"):
        VOC("val", voc[0])


def test_a_sweep_on_the_four_real_voc_pairs(voc_root, make_config):
    from tests.test_sweep import sweep

    config = make_config(decoders=["bilinear"])
    config = config.model_copy(update={"data": type(config.data)(name="voc", root=str(voc_root))})
    results, code, out = sweep(config)
    assert code == 0, out
    counts = results["bilinear", 0].counts
    assert counts["sizes"].tolist() == [[375, 500]]
    truth = np.asarray(Image.open(VOC("val", voc_root).pairs[0][2]))
    wanted = np.bincount(truth[truth != VOID], minlength=21)
    np.testing.assert_array_equal(counts["region"][0, 2], wanted)


def test_a_sweep_on_a_cityscapes_tree(cityscapes, make_config):
    from tests.test_sweep import sweep

    config = make_config(decoders=["bilinear"])
    config = config.model_copy(update={"data": type(config.data)(name="cityscapes", root=str(cityscapes))})
    results, code, out = sweep(config)
    assert code == 0, out
    # One image of 4x34, each id in one column: 4 pixels of each of the 19 classes.
    assert results["bilinear", 0].counts["region"][:, 2].tolist() == [[4] * 19]
