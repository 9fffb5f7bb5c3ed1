"""How every figure looks, and how it is saved: one drawing for paper and page, on which colours follow the theme."""

import io
import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from segbench.listing import GROUPS
from segbench.store import explained, write_atomic

INK, MUTED, GRID, PAPER = "#1c1f24", "#5c636e", "#e1e4e8", "#fefefe"
# The baseline's grey, then hues that keep apart under protan, deutan and tritan vision, 3:1 or more against white.
PALETTE = ("#40454c", "#044eed", "#d77c0e", "#2ba397", "#a302a1", "#907845", "#366c82", "#602e26")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--card)"} | {
    colour: f"var(--c{i})" for i, colour in enumerate(PALETTE)
}
COLUMN_IN = 3.5  # width of one column of a paper
LONGEST_NAME = 22
MARK = "decoder"  # how ids begin of what is drawn of one
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

STYLE: Any = {
    "font.size": 8.5,
    "font.family": ["DejaVu Sans"],
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.2,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.2,
    "lines.markersize": 5.5,
    "text.parse_math": False,  # a name may hold dollars
    "text.usetex": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "segbench",  # the same figure gives the same file
}


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for what is drawn inside."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


class Look:
    """Colour and marker of each decoder, the same in every figure: the baseline's grey, the others by their order.

    Where there are more decoders than colours, each kind of decoder has one.

    Args:
        kinds: decoder -> what it is, such as ``guided``.

    Attributes:
        number: decoder -> its place in the sweep, which marks what is drawn of it on a page.
        kinds: kind -> colour, where colours go by kind; else empty.
    """

    def __init__(self, decoders: Sequence[str], baseline: str, kinds: Mapping[str, str] | None = None) -> None:
        kinds = kinds or {}
        hues = [i for i in range(len(PALETTE)) if i]
        others = [d for d in decoders if d != baseline]
        self.number = {d: i for i, d in enumerate(decoders)}
        there = [k for k in (*GROUPS, "") if k in {kinds.get(d, "") for d in others}]
        by_kind = len(decoders) > len(PALETTE) and len(there) > 1
        hue = {k: hues[i % len(hues)] for i, k in enumerate(there)} if by_kind else {}
        self.place = {d: hue[kinds.get(d, "")] if hue else hues[i % len(hues)] for i, d in enumerate(others)}
        self.place[baseline] = 0
        self.kind_place = {kinds.get(baseline, ""): 0, **hue}
        self.kinds = {k or "others": PALETTE[place] for k, place in hue.items()}
        # Where there are more decoders than hues, markers go on, so that no two have both in common while they last.
        self.shape = {d: MARKERS[(1 + i % len(hues) + i // len(hues)) % len(MARKERS)] for i, d in enumerate(others)}
        self.shape[baseline] = MARKERS[0]
        self._drawn = itertools.count()

    def mark(self, decoder: str, drawn: Any) -> None:
        """Say of an artist, or of those of an error bar, whose it is: `inline` makes ``data-d`` of it."""
        for artist in itertools.chain.from_iterable(map(_flat, drawn if isinstance(drawn, tuple) else [drawn])):
            artist.set_gid(f"{MARK}-{self.number[decoder]}-{next(self._drawn)}")

    def colour(self, decoder: str) -> str:
        return PALETTE[self.place[decoder]]

    def marker(self, decoder: str) -> str:
        return self.shape[decoder]

    def handle(self, decoder: str, line: bool = False) -> Line2D:
        """For a legend."""
        return Line2D(
            [], [], color=self.colour(decoder), marker=self.marker(decoder), linestyle="-" if line else "none"
        )


def _flat(drawn: Any) -> list[Any]:
    return list(drawn) if isinstance(drawn, tuple) else [drawn] if drawn is not None else []


def short(name: str) -> str:
    """A name as it fits into a figure."""
    name = " ".join(name.split())
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def in_lines(label: str, longest: int = 28) -> str:
    """A label in lines that are no longer than its axis; an upright one, where nothing is said."""
    return textwrap.fill(label, longest)


def new_figure(height_in: float) -> Figure:
    return Figure(figsize=(COLUMN_IN, height_in), layout="constrained")


def legend(figure: Figure, look: Look, decoders: Sequence[str], extra: Sequence[tuple[Line2D, str]] = ()) -> None:
    """Above the axes, in as many columns as the names allow; of kinds where colours go by these."""
    kinds = [(Line2D([], [], color=c, marker="s", linestyle="none"), kind) for kind, c in look.kinds.items()]
    entries = [*(kinds or [(look.handle(d), short(d)) for d in decoders]), *extra]
    handles, names = [handle for handle, _ in entries], [name for _, name in entries]
    columns = max(1, min(len(names), 49 // (max(map(len, names), default=1) + 6)))
    drawn = figure.legend(handles, names, loc="outside upper left", ncols=columns, borderaxespad=0.2)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set_text(name)  # as it is, whatever matplotlib makes of a leading underscore


def point_to_the_far(
    axes: Axes,
    along: str,
    points: Sequence[tuple[str, float, float]],
    look: Look,
    higher_is_better: bool,
    keep: float = float("nan"),
) -> None:
    """End the axis before those of many decoders that lie far behind the others, and point to them at its edge.

    Far is more than three interquartile ranges behind the worse quartile (the outer fence of Tukey 1977, Exploratory
    Data Analysis): failures, beside which the differences of all others would not be seen.

    Args:
        along: the axis of the values, ``x`` or ``y``.
        points: decoder, value, and where it is drawn on the other axis.
        keep: a value that stays in view.
    """
    sign = 1 if higher_is_better else -1
    values = np.array([sign * value for _, value, _ in points])
    if not look.kinds or np.isnan(values).all():
        return
    lower, upper = np.nanquantile(values, (0.25, 0.75))
    far = values < lower - 3 * (upper - lower)
    if lower == upper or not far.any():
        return
    shown = [*values[~far], sign * keep]
    end = float(sign * (1.06 * np.nanmin(shown) - 0.06 * np.nanmax(shown)))
    upright = along == "y"
    left, right = axes.get_ylim() if upright else axes.get_xlim()
    (axes.set_ylim if upright else axes.set_xlim)((end, right) if higher_is_better else (left, end))
    arrow = ("<>", "v^")[upright][not higher_is_better]
    for (d, _, across), behind in zip(points, far, strict=True):
        if behind:
            place = axes.get_xaxis_transform() if upright else axes.get_yaxis_transform()
            at = (float(not higher_is_better), across)
            x, y = at[::-1] if upright else at
            look.mark(d, axes.plot(x, y, arrow, transform=place, color=look.colour(d), markersize=4, clip_on=False)[0])


def settle(figure: Figure) -> None:
    """Lay it out once, for all the formats that it is saved in."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def save(figure: Figure, stem: Path) -> None:
    """Write ``stem.svg`` (text as outlines, the same everywhere) and ``stem.pdf`` (fonts embedded), at paper size.

    Raises:
        UserError: the folder cannot be written.
    """
    with explained(stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "path"}):
        for kind in ("svg", "pdf"):
            date = "Date" if kind == "svg" else "CreationDate"
            write_atomic(
                stem.with_name(f"{stem.name}.{kind}"),
                lambda file, kind=kind, date=date: figure.savefig(file, format=kind, metadata={date: None}),  # type: ignore[misc]
            )


def inline(figure: Figure, prefix: str, title: str) -> str:
    """An ``<svg>`` element for a page: text as text, colours as CSS variables, ids that begin with ``prefix``."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == f"{{{XLINK}}}href":
                del element.attrib[name]
                element.set("href", value.replace("#", f"#{prefix}-", 1))
            elif name == "id":
                element.set("id", f"{prefix}-{value}")
            elif name in ("style", "clip-path"):
                element.set(name, _themed(value).replace("url(#", f"url(#{prefix}-"))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": title}
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _strip(root: ElementTree.Element) -> None:
    """Without metadata and the style sheet, which would hold for the whole page, and ids that nothing refers to."""
    referred = {
        found
        for e in root.iter()
        for v in (e.get(f"{{{XLINK}}}href", ""), e.get("clip-path", ""))
        for found in re.findall(r"#([\w-]+)", v)
    }
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style") or (
                child.tag == f"{{{SVG}}}defs" and child.find(f"{{{SVG}}}style") is not None
            ):
                parent.remove(child)
    for element in root.iter():
        name = element.get("id", "")
        if name.startswith(f"{MARK}-"):
            element.set("data-d", name.split("-")[1])
        if name not in referred:
            element.attrib.pop("id", None)


def _themed(style: str) -> str:
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: VARIABLES.get(found[0], found[0]), style)
