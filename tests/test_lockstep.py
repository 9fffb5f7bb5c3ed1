import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from segbench import store
from segbench.build import derived_seed, look_up
from segbench.config import DecoderConfig, RecipeConfig
from segbench.config_file import build_config
from segbench.encoders.base import Encoder, Level
from segbench.loading.pipeline import Batch
from segbench.registry import UPSAMPLERS
from segbench.sweep.plan import make_plan
from segbench.training.lockstep import Lockstep, Member, lr_factor, parameter_groups
from segbench.training.prediction import pad_to_stride
from tests.conftest import tiny
from tests.test_sweep import same, sweep


def test_schedules():
    cosine = RecipeConfig(steps=110, warmup_steps=10)
    assert [round(lr_factor(cosine, s), 4) for s in (0, 4, 9, 10, 60)] == [0.1, 0.5, 1.0, 1.0, 0.5]
    assert lr_factor(cosine, 109) == pytest.approx((1 + math.cos(math.pi * 99 / 100)) / 2)
    poly = RecipeConfig(steps=100, schedule="poly", power=0.9)
    assert lr_factor(poly, 50) == pytest.approx(0.5**0.9)
    assert lr_factor(RecipeConfig(steps=100, schedule="constant"), 99) == 1
    least = RecipeConfig(steps=100, lr=0.01, schedule="poly", power=1.0, min_lr=1e-3)
    assert [lr_factor(least, step) for step in (0, 50)] == pytest.approx([1, 0.55])
    again = RecipeConfig(steps=100, cosine_steps=20)  # falls, and rises again
    assert [lr_factor(again, step) for step in (0, 10, 20, 30, 40)] == pytest.approx([1, 0.5, 0, 0.5, 1])


def test_a_cosine_of_its_own_period_is_torchs():
    recipe = RecipeConfig(steps=50, lr=0.1, cosine_steps=7, min_lr=0.01)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=0.01)
    for step in range(50):
        assert 0.1 * lr_factor(recipe, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        theirs.step()


def test_schedules_are_torchs():
    """Cosine and poly equal torch's own schedulers step by step."""
    for recipe, make in (
        (RecipeConfig(steps=20, schedule="cosine"), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20)),
        (RecipeConfig(steps=20, schedule="poly"), lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 20, power=0.9)),
    ):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = make(optimizer)
        for step in range(20):
            assert lr_factor(recipe, step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
            optimizer.step()
            scheduler.step()


def test_derived_seeds_differ_and_repeat():
    seeds = {derived_seed(s, name, step) for s in (0, 1) for name in ("A", "B") for step in range(50)}
    assert len(seeds) == 200
    assert derived_seed(0, "A", 1) == derived_seed(0, "A", 1)
    assert all(0 <= s < 2**63 for s in seeds)


def test_padding():
    assert pad_to_stride(torch.ones(1, 3, 33, 64), 32).shape == (1, 3, 64, 64)
    assert pad_to_stride(torch.ones(1, 3, 33, 64), 32).sum() == 3 * 33 * 64


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, x):
        return [self.conv(x)]


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 1)

    def forward(self, features, image):
        return F.interpolate(self.conv(features[0]), size=image.shape[-2:])


def lockstep(recipe, trainable=False, names=("a",), **more):
    torch.manual_seed(0)
    encoder = Encoder(Body(), [Level(0, 4, 4)], ((0.5,) * 3, (0.5,) * 3), trainable)
    torch.manual_seed(1)
    return Lockstep(encoder, {n: Member(Head(), recipe) for n in names}, recipe, seed=0, **more)


def one_step(module, images, labels):
    module.manual_backward = lambda loss: loss.backward()
    module._trainer = type("T", (), {"should_stop": False})()
    module.on_train_start()
    module.training_step(module.on_before_batch_transfer(Batch(images, labels, [], [], []), 0), 0)
    return module.configure_optimizers()


IMAGES = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (2, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def by_hand(module, labels, weights=None):
    x = (IMAGES.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        logits = next(iter(module.members.values())).decoder(module.encoder(x), x)
    return F.cross_entropy(logits, labels.long(), weights, ignore_index=255)


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0]])
def test_loss_is_torchs_mean_cross_entropy_without_void(weights):
    labels = LABELS.clone()
    labels[0, :5] = 255
    module = lockstep(RecipeConfig(steps=10, class_weights=weights))
    wanted = by_hand(module, labels, torch.tensor(weights) if weights else None)
    one_step(module, IMAGES, labels)
    assert module.members["a"].history[0]["loss"] == pytest.approx(float(wanted), rel=1e-6)


def test_a_batch_of_void_alone_changes_nothing_and_is_no_failure():
    module = lockstep(RecipeConfig(steps=10, weight_decay=0))
    before = {k: v.clone() for k, v in module.decoders.state_dict().items()}
    one_step(module, IMAGES, torch.full_like(LABELS, 255))
    assert module.members["a"].failure is None
    assert all(torch.equal(v, before[k]) for k, v in module.decoders.state_dict().items())


def test_clipping_is_by_decoder():
    """A decoder with a huge gradient does not shrink its neighbour's step."""
    weights = {}
    for names in (("a",), ("a", "b")):
        module = lockstep(
            RecipeConfig(steps=10, clip_norm=0.01, optimizer="sgd", momentum=0, lr=1.0, weight_decay=0), names=names
        )
        with torch.no_grad():
            torch.manual_seed(2)
            module.members["a"].decoder.conv.weight.normal_()
        if "b" in module.members:
            module.members["b"].decoder.conv.weight.data.mul_(1000)
        before = module.members["a"].decoder.conv.weight.detach().clone()
        one_step(module, IMAGES, LABELS)
        weights[names] = module.members["a"].decoder.conv.weight.detach() - before
    assert torch.equal(weights["a",], weights["a", "b"])
    assert 0 < weights["a",].norm() <= 0.0101


def test_the_learning_rate_is_set():
    module = lockstep(RecipeConfig(steps=10, lr=0.3, warmup_steps=3))
    assert one_step(module, IMAGES, LABELS)[0].param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_trainable_encoder_is_never_shared():
    with pytest.raises(ValueError, match="cannot be shared"):
        lockstep(RecipeConfig(steps=1), trainable=True, names=("a", "b"))


def test_a_trainable_encoder_learns_with_its_own_rate():
    module = lockstep(RecipeConfig(steps=10, lr=0.1), trainable=True, encoder_factor=0.5)
    before = module.encoder.body.conv.weight.detach().clone()
    optimizer = one_step(module, IMAGES, LABELS)[0]
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.1, 0.05, 0.05]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [
        0.01,
        0.0,
        0.01,
        0.0,
    ]  # weights, biases
    assert not torch.equal(module.encoder.body.conv.weight, before)


def test_a_frozen_encoder_does_not_move():
    module = lockstep(RecipeConfig(steps=10, lr=0.1))
    before = module.encoder.body.conv.weight.detach().clone()
    one_step(module, IMAGES, LABELS)
    assert torch.equal(module.encoder.body.conv.weight, before)
    assert not module.encoder.training


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", UPSAMPLERS.builtin())
def test_only_the_skeleton_s_convolutions_decay(name, optimizer):
    """Not biases, not normalisation, not the kernels of upsamplers: by the names of the parameters."""
    decoder = look_up(DecoderConfig(name=name)).build((4, 8), (4, 8), 3, 0)
    torch.manual_seed(0)
    encoder = Encoder(Body(), [Level(0, 4, 4)], ((0.5,) * 3, (0.5,) * 3))
    recipe = RecipeConfig(steps=1, optimizer=optimizer)
    module = Lockstep(encoder, {"a": Member(decoder, recipe)}, recipe, seed=0)
    made = module.configure_optimizers()[0]
    names = {id(p): n for n, p in decoder.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in made.param_groups for p in g["params"]}
    assert decay.keys() == set(names.values())  # each parameter once
    assert {n for n, d in decay.items() if d} == {
        "laterals.0.weight", "laterals.1.weight", "blocks.0.0.weight", "blocks.1.0.weight", "classifier.weight",
    }  # fmt: skip
    assert set(decay.values()) <= {0.01, 0.0}


def test_normalisation_and_biases_of_any_shape_do_not_decay():
    own = nn.ModuleDict({"conv": nn.Conv2d(2, 2, 3), "norm": nn.LayerNorm((2, 1, 1)), "group": nn.GroupNorm(1, 2)})
    own.register_parameter("place_bias", nn.Parameter(torch.zeros(1, 2, 4, 4)))
    decayed, kept = parameter_groups(own, 0.1)
    names = {id(p): name for name, p in own.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["conv.weight"]
    assert {names[id(p)] for p in kept["params"]} == set(names.values()) - {"conv.weight"}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


class SpoilsLater(torch.autograd.Function):
    """Passes logits on, and changes what it was given when the gradient comes back."""

    @staticmethod
    def forward(ctx, logits, shared):
        ctx.shared = shared
        return logits.clone()

    @staticmethod
    def backward(ctx, grad):
        with torch.no_grad():
            ctx.shared.mul_(0.5)
        return grad, None


@pytest.mark.parametrize(("what", "when"), [("features", "forward"), ("image", "forward"), ("image", "backward")])
def test_who_changes_what_is_shared_fails_alone(what, when):
    """Found right after the member that did it; the next one goes on with fresh features, bit for bit."""

    class Spoils(Head):
        def forward(self, features, image):
            logits = super().forward(features, image)
            shared = features[0] if what == "features" else image
            if when == "backward":
                return SpoilsLater.apply(logits, shared)
            with torch.no_grad():
                shared.mul_(0.5)
            return logits

    def after_a_step(first):
        torch.manual_seed(0)
        encoder = Encoder(Body(), [Level(0, 4, 4)], ((0.5,) * 3, (0.5,) * 3))
        torch.manual_seed(1)
        second = Head()
        recipe = RecipeConfig(steps=10)
        members = {"a": Member(first, recipe), "b": Member(second, recipe)}
        module = Lockstep(encoder, members, recipe, seed=0)
        one_step(module, IMAGES, LABELS)
        return module.members

    good, bad = after_a_step(Head()), after_a_step(Spoils())
    changed = "the features" if when == "backward" else "features[0]" if what == "features" else "the image"
    assert bad["a"].failure.reason.startswith(f"ChangedInPlace: Spoils changes {changed} in place")
    assert bad["b"].failure is None
    assert torch.equal(bad["b"].decoder.conv.weight, good["b"].decoder.conv.weight)
    assert bad["b"].history == good["b"].history


def test_a_trainable_encoder_sees_batches_with_views_too():
    """Its batch normalisation needs them; only features that may be kept are computed image by image."""
    for trainable, sizes in ((True, [2]), (False, [1, 1])):
        module, seen = lockstep(RecipeConfig(steps=10, views=3), trainable=trainable), []
        module.encoder.body.register_forward_hook(lambda body, given, made, seen=seen: seen.append(len(given[0])))
        module._encode(Batch(IMAGES, LABELS, [(0, 0), (1, 0)], [], []))
        assert seen == sizes


class Reads(TorchDispatchMode):
    """Counts how often the host asks for a number that a device holds: by itself, or to know how long a result is."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        ops = torch.ops.aten
        self.number += function in (ops._local_scalar_dense.default, ops.nonzero.default, ops.masked_select.default)
        picked = args[1] if function is ops.index.Tensor else ()
        self.number += any(index is not None and index.dtype == torch.bool for index in picked)
        return function(*args, **kwargs or {})


def test_however_many_decoders_the_device_is_waited_for_once_a_step(monkeypatch):
    """Besides what the optimizer reads of its own counters and a turn of the process, both of the host."""
    monkeypatch.setattr("segbench.training.isolation.SETTINGS", ())
    reads = {}
    for names in ("a", "abcde"):
        module = lockstep(RecipeConfig(steps=10, clip_norm=1.0, class_weights=[0.5, 1.0, 2.0]), names=names)
        batch = module.on_before_batch_transfer(Batch(IMAGES, LABELS, [], [], []), 0)  # which is with the host
        for member in module.members.values():
            monkeypatch.setattr(member.optimizer, "step", lambda: None)
        one_step(module, IMAGES, LABELS)
        with Reads() as counted:
            module.training_step(batch, 0)
        reads[names] = counted.number
        assert all(len(member.history) == 2 for member in module.members.values())
    numbers = 2  # a loss and a norm of each decoder come in one list
    assert reads["abcde"] - reads["a"] in (0, 4 * numbers)  # which torch reads number by number on a CPU
    member = module.members["c"]
    with Reads() as counted:
        module._train(member, *module._encode(batch), LABELS.long(), batch.total)
    assert counted.number == 0


@pytest.mark.slow
def test_compiled_decoders_learn_the_same(make_config):
    """To rounding; whether it is compiled is in the key, as it changes the last bits."""
    plain, compiled = (
        sweep(make_config(name=f"compile-{value}", decoders=["subpixel"], trainer={"compile": value}))
        for value in (False, True)
    )
    assert (plain[1], compiled[1]) == (0, 0), compiled[2]
    for key, result in plain[0].items():
        other = compiled[0][key]
        assert result.row["key"] != other.row["key"]
        assert other.row["last_loss"] == pytest.approx(result.row["last_loss"], rel=1e-4)
        weights = [load_file(r.folder / "decoder.safetensors") for r in (result, other)]
        assert weights[0].keys() == weights[1].keys()
        assert all(np.allclose(w, weights[1][k], atol=1e-3) for k, w in weights[0].items())


def test_runs_that_differ_in_their_optimizers_alone_share_batches_and_train_as_alone(tmp_path):
    """Learning rate, optimizer, schedule and clipping in one cohort; each is bit-equal to a sweep of its own."""
    grid = {
        "recipe.lr": [0.001, 0.01],
        "recipe.optimizer": ["adamw", "sgd"],
        "recipe.schedule": ["cosine", "constant"],
        "recipe.clip_norm": [None, 0.5],
    }
    plan = make_plan(build_config(tiny(decoders=["bilinear"], grid=grid, runs_dir=str(tmp_path / "both"))))
    assert [len(cohort.runs) for cohort in plan.cohorts] == [16]
    sweep(plan.config)
    of_batches = {"recipe.batch_size": [2, 3], "recipe.lr": [0.001, 0.01]}
    apart = make_plan(build_config(tiny(decoders=["bilinear"], grid=of_batches, runs_dir=str(tmp_path / "apart"))))
    assert [(c.name, c.titles()) for c in apart.cohorts] == [
        (f"seed 0 batch_size={n}", "bilinear (2 settings)") for n in (2, 3)
    ]
    for place in (0, 6, 11, 13):
        run, own = plan.runs[place], tmp_path / f"alone-{place}"
        alone = tiny(decoders=["bilinear"], runs_dir=str(own))
        alone["recipe"] |= {key.partition(".")[2]: value for key, value in run.variant.items()}
        results, code, _ = sweep(build_config(alone))
        assert code == 0
        assert same(store.read_result(run.folder), results["bilinear", 0])
        assert (run.folder / "history.csv").read_text() == (results["bilinear", 0].folder / "history.csv").read_text()
