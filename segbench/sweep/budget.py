"""Choose each decoder's width so that all cost the same (``budget:``)."""

import functools
from collections.abc import Mapping
from typing import Any

import torch

from segbench.build import look_up
from segbench.config import DecoderConfig, SweepConfig
from segbench.decoders.base import Decoder, fake_inputs
from segbench.errors import UserError, brief, suggest
from segbench.measures.base import Trained
from segbench.measures.macs import SIZE, Macs
from segbench.measures.params import Params
from segbench.runs import ClassFacts, priced
from segbench.training.clock import moment, seconds_between

WIDEST = 4096  # that is tried
WARM_UP, TIMES = 2, 9  # passes by which a decoder is timed


def widths(
    config: SweepConfig,
    decoders: Mapping[str, ClassFacts],
    channels: tuple[int, ...],
    strides: tuple[int, ...],
    num_classes: int,
    accelerator: str,
) -> dict[str, dict[str, Any]]:
    """Title of each decoder -> the ``width`` whose ``cost`` is nearest to what is ``asked``, and ``by`` which cost.

    Args:
        decoders: title -> what was found of it, as the sweep says.
        channels, strides: of the encoder's features.
        accelerator: on which a time is taken, of a CPU with the threads of a cohort, ``launch.threads`` or else one.

    Raises:
        UserError: no decoder of the name that the budget gives, one without a width, or a budget that neither the
            narrowest nor the widest reaches.
    """
    budget = config.budget
    assert budget is not None
    shape = channels, strides, num_classes, torch.device(accelerator)
    costs = {d.title: _Costs(config, d, budget.cost, *shape) for d in config.decoders if d.title in decoders}
    asked = getattr(budget, budget.cost)
    if budget.like is not None:
        if budget.like not in costs:
            raise UserError(f"budget.like: no decoder of the sweep is '{budget.like}'{suggest(budget.like, costs)}")
        asked = costs[budget.like].at(None)
    found = {}
    for title, own in costs.items():
        if "width" not in decoders[title].params:
            raise UserError(f"budget: decoder '{title}' has no parameter width by which its cost could be chosen")
        width = decoders[title].params["width"] if title == budget.like else own.nearest(asked)
        found[title] = {"width": width, "cost": own.at(width), "asked": asked, "by": budget.cost}
    return found


class _Costs:
    """What a decoder costs, by its width."""

    def __init__(
        self,
        config: SweepConfig,
        decoder: DecoderConfig,
        by: str,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        device: torch.device,
    ) -> None:
        self.device = device
        self.config, self.decoder, self.by = config, decoder, by
        self.shape = channels, strides, num_classes
        self.at = functools.cache(self._at)

    def _at(self, width: int | None) -> float:
        """At that width, or at its own where None; raises what building or calling it raises."""
        if self.by == "ms":
            threads = self.config.launch.threads or 1
            return _milliseconds(self._build(width, "cpu"), *self.shape[:2], self.device, threads)
        measure = Macs() if self.by == "macs" else Params()
        try:
            return measure.measure(Trained(self._build(width, "meta"), *self.shape[:2], 0.0, 0.0, 0))
        except Exception:  # one that needs values, or a device, raises anything
            return measure.measure(Trained(self._build(width, "cpu"), *self.shape[:2], 0.0, 0.0, 0))

    def _build(self, width: int | None, device: str) -> Decoder:
        own = {} if width is None else {"width": width}
        decoder = self.decoder.model_copy(update={"params": self.decoder.params | own})
        with torch.device(device):
            blueprint = look_up(decoder, self.config.decoder_defaults, self.config.skeleton)
            return blueprint.build(*self.shape, 0).eval()

    def nearest(self, asked: float) -> int:
        """The width that costs nearest to that; of two equally near the narrower."""
        unit = self._unit()
        low = high = 1
        while self.at(high * unit) < asked:
            low, high = high, 2 * high
            if high * unit > WIDEST:
                self._refuse(asked, low * unit)
        if high == 1 and self.at(unit) > 2 * asked:
            self._refuse(asked, unit)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle * unit) < asked else (low, middle)
        return min(low * unit, high * unit, key=lambda width: abs(self.at(width) - asked))

    def _unit(self) -> int:
        """Of which widths have to be multiples, as where channels are taken in groups."""
        for unit in (1, 2, 4, 8, 16, 32, 64):
            try:
                self.at(5 * unit)
                self.at(7 * unit)
            except Exception as error:  # a plug-in can raise anything
                why = error
            else:
                return unit
        raise UserError(f"budget: decoder '{self.decoder.title}' cannot be built at other widths: {brief(why)}")

    def _refuse(self, asked: float, width: int) -> None:
        costs = f"at width {width} it costs {priced(self.at(width), self.by)}"
        raise UserError(f"budget: decoder '{self.decoder.title}' cannot cost {priced(asked, self.by)}: {costs}")


def _milliseconds(
    decoder: Decoder, channels: tuple[int, ...], strides: tuple[int, ...], device: torch.device, threads: int
) -> float:
    """The fastest of some passes over features of one image; others differ by what else the machine does."""
    features, image = fake_inputs(channels, strides, (SIZE, SIZE), device=device.type)
    before, times = torch.get_num_threads(), []
    decoder.to(device)
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for _ in range(WARM_UP + TIMES):
                began = moment(device)
                decoder(list(features), image)
                times.append(1000 * seconds_between(began, moment(device)))
    finally:
        torch.set_num_threads(before)
    return min(times[WARM_UP:])
