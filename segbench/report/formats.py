"""A table as text: terminal, md, csv, tex and json."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from segbench.report.table import Cell, Difference, Table


def as_json(table: Table) -> str:
    """Everything, unrounded."""

    def plain(value: Any) -> Any:
        if isinstance(value, Cell | Difference):
            value = vars(value) | ({"verdict": value.verdict} if isinstance(value, Difference) else {})
            return {k: plain(v) for k, v in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    rows = [{k: plain(v) for k, v in row.items()} for row in table.rows]
    return json.dumps({"title": table.title, "rows": rows, "notes": table.notes}, indent=1, ensure_ascii=False)


def as_csv(table: Table) -> str:
    """One line a decoder, a column for each number, unrounded."""
    lines = []
    for row in table.rows:
        line: dict[str, Any] = {}
        for key, value in row.items():
            if isinstance(value, Cell):
                line |= {key: value.mean, f"{key} sd": value.sd}
            elif isinstance(value, Difference):
                line |= {key: value.mean, f"{key} ±": value.half_width, f"{key} verdict": value.verdict}
            elif key == "variant":
                line |= value
            else:
                line[key] = value
        lines.append(line)
    out = io.StringIO()
    fields = list(dict.fromkeys(k for line in lines for k in line))
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()} for line in lines
    )
    return out.getvalue()


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and cells as rounded text, for everything that people read."""
    variants = list(dict.fromkeys(k for row in table.rows for k in row["variant"]))
    with_gaps = [c for column in table.columns for c in (column, f"Δ {column}") if any(c in row for row in table.rows)]
    costs = [c for c in ("params", "MACs", "train s", "eval ms") if c in table.rows[0]]
    header = ["decoder", *(v.rpartition(".")[2] for v in variants), "n", *with_gaps, *costs]
    body = []
    for row in table.rows:
        line = [row["decoder"], *(str(row["variant"].get(v, "")) for v in variants), str(row["n"])]
        line += [_text(row.get(column)) for column in with_gaps]
        body.append(line + [_cost(c, row[c]) for c in costs])
    return header, body


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Difference):
        if math.isnan(value.mean):
            return "-"
        interval = "" if math.isnan(value.half_width) else f" ± {value.half_width:.2f}"
        return f"{value.mean:+.2f}{interval} {value.verdict}"
    if math.isnan(value.mean):
        return "-" if value.n == value.wanted else f"{value.n} of {value.wanted} runs"
    return f"{value.mean:.2f}" + ("" if math.isnan(value.sd) else f" ± {value.sd:.2f}")


def _cost(column: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if column == "params":
        return f"{value / 1e6:.2f} M"
    return f"{value / 1e9:.2f} G" if column == "MACs" else f"{value:.1f}"


def as_md(table: Table) -> str:
    header, body = grid(table)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, rule, *body)]
    return "\n".join([f"**{table.title}**", "", *lines, "", *(f"- {n}" for n in table.notes)]) + "\n"


def as_tex(table: Table) -> str:
    """A booktabs tabular, best mean of each score in bold."""
    header, body = grid(table)
    best = {}
    for column in table.columns:
        means = [row[column].mean for row in table.rows]
        if not all(math.isnan(m) for m in means):
            best[header.index(column)] = int(np.nanargmax(means))
    lines = []
    for number, line in enumerate(body):
        cells = [_tex(cell) for cell in line]
        for place, winner in best.items():
            if winner == number:
                cells[place] = rf"\textbf{{{cells[place]}}}"
        lines.append(" & ".join(cells) + r" \\")
    top = [
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(map(_tex, header)) + r" \\",
        r"\midrule",
    ]
    notes = [f"% {note}" for note in (table.title, *table.notes)]
    return "\n".join([*notes, *top, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escaped = "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
    return escaped.replace("±", r"$\pm$").replace("Δ", r"$\Delta$").replace("σ", r"$\sigma$")


def print_terminal(table: Table, console: Any) -> None:
    """Colours: green better than the baseline, red worse, dim within noise; bold the best mean of a score.

    Where one table would be wider than the terminal, the costs stand in a second one.
    """
    from rich.measure import Measurement
    from rich.text import Text

    console.print(Text(table.title, style="bold"), soft_wrap=True)
    header, body = grid(table)
    first_cost = header.index("params") if "params" in header else len(header)
    whole = _rich(table, header, body, range(len(header)))
    if Measurement.get(console, console.options.update(width=10_000), whole).maximum <= console.width:
        console.print(whole)
    else:
        console.print(_rich(table, header, body, range(first_cost)))
        if first_cost < len(header):
            console.print(_rich(table, header, body, [0, *range(first_cost, len(header))]))
    for note in table.notes:
        console.print(note, style="dim", highlight=False, markup=False)


def _rich(table: Table, header: list[str], body: list[list[str]], columns: Sequence[int]) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, header_style="bold")
    for i in columns:
        shown.add_column(Text(header[i]), justify="left" if i == 0 else "right", overflow="fold")
    best = {
        c: max((row[c].mean for row in table.rows if not math.isnan(row[c].mean)), default=None) for c in table.columns
    }
    styles = {"better": "green", "worse": "red", "within noise": "dim", "one seed": "dim", "": ""}
    for row, line in zip(table.rows, body, strict=True):
        cells = []
        for i in columns:
            value = row.get(header[i])
            style = styles[value.verdict] if isinstance(value, Difference) else ""
            if isinstance(value, Cell) and value.mean == best[header[i]]:
                style = "bold"
            cells.append(Text(line[i], style=style))
        shown.add_row(*cells)
    return shown
