"""What each built-in upsampler costs by itself, and docs/upsamplers.md, which is made from that and their docstrings.

    python benchmarks/upsamplers.py carafe fade  # prints their rows
    python benchmarks/upsamplers.py --write      # all, and writes docs/upsamplers.md

A training step from ``(8, 64, 64, 64)`` to ``(8, 64, 128, 128)``, in float32, channels last, on one thread; of the
image-guided ones with an image of 3 channels, of the other guided ones with a guide of 64.
"""

import argparse
import json
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from segbench.check.base import Note
from segbench.check.practice import converts
from segbench.listing import GROUPS
from segbench.machine import environment
from segbench.measures.macs import count_macs
from segbench.reference import about, parameters
from segbench.registry import UPSAMPLERS
from segbench.show import given
from segbench.upsamplers.base import STARTS, is_one_shot, starts_as

BATCH, CHANNELS, SIDE, REPEATS = 8, 64, 64, 4
LONG_S = 10  # seconds after which nothing is repeated
SLOW = 3  # times a convolution of equal MACs
PAGE = Path(__file__).parent.parent / "docs" / "upsamplers.md"


@dataclass(frozen=True)
class Cost:
    """Of one training step; ``macs`` of the forward pass, per input pixel.

    Attributes:
        convolution: seconds of both passes of a 3x3 convolution with as many MACs.
        memory: bytes, the most that the step holds beside its input.
        written: bytes that the step allocates in all.
        copies: seconds that an addition of as many bytes takes.
    """

    parameters: int
    macs: float
    forward: float
    backward: float
    convolution: float
    memory: int
    written: int
    copies: float
    start: str
    onnx: bool

    @property
    def ratio(self) -> float:
        return (self.forward + self.backward) / self.convolution

    @property
    def bound(self) -> str:
        """What bounds the time."""
        if self.ratio <= SLOW:
            return "arithmetic"
        both = self.convolution + self.copies
        return "memory" if self.forward + self.backward <= SLOW * both else "small steps"


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def step_seconds(module: nn.Module, inputs: list[Tensor]) -> tuple[float, float]:
    """The best forward and the best backward pass of several, of one where it takes long."""
    tensors = [t.requires_grad_() for t in inputs]
    passes: list[tuple[float, float]] = []
    while len(passes) < REPEATS and sum(map(sum, passes)) < LONG_S:
        start = time.perf_counter()
        y = module(*tensors)
        middle = time.perf_counter()
        y.backward(torch.ones_like(y))
        passes.append((middle - start, time.perf_counter() - middle))
    forward, backward = zip(*passes, strict=True)
    return min(forward), min(backward)


def allocations(module: nn.Module, inputs: list[Tensor]) -> tuple[int, int]:
    """Bytes of a step by torch's profiler: the most at a time, and all together."""
    tensors = [t.detach().requires_grad_() for t in inputs]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        y = module(*tensors)
        y.backward(torch.ones_like(y))
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now, most, written = 0, 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now, written = now + event.nbytes(), written + max(0, event.nbytes())
        most = max(most, now)
    return most, written


def cost(name: str) -> Cost:
    cls = UPSAMPLERS.load(name)
    guide_channels = 3 if is_one_shot(cls) else CHANNELS
    module = cls(channels=CHANNELS, scale=2, guide_channels=guide_channels)
    inputs = [channels_last(t.expand(BATCH, -1, -1, -1).clone()) for t in given(cls, CHANNELS, guide_channels, SIDE)]
    macs = count_macs(module, *inputs) / BATCH / SIDE**2
    forward, backward = step_seconds(module, inputs)
    memory, written = allocations(module, inputs)
    wide = nn.Conv2d(CHANNELS, max(1, round(macs / 9 / CHANNELS)), 3, padding=1).to(memory_format=torch.channels_last)
    numbers = torch.ones(2**25)  # more than a processor's cache holds
    start = time.perf_counter()
    for _ in range(10):
        numbers + numbers
    per_byte = (time.perf_counter() - start) / 10 / (4 * numbers.numel())
    return Cost(
        parameters=sum(p.numel() for p in module.parameters()),
        macs=macs,
        forward=forward,
        backward=backward,
        convolution=sum(step_seconds(wide, inputs[:1])),
        memory=memory,
        written=written,
        copies=written * per_byte,
        start=starts_as(module) or "itself",
        onnx=not isinstance(converts(module.eval(), tuple(given(cls, CHANNELS, guide_channels, 16))), Note),
    )


def row(name: str, c: Cost, bilinear: Cost) -> str:
    cells = [f"[`{name}`](#{name})", f"{c.parameters:,}", f"{c.macs:,.0f}", f"{1e3 * c.forward:.1f}"]
    cells += [f"{1e3 * c.backward:.1f}", f"{c.ratio:.1f}", c.bound, f"{c.memory / bilinear.memory:.1f}", c.start]
    cells.append("yes" if c.onnx else "no")
    return f"| {' | '.join(cells)} |"


def section(name: str) -> str:
    """What the docstring says of it, in Markdown."""
    cls = UPSAMPLERS.load(name)
    text = about(cls).replace("``", "`")
    params = [
        f"- `{parameter}{default}`: {taken}{meaning and f'; {meaning}'}".replace("``", "`")
        for parameter, default, taken, meaning in parameters(UPSAMPLERS, cls)
    ]
    return "\n".join([f"### {name}", "", text, *(["", *params] if params else [])])


def page(costs: dict[str, Cost]) -> str:
    made_on = environment(1, "cpu")
    lines = [
        "# The built-in upsamplers",
        "",
        "Made by `python benchmarks/upsamplers.py --write` from their docstrings and from measurements; do not edit. "
        "`segbench show NAME` also draws the kernel that one starts with.",
        "",
        "## Cost",
        "",
        f"Of each by itself, in a training step from {BATCH} x {CHANNELS} x {SIDE} x {SIDE} to twice the size, "
        f"with a guide of {CHANNELS} channels, or an image; float32, one thread of an {made_on['cpu']}, "
        f"torch {made_on['versions']['torch']}, the best of {REPEATS}, or of fewer after {LONG_S} s, on a machine that "
        "may have had other work. MACs are per input pixel. *x conv*: both passes, in times those of a 3x3 convolution "
        "of as many MACs. *Bound by*: arithmetic, "
        f"where that is at most {SLOW}; memory, where both passes take at most {SLOW} times that convolution and an "
        "addition that writes as many bytes as they do, as upsamplers with few MACs for each number that they put out; "
        "else small steps: softmax, small products, reads at scattered places. "
        "*x memory*: the most that the step holds at a time beside its input, in times what bilinear interpolation "
        "holds. *Starts as*: " + "; ".join(f"{word}: {meaning}" for word, meaning in STARTS.items()) + ".",
        "",
        "| name | parameters | MACs | forward ms | backward ms | x conv | bound by | x memory | starts as | ONNX |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | --- | --- |",
        *(row(name, c, costs["bilinear"]) for name, c in costs.items()),
    ]
    for group, meaning in GROUPS.items():
        if names := [n for n in costs if UPSAMPLERS.declared(n, "group") == group]:
            lines += ["", f"## {group.capitalize()}: {meaning}"]
            for name in names:
                lines += ["", section(name)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--write", action="store_true", help="write docs/upsamplers.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = options.names or list(UPSAMPLERS.builtin())
    costs = {"bilinear": cost("bilinear")}
    for name in names:
        costs[name] = cost(name)
        print(row(name, costs[name], costs["bilinear"]), flush=True)
        print(json.dumps(asdict(costs[name])), flush=True)
    if options.write:
        PAGE.write_text(page({name: costs[name] for name in names}), "utf-8")


if __name__ == "__main__":
    main()
