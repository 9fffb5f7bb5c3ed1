"""SweepConfig -> runs -> cohorts, and the runs' keys. Imports no torch."""

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segbench.config import OF_OPTIMIZER, DecoderConfig, SweepConfig
from segbench.config_effort import TuneConfig
from segbench.errors import Failure, UserError
from segbench.store import RESULT_VERSION, newest_checkpoint


@dataclass(frozen=True)
class ClassFacts:
    """Of a decoder (upsampler and skeleton) or encoder with parameters: class names, all parameters, source's hash."""

    class_name: str
    params: dict[str, Any]
    source: str


@dataclass(frozen=True)
class Facts:
    """What a config's names stand for: all that a run's key needs beside the config itself.

    ``data`` holds the data set's class name, hashes of its source and parameters, and the fingerprints of its
    two splits; ``measures`` class name, parameters and source of each; ``encoder`` is None for one of SMP's or timm's
    without parameters, whose name and weights say all; ``task`` is None for segmentation; ``budget`` holds
    what was found for each decoder's width.
    """

    accelerator: str
    gpus: int
    encoder_hash: str
    classes: tuple[str, ...]
    data: list[str]
    eval_images: int
    strides: tuple[int, ...]
    decoders: dict[str, ClassFacts]
    measures: list[list[Any]]
    encoder: ClassFacts | None = None
    task: ClassFacts | None = None
    budget: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One (data, encoder, decoder, recipe, seed).

    Attributes:
        key: hash of everything that changes its numbers, and of nothing else.
        variant: the grid values that set it apart, empty without a grid.
        config: of its variant.
        folder: where it is kept.
        conditions: hash of what runs of its variant must share to stand in one table.
        found: what was searched for it: ``choice`` of its setting, and ``budget``, of its width.
        awaited: it stands for one whose setting is not chosen yet, so that it can be estimated and not be run.
    """

    key: str
    decoder: DecoderConfig
    seed: int
    variant: dict[str, Any]
    config: SweepConfig
    facts: Facts
    folder: Path
    conditions: str
    found: dict[str, Any] = field(default_factory=dict)
    awaited: bool = False

    @property
    def title(self) -> str:
        return self.decoder.title

    @property
    def name(self) -> str:
        return " ".join([f"{self.title}-s{self.seed}", *spelled_variant(self.variant)])

    @property
    def shared(self) -> str:
        """What runs have in common that can be trained and evaluated side by side, as text."""
        recipe = self.config.recipe.model_dump(exclude=set(OF_OPTIMIZER))
        sections = self.config.model_dump(
            include={"data", "encoder", "evaluation", "measures", "trainer", "launch", "task"}
        )
        return json.dumps(sections | {"recipe": recipe, "seed": self.seed}, sort_keys=True, default=str)


@dataclass(frozen=True)
class Cohort:
    """Runs that share data, encoder, batches and seed, and that stand at the same step: trained in lockstep."""

    runs: tuple[Run, ...]
    start_step: int

    @property
    def name(self) -> str:
        first = self.runs[0]
        variant = "".join(f" {v}" for v in spelled_variant(self.variant))
        return f"seed {first.seed}{variant}" + (f" {first.title}" if first.config.encoder.trainable else "")

    @property
    def variant(self) -> dict[str, Any]:
        """What of the runs' variants they have in common."""
        first, *others = (run.variant for run in self.runs)
        return {k: v for k, v in first.items() if all(k in other and other[k] == v for other in others)}

    def titles(self, runs: Iterable[Run] = ()) -> str:
        """Of its runs, by default all, the decoders, each with what sets it apart, or in how many settings."""
        shared = self.variant
        found: dict[str, list[str]] = {}
        for run in runs or self.runs:
            own = {k: v for k, v in run.variant.items() if k not in shared}
            found.setdefault(run.title, []).append(" ".join(spelled_variant(own)))
        said = {title: own[0] if len(own) == 1 else f"({len(own)} settings)" for title, own in found.items()}
        return ", ".join(f"{title} {own}".rstrip() for title, own in said.items())


def grid_names(keys: Iterable[str], others: Collection[str] = ()) -> dict[str, str]:
    """Each dotted key of a grid -> what it is called: its last part, or all of it where the last part is taken.

    Args:
        keys: all that a sweep's variants have.
        others: what else has a name beside them, such as the other headings of a table.
    """
    keys = list(dict.fromkeys(keys))
    taken = [*others, *(k.rpartition(".")[2] for k in keys)]
    return {k: k if taken.count(k.rpartition(".")[2]) > 1 else k.rpartition(".")[2] for k in keys}


def spelled_variant(variant: Mapping[str, Any]) -> list[str]:
    """``["lr=0.001", ...]``, of the values that set a run apart."""
    names = grid_names(variant)
    return [f"{names[key]}={spelled(value)}" for key, value in variant.items()]


def spelled(value: Any) -> str:
    """A config's value in words: of a section the keys that are set, such as ``like bilinear_conv``."""
    if isinstance(value, Mapping) and "name" in value:  # a plug-in
        return " ".join([str(value["name"]), spelled(value.get("params") or {})]).strip()
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {spelled(each)}" for key, each in value.items() if each is not None)
    return "none" if value is None else str(value)


@dataclass(frozen=True)
class Variant:
    """A part of a sweep's runs: of these decoders, each with every seed.

    Attributes:
        values: what sets it apart of others.
        config: what its values make of the sweep's.
        titles: of the decoders that take part.
        before: ``config`` without what was chosen for these decoders; None where nothing was.
        tune: what chose it.
        found: title -> `Run.found`.
        awaited: as of a `Run`.
    """

    values: dict[str, Any]
    config: SweepConfig
    titles: list[str]
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    awaited: bool = False
    before: SweepConfig | None = None
    tune: TuneConfig | None = None


CLOSE = 0.05  # a cost that differs by less from a budget is as much


def priced(cost: float, by: str) -> str:
    """A cost in words, such as ``1.25 G multiply-accumulates``; ``by`` is ``macs``, ``params`` or ``ms``."""
    scale, prefix = next((s, p) for s, p in ((1e9, "G "), (1e6, "M "), (1e3, "k "), (1, "")) if cost >= s or s == 1)
    said = {"macs": "multiply-accumulates", "params": "parameters", "ms": "ms"}[by]
    return f"{cost / scale:.3g} {prefix}{said}"


def make_runs(variants: Sequence[Variant], find_facts: Callable[[SweepConfig], Facts]) -> list[Run]:
    """Every run of the sweep, in the order of its table. ``find_facts`` is called once for each variant.

    Runs of one decoder that turn out the same in two variants, such as the fixed and the tuned one, are one run.
    """
    placed: dict[tuple[int, int, int], Run] = {}
    titles: dict[str, str] = {}
    order = list(dict.fromkeys(as_text(variant.values) for variant in variants))
    for variant in variants:
        config, facts = variant.config, find_facts(variant.config)
        shared = _conditions(variant, facts)
        for (i, seed), (j, decoder) in itertools.product(enumerate(config.seeds), enumerate(config.decoders)):
            if decoder.title not in variant.titles:
                continue
            key = run_key(config, facts, decoder, seed) + "-tuned" * variant.awaited
            if titles.setdefault(key, decoder.title) != decoder.title:
                names = ", ".join(sorted({titles[key], decoder.title}))
                by = ", at the width that the budget gives" if facts.budget else ""
                raise UserError(
                    f"decoders {names} are the same decoder with the same parameters{by}; a sweep holds each run once"
                )
            folder = Path(config.runs_dir) / config.name / f"{_safe(decoder.title)}-s{seed}-{key}"
            place, found, fitted = order.index(as_text(variant.values)), variant.found.get(decoder.title, {}), decoder
            if budget := facts.budget.get(decoder.title):
                found = found | {"budget": budget}
                fitted = decoder.model_copy(update={"params": decoder.params | {"width": budget["width"]}})
            folder = _existing(folder, key)
            run = Run(key, fitted, seed, variant.values, config, facts, folder, shared, found, variant.awaited)
            placed[place, i, j] = run
    return [placed[place] for place in sorted(placed)]


def run_key(config: SweepConfig, facts: Facts, decoder: DecoderConfig, seed: int) -> str:
    """Hash of all that changes the numbers of a run: not of names, paths, worker counts or other runs."""
    own = facts.decoders[decoder.title]
    return _hash(conditions(config, facts) | {"decoder": [own.class_name, own.params, own.source], "seed": seed})


def _conditions(variant: Variant, facts: Facts) -> str:
    """Of its runs: `conditions`, skeleton, decoders' defaults, and which search and budget they come from."""
    config = variant.before or variant.config
    shared = {"defaults": config.decoder_defaults, "skeleton": config.skeleton}
    if variant.tune is not None:
        shared["tune"] = variant.tune.model_dump()
    if facts.budget:
        shared["budget"] = sorted({f"{found['asked']} {found['by']}" for found in facts.budget.values()})
    return _hash(conditions(config, facts) | shared)


def conditions(config: SweepConfig, facts: Facts) -> dict[str, Any]:
    """All that changes the numbers of a run but its decoder and seed."""
    unused = {"weights", "params"} if config.encoder.trainable else {"weights", "params", "lr_factor"}
    encoder, own = config.encoder.model_dump(exclude=unused), []
    if plugin := facts.encoder:  # its class stands for its name, which says where its file lies
        encoder["name"], own = plugin.class_name, [plugin.params, plugin.source]
    task = {} if facts.task is None else {"task": [facts.task.class_name, facts.task.params, facts.task.source]}
    return {
        "version": RESULT_VERSION,
        "data": [facts.data, facts.classes],
        "encoder": [facts.encoder_hash, encoder, *own],
        "recipe": config.recipe.model_dump(),
        "evaluation": protocol(config, facts.strides),
        "measures": facts.measures,
        "trainer": config.trainer.model_dump() | {"accelerator": facts.accelerator},
        **task,
    }


def as_text(values: Mapping[str, Any]) -> str:
    """The same text for the same values, whatever their order."""
    return json.dumps(values, sort_keys=True, default=str)


def _hash(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:10]


def protocol(config: SweepConfig, strides: Sequence[int]) -> dict[str, Any]:
    """All that decides how a prediction is made, for the key and for the row."""
    evaluation = config.evaluation
    windows = {"stride": evaluation.steps_px} if evaluation.mode == "slide" else {}
    return (
        evaluation.model_dump(exclude={"every"})
        | windows
        | {
            "pad_to_multiple_of": max(strides),
            "interpolation": "bilinear, align_corners=False",
            "logits": "at the labels' size, then argmax",
        }
    )


def should_split(cohort: Cohort, failure: Failure, process_died: bool = False) -> bool:
    """Whether the runs that failed so are tried again in smaller cohorts."""
    splits = cohort.runs[0].config.launch.on_oom == "split" if failure.out_of_memory else process_died
    return splits and len(cohort.runs) > 1


def make_cohorts(
    runs: Sequence[Run], step_of: Callable[[Run], int] = lambda run: newest_checkpoint(run.folder)[0]
) -> list[Cohort]:
    """Group runs that can share batches; ``step_of`` gives the step at which each goes on."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        alone = run.key if run.config.encoder.trainable else ""
        groups.setdefault((run.shared, step_of(run), alone), []).append(run)
    return [Cohort(tuple(group), place[1]) for place, group in groups.items()]


def _existing(folder: Path, key: str) -> Path:
    """The folder that already holds this key, whatever label it had then; else ``folder``."""
    there = sorted(folder.parent.glob(f"*-{key}")) if folder.parent.is_dir() else []
    return there[0] if there else folder


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:80]
