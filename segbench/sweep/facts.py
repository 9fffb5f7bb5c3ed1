"""Build a sweep's encoders, decoders and data once, and record their facts: what its keys hold beside the config."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from segbench.build import Blueprint, look_up
from segbench.columns import facts_of, load_measures, try_measure
from segbench.config import DataConfig, DecoderConfig, EncoderConfig, PluginConfig, SweepConfig, TrainerConfig
from segbench.data import open_data
from segbench.data.base import Dataset, file_status, is_folder
from segbench.decoders.base import fake_inputs
from segbench.encoders import build_encoder, has_blocks, library_params, plugin_class, plugin_params
from segbench.encoders.libraries.vit import PlainViT
from segbench.errors import UserError, located, suggest
from segbench.launch.local import looking_at
from segbench.measures.base import CountMeasure
from segbench.registry import DECODERS, TASKS, UPSAMPLERS, check_params, parameters, source_hash
from segbench.runs import ClassFacts, Facts
from segbench.sweep.budget import widths
from segbench.sweep.files import KnownFiles, plain_values
from segbench.sweep.plan import resources
from segbench.tasks import make_task
from segbench.tasks.base import Task
from segbench.tasks.segmentation import Segmentation
from segbench.training.counted import check_crops
from segbench.training.isolation import turn
from segbench.training.prediction import nearest_multiples
from segbench.training.tracking import require


class BuiltEncoder(NamedTuple):
    """What is kept of an encoder that was built."""

    weights_hash: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    plugin: ClassFacts | None


class FactFinder:
    """Finds the facts of a sweep's variants; what does not differ between them is built, opened and tried once.

    Args:
        on_cluster: whether cohorts run on machines of a cluster.
        partly: leave out decoders that fail, and keep why.
        known: of the data's files, which is added to.

    Attributes:
        failing: title of a decoder -> why it fails, in one line.
        unused: name of a default that no decoder takes -> that, in one line.
    """

    def __init__(self, on_cluster: bool, partly: bool, known: KnownFiles) -> None:
        self.on_cluster, self.partly, self.known = on_cluster, partly, known
        self.failing: dict[str, str] = {}
        self.unused: dict[str, str] = {}
        self._found: dict[tuple[Any, str], Any] = {}

    def once(self, find: Callable[..., Any], *of: Any) -> Any:
        """``find(*of)``, called once for arguments that read alike."""
        if (place := (find, repr(of))) not in self._found:
            self._found[place] = find(*of)
        return self._found[place]

    def open_both(self, config: DataConfig) -> tuple[dict[str, Dataset], list[str]]:
        """Both splits, and what stands for them in a run's key."""
        splits = {which: open_data(config, which) for which in ("train", "val")}
        for dataset in splits.values():
            if not dataset.labelled:
                split = f"split '{dataset.split}' of '{config.name}'"
                raise UserError(f"{split} has no labels; `segbench export` predicts it")
        return splits, self.known.data_facts(config, splits)

    def facts(self, config: SweepConfig) -> Facts:
        """Of one variant.

        Raises:
            UserError: anything that would make its runs fail.
        """
        self.once(require, config.launch.trackers)
        accelerator = self.once(resolve_accelerator, config.trainer, self.on_cluster)
        looking_at(f"data set '{config.data.name}'")
        data, of_data = self.once(self.open_both, config.data)
        self.once(check_crops, data["val"], config.evaluation)
        task: Task = self.once(make_task, config.task)
        task.check(config)
        classes, weights = data["train"].classes, config.recipe.class_weights
        if weights is not None and len(weights) != len(classes):
            there = f"'{config.data.name}' has {len(classes)} classes"
            raise UserError(f"recipe.class_weights has {len(weights)} values; {there}")
        if weights is not None and not any(weights):
            raise UserError("recipe.class_weights are all 0, so that nothing would be learned")
        looking_at(f"encoder '{config.encoder.name}'")
        encoder: BuiltEncoder = self.once(_build, config.encoder)
        largest = max(encoder.strides)
        if config.recipe.batch_size == 1 and max(config.recipe.crop) <= largest:
            raise UserError(
                f"recipe: batch_size 1 with crop {list(config.recipe.crop)} leaves the coarsest level (stride "
                f"{largest}) one pixel, over which batch normalisation cannot train; take a larger crop or batch"
            )
        uneven = [size for size in config.recipe.crop if size % largest]
        if config.evaluation.fit == "resize" and uneven:
            near = nearest_multiples((uneven[0], uneven[0]), largest)[0]
            raise UserError(
                f"recipe.crop: {uneven[0]} is no multiple of the encoder's stride {largest}, to which evaluation.fit: "
                f"resize brings images; take {near}"
            )
        if config.launch.features and config.encoder.trainable:
            raise UserError("launch.features: a trainable encoder's features change with every step; leave one out")
        if config.launch.features:
            kept = Path(config.launch.features).absolute()
            above = next(place for place in (kept, *kept.parents) if file_status(place))
            if not is_folder(above):
                raise UserError(f"launch.features: {above} is no folder")
        looking_at("the measures")
        measures = self.once(_measure_facts, config.measures, classes, config.task)
        decoders: dict[str, ClassFacts] = {}
        images = min(2, config.recipe.batch_size)  # some normalise what they pool over the whole map
        shared = config.decoder_defaults, config.skeleton, encoder, task.outputs(len(classes)), images
        for decoder in config.decoders:
            try:
                if decoder.title not in self.failing:
                    looking_at(f"decoder '{decoder.title}'")
                    decoders[decoder.title] = self.once(decoder_facts, decoder, *shared)
            except UserError as error:
                if not self.partly:
                    raise
                self.failing[decoder.title] = str(error)
        if not self.failing:
            self._check_defaults(config.decoder_defaults, {name for d in decoders.values() for name in d.params})
        budget: dict[str, dict[str, Any]] = {}
        if config.budget is not None and decoders:
            looking_at("widths that meet the budget")
            device = accelerator, resources(config, accelerator, torch.cuda.device_count())[1]
            budget = widths(config, decoders, *encoder[1:3], task.outputs(len(classes)), device)
            decoders = {
                title: replace(own, params=own.params | {"width": budget[title]["width"]}) if title in budget else own
                for title, own in decoders.items()
            }
        gpus = torch.cuda.device_count() if accelerator == "cuda" else 0
        weights_hash, _, strides, plugin = encoder
        of_run = accelerator, gpus, weights_hash, classes, of_data, len(data["val"]), strides
        return Facts(*of_run, decoders, measures, plugin, task_facts(config.task), budget)

    def _check_defaults(self, defaults: Mapping[str, Any], taken: Collection[str]) -> None:
        """Refuse a misspelt name; one of a decoder that does not take part, as in a narrower call, is noted."""
        for name in defaults.keys() - taken:
            there = (parameters(kind.load(n), kind.given) for kind in (UPSAMPLERS, DECODERS) for n in kind.builtin())
            if (near := suggest(name, taken)) and not any(name in known for known in there):
                raise UserError(f"decoder_defaults: no decoder takes '{name}'{near}")
            self.unused[name] = f"decoder_defaults: no decoder here takes '{name}'"


def _build(config: EncoderConfig) -> BuiltEncoder:
    encoder = build_encoder(config)
    return BuiltEncoder(encoder.weights_hash, encoder.channels, encoder.strides, encoder_facts(config))


def _measure_facts(configs: Sequence[PluginConfig], classes: Sequence[str], task: PluginConfig) -> list[list[Any]]:
    measures, samples = load_measures(configs, task.title), make_task(task).examples(classes)
    for measure in measures:
        if isinstance(measure, CountMeasure):
            try_measure(measure, samples, len(classes))
    return facts_of(measures)


def encoder_facts(config: EncoderConfig) -> ClassFacts | None:
    """What stands for an encoder with parameters in a run's key beside its weights; None for one that has none."""
    if has_blocks(config):
        return ClassFacts(config.name, plain_values(library_params(config)), source_hash(PlainViT))
    cls = plugin_class(config)
    return None if cls is None else ClassFacts(cls.__name__, plain_values(plugin_params(config, cls)), source_hash(cls))


def task_facts(config: PluginConfig) -> ClassFacts | None:
    """What stands for a task in a run's key; None for segmentation, which the other facts say all of."""
    cls = TASKS.load(config.name)
    params = check_params(TASKS, config.name, cls, config.params)
    return None if cls is Segmentation else ClassFacts(cls.__name__, plain_values(params), source_hash(cls))


def resolve_accelerator(trainer: TrainerConfig, on_cluster: bool = False) -> str:
    """``cpu``, ``cuda`` or ``mps`` for what the config asks.

    Args:
        on_cluster: for machines of a cluster; where a GPU is asked for by name, they have it.

    Raises:
        UserError: an accelerator that this machine lacks; ``auto``, for other machines.
    """
    name = trainer.accelerator
    if on_cluster and name == "auto":
        raise UserError("trainer.accelerator: what a cluster's machines have is not known here; say cpu or gpu")
    if on_cluster and name in ("gpu", "cuda"):
        return "cuda"
    devices = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there = [device for device, found in devices.items() if found]
    wanted = {"auto": (there or ["cpu"])[0], "gpu": (there or ["cuda"])[0]}.get(name, name)
    if wanted != "cpu" and wanted not in there:
        raise UserError(f"trainer.accelerator: this machine has no '{name}'; use cpu or auto")
    return wanted


def decoder_facts(
    config: DecoderConfig,
    defaults: Mapping[str, Any],
    skeleton: str,
    encoder: BuiltEncoder,
    num_classes: int,
    images: int,
) -> ClassFacts:
    """Build a decoder and give it so many images in training mode, and one in eval mode.

    Raises:
        UserError: it fails, changes what it is given or what the process has once, or returns another shape than it
            should.
    """
    with turn("look") as done:
        blueprint = look_up(config, defaults, skeleton)
        _try_decoder(blueprint, encoder, num_classes, images)
    if done.error is None:
        params = plain_values(blueprint.params)  # as they stand in keys and configs
        return ClassFacts(blueprint.class_name, params, blueprint.source)
    if isinstance(done.error, UserError):
        raise done.error
    raise UserError(f"decoder '{config.title}': {located(done.error)}") from done.error


def _try_decoder(blueprint: Blueprint, encoder: BuiltEncoder, num_classes: int, images: int) -> None:
    decoder = blueprint.build(encoder.channels, encoder.strides, num_classes, 0)
    size = (2 * max(encoder.strides), 3 * max(encoder.strides))
    features, image = fake_inputs(encoder.channels, encoder.strides, size, images)
    try:
        with torch.no_grad():
            decoder.train()(list(features), image)
            logits = decoder.eval()([feature[:1] for feature in features], image[:1])
    except Exception as error:  # a plug-in can raise anything
        raise UserError(f"{blueprint.who} fails on a {size[0]}x{size[1]} image: {located(error)}") from error
    if any(t._version for t in [*features, image]):
        raise UserError(f"{blueprint.who} changes features or image in place, which others use too")
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, num_classes, *size):
        raise UserError(f"{blueprint.who} returns {shape}; wanted logits of {(1, num_classes, *size)}")
