"""Experiments: what makes one, which of its numbers can be set, and how one is read from a file."""

import dataclasses
import functools
import itertools
import re
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minijaxnet as mjn
from minijaxnet.experiment import Experiment, ExperimentError, Settings, load_experiment, number_options

POINTS = ((np.ones(2), np.ones(2)), (np.ones(1), np.ones(1)))


def init(key):
    return np.float32(0)


def loss(params, batch):
    return jnp.mean((params * batch[0] - batch[1]) ** 2)


def data():
    return POINTS


FUNCTIONS = ("init", "objective", "data", "value_and_gradient", "predict")
GOOD = {"name": "bowl", "init": init, "objective": loss, "data": data}


# --- What makes an experiment ----------------------------------------------------------------------------------------


def test_an_experiment_keeps_what_it_is_given():
    settings = Settings(steps=3, optimizer="adam")
    rule = mjn.with_gradient(loss, lambda params, batch: (1.0, 1.0))
    made = Experiment("bowl", init, loss, data, value_and_gradient=rule, metrics={"loss": loss}, defaults=settings)
    assert (made.name, made.init, made.objective, made.data) == ("bowl", init, loss, data)
    assert (made.value_and_gradient, made.predict) == (rule, None)
    assert dict(made.metrics) == {"loss": loss}
    assert made.defaults is settings


def test_experiments_and_settings_are_frozen():
    for thing, name in ((Experiment(**GOOD), "name"), (Settings(), "steps")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, "other")


def test_what_is_optional_is_named_and_two_experiments_share_nothing():
    with pytest.raises(TypeError):
        Experiment("bowl", init, loss, data, lambda params, batch: (1.0, 1.0))
    first, second = Experiment(**GOOD), Experiment(**GOOD)
    assert first.metrics == {}
    assert first.metrics is not second.metrics
    assert first.defaults == Settings()


@given(st.from_regex(r"[A-Za-z0-9_-]*[A-Za-z0-9][A-Za-z0-9_-]*", fullmatch=True))
def test_names_of_letters_digits_and_dashes_are_taken(name):
    assert Experiment(**GOOD | {"name": name}).name == name


@given(st.text(max_size=6).filter(lambda name: not re.fullmatch(r"[\w-]*", name)))
def test_names_that_no_folder_should_have_are_refused(name):
    with pytest.raises(ValueError, match=r"Experiment: name: got .*; expected letters, digits, '-' and '_'"):
        Experiment(**GOOD | {"name": name})


@pytest.mark.parametrize("name", ["", "-", "_", "a b", "a/b", "..", "../up", "a.b", "a\n", 3, None])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(ValueError, match=re.escape(f"Experiment: name: got {name!r}; expected letters, digits")):
        Experiment(**GOOD | {"name": name})


@pytest.mark.parametrize(
    ("part", "given", "message"),
    [
        *((part, 3, "int; expected a function") for part in FUNCTIONS),
        *((part, None, "NoneType; expected a function") for part in FUNCTIONS[:3]),
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

    with pytest.raises(TypeError, match="width: a keyword-only argument without a default; expected a number"):
        Experiment(**GOOD | {part: demanding})


# --- Numbers that can be set from outside ----------------------------------------------------------------------------


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


def test_a_builtin_that_tells_nothing_has_no_options():
    assert number_options(min) == {}


# --- From a file -----------------------------------------------------------------------------------------------------

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


def test_the_experiment_of_a_file_is_loaded_from_a_path_its_text_or_a_relative_one(file, monkeypatch, tmp_path):
    path = file(TEXT)
    monkeypatch.chdir(tmp_path)
    for named in (path, str(path), "an_experiment.py"):
        assert isinstance(load_experiment(named), Experiment)
        assert load_experiment(named).name == "bowl"


def test_a_file_is_run_anew_each_time_and_not_as_a_script(file, capsys):
    path = file('print("imported")\nif __name__ == "__main__":\n    print("as a script")\n' + TEXT)
    first, second = load_experiment(path), load_experiment(path)
    assert first is not second
    assert capsys.readouterr().out == "imported\n" * 2


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


def test_siblings_can_be_imported(file):
    file("NAME = 'from-a-sibling'\n", "sibling_of_an_experiment.py")
    path = file("import sibling_of_an_experiment\n" + TEXT.replace('"bowl"', "sibling_of_an_experiment.NAME"))
    try:
        assert load_experiment(path).name == "from-a-sibling"
    finally:
        sys.modules.pop("sibling_of_an_experiment", None)


def test_the_path_gains_the_files_folder_once_and_nothing_else(file, tmp_path):
    path, before = file(TEXT), list(sys.path)
    load_experiment(path)
    load_experiment(path)
    assert sys.path == [str(tmp_path.resolve()), *before]


def test_a_file_that_changes_the_path_keeps_what_it_added(file):
    path = file("import sys\nsys.path.insert(0, 'elsewhere')\n" + TEXT)
    load_experiment(path)
    assert "elsewhere" in sys.path


def test_a_file_that_fails_leaves_no_module(file):
    path = file("raise RuntimeError('boom')\n")
    sys.modules.pop("_experiment_an_experiment", None)
    assert "RuntimeError: boom" in refused(path)
    assert "_experiment_an_experiment" not in sys.modules


def test_a_file_that_is_none_is_named(tmp_path):
    missing = tmp_path / "missing.py"
    assert refused(missing) == f"{missing}: there is no such file; expected a Python file"
    assert refused(tmp_path) == f"{tmp_path}: is a folder; expected a Python file"


@pytest.mark.parametrize(("name", "got"), [("notes.txt", "a .txt"), ("notes", "a file without a suffix")])
def test_a_file_that_is_no_python_file_is_named(name, got, file):
    path = file(TEXT, name)
    assert refused(path) == f"{path}: got {got}; expected a .py file"


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("", "defines no experiment"),
        ("experiment = None", "defines no experiment"),
        ("experiment = 3", "its experiment is a int"),
        ("experiment = dict(name='bowl')", "its experiment is a dict"),
        ("from minijaxnet import Experiment as experiment", "its experiment is a type"),
    ],
)
def test_a_file_without_an_experiment_is_named(text, got, file):
    path = file(text)
    assert refused(path) == f"{path}: {got}; expected a line `experiment = Experiment(...)`"


DEEP = "".join(f"def {f}(): {g}()\n" for f, g in itertools.pairwise("abcd")) + "def d(): raise ValueError('deep')\na()"


@pytest.mark.parametrize(
    ("text", "shown", "end"),
    [
        ("x = 1\ny = = 2\n", ["an_experiment.py", "line 2", "y = = 2"], "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)\n", [], "SystemExit: 3"),
        ("def f():\n    f()\n\nf()\n", ["RecursionError"], ""),
        (DEEP, ["raise ValueError('deep')"], "ValueError: deep"),
    ],
    ids=["syntax", "exit", "long", "deep"],
)
def test_a_file_that_fails_shows_where_in_a_few_lines(file, text, shown, end):
    said = refused(file(text))
    assert all(part in said for part in shown)
    assert said.endswith(end)
    assert len(said.splitlines()) < 15


def test_a_file_that_raises_shows_its_own_lines_and_nobody_elses(file):
    path = file(
        """
        def deeper():
            raise KeyError("boom")

        deeper()
        """
    )
    text = refused(path)
    assert text.startswith(f"{path}: it does not import:\n")
    assert text.endswith("KeyError: 'boom'")
    assert re.findall(r", line (\d+), in (\S+)", text) == [("5", "<module>"), ("3", "deeper")]
    assert "importlib" not in text
    with pytest.raises(ExperimentError) as caught:
        load_experiment(path)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_file_with_a_relative_path_shows_its_own_lines_too(file, monkeypatch, tmp_path):
    file("\n\nraise ValueError('boom')\n")
    monkeypatch.chdir(tmp_path)
    assert "line 3" in refused("an_experiment.py")


def test_a_sibling_can_be_imported_when_it_is_needed(file):
    file("POINTS = ((1.0, 1.0), (1.0, 1.0))\n", "late_sibling_of_an_experiment.py")
    data = "def data():\n    from late_sibling_of_an_experiment import POINTS\n    return POINTS\n"
    path = file(TEXT.replace("experiment = ", data + "experiment = ").replace("lambda: (points, points)", "data"))
    try:
        assert load_experiment(path).data() == ((1.0, 1.0), (1.0, 1.0))
    finally:
        sys.modules.pop("late_sibling_of_an_experiment", None)
