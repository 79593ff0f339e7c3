"""bt_jax/facts.py: the lengths of a training."""

from types import SimpleNamespace

import pytest

from bt_jax.errors import UserError
from bt_jax.facts import Facts


class Images(SimpleNamespace):
    def __len__(self):
        return 35


def test_lengths():
    """The incomplete last batch of an epoch is dropped."""
    facts = Facts.of(Images(name="images", num_classes=3), batch_size=10, epochs=4)
    assert (facts.num_examples, facts.num_classes) == (35, 3)
    assert (facts.steps_per_epoch, facts.total_steps) == (3, 12)


def test_fewer_than_a_batch():
    with pytest.raises(UserError, match="images has 35 images, fewer than a batch of 36; set batch_size to at most 35"):
        Facts.of(Images(name="images", num_classes=3), batch_size=36, epochs=1)


def test_more_steps_than_can_be_counted():
    images = Images(name="images", num_classes=3)
    most = (2**31 - 1) // 3
    assert Facts.of(images, batch_size=10, epochs=most).total_steps < 2**31
    with pytest.raises(UserError, match=f"epochs is {most + 1}, which makes 2147483649 steps .* at most {most}."):
        Facts.of(images, batch_size=10, epochs=most + 1)
