"""``minijaxnet list``: the experiments of a folder, none of which is run."""

import re
from pathlib import Path

import pytest
from kits.command import call

from minijaxnet.experiment import load_experiment


def test_list_shows_experiments_and_scripts_and_runs_neither(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
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
    (folder / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    called = call("list", folder)
    assert (called.code, called.err) == (0, "")
    rows = [re.split(r"\s{2,}", line) for line in called.out.splitlines()]
    assert rows == [
        [f"python {folder / 'a_script.py'}", "A script."],
        [f"minijaxnet run {folder / 'annotated.py'}", "Says its type."],
        [f"minijaxnet run {folder / 'b_experiment.py'}", "Crashes when it is run."],
        [str(folder / "broken.py"), "(cannot be read: SyntaxError)"],
        [str(folder / "dangling.py"), "(cannot be read: FileNotFoundError)"],
        [str(folder / "latin.py"), "(cannot be read: UnicodeDecodeError)"],
        [f"minijaxnet run {folder / 'silent.py'}", "(no summary)"],
    ]
    starts = {line.index(summary) for line, (_, summary) in zip(called.out.splitlines(), rows, strict=True)}
    assert len(starts) == 1, "the summaries stand in one column"
    assert not Path("touched").exists()
    assert call("list").out.splitlines()[-1].startswith("minijaxnet run experiments/silent.py ")


@pytest.mark.parametrize("arguments", [(), ("nowhere",), ("file.py",)])
def test_list_names_a_folder_that_is_none(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.py").touch()
    for verb, default in (("list", "experiments"), ("runs", "runs")):
        called, path = call(verb, *arguments), tmp_path / (*arguments, default)[0]
        words = f"minijaxnet: error: {verb}: got {path}; expected a folder that exists\n"
        assert (called.code, called.err) == (2, words)
        called = call(verb, "a", "b")
        assert called.code == 2 and "unrecognized arguments: b" in called.err


def test_the_experiments_that_ship_are_listed_and_load():
    folder = Path(__file__).parents[2] / "experiments"
    called = call("list", folder)
    runnable = re.findall(r"^minijaxnet run (\S+\.py) {2,}\S", called.out, re.MULTILINE)
    assert str(folder / "digits.py") in runnable
    assert "(no summary)" not in called.out
    names = [load_experiment(path).name for path in runnable]
    assert len(set(names)) == len(names) >= 5
    assert all(re.fullmatch(r"[a-z_-]+", name) for name in names)
