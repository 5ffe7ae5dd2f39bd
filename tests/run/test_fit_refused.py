"""What fit refuses, before anything is written: with the argument, what it got and what it expected."""

from datetime import timedelta

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kits.fits import DATA, PARAMS, bowl, full_batch

import minijaxnet as mjn
from minijaxnet.run import fit

CLASSES = mjn.objective(mjn.mlp((3, 2)), mjn.softmax_cross_entropy)
BY_HAND = mjn.mlp_gradient((3, 2), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)
WEIGHTS = ({"weights": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)},)
KEY = jax.random.key(3)


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


def params(leaves):
    return {"state": full_batch()[1]._replace(params=leaves)}


def bad_label(objective):
    descent = mjn.gradient_descent(objective, 0.1)
    batch = DATA._replace(y=changed(np.arange(12) % 2, 4, 2))
    return {"descent": descent, "state": descent.init(WEIGHTS), "data": batch}


def no_classes():
    descent = mjn.gradient_descent(lambda params, batch: mjn.mean_squared_error(batch.x @ params, batch.y), 0.1)
    return {"descent": descent, "state": descent.init(np.zeros(3, np.float32))}


# What differs from a good call, the kind of error, what its text holds. Of batches see test_data, too.
REFUSED = [
    ({"data": DATA._replace(y=DATA.y[:, 0])}, ValueError, r"targets: got shape \(12,\); expected \(12, 1\)"),
    (no_classes, ValueError, r"targets: got shape \(12, 1\); expected \(12,\)"),
    ({"data": DATA._replace(x=DATA.x[:, :2])}, ValueError, r"x: got shape \(12, 2\); expected a last axis of 3"),
    ({"data": DATA._replace(y=DATA.y[:5])}, ValueError, r"data\.y: got 5 points; expected 12.*data\.x"),
    ({"data": DATA._replace(x=jnp.asarray(changed(DATA.x, (2, 1), np.nan)))}, ValueError, r"data\.x\[2, 1\]: got nan"),
    ({"data": DATA.x}, TypeError, r"batch: got .*; expected a pair \(x, y\)"),
    (
        lambda: params(jax.tree.map(lambda leaf: leaf.astype(np.int32), PARAMS)),
        TypeError,
        r"state\.params\[0\]\['bias'\]: got dtype int32; expected a real floating dtype",
    ),
    (
        lambda: params((PARAMS[0], {"weights": np.full((4, 1), np.nan), "bias": np.zeros(1)})),
        ValueError,
        r"state\.params\[1\]\['weights'\]: got NaN or infinity; expected finite",
    ),
    (lambda: bad_label(CLASSES), ValueError, r"labels\[4\]: got 2; expected a class of 2, from 0 to 1"),
    (lambda: bad_label(mjn.with_gradient(CLASSES, BY_HAND)), ValueError, r"labels\[4\]: got 2; expected a class of 2"),
    ({"steps": -1}, ValueError, "steps: got -1; expected at least 0"),
    ({"steps": 2.5}, TypeError, r"steps: got 2\.5; expected an int"),
    ({"until_flat": -1.0}, ValueError, r"until_flat: got -1\.0; expected .* at least 0"),
    ({"batch_size": 0, "key": KEY}, ValueError, "batch_size: got 0; expected at least 1"),
    ({"batch_size": 4.0, "key": KEY}, TypeError, r"batch_size: got 4\.0; expected an int"),
    ({"batch_size": 13, "key": KEY}, ValueError, "batch_size: got 13; expected at most 12, the points there are"),
    ({"batch_size": 4}, TypeError, r"key: got None; expected a jax\.random\.key"),
    ({"batch_size": 4, "key": 0}, TypeError, r"^key: got a int; expected a jax\.random\.key"),
    ({"batch_size": 4, "key": np.zeros((2, 2), np.uint32)}, TypeError, r"^key: got .*\(2, 2\); expected a jax\.random"),
    ({"batch_size": 4, "key": jax.random.split(KEY, 3)}, (TypeError, ValueError), r"^key: got .*; expected a jax\.r"),
    ({"log_every": 0}, ValueError, "log_every: got 0; expected at least 1"),
    ({"log_every": 0.5}, TypeError, r"log_every: got 0\.5; expected an int"),
    ({"checkpoint_every": 0}, ValueError, "checkpoint_every: got 0; expected at least 1"),
    ({"checkpoint_every": 1.5}, TypeError, "checkpoint_every: got 1.5; expected an int"),
    ({"checkpoint_every": timedelta(seconds=-1)}, ValueError, "checkpoint_every: got -1 day, .*; expected a time"),
    ({"descent": None}, TypeError, r"descent: got NoneType; expected a Descent\(init, step\)"),
    ({"descent": mjn.Descent(abs, 3)}, TypeError, r"descent\.step: got 3; expected a function"),
    ({"state": np.zeros(3)}, TypeError, "state: got ndarray; expected a DescentState"),
    ({"measure": 3}, TypeError, "measure: got 3; expected a function"),
    ({"measure": lambda params: None}, TypeError, "measure: got NoneType; expected a dictionary of numbers"),
    ({"measure": lambda params: {3: 1.0}}, TypeError, r"measure: got the names \[3\]; expected a dictionary"),
    ({"measure": lambda params: {"a": "3"}}, TypeError, "measure: a: got str; expected a number"),
    ({"measure": lambda params: {"a": np.ones(1)}}, TypeError, r"measure: a: got float64\[1\]; expected a number"),
    ({"measure": lambda params: {"a": np.complex64(1)}}, TypeError, r"measure: a: got complex64\[\]; expected a n"),
    ({"measure": lambda params: {"loss": 1.0}}, ValueError, "measure: got the name 'loss'; expected another"),
    ({"sink": print}, TypeError, r"sink: got builtin_function_or_method; expected a Sink"),
    ({"resume": True, "run_dir": None}, ValueError, "resume: got True without run_dir; expected the folder"),
    ({"run_dir": ""}, ValueError, "^run_dir: got ''; expected a folder"),
    ({"run_dir": __file__}, ValueError, "^run_dir: got '.*'; expected a folder"),
    ({"run_dir": b"here"}, TypeError, "^run_dir: got b'here'; expected a folder"),
    ({"on_interrupt": "stop"}, ValueError, "on_interrupt: got 'stop'; expected 'raise' or 'return'"),
    ({"keep_best": "lowest far"}, ValueError, "keep_best: got 'far'; expected one of the measured metrics: near"),
    ({"keep_best": "near"}, ValueError, "keep_best: got 'near'; expected 'highest near' or 'lowest near'"),
    ({"keep_best": ""}, TypeError, "keep_best: got ''; expected the name of a metric"),
    ({"patience": 3}, ValueError, "patience: got a number without keep_best"),
    ({"keep_best": "lowest near", "patience": 0}, ValueError, "patience: got 0"),
]


@pytest.mark.parametrize(("change", "kind", "text"), REFUSED)
def test_refused_before_any_step_with_argument_got_and_expected(change, kind, text, tmp_path):
    descent, state, _ = full_batch()
    call = {"descent": descent, "state": state, "data": DATA, "steps": 3, "measure": lambda params: {"near": 1.0}}
    call |= {"run_dir": tmp_path / "run"} | (change() if callable(change) else change)
    with pytest.raises(kind, match=text):
        fit(**call)
    assert not list(tmp_path.rglob("step-*")) and not list(tmp_path.rglob("*.part"))
    if not {"measure", "keep_best", "patience", "checkpoint_every"} & set(change if isinstance(change, dict) else ()):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [np.int64(1), np.float32(0.5), np.array(2), jnp.float32(1)], ids=repr)
def test_measures_may_be_numpys_numbers(number):
    descent, state, _ = full_batch()
    measured = {"a": number, "b": True, "c": jnp.bfloat16(2)}
    result = fit(descent, state, DATA, steps=1, measure=lambda params: measured)
    assert [result.rows[-1][name] for name in "abc"] == [float(number), 1.0, 2.0]


OBJECTIVES = {
    "gradient_descent: objective": lambda given: mjn.gradient_descent(given, 0.1),
    "optax_descent: objective": lambda given: mjn.optax_descent(given, optax.sgd(0.1)),
    "with_gradient: objective": lambda given: mjn.with_gradient(given, bowl),
    "with_gradient: value_and_gradient": lambda given: mjn.with_gradient(bowl, given),
    "objective: loss": lambda given: mjn.objective(mjn.mlp((3, 2)), given),
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
