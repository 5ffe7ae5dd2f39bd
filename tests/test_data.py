"""The small data sets and what is checked on a batch before it meets a compiled program."""

import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st

import minijaxnet as mjn
from minijaxnet.data import Batch, check_batch, numbers

# name: (the set, scikit-learn's loader, columns, targets' shape and kind, number of classes or None)
SETS = {
    "digits": (mjn.digits, "load_digits", 64, (), jnp.integer, 10),
    "wine": (mjn.wine, "load_wine", 13, (), jnp.integer, 3),
    "iris": (mjn.iris, "load_iris", 4, (), jnp.integer, 3),
    "breast_cancer": (mjn.breast_cancer, "load_breast_cancer", 30, (1,), jnp.floating, None),
    "diabetes": (mjn.diabetes, "load_diabetes", 10, (1,), jnp.floating, None),
}
each_set = pytest.mark.parametrize("name", SETS)


def raw(loader):
    return getattr(sklearn.datasets, loader)(return_X_y=True)


@each_set
def test_a_set_has_the_shapes_and_dtypes_that_it_says(name):
    load, loader, columns, y_shape, kind, classes = SETS[name]
    train, test = load()
    points = len(raw(loader)[0])
    n_test = round(points / 5)
    for batch, n in ((train, points - n_test), (test, n_test)):
        assert isinstance(batch, mjn.Batch)
        assert (batch.x.shape, batch.y.shape) == ((n, columns), (n, *y_shape))
        assert batch.x.dtype == jnp.float32
        assert jnp.issubdtype(batch.y.dtype, kind)
    check_batch(train, name)
    if classes is not None:
        assert set(np.unique(train.y)) == set(range(classes))


@each_set
def test_each_column_of_the_training_points_has_mean_0_and_deviation_1_and_none_is_nan(name):
    train, test = SETS[name][0]()
    chex.assert_tree_all_finite((train, test))
    columns = [train.x] + ([train.y] if name == "diabetes" else [])
    for values in columns:
        values = np.asarray(values, np.float64)
        deviation = values.std(axis=0)
        # Each value is rounded once to float32.
        bound = np.finfo(np.float32).eps * np.abs(values).max()
        assert np.abs(values.mean(axis=0)).max() <= bound
        assert np.abs(deviation[deviation > 0] - 1).max() <= bound
        assert (values[:, deviation == 0] == 0).all()


@each_set
def test_train_and_test_are_disjoint_and_together_all_points(name, monkeypatch):
    # With its row number in the place of the first column each point can be told apart, and found again after scaling.
    load, loader, *_ = SETS[name]
    x, y = raw(loader)
    x[:, 0] = np.arange(len(x))
    monkeypatch.setattr(sklearn.datasets, loader, lambda return_X_y: (x, y))
    with jax.enable_x64(True):
        train, test = jax.tree.map(np.asarray, load(seed=3))
    assert train.x.dtype == np.float64
    both = np.concatenate([train.x, test.x])
    rows = np.argsort(np.argsort(both[:, 0]))  # the rank of a row number is the row number
    kept = rows[: len(train.x)]
    assert len(np.unique(np.round(both[:, 0], 6))) == len(x)

    deviation = x[kept].std(axis=0)
    expected = (x[rows] - x[kept].mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    np.testing.assert_allclose(both, expected, rtol=1e-9, atol=1e-9)
    targets = np.concatenate([train.y, test.y]).reshape(-1)
    if name == "diabetes":
        y = (y - y[kept].mean()) / y[kept].std()
    np.testing.assert_allclose(targets, y[rows], rtol=1e-9, atol=1e-9)


@each_set
def test_a_seed_gives_one_split_and_another_seed_another(name):
    load = SETS[name][0]
    chex.assert_trees_all_equal(load(seed=1), load(seed=1))
    chex.assert_trees_all_equal(load(), load(seed=0))
    assert not np.array_equal(load(seed=1)[1].x, load(seed=2)[1].x)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "minijaxnet\[data\]"'):
        mjn.iris()


@jax.tree_util.register_pytree_node_class
class Deep:
    """A tree that is deeper than Python's stack; how deep that is hangs on the version."""

    def tree_flatten(self):
        raise RecursionError

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls()


class Frame:
    """What a data frame has, as far as it matters here."""

    def __init__(self, **columns):
        self.columns, self._values = list(columns), [np.asarray(column) for column in columns.values()]
        self.dtypes = [values.dtype for values in self._values]

    def __array__(self, dtype=None, copy=None):
        return np.stack(self._values, axis=1).astype(dtype or np.result_type(*self.dtypes))


def test_what_numpy_makes_numbers_of_is_taken_by_all_that_takes_data():
    batch = Batch(Frame(a=[1.0, 2.0, 3.0], b=[0, 1, 0]), [1.0, 2.0, 3.0])
    x, y = numbers(batch, "data")
    np.testing.assert_array_equal(x, [[1, 0], [2, 1], [3, 0]])
    assert y == [1.0, 2.0, 3.0]
    descent = mjn.gradient_descent(lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2), 0.1)
    state, batch = descent.init(jnp.zeros(2)), Batch(batch.x, np.array(y))
    losses = [
        mjn.descend(descent, state, batch, steps=2)[1].loss,
        mjn.descend_epochs(descent, state, batch, jax.random.key(0), batch_size=3, epochs=2)[1].loss,
        mjn.fit(descent, state, batch, steps=2).trace.loss,
    ]
    np.testing.assert_allclose(losses, [losses[0]] * 3, rtol=1e-6)
    assert mjn.time_step(descent, jnp.zeros(2), batch, seconds=0.01).rounds > 0


@pytest.mark.parametrize("into", ["descend", "descend_epochs", "fit", "time_step", "compare_steps"])
def test_an_integer_beyond_those_of_jax_goes_nowhere(into):
    descent = mjn.gradient_descent(lambda w, batch: jnp.mean((w - batch[0]) ** 2), 0.1)
    state, data = descent.init(0.0), (np.array([2**33, 1]), np.ones(2))
    call = {
        "descend": lambda: mjn.descend(descent, state, data, steps=1),
        "descend_epochs": lambda: mjn.descend_epochs(descent, state, data, jax.random.key(0), batch_size=1, epochs=1),
        "fit": lambda: mjn.fit(descent, state, data, steps=1),
        "time_step": lambda: mjn.time_step(descent, 0.0, data),
        "compare_steps": lambda: mjn.compare_steps({"a": descent, "b": descent}, 0.0, data, baseline="a"),
    }[into]
    with pytest.raises(ValueError, match=r"\[0\]: got 8589934592; expected what int32"):
        call()


# --- check_batch ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    shape=st.sampled_from([(4,), (2, 3, 2)]),  # few: each is a program
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, jnp.bfloat16]),
    on_device=st.booleans(),
    data=st.data(),
)
def test_a_number_that_is_not_finite_is_found_at_its_place(shape, bad, dtype, on_device, data):
    place = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    x = np.zeros(shape, dtype)
    batch_y = np.zeros(shape[0], np.int32)
    check_batch((x, batch_y), "data")
    x[place] = bad
    x = jnp.asarray(x) if on_device else x
    with pytest.raises(ValueError) as raised:
        check_batch((x, batch_y), "data")
    assert str(raised.value).startswith(f"data.x{list(place)}: got {bad} (1 of {x.size} values are not finite)")


@pytest.mark.parametrize(
    ("batch", "kind", "message"),
    [
        ((np.ones((2, 1)), np.ones(3)), ValueError, r"data\.y: got 3 points; expected 2, as many as in data\.x"),
        ((np.ones((0, 1)), np.ones(0)), ValueError, r"data\.x: got an empty data set; expected at least one point"),
        ((np.ones(2), 3.0), ValueError, r"data\.y: got a single number; expected an array with the batch axis first"),
        ((np.array(["a", "b"]), np.ones(2)), TypeError, r"data\.x: got dtype <U1; expected numbers"),
        ((np.ones(2), np.uint64([[2**63], [0]])), ValueError, r"data\.y\[0, 0\]: got 92.*; expected what uint32"),
        ((np.ones(2, np.longdouble), np.ones(2)), TypeError, r"data\.x: got dtype float128; .*astype\(np.float64\)"),
        ((np.ones(2), "text"), TypeError, r"data\.y: got a str; expected an array of numbers"),
        (({1: np.ones(2), "b": np.ones(2)}, np.ones(2)), TypeError, r"data\.x: got a dictionary with keys of several"),
        ((Deep(), np.ones(2)), ValueError, r"data\.x: got a tree that is nested too deep"),
        ([(np.ones(2), np.ones(2))] * 2, TypeError, r"data: got a list of 2 batches; .*np.concatenate.*batch_size"),
        (lambda: iter([(np.ones(2), np.ones(2))]), TypeError, r"data: got a list_iterator, which yields .*first_step"),
        ((Frame(x=[1.0, 2.0], name=["a", "b"]), np.ones(2)), TypeError, r"data\.x: got a Frame with columns 'name' of"),
        (lambda: (jax.random.split(jax.random.key(0), 2), 1), TypeError, r"data\.x: got dtype key<fry>; expected"),
        (
            {"a": np.ones(2), "b": np.ones(3)},
            ValueError,
            r"data\['b'\]: got 3 points; expected 2, as many as in data\['a'\]",
        ),
        ((np.ones(2), np.ones(2), np.array([0, np.nan])), ValueError, r"data\[2\]\[1\]: got nan \(1 of 2 values are"),
        (({"a": np.ones(2), "b": [np.array([1, np.nan])]}, np.ones(2)), ValueError, r"data\.x\['b'\]\[0\]\[1\]: got"),
    ],
)
def test_what_is_wrong_with_a_batch_is_said_with_its_place(batch, kind, message):
    with pytest.raises(kind, match=message):
        check_batch(batch() if callable(batch) else batch, "data")
