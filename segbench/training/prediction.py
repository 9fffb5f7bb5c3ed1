"""From an image to logits at its labels' size: padding, windows, and averages over flips and scales."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.config import EvaluationConfig
from segbench.encoders.base import Encoder
from segbench.tasks.base import Task
from segbench.tasks.segmentation import Segmentation
from segbench.training.clock import Watch
from segbench.training.counted import centre_crop, counted_labels, counted_size
from segbench.training.isolation import Desk, own_copies, turn
from segbench.upsamplers.base import crop

SEGMENTATION = Segmentation()
Keep = Callable[[str, Callable[[], list[Tensor]]], list[Tensor]]


def computed(name: str, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
    return compute()


class ChangedInPlace(RuntimeError):
    """A decoder changed what belongs to all: the encoder's features or the image."""


def versions(*shared: Tensor) -> list[int]:
    """How often each has been changed in place."""
    return [tensor._version for tensor in shared]


def call_decoder(decoder: nn.Module, features: Sequence[Tensor], image: Tensor) -> Tensor:
    """The logits (B, K, H, W) of a decoder, checked: their shape, and that features and image are as they were."""
    who, before = type(decoder).__name__, versions(*features, image)
    logits = decoder(list(features), image)
    names = [*(f"features[{i}]" for i in range(len(features))), "the image"]
    changed = [name for name, a, b in zip(names, before, versions(*features, image), strict=True) if a != b]
    if changed:
        raise ChangedInPlace(
            f"{who} changes {', '.join(changed)} in place, which all decoders share; is there an inplace=True or an "
            "operation such as add_?"
        )
    batch, _, height, width = image.shape
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or (*shape[:1], *shape[2:]) != (batch, height, width):
        raise ValueError(f"{who} returns {shape}; wanted logits of {(batch, 'K', height, width)}")
    return logits


@dataclass(frozen=True)
class Window:
    """A part of a view and its features, padded or resized as the encoder's strides ask for."""

    place: tuple[slice, slice]  # rows and columns
    image: Tensor  # (1, 3, h, w) normalised
    features: list[Tensor]
    resized: bool  # else padded

    @property
    def size(self) -> tuple[int, int]:
        rows, columns = self.place
        return rows.stop - rows.start, columns.stop - columns.start

    def copied(self, decoder: nn.Module) -> "Window":
        features, image = own_copies(decoder, self.features, self.image)
        return replace(self, image=image, features=features)

    def logits(self, decoder: nn.Module) -> Tensor:
        """(1, K, *size) of its part of the view."""
        found = call_decoder(decoder, self.features, self.image)
        return _resize(found, self.size) if self.resized else crop(found, self.size)


@dataclass
class Prediction:
    """What a decoder makes of an image."""

    scores: Any = 0.0  # (K, h, w) tensor at the size that is counted; None once it failed
    labels: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 0), np.uint8))  # that a task makes of it
    views: int = 1  # of which scores are the logits where it is 1, else the mean of their softmax
    window: Window | None = None  # the first of the last view, which all decoders share
    seconds: float = 0.0  # from features to labels
    encoder_s: float = 0.0  # of the encoder, which all decoders share
    error: BaseException | None = None  # that it raised


def predict_counted(
    encoder: Encoder,
    decoders: Mapping[str, nn.Module],
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    protocol: EvaluationConfig,
    name: str = "the image",
    desks: Mapping[str, Desk | None] = MappingProxyType({}),
    keep: Keep = computed,
    task: Task = SEGMENTATION,
) -> tuple[npt.NDArray[np.uint8], Iterator[tuple[str, Prediction]]]:
    """The labels (h, w) that an image is counted by, and what `predict` makes of it at their size.

    Training, `segbench export` and `segbench evaluate` all go this way.

    Args:
        labels: (H, W) uint8, at the image's size; all others as of `predict`.
    """
    return counted_labels(labels, protocol, name), predict(encoder, decoders, pixels, protocol, name, desks, keep, task)


@torch.no_grad()
def predict(
    encoder: Encoder,
    decoders: Mapping[str, nn.Module],
    pixels: npt.NDArray[np.uint8],
    protocol: EvaluationConfig,
    name: str = "the image",
    desks: Mapping[str, Desk | None] = MappingProxyType({}),
    keep: Keep = computed,
    task: Task = SEGMENTATION,
) -> Iterator[tuple[str, Prediction]]:
    """Predict an image with every decoder, which share the encoder's features: the one prediction there is.

    View by view (a size, mirrored or not): the windows of one are in memory at a time, and the
    sums over views of each decoder where there are several. Windows that overlap average their logits, which are
    brought to the size that is counted (`counted_size`). One view gives its logits; several give the mean of their
    softmax probabilities. What a decoder does in its `turn` ends its own prediction only, and changes nothing for the
    others.

    Args:
        encoder, decoders: in eval mode, on one device; any key -> decoder.
        pixels: (H, W, 3) uint8 RGB; errors call it ``name``.
        desks: of the decoders that have one.
        keep: gives a window's features, by a name for it and a function that computes them.
        task: for which the decoders were trained.

    Yields:
        Key and prediction of each decoder, in turn, once it is whole.

    Raises:
        UserError: the image is smaller than the crop that the protocol asks for.
    """
    pixels = centre_crop(pixels, protocol, name)
    device, size = encoder.mean.device, counted_size((pixels.shape[0], pixels.shape[1]), protocol)
    whole = encoder.normalise(task.seen(torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None]))
    whole = resized(whole, protocol.resize) if protocol.resize else whole
    height, width = whole.shape[-2:]
    views = [(scale, flipped) for scale in protocol.scales for flipped in ([False, True] if protocol.flip else [False])]
    made = {key: Prediction(views=len(views)) for key in decoders}
    encoded = Watch(device)
    watches = {key: Watch(device) for key in decoders}
    for number, (scale, flipped) in enumerate(views, 1):
        encoded.start()
        image = _resize(whole, (max(1, round(scale * height)), max(1, round(scale * width))))
        image = image.flip(-1) if flipped else image
        windows = encode(encoder, image, protocol, keep, f"{scale:g}{'-flipped' if flipped else ''}")
        encoded.stop()
        for key, decoder in decoders.items():
            mine = made[key]
            mine.window = windows[0]
            if mine.error is None:
                given = windows if len(decoders) == 1 else [window.copied(decoder) for window in windows]
                watches[key].start()
                with turn("predict", name, number, desk=desks.get(key)) as done:
                    logits = _of_view(decoder, given, (image.shape[-2], image.shape[-1]))
                    logits = _resize(logits.flip(-1) if flipped else logits, size)[0]
                    _add(mine, logits, task, name if number == len(views) else None)
                watches[key].stop()
                if done.error is not None:
                    mine.error, mine.scores = done.error, None
            if number == len(views):
                mine.seconds, mine.encoder_s = watches[key].seconds(), encoded.seconds()
                yield key, made.pop(key)


def _add(mine: Prediction, logits: Tensor, task: Task, name: str | None) -> None:
    """Add a view's logits (K, H, W); with ``name``, the image's, it is the last and the prediction is made whole."""
    if mine.views == 1:
        mine.scores = logits
    else:
        mine.scores += task.of_view(logits)  # in place, but for the first
    if name is not None:
        mine.scores = mine.scores / mine.views if mine.views > 1 else mine.scores
        # A sum is 20 times as fast as a look at each, and finite only where all are.
        if not torch.isfinite(mine.scores.sum()) and not torch.isfinite(mine.scores).all():
            raise FloatingPointError(f"scores of {name} are not finite")
        mine.labels = task.made(mine.scores)


def encode(
    encoder: Encoder, image: Tensor, protocol: EvaluationConfig, keep: Keep = computed, name: str = ""
) -> list[Window]:
    """The windows of a normalised image (1, 3, H, W), through the encoder; ``keep`` as in `predict`."""
    stride, windows, resized = max(encoder.strides), [], protocol.fit == "resize"
    for number, place in enumerate(window_places((image.shape[-2], image.shape[-1]), protocol)):
        part = image[..., *place]
        size = nearest_multiples((part.shape[-2], part.shape[-1]), stride)
        part = _resize(part, size) if resized else pad_to_stride(part, stride, protocol.padding)
        features = keep(f"{name}-{number}", functools.partial(encoder, part))
        windows.append(Window(place, part, features, resized))
    return windows


def nearest_multiples(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width as multiples of ``stride``, from 1 on."""
    height, width = (stride * max(1, math.floor(n / stride + 0.5)) for n in size)
    return height, width


def pad_to_stride(images: Tensor, stride: int, mode: str = "mean") -> Tensor:
    """(B, C, H, W) padded below and to the right to multiples of ``stride``, with the mean colour (0) or the edge."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride), "constant" if mode == "mean" else mode)


def window_places(size: tuple[int, int], protocol: EvaluationConfig) -> list[tuple[slice, slice]]:
    """(rows, columns) of each window; the last of a row or column is moved back to end with the image."""
    slides = protocol.window if protocol.mode == "slide" else None  # a crop's is cut out before
    along, steps = [], protocol.steps_px if slides else size
    for length, window, step in zip(size, slides or size, steps, strict=True):
        last = max(0, length - window)
        along.append([slice(start, min(start + window, length)) for start in (*range(0, last, step), last)])
    return [(rows, columns) for rows in along[0] for columns in along[1]]


def _of_view(decoder: nn.Module, windows: Sequence[Window], size: tuple[int, int]) -> Tensor:
    """(1, K, h, w) logits of one view."""
    if len(windows) == 1:
        return windows[0].logits(decoder)
    total, times = None, torch.zeros(size)
    for window in windows:
        logits = window.logits(decoder)
        total = logits.new_zeros(*logits.shape[:2], *size) if total is None else total
        total[..., *window.place] += logits
        times[window.place] += 1
    assert total is not None
    return total / times.to(total.device)


def resized(images: Tensor, side: int | Sequence[int]) -> Tensor:
    """(B, C, H, W) with its shorter side, or both, brought to so many pixels: bilinear, antialiased if that shrinks."""
    height, width = images.shape[-2:]
    if isinstance(side, int):
        factor = side / min(height, width)
        size = (side, max(1, round(factor * width))) if height <= width else (max(1, round(factor * height)), side)
    else:
        size = side[0], side[1]
    return _resize(images, size, antialias=size[0] < height or size[1] < width)


def _resize(images: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    same = tuple(images.shape[-2:]) == size
    return images if same else F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=antialias)
