"""``minijaxnet check``: experiments, small files, functions by name."""

import json
import textwrap

import pytest
from kits.lines import RIGHT, line
from kits.marks import slow

from minijaxnet.cli import check as verb
from minijaxnet.cli import main


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Write a file and check it: the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(text, *flags):
        (tmp_path / "it.py").write_text(textwrap.dedent(text))
        code = main(["check", "it.py", *flags])
        return code, *capsys.readouterr()

    return run


WRONG = f"jnp.where(params['w'] >= 0, 1, 1.001) * {RIGHT}"
PRECISIONS = ("float32", "bfloat16", "float64")


@pytest.mark.parametrize(
    ("slope", "wrong", "precisions"),
    [(WRONG, "negated", ("bfloat16",)), *slow((WRONG, "negated", PRECISIONS), (RIGHT, None, PRECISIONS))],
    ids=["wrong at negative weights", "the same in three dtypes", "right"],
)
def test_a_gradient_is_checked_at_all_points_in_three_dtypes_and_it_is_said_where_it_is_wrong(
    check, tmp_path, monkeypatch, slope, wrong, precisions
):
    assert verb._PRECISIONS == PRECISIONS
    monkeypatch.setattr(verb, "_PRECISIONS", precisions)
    code, out, _ = check(line(slope), "--steps", "5", "--start", "0.25")
    assert code == (1 if wrong else 0)
    rows = {row.split("  ")[0]: row for row in out.splitlines()}
    for point in ("start", "trained", "zeros", "negated", "times 1000", "times 0.001", "repeated rows"):
        assert rows[point].count("right") == (0 if point == wrong else len(precisions))
        assert rows[point].count("NOT RIGHT") == (len(precisions) if point == wrong else 0)
        assert all((f"--- {point}, {precision}" in out) == (point == wrong) for precision in precisions)
    right, count = len(precisions) * (6 if wrong else 7), 7 * len(precisions)
    assert f"line: {'NOT RIGHT' if wrong else 'right'} at {right} of {count} points" in out
    (folder,) = (tmp_path / "runs").iterdir()
    found = json.loads((folder / "check.json").read_text())
    assert tuple(found["reports"]) == precisions
    assert found["reports"]["bfloat16"]["zeros"]["verdicts"]["algebra"]["state"] == "pass"
    assert json.loads((folder / "environment.json").read_text())["versions"]["jax"]


def test_an_experiment_without_a_gradient_by_hand_is_refused(check):
    code, _, err = check(line(RIGHT, by_hand=""))
    assert code == 2
    assert "no gradient by hand; expected value_and_gradient=" in err


SMALL = {
    "fun": "fun = jax.custom_jvp(jnp.sin)\nfun.defjvp(lambda p, t: (jnp.sin(p[0]), {c} * t[0] * jnp.cos(p[0])))",
    "gradient": "loss = lambda x: jnp.sum(jnp.sin(x))\ngradient = lambda x: {c} * jnp.cos(x)",
    "value_and_gradient": "loss = lambda x: jnp.sum(jnp.sin(x))\n"
    "value_and_gradient = lambda x: (loss(x), {c} * jnp.cos(x))",
}


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        ("fun", 3),
        ("gradient", 1),
        *slow(("fun", 1), ("gradient", 3), ("value_and_gradient", 1), ("value_and_gradient", 3)),
    ],
)
def test_a_small_file_is_checked(kind, factor, check):
    text = "import jax, jax.numpy as jnp\nargs = (jnp.linspace(0.1, 2, 5),)\n" + SMALL[kind]
    code, out, _ = check(text.format(c=factor))
    if factor == 1:
        assert (code, out.splitlines()[1]) == (0, "gradient by hand against autodiff: right")
    else:
        assert code == 1 and "3 times what it should be" in out


def test_a_small_file_without_a_rule_is_refused(check):
    code, _, err = check("args = (1.0,)\nloss = 3")
    assert code == 2
    assert "it.py: gradient: got nothing; expected a function" in err


def test_a_function_is_checked_by_its_name(capsys):
    assert main(["check", "jax.nn:relu", "--args", "jnp.linspace(-1, 2, 5)"]) == 0
    assert "gradient by hand against autodiff: right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["jax.nn:relu"], 'got nothing; expected --args with its arguments, as in --args "jnp.ones(3), 2.0"'),
        (["jax.nn:nothing", "--args", "1.0"], "expected package.module:function"),
        (["no.such.module:f", "--args", "1.0"], "expected package.module:function"),
        (["jax.nn:relu", "--args", "jnp.ones("], "--args: got 'jnp.ones('"),
        (["no/such/file.py"], "there is no such file"),
        (["--steps", "3"], "expected the file of an experiment first"),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments, complaint, capsys):
    assert main(["check", *arguments]) == 2
    assert complaint in capsys.readouterr().err
