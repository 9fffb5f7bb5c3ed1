"""Local attender of UPLiFT: a softmax over fixed neighbours, scored by a 1x1 convolution of the finer map."""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from segbench.upsamplers._operations import reassemble
from segbench.upsamplers.base import checked

NEIGHBOURS = {  # their number -> which of the 5x5 are taken, by distance down and across
    5: lambda y, x: abs(y) + abs(x) <= 1,
    9: lambda y, x: max(abs(y), abs(x)) <= 1,
    13: lambda y, x: abs(y) + abs(x) <= 2,
    17: lambda y, x: max(abs(y), abs(x)) <= 1 or y % 2 == x % 2 == 0,
    25: lambda y, x: True,
}


@checked
class LocalAttender(nn.Module):
    """Convex mixture of neighbours, weighed by the guide alone: ``(B, C, h, w)`` to ``(B, C, s*h, s*w)``.

    UPLiFT, Walmer et al. 2026, https://arxiv.org/abs/2601.17950. The border is repeated. At C = 256 and 17 neighbours:
    4,369 parameters, 34,816 MACs per input pixel.

    Args:
        channels: C.
        scale: s, an int.
        guide_channels: of the guide ``(B, guide_channels, s h, s w)``.
        neighbours: 5, 9, 13, 17 or 25 of the 5x5 around an input pixel.
        residual: adds channel i of the guide to score i.

    Raises:
        ValueError: another number of neighbours.
    """

    group, year = "guided", 2026
    guided, ratios, starts_as = True, "integer", "random"

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        guide_channels: int = 0,
        *,
        neighbours: int = 17,
        residual: bool = True,
    ) -> None:
        super().__init__()
        if neighbours not in NEIGHBOURS:
            raise ValueError(f"neighbours must be one of {', '.join(map(str, NEIGHBOURS))}, not {neighbours}")
        self.scale, self.residual = scale, residual
        taken = NEIGHBOURS[neighbours]
        self.places = [(y, x) for y, x in itertools.product(range(5), repeat=2) if taken(y - 2, x - 2)]
        self.attend = nn.Conv2d(guide_channels, neighbours, 1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        scores = self.attend(guide)
        if self.residual:
            shared = min(guide.shape[1], len(self.places))
            scores = scores + F.pad(guide[:, :shared], (0, 0, 0, 0, 0, len(self.places) - shared))
        return reassemble(x, scores.softmax(1), 5, self.scale, border="replicate", taps=self.places)
