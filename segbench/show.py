"""What `segbench show` says of an upsampler, beside its docstring: shapes, cost, and its kernel at the start."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from segbench.errors import brief
from segbench.measures.macs import count_macs
from segbench.upsamplers.base import STARTS, is_guided, is_one_shot, starts_as, takes

CHANNELS, SIDE = 256, 16  # of the feature map that the cost is said of
REACH = 3  # input pixels around the one that is changed, in the picture


def show(cls: type[nn.Module]) -> Iterator[str]:
    """Lines on a class, for scale 2; one on why there are no more where it does not keep the contract."""
    guide = 3 if is_one_shot(cls) else CHANNELS
    try:
        module = cls(channels=CHANNELS, scale=2, guide_channels=guide).eval()
        start, picture = starts_as(module), kernel(cls).tolist()
    except Exception as error:  # whatever a plug-in raises
        yield f"  it does not work at C = {CHANNELS}, s = 2: {brief(error)}"
        return
    more = ", guide (B, G, s h, s w)" if is_guided(cls) else ""
    yield f"  shapes  x (B, C, h, w){more} -> (B, C, s h, s w)"
    yield "  scales  " + ", ".join(str(s) for s in (2, 3, 4, 8) if takes(cls, s)) + ", ..." * takes(cls, 3)
    parameters = sum(p.numel() for p in module.parameters())
    macs = count_macs(module, *given(cls, CHANNELS, guide, SIDE)) // SIDE**2
    said = f"C = {CHANNELS}" + f", G = {guide}" * is_guided(cls) + ", s = 2"
    yield f"  cost    {parameters:,} parameters, {macs:,} MACs per pixel of x, at {said}"
    untold = "not said" if parameters else "itself: nothing of it is learned"
    yield f"  start   {f'{start}: {STARTS[start]}' if start else untold}"
    yield "  kernel at the start: what one more in one pixel of x adds to the same channel of the output, in hundredths"
    for row in picture:
        yield "    " + "".join(f"{round(100 * v) or '.':>4}" for v in row)


def kernel(cls: type[nn.Module], scale: int = 2, channels: int = 16) -> Tensor:
    """``(7 s, 7 s)``: the change of channel 0 of the output around one pixel, by the change of that pixel of channel 0.

    A central difference in float64, at standard normal features and guide of a fixed seed: of an upsampler whose
    weights depend on the features, one example.
    """
    guide = 3 if is_one_shot(cls) else channels
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = cls(channels=channels, scale=scale, guide_channels=guide).double().eval()
        side, step = 4 * REACH + 3, 1e-4
        x, *rest = (t.double() for t in given(cls, channels, guide, side, scale))
        change = torch.zeros_like(x)
        change[0, 0, side // 2, side // 2] = step
        slope = (module(x + change, *rest) - module(x - change, *rest))[0, 0] / (2 * step)
    near = slice(scale * (side // 2 - REACH), scale * (side // 2 + REACH + 1))
    return slope[near, near]


def given(cls: type[nn.Module], channels: int, guide_channels: int, side: int, scale: int = 2) -> list[Tensor]:
    """What it is called with: ``x``, and the guide where it takes one, standard normal."""
    shapes = [(1, channels, side, side), (1, guide_channels, scale * side, scale * side)]
    return [torch.randn(shape) for shape in shapes[: 1 + is_guided(cls)]]
