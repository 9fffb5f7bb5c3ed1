import datetime
import re
import shlex
from pathlib import Path

import pytest
import yaml

from segbench.config import Section, SweepConfig
from segbench.config_file import _assign, build_config, expand_grid, load_config
from segbench.errors import UserError
from tests.conftest import ROOT, tiny


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my_sweep.yaml"
    path.write_text(text)
    return path


GOOD = "data: {name: shapes}\ndecoders: [bilinear]\nrecipe: {steps: 10}\n"


def test_name_is_that_of_the_file(tmp_path):
    assert load_config(write(tmp_path, GOOD)).name == "my_sweep"


def test_a_name_alone_is_a_plug_in_without_parameters(tmp_path):
    config = load_config(write(tmp_path, GOOD), ["encoder=resnet18", "measures=[biou]"])
    assert [(c.name, c.params) for c in (config.encoder, *config.measures)] == [("resnet18", {}), ("biou", {})]


def test_overrides_are_yaml_values(tmp_path):
    config = load_config(
        write(tmp_path, GOOD),
        [
            "recipe.lr=1e-3",
            "seeds=[1,2]",
            "data.size=96",
            "decoders=[nearest, {name: subpixel, params: {init: plain}}]",
            "encoder.trainable=true",
        ],
    )
    assert (config.recipe.lr, config.seeds, config.data.params) == (0.001, [1, 2], {"size": 96})
    assert [d.title for d in config.decoders] == ["nearest", "subpixel"]
    assert config.decoders[1].params == {"init": "plain"}
    assert config.encoder.trainable is True


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid(config):
    assert load_config(config).decoders


def test_on_many_classes_the_technique_ends_at_stride_4():
    assert load_config(ROOT / "configs/ade20k.yaml").decoder_defaults["output_stride"] == 4


def test_a_narrower_call_need_not_have_the_file_s_baselines(tmp_path):
    """It adds to the folder's table, in which they may stand."""
    text = GOOD + "baseline: [bilinear, nearest]\n"
    narrow = load_config(write(tmp_path, text.replace("[bilinear]", "[bilinear, nearest]")), ["decoders=[deconv]"])
    assert narrow.baseline == ["bilinear", "nearest"]
    with pytest.raises(UserError, match="there is no 'nearest'"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (GOOD + "recipes: 1\n", [], r"my_sweep\.yaml, line 4: unknown key 'recipes' \(did you mean 'recipe'\?\)"),
        (
            GOOD,
            ["recipe.step=4"],
            r"unknown key 'recipe.step' \(did you mean 'steps'\?\); recipe has: steps, batch_size",
        ),
        (
            "data: {name: shapes}\ndecoders: [bilinear]\nrecipe:\n  steps: many\n",
            [],
            r"line 4: recipe\.steps should be a whole number, not 'many'",
        ),
        (GOOD, ["recipe.steps=0"], r"recipe\.steps should be greater than 0, not 0"),
        (GOOD, ["recipe.optimizer=adam"], r"recipe\.optimizer should be 'adamw' or 'sgd', not 'adam'"),
        (GOOD, ["recipe.scale=[2,1]"], r"scale should be \[smallest, largest\], not \[2.0, 1.0\]"),
        (GOOD, ["recipe.warmup_steps=10"], r"warmup_steps \(10\) should be less than steps \(10\)"),
        (GOOD, ["decoders=[bilinear, bilinear]"], r"two are called 'bilinear'; give one of them a label"),
        (GOOD, ["decoders=[]"], r"decoders .*1 or more values"),
        (
            GOOD,
            ["baseline=bilnear"],
            r"baseline: there is no 'bilnear' \(did you mean 'bilinear'\?\) among the decoders",
        ),
        (GOOD, ["baseline=[bilinear, bilnear]"], r"baseline: there is no 'bilnear' \(did you mean 'bilinear'\?\)"),
        (GOOD, ["baseline=[bilinear, bilinear]"], r"baseline: \['bilinear', 'bilinear'\] holds one twice"),
        (GOOD, ["baseline=[bilinear, nearest, deconv]"], r"baseline .*2 or fewer values"),
        (GOOD, ["baseline=[]"], r"baseline .*1 or more values"),
        (GOOD, ["grid={recipe.lr: []}"], r"grid\.recipe\.lr .*1 or more values"),
        (GOOD, ["name=.."], r"name should"),
        (GOOD, ["recipe.steps=0"], r"my_sweep\.yaml: recipe\.steps should be greater than 0"),
        ("data: {{ROOT}}\n", [], r"is not valid YAML"),
        (GOOD, ["decoders=[{name: a, parms: {}}]"], r"unknown key 'decoders\.0\.parms' \(did you mean 'params'\?\)"),
        (GOOD, ["seeds=[1,1]"], r"seeds: \[1, 1\] holds one twice"),
        (GOOD + "seeds: [1, 1]\n", [], r"line 4: seeds: \[1, 1\] holds one twice"),
        (GOOD, ["decoders.0.label=x"], r"give the whole list, decoders=\[\.\.\.\]"),
        (
            GOOD,
            ["recipe.steps=1", "recipe.steps=2"],
            r"overrides contradict each other: recipe\.steps=1 and recipe\.steps=2",
        ),
        (GOOD, ["recipe={steps: 3}", "recipe.lr=1"], r"overrides contradict each other"),
        (GOOD, ["recipe.steps"], r"should look like key=value"),
        (
            GOOD,
            ["recipe.steps=[1,", "2]"],
            r"'recipe\.steps=\[1,': that is not a YAML value; one with spaces is quoted",
        ),
        (GOOD, ["data.name.x=1"], r"data\.name is a value, not a section"),
        (GOOD, ["trainer.devices=2"], r"unknown key 'trainer\.devices'"),
        (GOOD, ["trainer.precision=16-mixed"], r"trainer\.precision should be '32-true' or 'bf16-mixed'"),
        ("data: {name: shapes}\ndecoders: [bilinear]\n", [], r"recipe is missing"),
        (GOOD + "data: {name: camvid}\n", [], r"line 4: 'data' stands twice"),
        ("a: [1\n", [], r"is not valid YAML"),
        ("- 1\n", [], r"should hold keys such as data: and decoders:, not list"),
        ("", [], r"should hold keys such as data: and decoders:, not NoneType"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, text, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(write(tmp_path, text), overrides)
    assert "\n" not in str(caught.value)


def told_by(function, *args):
    try:
        function(*args)
    except UserError as error:
        return str(error)
    return ""


def leaves(model, place=()):
    """(dotted place, value that it has) of every key of a section."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Section):
            yield from leaves(value, (*place, name))
        yield ".".join((*place, name)), value


def test_a_value_of_the_wrong_kind_is_told_in_plain_words_for_every_key():
    """No word of Python's or pydantic's; YAML's spelling of what was found."""
    config = SweepConfig.model_validate(tiny(decoders=[{"name": "bilinear", "label": "x"}], measures=["biou"]))
    jargon = re.compile(
        r"Input|valid|pattern|instance|datetime|Config|None|True|False|unable|tuple|\bstr\b|\bint\b|bool"
    )
    kinds = [True, 3.5, -7, "no\u200bt", datetime.date(2024, 1, 2), None, [], [[]], {}, {"a": 1}, "x" * 300, [1] * 9]
    told = 0
    for place, _ in leaves(config):
        for bad in kinds:
            values = config.model_dump()
            _assign(values, place, bad)
            said = told_by(build_config, values)
            for message in said.split("; "):
                own = re.sub(r"'[^']*'|there is: .*|has: .*", "", message)
                assert not jargon.search(own), (place, bad, message)
            assert not said or place.split(".")[0] in said
            assert len(said) < 700, (place, bad)
            told += bool(said)
    assert told > 300


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "decoders=[no]",
            "decoders.0 should be a name, or keys such as name: and params:, not false (YAML reads no, off,",
        ),
        ("decoders=[2024-01-02]", "not 2024-01-02 (YAML reads a date: quote it)"),
        ("encoder.weights=1", "encoder.weights should be text, not 1 (YAML reads a number: quote it)"),
        ("seeds=[true]", "seeds.0 should be a number, not true"),
        ("recipe.batch_size=no", "recipe.batch_size should be a number, not false"),
        ("recipe.crop=[64]", "recipe.crop has too few values"),
        ("seeds=[]", "seeds should have 1 or more values, not 0"),
        ("baseline=[a, b, c]", "baseline should have 2 or fewer values, not 3"),
        (
            "name=../x",
            "name should be up to 100 letters, digits, dots, - and _; the first a letter or digit, not '../x'",
        ),
        (f"name={'x' * 300}", "name should be up to 100 letters"),
        ("trainer.deterministic=maybe", "trainer.deterministic should be true, false or 'warn', not 'maybe'"),
        ("recipe=3", "recipe should be keys with values, not 3"),
        ("grid={recipe.lr: 3}", "grid.recipe.lr should be a list, not 3"),
        (f"decoders=[{{name: bilinear, label: {'x' * 61}}}]", "label should be at most 60 characters, not 'xxx"),
        (
            "decoders=[{name: bilinear, label: 'a\u200bb'}]",
            "label should be text of one line, without characters that do",
        ),
        ("decoders=[{name: bilinear, label: '\u3164'}]", "without characters that do not show"),
        (
            "decoders=[bilinear, {name: nearest, label: bilin\u0435ar}]",
            "two look the same, 'bilinear' and 'bilin\\u0435ar'",
        ),
        ("decoders=[bilinear, {name: nearest, label: \uff42ilinear}]", "two look the same"),
        ("decoders=[{name: nearest, label: e\u0301}, {name: bilinear, label: \u00e9}]", "two look the same"),
    ],
)
def test_what_is_wrong_and_what_to_do(tmp_path, override, said):
    with pytest.raises(UserError) as told:
        load_config(write(tmp_path, GOOD), [override])
    assert said in str(told.value)


def test_labels_in_any_script_are_taken(tmp_path):
    titles = ["ближайший", "最近傍", "κοντινό", "plus proche", "x" * 60]
    decoders = ", ".join(f"{{name: nearest, label: {title}}}" for title in titles)
    assert [d.title for d in load_config(write(tmp_path, GOOD), [f"decoders=[{decoders}]"]).decoders] == titles


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read config .*nope\.yaml: No such file"):
        load_config(tmp_path / "nope.yaml")


def test_yaml_cannot_run_code(tmp_path):
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(write(tmp_path, "data: !!python/object/apply:os.system ['echo ran']\n"))


def test_grid_is_a_product():
    config = build_config(tiny(grid={"recipe.lr": [0.1, 0.2], "encoder.name": ["a", "b", "c"]}))
    variants = list(expand_grid(config))
    assert len(variants) == 6
    assert variants[4][0] == {"recipe.lr": 0.2, "encoder.name": "b"}
    assert (variants[4][1].recipe.lr, variants[4][1].encoder.name, variants[4][1].grid) == (0.2, "b", {})


def test_grid_takes_only_what_changes_a_run():
    with pytest.raises(UserError, match="'launch.jobs' cannot vary"):
        list(expand_grid(build_config(tiny(grid={"launch.jobs": [1, 2]}))))


def test_a_config_survives_yaml(tmp_path):
    config = build_config(tiny())
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(config.model_dump_json())))
    assert load_config(path) == config


WRITTEN = [
    ROOT / "README.md",
    *(p for d in ("docs", "configs", "experiments") for p in sorted((ROOT / d).rglob("*.*"))),
]
SWEEPS = [
    pytest.param(line, id=f"{page.relative_to(ROOT)}-{i}")
    for page in WRITTEN
    if page.suffix in (".md", ".yaml")
    for i, line in enumerate(re.findall(r'\bmake (?:sweep|plan)\b[^#`\n]*ARGS="[^"\n]*"', page.read_text("utf-8")))
]


@pytest.mark.parametrize("line", SWEEPS)
def test_what_the_pages_hand_to_make_is_understood(line):
    given = dict(word.partition("=")[::2] for word in shlex.split(line)[2:])
    overrides = [word for word in shlex.split(given["ARGS"]) if "=" in word]  # as the shell that make calls splits it
    assert overrides
    config = given.get("CONFIG", "configs/default.yaml")
    named = [word.removeprefix("name=") for word in overrides if word.startswith("name=")]
    assert load_config(ROOT / config, overrides).name == (named or [Path(config).stem])[-1]
