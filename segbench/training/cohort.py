"""Train and evaluate one cohort, in a process of its own: build, train, measure, write."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment

from segbench import store
from segbench.build import look_up, skeleton_hash
from segbench.columns import facts_of, load_measures
from segbench.config import SweepConfig
from segbench.data import open_data
from segbench.data.base import Dataset, Part
from segbench.encoders import build_encoder
from segbench.errors import Failure, UserError
from segbench.loading.cache import cached
from segbench.loading.pipeline import train_loader
from segbench.measures.base import CountMeasure, Measure
from segbench.runs import Cohort, Facts
from segbench.sweep.facts import data_facts, encoder_facts
from segbench.sweep.files import KnownFiles
from segbench.training.callbacks import Checkpoints, Evaluations, LiveLogs, Reports, evaluate_all
from segbench.training.checkpoints import load_checkpoint
from segbench.training.control import Control, Report, Stopped
from segbench.training.evaluation import Evaluation
from segbench.training.lockstep import Lockstep, Member
from segbench.training.machine import environment
from segbench.training.results import run_config, write_run
from segbench.training.tracking import Trackers

CHANGED = "{} changed after the sweep was planned, so its key is no longer true; the same command plans it anew"


@dataclass(frozen=True)
class Built:
    """A cohort, ready to be trained.

    Attributes:
        data: ``train`` and ``val``.
        measures: of the sweep.
        module: its encoder and decoders.
        hashes: run key -> what the row says of the start: ``features_hash`` and ``skeleton_hash``.
    """

    config: SweepConfig
    facts: Facts
    data: Mapping[str, Dataset]
    measures: list[Measure]
    module: Lockstep
    hashes: dict[str, dict[str, Any]]

    @property
    def counted(self) -> list[CountMeasure]:
        return [measure for measure in self.measures if isinstance(measure, CountMeasure)]

    @property
    def alive(self) -> dict[str, torch.nn.Module]:
        """Run key -> decoder, of the runs that have not failed."""
        return {key: member.decoder for key, member in self.module.members.items() if member.failure is None}


def run_cohort(
    cohort: Cohort,
    failures: dict[str, Failure],
    report: Report,
    should_stop: Callable[[], bool],
    threads: int,
    images: int | None = None,
) -> None:
    """Train, evaluate and store the runs of a cohort, whose locks the caller holds.

    Args:
        failures: run key -> why, for each run that fails, is added here.
        report: called with phase (``train`` or ``evaluate``), steps or images done, and their total.
        should_stop: asked after each step and each evaluated image.
        threads: of torch, in this process.
        images: to evaluate, spread over the split; all of them where None. For a trial.

    Raises:
        Stopped: ``should_stop`` said so; every run's checkpoint is written.
        UserError: the data or the run folders cannot be used.
    """
    quiet()
    torch.set_num_threads(threads)
    with Trackers(cohort.runs[0].config.launch.trackers) as trackers:
        control = Control(cohort, failures, report, should_stop, trackers)
        built = build(cohort, control, threads, images)
        try:
            train(built, control)
            results, encoder_s = measure(built, control)
        except Stopped:
            control.stopped(built.alive, built.module.steps_done)
            raise
        write(built, control, results, encoder_s)


def build(cohort: Cohort, control: Control, threads: int, images: int | None = None) -> Built:
    """Encoder, data, measures and decoders, as they were planned, from the newest checkpoints.

    Raises:
        UserError: something is no longer what the runs' keys say.
    """
    config, facts = cohort.runs[0].config, cohort.runs[0].facts
    encoder = build_encoder(config.encoder).to(facts.accelerator)
    features_hash = encoder.features_hash()  # before a checkpoint changes a trainable one
    measures = load_measures(config.measures)
    data = _data(cohort, images)
    for what, planned, found in (
        (f"the source of encoder '{config.encoder.title}'", facts.encoder, encoder_facts(config.encoder)),
        ("the encoder's weights", facts.encoder_hash, encoder.weights_hash),
        ("the source of the measures", facts.measures, facts_of(measures)),
    ):
        if found != planned:
            raise UserError(CHANGED.format(what))
    members: dict[str, Member] = {}
    hashes: dict[str, dict[str, Any]] = {}
    for run in cohort.runs:
        blueprint = look_up(run.decoder, config.decoder_defaults, config.skeleton)
        decoder = blueprint.build(encoder.channels, encoder.strides, len(data["train"].classes), run.seed)
        if blueprint.source != facts.decoders[run.title].source:
            control.fail(run.key, Failure(CHANGED.format(f"the source of '{run.title}'")))
            continue
        members[run.key] = Member(decoder)
        hashes[run.key] = {"features_hash": features_hash, "skeleton_hash": skeleton_hash(decoder)}
        store.write_yaml(run.folder / store.CONFIG, run_config(run))
        store.write_json(run.folder / store.ENVIRONMENT, environment(threads, facts.accelerator))
        control.trackers.start(run)
    seed, factor = cohort.runs[0].seed, config.encoder.lr_factor
    module = Lockstep(encoder, members, config.recipe, seed, cohort.start_step, factor)
    if cohort.start_step:
        module.optimizer_states = {key: load_checkpoint(control.runs[key], module) for key in members}
    control.note("train", cohort.start_step, config.recipe.steps)
    return Built(config, facts, data, measures, module, hashes)


def _data(cohort: Cohort, images: int | None) -> dict[str, Dataset]:
    """``train`` and ``val``, from the cache where there is one; of ``val`` so many images.

    Raises:
        UserError: they are no longer what the runs' keys say.
    """
    first = cohort.runs[0]
    config, facts = first.config, first.facts
    data = {which: open_data(config.data, which) for which in ("train", "val")}
    if data_facts(config.data, data, KnownFiles.read(first.folder.parent)) != facts.data:
        raise UserError(CHANGED.format("the data"))
    if config.launch.cache:
        key = f"{store.RESULT_VERSION} {config.data.params} {facts.data}"
        data = {which: cached(dataset, Path(config.launch.cache), key) for which, dataset in data.items()}
    if images is not None:
        number = len(data["val"])
        data["val"] = Part(data["val"], np.linspace(0, number - 1, min(images, number)).astype(int).tolist())
    return data


def train(built: Built, control: Control) -> None:
    """The steps that are left.

    Raises:
        Stopped: the runner asked for it; checkpoints are written.
    """
    config, module = built.config, built.module
    loader = train_loader(built.data["train"], config.recipe, module.seed, module.steps_done, config.launch.workers)
    evaluations = Evaluations(control, built.data["val"], built.counted)
    module.to(built.facts.accelerator)
    if built.alive and len(loader) and evaluations.whole(module):
        trainer = pl.Trainer(
            accelerator=built.facts.accelerator,
            devices=1,
            plugins=[LightningEnvironment()],  # also within a job of a cluster, which Lightning would take over
            callbacks=[
                Reports(control, config.recipe.steps),
                Checkpoints(control),
                evaluations,
                LiveLogs(control),
            ],
            precision=config.trainer.precision,
            deterministic=config.trainer.deterministic,
            benchmark=config.trainer.benchmark,
            max_epochs=1,  # the loader holds every batch of the recipe
            max_steps=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
    if built.alive and (control.stop_asked or module.steps_done < config.recipe.steps):
        raise Stopped


def measure(built: Built, control: Control) -> tuple[dict[str, Evaluation], float]:
    """Run key -> what the predictions of the trained decoders count up to, and the encoder's seconds per image.

    Raises:
        Stopped: the runner asked for it after an image.
    """
    alive, data = built.alive, built.data["val"]
    if not alive:
        return {}, math.nan
    built.module.to(built.facts.accelerator)
    return evaluate_all(
        control, built.module, alive, data, built.counted, lambda done: control.tell("evaluate", done, len(data))
    )


def write(built: Built, control: Control, results: Mapping[str, Evaluation], encoder_s: float) -> None:
    """The files of each run, the result last, which makes it done.

    Raises:
        UserError: the disk is full, or a folder cannot be written.
    """
    shared = {
        "train_shared_s": built.module.shared_s,
        "eval_encoder_ms_per_image": 1000 * encoder_s,
        "cohort_size": len(built.module.members),
    }
    for key, result in results.items():
        member = built.module.members[key]
        if result.failure is not None:
            control.fail(key, result.failure)
            continue
        control.trackers.update(key, [*member.history, {"step": built.config.recipe.steps, **result.headline()}])
        try:
            more = shared | built.hashes[key]
            write_run(control.runs[key], member, built.module.encoder, built.measures, result, more)
            control.trackers.close(key, "finished")
        except UserError:
            raise  # the disk or the folder, which the other runs share
        except Exception as error:  # weights of a plug-in that cannot be written
            control.fail(key, Failure.of(error))


def quiet() -> None:
    """Lightning's banner and tips say nothing that a runner with a table of its own needs."""
    for name in ("pytorch_lightning", "lightning", "lightning_fabric", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    warnings.filterwarnings("ignore", message=".*(lightning|litlogger|LeafSpec).*")
