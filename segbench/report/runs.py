"""A sweep's folder read back: which runs it has, which are missing, and which may stand side by side."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segbench import store
from segbench.errors import UserError, unknown
from segbench.runs import spelled_variant
from segbench.sweep.status import last_said

BASELINES = ("bilinear", "bilinear_conv")  # what differences are from, where a sweep does not say
NOT_PLANNED = "not planned"  # a decoder without a seed that others have
# What rows must share to be compared: name in `result.json`, and what it is called to a reader.
IDENTITY = {
    "classes": "classes",
    "evaluation": "evaluation",
    "data_fingerprints": "data",
    "encoder_hash": "encoder_hash",
    "features_hash": "features_hash",
}


@dataclass(frozen=True)
class Missing:
    """A run that the table lacks, planned and not done or never planned, and why, as far as is known."""

    decoder: str
    seed: int
    state: str
    reason: str


@dataclass(frozen=True)
class Group:
    """Runs that may be compared: of one variant, counted alike on the same images, with the same encoder.

    Attributes:
        label: what sets it apart, such as ``lr=0.001``; empty where there is one group.
        decoders: in the order of the sweep, those that are another project's as a whole last.
        seeds: that each should have.
        results: (decoder, seed) -> finished run.
        found: decoder -> what was searched for it, as of a `segbench.runs.Run`.
    """

    label: str
    variant: dict[str, Any]
    decoders: list[str]
    seeds: list[int]
    results: dict[tuple[str, int], store.Result]
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def whole(self) -> list[str]:
        """The decoders without a hole."""
        return [d for d in self.decoders if all((d, s) in self.results for s in self.seeds)]

    def shipped(self, decoder: str) -> str:
        """Depth and strides of a decoder that is another project's as a whole; empty elsewhere."""
        return next((str(r.row.get("shipped", "")) for r in self.of(decoder)), "")

    def kind(self, decoder: str) -> str:
        """Such as ``guided``, see `segbench.listing.GROUPS`; empty where its class says nothing."""
        return next((str(r.row.get("group", "")) for r in self.of(decoder)), "")

    def of(self, decoder: str) -> list[store.Result]:
        return [self.results[decoder, s] for s in self.seeds if (decoder, s) in self.results]

    @cached_property
    def collapsed(self) -> dict[tuple[str, int], tuple[str, float]]:
        """(decoder, seed) -> the class that a collapsed run predicts, and for what share of the pixels."""
        found = {}
        for (decoder, seed), result in self.results.items():
            if "region" not in result.counts:  # of another task
                continue
            total = result.counts["region"].sum(0)
            if (top := collapsed(total)) is not None:
                found[decoder, seed] = result.row["classes"][top], float(total[1, top] / total[1].sum())
        return found


@dataclass(frozen=True)
class Sweep:
    """What a folder holds, in groups of runs that may be compared.

    Attributes:
        planned: the manifest's entry of each run that is shown, or missing.
        called: the last ``command`` that listed runs, and the git ``commit`` of the folder where it was given.
    """

    folder: Path
    config: dict[str, Any]
    planned: list[dict[str, Any]]
    groups: list[Group]
    missing: list[Missing]
    called: dict[str, str]

    @property
    def results(self) -> list[store.Result]:
        return [r for group in self.groups for r in group.results.values()]

    @property
    def holes(self) -> list[str]:
        """What is missing and why, in words: a line for each state and reason."""
        alike: dict[tuple[str, str], list[str]] = {}
        for m in self.missing:
            alike.setdefault((m.state, m.reason), []).append(f"{m.decoder}-s{m.seed}")
        return [f"{', '.join(runs)}, {state}{reason and f': {reason}'}" for (state, reason), runs in alike.items()]

    @property
    def decoders(self) -> list[str]:
        return list(dict.fromkeys(d for group in self.groups for d in group.decoders))

    @property
    def baselines(self) -> list[str]:
        """One or two: those that the config names, or those of `BASELINES` that take part, or else its first."""
        named = self.config.get("baseline") or [b for b in BASELINES if b in self.decoders] or BASELINES[:1]
        return [named] if isinstance(named, str) else list(named)


def read_sweep(
    folder: Path, allow_mixed: bool = False, only: Sequence[str] = (), manifest: dict[str, Any] | None = None
) -> Sweep:
    """Read every finished run of ``runs/<sweep>``.

    Args:
        allow_mixed: runs that must not be compared go into groups of their own, in place of an error.
        only: decoders; the sweep is then read as if it had no others.
        manifest: which runs; default: those that ``sweep.json`` lists now.

    Raises:
        UserError: no sweep there, no such decoder, no finished run, another version's runs, or runs that must not be
            compared.
    """
    manifest = manifest or store.read_plan(folder)
    titles = {p["decoder"] for p in manifest["runs"]}
    for title in only:
        if title not in titles:
            raise unknown("decoder", title, titles)
    all_planned = [p for p in manifest["runs"] if not only or p["decoder"] in only]
    members: dict[str, list[tuple[dict[str, Any], store.Result]]] = {}
    missing = []
    for planned in all_planned:
        place = folder / planned["folder"]
        if why := planned.get("awaited"):
            missing.append(Missing(planned["decoder"], planned["seed"], "not tuned", why))
            continue
        try:
            result = store.read_result(place)
        except store.Damaged as error:
            why = f"{error}; `segbench sweep` sets it aside and makes it again"
            missing.append(Missing(planned["decoder"], planned["seed"], "damaged", why))
            continue
        if result is None:
            status = last_said(place)
            state, reason = str(status.get("state", "not started")), str(status.get("reason", ""))
            missing.append(Missing(planned["decoder"], planned["seed"], state, reason))
        else:
            members.setdefault(_place(planned, result, allow_mixed), []).append((planned, result))
    for variant in {json.dumps(p["variant"], sort_keys=True): p["variant"] for p in all_planned}.values():
        asked = {(p["decoder"], p["seed"]): None for p in all_planned if p["variant"] == variant}
        every = itertools.product(dict.fromkeys(d for d, _ in asked), dict.fromkeys(s for _, s in asked))
        missing += [Missing(d, s, NOT_PLANNED, "no command asked for it") for d, s in every if (d, s) not in asked]
    if not members:
        raise UserError(f"no run of {folder} is finished; `segbench sweep` goes on with it")
    if not allow_mixed:
        _refuse_mixed(members)
    kinds = {place: _kinds(group) for place, group in members.items()}
    groups = []
    for place, found in members.items():
        variant = found[0][0]["variant"]
        planned_here = [p for p in all_planned if p["variant"] == variant]
        seeds = list(dict.fromkeys(p["seed"] for p in planned_here))
        there = {p["decoder"] for p, _ in found}
        # Where groups share a variant, each lists only its own; a decoder without any run stands in the first.
        alone = sum(g[0][0]["variant"] == variant for g in members.values()) == 1
        decoders = [d for d in dict.fromkeys(p["decoder"] for p in planned_here) if alone or d in there]
        results = {(p["decoder"], p["seed"]): r for p, r in found}
        searched = {p["decoder"]: {k: p[k] for k in ("choice", "budget") if p.get(k)} for p in planned_here}
        group = Group(_label(variant, kinds[place], kinds.values()), variant, decoders, seeds, results, searched)
        last = [d for d in decoders if group.shipped(d)]
        groups.append(replace(group, decoders=[d for d in decoders if d not in last] + last))
    return Sweep(folder, manifest["config"], all_planned, groups, missing, manifest.get("called", {}))


def collapsed(counts: npt.NDArray[np.integer[Any]]) -> int | None:
    """The class that a collapsed model predicts nearly everywhere; None for a model that has not collapsed.

    Collapsed: one class is predicted for at least 99 % of the pixels, the truth has several, and the others together
    are predicted for fewer than half the pixels that they have, which sets a good model of a lopsided split apart.

    Args:
        counts: (3, K): intersection, predicted, truth, summed over the images of the data set.
    """
    _, predicted, truth = np.asarray(counts, np.int64)
    top = int(predicted.argmax())
    others_predicted, others_true = (int(c.sum() - c[top]) for c in (predicted, truth))
    nearly_all = 100 * others_predicted <= predicted.sum()
    several = np.count_nonzero(truth) > 1
    return top if nearly_all and several and 2 * others_predicted < others_true else None


def comparable(results: Sequence[store.Result]) -> str:
    """Why runs must not be compared, in words; empty where they may be."""
    for name, called in IDENTITY.items():
        values = sorted({_word(r.row[name]) for r in results})
        if len(values) > 1:
            return f"rows with different {called} ({', '.join(values)}) cannot stand in one table"
    ids = results[0].ids
    if any(not np.array_equal(r.ids, ids) for r in results):
        return "rows that were counted on different images cannot stand in one table"
    return ""


def _refuse_mixed(members: dict[str, list[tuple[dict[str, Any], store.Result]]]) -> None:
    for group in members.values():
        if why := comparable([r for _, r in group]):
            raise UserError(f"{why}; --allow-mixed shows them in groups")
    everything = [r for group in members.values() for _, r in group]
    for name in ("classes", "evaluation"):  # those that a grid may not vary within one table
        values = sorted({_word(r.row[name]) for r in everything})
        if len(values) > 1:
            raise UserError(
                f"rows with different {name} ({', '.join(values)}) cannot stand in one table; --allow-mixed shows them "
                "in groups"
            )


def _place(planned: dict[str, Any], result: store.Result, allow_mixed: bool) -> str:
    variant = json.dumps(planned["variant"], sort_keys=True)
    return variant + json.dumps(_kinds([(planned, result)])) if allow_mixed else variant


def _kinds(group: Sequence[tuple[dict[str, Any], store.Result]]) -> dict[str, str]:
    row = group[0][1].row
    return {called: _word(row[name]) for name, called in IDENTITY.items()}


def _label(variant: dict[str, Any], own: dict[str, str], every: Any) -> str:
    said = spelled_variant(variant)
    differing = [called for called in own if len({kinds[called] for kinds in every}) > 1]
    return ", ".join([*said, *(f"{called} {_short(own[called])}" for called in differing if not variant)])


def _short(word: str) -> str:
    return word if len(word) <= 10 else hashlib.sha256(word.encode()).hexdigest()[:8]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
