"""Plug-ins of several files: what they may import, and which of their files make a new run."""

import os
import subprocess
import sys

import pytest

from segbench.errors import UserError
from segbench.sweep import plan
from tests.test_sweep import sweep

PLUGIN = """
from segbench.data.shapes import Shapes
from segbench.decoders.bilinear import Bilinear
from near import VALUE

class Mine(Bilinear):
    def __init__(self, *args, **kwargs):
        from lazy import LAZY
        super().__init__(*args, **kwargs)
        self.value = VALUE + LAZY

class Data(Shapes):
    pass
"""


@pytest.fixture
def folder(tmp_path):
    """A plug-in that imports `near`, that imports the package `far` and is imported by it, and `lazy`, late."""
    folder = tmp_path / "plugin"
    (folder / "far").mkdir(parents=True)
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "near.py").write_text("import far.away\nVALUE = 1\n")
    (folder / "far" / "__init__.py").write_text("")
    (folder / "far" / "away.py").write_text("import near\nfrom . import further\nfrom .further import DEEP as D\n")
    (folder / "far" / "further.py").write_text("DEEP = 1\n")
    (folder / "lazy.py").write_text("LAZY = 1\n")
    (folder / "unrelated.py").write_text("this is not even Python\n")
    return folder


@pytest.fixture
def key(make_config):
    def key(decoder="nearest", **changes):
        (run,) = plan(make_config(decoders=[str(decoder)], **changes))
        return run.key

    return key


@pytest.mark.parametrize("kind", ["decoder", "data set"])
def test_a_plug_in_imports_its_neighbours_and_is_a_new_run_where_one_changes(folder, key, tmp_path, kind):
    def now():
        return key(f"{folder}/mine.py:Mine") if kind == "decoder" else key(data={"name": f"{folder}/mine.py:Data"})

    seen = {now()}
    for name in ("near.py", "far/__init__.py", "far/away.py", "far/further.py", "lazy.py"):
        with open(folder / name, "a") as file:
            file.write("\nMORE = 1\n")
        seen.add(now())
    assert len(seen) == 6
    (folder / "unrelated.py").write_text("MORE = 1\n")
    folder = folder.rename(tmp_path / "moved")
    assert now() in seen


def test_a_run_of_several_files_is_trained_in_a_cohort_of_its_own_process(folder, make_config):
    config = make_config(decoders=[f"{folder}/mine.py:Mine"], data={"name": f"{folder}/mine.py:Data"})
    config = config.model_copy(update={"launch": config.launch.model_copy(update={"workers": 1})})
    results, code, out = sweep(config)
    assert code == 0, out
    assert list(results) == [("Mine", 0)]
    assert "near" not in sys.modules


def test_a_module_of_a_package_counts_the_modules_of_its_package(tmp_path, make_config, monkeypatch):
    package = tmp_path / "site" / "toolkit"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "up.py").write_text(
        "import helper\nfrom segbench.decoders.bilinear import Bilinear\nfrom toolkit.parts import kernel\n"
        "class Up(Bilinear):\n    pass\n"
    )
    (package / "parts" / "__init__.py").write_text("")
    (package / "parts" / "kernel.py").write_text("from .. import shared\n")
    (package / "shared.py").write_text("")
    (package / "unrelated.py").write_text("")
    (package / "helper.py").write_text("")  # no name of Python's path
    (tmp_path / "site" / "helper.py").write_text("")  # beside the package, not in it

    script = tmp_path / "key.py"
    script.write_text(
        "import sys\nfrom segbench.registry import DECODERS, source_hash\n"
        "print(source_hash(DECODERS.load('toolkit.up:Up')))\n"
    )

    def now():
        path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
        command = [sys.executable, str(script)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=True
        )
        return done.stdout

    seen = [now()]
    for name in ("__init__.py", "up.py", "parts/__init__.py", "parts/kernel.py", "shared.py"):
        with open(package / name, "a") as file:
            file.write("\nMORE = 1\n")
        seen.append(now())
    assert len(set(seen)) == 6
    for path in (package / "unrelated.py", package / "helper.py", tmp_path / "site" / "helper.py"):
        path.write_text("MORE = 1\n")
    assert now() == seen[-1]


def test_two_folders_with_a_helper_of_one_name(folder, key, make_config, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "two.py").write_text(
        "import near\nfrom segbench.decoders.bilinear import Bilinear\nclass Two(Bilinear):\n    pass\n"
    )
    (other / "near.py").write_text("")
    assert key(f"{other}/two.py:Two") != key(f"{folder}/mine.py:Mine")  # by itself each is as it was
    with pytest.raises(UserError, match="imports 'near'.*rename") as error:
        plan(make_config(decoders=[f"{folder}/mine.py:Mine", f"{other}/two.py:Two"]))
    said = str(error.value)
    assert str(folder / "near.py") in said
    assert str(other / "near.py") in said
    assert "\n" not in said


@pytest.mark.parametrize("name", ["yaml", "statistics"])
def test_a_neighbour_with_the_name_of_something_installed(folder, key, name):
    (folder / f"{name}.py").write_text("")
    assert key(f"{folder}/mine.py:Mine")  # which does not import it
    (folder / "near.py").write_text(f"import {name}\nVALUE = 1\n")
    with pytest.raises(UserError, match=f"imports '{name}'.*/{name}(.py|/)? *.*rename") as error:
        key(f"{folder}/mine.py:Mine")
    assert str(folder / f"{name}.py") in str(error.value)


def test_what_lies_in_the_folder_of_a_plug_in_and_is_not_imported_stays_out_of_python_s_reach(folder, tmp_path, key):
    """A name that something else asks for, such as an optional package that is not installed."""
    (folder / "alone.py").write_text(
        "from segbench.decoders.bilinear import Bilinear\n"
        "class Alone(Bilinear):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "        try:\n            __import__('lazy')\n        except ModuleNotFoundError:\n            return\n"
        "        raise RuntimeError('it was found')\n"
    )
    assert key(f"{folder}/alone.py:Alone")
