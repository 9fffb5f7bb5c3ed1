"""What a decoder costs: parameters, and multiply-accumulates at a stated image size."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

COST_SIZE = (512, 512)  # (height, width) of the image, in pixels


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


def parameters(decoder: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in decoder.parameters() if p.requires_grad)


def macs(
    decoder: nn.Module, channels: tuple[int, ...], strides: tuple[int, ...], size: tuple[int, int] = COST_SIZE
) -> int:
    """Multiply-accumulates of one image through the decoder alone, half of what torch's flop counter counts.

    It counts convolutions, matrix products and attention, not interpolation, normalisation or activations.
    """
    features, image = fake_inputs(channels, strides, size)
    counter = FlopCounterMode(display=False)
    training = decoder.training
    with counter, torch.no_grad():
        decoder.eval()(features, image)
    decoder.train(training)
    return int(counter.get_total_flops()) // 2
