"""Text for files in which some characters mean something: it should come out as it is. Imports nothing of segbench."""

import re
from typing import Any

FORMULA = re.compile(r"(^|[;\t])(?=\s*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20])")
SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': r"\char34{}", "<": "$<$",
    ">": "$>$", "|": "$|$", "±": r"$\pm$", "Δ": r"$\Delta$", "−": "$-$", "×": r"$\times$", "≤": r"$\le$",
    "≥": r"$\ge$", "≈": r"$\approx$", "→": r"$\to$", "µ": r"$\mu$", "²": "$^2$", "°": r"$^\circ$",
} | {c: f"\\{c}" for c in "&%$#_{}"}  # fmt: skip
IN_EVERY_FONT = r" -~À-ÏÑ-ÖØ-Ýß-ïñ-öø-ýÿ"  # that pdfLaTeX starts with


def for_spreadsheet(value: Any) -> Any:
    """A cell of a CSV: text that Excel or LibreOffice would run as a formula gets an apostrophe before it.

    As OWASP has it (https://owasp.org/www-community/attacks/CSV_Injection): also after semicolon and tab, at which some
    begin another cell, and before the wide forms of the signs. Numbers stay numbers.
    """
    return FORMULA.sub(r"\1'", value) if isinstance(value, str) else value


def for_markdown(text: str, block: bool = False) -> str:
    """Text of CommonMark or of GitHub's tables, in one line: no emphasis, link, tag, entity, code or formula arises.

    Args:
        block: it begins a block, so that nothing at its start may make a heading, list or quotation either.
    """
    text = " ".join(text.splitlines())
    text = re.sub(r"[\\`*~|$]|&(?=#|\w+;)|<(?=[\w/!?])|\](?=[(\[:])|:(?=//)|(?<=www)\.", r"\\\g<0>", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is none
    if not block:
        return text
    return re.sub(
        r"^(\s*)([#>+-]|\d+(?=[.)]))", lambda m: m[1] + (m[2] + "\\" if m[2].isdigit() else "\\" + m[2]), text
    )


def for_tex(text: str) -> str:
    """Text of LaTeX, also at the start of a row, where `[` and `*` would be an argument of what ends the row before.

    It needs no package. What is not `IN_EVERY_FONT` and is none of the `SPECIAL` signs stays as it is.
    """
    text = "".join(c if c.isprintable() else " " for c in text)
    text = re.sub(r"(?<![\w.-])-(?=\.?\d)", "−", text)  # in text it would be a hyphen
    text = re.sub(r"([-'`,])(?=\1)|[?!](?=`)", "\\g<0>\0", text)  # pairs that fonts join into another sign
    escaped = "".join("{}" if c == "\0" else SPECIAL.get(c, c) for c in text)
    return re.sub(r"^(\s*)([\[*])", r"\1{\2}", escaped)
