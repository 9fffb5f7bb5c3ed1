"""IFA: a network of the nearest features of every level and the place within their cells."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segbench.decoders.base import Decoder, resize


class Ifa(Decoder):
    """Implicit feature alignment: every pixel of the finest level asks all levels, then a network classifies.

    Hu et al. 2022, https://arxiv.org/abs/2206.08655. Of each level it gets the features of the cell that it lies in and
    its place there, also as sines and cosines of learned multiples; layers are followed by batch norm and ReLU but for
    the last. Bilinear interpolation brings the logits from the finest stride to the image.

    Args:
        channels, strides, num_classes: see `Decoder`.
        hidden: channels of the network's hidden layers.
        position_dim: numbers that a place is encoded as, a multiple of 4, besides the place itself.

    Raises:
        ValueError: a position_dim that is no multiple of 4.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        hidden: tuple[int, ...] = (512, 256),
        position_dim: int = 24,
    ) -> None:
        super().__init__(channels, strides, num_classes)
        if position_dim < 4 or position_dim % 4:
            raise ValueError(f"position_dim must be a multiple of 4, not {position_dim}")
        frequencies = 2 ** torch.linspace(0, 6, position_dim // 4)
        self.position_frequencies = nn.Parameter(torch.block_diag(frequencies[:, None], frequencies[:, None]))
        sizes = [sum(channels) + len(channels) * (2 + position_dim), *hidden, num_classes]
        self.depth = len(sizes) - 1
        for i, (inside, outside) in enumerate(itertools.pairwise(sizes)):
            self.add_module(f"mlp{i}", nn.Conv2d(inside, outside, 1))
            if i < self.depth - 1:
                self.add_module(f"norm{i}", nn.BatchNorm2d(outside))

    def logits(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """``(B, K, *size)``."""
        y = torch.cat([part for x in features for part in self._at(x, size)], 1)
        for i in range(self.depth):
            y = self.get_submodule(f"mlp{i}")(y)
            if i < self.depth - 1:
                y = self.get_submodule(f"norm{i}")(y).relu()
        return y

    def forward(self, features: list[Tensor], image: Tensor) -> Tensor:
        y = self.logits(features, (features[0].shape[-2], features[0].shape[-1]))
        return resize(y, (image.shape[-2], image.shape[-1]))

    def _at(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Where each output pixel lies in its cell, encoded, and the cell's features."""
        places, cells = [], []
        for wanted, length in zip(size, x.shape[-2:], strict=True):
            pixel = torch.arange(wanted, device=x.device)
            centre = (2 * pixel.to(torch.float64) + 1) / wanted * length  # in half cells
            cell = ((centre - 1) / 2).round().long().clamp(0, length - 1)
            places.append((centre - 2 * cell - 1).to(torch.promote_types(x.dtype, torch.float32)))
            cells.append(cell)
        place = torch.stack(torch.meshgrid(*places, indexing="ij"))  # (2, H, W)
        angle = torch.einsum("nd,dhw->nhw", self.position_frequencies.to(place.dtype), place)
        told = torch.cat([place, angle.sin(), angle.cos()]).expand(len(x), -1, -1, -1)
        return told, x.index_select(2, cells[0]).index_select(3, cells[1])
