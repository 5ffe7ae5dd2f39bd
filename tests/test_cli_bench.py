"""``minijaxnet bench``: what is printed of an experiment's step, and what stops it."""

import json
import textwrap

import pytest
from test_cli_check import RIGHT, line

from minijaxnet.cli import main


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Write a file and time it: the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(text, *flags):
        (tmp_path / "it.py").write_text(textwrap.dedent(text))
        code = main(["bench", "it.py", "--seconds", "0.5", *flags])
        return code, *capsys.readouterr()

    return run


def test_a_right_gradient_is_held_against_autodiff_whole(bench):
    code, out, _ = bench(line(RIGHT), "--batch-size", "3", "--start", "0.25")
    assert code == 0
    assert "line: a step of gradient descent on 3 points" in out
    for words in ("trace", "compile", "(latency)", "(fused)", "gradient by hand", "the same, autodiff", "optax.sgd"):
        assert words in out
    rows = {row.split()[0]: row for row in out.splitlines() if row}
    assert "pass" in rows["right?"] and "pass" in rows["precise?"] and "autodiff's step" in rows["fast?"]
    assert all(len(row) <= 110 for row in out.splitlines())


def test_a_wrong_gradient_is_not_timed(bench):
    code, out, _ = bench(line(f"-({RIGHT})"))
    assert code == 1
    assert "NOT RIGHT" in out and "the sign is wrong" in out and "(fused)" not in out


def test_without_a_gradient_by_hand_optax_is_the_rival(bench):
    code, out, _ = bench(line(RIGHT, by_hand=""))
    assert code == 0
    assert "optax.sgd, autodiff" in out and "by hand" not in out


def test_what_was_saved_is_held_against_later(bench, tmp_path):
    assert bench(line(RIGHT), "--save", "then.json")[0] == 0
    saved = json.loads((tmp_path / "then.json").read_text())
    assert len(saved["arms"]) == 3 and saved["machine"]["jax"]
    code, out, _ = bench(line(RIGHT), "--against", "then.json")
    assert code == 0
    assert "now over then" in out and "(a fixed workload)" in out


def test_a_file_to_hold_it_against_that_is_not_there_is_an_error(bench):
    code, _, err = bench(line(RIGHT), "--against", "none.json")
    assert code == 2 and "none.json" in err
