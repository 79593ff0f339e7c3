"""Preemption: on a signal a run saves at the next step and exits with a status that means "run me again".

Clusters, clouds and TPU hosts send SIGTERM before they take a machine away. Slurm sends SIGUSR1 some time before the time
limit if the job asks for it (`#SBATCH --signal=USR1@120`). A terminal sends SIGINT on Ctrl-C and SIGHUP when it is closed. A
second Ctrl-C has its usual effect, which ends the run at once.

A single process catches the signal with a Python handler. Several processes must stop at the same step: JAX's coordination
service, which has its own handler for SIGTERM, informs the others and picks the step; the other signals are forwarded to it
as SIGTERM. That service does not run with a single process.
"""

import itertools
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from bt_jax import console
from bt_jax.errors import Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)  # stay ignored if they were: nohup, `&` in a script
_asks = itertools.count(1)  # of this process, in all its trainings
_WORDS = {"SIGINT": "Ctrl-C", "SIGHUP": "SIGHUP, as when the terminal is closed"}


class Preemption:
    """Whether this run was asked to stop. A context manager: outside it signals have their usual effect.

    Attributes:
      signal: the name of the signal that this process received, "" until then.
    """

    def __init__(self):
        self.signal = ""
        self._several = jax.process_count() > 1
        self._before: dict[int, Any] = {}
        self._interruptible = self._interrupted = False

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():  # Python handles signals in no other
            for number in _SIGNALS:
                # With several processes JAX handles SIGTERM, and a handler here would replace JAX's.
                of_jax = self._several and number == signal.SIGTERM
                ignored = number in _OF_TERMINALS and signal.getsignal(number) == signal.SIG_IGN
                if not of_jax and not ignored:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                self._end_at_once(frame)
            self._interrupted = True
            console.warn_from_handler("Ctrl-C: stopping after saving; a second Ctrl-C ends the run at once")
        first, self.signal = not self.signal, self.signal or signal.Signals(number).name
        if self._several:
            if first:
                os.kill(os.getpid(), signal.SIGTERM)
        elif self._interruptible:
            raise _Interrupted

    def _end_at_once(self, frame: FrameType | None) -> None:
        before = self._before[signal.SIGINT]
        if callable(before):
            before(signal.SIGINT, frame)
        else:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)

    def reached(self) -> bool:
        """Whether to save and exit now; all processes must ask at the same steps, and all get the same answer.

        The service stops the processes at one more than the largest of the numbers that each of them has passed last, 0 before
        the first, and at no other. So they pass how often they have asked: a training's steps may begin anywhere, rise by
        several, and begin again in the next training. Nothing else may pass numbers, which Orbax would do at each save
        (bt_jax/engine/checkpoint.py, `_Manager`).
        """
        if self._several:
            return multihost_utils.reached_preemption_sync_point(next(_asks))
        return bool(self.signal)

    def finished(self, work: Callable[[], None]) -> bool:
        """Runs work that may take long and can be repeated; with a single process, a signal interrupts it.

        Several processes finish it first, as the others would wait for this one in its collectives.

        Returns:
          Whether the work was finished.
        """
        if self._several or not self._before:
            work()
            return True
        outer = self._interruptible
        try:
            self._interruptible = True
            if self.signal:
                return False
            work()
            return True
        except _Interrupted:
            return False
        finally:
            self._interruptible = outer

    def leave(self, sentence: str, *, then: str = "the same command resumes there") -> None:
        """Prints why the run stops here, and ends it with status 75.

        Args:
          sentence: what was saved; the cause is put before it.
          then: what the same command will do.

        Raises:
          Preempted: always.
        """
        if jax.process_index() == 0:
            cause = _WORDS.get(self.signal, self.signal or "SIGTERM")
            console.warn(f"stopped by {cause}: {sentence}; {then}")
        raise Preempted

    def requeue(self) -> None:
        """After SIGUSR1, asks Slurm to requeue the job, and prints whether it did.

        Not after SIGTERM: `scancel` sends it too, for a job that is no longer wanted, and when Slurm itself preempts a job
        it also requeues it.
        """
        if self.signal == "SIGUSR1" and jax.process_index() == 0 and (job := _slurm_job()):
            console.warn(f"job {job} {_requeued(job)}")


class _Interrupted(BaseException):
    """Raised by the signal handler in interruptible work; not an Exception, because libraries catch those."""


def _slurm_job() -> str:
    """The id of this process's Slurm job, "" outside Slurm."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID", "")


def _requeued(job: str) -> str:
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"was not requeued ({error}); submit it again"
    if done.returncode:
        return f"was not requeued ({done.stderr.strip() or done.returncode}); submit it again"
    return "was requeued"
