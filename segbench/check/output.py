"""Checks of what comes out: its size, its place, its values, and what it is before training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from segbench.check.base import Broken, Builder, Note, by_itself, forward, guide_for
from segbench.decoders.base import Step, fake_inputs
from segbench.upsamplers.base import ceil_size, starts_as, upsample


def shapes(build: Builder) -> str:
    """Logits (B, K, H, W) at even and odd image sizes, for batches of 1 and 2, in training and in eval mode."""
    decoder, classes, pair = build(), build.setting.num_classes, False
    for batch, size in ((1, (64, 96)), (2, (65, 97)), (1, (33, 47)), (1, (127, 70))):
        for mode in (False, True):
            if mode and batch == 1 and min(size) <= max(build.setting.strides) + 1:
                continue  # one pixel at the coarsest level, over which batch normalisation cannot train
            try:
                logits = forward(decoder.train(mode), *build.inputs(size, batch))
            except ValueError as error:
                if not (mode and batch == 1 and "more than 1 value per channel" in str(error)):
                    raise
                pair = True
                continue
            wanted = (batch, classes, *size)
            if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
                found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise Broken(f"a {size[0]}x{size[1]} image gives {found}; wanted {wanted}")
    if pair:
        return Note("it cannot train on one image alone: a batch normalisation sees one value of it")
    return "64x96, 65x97, 33x47 and 127x70"


def strides(build: Builder) -> str:
    """Any increasing list of strides, a single one included; or those that it says it needs."""
    made = build()
    ends_at, needed = getattr(made, "output_stride", 1), getattr(made, "strides_needed", None)
    every = [needed] if needed else [(16,), (14,), (2, 4, 8), (4, 16), (8, 16, 32)]
    lists = [some for some in every if some[0] >= ends_at]
    for some in lists:
        channels = (24, 40, 112, 320, 320)[: len(some)]
        decoder = build(channels, some).eval()
        logits = forward(decoder, *fake_inputs(channels, some, (112, 224)))
        if tuple(logits.shape) != (1, build.setting.num_classes, 112, 224):
            raise Broken(f"strides {some}: a 112x224 image gives {tuple(logits.shape)}")
    return ", ".join(str(list(some)) for some in lists)


def ratios(build: Builder) -> str:
    """An upsampler brings maps of any size, with any channels, to the size that its ``ratios`` promise."""
    steps = by_itself(build())
    for step in steps:
        for size in ((6, 8), (7, 5), (1, 1)):
            for mode in (True, False):
                x, guide = torch.randn(2, step.channels, *size), guide_for(step, size)
                given = [x] if guide is None else [x, guide]
                before = [t.clone() for t in given]
                with torch.no_grad():
                    upsample(step.module.train(mode), step.scale, x, guide)
                if not all(t.equal(old) for t, old in zip(given, before, strict=True)):
                    raise Broken(f"{type(step.module).__name__} changes its input or its guide in place")
    return ", ".join(f"x{step.scale}" for step in steps) or "no upsampler to ask"


def finite(build: Builder) -> str:
    """No NaN or infinity, in training and in eval mode, for features of ordinary and of large size."""
    decoder = build()
    for mode in (True, False):
        for factor in (1.0, 100.0):
            features, image = build.inputs((64, 96), 2)
            logits = forward(decoder.train(mode), [f * factor for f in features], image)
            bad = int((~torch.isfinite(logits)).sum())
            if bad:
                raise Broken(f"{bad} logits are not finite for features of standard deviation {factor:g}")
    return "features of standard deviation 1 and 100"


def unbounded(build: Builder) -> str:
    """Logits, not probabilities: a softmax or sigmoid at the end trains badly under cross-entropy."""
    logits = forward(build().eval(), *build.inputs((64, 96), 2))
    low, high = float(logits.min()), float(logits.max())
    sums = logits.sum(1)
    if low >= 0 and high <= 1:
        of_one = "they sum to 1 over the classes: " if float((sums - 1).abs().max()) < 1e-3 else ""
        return Note(f"all are from {low:.2g} to {high:.2g}; {of_one}is there a softmax or sigmoid at the end?")
    return f"{low:.2g} to {high:.2g}"


def place(build: Builder) -> str:
    """What is in the middle stays there: the centroid of a smooth bump moves less than half an output pixel."""
    moved = []
    for step in [*build().upsampling(), *by_itself(build())]:
        size, middle = 33, 16
        axis = torch.arange(size, dtype=torch.float32) - middle
        bump = torch.exp(-(axis[:, None] ** 2 + axis**2) / 8).expand(2, step.channels, -1, -1).contiguous()
        guide = guide_for(step, (size, size))
        guide = None if guide is None else torch.zeros_like(guide)
        with torch.no_grad():
            nothing = upsample(step.module.eval(), step.scale, torch.zeros_like(bump), guide)
            energy = (upsample(step.module, step.scale, bump, guide) - nothing).double().square().sum((0, 1))
        if not float(energy.sum()):
            continue
        scale = float(step.scale)
        wanted = (middle + 0.5) * scale - 0.5
        at = [float((energy.sum(1 - d) * torch.arange(energy.shape[d])).sum() / energy.sum()) - wanted for d in (0, 1)]
        if max(map(abs, at)) > 0.5:
            moved.append(f"{type(step.module).__name__} (x{step.scale}) moves it by {at[0]:+.1f}, {at[1]:+.1f} pixels")
    return Note(f"{moved[0]} (rows, columns) of its output") if moved else "within half an output pixel"


def starts(build: Builder) -> str:
    """Each upsampler starts as it says that it does (``starts_as``), at each ratio; one with weights should say."""
    said, silent = [], []
    for step in [*build().upsampling(), *by_itself(build())]:
        claim = starts_as(step.module)
        if claim is None:
            silent += [type(step.module).__name__] if any(True for _ in step.module.parameters()) else []
            continue
        gap = _gap_at_the_start(step, claim)
        if not gap <= 1e-4:
            raise Broken(
                f"{type(step.module).__name__} (x{step.scale}, {step.channels} channels) says that it starts as "
                f"{claim}, and is up to {gap:.3g} of the largest value away from that"
            )
        said.append(claim)
    if silent:
        return Note(f"{silent[0]} does not say (starts_as), so that nobody knows what it is compared from")
    return ", ".join(dict.fromkeys(said)) or "no upsampler to ask"


def _gap_at_the_start(step: Step, claim: str) -> float:
    """The largest difference from what ``claim`` means, the border left out, relative to the largest value."""
    if claim == "random":
        return 0.0
    size = 24
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x = torch.randn(2, step.channels, size, size)
        guide = guide_for(step, (size, size))
        slopes = torch.randn(3, 2, step.channels, 1, 1)
    out, _ = ceil_size((size, size), step.scale)
    if claim == "linear":  # a + b x + c y, each channel with its own
        place = torch.arange(out) / float(step.scale) + 0.5 / float(step.scale) - 0.5
        a, b, c = slopes
        x = a + b * torch.arange(size) + c * torch.arange(size)[:, None]
        wanted = a + b * place + c * place[:, None]
    else:
        options = {"align_corners": False} if claim == "bilinear" else {}
        wanted = F.interpolate(x, scale_factor=float(step.scale), mode=claim, **options)
    with torch.no_grad():
        y = upsample(step.module, step.scale, x, guide)
    edge = out // 4
    inner = (..., slice(edge, wanted.shape[-2] - edge), slice(edge, wanted.shape[-1] - edge))
    return float((y[inner] - wanted[inner]).abs().max() / wanted[inner].abs().max())
