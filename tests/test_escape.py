"""What people open elsewhere shows text as it is: in Markdown, in a spreadsheet, in LaTeX."""

import csv
import io
import re
import string
from html.parser import HTMLParser

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from segbench.report import formats
from segbench.report.escape import for_markdown, for_spreadsheet, for_tex
from segbench.report.frame import load
from segbench.report.table import make_table
from tests.fakes import fake_sweep

ATTACKS = [
    "<img src=x onerror=alert(1)>", "**bold** __too__", "[l](javascript:alert(1))", "![l](x)", "<http://x.y>",
    "&lt;&#60;", "`code`", "$x^2$", "a|b", "~~no~~", "back\\", "\\*", "# heading", "1. list", "- list",
    "> quotation", "[l]: x", "+", "=cmd|'/c calc'!A0", '=HYPERLINK("http://evil")', "@SUM(1)", "-1+1", "[t]", "*",
    "_under_", "a_b_c", "bilinear_c",
]  # fmt: skip


class Read(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def shown(markdown, options="commonmark"):
    return Read(MarkdownIt(options, {"linkify": False}).render(markdown))


def check_markdown(text):
    item = shown(f"- {for_markdown(text, block=True)}")
    assert item.tags <= {"ul", "li"}, text
    assert item.text.strip() == text.strip()
    cell = shown(f"| a |\n| --- |\n| {for_markdown(text)} |", "gfm-like")
    assert cell.tags == {"table", "thead", "tbody", "tr", "th", "td"}, text
    assert cell.text.split("\n", 1)[1].strip("\n a").strip() == text.strip("\n a").strip() or text.strip() in cell.text


@pytest.mark.parametrize("text", ATTACKS)
def test_attacks_stay_text_in_markdown(text):
    check_markdown(text)


@given(st.text(st.sampled_from(string.punctuation + "ab1 é"), min_size=1, max_size=30))
def test_any_text_stays_text_in_markdown(text):
    check_markdown(f"x{text}x")
    item = shown(f"- {for_markdown(text, block=True)}")
    assert item.tags <= {"ul", "li"}
    assert item.text.split() == text.split()


def test_a_table_of_attacks(tmp_path):
    names = ATTACKS[:2] + ATTACKS[18:23]
    folder = fake_sweep(
        tmp_path / "s", {"bilinear": 0.0} | {n: 0.02 * i for i, n in enumerate(names, 1)}, classes=names
    )
    table = make_table(folder, ["miou"], classes=True)
    header, *lines = csv.reader(io.StringIO(formats.as_csv(table)))
    assert [h for h in header if h[0] in "=+-@"] == []
    assert "'=cmd|'/c calc'!A0" in header
    assert [line[0] for line in lines] == ["bilinear", *(f"'{n}" if n[0] in "=@-" else n for n in names)]
    delta = make_table(folder, ["miou"])
    (worst,) = [line for line in csv.DictReader(io.StringIO(formats.as_csv(delta))) if line["decoder"] == "bilinear"]
    assert float(worst["mIoU"]) == delta.rows[0]["mIoU"].mean
    long = pandas.read_csv(io.StringIO(formats.long(load(folder), "csv")))
    assert set(long["decoder"]) == {"bilinear", *(for_spreadsheet(n) for n in names)}
    page = shown(formats.as_md(table), "gfm-like")
    assert page.tags == {"p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert all(name in page.text for name in names)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (-1.5, -1.5), (3, 3), (None, None), ("-1.5", "'-1.5"), ("a=b", "a=b"), ("\tx", "'\tx"), (" =1", "' =1"),
        ("a;=1", "a;'=1"), ("a\t@b", "a\t'@b"), ("a; b-c", "a; b-c"), ("\uff1d1", "'\uff1d1"), ("a\r\n=1", "a\r\n=1"),
    ],
)  # fmt: skip
def test_numbers_are_no_formulas(value, cell):
    assert for_spreadsheet(value) == cell


def test_lines_and_bare_addresses_in_markdown():
    assert for_markdown("a\nb\u2028c") == "a b c"
    assert for_markdown("https://x.y www.x.y 1:2") == r"https\://x.y www\.x.y 1:2"  # which GitHub makes links of
    check_markdown("https://x.y www.x.y")


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("[t] x", "{[}t] x"), ("*", "{*}"), ("-1.20 [-0.30, +0.5]", "$-$1.20 [$-$0.30, +0.5]"), ("a-1", "a-1"),
        ("2024-01-02", "2024-01-02"), ("-.5", "$-$.5"), ("a--b", "a-{}-b"), ("5 % & a_b #1", r"5 \% \& a\_b \#1"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"), ("< 0.001 ± 1", r"$<$ 0.001 $\pm$ 1"), ("a|b>c", "a$|$b$>$c"),
        ("---", "-{}-{}-"), ("``a'' ?`", "`{}`a'{}' ?{}`"), ('"a"', r"\char34{}a\char34{}"), ("a\nb\x7fc", "a b c"),
        ("é × ≤ −1", r"é $\times$ $\le$ $-$1"), ("雪", "雪"),
    ],
)  # fmt: skip
def test_text_of_latex(text, tex):
    assert for_tex(text) == tex


def read_tex(tex):
    """What LaTeX would print, by its rules for the few things that may be there; it fails on anything else."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^"}
    token = re.compile(r"\\char34\{\}|\\([a-z]+)\{\}|\\([&%$#_{}])|\$([<>|-])\$|\{([\[*]?)\}|([^\\{}$&%#_~^])")
    text, place = "", 0
    while place < len(tex):
        found = token.match(tex, place)
        assert found, tex[place:]
        name, sign, formula, grouped, letter = found.groups()
        text += (
            '"'
            if found[0].startswith(r"\char")
            else names[name]
            if name
            else sign or formula or grouped or letter or ""
        )
        place = found.end()
    return text


@given(st.text(st.sampled_from(string.punctuation + "ab1 é"), min_size=1, max_size=30))
def test_any_text_is_printed_by_latex(text):
    tex = for_tex(text)
    assert read_tex(tex) == text
    assert not re.search(r"--|``|''|,,|[?!]`|^\s*[\[*]", tex)


def test_letters_that_a_font_may_lack_are_named(tmp_path):
    table = make_table(fake_sweep(tmp_path / "s", {"bilinear": 0.0, "é": 0.1, "雪Ω": 0.2}))
    assert "% pdfLaTeX wants a package for Ω 雪; LuaLaTeX and XeLaTeX a font that has them." in formats.as_tex(table)
    plain = make_table(tmp_path / "s", only=["bilinear", "é"])
    assert "pdfLaTeX" not in formats.as_tex(plain)


def test_no_row_of_latex_begins_with_an_argument(tmp_path):
    folder = fake_sweep(tmp_path / "s", {"bilinear": 0.0, "[t] x": -0.1, "*": 0.02})
    tex = formats.as_tex(make_table(folder))
    rows = tex.split("\\midrule")[1].split("\\\\")
    assert len(rows) == 4
    assert not [row for row in rows if re.match(r"\s*[\[*]", row)]
    assert "$-$" in tex
    assert not re.search(r"[ \[]-\d", tex.split("\\toprule")[1])
