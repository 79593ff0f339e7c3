"""Checkpoints with Orbax: asynchronous, atomic; the newest, every so many epochs' and the best are kept.

WORKDIR/checkpoints/<step>/ holds

    state/   a whole `TrainState`
    run/     JSON: what else a run knows (its config, where it stands in the data, its metrics, its seconds), and a
             fingerprint of every array of the state
    score/   JSON: how good the state is, where that was measured

A step folder appears under its name only when it is complete, so a run killed while saving goes on from the step before.
File systems and Orbax tell when a file is cut off, but not when bits of a number have turned: hence the fingerprints. What
cannot be read, or is not what was saved, is moved to WORKDIR/damaged_checkpoints and never deleted.
"""

import errno
import json
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bt_jax.errors import UserError, first_line
from bt_jax.runtime import processes


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: epath.Path, keep: int = 3, *, keep_every_steps: int = 0, keep_best: int = 0):
        """Args:
        workdir: the run's folder, local or `gs://`.
        keep: how many of the newest steps to keep.
        keep_every_steps: those at multiples of this are kept for good; 0: none.
        keep_best: how many of those with the highest score are kept besides.
        """
        self.folder = workdir / "checkpoints"
        self._damaged = workdir / "damaged_checkpoints"
        self._scores = {
            step: score for step in _steps_in(self.folder) if (score := _score(self.folder, step)) is not None
        }
        policies: list[Any] = [ocp.checkpoint_managers.LatestN(keep)]
        if keep_every_steps:
            policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every_steps))
        if keep_best:
            policies.append(_Best(self._scores, keep_best))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            # The loop knows the epochs and asks when to save; whatever it asks for is saved.
            save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,  # what killed runs had half written
            enable_async_checkpointing=True,
        )
        try:
            self._manager = ocp.CheckpointManager(absolute(self.folder), options=options)
        except OSError as error:
            raise UserError(f"checkpoints cannot be kept in {self.folder} ({error.strerror or error}).") from None

    def steps(self) -> list[int]:
        """The steps that are there, rising; one that is being saved among them."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, *, run: Mapping[str, Any] | None = None, score: float | None = None) -> None:
        """Starts to save; returns when the arrays have been copied from the devices, so that they may be donated.

        Args:
          run: what else is to be known when the run goes on, as JSON can hold it.
          score: how good the state is; higher is better.

        Raises:
          UserError: the folder cannot be written; the checkpoints before are as they were.
        """
        if step in self.steps():
            return
        # A copy: it is written while the loop goes on.
        notes = json.loads(json.dumps({**(run or {}), "fingerprints": fingerprints(state)}, default=list))
        items = {"state": ocp.args.StandardSave(state), "run": ocp.args.JsonSave(notes)}
        if score is not None:
            items["score"] = ocp.args.JsonSave({"score": float(score)})
            self._scores[step] = float(score)
        try:
            self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:  # also that of the save before, which shows only now
            self._cannot_write(f"the checkpoint of step {step}, or the one before,", error)
            raise

    def wait(self) -> None:
        """Returns when what was started is on disk.

        Raises:
          UserError: as `save` does.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._cannot_write("the last checkpoint", error)
            raise

    def _cannot_write(self, what: str, error: Exception) -> None:
        """Raises the sentence for what storage had to say; any other error is a bug and stays what it is."""
        if _of_storage(error):
            good = _steps_in(self.folder)
            kept = f"the last good one is step {good[-1]}" if good else "there is none yet"
            raise UserError(f"{what} could not be written to {self.folder} ({_why(error)}); {kept}.") from error

    def restore_newest(self, like: Any) -> tuple[Any, int | None, list[str]]:
        """The newest state that can be read and is what was saved.

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
                expected = _notes(self.folder, step).get("fingerprints")
                restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
                if expected is not None:
                    _compare(expected, fingerprints(restored.state))
            except Exception as error:  # Orbax passes on whatever JSON, tensorstore or the file system had to say
                damaged[step] = _why(error)
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

    def run_of(self, step: int) -> dict[str, Any]:
        """What `save` was given as `run`; {} for checkpoints that have none."""
        return {name: value for name, value in _notes(self.folder, step).items() if name != "fingerprints"}

    def _set_aside(self, step: int, why: str, good: int) -> str:
        if jax.process_index() == 0:
            self._damaged.mkdir(parents=True, exist_ok=True)
            taken = {path.name for path in self._damaged.iterdir()}
            name = next(n for i in range(len(taken) + 1) if (n := f"{step}" + f".{i}" * (i > 0)) not in taken)
            (self.folder / str(step)).rename(self._damaged / name)
        ocp.multihost.sync_global_processes(f"set_aside_{step}")  # what is to be reloaded is now as it will be
        self._scores.pop(step, None)
        self._manager.reload()
        return f"checkpoint {step} cannot be read ({why}); it was moved to {self._damaged}, and step {good} is used instead"

    def close(self) -> None:
        """Waits for what was started, and lets go.

        Raises:
          UserError: as `save` does.
        """
        try:
            self._manager.close()
        except Exception as error:
            self._cannot_write("the last checkpoint", error)
            raise


class _Best:
    """Keeps the checkpoints with the highest scores; of equal ones the later. Orbax's own reads scores from its metrics
    file, and where that is damaged not even the list of steps can be had.
    """

    def __init__(self, scores: Mapping[int, float], count: int):
        self._scores, self._count = scores, count

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        scored = sorted((self._scores[c.step], c.step) for c in checkpoints if c.step in self._scores)
        best = {step for _, step in scored[-self._count :]}
        return [checkpoint.step in best for checkpoint in checkpoints]


def absolute(path: epath.Path) -> epath.Path:
    """Orbax reads from and writes to no other."""
    return path if "://" in str(path) else path.absolute()


def fingerprints(state: Any) -> dict[str, int]:
    """Of every array, by its path: a number that changes with any bit of it, the same however it is sharded.

    All processes must call it together. Computed where the arrays are.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sums = jax.device_get(_fingerprints([leaf for _, leaf in leaves]))
    return {_name(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


@jax.jit
def _fingerprints(arrays: list[jax.Array]) -> jax.Array:
    """One program for all: of more than 32 at once, several CPU devices of a process wait for each other for ever."""
    return jnp.stack([_fingerprint(x) for x in arrays])


def _fingerprint(x: jax.Array) -> jax.Array:
    """Σ word × odd number of its place, modulo 2³²: one turned bit adds ±2ᵏ × an odd number, which is never 0."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)  # 8 bytes: one axis more, of two words
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        place = place * np.uint32(2654435761) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def _compare(expected: Mapping[str, int], found: Mapping[str, int]) -> None:
    for name, value in found.items():
        if name in expected and expected[name] != value:
            raise ValueError(f"{name} is not what was saved: its fingerprint is {value} and not {expected[name]}")


def _name(path: tuple) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _notes(folder: epath.Path, step: int) -> dict[str, Any]:
    """The JSON of `run`; {} where there is none. Read by itself, without the barriers of a restore."""
    item = folder / str(step) / "run"
    return json.loads((item / "metadata").read_text()) if item.exists() else {}


def _score(folder: epath.Path, step: int) -> float | None:
    try:
        return float(json.loads((folder / str(step) / "score" / "metadata").read_text())["score"])
    except (OSError, ValueError, KeyError, TypeError):  # not measured, or damaged: then it is not among the best
        return None


def _steps_in(folder: epath.Path) -> list[int]:
    """The steps on disk, rising: a step's folder has its plain name only once it is complete."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM}
# How file systems, tensorstore and object stores say that they could not.
_STORAGE_SIGNS = (
    "No space left", "RESOURCE_EXHAUSTED", "Disk quota", "Read-only file system", "Permission denied", "PERMISSION_DENIED",
    "No such file or directory", "NOT_FOUND", "Input/output error", "Stale file handle", "File too large", "UNAVAILABLE",
)  # fmt: skip


def storage_failure(workdir: epath.Path, error: OSError) -> str:
    """The sentence for a workdir that is full, may not be written any more or is gone; "" for errors about other files."""
    elsewhere = error.filename is not None and not str(error.filename).startswith(str(workdir))
    gone = not workdir.exists()
    if elsewhere or not (gone or error.errno in _ERRNOS):
        return ""
    good = steps_on_disk(workdir)
    kept = f"the last good checkpoint is step {good[-1]}" if good else "there is no checkpoint yet"
    why = "it is not there any more" if gone else error.strerror
    return f"the workdir {workdir} can no longer be written ({why}); {kept}."


def _of_storage(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) or any(sign in str(error) for sign in _STORAGE_SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _why(error: BaseException) -> str:
    """What is wrong, in a few words: the first cause, without the file's specification and the place in tensorstore."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    return next(
        (sign for sign in _STORAGE_SIGNS if sign in text and sign[1].islower()), first_line(error).partition(" [")[0]
    )


def steps_on_disk(workdir: epath.Path) -> list[int]:
    """The steps whose checkpoints are complete, rising."""
    return _steps_in(workdir / "checkpoints")


def restore_encoder(workdir: epath.Path, like: Any, step: int | None = None) -> tuple[Any, int]:
    """The encoder's variables, from the newest checkpoint of a run that can be read; nothing is changed there.

    Warns of each newer one that cannot.

    Args:
      like: shapes and dtypes by module, {"encoder": {"params": …, "batch_stats": …}, …}: the modules that are wanted.
      step: that checkpoint and no other.

    Returns:
      (variables as `like`, as arrays on the first local device; the step).

    Raises:
      UserError: the run has no checkpoint, or none that can be read.
    """
    folder = workdir / "checkpoints"
    steps = _steps_in(folder)[::-1] if step is None else [step]
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint yet; let the run save one first.")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), like)
    part = {
        "params": {name: module["params"] for name, module in like.items()},
        "model_state": {"batch_stats": {name: module["batch_stats"] for name, module in like.items()}},
    }
    problem = ""
    for number in steps:
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                arguments = ocp.args.PyTreeRestore(
                    item=part, restore_args=ocp.checkpoint_utils.construct_restore_args(part), partial_restore=True
                )
                found = reader.restore(absolute(folder) / str(number) / "state", args=arguments)
            _compare(_notes(folder, number).get("fingerprints", {}), fingerprints(found))
        except Exception as error:  # whatever JSON, tensorstore or the file system had to say
            problem = problem or f"step {number}: {_why(error)}"
            if step is None:
                warnings.warn(f"checkpoint {number} in {folder} cannot be read; trying the one before", stacklevel=5)
            continue
        return {
            name: {"params": found["params"][name], "batch_stats": found["model_state"]["batch_stats"][name]}
            for name in like
        }, number
    raise UserError(f"none of the checkpoints in {folder} can be read ({problem}).")


def config_text(workdir: epath.Path, step: int | None = None) -> str | None:
    """The config that a run's checkpoint holds, as JSON; None where there is none."""
    for number in _steps_in(workdir / "checkpoints")[::-1] if step is None else [step]:
        try:
            return json.dumps(_notes(workdir / "checkpoints", number)["config"])
        except (OSError, ValueError, KeyError):
            continue
    return None
