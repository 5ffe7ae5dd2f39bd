"""One small network and descents of each kind, shared so that their programs are compiled once."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import minijaxnet as mjn

POINTS = 12
NETWORK = mjn.mlp((3, 4, 1), activation=jnp.tanh)
OBJECTIVE = mjn.objective(NETWORK, mjn.mean_squared_error)
_draw = np.random.default_rng(0)


def drawn(*shape):
    return _draw.normal(size=shape).astype(np.float32)


DATA = mjn.Batch(drawn(POINTS, 3), drawn(POINTS, 1))
PARAMS = tuple({"weights": drawn(*shape), "bias": np.zeros(shape[1], np.float32)} for shape in ((3, 4), (4, 1)))


def noisy(params, batch, key):
    return OBJECTIVE(params, batch) * jax.random.uniform(key, minval=0.5, maxval=1.5)


def bowl(weights, batch):
    """Flat at the mean of the batch; curvature 2."""
    return jnp.mean(jnp.sum((weights - batch.x) ** 2, axis=-1))


def watched_fit(*arguments, on_progress=None, sink=None, on_interrupt="return", **options):
    """``fit``, with a function that is called after each chunk; interrupted it returns what was learnt."""
    if on_progress is not None:
        sink = (sink or mjn.Sink(lambda row: None))._replace(progress=on_progress)
    return mjn.fit(*arguments, sink=sink, on_interrupt=on_interrupt, **options)


@contextlib.contextmanager
def chunks_of(seconds):
    """Fits meanwhile look up after so many seconds of compiled steps; after each step if 0."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("minijaxnet.run.watch._CHUNK_S", seconds)
        yield


def fitted(kind, **options):
    """A fit of one of the kinds below."""
    descent, start, own = kind
    return watched_fit(descent, start, DATA, **own, **options)


# Each: a descent, its start, and what else fit is to be told.
@functools.cache
def full_batch():
    descent = mjn.gradient_descent(OBJECTIVE, 0.05)
    return descent, descent.init(PARAMS), {}


@functools.cache
def minibatches():
    descent, start, _ = full_batch()
    return descent, start, {"batch_size": 5, "key": jax.random.key(3)}


@functools.cache
def adam_in_minibatches():
    descent = mjn.optax_descent(OBJECTIVE, optax.adam(0.01))
    return descent, descent.init(PARAMS), minibatches()[2]


@functools.cache
def with_draws():
    descent = mjn.gradient_descent(noisy, 0.05)
    return descent, descent.init(PARAMS, jax.random.key(4)), {"measure": lambda params: {"first": params[0]["bias"][0]}}


@functools.cache
def in_a_bowl(rate):
    descent = mjn.gradient_descent(bowl, rate)
    return descent, descent.init(np.full(3, 5, np.float32)), {}
