"""`sweep.json`, which says what stands in the table: narrower and other calls on a folder, two runners, damage."""

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from segbench import checkout, store
from segbench.config_file import build_config
from segbench.errors import UserError
from segbench.report.provenance import provenance
from segbench.report.runs import read_sweep
from segbench.report.table import make_table
from segbench.sweep.manifest import write_manifest
from segbench.sweep.plan import make_plan
from segbench.sweep.run import run_sweep
from segbench.sweep.status import read_status
from tests.conftest import ROOT, WHOLE, segbench, tiny
from tests.test_sweep import sweep


def listed(folder):
    return [f"{row['decoder']}-s{row['seed']}" for row in store.read_manifest(folder)["runs"]]


def decoders(folder):
    return [row["decoder"] for row in make_table(folder).rows]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """How to run a sweep in a folder in which this one has run, with any changes; its folder; what it lists."""
    runs = tmp_path_factory.mktemp("runs")

    def run(**changes):
        return sweep(build_config(tiny(runs_dir=str(runs), **{"seeds": [0, 1], **changes})))

    _, code, out = run()
    assert code == 0, out
    return run, runs / "tiny", ["bilinear-s0", "nearest-s0", "bilinear-s1", "nearest-s1"]


def test_a_narrower_call_adds_to_the_table(wide):
    run, folder, names = wide
    assert listed(folder) == names
    _, code, out = run(decoders=["deconv"], seeds=[0])
    assert code == 0
    assert "tiny: 1 runs, 0 done before, 1 to do" in out
    assert "1 of 1 runs done" in out
    run(decoders=["nearest"], seeds=[1, 2])
    assert listed(folder) == [*names, "deconv-s0", "nearest-s2"]
    assert [status.state for _, status in read_status(folder)] == ["done"] * 6
    assert decoders(folder) == ["bilinear", "nearest", "deconv"]
    table = make_table(folder)
    assert [note for note in table.notes if note.startswith("Missing: ")] == [
        "Missing: bilinear-s2, deconv-s1, deconv-s2, not planned: no command asked for it"
    ]
    assert [row["n"] for row in table.rows] == [2, 3, 1]
    lines = provenance(read_sweep(folder)).runs
    assert [f"{line.decoder}-s{line.seed}" for line in lines if line.state == "not planned"] == [
        "bilinear-s2", "deconv-s1", "deconv-s2",
    ]  # fmt: skip
    config = store.read_manifest(folder)["config"]  # as a sweep file it makes the whole table
    _, code, out = sweep(build_config(config))
    assert code == 0
    assert "tiny: 9 runs, 6 done before, 3 to do" in out
    assert not [note for note in make_table(folder).notes if note.startswith("Missing: ")]


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {"steps": 3}},
        {"decoder_defaults": {"width": 4}},
        {"skeleton": "segbench.decoders.pyramid:Pyramid"},
        {"grid": {"recipe.lr": [0.002]}},
    ],
)
def test_what_was_made_under_other_conditions_is_listed_when_its_own_command_is_given_again(wide, changes):
    run, folder, names = wide
    run()
    before = listed(folder)
    _, _, out = run(decoders=["nearest"], seeds=[0], **changes)
    assert listed(folder) == ["nearest-s0"]
    (said,) = [line for line in out.splitlines() if line.startswith("replaced ")]
    assert "bilinear-s0" in said
    assert "made otherwise, or not finished" in said
    assert decoders(folder) == ["nearest"]
    run()
    assert listed(folder) == names
    assert set(names) <= set(before)


def test_the_manifest_says_by_what_command_and_from_what_commit(done, tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/segbench", "sweep", "my file.yaml", "seeds=[0]"])
    done(decoders=["bilinear"])
    (path,) = tmp_path.glob("runs/*/sweep.json")
    assert store.read_plan(path.parent)["called"] == {
        "command": "segbench sweep 'my file.yaml' 'seeds=[0]'",
        "commit": "",
    }

    def git(*words):
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (project / "plan.txt").write_text("one")
    git("add", ".")
    git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD")
    (project / "not tracked").write_text("")
    assert checkout.of_folder(project) == commit
    (project / "plan.txt").write_text("two")
    assert checkout.of_folder(project) == f"{commit} with uncommitted changes"
    monkeypatch.setattr(checkout.segbench, "__file__", str(project / ".venv" / "segbench" / "__init__.py"))
    (project / ".venv" / "segbench").mkdir(parents=True)
    assert checkout.of_segbench() == {"commit": None, "changes": None}  # another project's commit is not segbench's


@pytest.mark.parametrize("config", [None, 3, {}, {"decoders": [3]}, {"decoders": [{"nome": "nearest"}]}])
def test_a_config_in_the_manifest_that_was_edited_loses_no_run(done, tmp_path, config):
    done(decoders=["bilinear", "nearest"])
    (path,) = tmp_path.glob("runs/*/sweep.json")
    store.write_json(path, store.read_json(path) | {"config": config})
    assert done(decoders=["deconv"]) == ["bilinear-s0", "nearest-s0", "deconv-s0"]
    assert [d["name"] for d in store.read_json(path)["config"]["decoders"]] == ["deconv"]


def test_baselines_that_are_not_in_the_table_are_not_in_its_config(done, tmp_path):
    done(decoders=["deconv", "nearest"], baseline=["nearest", "bilinear"])
    (path,) = tmp_path.glob("runs/*/sweep.json")
    assert store.read_json(path)["config"]["baseline"] == ["nearest"]


def test_a_damaged_manifest_is_said_and_made_again(wide):
    run, folder, names = wide
    run()
    for damage in ("{", "[]", '{"runs": [3]}', '{"runs": [{"folder": "../elsewhere"}]}', '{"runs": [{"folder": "x"}]}'):
        (folder / store.MANIFEST).write_text(damage)
        _, code, out = run()
        assert code == 0
        assert ("damaged" in out) == ('"x"' not in damage)  # that one is only of an older version
        assert listed(folder) == names


def test_a_finished_sweep_on_a_disk_that_takes_no_more_is_shown_all_the_same(wide, monkeypatch):
    run, folder, names = wide
    run()

    def refused(*_, **__):
        raise UserError("cannot write it: Read-only file system")

    for name in ("locked", "write_atomic"):
        monkeypatch.setattr(store, name, refused)
    out = io.StringIO()
    config = build_config(tiny(runs_dir=str(folder.parent), seeds=[0, 1], decoders=["nearest"]))
    _, code, listed = run_sweep(config, Console(file=out, width=200))
    assert code == 0
    assert "nothing is to do, so that the table can be made all the same: cannot write it" in out.getvalue()
    assert [f"{row['decoder']}-s{row['seed']}" for row in listed["runs"]] == names
    with pytest.raises(UserError, match="Read-only"):
        run_sweep(config.model_copy(update={"seeds": [5]}), Console(file=out))


@pytest.fixture
def done(make_config):
    """List the runs of a sweep with these changes, and mark them done; what is listed then."""

    def done(finish=True, **changes):
        config = make_config(**changes)
        runs = make_plan(config).runs
        write_manifest(config, runs)
        if finish:
            for run in runs:
                store.write_json(run.folder / store.RESULT, {})
        return listed(runs[0].folder.parent)

    return done


def test_a_sweep_prints_the_table_that_it_was_asked_for_whatever_another_command_lists(
    write_sweep, make_config, monkeypatch, capsys
):
    from segbench.cli import main
    from segbench.sweep import run

    path, other = write_sweep(decoders=["bilinear", "nearest"]), make_plan(make_config(recipe={"steps": 3}))

    def between(*given):
        """As `write_manifest`, and another command writes its own before the table is made."""
        listed = write_manifest(*given)
        assert "steps" not in write_manifest(other.config, other.runs).replaced
        return listed

    monkeypatch.setattr(run, "write_manifest", between)
    assert main(["sweep", str(path)]) == 0
    out, err = capsys.readouterr()
    assert set(re.findall(r"^ *(bilinear|nearest) .*", out, re.MULTILINE)) == {"bilinear", "nearest"}
    assert "Missing" not in out
    (said,) = re.findall(r"replaced .* listed (.*): made otherwise", err)
    assert said.count("-s0") == len(other.runs)


MINE = "from segbench.upsamplers import Bilinear\nclass Mine(Bilinear):\n    pass\n"


def test_an_edited_plug_in_takes_the_place_of_what_it_was(done, tmp_path):
    """Its other seeds go too: a row of the table is one decoder."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(MINE)
    done(decoders=["bilinear", f"{plugin}:Mine", "nearest"], seeds=[0, 1])
    plugin.write_text(MINE.replace("pass", "other = True"))
    now = done(decoders=[f"{plugin}:Mine"])
    assert now == ["bilinear-s0", "Mine-s0", "nearest-s0", "bilinear-s1", "nearest-s1"]


def test_a_label_stands_for_what_it_was_given_to_last(done):
    done(decoders=["bilinear", "nearest"], seeds=[0, 1])
    other = {"name": "bilinear", "label": "nearest", "params": {"width": 4}}
    assert done(decoders=[other]) == ["bilinear-s0", "nearest-s0", "bilinear-s1"]


def test_a_decoder_with_another_label_is_listed_once(done):
    done(decoders=["bilinear", "nearest"], seeds=[0, 1])
    now = done(decoders=[{"name": "bilinear", "label": "ours"}])
    assert now == ["ours-s0", "nearest-s0", "ours-s1", "nearest-s1"]


def test_what_is_not_done_is_listed_by_its_own_call_only(done):
    done(False, decoders=["bilinear", "deconv"])
    assert done(decoders=["nearest"]) == ["nearest-s0"]
    assert done(decoders=["deconv", "bilinear"]) == ["nearest-s0", "deconv-s0", "bilinear-s0"]


def test_rows_of_an_older_version_do_not_match(done, make_config):
    done()
    folder = make_plan(make_config()).runs[0].folder.parent
    manifest = store.read_manifest(folder)
    for row in manifest["runs"]:
        del row["conditions"]
    store.write_json(folder / store.MANIFEST, manifest)
    assert done(decoders=["deconv"]) == ["deconv-s0"]


PAIR = (
    WHOLE
    + """
import os, time

class First(Whole):
    "Trains once the other one does too."
    def forward(self, features, image):
        if self.training and image.shape[-1] == 64:
            open(os.path.join({folder!r}, type(self).__name__), "a").close()
            deadline = time.monotonic() + 120
            while not all(os.path.exists(os.path.join({folder!r}, name)) for name in ("First", "Second")):
                assert time.monotonic() < deadline, "the other runner does not come"
                time.sleep(0.05)
        return super().forward(features, image)

class Second(First):
    pass
"""
)


@pytest.mark.slow
def test_two_runners_with_other_decoders_end_with_both_in_the_table(write_sweep, tmp_path):
    (tmp_path / "pair.py").write_text(PAIR.format(folder=str(tmp_path)))
    path = write_sweep()
    names = ["First", "Second"]
    runners = [
        subprocess.Popen(
            [sys.executable, "-m", "segbench.cli", "sweep", path, f"decoders=[{tmp_path / 'pair.py'}:{name}]"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in names
    ]  # fmt: skip
    said = [runner.communicate(timeout=300)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], said
    tables = [out[out.index("tiny: shapes") :] for out in said]
    for name, table in zip(names, tables, strict=True):
        assert name in table
    assert any(all(name in table for name in names) for table in tables)  # of the one that ended last
    folder = tmp_path / "runs" / "tiny"
    assert sorted(listed(folder)) == ["First-s0", "Second-s0"]
    assert all(name in segbench("table", folder).stdout for name in names)
    assert list((folder / ".locks").iterdir()) == []
