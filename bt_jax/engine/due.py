"""What is due after a step, as a pure function of the step."""

import dataclasses

from bt_jax.facts import Facts


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often a training saves and evaluates ("looks").

    Attributes:
      save_epochs: epochs between checkpoints.
      save_steps: steps between additional checkpoints; 0 for none.
      look_epochs: epochs between looks; 0 for none.
      look_first: whether there is a look before the first step.
    """

    save_epochs: int = 1
    save_steps: int = 0
    look_epochs: int = 0
    look_first: bool = False


@dataclasses.dataclass(frozen=True)
class Due:
    """After a step: whether an epoch has ended, and what to do."""

    epoch_ends: bool
    save: bool
    look: bool
    last: bool


def due(before: int, step: int, facts: Facts, cadence: Cadence) -> Due:
    """What is due after `step` updates.

    Args:
      before: the number of updates at the previous call. A dispatch may make several updates; they never cross the end of
        an epoch, but may pass a multiple of `save_steps`.
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
