"""From an image to logits at its own size: padding, windows, and averages over flips and scales."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.config import EvaluationConfig
from segbench.encoders.base import Encoder
from segbench.upsamplers.base import crop


class ChangedInPlace(RuntimeError):
    """A decoder changed what belongs to all: the encoder's features or the image."""


def call_decoder(decoder: nn.Module, features: Sequence[Tensor], image: Tensor) -> Tensor:
    """The logits (B, K, H, W) of a decoder, held to its contract.

    Args:
        features, image: as `segbench.decoders.base.Decoder.forward` takes them.

    Raises:
        ChangedInPlace: it changed one of them, which is then spoilt for other decoders.
        ValueError: it returns something else than (B, K, H, W).
    """
    shared = {**{f"features[{i}]": f for i, f in enumerate(features)}, "the image": image}
    versions = {name: tensor._version for name, tensor in shared.items()}
    logits = decoder(list(features), image)
    changed = [name for name, tensor in shared.items() if tensor._version != versions[name]]
    if changed:
        raise ChangedInPlace(
            f"{type(decoder).__name__} changes {', '.join(changed)} in place, which all decoders share; is there an "
            "inplace=True or an operation such as add_?"
        )
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    batch, _, height, width = image.shape
    if not isinstance(logits, Tensor) or logits.ndim != 4 or (*shape[:1], *shape[2:]) != (batch, height, width):
        raise ValueError(f"{type(decoder).__name__} returns {shape}; wanted logits of {(batch, 'K', height, width)}")
    return logits


@dataclass(frozen=True)
class Window:
    """A part of a view and its features, with the padding that the encoder's strides ask for."""

    rows: slice
    columns: slice
    image: Tensor  # (1, 3, h, w) normalised, padded
    features: list[Tensor]


@dataclass(frozen=True)
class View:
    """The image once, perhaps resized or mirrored: made once, shared by every decoder."""

    height: int
    width: int
    flipped: bool
    windows: list[Window]


def pad_to_stride(images: Tensor, stride: int, mode: str = "mean") -> Tensor:
    """(B, C, H, W) padded below and to the right to multiples of ``stride``.

    ``mode``: ``mean`` with zeros, the mean colour of a normalised image; ``replicate`` with the edge.
    """
    height, width = images.shape[-2:]
    by = (0, -width % stride, 0, -height % stride)
    return F.pad(images, by) if mode == "mean" else F.pad(images, by, mode)


def encode(encoder: Encoder, pixels: Tensor, protocol: EvaluationConfig) -> list[View]:
    """Every view of an image that ``protocol`` asks for, through the encoder.

    Args:
        pixels: (1, 3, H, W) uint8 RGB, on the encoder's device.
        protocol: its ``scales`` times H and W, rounded, are the sizes of the views, at least one pixel.
    """
    whole = encoder.normalise(pixels)
    views = []
    for scale in protocol.scales:
        height, width = (max(1, round(scale * n)) for n in whole.shape[-2:])
        scaled = _resize(whole, (height, width))
        for flipped in (False, True) if protocol.flip else (False,):
            image = scaled.flip(-1) if flipped else scaled
            windows = []
            for rows, columns in window_places((height, width), protocol):
                padded = pad_to_stride(image[..., rows, columns], max(encoder.strides), protocol.padding)
                windows.append(Window(rows, columns, padded, encoder(padded)))
            views.append(View(height, width, flipped, windows))
    return views


def window_places(size: tuple[int, int], protocol: EvaluationConfig) -> list[tuple[slice, slice]]:
    """(rows, columns) of each window; the last of a row or column is moved back to end with the image."""
    if protocol.window is None:
        return [(slice(0, size[0]), slice(0, size[1]))]
    along = []
    for length, window, step in zip(size, protocol.window, protocol.steps_px, strict=True):
        number = max(0, -(-(length - window) // step)) + 1
        starts = [max(0, min(i * step, length - window)) for i in range(number)]
        along.append([slice(start, min(start + window, length)) for start in starts])
    return [(rows, columns) for rows in along[0] for columns in along[1]]


def predict(decoder: nn.Module, views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """(K, H, W) scores at the labels' size ``(H, W)``, whose argmax is the prediction.

    Windows that overlap average their logits. One view gives its logits; several give the mean of their softmax
    probabilities, each brought to the labels' size as logits.

    Raises:
        ChangedInPlace, ValueError: the decoder breaks its contract, see `call_decoder`.
    """
    total: Tensor | None = None
    for view in views:
        logits = _of_view(decoder, view)
        logits = _resize(logits.flip(-1) if view.flipped else logits, size)
        if len(views) == 1:
            return logits[0]
        probabilities = logits.softmax(1)
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total[0] / len(views)


def _of_view(decoder: nn.Module, view: View) -> Tensor:
    """(1, K, h, w) logits of one view."""
    total, times = None, torch.zeros(view.height, view.width)
    for window in view.windows:
        height, width = window.rows.stop - window.rows.start, window.columns.stop - window.columns.start
        logits = crop(call_decoder(decoder, window.features, window.image), (height, width))
        if len(view.windows) == 1:
            return logits
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], view.height, view.width)
        total[..., window.rows, window.columns] += logits
        times[window.rows, window.columns] += 1
    assert total is not None
    return total / times.to(total.device)


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    same = tuple(images.shape[-2:]) == tuple(size)
    return images if same else F.interpolate(images, size, mode="bilinear", align_corners=False)
