"""The order of minibatches: a permutation, each as likely as the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import SLOW

from minijaxnet import batches

shuffled = jax.jit(batches.shuffled, static_argnums=1)


@pytest.mark.parametrize("points", [1, 65, SLOW(70_000)])
def test_an_order_holds_each_point_once(points):
    order = np.asarray(shuffled(jax.random.key(points), points))
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(points))


@pytest.mark.slow
def test_each_place_is_as_likely_where_an_order_takes_several_sorts():
    points, keys = 3_000, jax.random.split(jax.random.key(2), 512)
    orders = np.asarray(jax.lax.map(lambda key: batches.shuffled(key, points), keys))
    tenth = points // 10
    counts = [np.bincount(orders[:, first : first + tenth].ravel() // tenth) for first in range(0, points, tenth)]
    expected = len(keys) * tenth / 10
    assert np.sum((np.array(counts) - expected) ** 2 / expected) < 126  # 81 degrees of freedom: one time in 1,000


def test_of_two_tied_points_each_comes_first_as_often(monkeypatch):
    points = 8
    coins = np.arange(points, dtype=np.uint32)
    words = np.concatenate([np.zeros((points, points), np.uint32), coins[:, None]], axis=1)

    def order_of(words):
        monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: words[None])
        return batches.shuffled(None, points)

    place = np.argsort(jax.jit(jax.vmap(order_of))(words), axis=1)
    first = np.sum(place[:, :, None] < place[:, None, :], axis=0)
    np.testing.assert_array_equal(first[~np.eye(8, dtype=bool)], points / 2)


def test_ties_of_one_sort_keep_the_order_of_the_sort_before(monkeypatch):
    """Several sorts: the last decides, and where it ties the one before it does."""
    points = 1 << 17
    draw = np.random.default_rng(0).integers(0, 2**32, (4, points + 1), dtype=np.uint32)
    taken = []

    def bits(key, shape, dtype):
        taken.append(shape)
        return jnp.asarray(draw[: shape[0]])

    monkeypatch.setattr(jax.random, "bits", bits)
    order = np.asarray(jax.jit(lambda: batches.shuffled(None, points))())
    rounds = taken[0][0]
    assert rounds == 3  # words of 32 bits have 15 left beside a place of 17: 2 * 17 / 15, rounded up
    high = draw[:rounds, :-1] >> np.uint32(17)
    rows = high[0][order]
    expected = np.arange(points)
    for word, coin in zip(high, draw[:rounds, -1] & np.uint32(points - 1), strict=True):
        place = np.arange(points) ^ int(coin)
        expected = expected[place[np.lexsort((np.arange(points), word[place]))]]
    assert len(np.unique(rows)) > 1
    np.testing.assert_array_equal(order, expected)
