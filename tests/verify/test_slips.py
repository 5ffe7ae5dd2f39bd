"""Slips of the pen, planted at random in right rules: the checker misses none, and names the leaves they are in.

A host is a right rule of the corpus with one argument more, which says what to do to its gradient: one compiled program
serves all slips. Those of one host here; hundreds by ``pytest -m slow``.
"""

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

HOSTS = {
    "matrix product, square": "float32",
    "bilinear form": "bfloat16",
    "mean squared error, square": "float64",
    "embedding with repeated indices": "float32",
    "softmax cross-entropy": "float32",
    "arctan2": "float32",
    "tanh": "float64",
    "triplet": "float32",
    "logistic regression with weight decay, NamedTuple": "float32",
    "layer norm": "bfloat16",
    "linear recurrence": "float64",
    "leaves of 1e8 and 1e-8": "float32",
    "axes of size 1": "bfloat16",
}


class Slip(NamedTuple):
    """What becomes of a gradient g, all of its leaves laid end to end: ``factor * clip(g, -most, most)[index] + term``.

    Sizes follow the gradient's.
    """

    factor: np.ndarray
    index: np.ndarray
    term: np.ndarray
    most: np.ndarray


class Host(NamedTuple):
    """A right rule that slips are planted in; of each leaf the name, and in float64 params and true gradient."""

    case: GradCase
    dtype: str
    args: tuple[Any, ...]
    paths: list[str]
    params: list[np.ndarray]
    truth: list[np.ndarray]

    @property
    def flat(self):
        return np.concatenate([x.ravel() for x in self.truth])

    def reach(self, leaf):
        """Where in the whole a leaf lies."""
        start = sum(x.size for x in self.truth[:leaf])
        return slice(start, start + self.truth[leaf].size)

    def untouched(self):
        size = self.flat.size
        ones = np.ones(size, np.float32)
        return Slip(ones, np.arange(size, dtype=np.int32), 0 * ones, np.inf * ones)


def slipped(flat, slip, xp=jnp):
    """The gradient with the slip in it; what the rule does, and with NumPy what is expected of it."""
    return slip.factor * xp.minimum(xp.maximum(flat, -slip.most), slip.most)[slip.index] + slip.term


def split(flat, like):
    starts = np.cumsum([0] + [leaf.size for leaf in like])
    return [flat[start : start + x.size].reshape(x.shape) for start, x in zip(starts, like, strict=False)]


def host_of(name):
    (case,) = [case for case in RIGHT if isinstance(case, GradCase) and case.name == name]
    with jax.enable_x64(HOSTS[name] == "float64"):
        args = case.args(jnp.dtype(HOSTS[name]))
    with jax.enable_x64(True):
        wide = lambda x: np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
        truth = jax.jit(jax.grad(case.loss))(*jax.tree.map(wide, args))
    paths = [jax.tree_util.keystr(path) or "args[0]" for path, _ in jax.tree_util.tree_leaves_with_path(args[0])]
    on_host = ([np.asarray(x, np.float64) for x in jax.tree.leaves(tree)] for tree in (args[0], truth))
    return Host(case, HOSTS[name], args, paths, *on_host)


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


def scale(host, leaf, draw):
    """A leaf or all, by -1, 2, 1/2, a little, the length of an axis or one over it."""
    shape, slip = host.truth[leaf].shape or (3,), host.untouched()
    n = shape[draw.integers(len(shape))]
    factor = draw.choice([-1, 2, 0.5, 1 + 1e-3, 1 + 1e-6, n, 1 / n])
    slip.factor[slice(None) if draw.random() < 0.25 else host.reach(leaf)] = factor
    return slip


def transpose(host, leaf, draw):
    slip, where, shape = host.untouched(), host.reach(leaf), host.truth[leaf].shape
    alike = [axes for axes in itertools.combinations(range(len(shape)), 2) if len({shape[k] for k in axes}) == 1]
    slip.index[where] = np.swapaxes(slip.index[where].reshape(shape), *draw.choice(alike)).ravel()
    return slip


def swap(host, leaf, draw):
    slip, where = host.untouched(), host.reach(leaf)
    alike = [k for k, x in enumerate(host.truth) if k != leaf and x.shape == host.truth[leaf].shape]
    other = host.reach(draw.choice(alike))
    slip.index[where], slip.index[other] = np.arange(other.start, other.stop), np.arange(where.start, where.stop)
    return slip


def one_element(host, leaf, draw):
    """Zero, negated, or off by up to ten times itself and down to a billionth."""
    slip, where = host.untouched(), host.reach(leaf)
    place = draw.integers(where.start, where.stop)
    if draw.random() < 0.5:
        slip.factor[place] = draw.choice([0, -1])
    else:
        slip.term[place] = draw.choice([-1, 1]) * 10 ** draw.uniform(-8.5, 1) * host.flat[place]
    return slip


def one_slice(host, leaf, draw):
    slip, shape = host.untouched(), host.truth[leaf].shape
    axis = draw.integers(len(shape))
    factor = slip.factor[host.reach(leaf)].reshape(shape)
    np.moveaxis(factor, axis, 0)[draw.integers(shape[axis])] = draw.choice([0, 2, 1 + 1e-4])
    return slip


def decay(host, leaf, draw):
    """A small multiple of the param too much."""
    slip = host.untouched()
    slip.term[host.reach(leaf)] = 10 ** -draw.uniform(1, 6) * host.params[leaf].ravel()
    return slip


def one_sided(host, leaf, draw):
    slip = host.untouched()
    slip.factor[host.reach(leaf)] = np.where(host.params[leaf].ravel() > 0, 1, draw.choice([0, -1, 0.01]))
    return slip


def permute(host, leaf, draw):
    slip, where = host.untouched(), host.reach(leaf)
    slip.index[where] = draw.permutation(slip.index[where]) if draw.random() < 0.5 else np.roll(slip.index[where], 1)
    return slip


def clip(host, leaf, draw):
    slip = host.untouched()
    slip.most[host.reach(leaf)] = np.quantile(np.abs(host.truth[leaf]), draw.uniform(0.3, 0.95))
    return slip


def slips_for(host):
    """Which slips fit which leaves of a host."""
    for leaf, x in enumerate(host.truth):
        yield from ((scale, leaf), (one_element, leaf), (decay, leaf), (one_sided, leaf))
        if x.size > 1:
            yield from ((permute, leaf), (clip, leaf), *([(one_slice, leaf)] if x.ndim else []))
        if len(set(x.shape)) < x.ndim:
            yield transpose, leaf
        if any(y.shape == x.shape for y in host.truth[:leaf] + host.truth[leaf + 1 :]):
            yield swap, leaf


def changes(host, slip):
    """For each leaf: how many elements a slip changes at all, and how many clearly."""
    wide = Slip(*(x.astype(np.float64) if x.dtype == np.float32 else x for x in slip))
    for before, after in zip(host.truth, split(slipped(host.flat, wide, np), host.truth), strict=True):
        size, apart = np.abs(before), np.abs(after - before)
        yield int(np.sum(apart > 0)), int(np.sum((apart > SHOWS * size) & (apart > STANDS_OUT * np.max(size))))


def all_are_found(name, count, seed):
    """Plant each kind of slip in each leaf so many times, as far as it shows there; returns how many."""
    host, draw, planted = host_of(name), np.random.default_rng(seed), {}
    for kind, leaf in slips_for(host):
        tries = (kind(host, leaf, draw) for _ in range(4 * count))
        seen = (slip for slip in tries if any(clearly for _, clearly in changes(host, slip)))
        for i, slip in enumerate(itertools.islice(seen, count)):
            planted[f"{kind.__name__} in {host.paths[leaf]}, {i}"] = (kind, leaf, slip)
    reports = reports_on(host, {"none": host.untouched()} | {label: slip for label, (_, _, slip) in planted.items()})
    assert reports["none"].ok, f"{name}\n{reports['none']}"
    for label, (kind, leaf, slip) in planted.items():
        report, where = reports[label], host.reach(leaf)
        message = f"{name}: {label}\n{report}"
        assert not report.ok and not report.worst.ok, message
        for path, (any_at_all, clear) in zip(host.paths, changes(host, slip), strict=True):
            assert any_at_all or report.leaves[path].ok, f"{path} is right\n{message}"
            assert not clear or not report.leaves[path].ok, f"{path} is wrong\n{message}"
        if kind is one_element:
            (place,) = np.flatnonzero((slip.factor != 1) | (slip.term != 0))
            assert report.worst.index == np.unravel_index(place - where.start, host.truth[leaf].shape), message
    return len(planted)


def test_slips_planted_at_random_are_all_found():
    assert all_are_found("arctan2", 1, seed=0) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTS)
def test_hundreds_of_slips_planted_at_random_are_all_found(name):
    assert all_are_found(name, 2, seed=1) >= 12
