"""What fit refuses, before anything is written: with the argument, what it got and what it expected."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kits.fits import DATA, NETWORK, PARAMS, bowl, full_batch, minibatches

import minijaxnet as mjn
from minijaxnet.run import fit

CLASSIFIER = mjn.mlp((3, 2))
CLASSES = mjn.objective(CLASSIFIER, mjn.softmax_cross_entropy)
BY_HAND = mjn.mlp_gradient((3, 2), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)
WEIGHTS = ({"weights": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)},)
FLAT = mjn.Network(lambda key: jnp.zeros(3), lambda params, x: x @ params)


def descending(objective, params):
    """What differs from a good call where another objective is descended."""

    def change():
        descent = mjn.gradient_descent(objective, 0.1)
        return {"descent": descent, "state": descent.init(params)}

    return change


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


def labels(value):
    return DATA._replace(y=changed(np.arange(12) % 2, 4, value))


def with_x(x):
    return {"data": DATA._replace(x=x)}


def with_y(y):
    return {"data": DATA._replace(y=y)}


def with_params(params):
    return lambda: {"state": full_batch()[1]._replace(params=params)}


def in_batches(size):
    return lambda: {"batch_size": size, "key": minibatches()[2]["key"]}


classes = descending(CLASSES, WEIGHTS)
by_hand = descending(mjn.with_gradient(CLASSES, BY_HAND), WEIGHTS)
yes_no = descending(mjn.objective(NETWORK, mjn.binary_cross_entropy), PARAMS)

# name: (what differs from a good call, the kind of error, what its text holds)
REFUSED = {
    "y (n,) against predictions (n, 1)": (
        with_y(DATA.y[:, 0]),
        ValueError,
        r"targets: got shape \(12,\); expected \(12, 1\)",
    ),
    "y (n, 1) against predictions (n,)": (
        descending(mjn.objective(FLAT, mjn.mean_squared_error), np.zeros(3, np.float32)),
        ValueError,
        r"targets: got shape \(12, 1\); expected \(12,\)",
    ),
    "a column short": (
        with_x(DATA.x[:, :2]),
        ValueError,
        r"x: got shape \(12, 2\); expected a last axis of 3",
    ),
    "a column too many": (with_x(np.ones((12, 4), np.float32)), ValueError, r"x: got shape \(12, 4\); expected .* 3"),
    "fewer y than x": (with_y(DATA.y[:5]), ValueError, r"data\.y: got 5 points; expected 12.*data\.x"),
    "NaN in x": (
        with_x(jnp.asarray(changed(DATA.x, (2, 1), np.nan))),
        ValueError,
        r"data\.x\[2, 1\]: got nan .*; expected finite",
    ),
    "infinity in y": (
        with_y(changed(DATA.y, (4, 0), np.inf)),
        ValueError,
        r"data\.y\[4, 0\]: got inf.*expected finite",
    ),
    "NaN in NumPy data": (
        {"data": (np.full((12, 3), np.nan), np.ones((12, 1)))},
        ValueError,
        r"data\.x\[0, 0\]: got nan \(36 of 36 values",
    ),
    "no points": (
        {"data": (np.ones((0, 3)), np.ones((0, 1)))},
        ValueError,
        r"data\.x: got an empty data set; expected",
    ),
    "no pair": ({"data": DATA.x}, TypeError, r"batch: got .*; expected a pair \(x, y\)"),
    "three parts": ({"data": (*DATA, 1)}, ValueError, r"data\[2\]: got a single number; expected an array"),
    "text": ({"data": (np.full((12, 3), "a"), DATA.y)}, TypeError, r"data\.x: got dtype <U1; expected numbers"),
    "a bare number": ({"data": (1.0, 2.0)}, ValueError, r"data\.x: got a single number; expected an array"),
    "integer params": (
        with_params(jax.tree.map(lambda leaf: leaf.astype(np.int32), PARAMS)),
        TypeError,
        r"state\.params\[0\]\['bias'\]: got dtype int32; expected a real floating dtype",
    ),
    "NaN in params": (
        with_params((PARAMS[0], {"weights": np.full((4, 1), np.nan), "bias": np.zeros(1)})),
        ValueError,
        r"state\.params\[1\]\['weights'\]: got NaN or infinity; expected finite",
    ),
    "infinity in params": (
        with_params(jax.tree.map(lambda leaf: leaf + np.inf, PARAMS)),
        ValueError,
        r"state\.params\[0\].*: got NaN or infinity; expected finite",
    ),
    "a label too high": (
        lambda: classes() | {"data": labels(2)},
        ValueError,
        r"labels\[4\]: got 2; expected a class of 2, from 0 to 1",
    ),
    "a negative label": (
        lambda: classes() | {"data": labels(-1)},
        ValueError,
        r"labels\[4\]: got -1; expected a class of 2, from 0 to 1",
    ),
    "a label too high, by hand": (
        lambda: by_hand() | {"data": labels(2)},
        ValueError,
        r"labels\[4\]: got 2; expected a class of 2, from 0 to 1",
    ),
    "a label that is neither yes nor no": (
        lambda: yes_no() | with_y(np.full((12, 1), 2.0, np.float32)),
        ValueError,
        r"labels\[.*0, 0.*\]: got 2\.0; expected a probability, from 0 to 1",
    ),
    "labels in a column": (
        lambda: classes() | {"data": DATA._replace(y=labels(0).y[:, None])},
        ValueError,
        r"labels: got int32\[12,1\]; expected classes, .*: labels\[:, 0\], or",
    ),
    "negative steps": ({"steps": -1}, ValueError, "steps: got -1; expected at least 0"),
    "half a step": ({"steps": 2.5}, TypeError, r"steps: got 2\.5; expected an int"),
    "steps in words": ({"steps": "ten"}, TypeError, "steps: got 'ten'; expected an int"),
    "steps true": ({"steps": True}, TypeError, "steps: got True; expected an int"),
    "negative flatness": ({"until_flat": -1.0}, ValueError, r"until_flat: got -1\.0; expected .* at least 0"),
    "flatness NaN": ({"until_flat": float("nan")}, ValueError, "until_flat: got nan; expected .* at least 0"),
    "flatness in words": ({"until_flat": "low"}, TypeError, "until_flat: got 'low'; expected a gradient norm"),
    "batch size 0": (in_batches(0), ValueError, "batch_size: got 0; expected at least 1"),
    "batch size negative": (in_batches(-4), ValueError, "batch_size: got -4; expected at least 1"),
    "batch size float": (in_batches(4.0), TypeError, r"batch_size: got 4\.0; expected an int"),
    "batch size beyond the points": (
        in_batches(13),
        ValueError,
        "batch_size: got 13; expected at most 12, the points there are",
    ),
    "minibatches without a key": ({"batch_size": 4}, TypeError, r"key: got None; expected a jax\.random\.key"),
    "rows every 0 steps": ({"log_every": 0}, ValueError, "log_every: got 0; expected at least 1"),
    "no descent": ({"descent": None}, TypeError, r"descent: got NoneType; expected a Descent\(init, step\)"),
    "a step that is none": ({"descent": mjn.Descent(None, 3)}, TypeError, r"descent\.step: got 3; expected a function"),
    "no state": ({"state": np.zeros(3)}, TypeError, "state: got ndarray; expected a DescentState"),
    "a measure that is none": ({"measure": 3}, TypeError, "measure: got 3; expected a function"),
    "no sink": ({"sink": print}, TypeError, r"sink: got builtin_function_or_method; expected a Sink"),
    "rows every half step": ({"log_every": 0.5}, TypeError, r"log_every: got 0\.5; expected an int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written_with_argument_got_and_expected(name, tmp_path):
    change, kind, text = REFUSED[name]
    descent, state, _ = full_batch()
    call = {"descent": descent, "state": state, "data": DATA, "steps": 3} | (change() if callable(change) else change)
    with pytest.raises(kind, match=text):
        fit(**call, run_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_objective_that_is_a_plain_function_is_checked_by_its_own_shapes(tmp_path):
    descent = mjn.gradient_descent(lambda params, batch: mjn.mean_squared_error(batch.x @ params, batch.y), 0.1)
    with pytest.raises(ValueError, match=r"targets: got shape \(12, 1\); expected \(12,\)"):
        fit(descent, descent.init(np.zeros(3, np.float32)), DATA, steps=3, run_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("run_dir", "kind"), [("", ValueError), ("a_file", ValueError), (3, TypeError), (b"here", TypeError)]
)
def test_a_run_dir_that_is_no_folder_is_named(run_dir, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    descent, state, _ = full_batch()
    with pytest.raises(kind, match=f"^run_dir: got {run_dir!r}; expected a folder"):
        fit(descent, state, DATA, steps=3, run_dir=run_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


def test_a_run_dir_is_made_if_need_be(tmp_path):
    descent, state, _ = full_batch()
    fit(descent, state, DATA, steps=3, run_dir=tmp_path / "new" / "run")
    assert (tmp_path / "new" / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (None, "measure: got NoneType; expected a dictionary of numbers"),
        ("loss 3", "measure: got str; expected a dictionary"),
        (np.ones(2), "measure: got ndarray; expected a dictionary"),
        ({3: 1.0}, r"measure: got the names \[3\]; expected a dictionary"),
        ({"a": None}, "measure: a: got NoneType; expected a number"),
        ({"a": "3"}, "measure: a: got str; expected a number"),
        ({"a": np.ones(1)}, r"measure: a: got float64\[1\]; expected a number"),
        ({"a": np.complex64(1)}, r"measure: a: got complex64\[\]; expected a number"),
    ],
    ids=str,
)
def test_a_measure_that_returns_no_numbers_is_named(measured, words):
    descent, state, _ = full_batch()
    with pytest.raises(TypeError, match=f"^{words}"):
        fit(descent, state, DATA, steps=3, measure=lambda params: measured)


@pytest.mark.parametrize("number", [np.int64(1), np.float32(0.5), np.array(2), jnp.float32(1)], ids=repr)
def test_measures_may_be_numpys_numbers(number):
    descent, state, _ = full_batch()
    told = {"a": number, "b": True, "c": jnp.bfloat16(2)}
    result = fit(descent, state, DATA, steps=1, measure=lambda params: told)
    assert [result.rows[-1][name] for name in "abc"] == [float(number), 1.0, 2.0]


@pytest.mark.parametrize("every", [True, "1", None, 0, -1, 0.5], ids=str)
def test_what_is_no_number_of_steps_between_checkpoints_is_named(every):
    descent, state, _ = full_batch()
    with pytest.raises((TypeError, ValueError), match=r"checkpoint_every: got "):
        fit(descent, state, DATA, steps=1, checkpoint_every=every)


OBJECTIVES = {
    "gradient_descent: objective": lambda given: mjn.gradient_descent(given, 0.1),
    "optax_descent: objective": lambda given: mjn.optax_descent(given, optax.sgd(0.1)),
    "with_gradient: objective": lambda given: mjn.with_gradient(given, bowl),
    "with_gradient: value_and_gradient": lambda given: mjn.with_gradient(bowl, given),
    "objective: loss": lambda given: mjn.objective(NETWORK, given),
    "loss": lambda given: mjn.check_grad(given, bowl, (1.0,)),
    "gradient": lambda given: mjn.check_grad(bowl, given, (1.0,)),
    "fun": lambda given: mjn.check_vjp(given, (1.0,)),
    "run": lambda given: mjn.sweep(given, {"seed": np.arange(2)}),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_no_function_is_named(name):
    for given, got in ((None, "None"), (0.1, r"0\.1"), (np.ones(2), "'ndarray'")):
        with pytest.raises(TypeError, match=f"^{name}: got {got}; expected a function"):
            OBJECTIVES[name](given)


@pytest.mark.parametrize(
    ("key", "words"),
    [(0, "a int"), ("a", "a str"), (1.5, "a float"), (np.zeros((2, 2), np.uint32), r".*\(2, 2\)")],
    ids=str,
)
def test_a_key_that_is_none_is_named(key, words):
    descent, state, _ = full_batch()
    with pytest.raises(TypeError, match=rf"^key: got {words}; expected a jax\.random\.key"):
        fit(descent, state, DATA, steps=3, batch_size=4, key=key)


def test_several_keys_are_named():
    descent, state, _ = full_batch()
    with pytest.raises((TypeError, ValueError), match=r"^key: got .*; expected a jax\.random\.key"):
        fit(descent, state, DATA, steps=3, batch_size=4, key=jax.random.split(jax.random.key(3)))
