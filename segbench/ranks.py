"""The processes of one cohort, where it uses several devices: who they are, and what they tell each other."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segbench.errors import Failure, Relayed

Value = TypeVar("Value")
JOIN_TIMEOUT = timedelta(minutes=5)  # once all have started
TIMEOUT = timedelta(days=1)  # of a step or an image; a process that dies is noticed at once


class Ranks:
    """One process of ``size``, number ``rank``; 0 alone reads requests, reports and writes files.

    With a size of 1 every method does nothing, or what it is asked to by itself.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.control: Any = dist.new_group(backend="gloo", timeout=TIMEOUT) if size > 1 else None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether it holds in one of them."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, dist.ReduceOp.MAX, self.control)
        return bool(value)

    def together(self, function: Callable[[], Value]) -> Value:
        """``function()``, which raises in all where it raises in one, so that none waits for it."""
        if self.size == 1:
            return function()
        error: Exception | None = None
        try:
            value = function()
        except Exception as caught:
            error = caught
        if self.any(error is not None):
            said = self.gather(None if error is None else Failure.of(error))
            raise error or Relayed(next(failure for failure in said if failure is not None))
        return value

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all, without gradient."""
        tensor = tensor.detach()
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """In place; a parameter without gradient takes part with zeros, where another process may have one."""
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]

        def complete() -> None:
            for parameter in trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

        self.together(complete)
        for parameter in trained:
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)

    def share_buffers(self, module: nn.Module) -> None:
        """Give all those of the first, such as the running means of batch normalisation."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def gather(self, value: Value) -> list[Value]:
        """Everyone's, by rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, self.control)
        return values


@contextmanager
def started(size: int, accelerator: str, work: Callable[..., None], *args: Any) -> Iterator[Ranks]:
    """The first of ``size`` processes, this one; each other one calls ``work(ranks, *args)``, and dies with this one.

    Raises:
        RuntimeError: another one failed; says why.
    """
    if size == 1:
        yield Ranks()
        return
    store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, timeout=JOIN_TIMEOUT, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")  # a GPU cannot be used after a fork
    others = []
    try:
        for rank in range(1, size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_other, args=(theirs, rank, size, store.port, accelerator, work, args))
            process.start()  # no daemon, which could have no loader workers; where this one is killed, the other fails
            theirs.close()
            others.append((process, ours))
        for _, connection in others:
            try:
                connection.recv()  # it has started
            except EOFError:
                raise RuntimeError(_told(others)) from None
        with _joined(0, size, store, accelerator) as ranks:
            try:
                yield ranks
            except RuntimeError as error:
                if why := _told(others):
                    raise RuntimeError(why) from error
                raise
        for process, _ in others:
            process.join(30)
    finally:
        for process, _ in others:
            process.kill()


def _told(others: list[tuple[Any, Any]]) -> str:
    """What another process said when it failed, or how it died; empty where all are well."""
    for rank, (process, connection) in enumerate(others, 1):
        with contextlib.suppress(EOFError, OSError):
            while connection.poll(5):
                failure: Failure | None = connection.recv()
                if failure is not None:
                    return f"process {rank} of the cohort failed: {failure.reason}\n{failure.traceback}"
        process.join(1)
        if process.exitcode:
            return f"process {rank} of the cohort died (exit code {process.exitcode})"
    return ""


@contextmanager
def _joined(rank: int, size: int, store: dist.TCPStore, accelerator: str) -> Iterator[Ranks]:
    # What Lightning reads to know that the processes are there already.
    names = {"LOCAL_RANK": f"{rank}", "NODE_RANK": "0", "WORLD_SIZE": f"{size}"}
    names |= {"MASTER_ADDR": store.host, "MASTER_PORT": f"{store.port}"}
    os.environ |= names
    backend = "cpu:gloo,cuda:nccl" if accelerator == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield Ranks(rank, size)
    finally:
        dist.destroy_process_group()
        for name in names:
            os.environ.pop(name, None)


def _other(
    connection: Any, rank: int, size: int, port: int, accelerator: str, work: Callable[..., None], args: Any
) -> None:
    connection.send(None)  # it has started
    try:
        store = dist.TCPStore("127.0.0.1", port, size, timeout=JOIN_TIMEOUT, wait_for_workers=False)
        with _joined(rank, size, store, accelerator) as ranks:
            try:
                work(ranks, *args)
            except Exception as error:
                connection.send(Failure.of(error))  # before the group is left, at which the first process asks why
                raise
    except Exception as error:
        connection.send(Failure.of(error))
        raise SystemExit(1) from None
