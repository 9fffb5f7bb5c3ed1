"""Predictions of a finished run as files, in the format in which the data set's owner takes them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import nn

from segbench import store
from segbench.build import look_up
from segbench.config import SweepConfig
from segbench.data import open_data
from segbench.data.base import Dataset, Pixels
from segbench.encoders import build_encoder, plugin_class
from segbench.encoders.base import Encoder
from segbench.errors import UserError, brief
from segbench.kept import read_config
from segbench.loading.pipeline import Workers, evaluation_images
from segbench.measures.base import Sample, check_labels, iou, mean_over_classes
from segbench.sweep.facts import encoder_facts, resolve_accelerator
from segbench.training.counted import centre_crop
from segbench.training.prediction import predict_counted


@dataclass(frozen=True)
class Trained:
    """A finished run, ready to predict; ``counted`` is what it counted on ``dataset``, None if it was on another."""

    config: SweepConfig
    encoder: Encoder
    decoder: nn.Module
    dataset: Dataset
    counted: store.Result | None


def load_run(
    folder: Path, split: str | None = None, overrides: Sequence[str] = (), beside: Trained | None = None
) -> Trained:
    """Encoder, decoder and data of a finished run, by its own config and the copies of plug-ins in its folder.

    Torch gets as many threads as it had then.

    Args:
        folder: ``runs/<sweep>/<run>``.
        split: of its data set, in place of the one that it was evaluated on.
        overrides: ``key=value`` for what may differ here, such as ``data.root``.
        beside: a run of the same data and encoder, which are not loaded again; a trained encoder is the run's own.

    Raises:
        UserError: no finished run there, weights that do not fit, an encoder or decoder of which the source is not as
            it was, or data that cannot be read.
    """
    counted = store.read_finished(folder)
    row = counted.row
    if row.get("task", "segmentation") != "segmentation":
        raise UserError(f"{folder} is a run of task {row['task']}; labels can be predicted by segmentation alone")
    if made_on := store.read_json(folder / store.ENVIRONMENT):  # a copy may lack it
        torch.set_num_threads(made_on["threads"])  # another number may change the last bits, and so a pixel
    config = read_config(folder, [*overrides, *([f"data.val_split={split}", "data.holdout=null"] if split else [])])
    encoder = beside.encoder if beside and not config.encoder.trainable else _encoder(config, counted)
    blueprint = look_up(config.decoders[0], skeleton=config.skeleton)
    decoder = blueprint.build(encoder.channels, encoder.strides, len(row["classes"]), row["seed"])
    if blueprint.plugged_in and blueprint.source != row["decoder_source"]:
        raise UserError(
            f"the source of {blueprint.who} is not what {folder} was made with; bring that back, or run its sweep again"
        )
    path = folder / "decoder.safetensors"
    try:
        weights = load_file(path)
        trained = {k.removeprefix("encoder."): weights.pop(k) for k in list(weights) if k.startswith("encoder.")}
        decoder.load_state_dict(weights)
        if trained:
            encoder.load_state_dict(trained)
    except Exception as error:  # a damaged file, or a class that has changed, fails in many ways
        raise UserError(f"{path} does not fit {blueprint.who}: {brief(error)}") from error
    dataset = beside.dataset if beside else open_data(config.data, "val")
    if list(dataset.classes) != row["classes"]:
        raise UserError(f"data set '{config.data.name}' has other classes than those that {folder} was trained on")
    device = torch.device(resolve_accelerator(config.trainer))
    if beside:
        same = beside.counted is not None
    else:
        same = list(dataset.ids) == counted.ids.tolist() and dataset.fingerprint() == row["data_fingerprints"][-1]
    return Trained(config, encoder.to(device), decoder.to(device).eval(), dataset, counted if same else None)


def _encoder(config: SweepConfig, counted: store.Result) -> Encoder:
    """The encoder that a run was made with, but for what training changed."""
    plugin, cls = encoder_facts(config.encoder), plugin_class(config.encoder)
    own = cls is not None and not cls.__module__.startswith("segbench.")  # else its weights say enough
    if own and plugin and plugin.source != counted.row["encoder_source"]:
        raise UserError(
            f"the source of encoder '{config.encoder.name}' is not what {counted.folder} was made with; bring that "
            "back, or run its sweep again"
        )
    encoder = build_encoder(config.encoder)
    if encoder.weights_hash != counted.row["encoder_hash"]:
        raise UserError(f"{counted.folder} was made with other weights of encoder '{config.encoder.name}'")
    return encoder


def predictions(run: Trained, indices: Sequence[int] | None = None) -> Iterator[tuple[int, Pixels, Pixels, Pixels]]:
    """Index, image, labels and predicted classes of all images or of those given, as the run's evaluation counts them.

    The image (H, W, 3), or its crop, and its labels and their prediction, both (h, w) at the size that is counted; all
    uint8.
    """
    images = (
        evaluation_images(run.dataset, Workers(0, 0))
        if indices is None
        else ((i, *run.dataset.read(i)) for i in indices)
    )
    protocol = run.config.evaluation
    for index, pixels, labels in images:
        image, name = np.ascontiguousarray(pixels), f"image {run.dataset.ids[index]}"
        truth, found = predict_counted(run.encoder, {"": run.decoder}, image, labels, protocol, name)
        ((_, made),) = found
        if made.error is not None:
            raise made.error
        yield index, centre_crop(pixels, protocol, name), truth, made.labels


def for_submission(run: Trained) -> tuple[Trained, str]:
    """A run that predicts whole images at their own size, which is what owners of data take, and what that leaves out.

    That is a line of ``label_size`` and ``mode: crop``, and empty where the run has neither.
    """
    own = run.config.evaluation
    whole = own.model_copy(
        update={"label_size": None, **({"mode": "whole", "window": None} if own.mode == "crop" else {})}
    )
    if whole == own:
        return run, ""
    said = "whole images are written, at their own size; the run was counted with " + own.title
    return replace(run, config=run.config.model_copy(update={"evaluation": whole}), counted=None), said


def export(
    run: Trained, out: Path, after_image: Callable[[int, int], None] = lambda done, total: None
) -> npt.NDArray[np.int64]:
    """Write one file per image of the run's split below ``out``, named and coded as `Dataset.submission` says.

    Images are predicted as `for_submission` says.

    Args:
        after_image: called with the number of images done and their total.

    Returns:
        (N, 3, K) region counts of what was written, image by image.

    Raises:
        UserError: a folder that cannot be written, a full disk, or an image id that would leave ``out``.
    """
    counts, run = [], for_submission(run)[0]
    for index, _, labels, predicted in predictions(run):
        name, picture = run.dataset.submission(index, predicted)
        path = out / name
        if not path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"image id '{run.dataset.ids[index]}' names a file outside {out}")
        store.write_atomic(path, lambda file, picture=picture: picture.save(file, "PNG"))  # type: ignore[misc]
        counts.append(Sample(check_labels(labels, len(run.dataset.classes)), predicted).region)
        after_image(index + 1, len(run.dataset))
    return np.stack(counts)


def in_words(run: Trained, region: npt.NDArray[np.int64]) -> str:
    """mIoU of what `export` wrote, and how far it is from what the run counted, if that was on the same data."""
    miou = 100 * float(mean_over_classes(iou(region.sum(0))))
    said = f"mIoU of what was written: {miou:.2f}"
    counted = for_submission(run)[0].counted
    if counted is None:
        return said
    there = counted.counts["region"]
    then = 100 * float(mean_over_classes(iou(there.sum(0))))
    change = region - there
    # A pixel that changes moves one prediction from class to class, and makes or breaks one intersection at most.
    pixels = np.maximum(np.abs(change[:, 0]).sum(1), np.abs(change[:, 1]).sum(1) // 2)
    images = int((change != 0).any((1, 2)).sum())
    differ = f"at least {pixels.sum()} pixels in {images} images differ" if images else "0 pixels differ"
    return f"{said}; the run counted {then:.2f} ({miou - then:.1f} points, {differ})"
