"""Equivariance: whether the upsampling of a shifted map is the shifted upsampling."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from segbench.measures.base import CountMeasure, Floats, Ints, Sample, share

UNIT = 1_000_000  # of the upsampled values in the counts
MARGIN = 3  # cells at each border that are left out, where the map is large enough


@dataclass
class Equivariance(CountMeasure):
    """Of the last upsampling by itself, on the maps of each image: mean gap, relative to the mean deviation.

    The map is shifted down and to the right by px / s cells of s x s pixels, linearly interpolated where that is no
    whole cell, the guide by px pixels; what comes out is compared with what came out before, shifted by px pixels, away
    from the border. By one cell anything that treats all cells alike is exact (Zhang 2019, https://arxiv.org/abs/1904.11486);
    by less, none is: it says how much depends on where in a cell something lies. Without a value where a decoder has no
    upsampling that can be called by itself, or one that ends at a stride of which px is no multiple. Counts, in
    millionths: gap, deviation from each channel's mean.

    Args:
        px: in pixels of the image; None for one cell.

    Raises:
        ValueError: below 1.
    """

    px: int | None = None

    short = "equivariance err."
    long = "error of equivariance"
    help = "Gap between upsampling what is shifted and shifting what is upsampled, relative"
    table_place = None
    bounds = (0.0, float("inf"))
    higher_is_better = False
    per_class = False
    plotted = True

    def __post_init__(self) -> None:
        if self.px is not None and self.px < 1:
            raise ValueError(f"px should be 1 or more, not {self.px}")

    def suffix(self, sizes: Ints) -> str:
        return f" ({self.px}px)" if self.px else ""

    def count(self, sample: Sample) -> Ints:
        up = sample.model.upsampling
        if up is None or (self.px or 0) % up.px:
            return np.zeros((2, 1), np.int64)
        px = self.px // up.px if self.px else up.ratio  # of what is put out
        wanted = up.call(up.x, up.guide).roll((px, px), (2, 3))
        scale = up.guide.shape[-1] // wanted.shape[-1]  # of a guide that is larger than what is put out
        found = up.call(shifted(up.x, px / up.ratio), up.guide.roll((px * scale, px * scale), (2, 3)))
        y, x = (slice(m, n - m) for n in wanted.shape[2:] for m in [min(px + MARGIN * up.ratio, n // 3)])
        found, wanted = found[..., y, x].double(), wanted[..., y, x].double()
        gap, deviation = (found - wanted).abs().mean(), (wanted - wanted.mean((2, 3), keepdim=True)).abs().mean()
        return (UNIT * np.array([[gap.item()], [deviation.item()]])).round().astype(np.int64)

    def score(self, counts: Ints) -> Floats:
        return 100 * share(counts[..., 0, :], counts[..., 1, :])


def shifted(x: Any, cells: float) -> Any:
    """A map (B, C, h, w) shifted down and to the right, around the border, linearly between cells."""
    whole, part = divmod(cells, 1)
    for axis in (2, 3):
        x = x.roll(int(whole), axis)
        x = x if part == 0 else (1 - part) * x + part * x.roll(1, axis)
    return x
