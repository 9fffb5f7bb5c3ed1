"""What a run's own code does stays with that run: its errors, its output, and what it changes in the whole process."""

import contextlib
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from segbench import store
from segbench.build import derived_seed, seed_torch
from segbench.errors import brief

OUTPUT_BYTES = 1_000_000  # of what a run prints in one process; the rest is left out


class ChangedGlobalState(RuntimeError):
    """Code of one run changed what every run of its process shares."""


class Setting(NamedTuple):
    """What a process has once, and any code in it can change."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], Any]


def _folder() -> str | None:
    with contextlib.suppress(OSError):  # somebody removed it
        return os.getcwd()
    return None


def _flushes_denormals() -> bool:
    return not float(torch.tensor(1e-310, dtype=torch.float64) * 1.0)  # torch can set it and not say it


def _autocast() -> list[tuple[str, bool, torch.dtype]]:
    return [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]


def _put_autocast(values: list[tuple[str, bool, torch.dtype]]) -> None:
    for device, enabled, dtype in values:
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _cudnn() -> tuple[bool, bool, bool]:
    return torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic


def _put_cudnn(values: tuple[bool, bool, bool]) -> None:
    torch.backends.cudnn.set_flags(*values[:2], None, values[2])


def _put_inference(value: bool) -> None:
    _entered.append(torch.inference_mode(value))  # which ends with the last reference to it
    _entered[-1].__enter__()


_entered: list[torch.inference_mode] = []
SETTINGS = (
    Setting("torch.inference_mode", torch.is_inference_mode_enabled, _put_inference),
    Setting("torch.set_grad_enabled", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch.set_num_threads", torch.get_num_threads, torch.set_num_threads),
    Setting(
        "torch.use_deterministic_algorithms",
        _deterministic,
        lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1]),
    ),
    Setting("torch.set_autocast_enabled", _autocast, _put_autocast),
    Setting("torch.set_flush_denormal", _flushes_denormals, torch.set_flush_denormal),
    Setting(
        "torch.set_float32_matmul_precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    ),
    Setting("torch.backends.cudnn", _cudnn, _put_cudnn),
    Setting("torch.autograd.set_detect_anomaly", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    Setting("numpy.seterr", np.geterr, lambda v: np.seterr(**v)),
    Setting("os.chdir", _folder, lambda v: os.chdir(v) if v else None),
)


class Turn:
    """How a turn went: ``error`` is what ended it, None where nothing did."""

    error: BaseException | None = None


@contextlib.contextmanager
def turn(*seed: object, desk: "Desk | None" = None) -> Iterator[Turn]:
    """Around code of one run, a plug-in's perhaps: nothing of it reaches the code of another run.

    Whatever it raises is kept in `Turn.error`, an exit too; but a KeyboardInterrupt that can be the user's Ctrl-C, as
    it cannot in a cohort's process, is raised. Torch's, NumPy's and Python's generators start from ``seed``. What has
    changed of `SETTINGS` is put back, and is an error.

    Args:
        desk: of the run, which keeps that it is its turn and what it prints.
    """
    found, before = Turn(), [setting.get() for setting in SETTINGS]
    number = derived_seed(*seed)
    seed_torch(number)
    np.random.seed(number % 2**32)
    random.seed(number)
    with desk.taken() if desk else contextlib.nullcontext():
        try:
            yield found
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and _ctrl_c_raises():
                raise
            found.error = error
        finally:
            changed = [(s, value) for s, value in zip(SETTINGS, before, strict=True) if s.get() != value]
            for setting, value in changed:
                setting.put(value)
    if changed:
        names = " and ".join(setting.name for setting, _ in changed)
        then = f"; then: {brief(found.error)}" if found.error else ""
        state = ChangedGlobalState(
            f"it changes what all decoders of the process share, as {names} does; it should leave that as it is{then}"
        )
        state.__cause__, found.error = found.error, state


def _ctrl_c_raises() -> bool:
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return not blocked and signal.getsignal(signal.SIGINT) not in (signal.SIG_DFL, signal.SIG_IGN)


class Desk:
    """Of a run, in the process that works on it: whether it is its turn, and where its output goes; both in its folder.

    In its turn the file descriptors of standard output and error lead to ``output.txt``, for `OUTPUT_BYTES`. Should the
    process die, `store.in_turn` tells whose turn it was.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with store.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._output = open(folder / store.OUTPUT, "a", 1, "utf-8", "replace")  # noqa: SIM115
            self._mark = os.open(folder / store.TURN, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.write(self._mark, b"0")  # whose place on the disk is then there
        self._before = self._size()

    def _size(self) -> int:
        return os.fstat(self._output.fileno()).st_size

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Around what it does in its turn."""
        _flush(sys.stdout, sys.stderr)
        kept, output = (os.dup(1), os.dup(2)), self._output
        for number in (1, 2):
            os.dup2(output.fileno(), number)
        os.pwrite(self._mark, b"1", 0)
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                yield
        finally:
            _flush(sys.stdout, sys.stderr, output)
            os.pwrite(self._mark, b"0", 0)
            for number, file in enumerate(kept, 1):
                os.dup2(file, number)
                os.close(file)
            if self._size() > self._before + OUTPUT_BYTES:
                with contextlib.suppress(OSError):  # the disk may be full
                    os.write(output.fileno(), f"\n... all after {OUTPUT_BYTES:,} bytes is left out\n".encode())
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output.fileno())
                os.close(nowhere)

    def close(self) -> None:
        """Nothing more is done here; a file into which nothing was printed is removed."""
        with contextlib.suppress(OSError):
            self._output.close()
        os.close(self._mark)
        (self.folder / store.TURN).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            if not (self.folder / store.OUTPUT).stat().st_size:
                (self.folder / store.OUTPUT).unlink()


def _flush(*streams: Any) -> None:
    for stream in streams:
        with contextlib.suppress(Exception):  # a plug-in may have closed it or put another in its place
            stream.flush()


def own_copies(decoder: nn.Module, features: Sequence[Tensor], image: Tensor) -> tuple[list[Tensor], Tensor]:
    """Features and image for one decoder: copies for a plug-in, which could change them where no check sees it."""
    if all(type(part).__module__.startswith(("segbench.", "torch.")) for part in decoder.modules()):
        return list(features), image
    return [f.clone() for f in features], image.clone()
