"""Features and an image as a decoder gets them, for looking at what it does."""

import torch
from torch import Tensor


def fake_inputs(
    channels: tuple[int, ...], strides: tuple[int, ...], size: tuple[int, int], batch: int = 1, device: str = "cpu"
) -> tuple[list[Tensor], Tensor]:
    """Random features and image of the shapes and the memory order that a decoder is called with.

    ``size`` is the image's.
    """
    height, width = size
    order = torch.channels_last if device == "cpu" else torch.contiguous_format  # see `Encoder.normalise`
    features = [
        torch.randn(batch, c, -(-height // s), -(-width // s), device=device).contiguous(memory_format=order)
        for c, s in zip(channels, strides, strict=True)
    ]
    return features, torch.randn(batch, 3, height, width, device=device).contiguous(memory_format=order)
