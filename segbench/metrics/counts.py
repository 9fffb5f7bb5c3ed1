"""From label maps to integer counts: everything that a score is later made from.

Void is never counted and never makes a contour: the prediction is void where the truth is, and void pixels take no part
in the extrema of a window. All classes are counted in one pass: a pixel belongs to the band of its own class exactly
when the label map is not constant in the window around it, so two sliding extrema replace one erosion per class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

VOID = 255


def band_width(ratio: float, height: int, width: int) -> int:
    """Width in pixels of the boundary band: ``max(1, round(ratio * diagonal))``, halves rounded to even."""
    return max(1, round(ratio * float(np.hypot(height, width))))


def boundary_band(labels: Tensor, width_px: int, border: bool = True) -> Tensor:
    """The pixels within ``width_px`` (Chebyshev) of a pixel of another class.

    With ``border``, what lies outside the image counts as another class; the result is then the union over classes of
    the inner bands of Boundary IoU (Cheng et al. 2021, https://arxiv.org/abs/2103.16562), with void left out.

    Args:
        labels: (H, W) uint8, classes 0 to 253, 255 void.
        width_px: band width in pixels, at least 1.

    Returns:
        (H, W) bool, False on void.
    """
    band = _bands(labels, [width_px])[width_px]
    return _with_border(band, width_px, labels != VOID) if border else band


def _bands(labels: Tensor, widths_px: Sequence[int]) -> dict[int, Tensor]:
    """Width -> (H, W) bool: not void, and another class in the (2 width + 1)² window, void and what is outside aside.

    A window is the one before, widened, so that many widths cost little more than the widest.
    """
    wide = _by_erosion(labels, widths_px) if labels.device.type == "cpu" else _by_pooling(labels, widths_px)
    inside = labels != VOID
    return {width: uneven & inside for width, uneven in wide}


Wide = Iterator[tuple[int, Tensor]]  # width, where the window's lowest and highest class differ


def _by_erosion(labels: Tensor, widths_px: Sequence[int]) -> Wide:
    # OpenCV's default border is the lowest value for a maximum and the highest for a minimum, as void must be.
    lowest: Any = labels.numpy()  # void is 255 already
    highest: Any = lowest + np.uint8(1)  # void wraps round to 0
    done = 0
    for width in sorted(set(widths_px)):
        kernel = np.ones((2 * (width - done) + 1, 1), np.uint8)
        lowest = cv2.erode(cv2.erode(lowest, kernel), kernel.T)
        highest = cv2.dilate(cv2.dilate(highest, kernel), kernel.T)
        yield width, torch.from_numpy(highest - lowest != 1)  # 1 too, by wrapping round, where all is void
        done = width


def _by_pooling(labels: Tensor, widths_px: Sequence[int]) -> Wide:
    """For a GPU. Exact, since float16 holds every integer up to 2048."""
    values = labels.to(torch.float16 if labels.device.type == "cuda" else torch.float32)
    stacked = torch.stack([-values, torch.where(labels == VOID, -1.0, values)])[None]  # (1, 2, H, W)
    done = 0
    for width in sorted(set(widths_px)):
        d = width - done
        stacked = F.max_pool2d(F.max_pool2d(stacked, (2 * d + 1, 1), 1, (d, 0)), (1, 2 * d + 1), 1, (0, d))
        lowest, highest = -stacked[0, 0], stacked[0, 1]
        yield width, (lowest != highest) & (highest >= 0)
        done = width


def _with_border(band: Tensor, width_px: int, inside: Tensor) -> Tensor:
    """The band, and the pixels within ``width_px`` of the image's border where ``inside`` says, that is, not void."""
    band, d = band.clone(), width_px
    for edge in (np.s_[:d], np.s_[-d:], np.s_[:, :d], np.s_[:, -d:]):
        band[edge] = inside[edge]
    return band


@dataclass(frozen=True)
class Counts:
    """Pixel counts of one image, all int64. K classes, R ratios, T tolerances, W widths.

    Attributes:
        confusion: (K, K), truth by row, prediction by column, void left out.
        region: (3, K): intersection, predicted, truth.
        boundary: (R, 3, K): the same inside the boundary bands. Predicted counts the prediction's own band, truth the
            truth's, intersection the pixels that lie in both and agree.
        contour: (T, 4, K): predicted contour pixels that lie near enough to the truth's contour of that class, all
            predicted, the truth's that lie near enough to the prediction's, all of the truth's.
        trimap: (W, 3, K): as region, inside the band around the truth's contours.
        widths_px: (R,), the band widths of ``boundary``.
    """

    confusion: Tensor
    region: Tensor
    boundary: Tensor
    contour: Tensor
    trimap: Tensor
    widths_px: Tensor

    def cpu(self) -> "Counts":
        return Counts(**{f.name: getattr(self, f.name).cpu() for f in fields(self)})


class Truth:
    """The truth's side of one image's counts, made once and shared by every prediction that is counted against it.

    Args:
        labels: (H, W) uint8, classes 0 to K-1 and 255 for void; on the device on which the counts are to be made.
        num_classes: K, at most 254.
        boundary_ratios: band widths of Boundary IoU, as fractions of the image's diagonal.
        tolerances_px: of the boundary F1, Euclidean.
        trimap_widths_px: band widths of the trimap IoU, Chebyshev.

    Raises:
        ValueError: a label that is neither a class nor void, or a wrong shape or type.
    """

    def __init__(
        self,
        labels: Tensor,
        num_classes: int,
        boundary_ratios: Sequence[float] = (),
        tolerances_px: Sequence[float] = (),
        trimap_widths_px: Sequence[int] = (),
    ) -> None:
        if labels.ndim != 2 or labels.dtype != torch.uint8:
            raise ValueError(f"labels should be (H, W) uint8, not {tuple(labels.shape)} {labels.dtype}")
        if not 1 <= num_classes <= 254:
            raise ValueError(f"num_classes should be from 1 to 254, not {num_classes}")
        self.labels, self.num_classes = labels, num_classes
        self.void = labels == VOID
        seen = torch.bincount(labels.flatten(), minlength=256)
        wrong = seen[num_classes:VOID].nonzero()
        if len(wrong):
            raise ValueError(
                f"label {num_classes + int(wrong[0])} is neither one of {num_classes} classes nor void ({VOID})"
            )
        self.widths_px = [band_width(r, *labels.shape) for r in boundary_ratios]
        self.tolerances_px = list(tolerances_px)
        contour = [1] if self.tolerances_px else []
        bands = _bands(labels, [*self.widths_px, *contour, *trimap_widths_px])
        self.boundary_level, self.boundary_places = self._boundary(bands, ~self.void)
        by_class = [self._per_class(torch.where(self.boundary_level >= p, labels, VOID)) for p in self.boundary_places]
        self.band_sizes = by_class
        self.contour = torch.where(bands[1], labels, VOID) if contour else labels
        # Bands are nested: a pixel's level is the number of bands that hold it, and the place of a band in that order.
        self.trimap_places = _places(trimap_widths_px)
        level = _level([bands[width] for width in trimap_widths_px], labels)
        # A pixel's place in the joint histogram of level, truth and prediction; void is class K there.
        k = num_classes + 1
        self.base = (level.to(torch.int32) * k + labels.clamp(max=num_classes)) * k

    def _boundary(self, bands: dict[int, Tensor], inside: Tensor) -> tuple[Tensor, list[int]]:
        whole = [_with_border(bands[width], width, inside) for width in self.widths_px]
        return _level(whole, self.labels), _places(self.widths_px)

    def count(self, prediction: Tensor) -> Counts:
        """Counts of ``prediction``, (H, W) uint8 with classes 0 to K-1; what it holds under void does not matter.

        Raises:
            ValueError: another shape than the truth's, or a value that is no class where the truth is not void.
        """
        k = self.num_classes
        if prediction.shape != self.labels.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, truth {tuple(self.labels.shape)}")
        masked = torch.where(self.void, VOID, prediction)  # void exactly where the truth is
        levels = len(self.trimap_places) + 1
        joint = torch.bincount((self.base + masked.clamp(max=k)).flatten(), minlength=levels * (k + 1) ** 2)
        joint = joint.view(levels, k + 1, k + 1)
        if joint[:, :k, k].any():
            wrong = prediction[~self.void & (prediction >= k)]
            raise ValueError(f"prediction holds {int(wrong[0])}, not one of {k} classes")
        by_level = joint[:, :k, :k]
        confusion = by_level.sum(0)
        bands = _bands(masked, [*self.widths_px, *([1] if self.tolerances_px else [])])
        contour = torch.where(bands[1], masked, VOID) if self.tolerances_px else masked
        # The widest band holds every level from 1 up, the next every level from 2 up, and so on.
        trimap = [_margins(by_level[place:].sum(0)) for place in self.trimap_places]
        return Counts(
            confusion,
            _margins(confusion),
            _stack(self._boundary_counts(masked, bands), (0, 3, k)),
            _stack(self._contour_counts(contour), (0, 4, k)),
            _stack(trimap, (0, 3, k)),
            torch.tensor(self.widths_px, dtype=torch.int64),
        )

    def _boundary_counts(self, masked: Tensor, bands: dict[int, Tensor]) -> list[Tensor]:
        if not self.widths_px:
            return []
        own, _ = self._boundary(bands, ~self.void)
        shared = torch.minimum(own, self.boundary_level).mul_(
            masked == self.labels
        )  # levels that both are in, and agree
        n = len(self.widths_px) + 1
        code = (masked.clamp(max=self.num_classes).to(torch.int32) * n + own) * n + shared
        joint = torch.bincount(code.flatten(), minlength=(self.num_classes + 1) * n * n)
        joint = joint.view(-1, n, n)[: self.num_classes]
        return [
            torch.stack([joint[:, :, p:].sum((1, 2)), joint[:, p:].sum((1, 2)), size])
            for p, size in zip(self.boundary_places, self.band_sizes, strict=True)
        ]

    def _per_class(self, labels: Tensor) -> Tensor:
        """Number of pixels of each class."""
        return torch.bincount(labels.flatten(), minlength=256)[: self.num_classes]

    def _contour_counts(self, predicted: Tensor) -> list[Tensor]:
        if not self.tolerances_px:
            return []
        rows = []
        for own, other in ((predicted, self.contour), (self.contour, predicted)):
            every = self._per_class(own)
            rows.append([(every - far, every) for far in _far(own, other, self.tolerances_px, self.num_classes)])
        return [torch.stack([*p, *t]) for p, t in zip(*rows, strict=True)]


def _level(bands: Sequence[Tensor], like: Tensor) -> Tensor:
    """(H, W) uint8: how many of the bands hold a pixel."""
    level = torch.zeros_like(like)
    for band in bands:
        level += band
    return level


def _places(widths_px: Sequence[int]) -> list[int]:
    """For each width the lowest level that its band holds: 1 for the widest."""
    order = np.argsort(np.argsort([-w for w in widths_px], kind="stable"), kind="stable")
    return [int(place) + 1 for place in order]


def _far(own: Tensor, other: Tensor, tolerances_px: Sequence[float], num_classes: int) -> list[Tensor]:
    """For each tolerance the (K,) number of contour pixels without one of their class in ``other`` that near.

    Offsets are tried by distance, each on the whole map at a byte a pixel.
    """
    height, width = own.shape
    reach = int(max(tolerances_px))
    padded = F.pad(other, (reach, reach, reach, reach), value=VOID)
    dy, dx = np.mgrid[: 2 * reach + 1, : 2 * reach + 1]
    squared = (dy - reach) ** 2 + (dx - reach) ** 2
    order = np.argsort(squared, axis=None, kind="stable")
    waiting = own != VOID
    differs = torch.empty_like(waiting)
    far: dict[float, Tensor] = {}
    done = 0
    for tolerance in sorted(set(tolerances_px)):
        upto = int((squared <= tolerance**2).sum())
        for place in order[done:upto]:
            y, x = divmod(int(place), 2 * reach + 1)
            torch.ne(padded[y : y + height, x : x + width], own, out=differs)
            waiting &= differs
        done = max(done, upto)
        far[tolerance] = torch.bincount(own[waiting], minlength=num_classes)
    return [far[t] for t in tolerances_px]


def _margins(confusion: Tensor) -> Tensor:
    return torch.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)])


def _stack(parts: list[Tensor], empty: tuple[int, ...]) -> Tensor:
    return torch.stack(parts) if parts else torch.zeros(empty, dtype=torch.int64)
