"""Text in configs that people read: what hides, and what looks alike. Imports nothing of segbench."""

import unicodedata

# What no letter of a text shows: control and format characters, surrogates, private and unassigned ones, line ends;
# and letters and marks that are blank.
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
BLANK = {*"\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0", *map(chr, range(0xFE00, 0xFE10))}
# Cyrillic and Greek letters that Latin ones are mistaken for (Unicode Technical Standard 39 has them all).
LOOKS = str.maketrans(
    "аеорсухіјѕһԁԛԝѵАВЕКМНОРСТХІЈЅԌαονρΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeopcyxijshdqwvABEKMHOPCTXIJSGaovpABEZHIKMNOPTYX",
)


def shows(text: str) -> bool:
    """Whether it is text of one line of which every character is seen."""
    return bool(text.strip()) and not any(unicodedata.category(c) in HIDDEN or c in BLANK for c in text)


def look(text: str) -> str:
    """What it looks like: equal for texts that a reader cannot tell apart."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(LOOKS).split())
