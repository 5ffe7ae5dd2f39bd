"""``minijaxnet list``: the experiments of a folder, none of which is run."""

import re
from pathlib import Path

import pytest
from kits.command import call

from minijaxnet.experiment import load_experiment


def test_list_shows_experiments_and_scripts_and_runs_neither(tmp_path):
    folder = tmp_path / "experiments"
    folder.mkdir()
    texts = {
        "b_experiment.py": '"""Crashes when it is run.\n\nMore."""\nraise SystemExit(9)\nexperiment = 1 / 0\n',
        "a_script.py": '"""A script."""\nopen("touched", "w")\nif __name__ == "__main__":\n    1 / 0\n',
        "annotated.py": '"""Says its type."""\nexperiment: "Experiment" = None\n',
        "helper.py": '"""Meant for others."""\nraise SystemExit(9)\n',
        "silent.py": "experiment = 3\n",
        "broken.py": "x = = 1\n",
        "notes.txt": "experiment = 3\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "latin.py").write_bytes(b"experiment = '\xe9'\n")
    (folder / "lesson").mkdir()
    for name in ("b_experiment.py", "a_script.py", "broken.py"):  # in a folder below only experiments are shown
        (folder / "lesson" / name).write_text(texts[name], encoding="utf-8")
    called = call("list", folder)
    assert (called.code, called.err) == (0, "")
    shown = [re.split(r"\s{2,}", line) for line in called.out.splitlines()]
    assert shown == [
        [f"python {folder / 'a_script.py'}", "A script."],
        [f"minijaxnet run {folder / 'annotated.py'}", "Says its type."],
        [f"minijaxnet run {folder / 'b_experiment.py'}", "Crashes when it is run."],
        [str(folder / "broken.py"), "(cannot be read: SyntaxError)"],
        [str(folder / "latin.py"), "(cannot be read: UnicodeDecodeError)"],
        [f"minijaxnet run {folder / 'silent.py'}", "(no summary)"],
        [f"minijaxnet run {folder / 'lesson' / 'b_experiment.py'}", "Crashes when it is run."],
    ]
    starts = {line.index(summary) for line, (_, summary) in zip(called.out.splitlines(), shown, strict=True)}
    assert len(starts) == 1, "the summaries stand in one column"
    assert not Path("touched").exists()


def test_list_looks_into_experiments_if_no_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    assert call("list").out == "experiments: no experiments\n"
    (tmp_path / "experiments" / "one.py").write_text('"""One."""\nexperiment = 1\n')
    assert call("list").out == f"minijaxnet run {Path('experiments/one.py')}  One.\n"


@pytest.mark.parametrize("arguments", [(), ("nowhere",), ("file.py",)])
def test_list_names_a_folder_that_is_none(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.py").touch()
    called = call("list", *arguments)
    assert called.code == 2
    looked_in = tmp_path / (*arguments, "experiments")[0]
    assert f"expected a folder, but {looked_in} is {'a file' if looked_in.exists() else 'not there'}\n" in called.err
    assert call("runs", *arguments).err.startswith(
        f"minijaxnet: error: runs: got {(*arguments, 'runs')[0]}; expected a"
    )


def test_list_takes_one_folder():
    called = call("list", "a", "b")
    assert called.code == 2
    assert "list: got a b; expected one folder at most" in called.err


def test_list_has_help():
    called = call("list", "--help")
    assert called.code == 0
    assert "usage: minijaxnet list [FOLDER]" in called.out


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_list_passes_over_what_is_no_file(kind, tmp_path):
    (tmp_path / "one.py").write_text("experiment = 1\n")
    odd = tmp_path / "odd.py"
    if kind == "folder":
        odd.mkdir()
    else:
        odd.symlink_to(tmp_path / "nowhere.py")
    called = call("list", tmp_path)
    assert called.code == 0
    assert "one.py" in called.out


def test_the_experiments_that_ship_are_listed_and_load():
    folder = Path(__file__).parents[2] / "experiments"
    called = call("list", folder)
    runnable = re.findall(r"^minijaxnet run (\S+\.py) {2,}\S", called.out, re.MULTILINE)
    assert str(folder / "digits.py") in runnable
    assert "(no summary)" not in called.out
    names = [load_experiment(path).name for path in runnable]
    assert len(set(names)) == len(names) >= 5
    assert str(folder / "lesson" / "single_weight.py") in runnable
    assert "studies" not in called.out
    assert all(re.fullmatch(r"[a-z_-]+", name) for name in names)
