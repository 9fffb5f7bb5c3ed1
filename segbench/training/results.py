"""The files of a finished run, and what is measured once of it."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from safetensors.torch import save

from segbench import store
from segbench.columns import described, said
from segbench.encoders.base import Encoder
from segbench.errors import brief
from segbench.measures.base import Measure, RunMeasure, Trained
from segbench.runs import Run, protocol
from segbench.training.evaluation import Evaluation
from segbench.training.lockstep import Member
from segbench.training.machine import peak_memory


def run_config(run: Run) -> dict[str, Any]:
    """The config of one run alone, resolved: a sweep file that would make it again."""
    values = run.config.model_dump()
    values["decoder_defaults"] = {}
    values["launch"]["address"] = None  # which no file may name
    values["decoders"] = [run.decoder.model_dump() | {"params": run.facts.decoders[run.title].params}]
    return values | {"seeds": [run.seed], "baseline": None}  # which is another run


def write_run(
    run: Run,
    member: Member,
    encoder: Encoder,
    measures: Sequence[Measure],
    result: Evaluation,
    more: Mapping[str, Any],
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


def _history(rows: list[dict[str, float]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(["step", "loss", "lr", *(name for row in rows for name in row)])))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
