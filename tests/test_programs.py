"""Compiled programs: reused while what a function reads is the same, compiled again when it changes, freed with it."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.descents import compilations
from kits.marks import slow

import minijaxnet as mjn
from minijaxnet import _programs

SCALE = 1.0


def first_loss(objective):
    descent = mjn.gradient_descent(objective, 0.1)
    return float(mjn.descend(descent, descent.init(1.0), 0.0, steps=1)[1].loss[0])


class Scaled:
    def __init__(self):
        self.scale, self.table = 1.0, np.array([1.0])

    def loss(self, weight, batch):
        return self.scale * weight**2

    def __call__(self, weight, batch):
        return self.table[0] * weight**2


def by_attribute():
    scaled = Scaled()
    return scaled.loss, functools.partial(setattr, scaled, "scale")


def by_an_array_changed_in_place():
    scaled = Scaled()
    return scaled, functools.partial(scaled.table.__setitem__, 0)


def by_global_of_what_it_calls():
    def scaled(weight):
        return SCALE * weight**2

    return lambda weight, batch: scaled(weight), functools.partial(globals().__setitem__, "SCALE")


def by_class():
    class Config:
        rate = 1.0

        def loss(self, weight, batch):
            return self.helper() * weight**2

        def helper(self):
            return self.rate

    return Config().loss, functools.partial(setattr, Config, "rate")


def by_what_it_sets_itself():
    class Lazy:
        scale = None

        def __call__(self, weight, batch):
            self.scale = self.scale or 1.0
            return self.scale * weight**2

    lazy = Lazy()
    return lazy, functools.partial(setattr, lazy, "scale")


def by_own_gradient():
    scale = 1.0

    def change(value):
        nonlocal scale
        scale = value

    def loss(weight, batch):
        return scale * weight**2

    return mjn.with_gradient(loss, jax.value_and_grad(loss)), change


@pytest.mark.parametrize(
    "build",
    [
        by_attribute,
        by_global_of_what_it_calls,
        by_own_gradient,
        by_class,
        by_what_it_sets_itself,
        *slow(by_an_array_changed_in_place),
    ],
)
def test_a_number_that_is_changed_between_two_descents_counts(build):
    objective, change = build()
    change(1.0)
    assert first_loss(objective) == 1.0
    change(3.0)
    assert first_loss(objective) == 3.0
    assert mjn.loss_slice(objective, jnp.float32(1.0), 0.0, direction=jnp.float32(0.0), points=2)[1][0] == 3.0
    change(1.0)
    assert first_loss(objective) == 1.0


def test_equal_objectives_share_a_program_and_the_same_number_of_another_type_does_not():
    network = mjn.dense(1, 1)
    one, other = (_programs.function_key(mjn.objective(network, mjn.mean_squared_error)) for _ in range(2))
    assert one == other
    assert _programs.function_key(functools.partial(pow, exp=2)) != _programs.function_key(
        functools.partial(pow, exp=2.0)
    )


def with_everything(objective):
    descent = mjn.gradient_descent(objective, 0.1)
    state, batch = descent.init(jnp.zeros(2)), (np.ones((4, 2), np.float32), np.ones(4, np.float32))
    mjn.descend(descent, state, batch, steps=2)
    mjn.fit(descent, state, batch, steps=2)
    mjn.loss_slice(objective, state.params, batch, direction=jnp.ones(2), points=2)
    mjn.sweep(
        lambda rate: mjn.descend(mjn.gradient_descent(objective, rate), state, batch, steps=2)[1], {"rate": [0.1]}
    )


def test_an_objective_is_gone_with_all_it_closes_over_once_nobody_has_it():
    held = []
    for k in range(2):
        data = np.full(2, k, np.float32)
        held.append(weakref.ref(data))
        with_everything(lambda w, batch, data=data: jnp.mean((batch[0] @ (w - data)) ** 2))
        del data
    gc.collect()
    assert [ref() is None for ref in held] == [True, True]


def test_only_the_programs_of_the_last_few_numbers_are_kept():
    jit_of, scaled = _programs.JitOf(lambda function, x: function(x, None)), Scaled()
    for k in range(20):
        scaled.scale = float(k)
        assert jit_of(scaled.loss, 2.0) == 4.0 * k
    assert len(jit_of._programs) <= 5
    del scaled
    gc.collect()
    assert len(jit_of._programs) == 0


def optax_like():
    """As optax's schedules do it: an int is made a float when it is first called."""
    steps = 100

    def schedule(count):
        nonlocal steps
        steps = float(steps)
        return 0.1 - 0.1 * count / steps

    return schedule


def counting_itself():
    calls = 0

    def schedule(count):
        nonlocal calls
        calls += 1
        return 0.1

    return schedule


@pytest.mark.parametrize("schedule_of", [optax_like, counting_itself])
def test_a_fit_compiles_once_where_a_schedule_changes_its_own_numbers(schedule_of):
    optax = pytest.importorskip("optax")
    descent = mjn.optax_descent(lambda weight, batch: jnp.mean((weight - batch) ** 2), optax.sgd(schedule_of()))
    with compilations() as names:
        mjn.fit(descent, descent.init(1.0), jnp.ones(2), steps=20, log_every=1)
    assert sum("chunk" in str(name) for name in names) == 1
