"""Slips of the pen, planted at random in right rules: the checker misses none, and names the leaves they are in.

A host is a right rule of the corpus with one argument more, which says what to do to its gradient. So one compiled
examiner serves all slips. 100 slips here; thousands by ``pytest -m slow``.
"""

import collections
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpora import RIGHT, GradCase
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from minijaxnet.verify.flat import chosen_leaves, of_moved, only, paths_of
from minijaxnet.verify.judge import judge
from minijaxnet.verify.question import Examiner, Question, prepare

# A slip counts where it changes an element by so much of itself, and of the largest of its leaf.
SHOWS, STANDS_OUT = 1e-9, 1e-10
# A cast through bfloat16 is seen in float32 only; it counts where its error is beyond what rounding may do there.
COARSE = 2.0**-12

HOSTS = {
    "matrix product, square": "float32",
    "bilinear form": "bfloat16",
    "mean squared error, square": "float64",
    "SwiGLU": "float32",
    "embedding with repeated indices": "float32",
    "softmax cross-entropy, integer labels": "float32",
    "quadratic form, not symmetric": "bfloat16",
    "arctan2": "float32",
    "tanh": "float64",
    "log1p": "float32",
    "GELU by tanh": "bfloat16",
    "einsum over a batch": "float32",
    "reverse Kullback-Leibler": "float64",
    "triplet": "float32",
    "logistic regression with weight decay, NamedTuple": "float32",
    "layer norm": "bfloat16",
    "softmax": "float32",
    "attention": "float32",
    "linear recurrence": "float64",
    "leaves of 1e8 and 1e-8": "float32",
    "axes of size 1": "bfloat16",
    "Rosenbrock's function, order two": "float32",
}
FEW = 4


class Host(NamedTuple):
    """A right rule that slips are planted in; arrays are NumPy's, in float64."""

    examiner: Examiner
    leaves: list[Any]
    paths: list[str]
    params: list[np.ndarray]
    truth: list[np.ndarray]
    dtype: str


class Slip(NamedTuple):
    """What becomes of a gradient g, all of its leaves laid end to end.

    ``factor * clip(|narrow(g)|, low, high)[index] + term``; sizes follow the gradient's, but for the scalars.
    """

    factor: np.ndarray
    index: np.ndarray
    term: np.ndarray
    absolute: np.ndarray
    narrow: np.ndarray
    low: np.ndarray
    high: np.ndarray


def none(size):
    def full(value, dtype=np.float32):
        return np.full(size, value, dtype)

    index = np.arange(size, dtype=np.int32)
    return Slip(full(1), index, full(0), full(False, bool), full(False, bool), full(-np.inf), full(np.inf))


def slipped(flat, slip, xp=jnp):
    """The gradient with the slip in it; what the rule does, and with NumPy what is expected of it."""
    flat = xp.where(slip.absolute, xp.abs(flat), flat)
    if xp is jnp:
        flat = jnp.where(slip.narrow, flat.astype(jnp.bfloat16).astype(flat.dtype), flat)
    flat = xp.minimum(xp.maximum(flat, slip.low), slip.high)
    return slip.factor * flat[slip.index] + slip.term


def split(flat, like):
    ends = np.cumsum([leaf.size for leaf in like])
    return [part.reshape(leaf.shape) for part, leaf in zip(np.split(flat, ends[:-1]), like, strict=True)]


@functools.cache
def host(name):
    (case,) = [case for case in RIGHT if isinstance(case, GradCase) and case.name == name]
    dtype = HOSTS[name]
    with jax.enable_x64(dtype == "float64"):
        args = case.args(jnp.dtype(dtype))
    leaves, tree = jax.tree.flatten(args)
    moved = chosen_leaves(args, (case.argnums,))
    params = only(leaves, moved)

    def objective(*everything):
        value = case.loss(*jax.tree.unflatten(tree, everything[: len(leaves)]))
        return value[0] if case.has_aux else value

    def reference(*everything):
        return jax.grad(of_moved(objective, everything, [*moved, *still]))(only(everything, [*moved, *still]))

    def hand(*everything):
        returned = case.gradient(*jax.tree.unflatten(tree, everything[: len(leaves)]))
        right = jax.tree.leaves(returned[1] if case.has_value else returned)
        wider = jnp.promote_types(jnp.result_type(*right), jnp.float32)
        flat = jnp.concatenate([leaf.astype(wider).ravel() for leaf in right])
        flat = slipped(flat, Slip(*everything[len(leaves) :]))
        ends = np.cumsum([leaf.size for leaf in right])
        parts = zip(jnp.split(flat, ends[:-1]), right, strict=True)
        return [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in parts]

    size = sum(leaf.size for leaf in params)
    everything = [*leaves, *none(size)]
    still = [False] * len(Slip._fields)
    paths = [f"args{path}" for path in paths_of(args)] + list(Slip._fields)
    names = only(paths_of(args), moved)
    question = Question(hand, reference, objective, paths, [*moved, *still], names, 0, [])
    examiner = prepare(question, everything)
    with jax.enable_x64(True):
        wide = [np.asarray(x).astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in leaves]
        truth = [np.asarray(x) for x in jax.jit(reference)(*wide, *none(size))]
    return Host(examiner, leaves, names, [np.asarray(x).astype(np.float64) for x in params], truth, dtype)


# --- Slips: (host, the leaf it is in, a generator) -> Slip ------------------------------------------------------------


def reach(host, leaf):
    """Where in the whole a leaf lies."""
    start = sum(x.size for x in host.truth[:leaf])
    return slice(start, start + host.truth[leaf].size)


def untouched(host):
    return none(sum(x.size for x in host.truth))


def scale(host, leaf, draw):
    """A leaf or all, by -1, 2, 1/2, a little, the length of an axis or one over it."""
    shape = host.truth[leaf].shape or (3,)
    n = shape[draw.integers(len(shape))]
    c = draw.choice([-1, 2, 0.5, 1 + 1e-3, 1 + 1e-6, n, 1 / n])
    slip = untouched(host)
    slip.factor[slice(None) if draw.random() < 0.25 else reach(host, leaf)] = c
    return slip


def transpose(host, leaf, draw):
    slip, where, shape = untouched(host), reach(host, leaf), host.truth[leaf].shape
    i, j = draw.permutation([k for k in range(len(shape)) if shape.count(shape[k]) > 1])[:2]
    assume(shape[i] == shape[j])
    slip.index[where] = np.swapaxes(slip.index[where].reshape(shape), i, j).ravel()
    return slip


def swap(host, leaf, draw):
    slip, where = untouched(host), reach(host, leaf)
    alike = [k for k, x in enumerate(host.truth) if k != leaf and x.shape == host.truth[leaf].shape]
    other = reach(host, draw.choice(alike))
    slip.index[where], slip.index[other] = np.arange(other.start, other.stop), np.arange(where.start, where.stop)
    return slip


def one_element(host, leaf, draw):
    """Zero, negated, or off by up to a tenth and down to a millionth."""
    slip = untouched(host)
    place = draw.integers(reach(host, leaf).start, reach(host, leaf).stop)
    slip.factor[place] = draw.choice([0, -1, 1 + 10 ** -draw.uniform(1, 6)])
    return slip


def one_slice(host, leaf, draw):
    slip, shape = untouched(host), host.truth[leaf].shape
    axis = draw.integers(len(shape))
    factor = slip.factor[reach(host, leaf)].reshape(shape)
    np.moveaxis(factor, axis, 0)[draw.integers(shape[axis])] = draw.choice([0, 2, 1 + 1e-4])
    return slip


def last_step(host, leaf, draw):
    slip, shape = untouched(host), host.truth[leaf].shape
    slip.factor[reach(host, leaf)].reshape(shape)[-1] = 0
    return slip


def decay(host, leaf, draw):
    """A small multiple of the param too much."""
    slip = untouched(host)
    slip.term[reach(host, leaf)] = 10 ** -draw.uniform(1, 6) * host.params[leaf].ravel()
    return slip


def constant(host, leaf, draw):
    slip = untouched(host)
    slip.term[reach(host, leaf)] = 10 ** -draw.uniform(1, 5) * np.max(np.abs(host.truth[leaf]))
    return slip


def absolute(host, leaf, draw):
    slip = untouched(host)
    slip.absolute[reach(host, leaf)] = True
    return slip


def one_sided(host, leaf, draw):
    slip = untouched(host)
    slip.factor[reach(host, leaf)] = np.where(host.params[leaf].ravel() > 0, 1, draw.choice([0, -1, 0.01]))
    return slip


def permute(host, leaf, draw):
    slip, where = untouched(host), reach(host, leaf)
    slip.index[where] = draw.permutation(slip.index[where]) if draw.random() < 0.5 else np.roll(slip.index[where], 1)
    return slip


def clip(host, leaf, draw):
    slip, where = untouched(host), reach(host, leaf)
    size = np.abs(host.truth[leaf])
    slip.high[where] = np.quantile(size, draw.uniform(0.3, 0.95))
    slip.low[where] = -slip.high[where]
    return slip


def narrow(host, leaf, draw):
    slip = untouched(host)
    slip.narrow[reach(host, leaf)] = True
    return slip


def slips_for(host):
    """Which slips fit which leaves of a host."""
    found = []
    for leaf, x in enumerate(host.truth):
        found += [(scale, leaf), (one_element, leaf), (decay, leaf), (constant, leaf), (absolute, leaf)]
        found += [(one_sided, leaf)]
        found += [(narrow, leaf)] if host.dtype == "float32" else []
        found += [(permute, leaf), (clip, leaf)] if x.size > 1 else []
        found += [(one_slice, leaf), (last_step, leaf)] if x.ndim and x.size > 1 else []
        found += [(transpose, leaf)] if len(set(x.shape)) < x.ndim else []
        found += [(swap, leaf)] if any(y.shape == x.shape for y in host.truth[:leaf] + host.truth[leaf + 1 :]) else []
    return found


def changes(host, slip):
    """For each leaf: how many elements a slip changes at all, and how many clearly."""
    wide = Slip(*(x.astype(np.float64) if x.dtype == np.float32 else x for x in slip))
    flat = np.concatenate([x.ravel() for x in host.truth])
    some, clearly = [], []
    for before, after in zip(host.truth, split(slipped(flat, wide, np), host.truth), strict=True):
        size, apart = np.abs(before), np.abs(after - before)
        some.append(int(np.sum(apart > 0)))
        clearly.append(int(np.sum((apart > SHOWS * size) & (apart > STANDS_OUT * np.max(size)))))
    return some, clearly


def is_coarse(host, leaf):
    truth = host.truth[leaf]
    error = np.abs(truth.astype(jnp.bfloat16).astype(np.float64) - truth)
    return np.max(error) > COARSE * np.max(np.abs(truth))


def plant(name, count, seed):
    """Plant so many slips in a host, each found; returns how many of each."""
    planted, patient = collections.Counter(), host(name)

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(st.sampled_from(slips_for(patient)), st.integers(seed, seed + 2**31))
    def each(chosen, number):
        kind, leaf = chosen
        slip = kind(patient, leaf, np.random.default_rng(number))
        some, clearly = changes(patient, slip)
        assume(any(clearly) or (kind is narrow and is_coarse(patient, leaf)))
        report = judge(patient.examiner, [*patient.leaves, *slip], 0)
        planted[kind.__name__] += 1
        assert not report.ok, f"{name}: {kind.__name__} in {patient.paths[leaf]} was missed\n{report}"
        if kind is narrow:
            assert report.verdicts["precision"].state == "fail" and report.verdicts["algebra"].state == "pass"
            assert patient.paths[leaf] in report.verdicts["precision"].reason
            return
        for path, any_at_all, clear in zip(patient.paths, some, clearly, strict=True):
            assert any_at_all or report.leaves[path].ok, f"{path} is right\n{report}"
            assert not clear or not report.leaves[path].ok, f"{path} is wrong\n{report}"
        assert not report.worst.ok

    each()
    return planted


def is_clean(name):
    """A host without a slip is right: what is found is the slip."""
    patient = host(name)
    report = judge(patient.examiner, [*patient.leaves, *untouched(patient)], 0)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", list(HOSTS)[:FEW])
def test_slips_planted_at_random_are_all_found(name):
    is_clean(name)
    planted = plant(name, 25, seed=0)
    assert planted.total() >= 25 and len(planted) >= 6, planted


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTS)
def test_thousands_of_slips_planted_at_random_are_all_found(name):
    assert len(HOSTS) * 100 >= 2_000
    is_clean(name)
    assert plant(name, 100, seed=1).total() >= 100
