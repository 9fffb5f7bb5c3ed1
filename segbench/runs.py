"""SweepConfig -> runs -> cohorts, and the runs' keys. Imports no torch."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segbench.config import OF_OPTIMIZER, DecoderConfig, SweepConfig
from segbench.config_file import expand_grid
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
    without parameters, whose name and weights say all.
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


@dataclass(frozen=True)
class Run:
    """One (data, encoder, decoder, recipe, seed).

    Attributes:
        key: hash of everything that changes its numbers, and of nothing else.
        variant: the grid values that set it apart, empty without a grid.
        config: of its variant.
        folder: where it is kept.
    """

    key: str
    decoder: DecoderConfig
    seed: int
    variant: dict[str, Any]
    config: SweepConfig
    facts: Facts
    folder: Path

    @property
    def title(self) -> str:
        return self.decoder.title

    @property
    def conditions(self) -> str:
        """Hash of what runs must share to stand in one table: `conditions`, skeleton and decoders' defaults."""
        shared = {"defaults": self.config.decoder_defaults, "skeleton": self.config.skeleton}
        return _hash(conditions(self.config, self.facts) | shared)

    @property
    def name(self) -> str:
        return " ".join([f"{self.title}-s{self.seed}", *spelled_variant(self.variant)])

    @property
    def shared(self) -> str:
        """What runs have in common that can be trained and evaluated side by side, as text."""
        recipe = self.config.recipe.model_dump(exclude=set(OF_OPTIMIZER))
        sections = self.config.model_dump(include={"data", "encoder", "evaluation", "measures", "trainer", "launch"})
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
        """Of its runs, by default all, the decoders, each with what sets it apart of its variant."""
        shared = self.variant
        found = [(r.title, {k: v for k, v in r.variant.items() if k not in shared}) for r in runs or self.runs]
        return ", ".join(" ".join([title, *spelled_variant(own)]) for title, own in found)


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
    return [f"{names[key]}={value}" for key, value in variant.items()]


def make_runs(config: SweepConfig, find_facts: Callable[[SweepConfig], Facts]) -> list[Run]:
    """Every run of the sweep, in the order of its table. ``find_facts`` is called once for each variant."""
    runs = []
    for variant, resolved in expand_grid(config):
        facts = find_facts(resolved)
        for seed in config.seeds:
            for decoder in config.decoders:
                key = run_key(resolved, facts, decoder, seed)
                folder = Path(config.runs_dir) / config.name / f"{_safe(decoder.title)}-s{seed}-{key}"
                runs.append(Run(key, decoder, seed, variant, resolved, facts, _existing(folder, key)))
    keys = [r.key for r in runs]
    same = [r for r in runs if keys.count(r.key) > 1]
    if same:
        names = ", ".join(sorted({r.title for r in same}))
        raise UserError(f"decoders {names} are the same decoder with the same parameters; a sweep holds each run once")
    return runs


def run_key(config: SweepConfig, facts: Facts, decoder: DecoderConfig, seed: int) -> str:
    """Hash of all that changes the numbers of a run: not of names, paths, worker counts or other runs."""
    own = facts.decoders[decoder.title]
    return _hash(conditions(config, facts) | {"decoder": [own.class_name, own.params, own.source], "seed": seed})


def conditions(config: SweepConfig, facts: Facts) -> dict[str, Any]:
    """All that changes the numbers of a run but its decoder and seed."""
    unused = {"weights", "params"} if config.encoder.trainable else {"weights", "params", "lr_factor"}
    encoder, own = config.encoder.model_dump(exclude=unused), []
    if plugin := facts.encoder:  # its class stands for its name, which says where its file lies
        encoder["name"], own = plugin.class_name, [plugin.params, plugin.source]
    return {
        "version": RESULT_VERSION,
        "data": [facts.data, facts.classes],
        "encoder": [facts.encoder_hash, encoder, *own],
        "recipe": config.recipe.model_dump(),
        "evaluation": protocol(config, facts.strides),
        "measures": facts.measures,
        "trainer": config.trainer.model_dump() | {"accelerator": facts.accelerator},
    }


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
