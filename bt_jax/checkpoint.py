"""Checkpoints with Orbax: asynchronous, atomic, the newest few kept; a damaged one is stepped over.

WORKDIR/checkpoints/<step>/ holds a whole `TrainState`. A step folder appears under its name only when it is complete, so
a run killed while saving goes on from the step before. What cannot be read is moved to WORKDIR/damaged_checkpoints and
never deleted.
"""

import warnings
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from bt_jax import processes
from bt_jax.errors import UserError, first_line


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: epath.Path, keep: int = 3):
        """Args:
        workdir: the run's folder, local or `gs://`.
        keep: how many of the newest steps to keep.
        """
        self.folder = workdir / "checkpoints"
        self._damaged = workdir / "damaged_checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(_absolute(self.folder), options=options)

    def steps(self) -> list[int]:
        """The steps that are there, rising."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any) -> None:
        """Starts to save; returns when the arrays have been copied from the devices, so that they may be donated.

        Raises:
          UserError: the folder cannot be written; the checkpoints before are as they were.
        """
        if step in self.steps():
            return
        try:
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
        except OSError as error:
            raise self._cannot_write(step, error) from error

    def wait(self) -> None:
        """Returns when what was started is on disk."""
        try:
            self._manager.wait_until_finished()
        except OSError as error:
            raise self._cannot_write("the last step", error) from error

    def _cannot_write(self, step: Any, error: OSError) -> UserError:
        good = f"the last good one is step {self.steps()[-1]}" if self.steps() else "there is none yet"
        return UserError(f"the checkpoint of step {step} could not be written to {self.folder} ({error}); {good}.")

    def restore_newest(self, like: Any) -> tuple[Any, int | None, list[str]]:
        """The newest state that can be read.

        Args:
          like: a pytree of `jax.ShapeDtypeStruct` with shardings.

        Returns:
          (state, step, notices): None and None where there is no checkpoint; a sentence for each that was damaged.

        Raises:
          UserError: there are checkpoints, but none can be read, and they are left as they are; the processes of a run
            do not see the same ones.
        """
        damaged = {}
        steps = self.steps()
        processes.agree("checkpoints", {f"the list in {self.folder}": steps})
        for step in reversed(steps):
            try:
                restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
            except Exception as error:  # Orbax passes on whatever JSON, tensorstore or the file system had to say
                damaged[step] = first_line(error)
                processes.agree("readable checkpoints", {"the damaged one": step}, seconds=60)
                continue
            return restored.state, step, [self._set_aside(bad, why, step) for bad, why in damaged.items()]
        if damaged:
            newest, why = next(iter(damaged.items()))
            raise UserError(
                f"none of the checkpoints in {self.folder} can be read (step {newest}: {why}); nothing was changed: "
                "mend or remove them, or choose another --workdir."
            )
        return None, None, []

    def _set_aside(self, step: int, why: str, good: int) -> str:
        if jax.process_index() == 0:
            self._damaged.mkdir(parents=True, exist_ok=True)
            taken = {path.name for path in self._damaged.iterdir()}
            name = next(n for i in range(len(taken) + 1) if (n := f"{step}" + f".{i}" * (i > 0)) not in taken)
            (self.folder / str(step)).rename(self._damaged / name)
        ocp.multihost.sync_global_processes(f"set_aside_{step}")  # what is to be reloaded is now as it will be
        self._manager.reload()
        return f"checkpoint {step} cannot be read ({why}); it was moved to {self._damaged}, and step {good} is used instead"

    def close(self) -> None:
        """Waits for what was started, and lets go."""
        self._manager.close()


def _absolute(path: epath.Path) -> epath.Path:
    """Orbax reads from and writes to no other."""
    return path if "://" in str(path) else path.absolute()


def restore_encoder(workdir: epath.Path, like: Any) -> tuple[Any, int]:
    """The encoder's variables alone, from the newest checkpoint of a run that can be read; nothing is changed there.

    Warns of each newer one that cannot.

    Args:
      like: the variables' shapes and dtypes, {"params": …, "batch_stats": …}.

    Returns:
      (variables as arrays on the first local device, the step).

    Raises:
      UserError: the run has no checkpoint, or none that can be read.
    """
    folder = _absolute(workdir / "checkpoints")
    # A step's folder has its plain name only once it is complete.
    steps = sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit()), reverse=True) if folder.exists() else []
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint yet; let the run save one first.")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), like)
    part = {"params": {"encoder": like["params"]}, "model_state": {"batch_stats": {"encoder": like["batch_stats"]}}}
    problem = ""
    for step in steps:
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                arguments = ocp.args.PyTreeRestore(
                    item=part, restore_args=ocp.checkpoint_utils.construct_restore_args(part), partial_restore=True
                )
                found = reader.restore(folder / str(step) / "state", args=arguments)
        except Exception as error:  # whatever JSON, tensorstore or the file system had to say
            problem = problem or f"step {step}: {first_line(error)}"
            warnings.warn(f"checkpoint {step} in {folder} cannot be read; trying the one before", stacklevel=3)
            continue
        return {
            "params": found["params"]["encoder"],
            "batch_stats": found["model_state"]["batch_stats"]["encoder"],
        }, step
    raise UserError(f"none of the checkpoints in {folder} can be read ({problem}).")
