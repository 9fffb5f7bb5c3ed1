"""What ``tune:`` takes: which settings lists and ranges give, and what is wrong in one line."""

import pytest
import yaml

from segbench.cli import main
from segbench.config_effort import TuneConfig
from segbench.tuning import settings
from tests.conftest import tiny
from tests.test_tune import tuned


def test_of_lists_every_combination_is_tried():
    search = {"recipe.lr": [1, 2, 3], "decoder.width": [8, 16]}
    wanted = [{"recipe.lr": lr, "decoder.width": w} for lr in (1, 2, 3) for w in (8, 16)]
    assert settings(TuneConfig(search=search)) == wanted


def test_a_range_is_spread_evenly_by_the_logarithm_its_ends_included():
    tune = TuneConfig(search={"recipe.lr": {"low": 1e-4, "high": 1e-2}}, trials=5)
    found = [setting["recipe.lr"] for setting in settings(tune)]
    assert found == pytest.approx([1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2], rel=5e-3)
    whole = TuneConfig(search={"decoder.width": {"low": 8, "high": 32}}, trials=3)
    assert settings(whole) == [{"decoder.width": n} for n in (8, 16, 32)]
    assert all(isinstance(setting["decoder.width"], int) for setting in settings(whole))


def test_the_ends_of_a_range_are_as_they_are_given_and_whole_numbers_are_tried_once():
    odd = TuneConfig(search={"recipe.lr": {"low": 0.0012345, "high": 0.012344}}, trials=3)
    assert [s["recipe.lr"] for s in settings(odd)] == [0.0012345, 0.0039, 0.012344]
    close = TuneConfig(search={"recipe.lr": {"low": 0.0012341, "high": 0.0012349}}, trials=4)
    assert [s["recipe.lr"] for s in settings(close)] == [0.0012341, 0.0012349]
    few = TuneConfig(search={"decoder.width": {"low": 1, "high": 3}}, trials=10)
    assert [s["decoder.width"] for s in settings(few)] == [1, 2, 3]


def test_of_ranges_and_lists_points_of_haltons_sequence_are_tried():
    """By its definition: digits of 1, 2, 3, ... in base 2 and 3, mirrored at the point."""

    def mirrored(n, base):
        value, digit = 0.0, 1 / base
        while n:
            n, rest = divmod(n, base)
            value, digit = value + rest * digit, digit / base
        return value

    tune = TuneConfig(search={"recipe.lr": {"low": 1e-3, "high": 1.0}, "recipe.flip": [0.0, 0.5]}, trials=6)
    found = settings(tune)
    assert [s["recipe.lr"] for s in found] == pytest.approx(
        [10 ** (3 * mirrored(n, 2) - 3) for n in range(1, 7)], rel=5e-3
    )
    assert [s["recipe.flip"] for s in found] == [[0.0, 0.5][int(2 * mirrored(n, 3))] for n in range(1, 7)]


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"search": {"recipe.lrr": [1, 2]}}, "tune.search: unknown key 'recipe.lrr' (did you mean 'lr'?)"),
        ({"search": {"decoder.wdth": [1, 2]}}, "no decoder of the sweep takes 'wdth' (did you mean 'width'?)"),
        ({"search": {"recipe.lr": [0.1, "high"]}}, "tune.search: recipe.lr should be a number"),
        ({"search": {"recipe.lr": [0.1]}}, "tune.search.recipe.lr"),
        ({"search": {"recipe.lr": [0.1, 0.1]}}, "search: recipe.lr holds one twice"),
        ({"search": {"data.root": ["a", "b"]}}, "'data.root' is neither recipe.KEY nor decoder.PARAMETER"),
        ({"search": {"recipe.lr": {"low": 0.1, "high": 0.01}}, "trials": 3}, "low (0.1) should be below high (0.01)"),
        (
            {"search": {"recipe.lr": {"low": 0.01, "hi": 0.1}}, "trials": 3},
            "tune.search.recipe.lr: a range has low and high, and nothing else, not hi, low",
        ),
        (
            {"search": {"recipe.lr": {"low": 0.01, "high": 0.1, "step": 1}}, "trials": 3},
            "tune.search.recipe.lr: a range has low and high, and nothing else, not high, low, step",
        ),
        ({"search": {"recipe.lr": {}}, "trials": 3}, "a range has low and high, and nothing else, not none"),
        ({"search": {"recipe.lr": 0.1}}, "tune.search.recipe.lr should be a list, not 0.1"),
        ({"search": {"recipe.lr": {"low": 0, "high": 1}}, "trials": 3}, "tune.search.recipe.lr.low should be greater"),
        ({"search": {"recipe.lr": {"low": 0.01, "high": 0.1}}}, "trials should say how many settings of recipe.lr"),
        ({"search": {"recipe.lr": [0.1, 0.2]}, "trials": 7}, "of these lists all 2 settings are tried"),
        ({"search": {}}, "tune.search should"),
        ({"holdout": 0}, "tune.holdout.share"),
        ({"holdout": 1.0}, "tune.holdout.share"),
        ({"holdout": 0.01}, "0.01 of 6 training images leaves 0 held out and 6 to train on; 2 of each are the fewest"),
        ({"holdout": {"share": 0.3, "group": "("}}, "a regular expression"),
        ({"search": {"recipe.lr": ["1e-1", 0.1]}}, "search: recipe.lr holds one twice"),  # the first is text in YAML
        ({"seeds": [0, 9]}, "tune.seeds and seeds both hold 0"),
        ({"measure": "mIuO"}, "unknown measure of tune for segmentation 'mIuO' (did you mean 'miou'?)"),
        ({"measure": "macs"}, "unknown measure of tune for segmentation 'macs'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(tmp_path, capsys, tune, message):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tuned(tmp_path, tune=tune)))
    assert main(["sweep", str(path)]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs" / "tiny" / "search").exists()


def test_a_value_that_no_decoder_can_have_is_told_before_anything_runs(tmp_path, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tuned(tmp_path, tune={"search": {"decoder.width": [8, 0]}})))
    assert main(["sweep", str(path)]) == 2
    assert "width must be at least 1, not 0" in capsys.readouterr().err
    assert not [*(tmp_path / "runs").rglob("result.json")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"grid": {"recipe.lr": [0.1, 0.2]}}, "tune.search and grid both have recipe.lr"),
        ({"grid": {"data.holdout": [0.2]}}, "leave data.holdout out"),
        (
            {"grid": {"task": ["segmentation", "reconstruction"]}},
            "unknown measure of tune for reconstruction 'miou'; there is: psnr, ssim",
        ),
        ({"grid": [{"data.holdout.share": 0.2}]}, "leave data.holdout out"),
        ({"data": {"holdout": 0.2}}, "leave data.holdout out"),
    ],
)
def test_what_the_grid_sets_is_not_searched_and_no_part_held_out_twice(tmp_path, capsys, more, message):
    """Else the evaluation's images could be those of the search."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tuned(tmp_path) | tiny(tune=tuned(tmp_path)["tune"], seeds=[0, 1], **more)))
    assert main(["sweep", str(path)]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1


def test_an_override_within_the_search_says_how_to_give_it(tmp_path, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tuned(tmp_path)))
    assert main(["plan", str(path), "tune.search.recipe.lr=[0.001,0.002]"]) == 2
    err = capsys.readouterr().err.strip()
    assert "give the whole of it, tune.search={KEY: VALUE}" in err
    assert len(err.splitlines()) == 1


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    """As in the examples of the docs."""
    tune = TuneConfig.model_validate(
        yaml.safe_load("search: {recipe.lr: [7.5e-4, 3e-3, 1.2e-2], recipe.optimizer: [sgd, adamw]}")
    )
    assert tune.search == {"recipe.lr": [7.5e-4, 3e-3, 1.2e-2], "recipe.optimizer": ["sgd", "adamw"]}
