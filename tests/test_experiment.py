"""Experiments: what makes one, which of its numbers can be set, and how one is read from a file."""

import functools
import itertools
import re
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from minijaxnet.experiment import Experiment, ExperimentError, load_experiment, number_options

POINTS = ((np.ones(2), np.ones(2)), (np.ones(1), np.ones(1)))


def init(key):
    return np.float32(0)


def loss(params, batch):
    return jnp.mean((params * batch[0] - batch[1]) ** 2)


def data():
    return POINTS


FUNCTIONS = ("init", "objective", "data", "value_and_gradient", "predict")
GOOD = {"name": "bowl", "init": init, "objective": loss, "data": data}


# --- What makes an experiment -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "-", "a b", "a/b", "..", "a.b", "a\n", 3, None])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(ValueError, match=re.escape(f"Experiment: name: got {name!r}; expected letters, digits")):
        Experiment(**GOOD | {"name": name})
    assert Experiment(**GOOD | {"name": "a-B_3"}).name == "a-B_3"


@pytest.mark.parametrize(
    ("part", "given", "message"),
    [
        *((part, 3, "int; expected a function") for part in FUNCTIONS),
        ("metrics", {"loss": loss, "accuracy": 0.5}, "float; expected a function"),
        ("defaults", {"steps": 3}, r"dict; expected Settings\(\.\.\.\)"),
    ],
)
def test_a_part_that_is_none_is_refused(part, given, message):
    where = r"metrics\['accuracy'\]" if part == "metrics" else part
    with pytest.raises(TypeError, match=f"Experiment: {where}: got {message}"):
        Experiment(**GOOD | {part: given})


@pytest.mark.parametrize("part", ["init", "data"])
def test_a_keyword_that_nobody_could_give_is_refused(part):
    def demanding(*key, width):
        return POINTS

    with pytest.raises(TypeError, match="width: got a keyword-only argument without a default; expected a number"):
        Experiment(**GOOD | {part: demanding})


# --- Numbers that can be set from outside -----------------------------------------------------------------------------


def test_only_keyword_only_numbers_are_options():
    def function(key, scale=2.0, *more, width=8, rate=0.5, bias=True, name="x", nothing=None, sizes=(1, 2), **rest):
        return key

    options = number_options(function)
    assert options == {"width": 8, "rate": 0.5}
    assert [type(value) for value in options.values()] == [int, float]


def test_options_are_found_through_partials_and_methods():
    def function(key, *, width=8, rate=0.5):
        return key

    class Maker:
        def __call__(self, key, *, depth=2):
            return key

    assert number_options(functools.partial(function, width=9)) == {"width": 9, "rate": 0.5}
    assert number_options(functools.wraps(function)(lambda *args, **kwargs: None)) == {"width": 8, "rate": 0.5}
    assert number_options(Maker()) == {"depth": 2}
    assert number_options(lambda key: key) == {}


# --- From a file ------------------------------------------------------------------------------------------------------

TEXT = """
import jax.numpy as jnp
import minijaxnet as mjn

points = jnp.ones(2), jnp.ones(2)
experiment = mjn.Experiment("bowl", lambda key: 1.0, lambda params, batch: params**2, lambda: (points, points))
"""


@pytest.fixture
def file(tmp_path):
    """Write a Python file and get its path."""

    def write(text, name="an_experiment.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def refused(path):
    with pytest.raises(ExperimentError) as caught:
        load_experiment(path)
    return str(caught.value)


def test_a_file_is_run_anew_each_time_and_not_as_a_script_with_its_folder_on_the_path(file, tmp_path, capsys):
    file("POINTS = ((1.0, 1.0), (1.0, 1.0))\n", "sibling_of_an_experiment.py")
    data = "def data():\n    from sibling_of_an_experiment import POINTS\n    return POINTS\n"
    text = TEXT.replace("experiment = ", data + "experiment = ").replace("lambda: (points, points)", "data")
    path, before = (
        file('print("imported")\nif __name__ == "__main__":\n    print("as a script")\n' + text),
        list(sys.path),
    )
    first, second = load_experiment(path), load_experiment(path)
    assert first is not second
    assert capsys.readouterr().out == "imported\n" * 2
    assert sys.path == [str(tmp_path.resolve()), *before]
    try:
        assert first.data() == ((1.0, 1.0), (1.0, 1.0))
    finally:
        sys.modules.pop("sibling_of_an_experiment", None)


def test_a_file_may_define_dataclasses(file):
    """They look their module up in ``sys.modules``."""
    text = "import dataclasses\n@dataclasses.dataclass\nclass Size:\n    width: 'int' = 3\n" + TEXT
    path = file(text)
    load_experiment(path)
    module = sys.modules["_experiment_an_experiment"]
    assert module.Size().width == 3


@pytest.fixture(autouse=True)
def path_of_python(monkeypatch):
    """Loading a file adds its folder to the path, as running it would; not for the next test."""
    monkeypatch.setattr(sys, "path", list(sys.path))


DEEP = "".join(f"def {f}(): {g}()\n" for f, g in itertools.pairwise("abcd")) + "def d(): raise ValueError('deep')\na()"


@pytest.mark.parametrize(
    ("text", "parts", "end"),
    [
        ("x = 1\ny = = 2\n", ["an_experiment.py", "line 2", "y = = 2"], "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)\n", ["line 2"], "SystemExit: 3"),
        ("def f():\n    f()\n\nf()\n", ["RecursionError"], ""),
        (DEEP, ["raise ValueError('deep')"], "ValueError: deep"),
        ("experiment = 3", [], "got an experiment that is a int; expected a line `experiment = Experiment(...)`"),
        ("", [], "got no experiment; expected a line `experiment = Experiment(...)`"),
    ],
    ids=["syntax", "exit", "long", "deep", "another", "none"],
)
def test_a_file_that_fails_shows_where_in_a_few_lines(file, text, parts, end):
    sys.modules.pop("_experiment_an_experiment", None)
    path = file(text)
    message = refused(path)
    assert message.startswith(f"{path}: ") and message.endswith(end) and all(part in message for part in parts)
    assert len(message.splitlines()) < 15 and "importlib" not in message and "minijaxnet/" not in message
    assert ("_experiment_an_experiment" in sys.modules) == (not parts), "one that fails leaves no module"


def test_a_file_that_is_none_is_named(file, tmp_path):
    missing, text = tmp_path / "missing.py", file(TEXT, "notes.txt")
    assert refused(missing) == f"{missing}: there is no such file; expected a Python file"
    assert refused(tmp_path) == f"{tmp_path}: is a folder; expected a Python file"
    assert refused(text) == f"{text}: got a .txt; expected a .py file"
