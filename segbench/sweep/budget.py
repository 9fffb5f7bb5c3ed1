"""Choose each decoder's width so that all cost the same (``budget:``)."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from segbench import store
from segbench.build import look_up
from segbench.config import DecoderConfig, SweepConfig
from segbench.decoders.base import Decoder, fake_inputs
from segbench.errors import UserError, brief, suggest
from segbench.measures.base import Trained
from segbench.measures.macs import SIZE, Macs
from segbench.measures.params import Params
from segbench.runs import CLOSE, ClassFacts, priced
from segbench.training.clock import moment, seconds_between

WIDEST = 4096  # that is tried
TRIED_PX = 64  # side of the image by which widths are
WARM_UP, TIMES = 2, 9  # passes by which a decoder is timed
TIMED = ".times.json"  # of a sweep's folder: what was found by times, which are never quite the same again
LOCK_S = 600.0  # another process may be timing


def widths(
    config: SweepConfig,
    decoders: Mapping[str, ClassFacts],
    channels: tuple[int, ...],
    strides: tuple[int, ...],
    num_classes: int,
    device: tuple[str, int],
) -> dict[str, dict[str, Any]]:
    """Title of each decoder -> the ``width`` whose ``cost`` is nearest to what is ``asked``, and ``by`` which cost.

    Without the decoder that the budget is ``like`` where that has no width.

    Args:
        decoders: title -> what was found of it, as the sweep says.
        channels, strides: of the encoder's features.
        device: on which times are taken, and with how many threads. Each is taken once for a sweep's folder.

    Raises:
        UserError: no decoder of the name that the budget gives, another without a width, one that fails at some width,
            or a budget that neither the narrowest nor the widest reaches.
    """
    budget = config.budget
    assert budget is not None
    shape, by = (channels, strides, num_classes), budget.cost
    costs = {d.title: _Costs(config, d, by, shape, device) for d in config.decoders if d.title in decoders}
    if budget.like is not None and budget.like not in costs:
        near, instead = suggest(budget.like, costs), f"add it, or give what it costs, {by}: NUMBER"
        raise UserError(f"budget.like: no decoder of the sweep is '{budget.like}'{near}; {instead}")
    with _Times(config, by == "ms") as times:
        asked = getattr(budget, by)
        if budget.like is not None:
            of = decoders[budget.like], shape, device
            asked = times.once(of, lambda: costs[budget.like or ""].at(None))
        found = {}
        for title, own in costs.items():
            if "width" not in decoders[title].params:
                if title == budget.like:
                    continue
                raise UserError(f"budget: decoder '{title}' has no parameter width by which its cost could be chosen")
            if title == budget.like:
                width, cost = decoders[title].params["width"], asked
            else:
                width, cost = times.once((decoders[title], shape, device, asked), functools.partial(own.nearest, asked))
            found[title] = {"width": width, "cost": cost, "asked": asked, "by": by}
        return found


class _Times(contextlib.AbstractContextManager["_Times"]):
    """What was found by times in a sweep's folder, held by one process at a time; nothing is kept of other costs."""

    def __init__(self, config: SweepConfig, kept: bool) -> None:
        folder = Path(config.runs_dir) / config.name
        self.path = (folder.parent if config.name == store.SEARCH else folder) / TIMED  # a search's is its sweep's
        self.kept, self.found = kept, dict[str, Any]()
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> "_Times":
        if self.kept:
            with contextlib.suppress(UserError):  # a folder that cannot be written; then it is timed again
                self._lock.enter_context(store.locked(self.path, LOCK_S))
                found = store.read_json(self.path)
                self.found = found if isinstance(found, dict) else {}
        return self

    def once(self, of: object, find: Callable[[], Any]) -> Any:
        place = hashlib.sha256(repr((of, torch.__version__)).encode()).hexdigest()
        if place not in self.found:
            self.found[place] = find()
        return self.found[place]

    def __exit__(self, *_: object) -> None:
        if self.kept:
            with contextlib.suppress(UserError):
                store.write_json(self.path, self.found, durable=False)
        self._lock.close()


class _Costs:
    """What a decoder costs, by its width."""

    def __init__(
        self,
        config: SweepConfig,
        decoder: DecoderConfig,
        by: str,
        shape: tuple[tuple[int, ...], tuple[int, ...], int],
        device: tuple[str, int],
    ) -> None:
        self.config, self.decoder, self.by, self.shape, self.device = config, decoder, by, shape, device
        self.at = functools.cache(self._at)

    def _at(self, width: int | None) -> float:
        """At that width, or at its own where None."""
        try:
            if self.by == "ms":
                return _milliseconds(self._build(width, "cpu"), *self.shape[:2], *self.device)
            measure = Macs() if self.by == "macs" else Params()
            with contextlib.suppress(Exception):  # one that needs values, or a device, raises anything
                return measure.measure(Trained(self._build(width, "meta"), *self.shape[:2], 0.0, 0.0, 0))
            return measure.measure(Trained(self._build(width, "cpu"), *self.shape[:2], 0.0, 0.0, 0))
        except Exception as error:  # a plug-in can raise anything
            where = "" if width is None else f" at width {width}"
            raise UserError(f"budget: decoder '{self.decoder.title}' fails{where}: {brief(error)}") from error

    def _build(self, width: int | None, device: str) -> Decoder:
        own = {} if width is None else {"width": width}
        decoder = self.decoder.model_copy(update={"params": self.decoder.params | own})
        with torch.device(device):
            blueprint = look_up(decoder, self.config.decoder_defaults, self.config.skeleton)
            return blueprint.build(*self.shape, 0).eval()

    def nearest(self, asked: float) -> tuple[int, float]:
        """The width that costs nearest to that, of two equally near the narrower, and what it costs.

        Costs rise with the width; but times of narrow ones may fall, so that the widest width is sought that costs less
        and whose double costs more.
        """
        unit = self._unit()
        ladder = [unit]
        least, far = (64 * unit, 4) if self.by == "ms" else (unit, 1)
        while (ladder[-1] < least or self.at(ladder[-1]) < far * asked) and 2 * ladder[-1] <= WIDEST:
            ladder.append(2 * ladder[-1])
        below = [width for width in ladder if self.at(width) < asked]
        if not below or below[-1] == ladder[-1]:
            width = ladder[-1] if below else min(ladder, key=self.at)
            if abs(self.at(width) / asked - 1) > CLOSE:
                raise UserError(
                    f"budget: decoder '{self.decoder.title}' cannot cost {priced(asked, self.by)}: at width {width} it "
                    f"costs {priced(self.at(width), self.by)}"
                )
            return width, self.at(width)
        low, high = below[-1] // unit, 2 * below[-1] // unit
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle * unit) < asked else (low, middle)
        width = min(low * unit, high * unit, key=lambda width: abs(self.at(width) - asked))
        return width, self.at(width)

    def _unit(self) -> int:
        """Of which widths have to be multiples, as where channels are taken in groups."""
        features, image = fake_inputs(*self.shape[:2], (TRIED_PX, TRIED_PX))
        for unit in (1, 2, 4, 8, 16, 32, 64):
            try:
                for width in (5 * unit, 7 * unit):
                    with torch.inference_mode():
                        self._build(width, "cpu")(list(features), image)
            except Exception as error:  # a plug-in can raise anything
                why = error
            else:
                return unit
        raise UserError(f"budget: decoder '{self.decoder.title}' cannot have other widths: {brief(why)}")


def _milliseconds(
    decoder: Decoder, channels: tuple[int, ...], strides: tuple[int, ...], accelerator: str, threads: int
) -> float:
    """The fastest of some passes over features of one image; others differ by what else the machine does."""
    device, before, times = torch.device(accelerator), torch.get_num_threads(), []
    features, image = fake_inputs(channels, strides, (SIZE, SIZE), device=device.type)
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
