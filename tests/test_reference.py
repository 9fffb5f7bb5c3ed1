"""`segbench config` and `segbench show`: what can be set, from the classes themselves."""

import re

import pytest

from segbench.cli import main
from segbench.config import SweepConfig
from segbench.config_file import build_config
from segbench.reference import EVERY, _fields, describe, in_words
from tests.conftest import ROOT, tiny


def flat(values, within=""):
    """Dotted keys of a config's plain values, sections of plug-ins and free keys as one."""
    for key, value in values.items():
        place = f"{within}{key}"
        if (
            isinstance(value, dict)
            and value
            and place not in ("decoder_defaults", "grid", "launch.params", "tune.search")
        ):
            yield from flat(value, f"{place}.")
        else:
            yield place


def test_every_key_is_there_with_its_default_and_a_meaning(capsys):
    assert main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = {re.split(r" = |  \(", head)[0]: (head, text) for head, text in zip(lines[::2], lines[1::2], strict=True)}
    assert "data.*" in said
    effort = {"tune": {"search": {"recipe.lr": [0.1, 0.2]}}, "budget": {"macs": 1e9}}
    configs = [build_config(tiny(**more)) for more in (effort, {"data": {"name": "shapes", "holdout": 0.2}})]
    keys = {key for config in configs for key in flat(config.model_dump())} - {"tune", "budget", "data.holdout"}
    known = {key for key in keys if not re.match(r"data\.(size|train|val)$|decoder_defaults\.", key)}
    assert said.keys() - {"data.*"} == known
    assert all(re.match(r"    \S.*: \S", text) for _, text in said.values()), said
    assert said["recipe.lr"] == ("recipe.lr = 0.002", "    number above 0: peak learning rate")
    assert said["recipe.steps"][0] == "recipe.steps  (required)"
    assert said["evaluation.mode"][1].startswith("    whole | slide | crop: ")
    assert said["launch.jobs"][1].startswith("    whole number above 0, up to 1,024, or null: cohorts at a time")
    assert not re.search(r"Annotated|typing|None|<", "\n".join(lines))


def test_a_section_a_key_and_a_wrong_one(capsys):
    assert main(["config", "recipe"]) == 0
    assert {line.split(".")[0] for line in capsys.readouterr().out.splitlines()[::2]} == {"recipe"}
    assert main(["config", "launch.cache"]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    assert main(["config", "recip"]) == 2
    assert "unknown key 'recip' (did you mean 'recipe'?); there is: baseline, budget, data," in capsys.readouterr().err
    assert main(["config", "recipe.lrr"]) == 2
    assert "(did you mean 'recipe.lr'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in EVERY for name in kind.builtin()],
    ids=lambda value: getattr(value, "label", value),
)
def test_every_plug_in_of_ours_says_what_its_parameters_mean(kind, name):
    if name in ("ray", "slurm"):
        pytest.importorskip({"slurm": "submitit"}.get(name, name))
    lines = list(describe(name))
    assert lines[0].startswith(f"{kind.label} {name}  (/")
    assert len(lines) > 2
    told = [line for line in lines if line.startswith("        ")]
    assert all(": " in line for line in told), lines
    assert ("  no parameters" in lines) == (not told)


def test_what_is_said_of_a_parameter():
    lines = list(describe("subpixel"))
    place = lines.index("    init = 'nearest'")
    assert lines[place + 1].startswith("        nearest | icnr | plain: ``nearest`` starts as nearest-neighbour")
    assert "    root  (required)" in describe("folder")
    (plain,) = [
        line
        for line in describe(f"{ROOT}/experiments/plug_in_an_upsampler/carafe_lite.py:CarafeLite")
        if "kernel =" in line
    ]
    assert plain == "    kernel = 5"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (list[tuple[int, int, int]] | None, "list of: 3 of: whole number, or null"),
        (tuple[int, str], "[whole number, text]"),
        (bool, "true or false"),
        (dict[str, int], "keys with values"),
        (object(), "a value"),
    ],
)
def test_types_in_words(annotation, words):
    assert in_words(annotation) == words


def test_fields_of_the_whole_config_are_few_enough_to_read():
    assert len(dict(_fields(SweepConfig))) < 95
