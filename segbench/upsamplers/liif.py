"""LIIF: a network of the nearest features and the place within their cell, at any size."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._attention import CHUNK, in_chunks
from segbench.upsamplers._operations import precise
from segbench.upsamplers.base import Scale, ceil_size, checked


@checked
class Liif(nn.Module):
    """Local implicit function, once to any size: ``(B, C, h, w)`` to ``(B, C, ceil(s h), ceil(s w))``.

    Chen et al. 2021, https://arxiv.org/abs/2012.09161. Each output pixel asks a ReLU network four times, at the
    features of the four cells around, and takes the mean weighed by areas. The network's first layer is applied to the
    features before they are looked up, which is the same and s² times less. It computes in chunks that hold 64 MiB.

    Args:
        channels: C.
        scale: s, an int or a `fractions.Fraction`.
        hidden: channels of the network's hidden layers.
        unfold: features are 3x3 around, 0 outside the map.
        local_ensemble: asks four times; else at the nearest cell alone.
        cell: the network also gets the size of an output pixel.
        out_channels: default: C.
        chunk: numbers that are held at once.
    """

    group, year = "adaptive", 2021
    one_shot, ratios, starts_as = True, "rational", "random"

    def __init__(
        self,
        channels: int,
        scale: Scale = 2,
        guide_channels: int = 0,
        *,
        hidden: tuple[int, ...] = (256, 256, 256, 256),
        unfold: bool = True,
        local_ensemble: bool = True,
        cell: bool = True,
        out_channels: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__()
        self.scale, self.unfold, self.local_ensemble, self.cell, self.chunk = scale, unfold, local_ensemble, cell, chunk
        self.features = channels * (9 if unfold else 1)
        sizes = [self.features + 2 + 2 * cell, *hidden, channels if out_channels is None else out_channels]
        self.depth = len(sizes) - 1
        for i, (inside, outside) in enumerate(itertools.pairwise(sizes)):
            self.add_module(f"mlp{i}", nn.Linear(inside, outside))

    def forward(self, x: Tensor) -> Tensor:
        return self.resize(x, ceil_size(x.shape[-2:], self.scale))

    def resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, C, h, w)`` to ``(B, C, *size)``."""
        layers = [self.get_submodule(f"mlp{i}") for i in range(self.depth)]
        first = layers[0]
        assert isinstance(first, nn.Linear)
        kernel = first.weight[:, : self.features].unflatten(1, (x.shape[1], 3 if self.unfold else 1, -1))
        low = F.conv2d(x, kernel, padding=1 if self.unfold else 0).flatten(2).mT  # (B, h w, hidden)
        lengths, exact = x.shape[-2:], precise(x)
        place = [(2 * torch.arange(n, device=x.device).to(exact) + 1) / n - 1 for n in size]
        rows, columns = place[0][:, None].expand(size), place[1].expand(size)
        at = torch.stack([rows.flatten(), columns.flatten()], -1)[None]  # (1, H W, 2)
        counts = torch.tensor(lengths, device=x.device, dtype=exact)
        pixel = torch.tensor([2 * n / m for n, m in zip(lengths, size, strict=True)], device=x.device, dtype=exact)
        shifts = list(itertools.product((-1, 1), repeat=2)) if self.local_ensemble else [(0, 0)]

        def ask(at: Tensor) -> Tensor:
            answers, areas = [], []
            for shift in shifts:
                moved = at[0]
                if self.local_ensemble:
                    moved = moved + torch.tensor(shift, device=at.device, dtype=at.dtype) / counts + 1e-6
                cell = (((moved.clamp(-1 + 1e-6, 1 - 1e-6) + 1) * counts - 1) / 2).round()
                inside = (at[0] - ((2 * cell + 1) / counts - 1)) * counts
                told = torch.cat([inside, pixel.expand_as(inside)], 1) if self.cell else inside
                index = (cell[:, 0] * lengths[1] + cell[:, 1]).long()
                y = low[:, index] + F.linear(told, first.weight[:, self.features :], first.bias)
                for layer in layers[1:]:
                    y = layer(y.relu())
                answers.append(y)
                areas.append(inside.prod(1).abs() + 1e-9)
            total = torch.stack(areas).sum(0)
            return sum(  # type: ignore[return-value]
                y * (area / total)[:, None] for y, area in zip(answers, reversed(areas), strict=True)
            )

        widest = sum(layer.out_features for layer in layers if isinstance(layer, nn.Linear))
        y = in_chunks(ask, at, each=2 * len(x) * len(shifts) * widest, limit=self.chunk)
        return y.mT.unflatten(2, size)
