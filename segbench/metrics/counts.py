"""From label maps to integer counts: everything that a score is later made from.

Void is never counted and never makes a contour: the prediction is void where the truth is, and void pixels take no part
in the extrema of a window. All classes are counted in one pass: a pixel belongs to the band of its own class exactly
when the label map is not constant in the window around it, so two sliding extrema replace one erosion per class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

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
    lowest, highest = _extrema(labels, width_px)
    band = lowest != highest
    if border:
        d = width_px
        band[:d] = band[-d:] = True
        band[:, :d] = band[:, -d:] = True
    return band & (labels != VOID)


def _extrema(labels: Tensor, width_px: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest class in the (2 width_px + 1)² window around each pixel, void and what is outside left out."""
    if labels.device.type == "cpu":
        kernel = np.ones((2 * width_px + 1, 1), np.uint8)
        array = labels.numpy()
        # OpenCV's default border is the lowest value for a maximum and the highest for a minimum, as void must be.
        lowest = cv2.erode(cv2.erode(array, kernel), kernel.T)  # void is 255 already
        shifted = array + np.uint8(1)  # void wraps round to 0
        highest = cv2.dilate(cv2.dilate(shifted, kernel), kernel.T) - np.uint8(1)
        return torch.from_numpy(lowest), torch.from_numpy(highest)
    return _extrema_by_pooling(labels, width_px)


def _extrema_by_pooling(labels: Tensor, width_px: int) -> tuple[Tensor, Tensor]:
    """The same by max pooling, for a GPU: exact, since float16 holds every integer up to 2048."""
    values = labels.to(torch.float16 if labels.device.type == "cuda" else torch.float32)
    void = labels == VOID
    stacked = torch.stack([-values, torch.where(void, -1.0, values)])[None]  # (1, 2, H, W)
    size, d = 2 * width_px + 1, width_px
    pooled = F.max_pool2d(F.max_pool2d(stacked, (size, 1), 1, (d, 0)), (1, size), 1, (0, d))[0]
    lowest, highest = -pooled[0], pooled[1]
    return lowest.to(torch.uint8), torch.where(highest < 0, VOID, highest).to(torch.uint8)


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
        self.bands = [boundary_band(labels, d) for d in self.widths_px]
        self.band_sizes = [self._per_class(labels, band) for band in self.bands]
        self.tolerances_px = list(tolerances_px)
        self.contours = self._contours(labels) if self.tolerances_px else None
        # Number of trimap bands that hold a pixel; the wider hold the narrower.
        self.trimap_order = np.argsort(np.argsort([-w for w in trimap_widths_px], kind="stable"), kind="stable")
        level = torch.zeros_like(labels, dtype=torch.int32)
        for width_px in trimap_widths_px:
            level += boundary_band(labels, width_px, border=False)
        self.levels = len(trimap_widths_px) + 1
        # A pixel's place in the joint histogram of level, truth and prediction; void is class K there.
        self.base = (level * (num_classes + 1) + labels.clamp(max=num_classes)) * (num_classes + 1)

    def count(self, prediction: Tensor) -> Counts:
        """Counts of ``prediction``, (H, W) uint8 with classes 0 to K-1; what it holds under void does not matter.

        Raises:
            ValueError: another shape than the truth's, or a value that is no class where the truth is not void.
        """
        k = self.num_classes
        if prediction.shape != self.labels.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, truth {tuple(self.labels.shape)}")
        masked = torch.where(self.void, VOID, prediction)  # void exactly where the truth is
        joint = torch.bincount((self.base + masked.clamp(max=k)).flatten(), minlength=self.levels * (k + 1) ** 2)
        joint = joint.view(self.levels, k + 1, k + 1)
        if joint[:, :k, k].any():
            wrong = prediction[~self.void & (prediction >= k)]
            raise ValueError(f"prediction holds {int(wrong[0])}, not one of {k} classes")
        by_level = joint[:, :k, :k]
        confusion = by_level.sum(0)
        agree = masked == self.labels
        boundary = [
            torch.stack([self._per_class(masked, own & band & agree), self._per_class(masked, own), size])
            for band, size, d in zip(self.bands, self.band_sizes, self.widths_px, strict=True)
            for own in [boundary_band(masked, d)]
        ]
        # The widest band holds every level from 1 up, the next every level from 2 up, and so on.
        trimap = [_margins(by_level[1 + place :].sum(0)) for place in self.trimap_order]
        return Counts(
            confusion,
            _margins(confusion),
            _stack(boundary, (0, 3, k)),
            _stack(self._contour_counts(masked), (0, 4, k)),
            _stack(trimap, (0, 3, k)),
            torch.tensor(self.widths_px, dtype=torch.int64),
        )

    def _per_class(self, labels: Tensor, where: Tensor) -> Tensor:
        """Number of pixels of each class where the mask says."""
        return torch.bincount(torch.where(where, labels, VOID).flatten(), minlength=256)[: self.num_classes]

    def _contours(self, labels: Tensor) -> Tensor:
        """The contour as a label map, void elsewhere."""
        return torch.where(boundary_band(labels, 1, border=False), labels, VOID)

    def _contour_counts(self, masked: Tensor) -> list[Tensor]:
        if self.contours is None:
            return []
        truth, predicted = self.contours, self._contours(masked)
        rows = []
        for own, other in ((predicted, truth), (truth, predicted)):
            every = self._per_class(own, own != VOID)
            rows.append([(every - self._per_class(own, far), every) for far in _far(own, other, self.tolerances_px)])
        return [torch.stack([*p, *t]) for p, t in zip(*rows, strict=True)]


def _far(own: Tensor, other: Tensor, tolerances_px: Sequence[float]) -> list[Tensor]:
    """For each tolerance the (H, W) bool mask of contour pixels without one of their class in ``other`` that near.

    Offsets are tried by distance. While many pixels wait the whole map is compared, a byte a pixel; once few are left,
    only these.
    """
    height, width = own.shape
    reach = int(max(tolerances_px))
    padded = F.pad(other, (reach, reach, reach, reach), value=VOID)
    dy, dx = np.mgrid[: 2 * reach + 1, : 2 * reach + 1]
    squared = (dy - reach) ** 2 + (dx - reach) ** 2
    order = np.argsort(squared, axis=None, kind="stable")
    waiting = own != VOID
    left: Tensor | None = None  # indices of those that wait, once they are few
    far: dict[float, Tensor] = {}
    done = 0
    for tolerance in sorted(set(tolerances_px)):
        upto = int((squared <= tolerance**2).sum())
        for number, place in enumerate(order[done:upto], done):
            y, x = divmod(int(place), 2 * reach + 1)
            if left is None:
                waiting = waiting & (padded[y : y + height, x : x + width] != own)
            else:
                left = left[padded[left // width + y, left % width + x] != own.view(-1)[left]]
            if left is None and number % 8 == 7 and int(waiting.count_nonzero()) * 100 < waiting.numel():
                left = waiting.flatten().nonzero()[:, 0]
        done = max(done, upto)
        if left is not None:
            waiting = torch.zeros_like(waiting).view(-1).index_fill(0, left, True).view(height, width)
        far[tolerance] = waiting
    return [far[t] for t in tolerances_px]


def _margins(confusion: Tensor) -> Tensor:
    return torch.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)])


def _stack(parts: list[Tensor], empty: tuple[int, ...]) -> Tensor:
    return torch.stack(parts) if parts else torch.zeros(empty, dtype=torch.int64)
