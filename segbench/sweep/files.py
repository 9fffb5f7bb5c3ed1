"""What a sweep's folder remembers of the data's files, so that they are read once. Imports no torch."""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from segbench.config import DataConfig, RecipeConfig
from segbench.data import base
from segbench.data.base import Dataset, PairedFiles, Part
from segbench.errors import UserError
from segbench.loading.findings import Split, findings, look_at
from segbench.registry import DATASETS, check_params, source_hash
from segbench.runs import Facts
from segbench.store import write_atomic

KNOWN = ".files.json"
SETTLED_NS = 2 * 10**9  # a younger file may change again within one tick of its file system's clock


class KnownFiles(BaseModel):
    """Of data's files: what need not be read again; and facts that need not be found again."""

    # Path of a label file -> size, times of change of content and status (ns), SHA-256.
    hashes: dict[str, tuple[int, int, int, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]] = {}
    good: list[str] = []  # fingerprints of splits of which every image was read
    facts: dict[str, Facts] = {}  # what `segbench.sweep.remembered.place` says of a variant -> its facts

    @classmethod
    def read(cls, folder: Path) -> "KnownFiles":
        """What a sweep's folder remembers; nothing where its file is damaged or cannot be read."""
        with suppress(OSError, ValidationError):
            checksum, _, text = (folder / KNOWN).read_bytes().partition(b"\n")
            if checksum == _checksum(text):
                return cls.model_validate_json(text)
        return cls()

    def write(self, folder: Path) -> None:
        text = self.model_dump_json().encode()
        write_atomic(folder / KNOWN, lambda file: file.write(_checksum(text) + b"\n" + text), durable=False)

    def fingerprint(self, dataset: Dataset) -> str:
        """``dataset.fingerprint()``; of paired files only those labels are read that are not as they were."""
        if isinstance(dataset, Part):
            return dataset.fingerprint_by(self.fingerprint(dataset.dataset))
        if not isinstance(dataset, PairedFiles) or type(dataset).fingerprint is not PairedFiles.fingerprint:
            return dataset.fingerprint()
        return base.hash_files(dataset.pairs, self._hash_labels)

    def data_facts(self, config: DataConfig, data: Mapping[str, Dataset]) -> list[str]:
        """What stands for data in a run's key: class, hashes of source and parameters, fingerprint of each split."""
        cls = type(data["train"].whole)
        params = plain_values(check_params(DATASETS, config.name, DATASETS.load(config.name), config.params))
        hashed = hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()
        return [cls.__name__, source_hash(cls), hashed, *map(self.fingerprint, data.values())]

    def _hash_labels(self, path: Path) -> bytes:
        status, now = base.file_status(path), time.time_ns()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns) if status else (0, 0, now)
        there = self.hashes.get(str(path))
        if there is not None and there[:3] == stamp:
            return bytes.fromhex(there[3])
        digest = base.hash_file(path)
        if now - max(stamp[1:]) > SETTLED_NS:
            self.hashes[str(path)] = (*stamp, digest.hex())
        return digest

    def all_good(self, data: Mapping[str, Dataset], fingerprints: list[str]) -> bool:
        """Whether every image of the splits was read before, or is drawn and not read."""
        splits = zip(data.values(), fingerprints, strict=True)
        return all(not dataset.from_files or fingerprint in self.good for dataset, fingerprint in splits)

    def check(
        self,
        data: Mapping[str, Dataset],
        fingerprints: list[str],
        recipe: RecipeConfig,
        decoded: Callable[[], Mapping[str, Dataset]] = dict,
    ) -> list[str]:
        """Read every image of both splits once, so that what is wrong is told before training, not in the midst of it.

        Args:
            recipe: by which they are trained on.
            decoded: gives those splits of which the decoded images are kept (`segbench.loading.cache`).

        Returns:
            What `segbench data check` finds beside, when they are read.

        Raises:
            UserError: the first bad file, or labels on which no score would mean anything.
        """
        if self.all_good(data, fingerprints):
            return []
        splits, kept = [], decoded()
        for name, dataset in data.items():
            with ThreadPoolExecutor() as pool:
                looks = list(pool.map(functools.partial(look_at, dataset, decoded=kept.get(name)), range(len(dataset))))
            splits.append(Split(getattr(dataset, "split", name), dataset, looks))
        found = findings(splits, recipe)
        if found.meaningless:
            raise UserError("; ".join(found.meaningless))
        self.good += [fingerprint for fingerprint in fingerprints if fingerprint not in self.good]
        return [*found.errors, *found.warnings]


def plain_values(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as they stand in keys: of a file the hash of what it holds, of a folder None."""
    values: dict[str, Any] = json.loads(json.dumps(dict(params), default=_plain))
    for name, value in params.items():
        if isinstance(value, Path):
            values[name] = hashlib.sha256(value.read_bytes()).hexdigest() if value.is_file() else None
    return values


def _plain(value: object) -> str:
    """A name for a value that JSON does not have, the same in every process."""
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else str(value)


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
