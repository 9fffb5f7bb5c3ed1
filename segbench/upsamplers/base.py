"""The contract of upsamplers, and what several of them share.

An upsampler is an `nn.Module` from ``(B, C, h, w)`` to ``(B, C, ceil(s h), ceil(s w))``, for a scale s. It needs no
base class of segbench:

    class MyUpsampler(nn.Module):
        ratios = "integer"     # the scales s that it takes, one of `RATIOS`; "two" where nothing is said
        starts_as = "nearest"  # what it computes before training, one of `STARTS`; may be set in the constructor
        guided = True          # called as forward(x, guide); False where nothing is said
        one_shot = True        # called once for the whole way, not in steps of 2; False where nothing is said

        def __init__(self, channels, scale=2, guide_channels=0, *, init="nearest"): ...
        def forward(self, x, guide): ...

Built-in ones also say ``group, year = "adaptive", 2019``, by which `segbench list` sorts them. The first three
arguments are given by name: C, s (an int; where it takes rational ratios also a `fractions.Fraction`), and the channels
of the guide. All others are its parameters, set under ``params:`` in a sweep. The guide is ``(B, guide_channels, ceil(s
h), ceil(s w))``: in `Pyramid` the lateral of the finer level, and at the end the image.
"""

import functools
import inspect
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Scale = int | Fraction
Upsampler = Callable[..., nn.Module]  # its class, or `functools.partial` of it with parameters

# What an upsampler may say of the scales that it takes: the word -> what that means.
RATIOS = {"two": "2 alone", "integer": "any integer from 2", "rational": "any fraction above 1"}

# What an upsampler may say that it starts as: the word -> what that means. `segbench.check` verifies it.
STARTS = {
    "nearest": "equal to nearest-neighbour interpolation",
    "bilinear": "equal to bilinear interpolation (align_corners=False), but for the border",
    "linear": "each channel by itself, and whatever is linear in x and y stays so, but for the border",
    "random": "what its random weights make of it",
}


Module = TypeVar("Module", bound=type[nn.Module])


class BrokenUpsampler(ValueError):
    """An upsampler that does not do what the contract says."""


def is_guided(upsampler: Upsampler) -> bool:
    return bool(_declared(upsampler, "guided", False))


def is_one_shot(upsampler: Upsampler) -> bool:
    return bool(_declared(upsampler, "one_shot", False))


def at_once(upsampler: Upsampler, ratio: Scale) -> bool:
    """Whether it goes the whole way in one step and not in steps of 2.

    It does where it says ``one_shot``, and a fixed interpolation where steps of 2 would leave a remainder, as x14 does:
    x8 and then x7/4 is another filter than x14. It has to take that ratio.
    """
    fixed, ratio = _declared(upsampler, "group", "") == "fixed", Fraction(ratio)
    remains = ratio.denominator > 1 or ratio.numerator & (ratio.numerator - 1) > 0
    return (is_one_shot(upsampler) or (fixed and remains)) and ratio > 1 and takes(upsampler, ratio)


def takes(upsampler: Upsampler, scale: Scale) -> bool:
    """Whether it says that it takes that scale, which is above 1."""
    ratios = _declared(upsampler, "ratios", "two")
    return scale == 2 or ratios == "rational" or (ratios == "integer" and Fraction(scale).denominator == 1)


def starts_as(module: nn.Module) -> str | None:
    """What it says that it starts as, None where it says nothing.

    Raises:
        ValueError: a word that is none of `STARTS`.
    """
    claim: str | None = getattr(module, "starts_as", None)
    if claim is not None and claim not in STARTS:
        raise ValueError(
            f"{type(module).__name__} has starts_as = {claim!r}; it should be one of {', '.join(map(repr, STARTS))}"
        )
    return claim


def checked(cls: Module) -> Module:
    """Decorator of the built-in ones: a scale, features or a guide that it is not made for raise a ValueError.

    In one line: its name, what is wanted, what was found. ``forward``, called by itself, takes what it can compute.
    """
    make = cls.__init__

    @functools.wraps(make)
    def init(self: nn.Module, channels: int, scale: Scale = 2, guide_channels: int = 0, **params: Any) -> None:
        if scale <= 1 or not takes(cls, scale):
            raise ValueError(
                f"{cls.__name__} takes {RATIOS[_declared(cls, 'ratios', 'two')]} as its scale, not {scale}"
            )
        if is_guided(cls) and guide_channels < 1:
            raise ValueError(f"{cls.__name__} is guided and takes the channels of its guide, not {guide_channels}")
        make(self, channels, scale, guide_channels, **params)
        self.register_forward_pre_hook(functools.partial(_check_call, channels, scale, guide_channels))

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


def _check_call(channels: int, scale: Scale, guide_channels: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    name, shapes = type(module).__name__, [tuple(t.shape) for t in inputs]
    if len(shapes) != 1 + is_guided(type(module)):
        raise ValueError(f"{name} takes {'x and a guide' if is_guided(type(module)) else 'x alone'}, not {shapes}")
    if len(shapes[0]) != 4 or shapes[0][1] != channels:
        raise ValueError(f"{name} takes x of the shape (B, {channels}, h, w), not {shapes[0]}")
    wanted = (shapes[0][0], guide_channels, *ceil_size(shapes[0][2:], scale))
    if shapes[1:] and shapes[1] != wanted:
        raise ValueError(
            f"{name} takes a guide of the shape {wanted} with x {shapes[0]} and scale {scale}, not {shapes[1]}"
        )


def check_declared(cls: type[nn.Module]) -> None:
    """Hold what a class declares against what it has.

    Raises:
        ValueError: an unknown word in ``ratios``, or a ``guided`` that does not fit ``forward``.
    """
    ratios, guided = _declared(cls, "ratios", "two"), _declared(cls, "guided", False)
    if ratios not in RATIOS:
        raise ValueError(f"ratios = {ratios!r}; it should be one of {', '.join(map(repr, RATIOS))}")
    if guided not in (True, False):
        raise ValueError(f"guided = {guided!r}; it should be True or False")
    if cls.forward is nn.Module.forward:
        raise ValueError("it has no forward(self, x)")
    forward = inspect.signature(cls.forward)
    if not guided and "guide" in forward.parameters:
        raise ValueError("its forward takes a guide, but the class does not say guided = True, so that none is given")
    try:
        forward.bind(*["self", "x", "guide"][: 2 + guided])
    except TypeError as error:
        raise ValueError(f"guided = {guided}, but its forward{forward} cannot be called so: {error}") from None


def upsample(module: nn.Module, scale: Scale, x: Tensor, guide: Tensor | None = None) -> Tensor:
    """``module(x)``, or ``module(x, guide)`` with a guide: ``(B, C, h, w)`` to ``(B, C, ceil(s h), ceil(s w))``.

    Raises:
        BrokenUpsampler: it returns something else, which is never resized to fit, or changes the guide in place.
    """
    who = f"the upsampler {type(module).__name__}"
    wanted = (*x.shape[:2], *ceil_size(x.shape[-2:], scale))
    shape = tuple(x.shape)
    version = 0 if guide is None else guide._version
    if is_guided(type(module)) and guide is None:
        raise BrokenUpsampler(f"{who} is guided: it takes x and a guide, not x alone")
    y = module(x) if guide is None else module(x, guide)
    if not isinstance(y, Tensor) or tuple(y.shape) != wanted:
        found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise BrokenUpsampler(f"{who} returns {found} for {shape} and scale {scale}; wanted {wanted}")
    if guide is not None and guide._version != version:
        raise BrokenUpsampler(f"{who} changes its guide in place, which the skeleton uses too")
    return y


def ceil_size(size: tuple[int, ...], scale: Scale) -> tuple[int, int]:
    """(height, width) times ``scale``, rounded up."""
    scale = Fraction(scale)
    height, width = (-(-n * scale.numerator // scale.denominator) for n in size)
    return height, width


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The top left ``(B, C, *size)`` of ``(B, C, H, W)``. Where that is all, no slice, whose backward would copy it."""
    return x if tuple(x.shape[-2:]) == tuple(size) else x[..., : size[0], : size[1]]


def triangle_filter(scale: Scale) -> Tensor:
    """The 1-d filter that turns zero insertion by ``p`` into linear interpolation by ``p/q``, taps summing to ``p``.

    Its length is 2p where p + q is odd and 2p - 1 where it is even: the parity that keeps the centres of the output
    pixels at ``(n + 1/2) q/p - 1/2`` input pixels. For p/q = 2 it is [1, 3, 3, 1] / 4, FCN's initialisation
    (Long et al. 2015, https://arxiv.org/abs/1411.4038).
    """
    scale = Fraction(scale)
    p = scale.numerator
    length = 2 * p if (p + scale.denominator) % 2 else 2 * p - 1
    centre = (length - 1) / 2
    return 1 - (torch.arange(length, dtype=torch.float64) - centre).abs() / p


class IdentityConv2d(nn.Conv2d):
    """3x3 convolution, C to C channels, that starts as identity: a one in the middle of kernel (i, i), no bias.

    ``(B, C, H, W)`` to ``(B, C, H, W)``. Zeros lie beyond the border.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)

    def reset_parameters(self) -> None:
        nn.init.dirac_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


def _declared(upsampler: Upsampler, name: str, default: Any) -> Any:
    return getattr(getattr(upsampler, "func", upsampler), name, default)
