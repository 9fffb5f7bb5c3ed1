"""Effective kernel: the mean response to one cell of what the decoder upsamples."""

import numpy as np

from segbench.measures.base import CountMeasure, Floats, Ints, Sample, share

UNIT = 1_000_000  # of responses in the counts
REACH = 3  # cells to each side that are looked at


class Kernel(CountMeasure):
    """Of the last upsampling by itself, on the maps of each image, after training.

    Cells that lie 7 apart are raised by a standard deviation of their channel; the response is the mean magnitude, over
    channels and cells, of what changes in the 7 x 7 cells around, relative to what was added: nearest neighbours give 1
    in the cell itself. The score is its width: the root mean square distance from the middle of the cell. A narrow
    kernel is sharp, and not for that better. An impulse response, as effective receptive fields are measured by (Luo et
    al. 2016, https://arxiv.org/abs/1701.04128). Without a value where a decoder has no upsampling that can be called by
    itself. Counts: 1, image pixels per cell of the response, and the responses in millionths, row by row.
    """

    short = "kernel width"
    long = "width of the effective kernel"
    help = "Root mean square reach of one upsampled cell; the picture is its mean absolute response after training"
    unit = "px"
    table_place = None
    bounds = (0.0, float("inf"))
    higher_is_better = False
    per_class = False
    plotted = True
    drawn = "response, relative"

    def count(self, sample: Sample) -> Ints:
        import torch

        up, cells = sample.model.upsampling, 2 * REACH + 1
        if up is None:
            return np.zeros((2 + (cells * sample.model.stride) ** 2, 1), np.int64)
        s, (h, w), edge = up.ratio, up.x.shape[2:], REACH * up.ratio
        middles = [range(REACH, n - REACH, cells) or [n // 2] for n in (h, w)]
        added = torch.zeros_like(up.x)
        added[:, :, torch.tensor(middles[0])[:, None], torch.tensor(middles[1])] = 1
        added *= up.x.std((2, 3), keepdim=True)
        change = (up.call(up.x + added, up.guide) - up.call(up.x, up.guide)).abs().mean((0, 1))
        change = torch.nn.functional.pad(
            change, (edge, edge + s * w - change.shape[1], edge, edge + s * h - change.shape[0])
        )
        around = [change[y * s : (y + cells) * s, x * s : (x + cells) * s] for y in middles[0] for x in middles[1]]
        found = torch.stack(around).mean(0) / added.amax((2, 3)).mean().clamp(1e-12)
        return np.concatenate([[1, up.px], (UNIT * found.double().cpu().numpy().ravel()).round()]).astype(np.int64)[
            :, None
        ]

    def score(self, counts: Ints) -> Floats:
        response, px = counts[..., 2:, 0], share(counts[..., 1, 0], counts[..., 0, 0])
        side = round(response.shape[-1] ** 0.5)
        far = (np.arange(side) - (side - 1) / 2) ** 2
        return (px * np.sqrt(share(response @ (far[:, None] + far).ravel(), response.sum(-1))))[..., None]

    def picture(self, counts: Ints) -> Floats | None:
        side = round((len(counts) - 2) ** 0.5)
        return counts[2:].reshape(side, side) / (UNIT * counts[0]) if counts[0] else None
