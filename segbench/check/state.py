"""Checks of what it depends on and what it changes: its weights, its seed, its past, its neighbours, its inputs."""

import torch
from torch import Tensor

from segbench.build import unregistered
from segbench.check.base import Broken, Builder, Note, forward
from segbench.decoders.base import Decoder
from segbench.upsamplers.base import starts_as


def registered(build: Builder) -> str:
    """Its layers, parameters and tensors are PyTorch's to know: trained, saved, moved to the GPU."""
    decoder = build()
    if lost := unregistered(decoder, tensors=True):
        raise Broken(f"{lost[0]}{f'; and {len(lost) - 1} more' if lost[1:] else ''}")
    return f"{len(decoder.state_dict())} tensors"


def gradients(build: Builder) -> str:
    """Every parameter gets a gradient that is finite and, at the latest after one step, not all zero."""
    decoder = build().train()
    features, image = build.inputs((64, 96), 2)
    parameters = {name: p for name, p in decoder.named_parameters() if p.requires_grad}
    for step in range(2):  # a residual branch that starts at zero hides what is in it from the first
        decoder.zero_grad(set_to_none=True)
        logits = decoder(features, image)
        logits.backward(torch.randn_like(logits))
        unused = [name for name, p in parameters.items() if p.grad is None]
        bad = [name for name, p in parameters.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
        zero = [name for name, p in parameters.items() if p.grad is not None and not p.grad.any()]
        if step == 0 and zero:
            torch.optim.SGD(parameters.values(), lr=1e-3).step()
            if not (unused or bad):
                continue
        for names, what in ((unused, "get no gradient"), (bad, "get one that is not finite"), (zero, "get zero only")):
            if names:
                more = " ..." if len(names) > 3 else ""
                raise Broken(f"{len(names)} parameters {what}: {', '.join(names[:3])}{more}")
        break
    return f"{len(parameters)} tensors"


def repeatable(build: Builder) -> str:
    """Two eval passes over one input are bit-equal."""
    decoder = build().eval()
    features, image = build.inputs((65, 97), 2)
    gap = (forward(decoder, features, image) - forward(decoder, features, image)).abs().max()
    if gap != 0:
        raise Broken(f"two eval passes differ by up to {float(gap):.3g}; is a dropout always on?")
    return "bit-equal"


def seeded(build: Builder) -> str:
    """One seed gives one set of initial weights and one training pass; another seed draws others."""
    outputs = []
    for _ in range(2):
        decoder = build(seed=5).train()
        torch.manual_seed(6)
        outputs.append(forward(decoder, *build.inputs((64, 96), 2)))
    gap = (outputs[0] - outputs[1]).abs().max()
    if gap != 0:
        raise Broken(f"two builds from one seed differ by up to {float(gap):.3g}; draw random numbers from torch alone")
    states = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        build.blueprint.make(build.setting.channels, build.setting.strides, build.setting.num_classes)
        states.append(torch.get_rng_state())
    if torch.equal(*states):
        raise Broken("its constructor seeds torch's generator, so that every seed starts alike; leave manual_seed out")
    one, other = (_drawn(build(seed=seed)) for seed in (5, 6))
    if one and all(torch.equal(one[name], other[name]) for name in one):
        return Note("bit-equal; it says that it starts as random, and starts the same for each seed")
    return "bit-equal; another seed draws other weights" if one else "bit-equal; starts the same for each seed"


def _drawn(decoder: Decoder) -> dict[str, Tensor]:
    """The weights of its own that should come from the seed: an upsampler's that starts at random, or a decoder's."""
    steps = list(decoder.upsampling())
    parts = [step.module for step in steps if starts_as(step.module) in (None, "random")]
    parts = parts if steps or decoder.skeleton() else [decoder]
    return {f"{i} {name}": p.detach() for i, part in enumerate(parts) for name, p in part.named_parameters()}


def saved(build: Builder) -> str:
    """Its weights are all of it: loaded into a build of another seed, they give the same logits."""
    decoder, other = build(seed=3).eval(), build(seed=4)
    other.load_state_dict(decoder.state_dict())
    inputs = build.inputs((64, 96), 2)
    gap = float((forward(decoder, *inputs) - forward(other.eval(), *inputs)).abs().max())
    if gap:
        raise Broken(
            f"with its weights another build's logits differ by up to {gap:.3g}: they depend on what no state dict "
            "holds, such as a layer in a plain list or a tensor that is no buffer"
        )
    return "bit-equal"


def forgetful(build: Builder) -> str:
    """One that has been used, in training and in eval mode, equals a fresh one that has its weights."""
    used = build(seed=3)
    for number, (mode, size) in enumerate(((True, (64, 96)), (False, (65, 97)), (True, (96, 64)), (False, (64, 96)))):
        forward(used.train(mode), *build.inputs(size, 2, seed=10 + number))
    fresh = build(seed=3)
    fresh.load_state_dict(used.state_dict())
    inputs = build.inputs((64, 96), 2, seed=20)
    gap = float((forward(used.eval(), *inputs) - forward(fresh.eval(), *inputs)).abs().max())
    if gap:
        raise Broken(
            f"after other images its logits differ by up to {gap:.3g} from those of a fresh one with its weights; does "
            "it keep something of an image?"
        )
    return "bit-equal"


def leaves_inputs_alone(build: Builder) -> str:
    """Features and image are shared with other decoders, so that nothing may be done to them in place."""
    features, image = build.inputs((64, 96), 2)
    given = [t.clone() for t in (*features, image)]
    for mode in (True, False):
        forward(build().train(mode), features, image)
    names = [*(f"features[{i}]" for i in range(len(features))), "image"]
    changed = [n for n, t, old in zip(names, (*features, image), given, strict=True) if t._version or not t.equal(old)]
    if changed:
        raise Broken(f"{', '.join(changed)} changed in place; is there an inplace=True?")
    return "unchanged"


def batch_independent(build: Builder) -> str:
    """In eval mode an image's logits do not depend on its neighbours in the batch."""
    decoder = build().eval()
    features, image = build.inputs((64, 96), 3)
    together = forward(decoder, features, image)
    alone = torch.cat([forward(decoder, [f[i : i + 1] for f in features], image[i : i + 1]) for i in range(3)])
    gap = float((together - alone).abs().max() / together.abs().max().clamp(min=1e-9))
    if gap > 1e-4:
        raise Broken(
            f"logits change by {gap:.1%} of their largest with the batch; does a layer normalise over it in eval mode?"
        )
    return f"up to {gap:.0e} of the largest logit"
