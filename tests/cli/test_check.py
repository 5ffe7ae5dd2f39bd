"""``minijaxnet check``: experiments, small files, functions by name."""

import json
import re
import sys
import textwrap

import pytest
from kits.lines import RIGHT, line
from kits.marks import slow

from minijaxnet.cli import main
from minijaxnet.cli.check import POINTS


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
    ("slope", "wrong", "precision"),
    [(WRONG, "negated", "bfloat16"), *slow((RIGHT, None, None))],
    ids=["wrong at negative weights", "right"],
)
def test_a_gradient_is_checked_at_all_points_in_three_dtypes_and_it_is_said_where_it_is_wrong(
    check, tmp_path, slope, wrong, precision
):
    only = ("--precision", precision) if precision else ()
    precisions = (precision,) if precision else PRECISIONS
    code, out, _ = check(line(slope), "--steps", "5", "--start", "0.25", *only)
    assert code == (1 if wrong else 0)
    rows = {row.split("  ")[0]: row for row in out.splitlines()}
    for point in POINTS:
        assert rows[point].count("right") == (0 if point == wrong else len(precisions))
        assert rows[point].count("NOT RIGHT") == (len(precisions) if point == wrong else 0)
        assert all(
            (f"--- gradient by hand, {point}, {precision}" in out) == (point == wrong) for precision in precisions
        )
    wrong_ones, count = len(precisions) * (1 if wrong else 0), 7 * len(precisions)
    end = f", NOT RIGHT at {wrong_ones}" if wrong else ""
    assert f"\nline: right at {count - wrong_ones}{end} of {count} verdicts" in out
    (folder,) = (tmp_path / "runs").iterdir()
    reports = json.loads((folder / "check.json").read_text())["reports"]
    assert [(each["dtype"], each["point"]) for each in reports] == [(p, at) for p in precisions for at in POINTS]
    assert all(
        each["check"] == "gradient by hand" and each["report"]["ok"] for each in reports if each["point"] != wrong
    )
    assert json.loads((folder / "environment.json").read_text())["versions"]["jax"]


def test_quick_is_the_start_in_one_dtype(check):
    code, out, _ = check(line(RIGHT), "--quick", "--start", "0.25", "--precision", "float64")
    assert (
        code == 0 and out.startswith("line: 1 point in float64\n") and "gradient by hand, start, float64: right" in out
    )
    assert "line: right at 1 of 1 verdict\n" in out


def test_ctrl_c_keeps_the_verdicts_so_far(check, monkeypatch, tmp_path):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("minijaxnet.cli.check._trained", stopped)
    code, out, err = check(line(RIGHT), "--start", "0.25", "--precision", "float32")
    assert (code, err) == (130, "stopped\n") and not (tmp_path / "runs").exists()
    assert out.count("start, float32: right") == 1 and "line: right at 1 of 1 verdict\n" in out


def test_an_experiment_without_anything_by_hand_says_so(check, tmp_path):
    code, out, _ = check(line(RIGHT, by_hand=""))
    assert code == 0
    assert "line: nothing was checked, since nothing is by hand: no value_and_gradient=" in out
    assert "right at" not in out and not (tmp_path / "runs").exists()


def test_a_wrong_rule_within_the_loss_is_found_and_named(check):
    rule = """
    @jax.custom_vjp
    def squash(x):
        return jnp.tanh(x)

    squash.defvjp(lambda x: (jnp.tanh(x), x), lambda x, c: (1.5 * c * (1 - jnp.tanh(x) ** 2),))
    """
    text = (
        line(RIGHT, by_hand="")
        .replace("    def loss(", f"{rule}\n    def loss(")
        .replace("jnp.tanh(params", "squash(params")
    )
    code, out, _ = check(text, "--quick")
    assert code == 1
    assert re.search(
        r"\(squash\), start, float32: NOT RIGHT: params\['w'\]: .*: the derivative rule at fault is that of squash", out
    )
    assert "derivative rules (squash) against autodiff" in out


SMALL = {
    "fun": "fun = jax.custom_jvp(jnp.sin)\nfun.defjvp(lambda p, t: (jnp.sin(p[0]), {c} * t[0] * jnp.cos(p[0])))",
    "gradient": "loss = lambda x: jnp.sum(jnp.sin(x))\ngradient = lambda x: {c} * jnp.cos(x)",
    "value_and_gradient": "loss = lambda x: jnp.sum(jnp.sin(x))\n"
    "value_and_gradient = lambda x: (loss(x), {c} * jnp.cos(x))",
}


@pytest.mark.parametrize(("kind", "factor"), [("fun", 3), ("gradient", 1), *slow(("value_and_gradient", 3))])
def test_a_small_file_is_checked(kind, factor, check):
    text = "import jax, jax.numpy as jnp\nargs = (jnp.linspace(0.1, 2, 5),)\n" + SMALL[kind]
    code, out, _ = check(text.format(c=factor))
    if factor == 1:
        assert (code, out.splitlines()[1]) == (0, "gradient by hand against autodiff: right")
    else:
        assert code == 1 and "3 times what it should be" in out


def test_a_function_is_checked_by_its_name(capsys):
    assert main(["check", "jax.nn:relu", "--args", "jnp.linspace(-1, 2, 5),"]) == 0
    assert "derivative rule against autodiff: right" in capsys.readouterr().out


def test_a_function_of_the_current_folder_without_a_rule_is_compared_with_finite_differences(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "my_functions_here.py").write_text("import jax.numpy as jnp\n\ndef f(x, y): return jnp.sin(x) * y\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    assert main(["check", "my_functions_here:f", "--args", "np.float32([1, 2]), 3.0"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("my_functions_here:f\nautodiff against finite differences: right\n")
    assert "fun holds no custom rule" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["jax.nn:relu"], 'expected --args with its arguments, as in --args "jnp.ones(3), 2.0"'),
        (
            ["jax.nn:rely", "--args", "1.0"],
            "expected package.module:function, but module 'jax.nn' has no attribute 're",
        ),
        (["math:pi", "--args", "1.0"], "fun: got 3.141592653589793; expected a function\nmath:pi was called with"),
        (["a/b.py:f", "--args", "1.0"], "check: got a/b.py:f; expected package.module:function, but the module a/b.py"),
        (["jax.nn.relu", "--args", "1.0"], "there is no file jax.nn.relu; expected a Python file, or package."),
        (["no.such.module:f", "--args", "1.0"], "does not import:\nModuleNotFoundError: No module named 'no'\n"),
        (["jax.nn:relu", "--args", "jnp.ones("], "--args: got 'jnp.ones(': "),
        (["jax.nn:relu", "--args", "1.0, 2.0"], "too many positional arguments"),
        (["jax.nn:relu", "--args", "3"], "args: got no floating leaf; expected one at least"),
        (["jax.numpy:dot", "--args", "jnp.ones(2), jnp.ones(3)"], "called with --args: float32[2], float32[3]"),
        (["no/such/file.py"], "there is no such file"),
        (["--steps", "3"], "expected the file of an experiment first"),
        (["it.py", "--args", "1.0"], "--args: got '1.0' for it.py, an experiment; expected it for a function"),
        (["small.py"], "loss: got 3; expected a function"),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it.py").write_text(textwrap.dedent(line(RIGHT)))
    (tmp_path / "small.py").write_text("args = (1.0,)\nloss = 3")
    assert main(["check", *arguments]) == 2
    err = capsys.readouterr().err
    assert complaint in err and "JAX has removed" not in err


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"), ("raise SystemExit(3)", "SystemExit: 3")],
)
def test_a_module_that_does_not_import_is_named_with_its_line(line, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "broken_by_hand.py").write_text(f"{line}\n")
    assert main(["check", "broken_by_hand:f", "--args", "1.0"]) == 2
    err = capsys.readouterr().err
    assert "expected package.module:function, but the module broken_by_hand does not import:\n" in err
    assert complaint in err and line in err and "importlib" not in err


def test_runs_and_show_read_the_folder_of_a_check(check, tmp_path, capsys):
    code, *_ = check(line(f"2 * {RIGHT}"), "--quick")
    [folder] = [path.parent for path in tmp_path.rglob("check.json")]
    assert code == 1 and main(["runs", str(folder.parent)]) == 0
    assert re.search(rf"{folder.name} +check +NOT RIGHT at 1 of 1 verdict\n", capsys.readouterr().out)
    assert main(["show", str(folder)]) == 0
    assert re.search(r"\ngradient by hand +float32 +start +NOT RIGHT\n", capsys.readouterr().out)
    (folder / "check.json").write_text('{"reports": 3}')
    assert main(["runs", str(folder.parent)]) == main(["show", str(folder)]) == 0
    assert capsys.readouterr().out.count("nothing can be read") == 2
