"""Train and evaluate one cohort, in a process of its own: build, train, measure, write."""

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment

from segbench import store
from segbench.build import look_up, skeleton_hash
from segbench.columns import facts_of
from segbench.data import open_data
from segbench.data.base import Dataset, Part
from segbench.encoders import build_encoder, plugin_class
from segbench.encoders.base import Encoder, KnownEncoder
from segbench.errors import Failure, UserError
from segbench.kept import keep
from segbench.loading.cache import in_cache
from segbench.loading.features import described, open_features
from segbench.loading.pipeline import Batches, Workers
from segbench.machine import environment
from segbench.registry import TASKS
from segbench.runs import Cohort
from segbench.sweep.facts import encoder_facts
from segbench.sweep.files import KnownFiles
from segbench.sweep.plan import spare_cores
from segbench.tasks import make_task
from segbench.training.control import Control, Report, Stopped
from segbench.training.evaluation import Evaluation, Evaluations, evaluate
from segbench.training.isolation import Desk, turn
from segbench.training.lockstep import Lockstep, Member
from segbench.training.memory import keep_freed
from segbench.training.results import run_config, write_run

CHANGED = "{} changed after the sweep was planned, so its key is no longer true; the same command plans it anew"


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
        report, should_stop: called after each step and each evaluated image.
        threads: of torch, in this process.
        images: to evaluate, spread over the split; all of them where None. For a trial.

    Raises:
        Stopped: ``should_stop`` said so; every run's checkpoint is written.
        UserError: the data or the run folders cannot be used, or something is no longer what the runs' keys say.
    """
    quiet()
    keep_freed()
    torch.set_num_threads(threads)
    control = Control(cohort, failures, report, should_stop)
    try:
        module, data = build(control, threads, images)
        train(control, module, data)
        write(control, module, measure(control, module, data))
    except Stopped:
        control.stopped(module.alive, step=module.steps_done)
        raise
    finally:
        for key in control.runs:
            control.trackers.close(key, "failed")  # what is still open
        for desk in control.desks.values():
            desk.close()


def build(control: Control, threads: int, images: int | None) -> tuple[Lockstep, dict[str, Dataset]]:
    """Encoder and decoders, from the newest checkpoints, and ``train`` and ``val``, all as they were planned."""
    config, facts, first = control.config, control.facts, control.cohort.runs[0]
    control.workers = Workers(config.launch.workers, spare_cores(config, facts, threads))
    data = {which: open_data(config.data, which) for which in ("train", "val")}
    for which, dataset in data.items():
        if (kept := open_features(config, facts, which, dataset)) is not None:
            control.kept[which] = kept
    encoder = _encoder(control)
    features_hash = encoder.features_hash()  # before a checkpoint changes a trainable one
    for what, planned, found in (
        ("the data", facts.data, KnownFiles.read(first.folder.parent).data_facts(config.data, data)),
        (f"the source of encoder '{config.encoder.title}'", facts.encoder, encoder_facts(config.encoder)),
        ("the encoder's weights", facts.encoder_hash, encoder.weights_hash),
        ("the source of the measures", facts.measures, facts_of(control.measures)),
    ):
        if found != planned:
            raise UserError(CHANGED.format(what))
    for which, kept in control.kept.items():
        kept.prepare(described(config, which, encoder, features_hash))
    plug_ins: dict[str, type[Any]] = {m.plug_in: type(m) for m in control.measures} | {
        config.data.name: type(data["train"].whole)
    }
    if config.task.name not in TASKS.builtin():
        plug_ins[config.task.name] = TASKS.load(config.task.name)
    if encoder_class := plugin_class(config.encoder):
        plug_ins[config.encoder.name] = encoder_class
    data = dict(in_cache(config, data, facts.data))
    if images is not None:
        number = len(data["val"])
        data["val"] = Part(data["val"], np.linspace(0, number - 1, min(images, number)).astype(int).tolist())
    made_on = environment(threads, facts.accelerator)
    task, members = make_task(config.task), dict[str, Member]()
    for run in control.cohort.runs:
        desk = control.desks[run.key] = Desk(run.folder)
        with turn(run.seed, "build", desk=desk) as done:
            blueprint = look_up(run.decoder, run.config.decoder_defaults, run.config.skeleton)
            decoder = blueprint.build(encoder.channels, encoder.strides, task.outputs(len(facts.classes)), run.seed)
            if blueprint.source != run.facts.decoders[run.title].source:
                raise UserError(CHANGED.format(f"the source of '{run.title}'"))
            if config.trainer.compile:
                decoder.compile()
            own = dict(zip((run.decoder.name, run.config.skeleton), blueprint.classes, strict=False))
            start: dict[str, Any] = {"features_hash": features_hash, "skeleton_hash": skeleton_hash(decoder)}
            start |= {"sources": keep(run.folder, plug_ins | own)}
            members[run.key] = Member(decoder, run.config.recipe, start, desk=desk)
        if done.error is not None:
            members.pop(run.key, None)
            control.fail(run.key, Failure.of(done.error))
            continue
        store.write_yaml(run.folder / store.CONFIG, run_config(run))
        store.write_json(run.folder / store.ENVIRONMENT, made_on)
        control.trackers.start(run)
    factor = config.encoder.lr_factor
    module = Lockstep(encoder, members, config.recipe, first.seed, factor, control.kept.get("train"), task)
    if control.cohort.start_step:
        control.load(module)
    control.note("train", module.steps_done, config.recipe.steps)
    return module, data


def _encoder(control: Control) -> Encoder:
    """Built now; or, where features were kept before, on which all is said of it, when others are first asked for."""
    config, facts = control.config, control.facts

    def built() -> Encoder:
        return build_encoder(config.encoder).to(facts.accelerator)

    about = next((said for kept in control.kept.values() if (said := kept.about)), None)
    return KnownEncoder(about, built).to(facts.accelerator) if about else built()


def train(control: Control, module: Lockstep, data: Mapping[str, Dataset]) -> None:
    """The steps that are left."""
    config = control.config
    if not module.alive or module.steps_done == config.recipe.steps:
        return
    batches = Batches(data["train"], config.recipe, module.seed, module.steps_done, control.workers, module.kept)
    pl.Trainer(
        accelerator=control.facts.accelerator,
        devices=1,
        plugins=[LightningEnvironment()],  # also within a job of a cluster, which Lightning would take over
        callbacks=[control, Evaluations(control, data["val"])],
        **config.trainer.model_dump(exclude={"accelerator", "compile"}),
        max_epochs=1,  # the loader holds every batch of the recipe
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, batches)


def measure(control: Control, module: Lockstep, data: Mapping[str, Dataset]) -> dict[str, Evaluation]:
    """Run key -> what the predictions of the trained decoders count up to."""
    if not module.alive:
        return {}
    module.to(control.facts.accelerator)
    return evaluate(control, module, data["val"], lambda done: control.tell("evaluate", done, len(data["val"])))


def write(control: Control, module: Lockstep, results: Mapping[str, Evaluation]) -> None:
    """The files of each run, the result last, which makes it done."""
    for key, result in results.items():
        if result.failure is not None:
            control.fail(key, result.failure)
            continue
        final = {"step": control.config.recipe.steps, **result.headline()}
        control.trackers.update(key, [*module.members[key].history, final])
        try:
            write_run(control.runs[key], module, control.measures, result)
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
