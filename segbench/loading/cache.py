"""Decoded images in one memory-mapped file, shared by all cohorts and loader workers of a machine. Imports no torch."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbench import store
from segbench.config import SweepConfig
from segbench.data.base import Dataset, PairedFiles, Pixels, file_status
from segbench.errors import UserError

# The pixels of image and labels one after the other, then (offset, height, width) of each, their number, and this.
END = b"segbench cache 1"
LEFT_FREE = 512 * 2**20  # bytes of the disk of `launch.features` that are not taken: run folders may lie on it
CHUNK = 16  # images decoded side by side
Index = npt.NDArray[np.int64]


class Cached(Dataset):
    """What `cached` returns: a data set whose images lie decoded in ``file``; all else is asked of ``dataset``.

    Images and labels are views of the file, so that a crop reads no more than its own pixels.
    """

    def __init__(self, dataset: Dataset, file: Path) -> None:
        self.classes, self.palette, self.splits = dataset.classes, dataset.palette, dataset.splits
        self.ids, self.labelled, self.split = dataset.ids, dataset.labelled, dataset.split
        self.dataset, self.file = dataset, file
        self._mapped: Pixels | None = None
        self._index: Index | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_mapped": None, "_index": None}  # a worker maps the file for itself

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        if self._mapped is None or self._index is None:
            self._index = _read_index(self.file, len(self))
            if self._index is None:
                raise UserError(f"{self.file} is damaged; delete it, it is made anew")
            self._mapped = np.asarray(np.memmap(self.file, np.uint8, "r"))
        offset, height, width = (int(v) for v in self._index[index])
        middle, end = offset + 3 * height * width, offset + 4 * height * width
        image, labels = self._mapped[offset:middle], self._mapped[middle:end]
        return image.reshape(height, width, 3), labels.reshape(height, width)

    def fingerprint(self) -> str:
        return self.dataset.fingerprint()

    def submission(self, index: int, prediction: Pixels) -> tuple[str, Image.Image]:
        return self.dataset.submission(index, prediction)


def in_cache(config: SweepConfig, data: Mapping[str, Dataset], facts: Sequence[str]) -> Mapping[str, Dataset]:
    """Splits as they are, or `cached` in ``launch.cache``; ``facts``: what stands for them in a run's key."""
    if not config.launch.cache:
        return data
    key = f"{store.RESULT_VERSION} {config.data.params} {facts}"
    return {which: cached(dataset, Path(config.launch.cache), key) for which, dataset in data.items()}


def cached(dataset: Dataset, folder: Path, key: str) -> Dataset:
    """The same data set, decoded once into a file in ``folder``; that is done now, where it was not done before.

    Processes that want the same file wait for the first of them. In memory (``/dev/shm``) or on a disk, the file may be
    deleted whenever no sweep runs. A data set that reads no files is returned as it is.

    Args:
        key: whatever decides what is decoded: the data set's parameters, its source, its fingerprint. The sizes and
            dates of its files are added.

    Raises:
        UserError: a bad file among the data, or a folder that cannot be written or lacks room; nothing is left behind.
    """
    if not dataset.from_files:
        return dataset
    file = folder / f"{dataset.split}-{digest_of(dataset, key)}.cache"
    try:
        with _locked(folder):
            if _read_index(file, len(dataset)) is None:
                _write(dataset, file)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_room(dataset, folder) from None
        raise UserError(f"launch.cache: cannot use {file}: {error.strerror or error}") from None
    return Cached(dataset, file)


def decoded_bytes(dataset: Dataset) -> int:
    """About how large a cache would be, from up to 16 images."""
    some = np.linspace(0, len(dataset) - 1, min(len(dataset), 16)).astype(int)
    return round(np.mean([4 * dataset.read(int(i))[1].size for i in some]) * len(dataset))


def digest_of(dataset: Dataset, key: str) -> str:
    """Hash of ``key``, of the split, and of the sizes and dates of its files."""
    digest = hashlib.sha256(f"{key}\0{dataset.split}\0{len(dataset)}".encode())
    if isinstance(whole := dataset.whole, PairedFiles):
        for name, *paths in whole.pairs:
            found = [file_status(path) for path in paths if path is not None]
            digest.update(repr((name, [(s.st_size, s.st_mtime_ns) for s in found if s is not None])).encode())
    return digest.hexdigest()[:16]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the system ends the lock with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read_index(file: Path, number: int) -> Index | None:
    """(N, 3) offset, height and width of each image; None where the file is missing, cut short or of other data."""
    try:
        with open(file, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            tail = len(END) + 8 + 24 * number
            stream.seek(max(0, size - tail))
            data = stream.read(tail)
    except FileNotFoundError:
        return None
    if len(data) < tail or not data.endswith(number.to_bytes(8, "little") + END):
        return None
    index = np.frombuffer(data, "<i8", 3 * number).reshape(number, 3)
    return index if int(4 * (index[:, 1] * index[:, 2]).sum()) + tail == size else None


def _write(dataset: Dataset, file: Path) -> None:
    if decoded_bytes(dataset) > shutil.disk_usage(file.parent).free:
        raise _no_room(dataset, file.parent)
    partial = file.with_suffix(".part")
    try:
        with open(partial, "wb") as stream:
            _fill(stream, dataset)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _fill(stream: BinaryIO, dataset: Dataset) -> None:
    index = []
    with ThreadPoolExecutor(min(CHUNK, os.cpu_count() or 1)) as pool:
        for start in range(0, len(dataset), CHUNK):  # so that no more than a chunk is held in memory
            for image, labels in pool.map(dataset.read, range(start, min(start + CHUNK, len(dataset)))):
                index.append((stream.tell(), *labels.shape))
                stream.write(np.ascontiguousarray(image).data)
                stream.write(np.ascontiguousarray(labels).data)
    stream.write(np.array(index, "<i8").tobytes() + len(index).to_bytes(8, "little") + END)


def _no_room(dataset: Dataset, folder: Path) -> UserError:
    size, free = (n / 1e9 for n in (decoded_bytes(dataset), shutil.disk_usage(folder).free))
    return UserError(
        f"launch.cache: split '{dataset.split}' takes about {size:.1f} GB decoded, {folder} has {free:.1f} GB left; "
        "name another folder, or leave the cache out"
    )
