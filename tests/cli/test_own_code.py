"""What a run depends on is watched, and only the user's own code is run."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
from kits.command import call
from kits.stopped import RUN, TEXT, here, made, only, stopping

__all__ = ["here", "made"]  # fixtures


STRANGE = "import pathlib\npathlib.Path('was_run').touch()\n"


def test_the_code_of_another_users_run_is_not_run_unless_trusted(here, monkeypatch, unrendered):
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


def test_code_that_was_replaced_in_the_folder_of_ones_own_run_is_not_run(here, unrendered):
    folder = only("runs")
    (folder / "code" / "line.py").write_text(STRANGE + TEXT)
    (here / "line.py").write_text(STRANGE + TEXT)
    for arguments in (("resume", folder), ("resume", folder, "--force"), ("report", folder)):
        assert call(*arguments).code == (0 if "report" in arguments else 2) and not Path("was_run").exists()


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


def test_own_code_that_lies_elsewhere_and_data_files_are_watched(package, here):
    with stopping(11):
        assert call(*RUN, "--runs", "stopped").code == 130
    assert {"imported/mine/parts.py", "imported/mine/__init__.py", "files/table.csv.sha256"} <= {
        path.relative_to(only("stopped") / "code").as_posix() for path in (only("stopped") / "code").rglob("*.*")
    }
    for place in (package / "parts.py", here / "table.csv"):
        before = place.read_text()
        place.write_text(before + "\n")
        for name in ("mine", "mine.parts"):
            sys.modules.pop(name, None)
        called = call("resume", only("stopped"))
        assert called.code == 2 and place.name in called.err
        place.write_text(before)
    assert call("resume", only("stopped")).code == 0


def test_a_mark_does_not_hold_for_another_file(here, unrendered):
    """Though the code beside it is that of a run of one's own."""
    folder = only("runs")
    (here / "evil.py").write_text(STRANGE + "from line import experiment\n")
    config = json.loads((folder / "config.json").read_text())
    for edited in (folder / "config.json", folder / "code" / "config.json"):
        edited.write_text(json.dumps(config | {"file_here": str(here / "evil.py"), "file": "evil.py"}))
        assert call("resume", folder).code == 2 and call("report", folder).code == 0
        assert not Path("was_run").exists()
