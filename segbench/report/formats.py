"""A table as text or file: terminal, md, csv, tex, json and parquet."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from segbench.errors import UserError
from segbench.measures.base import Measure, RunMeasure
from segbench.report.analysis import Cell, Delta, PValue
from segbench.report.escape import IN_EVERY_FONT, for_markdown, for_spreadsheet, for_tex
from segbench.report.ranking import Rank
from segbench.report.table import Table

if TYPE_CHECKING:
    import pandas

GAP = 3  # columns of the terminal between two of a grid


def as_json(table: Table) -> str:
    """Everything, unrounded."""

    def plain(value: Any) -> Any:
        if isinstance(value, Cell | Delta | Rank):
            return {k: plain(v) for k, v in asdict(value).items()}
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    rows = [{k: plain(v) for k, v in row.items()} for row in table.rows]
    return json.dumps({"title": table.title, "rows": rows, "notes": table.notes}, indent=1, ensure_ascii=False)


def flat(table: Table) -> list[dict[str, Any]]:
    """A row for each decoder, a column for each number, unrounded; None where there is none."""
    lines = []
    for row in table.rows:
        line: dict[str, Any] = {}
        for key, value in row.items():
            if isinstance(value, Cell):
                line |= {key: value.mean, f"{key} sd": value.sd, f"{key} low": value.low, f"{key} high": value.high}
            elif isinstance(value, Delta):
                line |= {key: value.mean, f"{key} low": value.low, f"{key} high": value.high}
                line |= {f"{key} p_holm": value.p_holm, f"{key} verdict": value.verdict}
            elif isinstance(value, Rank):
                line |= {
                    key: value.rank,
                    f"{key} low": value.low,
                    f"{key} high": value.high,
                    f"{key} best": value.p_best,
                }
            elif not isinstance(value, tuple):  # an interval stands with its score already
                line[key] = value
        lines.append({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()})
    fields = list(dict.fromkeys(k for line in sorted(lines, key=len, reverse=True) for k in line))
    return [{k: line.get(k) for k in fields} for line in lines]


def as_csv(table: Table) -> str:
    lines, out = flat(table), io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([for_spreadsheet(v) for v in row] for row in (lines[0], *(line.values() for line in lines)))
    return out.getvalue()


def long(frame: "pandas.DataFrame", how: str) -> str | bytes:
    """A long-form frame as csv, json or parquet.

    Raises:
        UserError: another format.
    """
    if how == "parquet":
        out = io.BytesIO()
        frame.to_parquet(out, index=False)
        return out.getvalue()
    if how not in ("csv", "json"):
        raise UserError(f"--long is written as csv, json or parquet, not {how}")
    if how == "json":
        return str(frame.to_json(orient="records", indent=1))
    return str(frame.map(for_spreadsheet).to_csv(index=False, header=list(map(for_spreadsheet, frame))))


def as_parquet(table: Table) -> bytes:
    import pandas

    out = io.BytesIO()
    pandas.DataFrame(flat(table)).to_parquet(out, index=False)
    return out.getvalue()


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and cells as rounded text, for everything that people read."""
    return table.headings, [[cell_text(table, row, h) for h in table.headings] for row in table.rows]


def cell_text(table: Table, row: dict[str, Any], heading: str) -> str:
    value = row[heading]
    return "" if heading == "collapsed" and not value else text(value, table.measures.get(heading))


def text(value: Any, measure: Measure | None = None) -> str:
    """A cell in a few characters, of a measure where it is one's."""
    if value is None:
        return ""
    if isinstance(measure, RunMeasure):
        return measure.text(value)
    digits = 2 if measure is None else measure.digits
    if isinstance(value, Delta):
        if math.isnan(value.mean):
            return "-"
        interval = "" if math.isnan(value.low) else f" [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"
        return f"{value.mean:+.{digits}f}{interval} {value.verdict}"
    if isinstance(value, Rank):
        return f"{value.rank} [{value.low}, {value.high}] {100 * value.p_best:.0f} % best"
    if isinstance(value, tuple):
        return "-" if math.isnan(value[0]) else f"[{value[0]:.{digits}f}, {value[1]:.{digits}f}]"
    if isinstance(value, Cell):
        if math.isnan(value.mean):
            return "-" if value.n == value.wanted else f"{value.n} of {value.wanted} runs"
        return f"{value.mean:.{digits}f}" + ("" if math.isnan(value.sd) else f" ± {value.sd:.{digits}f}")
    if isinstance(value, PValue):
        return "-" if math.isnan(value) else (f"{value:.3f}" if value >= 0.001 else "< 0.001")
    return str(value)


def best_rows(table: Table) -> dict[str, int]:
    """Heading of a score -> the row with the best mean."""
    found = {}
    for heading in table.scores:
        means = [math.nan if row[heading] is None else row[heading].mean for row in table.rows]
        if not all(math.isnan(m) for m in means):
            best = np.nanargmax if table.measures[heading].higher_is_better else np.nanargmin
            found[heading] = int(best(means))
    return found


def as_md(table: Table) -> str:
    header, body = grid(table)
    header, *body = ([for_markdown(cell) for cell in line] for line in (header, *body))
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [f"| {' | '.join(line)} |" for line in (header, rule, *body)]
    notes = [f"- {for_markdown(note, block=True)}" for note in table.notes]
    return "\n".join([f"**{for_markdown(table.title)}**", "", *lines, "", *notes]) + "\n"


def as_tex(table: Table) -> str:
    """A booktabs tabular, best mean of each score in bold."""
    header, body = grid(table)
    best = best_rows(table)
    lines = []
    for number, line in enumerate(body):
        cells = [for_tex(cell) for cell in line]
        for place, heading in enumerate(header):
            if best.get(heading) == number:
                cells[place] = rf"\textbf{{{cells[place]}}}"
        lines.append(" & ".join(cells) + r" \\")
    top = [
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(map(for_tex, header)) + r" \\",
        r"\midrule",
    ]
    tabular = [*top, *lines, r"\bottomrule", r"\end{tabular}"]
    notes = [table.title, *table.notes]
    if strange := sorted(set(re.findall(f"[^{IN_EVERY_FONT}]", "".join(tabular)))):
        notes.append(f"pdfLaTeX wants a package for {' '.join(strange)}; LuaLaTeX and XeLaTeX a font that has them.")
    return "\n".join([*(f"% {' '.join(note.split())}" for note in notes), *tabular]) + "\n"


def print_terminal(table: Table, console: Any) -> None:
    """Colours: green better than the baseline, red worse, dim within noise; bold the best mean of a score.

    Where one grid would be wider than the terminal, there are several, each with the columns that say what a row
    is; what belongs together stays so where it fits. Where it is still too wide, the verdict of a difference stands
    below it, and headings are broken between words.
    """
    from rich.text import Text

    console.print(Text(table.title, style="bold"), soft_wrap=True)
    first, *blocks = table.blocks
    grids = [first]
    for block in blocks:
        for part in [block] if _widths(table, first + block, console.width, True) else [[h] for h in block]:
            together = grids[-1] + part
            whole = _widths(table, together, console.width)
            if grids[-1] == first or (whole and all(len(h) <= whole[h] for h in together)):
                grids[-1] = together
            else:
                grids.append(first + part)
    for headings in grids:
        console.print()
        console.print(_rich(table, headings, console.width))
    console.print()
    for note in table.notes:
        console.print(note, style="dim", highlight=False, markup=False)


def _rich(table: Table, headings: Sequence[str], width: int) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
    widths = _widths(table, headings, width)
    in_lines = widths is None
    widths = widths or _widths(table, headings, width, True) or {}  # else words are broken
    for i, heading in enumerate(headings):
        shown.add_column(Text(heading), justify="right" if i else "left", overflow="fold", width=widths.get(heading))
    best = best_rows(table)
    styles = {"better": "green", "worse": "red", "inconclusive": "", "within noise": "dim", "one seed": "dim", "": ""}
    for number, row in enumerate(table.rows):
        cells = []
        for heading in headings:
            value, said = row[heading], "\n".join(_lines(table, row, heading, in_lines))
            style = (
                styles.get(value.verdict, "") if isinstance(value, Delta) else "red" if heading == "collapsed" else ""
            )
            cells.append(Text(said, style="bold" if best.get(heading) == number else style))
        shown.add_row(*cells)
    return shown


def _lines(table: Table, row: dict[str, Any], heading: str, in_lines: bool) -> list[str]:
    """A cell's text; ``in_lines`` with the verdict of a difference on a line of its own."""
    said, value = cell_text(table, row, heading), row[heading]
    verdict = value.verdict if isinstance(value, Delta) and in_lines else ""
    return [said.removesuffix(f" {verdict}"), verdict] if verdict else [said]


def _widths(table: Table, headings: Sequence[str], width: int, in_lines: bool = False) -> dict[str, int] | None:
    """Of each column of a grid ``width`` wide; None where cells or words of headings would have to be broken.

    What is left over goes to the headings, up to one width for all.
    """
    from rich.cells import cell_len

    least = {
        h: max(map(cell_len, [*h.split(), *(line for row in table.rows for line in _lines(table, row, h, in_lines))]))
        for h in headings
    }
    room = width - GAP * (len(headings) - 1)
    if sum(least.values()) > room:
        return None
    found = least
    for most in range(max(map(cell_len, headings)) + 1):
        wider = {h: max(least[h], min(cell_len(h), most)) for h in headings}
        if sum(wider.values()) > room:
            break
        found = wider
    return found
