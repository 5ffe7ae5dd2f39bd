"""What is printed where nobody reads on, or where the terminal knows few letters."""

import os

import pytest
from kits.command import BY_HAND, HEAD
from kits.processes import MINIJAXNET, ended, started


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
def test_where_nobody_reads_on_it_ends_quietly_and_leaves_all_that_it_would(command, left, tmp_path):
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
