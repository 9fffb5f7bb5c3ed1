"""What measures may ask of the model behind a prediction, in a sweep: `segbench.measures._model.Model`."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from segbench.build import look_up
from segbench.config import EvaluationConfig
from segbench.decoders.base import Decoder, Steps
from segbench.encoders.base import Encoder
from segbench.measures._model import Labels, Upsampling
from segbench.runs import Run
from segbench.training.counted import counted_size
from segbench.training.prediction import Prediction, Window, predict, window_places


def as_it_started(run: Run, encoder: Encoder, num_classes: int) -> Decoder:
    """The decoder of a run with its initial weights, in eval mode, on the encoder's device."""
    blueprint = look_up(run.decoder, run.config.decoder_defaults, run.config.skeleton)
    decoder = blueprint.build(encoder.channels, encoder.strides, num_classes, run.seed)
    return decoder.to(encoder.mean.device).eval()


@dataclass
class Looked:
    """An image that is evaluated, and what the encoder made of others like it, which all decoders share.

    Attributes:
        pixels: (H, W, 3) uint8, the part that the protocol looks at.
        classes: their names.
    """

    encoder: Encoder
    protocol: EvaluationConfig
    pixels: npt.NDArray[np.uint8]
    classes: Sequence[str]
    made: dict[str, list[Tensor]] = field(default_factory=dict)

    def predict(self, decoder: nn.Module, pixels: npt.NDArray[np.uint8]) -> Labels:
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()

        def once(name: str, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
            key = f"{digest} {name}"
            if key not in self.made:
                self.made[key] = compute()
            return self.made[key]

        if pixels.shape != self.pixels.shape or pixels.dtype != np.uint8:
            raise ValueError(
                f"an image of {pixels.shape} {pixels.dtype} is predicted; wanted {self.pixels.shape} uint8"
            )
        ((_, found),) = predict(self.encoder, {"": decoder}, np.ascontiguousarray(pixels), self.protocol, keep=once)
        if found.error is not None:
            raise found.error
        return found.labels


class RunModel:
    """A `segbench.measures._model.Model`.

    Args:
        image: that is counted.
        decoder: in eval mode.
        made: what it predicted of the image.
        start: gives the initial decoder; None where that is not known.
    """

    def __init__(
        self, image: Looked, decoder: nn.Module, made: Prediction, start: Callable[[], nn.Module] | None
    ) -> None:
        self.classes, self.pixels, self.decoder = image.classes, image.pixels, decoder
        self.stride = decoder.last_stride if isinstance(decoder, Decoder) else image.encoder.strides[0]
        self._image, self._made, self._start = image, made, start

    @property
    def on_grid(self) -> bool:
        protocol, size = self._image.protocol, (self.pixels.shape[0], self.pixels.shape[1])
        if protocol.resize or self._made.views > 1 or protocol.scales != [1.0] or counted_size(size, protocol) != size:
            return False
        places = window_places(size, protocol)
        coarsest = max(self._image.encoder.strides) if protocol.fit == "resize" else 1
        ends = [(p.start, p.stop - p.start) for place in places for p in place]
        return all(start % self.stride == 0 and length % coarsest == 0 for start, length in ends)

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float32]:
        scores = self._made.scores
        found: npt.NDArray[np.float32] = (scores.softmax(0) if self._made.views == 1 else scores).float().cpu().numpy()
        return found

    @property
    def initial(self) -> nn.Module:
        if self._start is None:
            raise ValueError("it asks for the initial decoder, which is known while a sweep runs")
        return self._start()

    @cached_property
    def _window(self) -> Window:
        assert self._made.window is not None
        return self._made.window.copied(self.decoder)

    @property
    def features(self) -> list[Tensor]:
        return self._window.features

    @property
    def image(self) -> Tensor:
        return self._window.image

    def predict(self, pixels: npt.NDArray[np.uint8]) -> Labels:
        return self._image.predict(self.decoder, pixels)

    @cached_property
    def upsampling(self) -> Upsampling | None:
        called: list[tuple[Steps, Tensor, Tensor, tuple[int, int]]] = []
        steps = [part for part in self.decoder.modules() if isinstance(part, Steps)]
        hooks = [part.register_forward_pre_hook(lambda part, given: called.append((part, *given))) for part in steps]
        try:
            self.decoder.forward(self.features, self.image)  # not a compiled form, which would skip the hooks
        finally:
            for hook in hooks:
                hook.remove()
        for last, x, guide, size in reversed(called):
            if last.ratio > 1 and last.ratio.denominator == 1:
                px = round(self.image.shape[-1] / size[1])
                return Upsampling(functools.partial(last, size=size), x, guide, int(last.ratio), px)
        return None
