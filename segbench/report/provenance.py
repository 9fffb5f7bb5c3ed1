"""Where a sweep's numbers come from: config, versions, hardware, hashes, every run and what became of it."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from segbench import store
from segbench.report.runs import NOT_PLANNED, Sweep
from segbench.runs import spelled_variant
from segbench.sweep.status import last_said

HASHES = {"encoder_hash": "encoder weights", "features_hash": "encoder features", "data_fingerprints": "data"}
TRACEBACK_LINES = 40


@dataclass(frozen=True)
class RunLine:
    """A planned run: its state, and where it failed why."""

    decoder: str
    seed: int
    variant: str
    key: str
    state: str
    finished: str
    loss: float | None
    reason: str
    traceback: str

    @property
    def done(self) -> bool:
        return self.state == "done"


@dataclass(frozen=True)
class Provenance:
    """Facts are (name, value) pairs; where runs differ, a value says in how many it holds."""

    config: str
    environment: list[tuple[str, str]]
    hashes: list[tuple[str, str]]
    runs: list[RunLine]
    sources: list[tuple[str, str]]  # heading -> a file of a plug-in, as it was run


def provenance(sweep: Sweep) -> Provenance:
    """Read what the run folders say about how they came about; what was not copied along is left out.

    Raises:
        UserError: a file that is there and is broken.
    """
    config = yaml.safe_dump(sweep.config, sort_keys=False, allow_unicode=True)
    facts: dict[str, list[str]] = {}
    for result in sweep.results:
        for name, value in _environment(result.folder):
            facts.setdefault(name, []).append(value)
    hashes: dict[str, list[str]] = {}
    for result in sweep.results:
        for key, name in HASHES.items():
            value = result.row[key]
            hashes.setdefault(name, []).append(value if isinstance(value, str) else " ".join(map(str, value)))
    return Provenance(config, _distinct(facts), _distinct(hashes), _runs(sweep), _sources(sweep))


def _sources(sweep: Sweep) -> list[tuple[str, str]]:
    """The plug-ins' files that the runs keep, each version once."""
    found: dict[tuple[str, str], list[str]] = {}
    for result in sweep.results:
        for path in sorted((result.folder / store.SOURCE).rglob("*.py")):
            name = "/".join(path.relative_to(result.folder / store.SOURCE).parts[1:])
            runs = found.setdefault((name, path.read_text("utf-8", "replace")), [])
            runs.append(f"{result.row['decoder']}-s{result.row['seed']}")
    return [(f"{name}, of {', '.join(dict.fromkeys(runs))}", text) for (name, text), runs in found.items()]


def _environment(folder: Path) -> list[tuple[str, str]]:
    found = store.read_json(folder / "environment.json") or {}
    git = found.get("git") or {}
    facts = [(n, found.get(n)) for n in ("cpu", "gpu", "threads", "platform")]
    facts += [("segbench's git commit", git.get("commit")), ("and uncommitted changes", git.get("changes"))]
    facts += sorted((found.get("versions") or {}).items(), key=lambda kv: (kv[0] not in ("segbench", "python"), kv[0]))
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _distinct(facts: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(name, value), with the number of runs behind each value where there are several."""
    lines = []
    for name, values in facts.items():
        different = list(dict.fromkeys(values))
        for value in different:
            count = values.count(value)
            lines.append((name, value if len(different) == 1 else f"{value} ({count} run{'s' if count > 1 else ''})"))
    return lines


def _runs(sweep: Sweep) -> list[RunLine]:
    done = {r.folder: r.row for r in sweep.results}
    why = {(m.decoder, m.seed): m for m in sweep.missing}
    lines = []
    for plan in sweep.planned:
        folder = sweep.folder / plan["folder"]
        row = done.get(folder)
        variant = ", ".join(spelled_variant(plan["variant"]))
        if row is not None:
            state, reason, trace = "done", "", ""
        else:
            status = last_said(folder)
            known = why.get((plan["decoder"], plan["seed"]))
            state = status.get("state", known.state if known else "not started")
            reason, trace = status.get("reason", ""), _traceback(folder)
        lines.append(
            RunLine(
                plan["decoder"],
                plan["seed"],
                variant,
                plan["key"],
                state,
                (row or {}).get("finished", ""),
                (row or {}).get("last_loss"),
                reason,
                trace,
            )
        )
    unplanned = [m for m in sweep.missing if m.state == NOT_PLANNED]
    return lines + [RunLine(m.decoder, m.seed, "", "", m.state, "", None, m.reason, "") for m in unplanned]


def _traceback(folder: Path) -> str:
    try:
        lines = (folder / store.TRACEBACK).read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-TRACEBACK_LINES:])
