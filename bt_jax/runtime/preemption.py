"""Told to leave: a run saves at the next step and ends with a status that says "run me again".

SIGTERM is what clusters, clouds and TPU hosts send before they take a machine away; SIGUSR1 is what Slurm sends some time
before the limit where the job asks for it (`#SBATCH --signal=USR1@120`).

One process notes the signal by a handler of Python's. Several leave at the same step: JAX's coordination service, which
has a handler for SIGTERM of its own, tells the others and finds the step; SIGUSR1 is passed on to it as SIGTERM. On one
process that service does not run.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

from bt_jax.errors import Preempted


class Preemption:
    """Whether this run was told to leave. A context: outside of it signals do what they did before.

    Attributes:
      signal: the name of the signal that this process got, "" as long as there is none.
    """

    def __init__(self):
        self.signal = ""
        self._several = jax.process_count() > 1
        self._before: dict[int, object] = {}
        self._interruptible = False

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python cannot handle signals
            # Of several processes JAX handles SIGTERM: a handler here would take it away.
            for number in (signal.SIGUSR1,) if self._several else (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's
        self._before.clear()

    def _note(self, number: int, _) -> None:
        first, self.signal = not self.signal, self.signal or signal.Signals(number).name
        if self._several:
            if first:
                os.kill(os.getpid(), signal.SIGTERM)
        elif self._interruptible:
            raise _Interrupted

    def reached(self, step: int) -> bool:
        """Whether to save and leave now; all processes ask at every step, and hear the same at the same step.

        Args:
          step: how many updates have been made.
        """
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(self.signal)

    def finished(self, work: Callable[[], None]) -> bool:
        """Does what may take long and can be done again; a signal breaks it off, on one process.

        On several it is finished first: the others would wait in its collectives for this one.

        Returns:
          Whether it was done to its end.
        """
        if self._several or not self._before:
            work()
            return True
        try:
            self._interruptible = True
            if self.signal:
                return False
            work()
            return True
        except _Interrupted:
            return False
        finally:
            self._interruptible = False

    def leave(self, sentence: str) -> None:
        """Says why the run ends here, and ends it with status 75.

        Args:
          sentence: what was saved, without the cause.

        Raises:
          Preempted: always.
        """
        if jax.process_index() == 0:
            cause = f"told to leave by {self.signal or 'SIGTERM'}"
            print(f"{cause}: {sentence}; the same command goes on from there", file=sys.stderr, flush=True)
        raise Preempted

    def requeue(self) -> None:
        """Asks Slurm to put the job into its queue again, and says so, or why not.

        After SIGUSR1 alone: SIGTERM is `scancel`'s as well, whose user wants no more of the job, and a Slurm that preempts
        requeues by itself.
        """
        if self.signal == "SIGUSR1" and jax.process_index() == 0 and (job := _slurm_job()):
            print(f"job {job} {_requeued(job)}", file=sys.stderr, flush=True)


class _Interrupted(BaseException):
    """Raised by the handler in what may be broken off; not an Exception, which libraries catch."""


def _slurm_job() -> str:
    """The job that this process is of, "" outside of Slurm."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID", "")


def _requeued(job: str) -> str:
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"was not put into Slurm's queue again ({error}); submit it again"
    if done.returncode:
        return f"was not put into Slurm's queue again ({done.stderr.strip() or done.returncode}); submit it again"
    return "was put into Slurm's queue again"
