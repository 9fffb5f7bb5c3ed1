"""What a measure is, and what it is given to count or measure. Imports nothing else of segbench, and torch to count.

A measure is a column of the table: a subclass of `CountMeasure` or `RunMeasure`, one file in this folder or one of a
user's, named under ``measures:`` in a sweep. Its parameters are the arguments of its constructor, which keeps each as
an attribute of that name, as a dataclass does. What is said here is all that table, page and files know of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from segbench.measures._model import Model

VOID = 255  # the label of pixels that are never counted and make no contour

Labels = npt.NDArray[np.uint8]  # (H, W)
Mask = npt.NDArray[np.bool_]  # (H, W)
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
T = TypeVar("T")
THICKNESS_PX = (1, 3, 5, 9, 17, 33)  # the least of each step of `LabelMap.thickness`


class DoesNotFit(ValueError):
    """What a measure raises where the data or its parameters do not fit: a class that is not there, labels resized."""


class TooSmall(DoesNotFit):
    """An image that a measure cannot look at for its size."""


class Measure:
    """A column.

    Attributes:
        name: as it is asked for and kept, such as ``biou@0.02``; this and the next three are set when it is loaded.
        kind: its name without parameters, such as ``biou``.
        plug_in: as a sweep names it, such as ``path/to/file.py:Class``.
        params: name -> value.
        task: with which alone it has a meaning; empty for any.
        short: its heading; by default its kind.
        long: its name in a sentence; by default as its heading.
        help: what it is, in a sentence.
        unit: of its values, such as ``%``, of which differences are points, or ``px``.
        digits: after the decimal point.
        prefix: values are printed in thousands (``k``), millions (``M``) or billions (``G``).
        higher_is_better: decides verdicts, ranks, what is bold and how rows are sorted.
        standard: the parameters with which every sweep has it; without any, those sweeps that name it.
        table_place: its place among the columns of the table; None where it is shown on request only.
    """

    name: str = ""
    kind: str = ""
    plug_in: str = ""
    params: Mapping[str, Any] = MappingProxyType({})
    task: str = ""
    short: str = ""
    long: str = ""
    help: str = ""
    unit: str = ""
    digits: int = 2
    prefix: Literal["", "k", "M", "G"] = ""
    higher_is_better: bool = True
    standard: ClassVar[Sequence[Mapping[str, Any]]] = ()
    table_place: int | None = 50

    def suffix(self, sizes: Ints) -> str:
        """What heading and name say of its parameters, for images of ``sizes``, (N, 2) height and width in pixels."""
        return f" ({', '.join(map(spelled, self.params.values()))})" if self.params else ""

    def text(self, value: float) -> str:
        """A value as people read it; ``-`` for NaN."""
        scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[self.prefix]
        return "-" if math.isnan(value) else f"{value / scale:.{self.digits}f} {self.prefix}".rstrip()

    def note(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """A sentence for below the table, of the ``result.json`` of its runs; empty for none."""
        return ""


def spelled(value: Any) -> str:
    """A parameter's value in a name: ``0.02``, ``3`` also for 3.0, ``a+b`` for several, else as Python writes it."""
    if isinstance(value, list | tuple):
        return "+".join(map(spelled, value))
    return f"{value:g}" if isinstance(value, int | float) else str(value)


class CountMeasure(Measure):
    """A score made of integer counts per image, so that it has intervals over images and seeds.

    Attributes:
        bounds: lowest and highest possible score, in its unit.
        per_class: False for a score that is not made of classes.
        verdict_place: its place among those by which the report gives its verdict and plots; None for none.
        curve: name of the axis and this measure's place on it, for measures of one kind that make a curve.
        axis: name and places of the axis on which the page plots its `profile`, a line for each decoder; a place that
            is infinite has all beyond the one before. Without places they are 1, 2, ..., as many as there are.
        drawn: what `profile` or `picture` shows, with its unit; empty for the score.
        plotted: whether the page plots its scores, of each class where it is made of classes.
    """

    unit = "%"
    task = "segmentation"
    bounds: tuple[float, float] = (0.0, 100.0)
    per_class: bool = True
    verdict_place: int | None = None
    curve: tuple[str, float] | None = None
    axis: tuple[str, Sequence[float]] | None = None
    drawn: str = ""
    plotted: bool = False

    def count(self, sample: "Sample") -> npt.NDArray[Any]:
        """Integer counts (C, K) of one image, which are added up over images; K is 1 where it is not made of classes.

        A measure without a ``count`` of its own is scored from `Sample.region`.
        """
        return sample.region

    def score(self, counts: Ints) -> Floats:
        """Counts (..., C, K), summed over images, to scores (..., K) in its unit; NaN for a class that has none."""
        raise NotImplementedError

    def profile(self, counts: Ints) -> Floats:
        """Counts (..., C, K) to what is drawn over the P places of `axis`, (..., P) in its unit; NaN for none."""
        raise NotImplementedError

    def picture(self, counts: Ints) -> Floats | None:
        """Counts (C, K) to a picture (h, w) of the decoder, which the page shows beside the others'; None for none."""
        return None


class RunMeasure(Measure):
    """A number measured once of a finished run; the table shows its mean over seeds.

    Attributes:
        plotted: whether scores are plotted against it.
    """

    higher_is_better = False
    plotted: bool = False

    def measure(self, run: "Trained") -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Trained:
    """A run that has been trained and evaluated.

    Attributes:
        decoder: a `torch.nn.Module`, in eval mode, on its device.
        channels, strides: of the features that it takes, fine to coarse.
        train_s: seconds in its own forward, backward and optimizer.
        eval_ms: milliseconds per evaluated image, from features to labels.
        peak_memory_bytes: largest resident size of the process that trained its cohort, loader workers included.
        history: a row for each time that something was noted of it: ``step``, and ``loss`` and ``lr``, or ``val_NAME``,
            the score over the evaluation split; the last evaluation included.
    """

    decoder: Any
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    train_s: float
    eval_ms: float
    peak_memory_bytes: int
    history: Sequence[Mapping[str, float]] = ()


class LabelMap:
    """The classes of an image's pixels. What is asked of it is worked out once.

    Args:
        labels: (H, W) uint8, classes 0 to K-1 and 255 for void.
        num_classes: K, at most 254.
    """

    def __init__(self, labels: Labels, num_classes: int) -> None:
        self.labels, self.num_classes = labels, num_classes
        self._extrema: dict[int, tuple[Any, Any]] = {0: (labels, labels + np.uint8(1))}  # void, 255, wraps round to 0
        self._bands: dict[tuple[int, bool], Mask] = {}
        self._places: dict[tuple[int, bool], tuple[npt.NDArray[np.intp], Labels, Ints]] = {}
        self._made: dict[object, Any] = {}

    @cached_property
    def inside(self) -> Mask:
        """Where it is not void."""
        return self.labels != VOID

    def band(self, width_px: int, border: bool = False) -> Mask:
        """The pixels within ``width_px`` (Chebyshev) of a pixel of another class; False on void.

        A pixel is so near exactly when the map is not constant in the window around it, void left out; so two sliding
        extrema do for all classes at once, and each window is the next smaller one, widened.

        Args:
            width_px: at least 1.
            border: what lies outside of the image counts as another class. The band is then the union over classes of
                the inner bands of Boundary IoU (Cheng et al. 2021, https://arxiv.org/abs/2103.16562).
        """
        if (width_px, border) not in self._bands:
            if border:
                band, d = self.band(width_px).copy(), width_px
                for edge in (np.s_[:d], np.s_[-d:], np.s_[:, :d], np.s_[:, -d:]):
                    band[edge] = self.inside[edge]
            else:
                lowest, highest = self._window(width_px)
                band = (highest - lowest != 1) & self.inside  # 1 also where all is void, by wrapping round
            self._bands[width_px, border] = band
        return self._bands[width_px, border]

    def _window(self, width_px: int) -> tuple[Any, Any]:
        """(H, W) lowest class, and highest class plus 1, of the (2 width + 1)² window."""
        if width_px not in self._extrema:
            near = max(width for width in self._extrema if width < width_px)
            lowest, highest = self._extrema[near]
            kernel = np.ones((2 * (width_px - near) + 1, 1), np.uint8)
            # OpenCV's default border is the lowest value for a maximum and the highest for a minimum, as void must be.
            self._extrema[width_px] = (
                cv2.erode(cv2.erode(lowest, kernel), kernel.T),
                cv2.dilate(cv2.dilate(highest, kernel), kernel.T),
            )
        return self._extrema[width_px]

    def in_band(self, width_px: int, border: bool = False) -> tuple[npt.NDArray[np.intp], Labels, Ints]:
        """Places in the flattened map of the pixels of `band`, their classes, and (K,) how many each class has."""
        if (width_px, border) not in self._places:
            places = np.flatnonzero(self.band(width_px, border))
            classes = self.labels.ravel()[places]
            self._places[width_px, border] = places, classes, self.pixels(classes)
        return self._places[width_px, border]

    def pixels(self, classes: Labels, where: Mask | None = None) -> Ints:
        """(K,) how often each class stands in an array, or in its part ``where``; void is left out."""
        return _histogram(classes if where is None else only(classes, where), 256)[: self.num_classes]

    def once(self, name: object, make: Callable[[], T]) -> T:
        """What ``make`` gives, made when that name is first asked for: a truth is shared by all decoders."""
        if name not in self._made:
            self._made[name] = make()
        found: T = self._made[name]
        return found

    @cached_property
    def thickness(self) -> npt.NDArray[np.uint8]:
        """(H, W) how thick the region of each pixel is there: the last place in `THICKNESS_PX` that it reaches.

        A pixel's region is t px thick where some square of t x t pixels holds it and no other class (void left out,
        and cut off at the image's border): the thickness by a chessboard distance transform. Void is 0.
        """
        found = np.zeros(self.labels.shape, np.uint8)
        for t in THICKNESS_PX[1:]:
            lowest, highest = self._window(t // 2)
            middles = (highest - lowest == 1).view(np.uint8)
            line = np.ones((t, 1), np.uint8)
            found += cv2.dilate(cv2.dilate(middles, line), line.T) & self.inside.view(np.uint8)
        return found

    @cached_property
    def rows(self) -> npt.NDArray[np.int32]:
        """(H, W) where each pixel's row starts in a flattened (K + 1, K + 1) confusion matrix, void being class K."""
        return np.minimum(self.labels, self.num_classes).astype(np.int32) * (self.num_classes + 1)


def only(labels: Labels, where: Mask) -> Labels:
    """``labels`` where that is true, void elsewhere; ``np.where`` takes 20 times as long and more."""
    return labels | (where.view(np.uint8) - np.uint8(1))


def _histogram(values: npt.NDArray[Any], length: int) -> Ints:
    """How often each of 0 to length - 1 stands in ``values``: NumPy's ``bincount``, in half its time."""
    import torch

    found: Ints = torch.bincount(torch.from_numpy(values.ravel()), minlength=length).numpy()
    return found


class Sample:
    """An image's truth and a prediction of it, which is void where the truth is.

    Args:
        truth: shared by every prediction that is counted against it.
        prediction: (H, W) uint8, classes 0 to K-1; what it holds under void does not matter.
        model: that made it; None where there are label maps alone.

    Raises:
        ValueError: another shape than the truth's, or a value that is no class where the truth is not void.
    """

    def __init__(self, truth: LabelMap, prediction: Labels, model: Model | None = None) -> None:
        if prediction.shape != truth.labels.shape or prediction.dtype != np.uint8:
            found = f"{prediction.shape} {prediction.dtype}"
            raise ValueError(f"prediction is {found}, truth {truth.labels.shape} uint8")
        wrong = (prediction >= truth.num_classes) & truth.inside
        if wrong.any():
            raise ValueError(f"prediction holds {prediction[wrong][0]}, not one of {truth.num_classes} classes")
        self.truth = truth
        self.prediction = LabelMap(only(prediction, truth.inside), truth.num_classes)
        self._model = model

    @property
    def model(self) -> Model:
        """What made the prediction; a ValueError where that is not known."""
        if self._model is None:
            raise ValueError("it asks for the model, and there are label maps alone")
        return self._model

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.truth.labels.shape
        return height, width

    @cached_property
    def confusion(self) -> Ints:
        """(K, K) numbers of pixels: truth by row, prediction by column, void left out."""
        k = self.truth.num_classes + 1  # void has a row and a column, which are left out in the end
        cells = self.truth.rows + np.minimum(self.prediction.labels, k - 1)
        return _histogram(cells, k * k).reshape(k, k)[:-1, :-1]

    @cached_property
    def right(self) -> Mask:
        """(H, W) where the prediction is right; void is right too, and counts nowhere."""
        return self.truth.labels == self.prediction.labels

    @cached_property
    def confidence(self) -> npt.NDArray[np.float32]:
        """(H, W) the probability of the predicted class."""
        found: npt.NDArray[np.float32] = self.model.probabilities.max(0)
        return found

    @cached_property
    def region(self) -> Ints:
        """(3, K) numbers of pixels: those of each class in both, in the prediction, and in the truth."""
        return np.stack([self.confusion.diagonal(), self.confusion.sum(0), self.confusion.sum(1)])


class ImageSample:
    """An image and what was brought back of it, both (H, W, 3) uint8; a ValueError where they are not."""

    def __init__(self, truth: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8]) -> None:
        if prediction.shape != truth.shape or prediction.dtype != np.uint8:
            raise ValueError(f"prediction is {prediction.shape} {prediction.dtype}, truth {truth.shape} uint8")
        self.truth, self.prediction = truth, prediction

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width, _ = self.truth.shape
        return height, width


def check_labels(labels: Labels, num_classes: int) -> LabelMap:
    """A truth as a `LabelMap`.

    Raises:
        ValueError: a label that is neither a class nor void, or a wrong shape or type.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"labels should be (H, W) uint8, not {labels.shape} {labels.dtype}")
    if not 1 <= num_classes <= 254:
        raise ValueError(f"num_classes should be from 1 to 254, not {num_classes}")
    wrong = _histogram(labels, 256)[num_classes:VOID].nonzero()[0]
    if len(wrong):
        raise ValueError(f"label {num_classes + wrong[0]} is neither one of {num_classes} classes nor void ({VOID})")
    return LabelMap(labels, num_classes)


def iou(counts: npt.NDArray[np.integer[Any]]) -> Floats:
    """Intersection over union per class.

    Args:
        counts: (..., 3, K): intersection, predicted, truth, summed over the images of the data set.

    Returns:
        (..., K) in 0 to 1; NaN for a class that is neither predicted nor there.
    """
    intersection, predicted, truth = np.moveaxis(np.asarray(counts, np.int64), -2, 0)
    union = predicted + truth - intersection
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
    """part / whole, NaN where ``whole`` is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def mean_over_classes(values: Floats) -> Floats:
    """Mean of (..., K) over the classes that have a score; NaN where none has."""
    present = ~np.isnan(values)
    number = present.sum(-1)
    return np.divide(
        np.where(present, values, 0.0).sum(-1), number, out=np.full(number.shape, np.nan), where=number > 0
    )
