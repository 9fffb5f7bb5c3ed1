"""Upsamplers against golden files: outputs and gradients of the published code, in float64.

``pytest tests/test_parity.py --golden FOLDER`` runs on any folder of such files, whatever sizes, options and guides
they hold, and prints of each file the error of the output and the worst error of a gradient. An error is the largest
absolute difference, relative to max(1, the largest absolute value of the reference).
"""

import functools
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from segbench.decoders.ifa import Ifa
from segbench.registry import UPSAMPLERS
from segbench.upsamplers import _operations
from tests.conftest import REAL_DATA

TOLERANCE = 1e-5

# Operator -> the upsampler that it is, and the parameters that make it so.
OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "a2u": ("a2u", {}),
    "alignseg_cab": ("alignseg_cab", {}),
    "anyup": ("anyup", {"released_view": True}),
    "anyup_paper": ("anyup", {}),
    "bicubic_catmull_rom": ("bicubic", {"a": -0.5, "outside": "renormalise"}),
    "carafe": ("carafe", {}),
    "dlu": ("dlu", {}),
    "dysample_lp": ("dysample", {}),
    "dysample_lp_plus": ("dysample", {}),
    "dysample_pl": ("dysample", {}),
    "dysample_pl_plus": ("dysample", {}),
    "eucb": ("eucb", {}),
    "fade": ("fade", {}),
    "fade_lite": ("fade", {"lite": True}),
    "fade_ungated": ("fade", {}),
    "fam": ("fam", {}),
    "fam_gated": ("fam", {"gated": True}),
    "featup_jbu": ("featup_jbu", {}),
    "featup_jbu_stack": ("featup_jbu_stack", {}),
    "freqfusion": ("freqfusion", {}),
    "freqfusion_resample": ("freqfusion", {}),
    "gai": ("gai", {}),
    "guided_filter": ("guided_filter", {}),
    "indexnet_hin": ("indexnet", {"style": "hin"}),
    "indexnet_m2o": ("indexnet", {"style": "m2o"}),
    "indexnet_o2o": ("indexnet", {"style": "o2o"}),
    "jafar": ("jafar", {}),
    "joint_bilateral": ("joint_bilateral", {}),
    "lanczos3": ("lanczos", {}),
    "lda_aqu": ("lda_aqu", {}),
    "local_attender": ("local_attender", {}),
    "lift": ("lift", {}),
    "liif": ("liif", {}),
    "loftup": ("loftup", {"batch_extrema": True}),
    "naf": ("naf", {}),
    "resfu": ("resfu", {}),
    "sapa_b": ("sapa", {"similarity": "bilinear"}),
    "sapa_d": ("sapa_d", {}),
    "sapa_i": ("sapa", {"similarity": "inherent"}),
}
NEVER = {"featup_ifa", "guided_filter_conv"}  # that are no upsampler of a decoder

# Options that say what an upsampler does anyway, and nothing else is published of it.
FIXED: dict[str, dict[str, Any]] = {
    "a2u": {"groups": 1}, "dlu": {"groups": 1}, "eucb": {"activation": "relu"},
    "sapa_i": {"norm_affine": False}, "sapa_d": {"norm": False, "per_output_offsets": True},
}  # fmt: skip
# Constants that the upsampler computes by itself.
CONSTANTS = {"rope_periods", "initial_offset", "base_offset", "hamming_lowpass", "hamming_highpass"}
# What is called to get the output, where that is not what a skeleton calls.
CALLED = {
    "alignseg_cab": "aligned", "guided_filter": "filter", "lift": "step",
}  # fmt: skip


def golden_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" not in metafunc.fixturenames:
        return
    folder = Path(metafunc.config.getoption("--golden") or REAL_DATA / "golden")
    files = golden_files(folder)
    missing = pytest.mark.skip(reason=f"no golden files in {folder}")
    cases = [pytest.param(f, id=f.stem) for f in files] or [pytest.param(None, id="none", marks=missing)]
    metafunc.parametrize("golden", cases)


def read(file: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Operator, options and tensors, in float64."""
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
        tensors = {name: opened.get_tensor(name).double() for name in opened.keys()}  # noqa: SIM118
    return about["operator"], json.loads(about["options"]), tensors


def build(operator: str, options: dict[str, Any], given: dict[str, Tensor], weights: dict[str, Tensor]) -> nn.Module:
    """The upsampler of a file, with its options and all of its weights, in eval mode."""
    name, params = OPERATORS[operator]
    options = {k: v for k, v in options.items() if k not in ("batchnorm", "out_channels", "output_size")}
    for key, value in FIXED.get(operator, {}).items():
        assert options.pop(key, value) == value, f"{operator} with another {key} than {value} is not built"
    guide = given.get("guide", given.get("image"))
    channels = {"channels": given["x"].shape[1], "guide_channels": 0 if guide is None else guide.shape[1]}
    for key, value in channels.items():
        assert options.pop(key, value) == value
    scale = 2 if guide is None else guide.shape[-1] // given["x"].shape[-1]
    scale = int(options.pop("scale", options.pop("stride", scale)))
    if "lfu_view" in options:
        assert options.pop("lfu_view") == ("released" if params else "paper")
    if operator == "liif":
        options["out_channels"] = weights[f"mlp{len(options['hidden'])}_bias"].numel()
    if operator == "gai":
        options["activation"] = "out_norm_weight" in weights
    module = UPSAMPLERS.load(name)(**channels, scale=scale, **{**params, **options}).double().eval()
    load(module, weights)
    return module


def load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """All of the weights of a file, and none left over."""
    state = module.state_dict()
    _without_what_does_not_act(weights)
    stored = {key: _stored(key) for key in state if not key.endswith("num_batches_tracked")}
    assert set(stored.values()) == weights.keys() - CONSTANTS
    module.load_state_dict(state | {key: weights[name].reshape(state[key].shape) for key, name in stored.items()})


def _without_what_does_not_act(weights: dict[str, Tensor]) -> None:
    """Attention's projections by the names of ours; those of values, which the output does not depend on, left out."""
    if (biases := weights.pop("attention_qkv_bias", None)) is None:
        return
    for name, bias in zip(("query", "key"), biases.chunk(3)[:2], strict=True):
        weights[f"attention_{name}_bias"] = bias
    if (every := weights.pop("attention_qkv_weight", None)) is not None:
        weights["attention_query_weight"], weights["attention_key_weight"] = every.chunk(3)[:2]


def _stored(key: str) -> str:
    """A parameter's name in a golden file: ``branches.0.norm.running_mean`` is ``branch0_norm_mean``."""
    return (
        re.sub(r"^branch(es)?\.(?=(\d?))", lambda m: "branch" if m[2] else "", key)
        .replace(".", "_")
        .replace("running_", "")
        .replace("_first_", "_in_")
    )


def error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).detach().abs().max() / max(1.0, float(wanted.abs().max())))


def build_ifa(options: dict[str, Any], given: dict[str, Tensor], weights: dict[str, Tensor]) -> Callable[..., Tensor]:
    layers = itertools.takewhile(lambda i: f"norm{i}_weight" in weights, itertools.count())
    hidden = tuple(weights[f"mlp{i}_bias"].numel() for i in layers)
    strides = range(1, len(given) + 1)
    decoder = Ifa(options["channels"], strides, options["classes"], hidden=hidden, position_dim=options["position_dim"])
    load(decoder.double().eval(), weights)
    return lambda *features: decoder.logits(list(features), tuple(options["output_size"]))


class PacJoint(nn.Module):
    """The joint upsampling net of the PAC paper: convolutions on both maps, and transposed PACs by 2."""

    def __init__(self, weights: dict[str, Tensor], k_ch: int, scale: int) -> None:
        super().__init__()
        self.weights, self.k_ch, self.steps = weights, k_ch, int(math.log2(scale))

    def conv(self, x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}_weight"], self.weights[f"{name}_bias"], padding=2)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        x, features = x.flatten(0, 1)[:, None], guide
        for i in (1, 2, 3):
            x, features = self.conv(x, f"x_conv{i}"), self.conv(features, f"guide_conv{i}")
            if i < 3:
                x, features = x.relu(), features.relu()
        for i in range(self.steps):
            size = [2 * n for n in x.shape[-2:]]
            near = F.interpolate(features[:, i * self.k_ch : (i + 1) * self.k_ch], size=size, mode="bilinear")
            near = near.repeat_interleave(channels, 0)
            weight, bias = self.weights[f"up{i}_weight"], self.weights[f"up{i}_bias"]
            x = _operations.pac_transposed(x, near, weight, bias, 2, normalize=False).relu()
        y = self.conv(self.conv(x, "final_conv1").relu(), "final_conv2")
        return y.view(batch, channels, *y.shape[-2:])


def test_parity(golden: Path, record_property: Callable[[str, object], None]) -> None:
    operator, options, tensors = read(golden)
    if operator in NEVER:
        pytest.skip(f"{operator} is not built")
    results = {
        n: tensors.pop(n) for n in list(tensors) if n in ("output", "cotangent") or n.startswith(("grad_", "mid_"))
    }
    inputs = [n for n in ("x", "x0", "x1", "x2", "x3", "kernel", "guide_low", "guide", "image") if n in tensors]
    given = {name: tensors.pop(name).requires_grad_() for name in inputs}
    run: Callable[..., Any]
    errors: dict[str, float] = {}
    if operator == "carafe_op":
        run = functools.partial(_operations.reassemble, size=options["kernel_up"], scale=options["scale"])
    elif operator == "pac_transposed":
        run = lambda x, guide: _operations.pac_transposed(  # noqa: E731
            x, guide, tensors["weight"], tensors["bias"], options["scale"], normalize=options["normalize_kernel"]
        )
    elif operator == "ifa":
        run = build_ifa(options, given, tensors)
    elif operator == "pac_joint":
        run = PacJoint(tensors, options["k_ch"], options["scale"])
    else:
        module = build(operator, options, given, tensors)
        run = getattr(module, CALLED.get(operator, "resize" if "output_size" in options else "forward"))
        if "output_size" in options:
            run = functools.partial(run, size=tuple(options["output_size"]))
        if operator.startswith("freqfusion"):
            run = lambda x, guide: module.parts(x, guide)[2]  # noqa: E731
            _, sharpened, _ = module.parts(**given)
            errors["sharpened"] = error(sharpened, results["mid_guide_sharpened"])
        if operator.startswith("indexnet"):
            errors["index"] = error(module.index(given["guide"]), results["mid_decoder_index"])
    output = run(*given.values())
    errors["output"] = error(output, results["output"])
    gradients = {name: value for name, value in results.items() if name.startswith("grad_")}
    if gradients:
        (output * results["cotangent"]).sum().backward()
        for name, wanted in gradients.items():
            found = given[name.removeprefix("grad_")].grad
            errors[name] = error(torch.zeros_like(wanted) if found is None else found, wanted)
    worst = max((value for name, value in errors.items() if name.startswith("grad_")), default=None)
    line = f"{golden.name:<36} output {errors['output']:.1e}  "
    record_property("parity", line + ("no gradients" if worst is None else f"worst gradient {worst:.1e}"))
    assert max(errors.values()) <= TOLERANCE, errors
