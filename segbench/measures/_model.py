"""What a measure may ask of the model behind a prediction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)
Labels = npt.NDArray[np.uint8]  # (H, W)


@dataclass(frozen=True)
class Upsampling:
    """The last upsampling of a decoder by itself, as an image made it be called.

    Attributes:
        call: from ``x`` and ``guide`` to (1, C, r h, r w).
        x: (1, C, h, w), a tensor.
        guide: (1, G, H, W), of which a decoder that is not guided makes no use.
        ratio: r.
        px: image pixels per cell of what it puts out: 1, or the ``output_stride`` at which techniques end.
    """

    call: Callable[[Any, Any], Any]
    x: Any
    guide: Any
    ratio: int
    px: int


class Model(Protocol):
    """What made a prediction. All of it is worked out when a measure asks for it, and nothing where none does.

    Attributes:
        classes: their names.
        stride: s, image pixels per cell of the map from which the decoder upsamples to the image.
        on_grid: whether its cells are blocks of s x s pixels of the labels, from their first row and column on; not
            where images or labels are resized, views are averaged, or windows start within a cell.
        pixels: (H, W, 3) uint8, the part of the image that is looked at.
        probabilities: (K, H, W) float32 at the size of the labels, the softmax of the logits.
        decoder: a `torch.nn.Module` in eval mode, called as ``decoder(features, image)``, without gradients.
        initial: the decoder as it was before training.
        features, image: what it was given, tensors; where an image is seen in several windows and views, in the
            first window of the last view.
        upsampling: the last one; None where the decoder has none that can be called by itself.
    """

    classes: Sequence[str]
    stride: int
    pixels: Pixels

    @property
    def on_grid(self) -> bool: ...
    @property
    def probabilities(self) -> npt.NDArray[np.float32]: ...
    @property
    def decoder(self) -> Any: ...
    @property
    def initial(self) -> Any: ...
    @property
    def features(self) -> list[Any]: ...
    @property
    def image(self) -> Any: ...
    @property
    def upsampling(self) -> Upsampling | None: ...

    def predict(self, pixels: Pixels) -> Labels:
        """What it predicts of another image of the same size."""
        ...
