"""Drawn configs, overrides and files of a sweep's folder: each is taken or told as a mistake; nothing else happens."""

import contextlib
import copy
import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segbench import store
from segbench.config import SweepConfig
from segbench.config_file import build_config, expand_grid, load_config, parse_overrides
from segbench.errors import UserError
from segbench.report.formats import as_csv, as_md, as_tex
from segbench.report.table import make_table
from segbench.sweep.status import read_status
from tests.conftest import tiny, write_again
from tests.fakes import fake_sweep

quick = settings(
    max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
few = settings(quick, max_examples=120)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just(10**40), st.just("bilinear")
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@contextlib.contextmanager
def taken_or_told():
    told = None
    try:
        yield
    except UserError as error:
        told = str(error)
    assert told is None or (told and "\n" not in told)


def places(tree, path=()):
    """Every path into nested dicts and lists."""
    yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def changed(tree, path, value):
    tree = copy.deepcopy(tree)
    here = tree
    for key in path[:-1]:
        here = here[key]
    if path:
        here[path[-1]] = value
    return tree


CONFIG = SweepConfig.model_validate(tiny(grid={"recipe.lr": [0.1, 0.2]}, baseline="bilinear", measures=["miou"]))
CONFIG = CONFIG.model_dump()
PLACES = [path for path in places(CONFIG) if path]


@quick
@given(st.sampled_from(PLACES), VALUES, st.sampled_from(PLACES), VALUES)
def test_a_config(place, value, other, more):
    values = changed(CONFIG, place, value)
    with contextlib.suppress(TypeError, KeyError, IndexError):  # the first change may take its place away
        values = changed(values, other, more)
    with taken_or_told():
        config = build_config(values)
        assert all(variant.grid == {} for _, variant in expand_grid(config))


TEXTS = st.text(max_size=40) | st.text(alphabet="[]{}:,&*!|>-?#%@'\"\\ \n\tab0.", max_size=40)


@quick
@given(TEXTS)
def test_a_file(tmp_path, text):
    path = tmp_path / "drawn.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError) as caught:  # no text as short as this is a whole config
        load_config(path)
    assert "\n" not in str(caught.value)


@quick
@given(st.sampled_from([".".join(map(str, place)) for place in PLACES]) | st.text(max_size=20), TEXTS)
def test_an_override(tmp_path, key, text):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny()))
    with taken_or_told():
        parse_overrides([f"{key}={text}"])
        load_config(path, [f"{key}={text}"])


@pytest.fixture
def folder(tmp_path):
    return fake_sweep(tmp_path / "fake", {"bilinear": 0.0, "deconv": 0.15}, seeds=(0, 1))


@few
@given(data=st.data())
def test_a_result(folder, data):
    run = folder / "run0-s0"
    whole = (run / store.RESULT).read_bytes()
    row = {key: value for key, value in json.loads(whole).items() if key not in ("checksum", "files", "layout")}
    path = data.draw(st.sampled_from([path for path in places(row) if path]))
    try:
        write_again(run, **changed(row, path, data.draw(JSON)))
        with taken_or_told():
            table = make_table(folder)
            for write in (as_csv, as_md, as_tex):
                assert "deconv" in write(table)
    finally:
        (run / store.RESULT).write_bytes(whole)


@few
@given(name=st.sampled_from([store.STATUS, store.ENVIRONMENT, store.HISTORY]), content=st.binary(max_size=20) | JSON)
def test_what_lies_beside_a_result(folder, name, content):
    """Nothing of it is needed for a table, nor for where a sweep stands."""
    run = folder / "run0-s0"
    (run / store.RESULT).unlink(missing_ok=True)
    (run / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert any("bilinear-s0, " in note for note in make_table(folder).notes)
    assert len(read_status(folder)) == 4


@few
@given(data=st.data())
def test_a_manifest(folder, data):
    path = folder / store.MANIFEST
    whole = path.read_bytes()
    there = json.loads(whole)
    place = data.draw(st.sampled_from([place for place in places(there) if place]))
    try:
        path.write_text(json.dumps(changed(there, place, data.draw(JSON))))
        for read in (make_table, read_status):
            with taken_or_told():
                read(folder)
    finally:
        path.write_bytes(whole)
