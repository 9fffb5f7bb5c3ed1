"""Predictions of a finished run as files, in the format in which the data set's owner takes them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from segbench import store
from segbench.build import build_decoder
from segbench.config import SweepConfig, load_config
from segbench.data import open_data
from segbench.data.base import Dataset, Pixels
from segbench.data.pipeline import evaluation_images
from segbench.encoders import Encoder, build_encoder
from segbench.errors import UserError, brief
from segbench.metrics import Truth, iou, mean_over_classes
from segbench.predict import encode, predict
from segbench.probe import resolve_accelerator


@dataclass(frozen=True)
class Trained:
    """A finished run, ready to predict."""

    config: SweepConfig
    encoder: Encoder
    decoder: nn.Module
    dataset: Dataset


def load_run(folder: Path, split: str | None = None, overrides: Sequence[str] = ()) -> Trained:
    """Encoder, decoder and data of a finished run, as its own config says.

    Args:
        folder: ``runs/<sweep>/<run>``.
        split: of its data set, in place of the one that it was evaluated on.
        overrides: ``key=value`` for what may differ here, such as ``data.root``.

    Raises:
        UserError: no finished run there, weights that do not fit, or data that cannot be read.
    """
    row = store.read_row(folder)
    if row is None:
        raise UserError(f"{folder} holds no finished run ({store.RESULT} is missing)")
    config = load_config(folder / "config.yaml", [*overrides, *([f"data.val_split={split}"] if split else [])])
    encoder = build_encoder(config.encoder)
    if encoder.weights_hash != row["encoder_hash"]:
        raise UserError(f"{folder} was made with other weights of encoder '{config.encoder.name}'")
    decoder = build_decoder(config.decoders[0], encoder.channels, encoder.strides, len(row["classes"]), row["seed"])
    path = folder / "decoder.safetensors"
    try:
        weights = load_file(path)
        trained = {k.removeprefix("encoder."): weights.pop(k) for k in list(weights) if k.startswith("encoder.")}
        decoder.load_state_dict(weights)
        if trained:
            encoder.load_state_dict(trained)
    except Exception as error:  # a damaged file, or a class that has changed, fails in many ways
        raise UserError(f"{path} does not fit decoder '{config.decoders[0].name}': {brief(error)}") from error
    dataset = open_data(config.data, "val")
    if list(dataset.classes) != row["classes"]:
        raise UserError(f"data set '{config.data.name}' has other classes than those that {folder} was trained on")
    index = config.trainer.devices[0] if isinstance(config.trainer.devices, list) else 0
    device = torch.device(resolve_accelerator(config.trainer), index)
    return Trained(config, encoder.to(device), decoder.to(device).eval(), dataset)


@torch.no_grad()
def predictions(run: Trained, indices: Sequence[int] | None = None) -> Iterator[tuple[int, Pixels, Pixels, Pixels]]:
    """(index, image (H, W, 3), labels (H, W), predicted classes (H, W)), all uint8, of all images or of those given."""
    device = next(run.encoder.parameters()).device
    images = evaluation_images(run.dataset, 0) if indices is None else ((i, *run.dataset.read(i)) for i in indices)
    for index, pixels, labels in images:
        image = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(2, 0, 1)[None]
        scores = predict(run.decoder, encode(run.encoder, image, run.config.evaluation), labels.shape)
        yield index, pixels, labels, scores.argmax(0).to(torch.uint8).cpu().numpy()


def export(run: Trained, out: Path, after_image: Callable[[int, int], None] = lambda done, total: None) -> float:
    """Write one file per image of the run's split below ``out``, named and coded as `Dataset.submission` says.

    Args:
        after_image: called with the number of images done and their total.

    Returns:
        mIoU of what was written, 0 to 1; NaN for a split without labels.

    Raises:
        UserError: a folder that cannot be written, a full disk, or an image id that would leave ``out``.
    """
    total = torch.zeros(3, len(run.dataset.classes), dtype=torch.int64)
    for index, _, labels, predicted in predictions(run):
        name, picture = run.dataset.submission(index, predicted)
        path = out / name
        if not path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"image id '{run.dataset.ids[index]}' names a file outside {out}")
        store.write_atomic(path, lambda file, picture=picture: picture.save(file, "PNG"))  # type: ignore[misc]
        total += Truth(torch.from_numpy(labels), len(run.dataset.classes)).count(torch.from_numpy(predicted)).region
        after_image(index + 1, len(run.dataset))
    return float(mean_over_classes(iou(total.numpy())))
