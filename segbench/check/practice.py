"""Checks of use: it trains, also under bf16, it exports, and what it costs."""

import importlib.util
import math
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from segbench.check.base import Broken, Builder, Note, builder, by_itself, forward, guide_for
from segbench.errors import brief
from segbench.measures.base import Trained
from segbench.measures.macs import SIZE, Macs
from segbench.measures.params import Params
from segbench.training.lockstep import parameter_groups
from segbench.training.prediction import call_decoder

STEPS = 20
LARGEST_CROP = 128  # of a training step here; what goes wrong with a crop goes wrong with a smaller one


def trains(build: Builder) -> str:
    """Twenty steps with the recipe's learning rate, on drawn features and labels: shapes, features and loss hold."""
    recipe, decoder = build.setting.recipe, build().train()
    groups = parameter_groups(decoder, recipe.weight_decay)
    if not groups:
        return "nothing to train"
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    size = tuple(min(side, LARGEST_CROP) for side in recipe.crop)
    losses = []
    for step in range(STEPS):
        features, image = build.inputs((size[0], size[1]), 2, seed=100 + step)
        labels = F.interpolate(torch.rand(2, 1, 4, 4), size=size)[:, 0].mul(build.setting.num_classes).long()
        logits = call_decoder(decoder, features, image)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise Broken(f"the loss is {losses[-1]} at step {step}, with lr {recipe.lr:g}")
    return f"{STEPS} steps of 2 x {size[0]}x{size[1]}, lr {recipe.lr:g}: loss {losses[0]:.2f} to {losses[-1]:.2f}"


def bf16(build: Builder) -> str:
    """A training step under bf16 autocast."""
    decoder = build().train()
    features, image = build.inputs((65, 97), 2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = decoder(features, image)
    logits.float().square().mean().backward()
    if not torch.isfinite(logits).all():
        raise Broken("logits are not finite")
    return str(logits.dtype).removeprefix("torch.")


def exportable(build: Builder) -> str:
    """`torch.export` takes it, and the exported program gives the same logits."""
    decoder = build().eval()
    features, image = build.inputs((64, 96))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(decoder, (features, image))
    gap = float((forward(program.module(), features, image) - forward(decoder, features, image)).abs().max())
    if gap > 1e-5:
        raise Broken(f"the exported program's logits differ by up to {gap:.3g}")
    return "torch.export"


def onnx(build: Builder) -> str:
    """Whether torch's converter to ONNX takes the upsampler, or else the decoder; nothing to fail, since ONNX has not
    every operator."""
    if importlib.util.find_spec("onnxscript") is None:
        return "not tried; it takes pip install 'segbench[onnx]'"
    for step in by_itself(build()):
        guide = guide_for(step, (8, 12))
        return converts(step.module.eval(), (torch.randn(2, step.channels, 8, 12), *([] if guide is None else [guide])))
    return converts(build().eval(), build.inputs((64, 96)))


def converts(module: nn.Module, inputs: tuple[Any, ...]) -> str:
    """That it converts to ONNX, or a `Note` on why it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(module, inputs, dynamo=True, verbose=False)
        except torch.onnx.errors.OnnxExporterError as error:
            return Note(f"torch.onnx does not take it: {brief(error.__cause__ or error)}")
    return "torch.onnx takes it"


def cost(build: Builder) -> str:
    """Parameters, MACs and time, beside those of bilinear on the same skeleton; nothing to fail."""
    setting = build.setting
    width = build.blueprint.params.get("width")
    own, other = build(), builder("bilinear", {"width": width} if width else {}, setting)()
    parameters, macs, ms = [], [], []
    for decoder in (own, other):
        run = Trained(decoder, setting.channels, setting.strides, 0.0, 0.0, 0)
        parameters.append(Params().measure(run))
        macs.append(Macs().measure(run))
        ms.append([math.inf, math.inf])
    features, image = build.inputs((256, 256), 2)
    for _ in range(4):  # in turns, the best of each
        for decoder, best in zip((own, other), ms, strict=True):
            start = time.perf_counter()
            logits = decoder.train()(features, image)
            forward_s = time.perf_counter() - start
            logits.sum().backward()
            best[0] = min(best[0], 1000 * forward_s)
            best[1] = min(best[1], 1000 * (time.perf_counter() - start - forward_s))
    times = sum(ms[0]) / sum(ms[1])
    return (
        f"{parameters[0]:,.0f} parameters, {Macs().text(macs[0])} MACs at {SIZE}x{SIZE}, {ms[0][0]:.0f} ms forward and "
        f"{ms[0][1]:.0f} ms backward for 2 x 256x256; {parameters[0] / parameters[1]:.1f}, {macs[0] / macs[1]:.1f} and "
        f"{times:.1f} times bilinear's"
    )
