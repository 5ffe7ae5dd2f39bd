"""The command itself: its verbs, its help, what it imports, how it ends, and where it prints."""

import importlib
import os
import re

import pytest
from kits.command import BY_HAND, HEAD, call, rows_in, run
from kits.processes import LINE, MINIJAXNET, ended, output_of, python, started

from minijaxnet.cli import VERBS


def test_help_shows_the_verbs():
    called = call("--help")
    assert (called.code, called.err) == (0, "") and called == call() == call("-h")
    assert re.findall(r"^  (\w+) +\S", called.out, re.MULTILINE) == [*VERBS]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["walk"], f"got the verb 'walk'; expected one of {', '.join(VERBS)}"),
        (["--bogus"], f"got the verb '--bogus'; expected one of {', '.join(VERBS)}"),
        (["run", "--steps", "3"], "run: got --steps; expected the file of an experiment first"),
        (["resume"], "resume: got nothing; expected the folder of one run first"),
    ],
)
def test_a_command_without_its_verb_or_its_file_is_refused(arguments, words):
    assert call(*arguments) == (2, "", f"minijaxnet: error: {words}\n", None)


def test_ctrl_c_elsewhere_says_stopped(tmp_path):
    called = run(tmp_path, "raise KeyboardInterrupt")
    assert (called.code, called.err) == (130, "stopped\n")


def test_import_takes_in_no_extra_and_nothing_slow():
    lines = """
    import sys, minijaxnet
    slow = ["optax", "sklearn", "matplotlib", "tyro", "rich", "chex", "safetensors", "scipy.stats"]
    print([name for name in slow if name in sys.modules])
    import minijaxnet.cli.run
    print([name for name in slow if name in sys.modules])
    """
    assert output_of(python(lines)) == "[]\n[]\n"


@pytest.mark.parametrize("closed", ["2>&-", pytest.param("<&- >&- 2>&-", marks=pytest.mark.slow)])
def test_a_run_whose_streams_are_closed_ends_well_and_its_files_have_no_printed_text(closed, tmp_path):
    (tmp_path / "line.py").write_text(LINE)
    run = "run line.py --bench-seconds 0 --no-report --log-every 100"
    shell = f"exec {' '.join(MINIJAXNET)} {run} {closed}"
    [(code, out, err)] = ended([started(["sh", "-c", shell], cwd=tmp_path)])
    assert (code, err) == (0, "") and ("took all 300 steps" in out) == (closed == "2>&-")
    [folder] = (tmp_path / "runs").iterdir()
    assert [row["step"] for row in rows_in(folder)] == [0, 100, 200, 300]
    [(code, out, err)] = ended([started(["sh", "-c", f"exec {' '.join(MINIJAXNET)} nothing {closed}"], cwd=tmp_path)])
    assert (code, err) == (2, "")


def test_standard_output_on_a_full_disk_is_named(tmp_path):
    (tmp_path / "line.py").write_text(LINE)
    shell = f"exec {' '.join(MINIJAXNET)} run line.py > /dev/full"
    [(code, _, err)] = ended([started(["sh", "-c", shell], cwd=tmp_path)])
    assert code and "not written: No space left on device: 'standard output'" in err


# --- Closed pipes and narrow terminals ---


def experiment(folder, summary="A line."):
    (folder / "it.py").write_text(HEAD.replace("A line through a few points.", summary) + BY_HAND, encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "left"),
    [
        ("run it.py --bench-seconds 0 --no-report", "params.safetensors"),
        pytest.param("sweep it.py --steps 3 --seeds 2", "sweep.npz", marks=pytest.mark.slow),
        pytest.param("check it.py --quick", "check.json", marks=pytest.mark.slow),
    ],
)
def test_where_the_pipe_is_closed_it_ends_quietly_and_leaves_all_files(command, left, tmp_path):
    experiment(tmp_path)
    read, write = os.pipe()
    os.close(read)
    process = started([*MINIJAXNET, *command.split()], cwd=tmp_path, stdout=write, stderr=write)
    os.close(write)
    [(code, _, _)] = ended([process])
    assert code == 0 and len([*tmp_path.rglob(left)]) == 1


def test_letters_that_a_terminal_lacks_are_replaced(tmp_path):
    environment = {"PYTHONIOENCODING": "ascii"}
    experiment(tmp_path, "Ab \u2192 \u03c0.")
    calls = [["list", "."], ["run", "\u03c0.py"]]
    found = ended([started([*MINIJAXNET, *call], cwd=tmp_path, environment=environment) for call in calls])
    assert [code for code, *_ in found] == [0, 2]
    assert "Ab ? ?." in found[0][1] and "\\u03c0.py: there is no such file" in found[1][2]
    assert not any("Traceback" in err for *_, err in found)


@pytest.mark.parametrize(("code", "ended"), [(0, "exit 0"), (2, "exit 2"), (130, "at once 130"), (143, "at once 143")])
def test_after_a_signal_the_command_ends_at_once(code, ended, monkeypatch):
    def at_once(code):
        raise SystemExit(f"at once {code}")

    monkeypatch.setattr("minijaxnet.cli.main", lambda: code)
    monkeypatch.setattr("minijaxnet.cli.leave", at_once)
    with pytest.raises(SystemExit) as error:
        importlib.import_module("minijaxnet.cli").command()
    found = error.value.code
    assert (found if isinstance(found, str) else f"exit {found}") == ended
