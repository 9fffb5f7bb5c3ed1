"""The files of a run: its config, what it was made on, and once it is finished its result."""

import csv
import io
import math
import resource
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save

from segbench import store
from segbench.columns import described, said
from segbench.config import WEIGHTS_BY_NAME
from segbench.errors import brief
from segbench.loading.pipeline import Workers
from segbench.measures.base import Measure, RunMeasure, Trained
from segbench.registry import DATASETS, check_params
from segbench.runs import Run, protocol
from segbench.training.evaluation import Evaluation
from segbench.training.isolation import Desk, turn
from segbench.training.lockstep import Lockstep


def run_config(run: Run) -> dict[str, Any]:
    """The config of one run alone, resolved: a sweep file that would make it again, from any folder."""
    config, values = run.config, run.config.model_dump()
    given = check_params(DATASETS, config.data.name, DATASETS.load(config.data.name), config.data.params)
    values["data"] |= {name: str(value.absolute()) for name, value in given.items() if isinstance(value, Path)}
    if config.encoder.weights not in WEIGHTS_BY_NAME:
        values["encoder"]["weights"] = str(Path(config.encoder.weights).absolute())
    values["launch"]["address"] = None  # which no file may name
    decoder = run.decoder.model_dump() | {"params": run.facts.decoders[run.title].params}
    alone = {"decoders": [decoder], "seeds": [run.seed], "baseline": None, "budget": None}
    return values | {"decoder_defaults": {}} | alone


def peak_memory() -> int:
    """Bytes: the largest resident size of this process so far, and that of its loader workers."""
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + Workers.most * child) * (1 if sys.platform == "darwin" else 1024)


def write_run(run: Run, module: Lockstep, measures: Sequence[Measure], result: Evaluation) -> None:
    """Write the files of a trained and evaluated run, ``result.json`` last."""
    member, encoder, facts = module.members[run.key], module.encoder, run.facts.decoders[run.title]
    weights = member.decoder.state_dict()
    if encoder.trainable:
        weights |= {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in weights.items()}  # tied weights are written twice
    store.write_atomic(run.folder / store.WEIGHTS, lambda file: file.write(save(tensors)))
    text = io.StringIO()
    names = ["step", "loss", "lr", *(name for row in member.history for name in row)]
    writer = csv.DictWriter(text, list(dict.fromkeys(names)))
    writer.writeheader()
    writer.writerows(member.history)
    store.write_text(run.folder / store.HISTORY, text.getvalue())
    store.write_atomic(run.folder / store.COUNTS, lambda file: np.savez_compressed(file, **result.arrays()))
    eval_ms, encoder_ms, count_ms = (1000 * np.mean(result.seconds, 0)).tolist()
    memory = peak_memory()
    history = [*member.history, {"step": run.config.recipe.steps, **result.headline()}]
    trained = Trained(
        member.decoder.eval(), encoder.channels, encoder.strides, member.train_s, eval_ms, memory, history
    )
    values, broken = _measured(trained, measures, member.desk)
    row = {
        "key": run.key,
        "result_version": store.RESULT_VERSION,
        "decoder": run.title,
        "seed": run.seed,
        "variant": run.variant,
        "task": run.config.task.title,
        "task_params": run.facts.task.params if run.facts.task else {},
        "data": run.config.data.name,
        "split": run.config.data.split("val"),
        "classes": run.facts.classes,
        "images": len(result.seconds),
        "data_fingerprints": run.facts.data,
        "encoder": run.config.encoder.title,
        "encoder_source": run.facts.encoder.source if run.facts.encoder else None,
        "encoder_params": run.facts.encoder.params if run.facts.encoder else {},
        "encoder_dtype": run.config.encoder.dtype,
        "encoder_hash": run.facts.encoder_hash,
        "encoder_trainable": run.config.encoder.trainable,
        "evaluation": protocol(run.config, run.facts.strides),
        "evaluation_title": run.config.evaluation.title,
        "measures": described(measures),
        "values": values,
        "broken": result.broken | broken,
        "output_stride": facts.params.get("output_stride"),
        "decoder_source": facts.source,
        "group": _group(member.decoder),
        "shipped": str(member.decoder.shipped),
        "steps": run.config.recipe.steps,
        "last_loss": member.last_loss,
        "train_shared_s": module.shared_s,
        "eval_encoder_ms_per_image": encoder_ms,
        "eval_count_ms_per_image": count_ms,
        "cohort_size": len(module.members),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **member.facts,
    }
    store.set_status(run.folder, "done")
    (run.folder / store.TRACEBACK).unlink(missing_ok=True)
    store.write_result(run.folder, row)
    store.tidy(run.folder)


def _group(decoder: Any) -> str:
    """What its class, or its upsampler's, says that it is, such as ``guided``; empty where neither says anything."""
    parts = [decoder, *(step.module for step in decoder.upsampling())]
    return next((str(part.group) for part in parts if hasattr(part, "group")), "")


def _measured(run: Trained, measures: Sequence[Measure], desk: Desk | None) -> tuple[dict[str, float], dict[str, str]]:
    """Name -> value of what is measured once of a run, and name -> why of what failed."""
    values, broken = {}, {}
    for measure in measures:
        if isinstance(measure, RunMeasure):
            with turn("measure", measure.name, desk=desk) as done:
                value = float(measure.measure(run))
                if math.isnan(value):
                    raise ValueError("it gives NaN")
                values[measure.name] = value
            if done.error is not None:
                values.pop(measure.name, None)
                broken[measure.name] = f"{said(measure)} fails: {brief(done.error)}"
    return values, broken
