"""Train and evaluate one cohort, in a process of its own: resume, fit, count, store."""

import csv
import io
import logging
import os
import platform
import subprocess
import sys
import time
import traceback
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
from segbench.config import SweepConfig
from segbench.data.base import Dataset
from segbench.data.pipeline import train_loader
from segbench.encoders import Encoder, build_encoder
from segbench.errors import UserError
from segbench.evaluate import Evaluation, evaluate
from segbench.lockstep import Lockstep, Member
from segbench.metrics import mean_iou
from segbench.plan import Cohort, Run
from segbench.probe import build_decoder, open_data

Report = Callable[[str, int, int], None]  # phase, done, total


class Stopped(Exception):
    """The runner asked to stop; the state is saved."""


def run_cohort(cohort: Cohort, report: Report, should_stop: Callable[[], bool], threads: int) -> dict[str, str]:
    """Train, evaluate and store the runs of a cohort.

    Args:
        report: called with phase (``train`` or ``evaluate``), steps or images done, and their total.
        should_stop: asked after each step.
        threads: of torch, in this process.

    Returns:
        run key -> reason, for each run that failed.

    Raises:
        Stopped: ``should_stop`` said so; every run's checkpoint is written.
        UserError: the data or the run folders cannot be used.
    """
    _quiet()
    torch.set_num_threads(threads)
    config, seed = cohort.runs[0].config, cohort.runs[0].seed
    encoder = build_encoder(config.encoder)
    data = {which: open_data(config, which) for which in ("train", "val")}
    members, failures, optimizer_states = {}, {}, {}
    for run in cohort.runs:
        decoder = build_decoder(run.decoder, encoder, len(data["train"].classes), seed, config.decoder_defaults)
        member = Member(type(decoder).__name__, decoder)
        if cohort.start_step:
            optimizer_states[run.key] = _load_checkpoint(run, cohort.start_step, member, encoder)
        members[run.key] = member
        store.write_yaml(run.folder / "config.yaml", run_config(run))
        store.write_json(run.folder / "environment.json", environment(threads, run.facts.accelerator))
        store.set_status(run.folder, "running", pid=os.getpid())

    checkpoint_at = [time.monotonic()]
    every = config.evaluation.every

    def after_step(done: int) -> bool:
        report("train", done, config.recipe.steps)
        if every and done % every == 0 and done < config.recipe.steps:
            _evaluate_midway(module, encoder, data["val"], config, done)
        stop = should_stop()
        due = time.monotonic() - checkpoint_at[0] > 60 * config.launch.checkpoint_minutes
        if (stop or due) and done < config.recipe.steps:
            for run in cohort.runs:
                if members[run.key].failure is None:
                    _save_checkpoint(run, module, done)
            checkpoint_at[0] = time.monotonic()
        return stop

    module = Lockstep(encoder, members, config.recipe, seed, cohort.start_step, config.encoder.lr_factor, after_step)
    module.optimizer_states = optimizer_states
    _fit(module, config, cohort, data["train"])
    for run in cohort.runs:
        failure = members[run.key].failure
        if failure is not None:
            failures[run.key] = _last_line(failure)
            store.fail(run.folder, failures[run.key], failure)
    alive = {run.key: members[run.key] for run in cohort.runs if run.key not in failures}
    if alive and module.steps_done < config.recipe.steps:
        for key in alive:
            store.set_status(next(r.folder for r in cohort.runs if r.key == key), "stopped", step=module.steps_done)
        raise Stopped
    if not alive:
        return failures

    report("evaluate", 0, len(data["val"]))
    index = config.trainer.devices[0] if isinstance(config.trainer.devices, list) else 0
    module.to(torch.device(cohort.runs[0].facts.accelerator, index))
    results, encoder_s = evaluate(
        encoder,
        {key: m.decoder for key, m in alive.items()},
        data["val"],
        config.evaluation,
        config.launch.workers,
        lambda done: report("evaluate", done, len(data["val"])),
    )
    for run in cohort.runs:
        if run.key not in alive:
            continue
        result = results[run.key]
        if result.failure is None:
            timing = {
                "train_s": members[run.key].train_s,
                "train_shared_s": module.shared_s,
                "eval_ms_per_image": 1000 * float(np.mean(result.seconds)),
                "eval_encoder_ms_per_image": 1000 * encoder_s,
                "cohort_size": len(cohort.runs),
            }
            _store(run, members[run.key], encoder, result, timing)
        else:
            failures[run.key] = _last_line(result.failure)
            store.fail(run.folder, failures[run.key], result.failure)
    return failures


def run_config(run: Run) -> dict[str, Any]:
    """The config of one run alone, resolved: a sweep file that would make it again."""
    values = run.config.model_dump()
    values["decoder_defaults"] = {}
    values["decoders"] = [run.decoder.model_dump() | {"params": run.facts.decoders[run.title].params}]
    return values | {"seeds": [run.seed]}


def environment(threads: int, accelerator: str) -> dict[str, Any]:
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
    git = {}
    for what, command in (("commit", ["rev-parse", "HEAD"]), ("changes", ["status", "--porcelain", "--", str(here)])):
        done = subprocess.run(["git", "-C", str(here), *command], capture_output=True, text=True, check=False)
        git[what] = done.stdout.strip() if done.returncode == 0 else None
    return {
        "versions": versions | {"segbench": segbench.__version__, "python": platform.python_version()},
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if accelerator == "cuda" else None,
        "threads": threads,
        "platform": platform.platform(),
        "git": git,
    }


def _fit(module: Lockstep, config: SweepConfig, cohort: Cohort, train: Dataset) -> None:
    loader = train_loader(train, config.recipe, cohort.runs[0].seed, cohort.start_step, config.launch.workers)
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
    if trainer.interrupted:
        raise Stopped


def _evaluate_midway(module: Lockstep, encoder: Encoder, val: Dataset, config: SweepConfig, step: int) -> None:
    alive = {key: m for key, m in module.members.items() if m.failure is None}
    results, _ = evaluate(
        encoder, {key: m.decoder for key, m in alive.items()}, val, config.evaluation, config.launch.workers
    )
    for key, member in alive.items():
        if results[key].failure is None:
            region = results[key].arrays()["region"].sum(0)
            member.history.append({"step": step, "val_miou": float(mean_iou(region))})


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
    }
    path = store.checkpoint(run.folder, step)
    store.write_atomic(path, lambda file: torch.save(state, file))
    for older in store.checkpoints(run.folder).values():
        if older != path:
            older.unlink(missing_ok=True)


def _load_checkpoint(run: Run, step: int, member: Member, encoder: Encoder) -> dict[str, Any]:
    path = store.checkpoint(run.folder, step)
    state = torch.load(path, map_location="cpu", weights_only=True)
    member.decoder.load_state_dict(state["decoder"])
    if state["encoder"] is not None:
        encoder.load_state_dict(state["encoder"])
    member.history, member.losses, member.train_s = state["history"], state["losses"], state["train_s"]
    optimizer: dict[str, Any] = state["optimizer"]
    return optimizer


def _store(run: Run, member: Member, encoder: Encoder, result: Evaluation, timing: dict[str, Any]) -> None:
    """Write the run's files, ``result.json`` last."""
    arrays: dict[str, Any] = result.arrays()
    tensors = {k: v.contiguous().cpu() for k, v in member.decoder.state_dict().items()}
    if encoder.trainable:
        tensors |= {f"encoder.{k}": v.contiguous().cpu() for k, v in encoder.state_dict().items()}
    store.write_atomic(run.folder / "decoder.safetensors", lambda file: file.write(save(tensors)))
    store.write_text(run.folder / "history.csv", _history(member.history))
    store.write_atomic(
        run.folder / store.COUNTS, lambda file: np.savez_compressed(file, ids=np.array(result.ids), **arrays)
    )
    facts = run.facts.decoders[run.title]
    row = {
        "key": run.key,
        "decoder": run.title,
        "seed": run.seed,
        "variant": run.variant,
        "data": run.config.data.name,
        "classes": run.facts.classes,
        "images": len(result.ids),
        "fingerprints": run.facts.fingerprints,
        "encoder": run.config.encoder.name,
        "encoder_hash": run.facts.encoder_hash,
        "features_hash": run.facts.features_hash,
        "encoder_trainable": run.config.encoder.trainable,
        "evaluation": run.config.evaluation.model_dump(exclude={"every"}),
        "parameters": facts.parameters,
        "macs": facts.macs,
        "steps": run.config.recipe.steps,
        "last_loss": next((h["loss"] for h in reversed(member.history) if "loss" in h), None),
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


def _last_line(trace: str) -> str:
    return trace.strip().rpartition("\n")[2]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _quiet() -> None:
    """Lightning's banner and tips say nothing that a runner with a table of its own needs."""
    for name in ("pytorch_lightning", "lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    warnings.filterwarnings("ignore", message=".*(lightning|litlogger|LeafSpec).*")


def cohort_failure(error: BaseException) -> tuple[str, str]:
    """One line and the traceback of what ended a whole cohort."""
    if isinstance(error, UserError):
        return str(error), ""
    return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
