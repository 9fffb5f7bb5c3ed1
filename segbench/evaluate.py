"""Whole-image inference -> integer counts per image: the one evaluation, in training and for the final figures."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from segbench.config import EvaluationConfig
from segbench.data.base import Dataset
from segbench.encoders.base import Encoder
from segbench.errors import Failure
from segbench.loading.pipeline import evaluation_images
from segbench.metrics import Counts, Truth, iou, mean_over_classes
from segbench.predict import encode, predict

Int64s = npt.NDArray[np.int64]


@dataclass
class Evaluation:
    """What one decoder's predictions on a split count up to.

    Attributes:
        ids: of the N images.
        counts: of each image.
        seconds: of the decoder for each image, from features to labels.
        count_seconds: of counting for each image, the truth's side aside.
        failure: once it failed; the counts are then not whole.
    """

    ids: list[str] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    count_seconds: list[float] = field(default_factory=list)
    failure: Failure | None = None

    @property
    def miou(self) -> float:
        """Over the whole split, 0 to 1."""
        return float(mean_over_classes(iou(self.arrays()["region"].sum(0))))

    def arrays(self) -> dict[str, Int64s]:
        """Each attribute of `Counts` with the images first, ``confusion`` (K, K) summed over them; all int64."""
        per_image = ("region", "boundary", "contour", "trimap", "widths_px")
        arrays = {name: torch.stack([getattr(c, name) for c in self.counts]).numpy() for name in per_image}
        return arrays | {"confusion": torch.stack([c.confusion for c in self.counts]).sum(0).numpy()}


@torch.no_grad()
def evaluate(
    encoder: Encoder,
    decoders: Mapping[str, nn.Module],
    dataset: Dataset,
    protocol: EvaluationConfig,
    workers: int = 0,
    after_image: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Evaluation], dict[str, float]]:
    """Count the predictions of every decoder on every image of a split, at full resolution.

    Logits are brought to the labels' size before the argmax, as `segbench.predict` says. Each image is counted once. A
    decoder that raises ends its own evaluation only.

    Args:
        decoders: any key -> decoder, on the encoder's device.
        protocol: how predictions are made and what is counted.
        after_image: called with the number of images done.

    Returns:
        key -> `Evaluation`, and the mean seconds per image of what all share: ``encoder``, and ``truth``, its side of
        the counts.
    """
    was_training = {module: module.training for module in [encoder, *decoders.values()]}
    for module in was_training:
        module.eval()
    device = next(encoder.parameters()).device
    results = {key: Evaluation() for key in decoders}
    encoder_s, truth_s = [], []
    for index, pixels, labels in evaluation_images(dataset, workers):
        clock = _now(device)
        image = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None]  # (1, 3, H, W) uint8
        views = encode(encoder, image, protocol)
        encoder_s.append(_now(device) - clock)
        clock = _now(device)
        truth = Truth(
            torch.from_numpy(labels).to(device),
            len(dataset.classes),
            protocol.boundary_ratios,
            protocol.tolerances_px,
            protocol.trimap_widths_px,
        )
        truth_s.append(_now(device) - clock)
        for key, decoder in decoders.items():
            result = results[key]
            if result.failure is not None:
                continue
            shared = [t for view in views for w in view.windows for t in (*w.features, w.image)]
            versions = [t._version for t in shared]
            try:
                clock = _now(device)
                scores = predict(decoder, views, labels.shape)  # (K, H, W)
                if not torch.isfinite(scores).all():
                    raise FloatingPointError(f"scores of image {dataset.ids[index]} are not finite")
                prediction = scores.argmax(0).to(torch.uint8)  # (H, W)
                result.seconds.append(_now(device) - clock)
                clock = _now(device)
                result.counts.append(truth.count(prediction).cpu())
                result.count_seconds.append(_now(device) - clock)
                result.ids.append(dataset.ids[index])
            except Exception as error:  # a plug-in can raise anything; it ends its own run only
                result.failure = Failure.of(error)
            if versions != [t._version for t in shared]:
                views = encode(encoder, image, protocol)  # the others go on with fresh ones
        after_image(index + 1)
    for module, mode in was_training.items():
        module.train(mode)
    times = {"encoder": encoder_s, "truth": truth_s}
    return results, {name: float(np.mean(seconds)) if seconds else math.nan for name, seconds in times.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
