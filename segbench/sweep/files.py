"""What a sweep's folder remembers of the data's files, so that they are read once. Imports no torch."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from segbench.data.base import Dataset, known_hashes
from segbench.store import write_atomic

KNOWN = ".files.json"


class KnownFiles(BaseModel):
    """``hashes`` as in `segbench.data.base.known_hashes`; ``good``: fingerprints of splits that were read whole."""

    hashes: dict[str, tuple[int, int, int, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]] = {}
    good: list[str] = []


@contextmanager
def known_files(folder: Path, keep: bool = False) -> Iterator[KnownFiles]:
    """Within it a label file is read for its hash only where it is not as the sweep's ``folder`` remembers it.

    Args:
        keep: write what was learnt, unless an exception ends it.

    Raises:
        UserError: it cannot be written. One that is damaged, or that cannot be read, is ignored.
    """
    path, known = folder / KNOWN, KnownFiles()
    with suppress(OSError, ValidationError):
        checksum, _, text = path.read_bytes().partition(b"\n")
        if checksum == _checksum(text):
            known = KnownFiles.model_validate_json(text)
    before = known.model_dump_json()
    token = known_hashes.set(known.hashes)
    try:
        yield known
    finally:
        known_hashes.reset(token)
    after = known.model_dump_json()
    if keep and after != before:
        data = after.encode()
        write_atomic(path, lambda file: file.write(_checksum(data) + b"\n" + data), durable=False)


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def check_files(data: Mapping[str, Dataset], fingerprints: list[str], known: KnownFiles) -> None:
    """Read every image of both splits once, so that a bad file is named before training and not in the midst of it.

    Raises:
        UserError: the first bad file.
    """
    for dataset, fingerprint in zip(data.values(), fingerprints, strict=True):
        if not dataset.from_files or fingerprint in known.good:
            continue
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda i, d=dataset: d.read(i) and None, range(len(dataset))):
                pass
        known.good.append(fingerprint)
