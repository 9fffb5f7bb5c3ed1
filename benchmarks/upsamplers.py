"""Cost of each built-in upsampler by itself, and docs/upsamplers.md, which is made from their docstrings and that.

    python benchmarks/upsamplers.py            # prints the table
    python benchmarks/upsamplers.py --write    # and writes docs/upsamplers.md

A training step of ``(8, 64, 64, 64)`` to ``(8, 64, 128, 128)``, on one thread, channels last. Of the image-guided ones
``(1, 64, 16, 16)`` to ``(1, 64, 128, 128)``.
"""

import argparse
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from segbench.registry import UPSAMPLERS
from segbench.upsamplers.base import is_guided, is_one_shot

CHANNELS, REPEATS = 64, 5
PAGE = Path(__file__).parent.parent / "docs" / "upsamplers.md"


class LiveBytes(TorchDispatchMode):
    """The largest number of bytes that tensors hold at once which were made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(result):
            if isinstance(t, Tensor):
                self._watch(t.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def inputs(cls: type[nn.Module]) -> tuple[int, list[Tensor]]:
    """Scale and inputs of a step."""
    batch, side, scale, guide_channels = (1, 16, 8, 3) if is_one_shot(cls) else (8, 64, 2, CHANNELS)
    shapes = [(batch, CHANNELS, side, side), (batch, guide_channels, scale * side, scale * side)]
    torch.manual_seed(0)
    tensors = [torch.randn(s).contiguous(memory_format=torch.channels_last) for s in shapes[: 1 + is_guided(cls)]]
    return scale, [t.requires_grad_() for t in tensors]


def cost(name: str) -> dict[str, float | str]:
    """Of one training step."""
    cls = UPSAMPLERS.load(name)
    scale, given = inputs(cls)
    module = cls(channels=CHANNELS, scale=scale, guide_channels=given[1].shape[1] if given[1:] else CHANNELS)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*given)
    forward_s, backward_s = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        y = module(*given)
        middle = time.perf_counter()
        y.sum().backward()
        forward_s.append(middle - start)
        backward_s.append(time.perf_counter() - middle)
    del y
    with LiveBytes() as live:
        module(*given).sum().backward()
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "macs": counter.get_total_flops() / 2 / given[0].shape[0] / given[0].shape[2] ** 2,
        "forward_ms": 1e3 * min(forward_s),
        "backward_ms": 1e3 * min(backward_s),
        "memory_mib": live.peak / 2**20,
        "start": getattr(module, "starts_as", None) or "itself",
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--write", action="store_true", help="write docs/upsamplers.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.names or list(UPSAMPLERS.builtin())
    lines = [
        "| name | parameters | MACs per input pixel | forward ms | backward ms | memory MiB | starts as |",
        "| --- " * 7 + "|",
    ]
    for name in names:
        c = cost(name)
        lines.append(
            f"| `{name}` | {c['parameters']:,} | {c['macs']:,.0f} | {c['forward_ms']:.1f} | {c['backward_ms']:.1f} | "
            f"{c['memory_mib']:.0f} | {c['start']} |"
        )
        print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
