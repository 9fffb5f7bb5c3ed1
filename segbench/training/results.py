"""The files of a finished run, and what is measured once of it."""

import csv
import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from safetensors.torch import save

from segbench import store
from segbench.columns import described, said
from segbench.errors import brief
from segbench.measures.base import Measure, RunMeasure, Trained
from segbench.runs import Run, protocol
from segbench.training.evaluation import Evaluation
from segbench.training.lockstep import Lockstep
from segbench.training.machine import peak_memory


def run_config(run: Run) -> dict[str, Any]:
    """The config of one run alone, resolved: a sweep file that would make it again."""
    values = run.config.model_dump()
    values["decoder_defaults"] = {}
    values["launch"]["address"] = None  # which no file may name
    values["decoders"] = [run.decoder.model_dump() | {"params": run.facts.decoders[run.title].params}]
    return values | {"seeds": [run.seed], "baseline": None}  # which is another run


def write_run(run: Run, module: Lockstep, measures: Sequence[Measure], result: Evaluation) -> None:
    """Write the files of a trained and evaluated run, ``result.json`` last."""
    member, encoder, arrays = module.members[run.key], module.encoder, result.arrays()
    weights = member.decoder.state_dict()
    if encoder.trainable:
        weights |= {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in weights.items()}  # tied weights are written twice
    store.write_atomic(run.folder / store.WEIGHTS, lambda file: file.write(save(tensors)))
    store.write_text(run.folder / store.HISTORY, _history(member.history))
    store.write_atomic(run.folder / store.COUNTS, lambda file: np.savez_compressed(file, **arrays))
    facts = run.facts.decoders[run.title]
    eval_ms, encoder_ms, count_ms = (1000 * np.mean(result.seconds, 0)).tolist()
    memory = peak_memory(run.config.launch.workers)
    trained = Trained(member.decoder.eval(), encoder.channels, encoder.strides, member.train_s, eval_ms, memory)
    values, broken = _measured(trained, measures)
    row = {
        "key": run.key,
        "result_version": store.RESULT_VERSION,
        "decoder": run.title,
        "seed": run.seed,
        "variant": run.variant,
        "data": run.config.data.name,
        "classes": run.facts.classes,
        "images": len(result.seconds),
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
        "train_shared_s": module.shared_s,
        "eval_encoder_ms_per_image": encoder_ms,
        "eval_count_ms_per_image": count_ms,
        "cohort_size": len(module.members),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **member.hashes,
    }
    store.set_status(run.folder, "done")
    (run.folder / store.TRACEBACK).unlink(missing_ok=True)
    store.write_result(run.folder, row)
    store.tidy(run.folder)


def _measured(run: Trained, measures: Sequence[Measure]) -> tuple[dict[str, float], dict[str, str]]:
    """Name -> value of what is measured once of a run, and name -> why of what failed."""
    values, broken = {}, {}
    for measure in measures:
        if isinstance(measure, RunMeasure):
            try:
                value = float(measure.measure(run))
                if math.isnan(value):
                    raise ValueError("it gives NaN")
                values[measure.name] = value
            except Exception as error:  # a plug-in can raise anything
                broken[measure.name] = f"{said(measure)} fails: {brief(error)}"
    return values, broken


def _history(rows: list[dict[str, float]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(["step", "loss", "lr", *(name for row in rows for name in row)])))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
