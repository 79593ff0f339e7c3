"""What is due after a step: a pure function of the step, so that a table tests it."""

import dataclasses

from bt_jax.facts import Facts


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often a training saves, and looks at what it has learnt.

    Attributes:
      save_epochs: a checkpoint at the end of every so many epochs.
      save_steps: one every so many steps besides; 0: none.
      look_epochs: a look at the end of every so many epochs; 0: never.
      look_first: whether the first look is taken before the first step.
    """

    save_epochs: int = 1
    save_steps: int = 0
    look_epochs: int = 0
    look_first: bool = False


@dataclasses.dataclass(frozen=True)
class Due:
    """After a step: whether an epoch ends, and what is to be done."""

    epoch_ends: bool
    save: bool
    look: bool
    last: bool


def due(before: int, step: int, facts: Facts, cadence: Cadence) -> Due:
    """What is due when `step` updates have been made.

    Args:
      before: the updates that had been made when this was asked last. One dispatch may make several, which never cross the
        end of an epoch, but may pass over a multiple of `save_steps`.
    """
    last, epoch_ends = step == facts.total_steps, step % facts.steps_per_epoch == 0
    epoch = step // facts.steps_per_epoch
    passed = cadence.save_steps > 0 and step // cadence.save_steps > before // cadence.save_steps
    return Due(
        epoch_ends=epoch_ends,
        save=last or passed or (epoch_ends and epoch % cadence.save_epochs == 0),
        look=cadence.look_epochs > 0 and (last or (epoch_ends and epoch % cadence.look_epochs == 0)),
        last=last,
    )
