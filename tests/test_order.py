"""bt_jax/data/order.py: an epoch is a permutation, and every batch a pure function of (seed, step)."""

import itertools

import numpy as np
import pytest

from bt_jax.data.order import Order, draw_seed, evenly, permutation, single_seed


@pytest.mark.parametrize("n", [1, 2, 17, 5000])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (3, 7), (2**31 - 1, 10**6)])
def test_is_a_permutation(seed, epoch, n):
    order = permutation(seed, epoch, n)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(order, permutation(seed, epoch, n))


def test_stays_what_it_is():
    """A run that is resumed under another numpy must continue in the order that it began with."""
    assert permutation(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(1, 2, 1000)[:8].tolist() == [349, 547, 71, 34, 518, 395, 724, 728]


def test_depends_on_seed_and_epoch_each():
    """(0, 1) and (1, 0) are different runs: a sum of the two would confuse them."""
    orders = [tuple(permutation(seed, epoch, 50)) for seed, epoch in itertools.product(range(4), range(4))]
    assert len(set(orders)) == 16


def test_every_example_is_as_likely_everywhere():
    """Over 3000 epochs each of 6 examples is 500 times at each place, within five standard deviations."""
    counts = np.zeros((6, 6), int)
    for epoch in range(3000):
        counts[np.arange(6), permutation(5, epoch, 6)] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 5 / 6)


def test_two_threads_ask_for_two_epochs():
    """Each gets its own epoch's batch, though the other's order replaces the one that is kept."""

    class Interrupted(Order):
        """Another thread keeps the other epoch's order whenever one has been kept."""

        @property
        def _cached(self):
            return self._kept

        @_cached.setter
        def _cached(self, value):
            self._kept = value and (1 - value[0], permutation(0, 1 - value[0], 20))

    order = Interrupted(0, 20, 5)
    for step in (1, 2, 6, 1):
        np.testing.assert_array_equal(order.batch(step)[1], Order(0, 20, 5).batch(step)[1])


def test_batches_of_an_epoch_are_disjoint():
    """Each example at most once per epoch; what does not fill a batch is dropped, other examples each time."""
    order = Order(seed=1, n=23, batch_size=5)
    assert order.steps_per_epoch == 4
    dropped = []
    for epoch in range(3):
        batches = [order.batch(step) for step in range(4 * epoch, 4 * epoch + 4)]
        assert [e for e, _ in batches] == [epoch] * 4
        seen = np.concatenate([examples for _, examples in batches])
        assert len(np.unique(seen)) == 20
        np.testing.assert_array_equal(seen, permutation(1, epoch, 23)[:20])
        dropped.append(set(range(23)) - set(seen.tolist()))
    assert dropped[0] != dropped[1]


def test_a_step_does_not_depend_on_those_before():
    order = Order(seed=4, n=40, batch_size=7)
    in_a_row = [order.batch(step) for step in range(25)]
    for step in (24, 3, 11, 10, 0):
        epoch, examples = Order(seed=4, n=40, batch_size=7).batch(step)
        assert epoch == in_a_row[step][0] == order.batch(step)[0]
        np.testing.assert_array_equal(examples, in_a_row[step][1])
        np.testing.assert_array_equal(examples, order.batch(step)[1])


def test_draw_seeds_are_all_different():
    """Also where a sum or a product of the parts would collide, and at the largest values allowed."""
    big = 2**31 - 1
    examples = np.array([0, 1, 2, 3, 2**40, 2**47 - 1])
    seeds = []
    for seed, epoch, draw in itertools.product((0, 1, 2, big), (0, 1, 2, big), (0, 1, 2, 3, 511, 512, 2**15 - 1)):
        first, second = draw_seed(seed, np.int64(epoch), examples, draw)
        assert second.dtype == np.int64
        seeds += [(int(first), number) for number in second.tolist()]
    assert len(set(seeds)) == len(seeds) == 4 * 4 * 7 * 6
    assert min(map(min, seeds)) >= 0


def test_draw_seeds_stay_what_they_are():
    """A resumed run must draw as it began; the first two draws keep the numbers from when there were no others."""
    examples = np.array([5, 9])
    first, second = draw_seed(7, np.int64(3), examples, 0)
    assert first == 7 + 3 * 2**32 and second.tolist() == [10, 18]
    assert draw_seed(7, np.int64(3), examples, 1)[1].tolist() == [11, 19]
    assert draw_seed(7, np.int64(3), examples, 2)[1].tolist() == [10 + 2**48, 18 + 2**48]
    assert draw_seed(7, np.int64(3), examples, 513)[1].tolist() == [11 + 256 * 2**48, 19 + 256 * 2**48]


def test_draw_seeds_are_the_same_in_tensorflow():
    """The pipelines compute them there."""
    import tensorflow as tf

    for draw in (0, 1, 515):
        found = draw_seed(7, tf.constant(3, tf.int64), tf.constant(2**40, tf.int64), draw)
        assert [int(number) for number in found] == [int(n) for n in draw_seed(7, np.int64(3), np.int64(2**40), draw)]


def test_single_seed_depends_on_both():
    seeds = [single_seed(seed, epoch) for seed, epoch in itertools.product(range(20), range(20))]
    assert len(set(seeds)) == 400 and min(seeds) >= 0 and max(seeds) < 2**31


@pytest.mark.parametrize(("n", "limit"), [(10, 3), (10, 10), (10, 99), (10, None), (1281167, 50000), (3, 1)])
def test_evenly(n, limit):
    """Increasing, without repetition, as many as asked for, and no gap more than one larger than another."""
    chosen = evenly(n, limit)
    assert len(chosen) == min(n, limit or n) and chosen[0] == 0 and chosen[-1] < n
    gaps = np.diff(np.append(chosen, n))
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("batch_size", [0, 11])
def test_less_than_a_batch(batch_size):
    with pytest.raises(ValueError, match="from 1 to 10, the number of examples"):
        Order(0, 10, batch_size)
