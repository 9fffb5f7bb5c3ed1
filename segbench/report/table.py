"""The metric table: rows are decoders, cells carry their spread. Made from run folders alone."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from segbench import store
from segbench.errors import UserError, unknown
from segbench.metrics import contour_f1, iou, mean_over_classes, pixel_accuracy


@dataclass(frozen=True)
class Cell:
    """Mean over seeds of a score, with standard deviation and n; a hole where runs are missing.

    Attributes:
        mean, sd: NaN for a hole; sd also for n = 1.
        n: seeds that are there.
        wanted: seeds that the sweep has; the mean is only made where n == wanted.
    """

    mean: float
    sd: float
    n: int
    wanted: int


@dataclass(frozen=True)
class Difference:
    """Mean paired difference from the baseline over seeds, with the half width of its 95 % interval (Student's t)."""

    mean: float
    half_width: float

    @property
    def verdict(self) -> str:
        if math.isnan(self.mean):
            return ""
        if math.isnan(self.half_width):
            return "one seed"
        if abs(self.mean) <= self.half_width:
            return "within noise"
        return "better" if self.mean > 0 else "worse"


@dataclass(frozen=True)
class Table:
    """Columns of cells by row; ``notes`` says what a reader must know."""

    title: str
    columns: list[str]
    rows: list[dict[str, Any]]
    notes: list[str]


Score = Callable[[store.Result], float]


@dataclass(frozen=True)
class Metric:
    """A score that can be made from a run's counts.

    Attributes:
        name: as it is asked for, such as ``biou@0.02``.
        column: its heading; that of a boundary score carries the pixels.
        per_class: run -> (K,) in percent, NaN for absent classes; the mean over them is the score.
    """

    name: str
    column: str
    per_class: Callable[[store.Result], Any]

    def mean(self, result: store.Result) -> float:
        return float(mean_over_classes(self.per_class(result)))


def available(results: Sequence[store.Result]) -> list[Metric]:
    """Every metric that the counts of these runs hold."""
    protocol = results[0].row["evaluation"]
    found = [Metric("miou", "mIoU", lambda r: 100 * iou(r.counts["region"].sum(0)))]
    for i, ratio in enumerate(protocol["boundary_ratios"]):
        widths = sorted({int(w) for r in results for w in r.counts["widths_px"][:, i]})
        pixels = f"{widths[0]}px" if len(widths) == 1 else f"{widths[0]}-{widths[-1]}px"
        found.append(Metric(f"biou@{ratio:g}", f"BIoU {ratio:g} ({pixels})", _part("boundary", i, iou)))
    for i, tolerance in enumerate(protocol["tolerances_px"]):
        found.append(Metric(f"bf1@{tolerance:g}", f"BF1 ({tolerance:g}px)", _part("contour", i, contour_f1)))
    for i, width in enumerate(protocol["trimap_widths_px"]):
        found.append(Metric(f"trimap@{width}", f"trimap ({width}px)", _part("trimap", i, iou)))
    found.append(Metric("accuracy", "pixel acc.", lambda r: 100 * pixel_accuracy(r.counts["region"].sum(0))[None]))
    return found


def _part(array: str, index: int, score: Callable[[Any], Any]) -> Callable[[store.Result], Any]:
    return lambda r: 100 * score(r.counts[array][:, index].sum(0))


def choose(results: Sequence[store.Result], names: Sequence[str]) -> list[Metric]:
    """The metrics of those names; by default mIoU, every Boundary IoU and pixel accuracy.

    Raises:
        UserError: a name that these runs' counts do not give.
    """
    there = {m.name: m for m in available(results)}
    wanted = names or [n for n in there if n in ("miou", "accuracy") or n.startswith("biou")]
    for name in wanted:
        if name not in there:
            raise unknown("metric", name, there)
    return [there[name] for name in wanted]


def summarise(values: dict[int, float], wanted: Sequence[int]) -> Cell:
    """``values``: seed -> score. No mean over holes."""
    there = [values[s] for s in wanted if s in values]
    whole = len(there) == len(wanted)
    mean = float(np.mean(there)) if whole else math.nan
    sd = float(np.std(there, ddof=1)) if whole and len(there) > 1 else math.nan
    return Cell(mean, sd, len(there), len(wanted))


def paired(values: dict[int, float], baseline: dict[int, float], wanted: Sequence[int]) -> Difference:
    """Difference by seed: both were trained on the same batches, so that what they share cancels."""
    if not all(s in values and s in baseline for s in wanted):
        return Difference(math.nan, math.nan)
    gaps = np.array([values[s] - baseline[s] for s in wanted])
    if len(gaps) < 2:
        return Difference(float(gaps[0]), math.nan)
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps))
    return Difference(float(gaps.mean()), float(half))


def make_table(folder: Path, metrics: Sequence[str] = (), classes: bool = False) -> Table:
    """The table of a sweep's folder, made from its run folders alone.

    Args:
        folder: ``runs/<sweep>``.
        metrics: names such as ``miou``, ``biou@0.02``, ``bf1@3``, ``trimap@4``, ``accuracy``; default: see `choose`.
        classes: one column per class, of the first of ``metrics``.

    Raises:
        UserError: no sweep there, no finished run, an unknown metric, or rows that must not stand in one table.
    """
    manifest = store.read_json(folder / store.MANIFEST)
    if manifest is None:
        raise UserError(f"{folder} holds no sweep ({store.MANIFEST} is missing)")
    planned = manifest["runs"]
    results = {p["key"]: store.read_result(folder / p["folder"]) for p in planned}
    there = [r for r in results.values() if r is not None]
    if not there:
        raise UserError(f"no run of {folder} is finished; `segbench sweep` goes on with it")
    _refuse_mixed(planned, results)
    chosen = choose(there, metrics)
    columns: dict[str, Score] = {m.column: m.mean for m in chosen}
    if classes:
        columns = {name: _of_class(chosen[0], i) for i, name in enumerate(there[0].row["classes"])}
    seeds, base = manifest["config"]["seeds"], manifest["config"]["baseline"] or "bilinear"
    groups: dict[str, list[dict[str, Any]]] = {}
    for p in planned:
        groups.setdefault(json.dumps(p["variant"]), []).append(p)
    rows = []
    for variant, members in groups.items():
        titles = list(dict.fromkeys(p["decoder"] for p in members))
        finished = {
            t: [r for p in members if p["decoder"] == t and (r := results[p["key"]]) is not None] for t in titles
        }
        values = {
            t: {c: {r.row["seed"]: score(r) for r in finished[t]} for c, score in columns.items()} for t in titles
        }
        for title in titles:
            row: dict[str, Any] = {"decoder": title, "variant": json.loads(variant), "n": len(finished[title])}
            for column in columns:
                row[column] = summarise(values[title][column], seeds)
                if not classes and column != "pixel acc." and base in titles and title != base:
                    row[f"Δ {column}"] = paired(values[title][column], values[base][column], seeds)
            rows.append(row | ({} if classes else _costs(finished[title])))
    what = {name: sorted({str(r.row[name]) for r in there}) for name in ("data", "images", "encoder", "steps")}
    said = {name: values[0] if len(values) == 1 else "several" for name, values in what.items()}
    trained = {True: "fine-tuned", False: "frozen"}
    trained_as = " and ".join(sorted({trained[r.row["encoder_trainable"]] for r in there}))
    title = (
        f"{folder.name}: {said['data']}, {said['images']} images, {trained_as} {said['encoder']}, {said['steps']} steps"
    )
    title += "".join(sorted({f", {t}" for r in there if (t := r.row["evaluation_title"])}))
    title += f", {chosen[0].column} per class" if classes else ""
    return Table(title, list(columns), rows, _notes(there, planned, folder, seeds, base, classes))


def _of_class(metric: Metric, index: int) -> Score:
    return lambda r: float(metric.per_class(r)[index])


def _refuse_mixed(planned: list[dict[str, Any]], results: dict[str, store.Result | None]) -> None:
    """Rows must be counted alike, and those of one variant share the encoder, or their difference means nothing."""
    for name, whole in (("classes", True), ("evaluation", True), ("encoder_hash", False), ("features_hash", False)):
        seen: dict[str, set[str]] = {}
        for p in planned:
            if (r := results[p["key"]]) is not None:
                value = r.row[name]
                place = "" if whole else json.dumps(p["variant"])
                seen.setdefault(place, set()).add(value if isinstance(value, str) else json.dumps(value))
        mixed = [values for values in seen.values() if len(values) > 1]
        if mixed:
            raise UserError(f"rows with different {name} ({', '.join(sorted(mixed[0]))}) cannot stand in one table")


def _costs(finished: list[store.Result]) -> dict[str, Any]:
    if not finished:
        return {"params": math.nan, "MACs": math.nan, "train s": math.nan, "eval ms": math.nan}
    mean = {k: float(np.mean([r.row[k] for r in finished])) for k in ("train_s", "eval_ms_per_image")}
    row = finished[0].row
    return {
        "params": row["parameters"],
        "MACs": row["macs"],
        "train s": mean["train_s"],
        "eval ms": mean["eval_ms_per_image"],
    }


def _notes(
    there: list[store.Result], planned: list[dict[str, Any]], folder: Path, seeds: list[int], base: str, classes: bool
) -> list[str]:
    row = there[0].row
    notes = [f"Mean ± sd in percent over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}; last checkpoint."]
    if not classes:
        shared = float(np.mean([r.row["train_shared_s"] for r in there]))
        encoder = float(np.mean([r.row["eval_encoder_ms_per_image"] for r in there]))
        if any(p["decoder"] == base for p in planned):
            notes.append(f"Δ: from {base}, paired by seed, with its 95 % interval (Student's t over seeds).")
        notes += [
            "MACs: of the decoder alone on a 512x512 image. Train s, eval ms: of the decoder alone; data and encoder "
            f"took {shared:.0f} s more of each cohort, the encoder {encoder:.0f} ms more of each image.",
        ]
    total = np.sum([r.counts["region"].sum(0) for r in there], axis=0)
    absent = [name for name, c in zip(row["classes"], total.T, strict=True) if not c.any()]
    if absent:
        notes.append(f"Not there and never predicted, so left out of the means: {', '.join(absent)}.")
    only = [name for name, c in zip(row["classes"], total.T, strict=True) if c.any() and not c[2]]
    if only:
        notes.append(f"Not there but predicted by some, for whom it counts as 0 in the mean: {', '.join(only)}.")
    for p in planned:
        status = store.read_json(folder / p["folder"] / store.STATUS) or {}
        if not store.is_done(folder / p["folder"]):
            reason = f": {status['reason']}" if "reason" in status else ""
            notes.append(f"Missing: {p['decoder']}-s{p['seed']}, {status.get('state', 'not started')}{reason}")
    return notes
