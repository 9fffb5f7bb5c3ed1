"""A part of the training images on which is evaluated: which part, and what reads it."""

import random

import numpy as np
import pytest

from segbench.cli import main
from segbench.config_effort import HoldoutConfig
from segbench.config_file import build_config
from segbench.data import open_data
from segbench.data._holdout import held_out
from segbench.data.base import Part
from segbench.errors import UserError
from segbench.sweep.files import KnownFiles
from segbench.sweep.plan import make_plan
from tests.conftest import tiny
from tests.test_sweep import sweep
from tests.test_tune import folder_data

IDS = [
    f"{drive}_{frame:03}" for drive, frames in (("a", 30), ("b", 22), ("c", 40), ("d", 8)) for frame in range(frames)
]


def test_a_share_of_the_images_and_the_same_ones_whatever_their_order():
    held = held_out(IDS, HoldoutConfig(share=0.2))
    assert len(held) == 20
    assert held == sorted(set(held))
    assert {name[0] for name in np.array(IDS)[held]} == set("abcd")  # spread, not the first or last ones
    shuffled = random.Random(0).sample(IDS, len(IDS))
    assert {shuffled[i] for i in held_out(shuffled, HoldoutConfig(share=0.2))} == {IDS[i] for i in held}
    more = [*IDS, "e_000"]
    assert len({more[i] for i in held_out(more, HoldoutConfig(share=0.2))} ^ {IDS[i] for i in held}) <= 1


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_groups_are_held_out_whole_and_as_near_to_the_share_as_one_group_allows(share):
    held = {IDS[i] for i in held_out(IDS, HoldoutConfig(share=share, group="^([a-z])_"))}
    groups = {name[0] for name in held}
    assert held == {name for name in IDS if name[0] in groups}
    assert abs(len(held) - share * len(IDS)) <= 40 / 2  # half of the largest group
    assert held == {IDS[i] for i in held_out(IDS, HoldoutConfig(share=share, group="[a-z]"))}  # a match without a group


@pytest.mark.parametrize(
    ("ids", "holdout", "message"),
    [
        (IDS[:9], HoldoutConfig(share=0.1), "0.1 of 9 training images leaves 1 held out and 8 to train on; 2 of each"),
        (IDS[:4], HoldoutConfig(share=0.9), "0.9 of 4 training images leaves 4 held out and 0 to train on; 2 of each"),
        (
            IDS[:30],
            HoldoutConfig(share=0.2, group="^[^_]+"),
            "0.2 of 30 training images in 1 group leaves 0 held out and 30 to train on; 2 of each are the fewest: "
            "change the share or the group",
        ),
        (IDS, HoldoutConfig(share=0.2, group="[0-9]{4}"), r"holdout.group: '[0-9]{4}' finds nothing in the id 'a_000'"),
    ],
)
def test_too_few_images_are_told_in_one_line(ids, holdout, message):
    with pytest.raises(UserError) as error:
        held_out(ids, holdout)
    assert message in str(error.value)


def test_it_takes_the_place_of_the_evaluation_split(tmp_path):
    """Its images are those of the training split, train nothing, and stand in the run's key."""
    data = folder_data(tmp_path / "data", train=10, val=3)
    plain = tiny(runs_dir=str(tmp_path / "runs"))
    whole, parted = (plain | {"data": data | more} for more in ({}, {"holdout": 0.3}))
    config = build_config(parted)
    rest, held = (open_data(config.data, which) for which in ("train", "val"))
    train = open_data(build_config(whole).data, "train")
    assert (len(rest), len(held)) == (7, 3)
    assert sorted([*rest.ids, *held.ids]) == sorted(train.ids)
    assert (rest.split, held.split) == ("train-rest", "train-held-out")
    for part in (rest, held):
        for place, name in enumerate(part.ids):
            assert np.array_equal(part.read(place)[0], train.read(train.ids.index(name))[0])
    results, code, _ = sweep(config)
    assert code == 0
    assert all(sorted(r.ids) == sorted(held.ids) for r in results.values())
    keys = {run.key for run in make_plan(config).runs}
    assert keys.isdisjoint(run.key for run in make_plan(build_config(whole)).runs)
    other = build_config(whole | {"data": {**whole["data"], "holdout": {"share": 0.3, "group": "..$"}}})
    assert (keys == {run.key for run in make_plan(other).runs}) == (open_data(other.data, "val").ids == held.ids)


def test_a_part_s_fingerprint_says_which_part_it_is(tmp_path):
    config = build_config(tiny() | {"data": folder_data(tmp_path / "data", train=6, val=2)}).data
    whole, known = open_data(config, "train"), KnownFiles()
    parts = [whole, Part(whole, [0, 1]), Part(whole, [0, 2]), Part(whole, [0, 1, 2])]
    prints = [part.fingerprint() for part in parts]
    assert len(set(prints)) == 4
    assert [known.fingerprint(part) for part in parts] == prints  # though it reads labels once


def test_another_split_of_such_a_run_can_be_exported(tmp_path):
    data = folder_data(tmp_path / "data", train=8, val=3)
    values = tiny(decoders=["nearest"], runs_dir=str(tmp_path / "runs")) | {"data": data | {"holdout": 0.4}}
    results, _, _ = sweep(build_config(values))
    folder = results["nearest", 0].folder
    assert main(["export", str(folder)]) == 0
    assert len([*(folder / "predictions-train-held-out").glob("*.png")]) == 3
    assert main(["export", str(folder), "--split", "val"]) == 0
    assert sorted(p.stem for p in (folder / "predictions-val").glob("*.png")) == ["val0", "val1", "val2"]
