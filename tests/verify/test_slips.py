"""Slips of the pen, planted at random in right rules: the checker misses none, and names the leaves they are in.

A host is a right rule of the corpus with one argument more, which says what to do to its gradient: one compiled program
serves all slips. Those of one host here; hundreds by ``pytest -m slow``.
"""

import collections
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpora import RIGHT, GradCase
from kits.reports import check_grad_at

# A slip counts where it changes an element by so much of itself, and of the largest of its leaf.
SHOWS, STANDS_OUT = 1e-9, 1e-10
# A cast through bfloat16 is seen in float32 only; it counts where its error is beyond what rounding may do there.
COARSE = 2.0**-12

HOSTS = {
    "matrix product, square": "float32",
    "bilinear form": "bfloat16",
    "mean squared error, square": "float64",
    "embedding with repeated indices": "float32",
    "softmax cross-entropy, integer labels": "float32",
    "arctan2": "float32",
    "tanh": "float64",
    "GELU by tanh": "bfloat16",
    "triplet": "float32",
    "logistic regression with weight decay, NamedTuple": "float32",
    "layer norm": "bfloat16",
    "linear recurrence": "float64",
    "leaves of 1e8 and 1e-8": "float32",
    "axes of size 1": "bfloat16",
}


class Host(NamedTuple):
    """A right rule that slips are planted in; of each leaf the name, and in float64 params and true gradient."""

    case: GradCase
    dtype: str
    args: tuple[Any, ...]
    paths: list[str]
    params: list[np.ndarray]
    truth: list[np.ndarray]


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
    starts = np.cumsum([0] + [leaf.size for leaf in like])
    return [flat[start : start + x.size].reshape(x.shape) for start, x in zip(starts, like, strict=False)]


def host_of(name):
    (case,) = [case for case in RIGHT if isinstance(case, GradCase) and case.name == name]
    dtype = HOSTS[name]
    with jax.enable_x64(dtype == "float64"):
        args = case.args(jnp.dtype(dtype))
    with jax.enable_x64(True):
        floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(args)]
        wide = [np.asarray(x, np.float64) if real else x for x, real in zip(jax.tree.leaves(args), floats, strict=True)]
        truth = jax.jit(jax.grad(case.loss))(*jax.tree.unflatten(jax.tree.structure(args), wide))
    paths = [jax.tree_util.keystr(path) or "args[0]" for path, _ in jax.tree_util.tree_leaves_with_path(args[0])]
    on_host = ([np.asarray(x, np.float64) for x in jax.tree.leaves(tree)] for tree in (args[0], truth))
    return Host(case, dtype, args, paths, *on_host)


def reports_on(host, slips):
    """What the checker says of the host's rule with each of the slips in it."""

    def hand(*args):
        *args, slip = args
        right, tree = jax.tree.flatten(host.case.gradient(*args))
        wider = jnp.promote_types(jnp.result_type(*right), jnp.float32)
        parts = split(slipped(jnp.concatenate([leaf.astype(wider).ravel() for leaf in right]), slip), right)
        return jax.tree.unflatten(tree, [part.astype(x.dtype) for part, x in zip(parts, right, strict=True)])

    with jax.enable_x64(host.dtype == "float64"):
        points = {name: (*host.args, slip) for name, slip in slips.items()}
        return check_grad_at(lambda *args: host.case.loss(*args[:-1]), hand, points)


# --- Slips: (host, the leaf it is in, a generator) -> Slip ------------------------------------------------------------


def reach(host, leaf):
    """Where in the whole a leaf lies."""
    start = sum(x.size for x in host.truth[:leaf])
    return slice(start, start + host.truth[leaf].size)


def flat_truth(host):
    return np.concatenate([x.ravel() for x in host.truth])


def untouched(host):
    return none(flat_truth(host).size)


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
    alike = [axes for axes in itertools.combinations(range(len(shape)), 2) if len({shape[k] for k in axes}) == 1]
    slip.index[where] = np.swapaxes(slip.index[where].reshape(shape), *draw.choice(alike)).ravel()
    return slip


def swap(host, leaf, draw):
    slip, where = untouched(host), reach(host, leaf)
    alike = [k for k, x in enumerate(host.truth) if k != leaf and x.shape == host.truth[leaf].shape]
    other = reach(host, draw.choice(alike))
    slip.index[where], slip.index[other] = np.arange(other.start, other.stop), np.arange(where.start, where.stop)
    return slip


def one_element(host, leaf, draw):
    """Zero, negated, or off by up to ten times itself and down to a billionth."""
    slip = untouched(host)
    place = draw.integers(reach(host, leaf).start, reach(host, leaf).stop)
    if draw.random() < 0.5:
        slip.factor[place] = draw.choice([0, -1])
    else:
        slip.term[place] = draw.choice([-1, 1]) * 10 ** draw.uniform(-8.5, 1) * flat_truth(host)[place]
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
    some, clearly = [], []
    for before, after in zip(host.truth, split(slipped(flat_truth(host), wide, np), host.truth), strict=True):
        size, apart = np.abs(before), np.abs(after - before)
        some.append(int(np.sum(apart > 0)))
        clearly.append(int(np.sum((apart > SHOWS * size) & (apart > STANDS_OUT * np.max(size)))))
    return some, clearly


def is_coarse(host, leaf):
    truth = host.truth[leaf]
    error = np.abs(truth.astype(jnp.bfloat16).astype(np.float64) - truth)
    return np.max(error) > COARSE * np.max(np.abs(truth))


def shows(host, kind, leaf, slip):
    _, clearly = changes(host, slip)
    return any(clearly) or (kind is narrow and is_coarse(host, leaf))


def all_are_found(name, count, seed):
    """Plant each kind of slip in each leaf so many times, as far as it shows there; returns how many of each kind."""
    host, draw, planted = host_of(name), np.random.default_rng(seed), {}
    for kind, leaf in slips_for(host):
        tries = (kind(host, leaf, draw) for _ in range(4 * count))
        shown = itertools.islice((slip for slip in tries if shows(host, kind, leaf, slip)), count)
        planted |= {f"{kind.__name__} in {host.paths[leaf]}, {i}": (kind, leaf, slip) for i, slip in enumerate(shown)}
    slips = {label: slip for label, (_, _, slip) in planted.items()}
    reports = reports_on(host, {"none": untouched(host)} | slips)
    assert reports["none"].ok, f"{name}\n{reports['none']}"
    for label, (kind, leaf, slip) in planted.items():
        report = reports[label]
        told = f"{name}: {label}\n{report}"
        assert not report.ok, told
        if kind is narrow:
            assert report.verdicts["precision"].state == "fail" and report.verdicts["algebra"].state == "pass", told
            assert host.paths[leaf] in report.verdicts["precision"].reason, told
            continue
        for path, any_at_all, clear in zip(host.paths, *changes(host, slip), strict=True):
            assert any_at_all or report.leaves[path].ok, f"{path} is right\n{told}"
            assert not clear or not report.leaves[path].ok, f"{path} is wrong\n{told}"
        assert not report.worst.ok, told
        if kind is one_element:
            (place,) = np.flatnonzero((slip.factor != 1) | (slip.term != 0))
            assert report.worst.index == np.unravel_index(place - reach(host, leaf).start, host.truth[leaf].shape), told
    return collections.Counter(kind.__name__ for kind, _, _ in planted.values())


def test_slips_planted_at_random_are_all_found():
    planted = all_are_found("arctan2", 1, seed=0)
    assert len(planted) == 12, planted


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTS)
def test_hundreds_of_slips_planted_at_random_are_all_found(name):
    assert all_are_found(name, 2, seed=1).total() >= 16
