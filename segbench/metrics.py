"""The measures as torchmetrics: ``update(preds, target)``, ``compute()``, sync across processes.

Each counts what the measure of that name in `segbench.measures` counts, and scores it as that does, in 0 to 1.
Definitions: docs/metrics.md.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from segbench.measures.base import VOID, CountMeasure, Sample, check_labels, iou, mean_over_classes
from segbench.measures.bf1 import BF1, contour_f1
from segbench.measures.biou import BIoU, band_width
from segbench.measures.miou import MIoU
from segbench.measures.trimap import Trimap

__all__ = [
    "BoundaryF1",
    "BoundaryIoU",
    "MeanIoU",
    "SegmentationMetrics",
    "TrimapIoU",
    "band_width",
    "boundary_f1",
    "boundary_iou",
    "contour_f1",
    "iou",
    "mean_iou",
    "mean_over_classes",
    "trimap_iou",
]

Array = Tensor | npt.NDArray[Any]


class _FromMeasure(Metric):
    """Sums a measure's integer counts over images and makes the score when it is asked for."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor
    score = staticmethod(iou)

    def __init__(self, num_classes: int, ignore_index: int | None, shape: tuple[int, ...], **kwargs: Any) -> None:
        """``shape``: of the counts, without the classes."""
        super().__init__(**kwargs)
        if not 2 <= num_classes <= 254:
            raise ValueError(f"num_classes should be from 2 to 254, not {num_classes}")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.add_state("counts", torch.zeros(*shape, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Array, target: Array) -> None:
        """Add a batch or an image, as tensors or NumPy arrays.

        Args:
            preds: (B, H, W) integer labels, or (B, K, H, W) floats, of which the argmax is taken; or without B.
            target: (B, H, W) integer labels, 0 to K-1 or ``ignore_index``; or without B.

        Raises:
            ValueError: shapes that do not fit, a label out of range, or logits that hold NaN.
        """
        for image in self.count_images(preds, target):
            self.counts += image

    def count_images(self, preds: Array, target: Array) -> list[Tensor]:
        """The counts of each image of a batch, (..., K) int64, without adding them up; arguments as in `update`."""
        samples = (
            preds if isinstance(preds, _Samples) else samples_of(preds, target, self.num_classes, self.ignore_index)
        )
        return [self._count(sample).to(self.counts.device) for sample in samples]

    def per_class(self) -> Tensor:
        """(..., K) scores in 0 to 1, float64, NaN for a class that never appears."""
        return torch.from_numpy(self._score())

    def compute(self) -> Tensor:
        """Mean over the classes that appear, in 0 to 1; NaN where none does."""
        return torch.from_numpy(np.asarray(mean_over_classes(self._score())))

    def _score(self) -> Any:
        return self.score(self.counts.cpu().numpy())

    def _count(self, sample: Sample) -> Tensor:
        counts = [torch.from_numpy(np.array(m.count(sample))) for m in self._measures(sample.size)]
        return torch.stack(counts).view(self.counts.shape)

    def _measures(self, size: tuple[int, int]) -> Sequence[CountMeasure]:
        """What is counted of an image of (height, width) pixels."""
        raise NotImplementedError


class MeanIoU(_FromMeasure):
    """Mean intersection over union of the whole data set, as PASCAL VOC and Cityscapes define it.

    Counts are summed over all images before the division; ``torchmetrics.segmentation.MeanIoU`` averages over images
    instead and knows no void.

    Args:
        num_classes: K, 2 to 254.
        ignore_index: the label of pixels that count nowhere, or None.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255, **kwargs: Any) -> None:
        super().__init__(num_classes, ignore_index, (3,), **kwargs)

    def _measures(self, size: tuple[int, int]) -> Sequence[CountMeasure]:
        return [MIoU()]


class BoundaryIoU(_FromMeasure):
    """Boundary IoU of the whole data set (Cheng et al. 2021, https://arxiv.org/abs/2103.16562).

    IoU of the pixels of a class within d pixels of another class or of the image's border,
    ``d = max(1, round(ratio * diagonal))`` for each image.

    Args:
        num_classes: K, 2 to 254.
        ratio: band width as a fraction of the image's diagonal; 0.02 in the paper, 0.005 for Cityscapes.
        ignore_index: the label of pixels that count nowhere and make no contour, or None.
    """

    def __init__(self, num_classes: int, ratio: float = 0.02, ignore_index: int | None = 255, **kwargs: Any) -> None:
        super().__init__(num_classes, ignore_index, (3,), **kwargs)
        self.measure = BIoU(ratio)

    def _measures(self, size: tuple[int, int]) -> Sequence[CountMeasure]:
        return [self.measure]


class BoundaryF1(_FromMeasure):
    """Boundary F1 of the whole data set: contour pixels that have one of their class within a tolerance.

    Precision is the share of predicted contour pixels near the truth's, recall the share of the truth's near the
    prediction's (Martin et al. 2004; per class Csurka et al. 2013), each from counts summed over all images.

    Args:
        num_classes: K, 2 to 254.
        tolerance_px: largest Euclidean distance in pixels; or
        ratio: the same as a fraction of the image's diagonal, ``max(1, round(ratio * diagonal))``. One of the two.
        ignore_index: the label of pixels that count nowhere and make no contour, or None.
    """

    score = staticmethod(contour_f1)

    def __init__(
        self,
        num_classes: int,
        tolerance_px: float | None = None,
        ratio: float | None = None,
        ignore_index: int | None = 255,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, ignore_index, (4,), **kwargs)
        if (tolerance_px is None) == (ratio is None):
            raise ValueError("give either tolerance_px or ratio")
        if (tolerance_px or ratio or 0) <= 0:
            raise ValueError("tolerance_px and ratio should be above 0")
        self.tolerance_px, self.ratio = tolerance_px, ratio

    def _measures(self, size: tuple[int, int]) -> Sequence[CountMeasure]:
        return [BF1(self.tolerance_px or band_width(self.ratio or 0, *size))]


class TrimapIoU(_FromMeasure):
    """IoU inside bands around the truth's contours, one score for each width (Kohli et al. 2009; Chen et al. 2017).

    Args:
        num_classes: K, 2 to 254.
        widths_px: band widths in pixels (Chebyshev), on either side of the contour.
        ignore_index: the label of pixels that count nowhere and make no contour, or None.
    """

    def __init__(
        self, num_classes: int, widths_px: Sequence[int], ignore_index: int | None = 255, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, ignore_index, (len(widths_px), 3), **kwargs)
        if not widths_px or min(widths_px) < 1:
            raise ValueError(f"widths_px should be a list of widths of at least 1, not {list(widths_px)}")
        self.measures = [Trimap(width) for width in widths_px]

    def _measures(self, size: tuple[int, int]) -> Sequence[CountMeasure]:
        return self.measures


class SegmentationMetrics(MetricCollection):
    """Metrics of this module side by side, which share what is worked out of each image, as its boundary bands.

    Args:
        metrics: as `torchmetrics.MetricCollection` takes them, with one ``num_classes`` and ``ignore_index`` for all.
        prefix, postfix: of their names in what `compute` returns.

    Raises:
        ValueError: metrics of other modules, or that differ in ``num_classes`` or ``ignore_index``.
    """

    num_classes: Any
    ignore_index: Any

    def __init__(
        self,
        metrics: Sequence[Metric | MetricCollection] | dict[str, Metric | MetricCollection],
        prefix: str | None = None,
        postfix: str | None = None,
    ) -> None:
        super().__init__(metrics, prefix=prefix, postfix=postfix, compute_groups=False)
        if strange := [type(m).__name__ for m in self.values() if not isinstance(m, _FromMeasure)]:
            raise ValueError(f"{strange[0]} is none of segbench.metrics; put it into a MetricCollection")
        first, *others = self.values()
        self.num_classes, self.ignore_index = first.num_classes, first.ignore_index
        for other in others:
            if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
                raise ValueError("metrics differ in num_classes or ignore_index")

    def update(self, preds: Array, target: Array) -> None:  # type: ignore[override]
        """Add a batch or an image to each; arguments and errors as those of the metrics."""
        super().update(samples_of(preds, target, self.num_classes, self.ignore_index), None)

    def forward(self, preds: Array, target: Array) -> dict[str, Any]:
        """As `update`; the scores of this batch alone."""
        return super().forward(samples_of(preds, target, self.num_classes, self.ignore_index), None)


class _Samples(list[Sample]):
    """The images of a batch, made ready once for all metrics."""


def samples_of(preds: Array, target: Array, num_classes: int, ignore_index: int | None) -> _Samples:
    """A batch, or an image, as samples; arguments and errors as `_FromMeasure.update`'s."""
    maps = prepare(torch.as_tensor(preds).cpu(), torch.as_tensor(target).cpu(), num_classes, ignore_index)
    return _Samples(Sample(check_labels(t.numpy(), num_classes), p.numpy()) for p, t in zip(*maps, strict=True))


def prepare(preds: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """A batch, or an image, as a batch of uint8 label maps, void 255.

    Raises:
        ValueError: shapes that do not fit, a label out of range, or logits that hold NaN.
    """
    if target.ndim == 2:
        preds, target = preds[None], target[None]
    if preds.is_floating_point():
        if preds.ndim != 4 or preds.shape[1] != num_classes:
            raise ValueError(f"logits should be (B, {num_classes}, H, W), not {tuple(preds.shape)}")
        if preds.isnan().any():
            raise ValueError("logits hold NaN, of which no class is the largest")
        preds = preds.argmax(1)
    if target.is_floating_point() or target.ndim != 3 or preds.shape != target.shape:
        raise ValueError(f"target should be (B, H, W) integers as preds, not {tuple(target.shape)} {target.dtype}")
    void = target == ignore_index if ignore_index is not None else torch.zeros_like(target, dtype=torch.bool)
    for name, values in (("target", target[~void]), ("preds", preds[~void])):
        if values.numel() and (int(values.min()) < 0 or int(values.max()) >= num_classes):
            bad = int(values.min()) if int(values.min()) < 0 else int(values.max())
            raise ValueError(f"{name} holds {bad}; allowed are 0 to {num_classes - 1}, and {ignore_index} for void")
    return torch.where(void, 0, preds).to(torch.uint8), torch.where(void, VOID, target).to(torch.uint8)


def _functional(metric: _FromMeasure, preds: Array, target: Array) -> Tensor:
    metric.to(torch.as_tensor(target).device).update(preds, target)
    return metric.compute()


def mean_iou(preds: Array, target: Array, num_classes: int, ignore_index: int | None = 255) -> Tensor:
    """`MeanIoU` of one batch."""
    return _functional(MeanIoU(num_classes, ignore_index), preds, target)


def boundary_iou(
    preds: Array, target: Array, num_classes: int, ratio: float = 0.02, ignore_index: int | None = 255
) -> Tensor:
    """`BoundaryIoU` of one batch."""
    return _functional(BoundaryIoU(num_classes, ratio, ignore_index), preds, target)


def boundary_f1(
    preds: Array, target: Array, num_classes: int, tolerance_px: float, ignore_index: int | None = 255
) -> Tensor:
    """`BoundaryF1` of one batch."""
    return _functional(BoundaryF1(num_classes, tolerance_px, None, ignore_index), preds, target)


def trimap_iou(
    preds: Array, target: Array, num_classes: int, widths_px: Sequence[int], ignore_index: int | None = 255
) -> Tensor:
    """`TrimapIoU` of one batch: one score for each width."""
    return _functional(TrimapIoU(num_classes, widths_px, ignore_index), preds, target)
