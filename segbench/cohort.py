"""Train and evaluate one cohort, in a process of its own: resume, fit, count, store."""

import csv
import io
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from safetensors.torch import save

import segbench
from segbench import store
from segbench.config import SweepConfig, TrainerConfig
from segbench.data import open_data
from segbench.data.base import Dataset
from segbench.data.cache import cached
from segbench.data.pipeline import train_loader
from segbench.encoders import Encoder, build_encoder
from segbench.errors import Failure, UserError, brief
from segbench.evaluate import Evaluation, evaluate
from segbench.lockstep import Lockstep, Member
from segbench.metrics import mean_iou
from segbench.plan import Cohort, Run, protocol
from segbench.probe import build_decoder
from segbench.track import Trackers

Report = Callable[[str, int, int], None]  # phase, done, total


class Stopped(Exception):
    """The runner asked to stop; the state is saved. Carries the runs that had failed by then."""

    def __init__(self, failures: dict[str, str]) -> None:
        super().__init__("stopped")
        self.failures = failures


def run_cohort(cohort: Cohort, report: Report, should_stop: Callable[[], bool], threads: int) -> dict[str, str]:
    """Train, evaluate and store the runs of a cohort.

    Args:
        report: called with phase (``train`` or ``evaluate``), steps or images done, and their total.
        should_stop: asked after each step and each evaluated image.
        threads: of torch, in this process.

    Returns:
        run key -> reason, for each run that failed.

    Raises:
        Stopped: ``should_stop`` said so; every run's checkpoint is written.
        UserError: the data or the run folders cannot be used.
    """
    quiet()
    torch.set_num_threads(threads)
    config, runs = cohort.runs[0].config, {run.key: run for run in cohort.runs}
    encoder = build_encoder(config.encoder)
    data = {which: open_data(config.data, which) for which in ("train", "val")}
    if config.launch.cache:
        key = f"{store.RESULT_VERSION} {config.data.params} {cohort.runs[0].facts.data}"
        data = {which: cached(dataset, Path(config.launch.cache), key) for which, dataset in data.items()}
    members, optimizer_states = {}, {}
    for run in cohort.runs:
        decoder = build_decoder(run.decoder, encoder, len(data["train"].classes), run.seed, config.decoder_defaults)
        members[run.key] = Member(type(decoder).__name__, decoder)
        store.write_yaml(run.folder / "config.yaml", run_config(run))
        store.write_json(run.folder / "environment.json", environment(threads, config.trainer, run.facts.accelerator))
        store.set_status(run.folder, "running", pid=os.getpid())
    module = Lockstep(encoder, members, config.recipe, cohort.runs[0].seed, cohort.start_step, config.encoder.lr_factor)
    if cohort.start_step:
        for run in cohort.runs:
            optimizer_states[run.key] = _load_checkpoint(run, cohort.start_step, module)
        module.optimizer_states = optimizer_states
    failures: dict[str, str] = {}

    def fail(key: str, failure: Failure) -> None:
        failures[key] = failure.reason
        store.fail(runs[key].folder, failure)

    _train(cohort, module, data, report, should_stop)
    for key, member in members.items():
        if member.failure is not None:
            fail(key, member.failure)
    alive = {key: member.decoder for key, member in members.items() if member.failure is None}

    def after_image(done: int) -> None:
        report("evaluate", done, len(data["val"]))
        if should_stop():
            raise Stopped(failures)

    try:
        if alive and module.steps_done < config.recipe.steps:
            raise Stopped(failures)
        index = config.trainer.devices[0] if isinstance(config.trainer.devices, list) else 0
        module.to(torch.device(cohort.runs[0].facts.accelerator, index))
        results, shared_s = (
            evaluate(encoder, alive, data["val"], config.evaluation, config.launch.workers, after_image)
            if alive
            else ({}, {})
        )
    except Stopped:
        for key in alive:
            store.set_status(runs[key].folder, "stopped", step=module.steps_done)
        raise
    for key, result in results.items():
        timing = {
            "train_s": members[key].train_s,
            "train_shared_s": module.shared_s,
            "eval_encoder_ms_per_image": 1000 * shared_s["encoder"],
            "eval_truth_ms_per_image": 1000 * shared_s["truth"],
            "cohort_size": len(cohort.runs),
        }
        if result.failure is not None:
            fail(key, result.failure)
            continue
        try:
            _store(runs[key], members[key], encoder, result, timing)
        except UserError:
            raise  # the disk or the folder, which the other runs share
        except Exception as error:  # weights of a plug-in that cannot be written
            fail(key, Failure.of(error))
    return failures


def _train(
    cohort: Cohort, module: Lockstep, data: dict[str, Dataset], report: Report, should_stop: Callable[[], bool]
) -> None:
    """The steps that are left, with checkpoints: now and then, at a stop, and at the end, before the evaluation."""
    config = cohort.runs[0].config
    steps, every = config.recipe.steps, config.evaluation.every
    last = time.monotonic()

    def checkpoint(step: int) -> None:
        for run in cohort.runs:
            if module.members[run.key].failure is None:
                _save_checkpoint(run, module, step)

    trackers = Trackers({run.key: run for run in cohort.runs}, config.launch.trackers)

    def after_step(done: int) -> bool:
        nonlocal last
        report("train", done, steps)
        if every and done % every == 0 and done < steps:
            _evaluate_midway(module, data["val"], config, done)
        for key, member in module.members.items():
            trackers.update(key, member.history)
        stop = should_stop()
        if stop or done == steps or time.monotonic() - last > 60 * config.launch.checkpoint_minutes:
            checkpoint(done)
            last = time.monotonic()
        return stop

    module.after_step = after_step
    loader = train_loader(data["train"], config.recipe, module.seed, cohort.start_step, config.launch.workers)
    if not len(loader):
        return
    trainer = pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        precision=config.trainer.precision,
        deterministic=config.trainer.deterministic,
        benchmark=config.trainer.benchmark,
        max_epochs=1,  # the loader holds every batch of the recipe
        max_steps=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, loader)
    trackers.close()


def run_config(run: Run) -> dict[str, Any]:
    """The config of one run alone, resolved: a sweep file that would make it again."""
    values = run.config.model_dump()
    values["decoder_defaults"] = {}
    values["decoders"] = [run.decoder.model_dump() | {"params": run.facts.decoders[run.title].params}]
    return values | {"seeds": [run.seed], "baseline": None}  # which is another run


def environment(threads: int, trainer: TrainerConfig, accelerator: str) -> dict[str, Any]:
    """Versions, hardware, threads and the state of the project's git checkout."""
    names = (
        "torch",
        "pytorch_lightning",
        "segmentation_models_pytorch",
        "timm",
        "albumentations",
        "cv2",
        "numpy",
        "torchvision",
    )
    versions = {n: getattr(sys.modules[n], "__version__", "?") for n in names if n in sys.modules}
    here = Path(segbench.__file__).parent
    index = trainer.devices[0] if isinstance(trainer.devices, list) else 0
    git: dict[str, str | None] = {}
    for what, command in (("commit", ["rev-parse", "HEAD"]), ("changes", ["status", "--porcelain", "--", str(here)])):
        try:
            done = subprocess.run(["git", "-C", str(here), *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
            git[what] = None
        else:
            git[what] = done.stdout.strip()
    return {
        "versions": versions | {"segbench": segbench.__version__, "python": platform.python_version()},
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name(index) if accelerator == "cuda" else None,
        "threads": threads,
        "platform": platform.platform(),
        "git": git,
    }


def _evaluate_midway(module: Lockstep, val: Dataset, config: SweepConfig, step: int) -> None:
    alive = {key: m.decoder for key, m in module.members.items() if m.failure is None}
    with torch.autocast(module.device.type, enabled=False):  # as the final evaluation
        results, _ = evaluate(module.encoder, alive, val, config.evaluation, config.launch.workers)
    for key, result in results.items():
        if result.failure is None:
            region = result.arrays()["region"].sum(0)
            module.members[key].history.append({"step": step, "val_miou": float(mean_iou(region))})


def _save_checkpoint(run: Run, module: Lockstep, step: int) -> None:
    """All that a bit-equal resume needs; the rest is a function of seed and step."""
    position = list(module.members).index(run.key)
    optimizers: Any = module.optimizers(use_pl_optimizer=False)
    optimizer = optimizers[position] if isinstance(optimizers, list) else optimizers
    member = module.members[run.key]
    state = {
        "step": step,
        "decoder": member.decoder.state_dict(),
        "encoder": module.encoder.state_dict() if module.encoder.trainable else None,
        "optimizer": optimizer.state_dict(),
        "history": member.history,
        "losses": member.losses,
        "train_s": member.train_s,
        "shared_s": module.shared_s,
    }
    path = store.checkpoint(run.folder, step)
    buffer = io.BytesIO()  # torch.save hides what a full disk says
    torch.save(state, buffer)
    store.write_atomic(path, lambda file: file.write(buffer.getbuffer()))
    for older in store.checkpoints(run.folder).values():
        if older != path:
            older.unlink(missing_ok=True)


def _load_checkpoint(run: Run, step: int, module: Lockstep) -> dict[str, Any]:
    """Set the run's member to its checkpoint; returns the optimizer's state."""
    path = store.checkpoint(run.folder, step)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{path} cannot be read ({brief(error)}); remove it to start the run anew") from error
    member = module.members[run.key]
    member.decoder.load_state_dict(state["decoder"])
    if state["encoder"] is not None:
        module.encoder.load_state_dict(state["encoder"])
    member.history, member.losses, member.train_s = state["history"], state["losses"], state["train_s"]
    module.shared_s = state["shared_s"]
    optimizer: dict[str, Any] = state["optimizer"]
    return optimizer


def _store(run: Run, member: Member, encoder: Encoder, result: Evaluation, timing: dict[str, Any]) -> None:
    """Write the run's files, ``result.json`` last."""
    arrays: dict[str, Any] = result.arrays()
    weights = member.decoder.state_dict()
    if encoder.trainable:
        weights |= {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in weights.items()}  # tied weights are written twice
    store.write_atomic(run.folder / "decoder.safetensors", lambda file: file.write(save(tensors)))
    store.write_text(run.folder / "history.csv", _history(member.history))
    store.write_atomic(
        run.folder / store.COUNTS, lambda file: np.savez_compressed(file, ids=np.array(result.ids), **arrays)
    )
    facts = run.facts.decoders[run.title]
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
        "encoder": run.config.encoder.name,
        "encoder_hash": run.facts.encoder_hash,
        "features_hash": run.facts.features_hash,
        "encoder_trainable": run.config.encoder.trainable,
        "evaluation": protocol(run.config, run.facts.strides),
        "evaluation_title": run.config.evaluation.title,
        "parameters": facts.parameters,
        "macs": facts.macs,
        "steps": run.config.recipe.steps,
        "last_loss": member.last_loss,
        "eval_ms_per_image": 1000 * float(np.mean(result.seconds)),
        "eval_count_ms_per_image": 1000 * float(np.mean(result.count_seconds)),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **timing,
    }
    store.set_status(run.folder, "done")
    store.write_json(run.folder / store.RESULT, row)
    for leftover in (*store.checkpoints(run.folder).values(), run.folder / store.TRACEBACK):
        leftover.unlink(missing_ok=True)


def _history(rows: list[dict[str, float]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["step", "loss", "lr", "val_miou"])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def quiet() -> None:
    """Lightning's banner and tips say nothing that a runner with a table of its own needs."""
    for name in ("pytorch_lightning", "lightning", "lightning_fabric", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    warnings.filterwarnings("ignore", message=".*(lightning|litlogger|LeafSpec).*")
