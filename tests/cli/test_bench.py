"""``minijaxnet bench``: what is printed of an experiment's step, and what stops it."""

import json
import textwrap

import pytest
from kits.lines import RIGHT, line

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
    for words in (
        "trace",
        "compile",
        "(latency)",
        "(fused)",
        "gradient by hand",
        "gradient descent, autodiff",
        "optax.sgd",
    ):
        assert words in out
    rows = {row.split()[0]: row for row in out.splitlines() if row}
    assert "pass" in rows["right?"] and "pass" in rows["precise?"] and "autodiff's step" in rows["fast?"]
    assert "autodiff's planned peak" in rows["memory?"]
    for words in ("one native function", "other FLOPs, float32", "nearest limit:"):
        assert words in out
    assert "measured peak" not in out, "there is no matrix product"
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
    code, out, _ = bench(line(RIGHT), "--since", "then.json")
    assert code == 0
    assert "now over then" in out and "(a fixed workload)" in out


@pytest.mark.parametrize("flags", [("--since", "none.json"), ("--save", "none/here.json")])
def test_a_file_that_is_not_where_it_should_be_is_an_error_before_anything_is_timed(bench, flags):
    code, out, err = bench(line(RIGHT), *flags)
    assert code == 2 and flags[1] in err and "latency" not in out
