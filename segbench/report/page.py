"""The report: one HTML file that holds everything, and its figures beside it for papers."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from segbench import __version__, store
from segbench.report import across, cells, curves, figures, formats, searched
from segbench.report.analysis import Analysis
from segbench.report.diagnosed import diagnosed
from segbench.report.diagnosis import diagnosis
from segbench.report.drawing import PALETTE, VARIABLES, Look, inline, save, settle, style
from segbench.report.gallery import RATIO, Gallery, make_gallery
from segbench.report.metrics import Metric, available, choose, of_runs, thin_bands, value
from segbench.report.provenance import provenance
from segbench.report.runs import Group, Sweep, read_sweep
from segbench.report.table import Table, table_of, version_note
from segbench.report.words import Answers, as_text, caveats, compared, effects, questions, verdict

WEB = Path(__file__).parent / "web"
LIMIT = 15_000_000  # bytes of the page; the gallery takes what the rest leaves
RESERVE = 200_000

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Written:
    """What was written: the page, its size in bytes, the number of figures, and why images are not in it."""

    path: Path
    size: int
    figures: int
    notes: list[str]


def write_report(
    folder: Path,
    out: Path | None = None,
    gallery: bool = True,
    overrides: Sequence[str] = (),
    progress: Progress = lambda what: None,
    only: Sequence[str] = (),
) -> Written:
    """Write the report of a sweep's folder, and its figures to ``figures/`` beside it.

    Args:
        folder: ``runs/<sweep>``.
        out: the HTML file; default: ``report.html`` in the folder.
        gallery: also predict a few images with the stored weights.
        overrides: ``key=value`` for what differs here from the runs' configs, such as ``data.root``; for the gallery.
        progress: called with what is being done.
        only: decoders; differences, corrections and ranks are then among these. Default: all.

    Raises:
        UserError: no sweep there, no such decoder, no finished run, a broken file, or a place that cannot be written.
    """
    progress("reading")
    sweep = read_sweep(folder, True, only)
    out = out or folder / "report.html"
    sections = [_Section(sweep, group, place, out.parent / "figures") for place, group in enumerate(sweep.groups)]
    for section in sections:
        progress(f"figures {section.group.label}".strip())
        section.draw()
    page = _Page(sweep, sections)
    notes = []
    for section in sections if gallery else ():
        left = LIMIT - RESERVE - len(page.render().encode())
        share = left // (len(sections) - section.place)
        section.gallery = make_gallery(section.group, share, overrides, lambda d: progress(f"gallery: {d}"))
        notes += section.gallery.notes
    progress("writing")
    text = page.render()
    store.write_text(out, text)
    return Written(out, len(text.encode()), sum(s.drawn for s in sections), notes)


class _Section:
    """One group of runs that may be compared: its analyses, words, tables and plots."""

    def __init__(self, sweep: Sweep, group: Group, place: int, figures_at: Path) -> None:
        self.sweep, self.group, self.place, self.figures_at = sweep, group, place, figures_at
        self.anchor = f"g{place}"
        results = list(group.results.values())
        self.analyses = {m.name: Analysis(group, m) for m in available(results)}
        self.columns = [self.analyses[m.name] for m in choose(results, ())]
        self.main = across.main_of(self.analyses.values())
        self.classes: list[str] = results[0].row["classes"]
        self.baselines = sweep.baselines
        self.look = Look(sweep.decoders, self.baselines[0], {d: group.kind(d) for d in group.decoders})
        self.costs = [(m, {d: value(m, group.of(d)) for d in group.decoders}) for m in of_runs(results)]
        self.compared = compared(sweep, group)
        self.answers: Answers = [
            (question, [(a.metric.name, verdict(a.against(b))) for a in self.main])
            for question, b in zip(questions(self.baselines), self.baselines, strict=True)
        ]
        self.effects = effects(sweep, group, self.main[0]) if self.main else []
        self.diagnosed = diagnosed(self.analyses, self.main[0], sweep.baselines[0], self.classes) if self.main else []
        self.caveats = caveats(group, self.baselines)
        self.gallery = Gallery()
        self.plots: list[dict[str, Any]] = []
        self.differences: list[dict[str, Any]] = []
        self.diagnoses: list[dict[str, Any]] = []

    @property
    def order(self) -> dict[str, int]:
        """Decoder -> which the gallery shows first where there are too many: baselines, then by the first verdict."""
        means = {d: self.main[0].cell(d).mean if self.main else math.nan for d in self.group.decoders}
        sign = -1 if self.main and self.main[0].metric.measure.higher_is_better else 1
        best = sorted(means, key=lambda d: (d not in self.baselines, math.isnan(means[d]), sign * means[d]))
        return {d: i for i, d in enumerate(best)}

    @property
    def kinds(self) -> list[str]:
        """Those of its decoders, in the order of the table; empty for what says nothing."""
        return list(dict.fromkeys(self.group.kind(d) for d in self.group.decoders))

    @property
    def text(self) -> str:
        """What the page says first, as a paragraph for a paper."""
        found = as_text(self.compared, self.answers, [*self.effects, *self.diagnosed], self.caveats)
        return f"{found} Made with segbench {__version__}."

    @property
    def means(self) -> cells.View:
        shown = [(m, of) for m, of in self.costs if m.table_place is not None]
        searched = list(cells.searched(self.sweep, self.group, self.main[0] if self.main else None))
        return cells.means(self.group, self.columns, self.baselines, shown, searched)

    @property
    def per_class(self) -> list[tuple[Metric, str, cells.View]]:
        """A table for each metric that is made of classes, and for each baseline."""
        found = [a for a in self.analyses.values() if a.metric.measure.per_class and not a.metric.measure.curve]
        return [(a.metric, b, cells.classes(a.against(b), self.classes)) for a in found for b in self.baselines]

    @property
    def drawn(self) -> int:
        """How many it has."""
        return len(self.plots) + len(self.differences) + len(self.diagnoses)

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(name, title) of the metrics between which a reader of the plots can choose."""
        return [(a.metric.name, a.metric.words) for a in self.main]

    def draw(self) -> None:
        """Make every figure, for the page and as files."""
        prefix = f"{self.anchor}-" if len(self.sweep.groups) > 1 else ""
        with style():
            # The first baseline's files have the plain names, whatever the second is called.
            suffixes = {f"-from-{slug(b)}" if i else "": b for i, b in enumerate(self.baselines)}
            for a in self.main:
                name = prefix + slug(a.metric.name)
                for suffix, b in suffixes.items():
                    for plot in figures.of_means(a.against(b), self.look, f"{name}-difference{suffix}"):
                        self.differences.append(self._keep(plot))
                    for plot in figures.of_classes(a.against(b), self.look, f"{name}-classes{suffix}"):
                        self.plots.append(self._keep(plot))
                costs = [(m, of) for m, of in self.costs if m.plotted]
                for plot in figures.of_metric(a, costs, self.look, name):
                    self.plots.append(self._keep(plot))
            for kind, found in self._curves().items():
                for plot in figures.over(found, self.look, f"{prefix}{slug(kind)}", suffixes):
                    self.plots.append(self._keep(plot))
            for plot in across.against_segmentation(self.sweep, self.group, self.look, prefix):
                self.plots.append(self._keep(plot))
            for plot in searched.trials(self.sweep, self.group, self.look, prefix):
                self.plots.append(self._keep(plot))
            for a in self.analyses.values():
                for plot in diagnosis(a, self.look, prefix + slug(a.metric.name)):
                    self.diagnoses.append(self._keep(plot))
            for plot in curves.curves(list(self.group.results.values()), self.look, prefix):
                self.plots.append(self._keep(plot))

    def _curves(self) -> dict[str, list[Analysis]]:
        """Kind -> its measures by their place on the curve."""
        found: dict[str, list[Analysis]] = {}
        for a in self.analyses.values():
            if a.metric.measure.curve:
                found.setdefault(a.metric.measure.kind, []).append(a)
        return {kind: sorted(of, key=lambda a: (a.metric.measure.curve or ("", 0))[1]) for kind, of in found.items()}

    def _keep(self, plot: figures.Plot) -> dict[str, Any]:
        settle(plot.figure)
        save(plot.figure, self.figures_at / plot.name)
        svg = inline(plot.figure, f"{self.anchor}-{plot.name}", plot.title)
        return {
            "name": plot.name,
            "title": plot.title,
            "caption": plot.caption,
            "metric": plot.metric,
            "svg": Markup(svg),
        }

    def plain(self) -> dict[str, Any]:
        """Every number of the section, unrounded, for JSON."""
        metrics = {}
        for name, a in self.analyses.items():
            places = range(len(self.classes)) if a.metric.measure.per_class else []
            metrics[name] = {
                "column": a.metric.column,
                "mean": {d: self._numbers(a, d, -1) for d in self.group.decoders},
                "classes": {self.classes[p]: {d: self._numbers(a, d, p) for d in self.group.decoders} for p in places},
            }
        costs = {m.name: {d: None if math.isnan(v) else v for d, v in of.items()} for m, of in self.costs}
        ranks = {a.metric.name: {d: vars(r) for d, r in a.ranks.items()} for a in self.main}
        collapsed = [f"{d}-s{seed}" for d, seed in self.group.collapsed]
        label = self.group.label
        return {"label": label, "metrics": metrics, "costs": costs, "ranks": ranks, "collapsed": collapsed}

    def _numbers(self, a: Analysis, d: str, place: int) -> dict[str, Any]:
        deltas = {b: a.against(b).delta(d, place) for b in self.baselines}
        plain = {b: None if math.isnan(delta.mean) else cells.plain(delta) for b, delta in deltas.items()}
        return {"score": cells.plain(a.cell(d, place)), "deltas": plain}


class _Page:
    """The template and what it is filled with."""

    def __init__(self, sweep: Sweep, sections: Sequence[_Section]) -> None:
        self.sweep, self.sections = sweep, sections
        self.provenance = provenance(sweep)
        self.stem = slug(sweep.folder.resolve().name)
        self.notes: list[str] = []
        self.files = self._files()
        loader = jinja2.FileSystemLoader(WEB)
        self.environment = jinja2.Environment(
            loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )

    def render(self) -> str:
        css = (WEB / "report.css").read_text("utf-8")
        scripts = [(WEB / name).read_text("utf-8") for name in ("table.js", "gallery.js", "filter.js")]
        data = {
            "sections": [s.plain() for s in self.sections],
            "files": self.files,
            "stem": self.stem,
            "colours": {variable[4:-1]: colour for colour, variable in VARIABLES.items()},
            "galleries": [s.gallery.plain() for s in self.sections],
        }
        return self.environment.get_template("report.html").render(
            sweep=self.sweep,
            name=self.sweep.folder.resolve().name,
            sections=self.sections,
            notes=self.notes,
            provenance=self.provenance,
            version=__version__,
            finished=max((r.row.get("finished", "") for r in self.sweep.results), default="")[:10],
            css=Markup(css),
            scripts=[Markup(s) for s in scripts],
            policy=policy(css, scripts),
            slug=slug,
            files_stem=self.stem,
            data=embedded(data),
            many=len(PALETTE),
            band_ratio=f"{RATIO:g}",
        )

    def _files(self) -> dict[str, str]:
        """Name -> content of what can be downloaded: the tables as `segbench table` writes them, and the config."""
        files = {f"{self.stem}.yaml": self.provenance.config}
        rows = [r.row for r in self.sweep.results]
        if len({json.dumps([row["classes"], row["evaluation"]], sort_keys=True) for row in rows}) > 1:
            self.notes = ["The groups were counted differently, so that there is no table of all to download."]
            self.notes.append(version_note(self.sweep.results))
            return files
        self._add(files, self.stem, table_of(self.sweep))
        thin = thin_bands(self.sweep.results, [m.name for m in available(self.sweep.results)])
        self.notes += [n for n in thin if n not in self.notes]
        for name in dict.fromkeys(metric.name for metric, _, _ in self.sections[0].per_class):
            table = table_of(self.sweep, [name], True, ("n", "score", "delta"))
            self._add(files, f"{self.stem}-{slug(name)}-classes", table)
        return files

    def _add(self, files: dict[str, str], name: str, table: Table) -> None:
        files |= {f"{name}.csv": formats.as_csv(table), f"{name}.tex": formats.as_tex(table)}
        self.notes += [n for n in table.notes if n not in self.notes]


def embedded(data: Any) -> Markup:
    """JSON that is safe inside a script element, whatever names are in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def policy(css: str, scripts: Sequence[str]) -> str:
    """A Content-Security-Policy that lets nothing be fetched and only these scripts and this style sheet run."""
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in (css, *scripts)]
    return (
        f"default-src 'none'; img-src data:; style-src-elem {hashes[0]}; style-src-attr 'unsafe-inline'; "
        f"script-src {' '.join(hashes[1:])}; base-uri 'none'; form-action 'none'"
    )


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "sweep"
