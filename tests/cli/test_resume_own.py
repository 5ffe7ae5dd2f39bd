"""What a run depends on is watched, and code is carried out only if it is the user's own."""

import contextlib
import json
import re
import sys
from pathlib import Path

import pytest
from kits.command import call
from kits.marks import SLOW
from kits.stopped import RUN, TEXT, here, made, only, stopping

__all__ = ["here", "made"]  # fixtures


@pytest.mark.parametrize(
    "name", ["jax_default_prng_impl", SLOW("jax_default_matmul_precision"), SLOW("JAX_ENABLE_X64")]
)
def test_settings_by_which_jax_computes_other_numbers_are_refused_unless_forced(name, here):
    path = only("runs") / "environment.json"
    found = json.loads(path.read_text())
    found["settings"][name] = "another"
    path.write_text(json.dumps(found))
    called = call("resume", only("runs"))
    assert called.code == 2 and re.search(
        f"{name}: got .*; expected 'another': the numbers would be others", called.err
    )
    assert call("resume", only("runs"), "--force").code == 0


def test_another_processor_is_told(here):
    path = only("runs") / "environment.json"
    path.write_text(path.read_text().replace('"processor": "', '"processor": "Another '))
    called = call("resume", only("runs"))
    assert called.code == 0 and "warning: processor was Another" in called.err


STRANGE = "import pathlib\npathlib.Path('was_run').touch()\n"


def test_the_code_of_somebody_elses_run_is_not_carried_out_unless_trusted(here, monkeypatch):
    """Be its file in the folder, somewhere else, or of the same name as one's own."""
    folder = only("runs")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "of_another_user"))
    (here / "line.py").write_text(STRANGE + TEXT)
    for verb in ("resume", "report"):
        called = call(verb, folder)
        assert not Path("was_run").exists()
    assert (
        called.code == 0
        and "a run that was not started by you, on this machine" in (folder / "report.html").read_text()
    )
    called = call("resume", folder)
    assert called.code == 2 and "not started by you, on this machine; expected a run of yours (--trust" in called.err
    assert call("resume", folder, "--trust", "--force").code == 0 and Path("was_run").exists()


@pytest.mark.parametrize("force", [(), SLOW(("--force",))])
def test_code_that_the_user_never_ran_is_not_carried_out_though_the_run_was_his(force, here):
    folder = only("runs")
    (folder / "code" / "line.py").write_text(STRANGE + TEXT)
    (here / "line.py").write_text(STRANGE + TEXT)
    assert call("resume", folder, *force).code == 2 and call("report", folder).code == 0
    assert not Path("was_run").exists()


def test_of_two_files_of_the_same_name_the_one_that_was_run_is_taken(here, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "line.py").write_text(STRANGE + TEXT)
    folder = only("runs").resolve()
    with contextlib.chdir(elsewhere):
        assert call("resume", folder).code == 0
        assert not Path("was_run").exists()


FILES = """
import dataclasses
experiment = dataclasses.replace(experiment, files=["table.csv"])
"""


@pytest.fixture
def package(here, tmp_path_factory, monkeypatch):
    """A package of the user's own that lies elsewhere, on Python's path."""
    source = tmp_path_factory.mktemp("src")
    (source / "mine").mkdir()
    (source / "mine" / "__init__.py").write_text("from mine.parts import TWO\n")
    (source / "mine" / "parts.py").write_text("TWO = 2.0\n")
    monkeypatch.syspath_prepend(str(source))
    (here / "line.py").write_text("from mine import TWO\n" + TEXT + FILES)
    (here / "table.csv").write_text("1,2\n")
    yield source / "mine"
    for name in ("mine", "mine.parts"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("changed", ["mine/parts.py", "table.csv"])
def test_own_code_that_lies_elsewhere_and_data_files_are_watched(changed, package, here):
    with stopping(11):
        assert call(*RUN, "--runs", "stopped").code == 130
    assert {"imported/mine/parts.py", "imported/mine/__init__.py", "files/table.csv.sha256"} <= {
        path.relative_to(only("stopped") / "code").as_posix() for path in (only("stopped") / "code").rglob("*.*")
    }
    place = here / changed if changed.endswith("csv") else package.parent / changed
    before = place.read_text()
    place.write_text(before + "\n")
    for name in ("mine", "mine.parts"):
        sys.modules.pop(name, None)
    called = call("resume", only("stopped"))
    assert called.code == 2 and changed.split("/")[-1] in called.err
    place.write_text(before)
    assert call("resume", only("stopped")).code == 0


def test_a_mark_is_of_no_use_with_another_file(here):
    """Though the code beside it is that of a run of one's own."""
    folder = only("runs")
    (here / "evil.py").write_text(STRANGE + "from line import experiment\n")
    config = json.loads((folder / "config.json").read_text())
    for edited in (folder / "config.json", folder / "code" / "config.json"):
        edited.write_text(json.dumps(config | {"file_here": str(here / "evil.py"), "file": "evil.py"}))
        assert call("resume", folder).code == 2 and call("report", folder).code == 0
        assert not Path("was_run").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("result.json", {"steps_taken": "x", "gradient_check": {"a": 1}}),
        ("timing.json", {"step_comparison": {"a": 1}}),
        ("config.json", {"defaults": "x"}),
        ("environment.json", {"devices": 3}),
    ],
)
def test_a_page_leaves_out_what_a_folder_has_that_no_run_leaves(file, content, here):
    path = only("whole") / file
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    called = call("report", only("whole"))
    assert (called.code, called.err) == (0, ""), called
    page = (only("whole") / "report.html").read_text()
    assert "This summary is not complete" in page or file == "environment.json"
