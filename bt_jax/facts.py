"""The numbers that a run knows before its first step: images, classes and steps."""

import dataclasses
from typing import Any

from bt_jax.errors import UserError

_MOST_STEPS = 2**31 - 1  # a state counts its steps in an int32


@dataclasses.dataclass(frozen=True)
class Facts:
    """The lengths of a training.

    Attributes:
      num_examples: images in the training set.
      num_classes: of their labels; 0 without labels.
      batch_size: images per step, over all devices.
      epochs: passes over the set; the incomplete last batch of each is dropped.
    """

    num_examples: int
    num_classes: int
    batch_size: int
    epochs: int

    @classmethod
    def of(cls, source: Any, *, batch_size: int, epochs: int) -> "Facts":
        """The lengths of a training on `source`, anything with `len()`, `name` and `num_classes`.

        Raises:
          UserError: the source has fewer images than a batch, or there are more steps than an int32 can count.
        """
        if len(source) < batch_size:
            raise UserError(
                f"{source.name} has {len(source)} images, fewer than a batch of {batch_size}; "
                f"set batch_size to at most {len(source)}."
            )
        facts = cls(len(source), source.num_classes, batch_size, epochs)
        if facts.total_steps > _MOST_STEPS:
            raise UserError(
                f"epochs is {epochs}, which makes {facts.total_steps} steps of {source.name}, but a run has at most "
                f"{_MOST_STEPS}; set epochs to at most {_MOST_STEPS // facts.steps_per_epoch}."
            )
        return facts

    @property
    def steps_per_epoch(self) -> int:
        return self.num_examples // self.batch_size

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs
