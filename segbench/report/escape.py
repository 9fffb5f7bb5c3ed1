"""Text for files in which some characters mean something: it should come out as it is. Imports nothing of segbench."""

import re
from typing import Any

SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "Δ": r"$\Delta$",
    "<": "$<$", ">": "$>$", "|": "$|$", '"': r"\char`\"", "`": r"\char`\`",
} | {c: f"\\{c}" for c in "&%$#_{}"}  # fmt: skip


def for_spreadsheet(value: Any) -> Any:
    """A cell of a CSV: text that Excel or LibreOffice would run as a formula gets an apostrophe before it.

    As OWASP has it (https://owasp.org/www-community/attacks/CSV_Injection). Numbers stay numbers.
    """
    return f"'{value}" if isinstance(value, str) and value[:1] in set("=+-@\t\r") else value


def for_markdown(text: str, block: bool = False) -> str:
    """Text of CommonMark or of GitHub's tables: no emphasis, link, tag, entity, code or formula arises.

    Args:
        block: it begins a block, so that nothing at its start may make a heading, list or quotation either.
    """
    text = re.sub(r"[\\`*~|$]|&(?=#|\w+;)|<(?=[\w/!?])|\](?=[(\[:])", r"\\\g<0>", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is none
    if not block:
        return text
    return re.sub(
        r"^(\s*)([#>+-]|\d+(?=[.)]))", lambda m: m[1] + (m[2] + "\\" if m[2].isdigit() else "\\" + m[2]), text
    )


def for_tex(text: str) -> str:
    """Text of LaTeX, also at the start of a row, where `[` and `*` would be an argument of what ends the row before."""
    escaped = "".join(SPECIAL.get(c, c) for c in text)
    escaped = re.sub(r"(?<![\w$}.-])-(?=\.?\d)", "$-$", escaped)  # a minus; in text it would be a hyphen
    return re.sub(r"^(\s*)([\[*])", r"\1{\2}", escaped).replace("--", "-{}-")
