"""Does an upsampler or decoder keep its contract? The same checks serve a plug-in and the tests of built-in ones."""

import time
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.build import look_up
from segbench.config import DecoderConfig
from segbench.decoders.base import Decoder, Step, fake_inputs
from segbench.errors import brief
from segbench.measures.base import Trained
from segbench.measures.macs import SIZE, Macs
from segbench.measures.params import Params
from segbench.upsamplers.base import Scale, ceil_size, is_guided, starts_as, takes, upsample

CHANNELS, STRIDES, NUM_CLASSES = (24, 40, 112, 320), (4, 8, 16, 32), 7  # tf_efficientnet_lite0's pyramid
SCALES: tuple[Scale, ...] = (2, 3, Fraction(7, 4))  # one of each kind of ratio
Build = Callable[..., Decoder]


class Broken(Exception):
    """A check that does not hold; the message says what was found and what was wanted."""


def builder(name: str, params: Mapping[str, Any], skeleton: str = "pyramid") -> Build:
    """``build(channels, strides, seed=0)`` for a decoder, or for an upsampler on ``skeleton``, by name.

    Raises:
        UserError: it cannot be loaded, declares what it has not, or a parameter does not fit.
    """
    blueprint = look_up(DecoderConfig(name=name, params=dict(params)), skeleton=skeleton)

    def build(channels: tuple[int, ...] = CHANNELS, strides: tuple[int, ...] = STRIDES, seed: int = 0) -> Decoder:
        return blueprint.build(channels, strides, NUM_CLASSES, seed)

    return build


def shapes(build: Build) -> str:
    """Logits (B, K, H, W) at even and odd image sizes, for batches of 1 and 2."""
    decoder = build().eval()
    for batch, size in ((1, (64, 96)), (2, (65, 97)), (1, (33, 47)), (1, (127, 70))):
        logits = _forward(decoder, *_inputs(size, batch))
        wanted = (batch, NUM_CLASSES, *size)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise Broken(f"a {size[0]}x{size[1]} image gives {found}; wanted {wanted}")
    return "64x96, 65x97, 33x47 and 127x70"


def strides(build: Build) -> str:
    """Any increasing list of strides, a single one included."""
    ends_at = getattr(build(), "output_stride", 1)
    lists = [some for some in ((16,), (14,), (2, 4, 8), (4, 16), (8, 16, 32)) if some[0] >= ends_at]
    for some in lists:
        channels = CHANNELS[: len(some)]
        decoder = build(channels, some).eval()
        logits = _forward(decoder, *fake_inputs(channels, some, (112, 224)))
        if tuple(logits.shape) != (1, NUM_CLASSES, 112, 224):
            raise Broken(f"strides {some}: a 112x224 image gives {tuple(logits.shape)}")
    return ", ".join(str(list(some)) for some in lists)


def finite(build: Build) -> str:
    """No NaN or infinity, in training and in eval mode, for features of ordinary and of large size."""
    decoder = build()
    for mode in (True, False):
        for factor in (1.0, 100.0):
            features, image = _inputs((64, 96), 2)
            logits = _forward(decoder.train(mode), [f * factor for f in features], image)
            bad = int((~torch.isfinite(logits)).sum())
            if bad:
                raise Broken(f"{bad} logits are not finite for features of standard deviation {factor:g}")
    return "features of standard deviation 1 and 100"


def gradients(build: Build) -> str:
    """Every parameter gets a gradient that is finite and not all zero."""
    decoder = build().train()
    features, image = _inputs((64, 96), 2)
    logits = decoder(features, image)
    logits.backward(torch.randn_like(logits))
    unused = [name for name, p in decoder.named_parameters() if p.requires_grad and p.grad is None]
    grads = {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    bad = [name for name, g in grads.items() if not torch.isfinite(g).all()]
    zero = [name for name, g in grads.items() if not g.any()]
    for names, what in (
        (unused, "get no gradient"),
        (bad, "get one that is not finite"),
        (zero, "get zero everywhere"),
    ):
        if names:
            raise Broken(f"{len(names)} parameters {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")
    return f"{len(grads)} tensors"


def starts(build: Build) -> str:
    """Each upsampler starts as it says that it does (``starts_as``), at each ratio; one with weights should say."""
    said, silent = [], []
    for step in [*build().upsampling(), *_by_itself(build())]:
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
        return f"{silent[0]} does not say (starts_as), so that nobody knows what it is compared from"
    return ", ".join(dict.fromkeys(said)) or "no upsampler to ask"


def ratios(build: Build) -> str:
    """An upsampler brings maps of any size, with any channels, to the size that its ``ratios`` promise."""
    steps = _by_itself(build())
    for step in steps:
        for size in ((6, 8), (7, 5), (1, 1)):
            x = torch.randn(2, step.channels, *size)
            with torch.no_grad():
                upsample(step.module, step.scale, x, _guide(step, size))
    return ", ".join(f"x{step.scale}" for step in steps) or "no upsampler to ask"


def _by_itself(decoder: Decoder) -> list[Step]:
    """The upsampler that a skeleton was given, made once for a scale of each kind that it takes."""
    upsampler = getattr(decoder, "upsampler", None)
    if upsampler is None:
        return []
    made = [
        (scale, upsampler(channels=5, scale=scale, guide_channels=3)) for scale in SCALES if takes(upsampler, scale)
    ]
    return [Step(module, 5, scale, 3 if is_guided(upsampler) else 0) for scale, module in made]


def _guide(step: Step, size: tuple[int, int]) -> Tensor | None:
    return torch.randn(2, step.guide_channels, *ceil_size(size, step.scale)) if step.guide_channels else None


def _gap_at_the_start(step: Step, claim: str) -> float:
    """The largest difference from what ``claim`` means, the border left out, relative to the largest value."""
    if claim == "random":
        return 0.0
    size = 24
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x = torch.randn(2, step.channels, size, size)
        guide = _guide(step, (size, size))
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


def repeatable(build: Build) -> str:
    """Two eval passes over one input are bit-equal."""
    decoder = build().eval()
    features, image = _inputs((65, 97), 2)
    gap = (_forward(decoder, features, image) - _forward(decoder, features, image)).abs().max()
    if gap != 0:
        raise Broken(f"two eval passes differ by up to {float(gap):.3g}; is a dropout always on?")
    return "bit-equal"


def seeded(build: Build) -> str:
    """One seed gives one set of initial weights and one training pass."""
    outputs = []
    for _ in range(2):
        decoder = build(seed=5).train()
        torch.manual_seed(6)
        outputs.append(_forward(decoder, *_inputs((64, 96), 2)))
    gap = (outputs[0] - outputs[1]).abs().max()
    if gap != 0:
        raise Broken(f"two builds from one seed differ by up to {float(gap):.3g}; draw random numbers from torch alone")
    return "bit-equal"


def leaves_inputs_alone(build: Build) -> str:
    """Features and image are shared with other decoders, so that nothing may be done to them in place."""
    features, image = _inputs((64, 96), 2)
    for mode in (True, False):
        _forward(build().train(mode), list(features), image)
    changed = [f"features[{i}]" for i, f in enumerate(features) if f._version] + (["image"] if image._version else [])
    if changed:
        raise Broken(f"{', '.join(changed)} changed in place; is there an inplace=True?")
    return "unchanged"


def batch_independent(build: Build) -> str:
    """In eval mode an image's logits do not depend on its neighbours in the batch."""
    decoder = build().eval()
    features, image = _inputs((64, 96), 3)
    together = _forward(decoder, features, image)
    alone = torch.cat([_forward(decoder, [f[i : i + 1] for f in features], image[i : i + 1]) for i in range(3)])
    gap = float((together - alone).abs().max() / together.abs().max().clamp(min=1e-9))
    if gap > 1e-4:
        raise Broken(
            f"logits change by {gap:.1%} of their largest with the batch; does a layer normalise over it in eval mode?"
        )
    return f"up to {gap:.0e} of the largest logit"


def bf16(build: Build) -> str:
    """A training step under bf16 autocast."""
    decoder = build().train()
    features, image = _inputs((65, 97), 2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = decoder(features, image)
    logits.float().square().mean().backward()
    if not torch.isfinite(logits).all():
        raise Broken("logits are not finite")
    return str(logits.dtype).removeprefix("torch.")


def exportable(build: Build) -> str:
    """`torch.export` takes it, and the exported program gives the same logits."""
    decoder = build().eval()
    features, image = _inputs((64, 96))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(decoder, (features, image))
    gap = float((_forward(program.module(), features, image) - _forward(decoder, features, image)).abs().max())
    if gap > 1e-5:
        raise Broken(f"the exported program's logits differ by up to {gap:.3g}")
    return "torch.export"


def cost(build: Build) -> str:
    """Parameters, MACs and time; nothing to fail."""
    decoder = build()
    run = Trained(decoder, CHANNELS, STRIDES, 0.0, 0.0, 0)
    parameters, macs = Params(), Macs()
    features, image = _inputs((256, 256), 2)
    times = {}
    for _ in range(3):
        start = time.perf_counter()
        logits = decoder.train()(features, image)
        forward = time.perf_counter()
        logits.sum().backward()
        end = time.perf_counter()
        times = {"forward": forward - start, "backward": end - forward}
    return (
        f"{parameters.measure(run):,.0f} parameters, {macs.text(macs.measure(run))} MACs at {SIZE}x{SIZE}, "
        f"{1000 * times['forward']:.0f} ms forward and {1000 * times['backward']:.0f} ms backward for 2 x 256x256"
    )


CHECKS: dict[str, Callable[[Build], str]] = {
    "logits of the right shape at odd sizes": shapes,
    "any list of strides": strides,
    "finite output": finite,
    "gradient to every parameter": gradients,
    "any ratio that it takes": ratios,
    "starts as it says": starts,
    "two eval passes equal": repeatable,
    "deterministic under a seed": seeded,
    "independent of the batch in eval mode": batch_independent,
    "features and image left as they are": leaves_inputs_alone,
    "bf16 autocast": bf16,
    "exports": exportable,
    "cost": cost,
}


def check_decoder(name: str, params: Mapping[str, Any], say: Callable[[str], None], skeleton: str = "pyramid") -> int:
    """Run every check on a decoder, or on an upsampler in ``skeleton``; say by lines what passed and what is wrong.

    Returns:
        0 where all passed, else 1.

    Raises:
        UserError: it cannot be loaded at all.
    """
    build = builder(name, params, skeleton)
    failed = 0
    for title, check in CHECKS.items():
        try:
            verdict, detail = "pass", check(build)
        except Broken as broken:
            verdict, detail = "FAIL", str(broken)
        except Exception as error:  # a plug-in can raise anything
            verdict, detail = "FAIL", brief(error)
        failed += verdict == "FAIL"
        say(f"{verdict}  {title}: {detail}")
    say(f"{name}: {'keeps the contract' if not failed else f'{failed} of {len(CHECKS)} checks failed'}")
    return 1 if failed else 0


def _inputs(size: tuple[int, int], batch: int = 1) -> tuple[list[Tensor], Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return fake_inputs(CHANNELS, STRIDES, size, batch)


def _forward(decoder: nn.Module, features: list[Tensor], image: Tensor) -> Any:
    with torch.no_grad():
        return decoder(features, image)
