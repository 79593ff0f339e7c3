"""A session: a task's lock on its workdir and its handling of signals, around every training."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax
from etils import epath
from ml_collections import ConfigDict

from bt_jax.engine.storage import storage_failure
from bt_jax.errors import Preempted, UserError
from bt_jax.runtime.files import errors_of_files
from bt_jax.runtime.preemption import Preemption
from bt_jax.runtime.workdir import Holder, check_config, held, write_config


@dataclasses.dataclass(frozen=True)
class Session:
    """A workdir that is locked for this task while the session lasts.

    Attributes:
      holder: the lock on the workdir, on the first process.
      config: the task's, for `claim`; None if the workdir has been claimed.
    """

    workdir: epath.Path
    preemption: Preemption
    holder: Holder | None = None
    config: ConfigDict | None = None

    @property
    def is_first(self) -> bool:
        return jax.process_index() == 0

    def do(self, work: Callable[[], None], name: str) -> None:
        """Does work that cannot be saved halfway; a signal ends it and the task.

        Args:
          name: of the work, for the message, such as "the kNN search".

        Raises:
          Preempted: it was interrupted.
        """
        self.claim()
        if not self.preemption.finished(work):
            self.preemption.leave(f"{name} was not finished", then="the same command starts it again")

    def claim(self) -> None:
        """Writes the config into the workdir; call it after all checks.

        Raises:
          UserError: the workdir cannot be written.
        """
        if self.is_first and self.config is not None:
            write_config(self.config, self.workdir)

    def check(self) -> None:
        """Checks that the workdir is still locked by this task.

        Raises:
          UserError: it is gone, or another task has taken it.
        """
        if self.holder is not None:
            self.holder.check()


@contextlib.contextmanager
def session(config: ConfigDict, workdir: epath.Path) -> Iterator[Session]:
    """Locks a workdir for the task of `config`, and handles signals; nothing should be written before.

    `Session.claim` writes the config there after all checks.

    Raises:
      UserError: the workdir holds a run with another config, another task holds it, or it can no longer be written.
      Preempted: the process was asked to stop, and its work is saved.
    """
    preemption = Preemption()
    try:
        with contextlib.ExitStack() as stack:
            holder = None
            if jax.process_index() == 0:
                holder = stack.enter_context(held(workdir))
                check_config(config, workdir)
            stack.enter_context(preemption)
            yield Session(workdir, preemption, holder, config)
    except errors_of_files() as error:
        if sentence := storage_failure(workdir, error):
            raise UserError(sentence) from error
        raise
    except Preempted:
        preemption.requeue()  # last, because Slurm then ends the job at once
        raise
