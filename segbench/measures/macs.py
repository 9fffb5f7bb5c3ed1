"""Multiply-accumulates of the decoder on one image of 512x512 pixels."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segbench.measures.base import RunMeasure, Trained

SIZE = 512  # height and width of the image, in pixels


class Macs(RunMeasure):
    """Those of one image through the decoder alone, as `count_macs` counts them.

    Nothing is computed: torch's meta device knows shapes only. A decoder that needs values is run on random ones.
    """

    short = "MACs"
    long = "multiply-accumulates of the decoder"
    unit = "at 512×512"
    help = "Multiply-accumulates of the decoder on a 512×512 image"
    prefix = "G"
    standard = ({},)
    table_place = 61
    plotted = True

    def measure(self, run: Trained) -> float:
        try:
            return self._count(copy.deepcopy(run.decoder).to("meta"), run, "meta")
        except Exception:  # a plug-in that needs values, or a device, raises anything
            return self._count(copy.deepcopy(run.decoder).cpu(), run, "cpu")

    def _count(self, decoder: Any, run: Trained, device: str) -> float:
        import torch

        features = [
            torch.randn(1, c, -(-SIZE // s), -(-SIZE // s), device=device)
            for c, s in zip(run.channels, run.strides, strict=True)
        ]
        return float(count_macs(decoder.eval(), features, torch.randn(1, 3, SIZE, SIZE, device=device)))

    def note(self, rows: Sequence[Mapping[str, Any]]) -> str:
        return f"MACs: of the decoder alone on a {SIZE}x{SIZE} image."


def count_macs(module: Callable[..., Any], *given: Any) -> int:
    """Multiply-accumulates of one forward pass, of convolutions, matrix products, attention, interpolation and
    elementwise products.

    The first three as torch's flop counter has them, halved. Bilinear interpolation and sampling count 4 per value that
    comes out, bicubic 16, and the product of two tensors, elementwise, 1: so the weights of an upsampler that are made
    for each pixel are counted like those of a convolution. Sums, powers, normalisation and activations are not counted.

    Args:
        module: called with ``given``; on the meta device nothing is computed.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    aten = torch.ops.aten

    def each(macs: int) -> Callable[..., int]:
        return lambda *shapes, out_shape, **options: 2 * macs * math.prod(out_shape)

    def attention(query: Any, key: Any, value: Any, *more: Any, out_shape: Any, **options: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # torch leaves out the one that a CPU computes

    def product(one: Any, other: Any, *more: Any, out_shape: Any, **options: Any) -> int:
        return 2 * math.prod(out_shape) if _is_map(one) and _is_map(other) else 0

    per_value = {aten.upsample_bilinear2d: 4, aten.upsample_bicubic2d: 16, aten.grid_sampler_2d: 4}
    per_value |= {aten.cudnn_grid_sampler: 4, aten.addcmul: 1, aten.addcmul_: 1}
    formulas: dict[Any, Callable[..., int]] = {op: each(macs) for op, macs in per_value.items()}
    formulas |= {aten._scaled_dot_product_flash_attention_for_cpu: attention, aten.mul: product, aten.mul_: product}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, torch.no_grad():
        module(*given)
    return int(counter.get_total_flops() // 2)


def _is_map(shape: Any) -> bool:
    """Whether an operand is a tensor of more than one value; the flop counter gives shapes in place of tensors."""
    return isinstance(shape, Sequence) and math.prod(shape) > 1
