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
