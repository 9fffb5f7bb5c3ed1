"""Train and evaluate one cohort, in a process of its own: resume, fit, count, store."""

import csv
import io
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from safetensors.torch import save

from segbench import store
from segbench.build import look_up, skeleton_hash
from segbench.columns import described, facts_of, load_measures, said
from segbench.config import SweepConfig
from segbench.data import open_data
from segbench.data.base import Dataset, Part
from segbench.encoders import build_encoder
from segbench.encoders.base import Encoder
from segbench.errors import Failure, UserError, brief
from segbench.loading.cache import cached
from segbench.loading.pipeline import train_loader
from segbench.measures.base import CountMeasure, Measure, RunMeasure, Trained
from segbench.runs import Cohort, Run, protocol, should_halve
from segbench.sweep.facts import data_facts, encoder_facts
from segbench.sweep.files import KnownFiles
from segbench.training.checkpoints import load_checkpoint, save_checkpoint
from segbench.training.evaluation import Evaluation, evaluate
from segbench.training.lockstep import Lockstep, Member
from segbench.training.machine import environment, peak_memory
from segbench.training.tracking import Trackers

Report = Callable[[str, int, int], None]  # phase, done, total
CHANGED = "{} changed after the sweep was planned, so its key is no longer true; the same command plans it anew"


class Stopped(Exception):
    """The runner asked to stop; the state is saved."""


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
    with Trackers(cohort.runs[0].config.launch.trackers) as trackers:
        _run(cohort, failures, report, should_stop, threads, images, trackers)


def _run(
    cohort: Cohort,
    failures: dict[str, Failure],
    report: Report,
    should_stop: Callable[[], bool],
    threads: int,
    images: int | None,
    trackers: Trackers,
) -> None:
    quiet()
    torch.set_num_threads(threads)
    config, runs = cohort.runs[0].config, {run.key: run for run in cohort.runs}
    device = torch.device(cohort.runs[0].facts.accelerator)
    encoder = build_encoder(config.encoder).to(device)
    features_hash = encoder.features_hash()  # before a checkpoint changes a trainable one
    data = {which: open_data(config.data, which) for which in ("train", "val")}
    facts = cohort.runs[0].facts
    measures = load_measures(config.measures)
    counted = [m for m in measures if isinstance(m, CountMeasure)]
    known = KnownFiles.read(cohort.runs[0].folder.parent)
    for what, planned, found in (
        (f"the source of encoder '{config.encoder.title}'", facts.encoder, encoder_facts(config.encoder)),
        ("the encoder's weights", facts.encoder_hash, encoder.weights_hash),
        ("the data", facts.data, data_facts(config.data, data, known)),
        ("the source of the measures", facts.measures, facts_of(measures)),
    ):
        if found != planned:
            raise UserError(CHANGED.format(what))
    if config.launch.cache:
        key = f"{store.RESULT_VERSION} {config.data.params} {facts.data}"
        data = {which: cached(dataset, Path(config.launch.cache), key) for which, dataset in data.items()}
    if images is not None:
        number = len(data["val"])
        data["val"] = Part(data["val"], np.linspace(0, number - 1, min(images, number)).astype(int).tolist())
    members, starts, optimizer_states = {}, {}, {}
    whole = cohort

    def fail(key: str, failure: Failure) -> None:
        failures[key] = failure
        trackers.close(key, "stopped" if should_halve(whole, failure) else "failed")
        if should_halve(whole, failure):
            store.set_status(runs[key].folder, "stopped", reason=failure.reason)
        else:
            store.fail(runs[key].folder, failure)

    for run in cohort.runs:
        classes = len(data["train"].classes)
        blueprint = look_up(run.decoder, config.decoder_defaults, config.skeleton)
        decoder = blueprint.build(encoder.channels, encoder.strides, classes, run.seed)
        if blueprint.source != run.facts.decoders[run.title].source:
            fail(run.key, Failure(CHANGED.format(f"the source of '{run.title}'")))
            continue
        starts[run.key] = skeleton_hash(decoder)
        members[run.key] = Member(decoder)
        store.write_yaml(run.folder / store.CONFIG, run_config(run))
        store.write_json(run.folder / store.ENVIRONMENT, environment(threads, run.facts.accelerator))
        trackers.start(run)
    cohort = replace(cohort, runs=tuple(run for run in cohort.runs if run.key in members))
    if not members:
        return
    status = Status(cohort, config.recipe.steps, len(data["val"]))
    seed, start_step = cohort.runs[0].seed, cohort.start_step
    module = Lockstep(encoder, members, config.recipe, seed, start_step, config.encoder.lr_factor)
    if cohort.start_step:
        for run in cohort.runs:
            optimizer_states[run.key] = load_checkpoint(run, module)
        module.optimizer_states = optimizer_states

    def tell(phase: str, done: int, total: int) -> None:
        report(phase, done, total)
        status.update(phase, done, [key for key in members if members[key].failure is None])

    stop_asked = False

    def stopping() -> bool:
        nonlocal stop_asked
        stop_asked = stop_asked or should_stop()
        return stop_asked

    def after_step() -> None:
        for key, member in members.items():
            trackers.update(key, member.history)
            if member.failure is not None and key not in failures:
                fail(key, member.failure)

    _train(cohort, module, data, counted, tell, stopping, after_step)
    alive = {key: member.decoder for key, member in members.items() if member.failure is None}

    def after_image(done: int) -> None:
        tell("evaluate", min(done, len(data["val"])), len(data["val"]))
        if stopping():
            raise Stopped

    try:
        if alive and (stop_asked or module.steps_done < config.recipe.steps):
            raise Stopped
        module.to(device)
        results, encoder_s = (
            evaluate(encoder, alive, data["val"], config.evaluation, counted, config.launch.workers, after_image)
            if alive
            else ({}, math.nan)
        )
    except Stopped:
        for key in alive:
            trackers.close(key, "stopped")
            store.set_status(runs[key].folder, "stopped", step=module.steps_done)
        raise
    for key, result in results.items():
        timing = {
            "train_shared_s": module.shared_s,
            "eval_encoder_ms_per_image": 1000 * encoder_s,
            "cohort_size": len(cohort.runs),
        }
        if result.failure is not None:
            fail(key, result.failure)
            continue
        final = {"step": config.recipe.steps, **result.headline()}
        trackers.update(key, [*members[key].history, final])
        try:
            hashes = {"features_hash": features_hash, "skeleton_hash": starts[key]}
            _store(runs[key], members[key], encoder, measures, result, timing | hashes)
            trackers.close(key, "finished")
        except UserError:
            raise  # the disk or the folder, which the other runs share
        except Exception as error:  # weights of a plug-in that cannot be written
            fail(key, Failure.of(error))


class Status:
    """Writes where a cohort stands into its runs' folders, for `segbench status`: every few seconds, not every step."""

    EVERY_S = 5.0

    def __init__(self, cohort: Cohort, steps: int, images: int) -> None:
        self.runs, self.steps, self.images = {run.key: run for run in cohort.runs}, steps, images
        self.last = -math.inf
        self.update("train", cohort.start_step, list(self.runs))

    def update(self, phase: str, done: int, keys: Sequence[str]) -> None:
        if time.monotonic() - self.last < self.EVERY_S:
            return
        self.last = time.monotonic()
        total = {"train": self.steps, "evaluate": self.images}[phase]
        for key in keys:
            store.set_status(self.runs[key].folder, "running", phase=phase, done=done, total=total)


def _train(
    cohort: Cohort,
    module: Lockstep,
    data: dict[str, Dataset],
    counted: Sequence[CountMeasure],
    report: Report,
    should_stop: Callable[[], bool],
    then: Callable[[], None],
) -> None:
    """The steps that are left, with checkpoints: now and then, at a stop, and before each evaluation.

    ``then`` is called at the end of each step.
    """
    config = cohort.runs[0].config
    steps, every = config.recipe.steps, config.evaluation.every
    last = time.monotonic()

    def checkpoint(step: int) -> None:
        for run in cohort.runs:
            if module.members[run.key].failure is None:
                save_checkpoint(run, module, step)

    def evaluate_midway(step: int) -> bool:
        """Whether it was due and a stop cut it short: then the resume does it, from the checkpoint of that step."""
        if not every or step % every or not 0 < step < steps:
            return False
        lacking = {
            key: member
            for key, member in module.members.items()
            if not any(row["step"] == step and "loss" not in row for row in member.history[-1:])
        }
        try:
            _evaluate_midway(module, lacking, data["val"], config, counted, step, should_stop)
        except Stopped:
            return True
        return False

    def after_step(done: int) -> bool:
        nonlocal last
        report("train", done, steps)
        stop = should_stop()
        due = time.monotonic() - last > 60 * config.launch.checkpoint_minutes
        if stop or due or done == steps or (every and done % every == 0):
            checkpoint(done)
            last = time.monotonic()
        stop = stop or evaluate_midway(done)
        then()
        return stop

    module.after_step = after_step
    loader = train_loader(data["train"], config.recipe, module.seed, cohort.start_step, config.launch.workers)
    if not len(loader):
        return
    module.to(cohort.runs[0].facts.accelerator)
    if evaluate_midway(cohort.start_step):
        return
    trainer = pl.Trainer(
        accelerator=cohort.runs[0].facts.accelerator,
        devices=1,
        plugins=[LightningEnvironment()],  # also within a job of a cluster, which Lightning would take over
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


def run_config(run: Run) -> dict[str, Any]:
    """The config of one run alone, resolved: a sweep file that would make it again."""
    values = run.config.model_dump()
    values["decoder_defaults"] = {}
    values["launch"]["address"] = None  # which no file may name
    values["decoders"] = [run.decoder.model_dump() | {"params": run.facts.decoders[run.title].params}]
    return values | {"seeds": [run.seed], "baseline": None}  # which is another run


def _evaluate_midway(
    module: Lockstep,
    members: Mapping[str, Member],
    val: Dataset,
    config: SweepConfig,
    counted: Sequence[CountMeasure],
    step: int,
    should_stop: Callable[[], bool],
) -> None:
    """Add the scores after ``step`` to the members' histories.

    Raises:
        Stopped: ``should_stop`` said so after an image; nothing is added.
    """
    alive = {key: m.decoder for key, m in members.items() if m.failure is None}

    def after_image(_: int) -> None:
        if should_stop():
            raise Stopped

    with torch.autocast(module.device.type, enabled=False):  # as the final evaluation
        results, _ = evaluate(
            module.encoder, alive, val, config.evaluation, counted, config.launch.workers, after_image
        )
    for key, result in results.items():
        if result.failure is None:
            module.members[key].history.append({"step": step, **result.headline()})


def _measured(
    member: Member, encoder: Encoder, measures: Sequence[Measure], eval_ms: float, workers: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Name -> value of what is measured once of a run, and name -> why of what failed."""
    run = Trained(
        member.decoder.eval(), encoder.channels, encoder.strides, member.train_s, eval_ms, peak_memory(workers)
    )
    values, broken = {}, {}
    for measure in measures:
        if isinstance(measure, RunMeasure):
            try:
                values[measure.name] = float(measure.measure(run))
                if math.isnan(values[measure.name]):
                    raise ValueError("it gives NaN")
            except Exception as error:  # a plug-in can raise anything
                values.pop(measure.name, None)
                broken[measure.name] = f"{said(measure)} fails: {brief(error)}"
    return values, broken


def _store(
    run: Run,
    member: Member,
    encoder: Encoder,
    measures: Sequence[Measure],
    result: Evaluation,
    more: dict[str, Any],
) -> None:
    """Write the run's files, ``result.json`` last, whose row takes in ``more``."""
    arrays: dict[str, Any] = result.arrays()
    weights = member.decoder.state_dict()
    if encoder.trainable:
        weights |= {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in weights.items()}  # tied weights are written twice
    store.write_atomic(run.folder / store.WEIGHTS, lambda file: file.write(save(tensors)))
    store.write_text(run.folder / store.HISTORY, _history(member.history))
    store.write_atomic(
        run.folder / store.COUNTS, lambda file: np.savez_compressed(file, ids=np.array(result.ids), **arrays)
    )
    facts = run.facts.decoders[run.title]
    eval_ms = 1000 * float(np.mean(result.seconds))
    values, broken = _measured(member, encoder, measures, eval_ms, run.config.launch.workers)
    row = {
        "key": run.key,
        "result_version": store.RESULT_VERSION,
        "decoder": run.title,
        "seed": run.seed,
        "variant": run.variant,
        "data": run.config.data.name,
        "classes": run.facts.classes,
        "images": len(result.ids),
        "data_fingerprints": run.facts.data,
        "encoder": run.config.encoder.title,
        "encoder_source": run.facts.encoder.source if run.facts.encoder else None,
        "encoder_hash": run.facts.encoder_hash,
        "encoder_trainable": run.config.encoder.trainable,
        "evaluation": protocol(run.config, run.facts.strides),
        "evaluation_title": run.config.evaluation.title,
        "measures": described(measures),
        "values": values,
        "broken": result.broken | broken,
        "output_stride": facts.params.get("output_stride"),
        "decoder_source": facts.source,
        "steps": run.config.recipe.steps,
        "last_loss": member.last_loss,
        "eval_count_ms_per_image": 1000 * float(np.mean(result.count_seconds)),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }
    store.set_status(run.folder, "done")
    (run.folder / store.TRACEBACK).unlink(missing_ok=True)
    store.write_result(run.folder, row)
    store.tidy(run.folder)


def _history(rows: list[dict[str, float]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(["step", "loss", "lr", *(name for row in rows for name in row)])))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def quiet() -> None:
    """Lightning's banner and tips say nothing that a runner with a table of its own needs."""
    for name in ("pytorch_lightning", "lightning", "lightning_fabric", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    warnings.filterwarnings("ignore", message=".*(lightning|litlogger|LeafSpec).*")
