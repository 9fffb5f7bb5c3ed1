"""`segbench check` on upsamplers that lie: each is told by the check that is about it, in one line."""

import pytest

from segbench.check import CHECKS, check_decoder
from segbench.config_file import build_config
from segbench.decoders.smp import SHIPPED
from segbench.errors import UserError
from segbench.registry import UPSAMPLERS
from segbench.sweep.plan import make_plan
from segbench.upsamplers.base import is_one_shot
from tests.conftest import segbench, tiny

HEAD = """
import logging, os
import torch
import torch.nn.functional as F
from torch import nn

class Up(nn.Module):
    ratios, guided, starts_as = "integer", False, "bilinear"
    def __init__(self, channels, scale=2, guide_channels=0):
        super().__init__()
        self.scale = scale
        self.prepare(channels)
    def prepare(self, channels): pass
    def forward(self, x):
        return self.change(F.interpolate(x, scale_factor=self.scale, mode="bilinear"))
    def change(self, y): return y

def conv(channels):
    layer = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(layer.weight), nn.init.zeros_(layer.bias)
    return layer
"""
LIARS = {
    "ListNotModuleList": (
        "all of it is registered",
        "ListNotModuleList.convs[0] is a layer that is not registered, so that it is never trained; use nn.ModuleList",
        """
    def prepare(self, channels): self.convs = [conv(channels)]
    def change(self, y): return self.convs[0](y)
""",
    ),
    "LooseParameter": (
        "all of it is registered",
        "is a parameter that is not registered, so that it is never trained; use nn.ParameterList",
        """
    def prepare(self, channels): self.kept = {"gain": nn.Parameter(torch.ones(channels, 1, 1))}
    def change(self, y): return y * self.kept["gain"]
""",
    ),
    "RandomTensor": (
        "all of it is registered",
        "RandomTensor.noise is a tensor that is not registered; use self.register_buffer",
        """
    starts_as = "random"
    def prepare(self, channels): self.noise = torch.randn(channels, 1, 1)
    def change(self, y): return y * self.noise
""",
    ),
    "HiddenRandom": (
        "its weights are all of it",
        "they depend on what no state dict holds",
        """
    starts_as = "random"
    def prepare(self, channels): self.gain = float(torch.rand(()))
    def change(self, y): return y * self.gain
""",
    ),
    "Cached": (
        "keeps nothing of an image",
        "after other images its logits differ by up to",
        """
    starts_as, first = "random", None
    def change(self, y):
        if self.first is None: self.first = y.detach().mean()
        return y + self.first
""",
    ),
    "Seeds": (
        "a function of the seed",
        "its constructor seeds torch's generator, so that every seed starts alike",
        """
    starts_as = "random"
    def prepare(self, channels):
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, channels, 1)
    def change(self, y): return self.conv(y)
""",
    ),
    "DataInPlace": (
        "any ratio that it takes",
        "changes its input or its guide in place",
        """
    guided = True
    def forward(self, x, guide):
        guide.data.mul_(0.5)
        return super().forward(x)
""",
    ),
    "LateNan": (
        "trains",
        "the loss is nan at step 3",
        """
    steps = 0
    def change(self, y):
        self.steps += self.training and torch.is_grad_enabled()
        return y * float("nan") if self.steps > 3 else y
""",
    ),
    "LateSize": (
        "trains",
        "the upsampler LateSize returns",
        """
    steps = 0
    def forward(self, x):
        self.steps += self.training and torch.is_grad_enabled()
        return x if self.steps > 3 else super().forward(x)
""",
    ),
    "Dtype": (
        "logits of the right shape at odd sizes",
        "it changes what all decoders of the process share, as torch.set_default_dtype does",
        """
    def change(self, y):
        torch.set_default_dtype(torch.float64)
        return y
""",
    ),
    "Exits": (
        "logits of the right shape at odd sizes",
        "SystemExit: bye (",
        """
    def change(self, y): raise SystemExit("bye")
""",
    ),
    "Raises": (
        "logits of the right shape at odd sizes",
        "ZeroDivisionError: integer division or modulo by zero (FILE, line LINE)",
        """
    def change(self, y): return y / (1 // 0)  # here
""",
    ),
}
NOTED = {
    "Shift": (
        "keeps its place",
        "Shift (x2) moves it by +4.0, +4.0 pixels (rows, columns) of its output",
        """
    starts_as = "random"
    def change(self, y): return torch.roll(y, (4, 4), (2, 3))
""",
    ),
    "Probs": (
        "logits, not probabilities",
        "they sum to 1 over the classes: is there a softmax or sigmoid at the end?",
        """
    starts_as = "random"
    def change(self, y): return y.softmax(1)
""",
    ),
}
GOOD = {
    "ZeroInit": """
    def prepare(self, channels):
        self.branch = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.gain = nn.Parameter(torch.zeros(1))
    def change(self, y): return y + self.gain * self.branch(y)
""",
    "Prints": """
    def change(self, y):
        print("forward")
        logging.warning("hm")
        os.write(1, b"from below\\n")
        return y
""",
}  # fmt: skip


def source(name, body):
    return f"{HEAD}\nclass {name}(Up):{body}"


def checked(tmp_path, name, body, **kwargs):
    path = tmp_path / "mine.py"
    path.write_text(source(name, body))
    lines = []
    code = check_decoder(f"{path}:{name}", {}, lines.append, **kwargs)
    assert all("\n" not in line for line in lines)
    return code, lines


@pytest.mark.parametrize("name", [name for name in LIARS if name not in ("ListNotModuleList", "LooseParameter")])
def test_a_liar_is_told_by_the_check_that_is_about_it(tmp_path, name):
    title, said, body = LIARS[name]
    code, lines = checked(tmp_path, name, body)
    assert code == 1
    (line,) = [line for line in lines if line.startswith(f"FAIL  {title}: ")]
    number = next((i for i, text in enumerate(source(name, body).splitlines(), 1) if "# here" in text), 0)
    assert said.replace("FILE", str(tmp_path / "mine.py")).replace("LINE", str(number)) in line
    assert sum(line.startswith("FAIL") for line in lines) <= 5  # one cause is not told again and again


@pytest.mark.parametrize("name", ["ListNotModuleList", "LooseParameter"])
def test_what_would_never_be_trained_is_refused_by_check_and_sweep(tmp_path, name):
    _, said, body = LIARS[name]
    with pytest.raises(UserError) as caught:
        checked(tmp_path, name, body)
    assert said in str(caught.value)
    config = build_config(tiny(decoders=["bilinear", f"{tmp_path / 'mine.py'}:{name}"], runs_dir=str(tmp_path)))
    with pytest.raises(UserError) as caught:
        make_plan(config)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", NOTED)
def test_what_is_no_fault_is_noted(tmp_path, name):
    title, said, body = NOTED[name]
    code, lines = checked(tmp_path, name, body)
    assert code == 0, lines
    (line,) = [line for line in lines if line.startswith(f"note  {title}: ")]
    assert said in line


def test_a_branch_that_starts_at_zero_is_no_fault(tmp_path):
    code, lines = checked(tmp_path, "ZeroInit", GOOD["ZeroInit"])
    assert code == 0, lines
    assert not any(line.startswith("note") for line in lines)


def test_what_it_prints_is_summed_up(tmp_path, capfd):
    code, lines = checked(tmp_path, "Prints", GOOD["Prints"])
    assert code == 0, lines
    (line,) = [line for line in lines if line.startswith("note")]
    assert line.startswith("note  it prints: forward ... and ")
    captured = capfd.readouterr()
    assert "from below" not in captured.out + captured.err
    assert len(lines) == len(CHECKS) + 2


CONSTRUCTORS = {
    "NoSuper": ("def __init__(self, channels, scale, guide_channels):\n        self.conv = conv(channels)  # here",
                "cannot assign module before Module.__init__() call (FILE, line LINE); call super().__init__() first"),
    "Late": ("def __init__(self, channels, scale, guide_channels):\n        super().__init__(channels)\n"
             "    def prepare(self, channels):\n        self.conv = nn.Conv2d(channels, channels, self.kernel)  # here",
             "no attribute 'kernel' (FILE, line LINE); its constructor should set what it uses before it uses it"),
    "NoForward": ("forward = nn.Module.forward", "it has no forward(self, x)"),
    "WrongSignature": ("def __init__(self, channels): pass", "its constructor lacks guide_channels, scale;"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_constructor_that_fails_is_said_once_with_its_place(tmp_path, name):
    body, said = CONSTRUCTORS[name]
    path = tmp_path / "mine.py"
    path.write_text(source(name, f"\n    {body}\n"))
    number = next((i for i, text in enumerate(path.read_text().splitlines(), 1) if "# here" in text), 0)
    done = segbench("check", f"{path}:{name}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert said.replace("FILE", str(path)).replace("LINE", str(number)) in done.stderr


def test_mistakes_on_the_command_line(tmp_path, monkeypatch):
    done = segbench("check", "bilinear", "width=0")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "segbench: upsampler 'bilinear' cannot be built: ValueError: width must be at least 1, not 0\n"
    )
    done = segbench("check")
    assert done.stderr.endswith("error: the following arguments are required: decoder\n")
    (tmp_path / "mine.py").write_text(source("Simple", "\n    pass\n") + "\nclass Helper(nn.Module):\n    pass\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    done = segbench("check", "~/mine.py:Simpl")
    assert done.returncode == 2
    assert "has no class 'Simpl' (did you mean 'Simple'?); it has: Up, Simple\n" in done.stderr
    assert segbench("check", "~/mine.py:Simple").returncode == 0


def test_a_sweep_says_what_it_is_checked_at(tmp_path):
    """Its encoder's features, its classes, its entry's parameters and its recipe."""
    body = """
    def __init__(self, channels, scale=2, guide_channels=0, *, gain: float = 1.0):
        super().__init__(channels, scale)
        self.starts_as = "bilinear" if gain == 1 else "random"
        print(channels, gain)
"""
    config = build_config(
        tiny(
            decoders=["bilinear", {"name": f"{tmp_path / 'mine.py'}:Mine", "params": {"gain": 3.0}}],
            encoder={"strides": [8, 16]},
            recipe={"lr": 0.125, "crop": 64},
        )
    )
    code, lines = checked(tmp_path, "Mine", body, config=config)
    assert code == 0, lines
    assert any("lr 0.125" in line and "2 x 64x64" in line for line in lines)
    assert any(line.startswith("note  it prints: 7 3.0 ...") for line in lines)
    assert any(line.startswith("pass  starts as it says: random") for line in lines)


# They are centred on output pixel s m by definition, or put a pixel where the guide says.
OFF_CENTRE = {"deconv_large", "joint_bilateral", "max_unpool", "pac"}
# Parameters that a check is quicker with; or that the check of gradients needs: a layer norm over one channel has none.
SMALLER = {"jafar": {"qk_dim": 16}, "anyup": {"qk_dim": 16}, "naf": {"dim": 32}, "lda_aqu": {"width": 16}}


@pytest.mark.parametrize("name", UPSAMPLERS.builtin())
def test_no_note_on_what_is_built_in(name, monkeypatch):
    """But that it moves the map, of what starts from random kernels or is off centre by definition.

    Without the two checks that cannot fail and take longest; docs/upsamplers.md has what they say.
    """
    for title in ("ONNX", "cost"):
        monkeypatch.delitem(CHECKS, title)
    cls, lines = UPSAMPLERS.load(name), []
    params, skeleton = {"width": 8} | SMALLER.get(name, {}), "pyramid"
    if is_one_shot(cls):
        params, skeleton = params | {"output_stride": 4}, "linear"
    assert check_decoder(name, params, lines.append, skeleton) == 0
    moves = name in OFF_CENTRE or getattr(cls, "starts_as", "") == "random"
    told = [line for line in lines if not (moves and line.startswith("note  keeps its place"))]
    assert [line for line in told if not line.startswith("pass")] == [f"{name}: keeps the contract"]


@pytest.mark.parametrize("name", ["ifa", *(f"smp {architecture}" for architecture in SHIPPED)])
def test_decoders_that_are_built_in(name, monkeypatch):
    for title in ("ONNX", "cost"):
        monkeypatch.delitem(CHECKS, title)
    name, _, architecture = name.partition(" ")
    params, lines = {"architecture": architecture} if architecture else {}, []
    failed = check_decoder(name, params, lines.append)
    told = [line for line in lines if not line.startswith("pass")]
    if architecture in ("pan", "upernet", "deeplabv3plus"):
        assert told.pop(0).startswith(
            "note  logits of the right shape at odd sizes: it cannot train on one image alone"
        )
    if architecture == "pan":  # biases before a batch normalisation, which takes them away
        assert "get zero only: decoder.fpa" in told.pop(0)
    else:
        assert not failed
        assert told == [f"{name}: keeps the contract"]
