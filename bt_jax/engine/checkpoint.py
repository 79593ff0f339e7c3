"""Checkpoints with Orbax: asynchronous and atomic; keeps the newest, one every so many epochs, and the best.

WORKDIR/checkpoints/<step>/ holds

    state/   a whole `TrainState`
    run/     JSON: the rest of a run's state (its config, position in the data, metrics, seconds), a fingerprint of every
             array in state/, and the sha256 of all that; checkpoints from before 44d13bb do not have the sha256
    score/   JSON: how good the state is, if that was measured, with a sha256 too

A step folder gets its name only when it is complete, so a run killed while saving resumes from the previous step. File
systems and Orbax notice files that are cut off, but not flipped bits: hence the fingerprints. Checkpoints that cannot be
read, or differ from what was saved, are moved to WORKDIR/damaged_checkpoints and never deleted.
"""

import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bt_jax.engine.fingerprints import compare, fingerprints, fingerprints_on_host
from bt_jax.engine.state import shape_differences
from bt_jax.engine.storage import cause_of, move_step, of_access, of_storage, quiet_orbax, steps_in
from bt_jax.errors import UserError, some
from bt_jax.runtime import processes
from bt_jax.runtime.files import errors_of_files, read_object, sealed, write_whole
from bt_jax.runtime.paths import absolute


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: epath.Path, keep: int = 3, *, keep_every_steps: int = 0, keep_best: int = 0):
        """Args:
        workdir: the run's folder, local or `gs://`.
        keep: how many of the newest steps to keep.
        keep_every_steps: checkpoints at multiples of this are kept forever; 0: none.
        keep_best: how many of the checkpoints with the highest scores to keep as well.
        """
        quiet_orbax()
        self.folder = workdir / "checkpoints"
        self._damaged = workdir / "damaged_checkpoints"
        self._scores = {
            step: score for step in steps_in(self.folder) if (score := _score(self.folder, step)) is not None
        }
        policies: list[Any] = [ocp.checkpoint_managers.LatestN(keep)]
        if keep_every_steps:
            policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every_steps))
        if keep_best:
            policies.append(_Best(self._scores, keep_best))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            # The loop decides when to save; every request is saved.
            save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,  # left incomplete by killed runs
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._read_back_first),
        )
        self._saved = False
        self._unreliable: UserError | None = None  # why the first could not be read back
        self._first: tuple[int, Mapping[str, int], Any] | None = None  # to be read back: step, fingerprints, structure
        self._read: set[int] = set()  # steps that were read back
        try:
            self._manager = _Manager(absolute(self.folder), options=options)
        except OSError as error:
            raise UserError(f"checkpoints cannot be kept in {self.folder} ({error.strerror or error}).") from None

    def steps(self) -> list[int]:
        """The steps with a checkpoint, in increasing order, including one that is being saved."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, *, run: Mapping[str, Any] | None = None, score: float | None = None) -> None:
        """Starts saving; returns once the arrays are copied from the devices, so that they may be donated.

        Args:
          run: what else the run needs to resume, JSON-serialisable.
          score: how good the state is; higher is better.

        Raises:
          UserError: the folder cannot be written; earlier checkpoints are unchanged.
        """
        if step in self.steps():
            return
        # A copy, as it is written while training continues.
        notes = json.loads(json.dumps({**(run or {}), "fingerprints": fingerprints(state)}, default=list))
        items = {"state": ocp.args.StandardSave(state), "run": ocp.args.JsonSave(_sealed(notes))}
        if score is not None:
            items["score"] = ocp.args.JsonSave(_sealed({"score": float(score)}))
            self._scores[step] = float(score)
        if not self._saved:
            self._saved, self._first = True, (step, notes["fingerprints"], jax.tree.map(lambda _: 0, state))
        try:
            self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:  # possibly from the previous save, which shows only now
            self._cannot_write(f"the checkpoint of step {step}, or the one before,", error)
            raise

    def add_score(self, step: int, score: float) -> None:
        """Notes how good the state of a saved step is, if that was measured only afterwards; higher is better.

        Raises:
          UserError: the folder cannot be written.
        """
        self._scores[step] = float(score)
        if jax.process_index() == 0:
            path = self.folder / str(step) / "score" / "metadata"  # as `ocp.args.JsonSave` writes it
            try:
                path.parent.mkdir(exist_ok=True)
                write_whole(path, json.dumps(_sealed({"score": float(score)})))
            except errors_of_files() as error:
                self._cannot_write(f"the score of step {step}", error)
                raise

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          UserError: as `save`.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._cannot_write("the last checkpoint", error)
            raise

    def _read_back_first(self) -> None:
        """Reads the first checkpoint of this start back, while training continues.

        Orbax calls this in a thread of the first process, after everything is written and before the checkpoint gets its
        name, which one that fails here never gets.
        """
        if self._first is None:
            return
        (step, expected, like), self._first = self._first, None
        names = str(step), f"{step}.orbax-checkpoint-tmp"
        written = next(p for p in self.folder.iterdir() if p.name == names[0] or p.name.startswith(names[1]))
        try:
            self._compare_with_disk(step, written, expected, like)
        except UserError as error:
            self._unreliable = error  # for `check`
            raise

    def check(self) -> None:
        """Checks, in no time, that the first checkpoint of this start was not found unreadable; for every step.

        Only the first process knows. Orbax itself tells at the next save, which may be hours away.

        Raises:
          UserError: it cannot be read back, or differs from what was saved.
        """
        if self._unreliable is not None:
            raise self._unreliable

    def read_back(self, step: int, like: Any) -> None:
        """Reads a complete checkpoint back on the host of the first process, and compares it with what was saved.

        Args:
          like: a pytree with the state's structure.

        Raises:
          UserError: it cannot be read, or differs from what was saved.
        """
        if jax.process_index() == 0 and step not in self._read:
            expected = _notes(self.folder, step).get("fingerprints", {})
            self._compare_with_disk(step, self.folder / str(step), expected, jax.tree.map(lambda _: 0, like))

    def _compare_with_disk(self, step: int, folder: epath.Path, expected: Mapping[str, int], like: Any) -> None:
        try:
            arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
            found = ocp.PyTreeCheckpointHandler().restore(
                absolute(folder) / "state", args=ocp.args.PyTreeRestore(item=like, restore_args=arrays)
            )
            compare(expected, fingerprints_on_host(found))
        except Exception as error:  # from JSON, tensorstore or the file system
            raise UserError(
                f"the checkpoint of step {step} was written to {self.folder}, but cannot be read back ({cause_of(error)}), so "
                "that folder is not reliable; choose another --workdir."
            ) from error
        self._read.add(step)

    def _cannot_write(self, what: str, error: BaseException) -> None:
        """Raises a UserError for an error of the storage; any other is a bug, which the caller raises."""
        if of_storage(error) and not isinstance(error, UserError):
            good = steps_in(self.folder)
            kept = f"the last good one is step {good[-1]}" if good else "no checkpoint has been saved yet"
            raise UserError(f"{what} could not be written to {self.folder} ({cause_of(error)}); {kept}.") from error

    def restore_newest(self, like: Any) -> tuple[Any, int | None, list[str]]:
        """The newest state that can be read and matches its fingerprints.

        Args:
          like: a pytree of `jax.ShapeDtypeStruct` with shardings.

        Returns:
          (state, step, notices): None and None without a checkpoint; notices has a sentence for each damaged one.

        Raises:
          UserError: no checkpoint can be read, or one cannot be read now and may be good (they are left unchanged), or the
            processes of a run see different ones.
        """
        damaged = {}
        steps = self.steps()
        processes.agree("checkpoints", {f"the list in {self.folder}": steps})
        for step in reversed(steps):
            try:
                expected = _notes(self.folder, step).get("fingerprints")
                restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
                if expected is not None:
                    compare(expected, fingerprints(restored.state))
            except Exception as error:  # Orbax passes on errors of JSON, tensorstore and the file system
                if of_access(error):
                    raise UserError(
                        f"the checkpoint of step {step} in {self.folder} cannot be read now ({cause_of(error)}), and may be good; "
                        "nothing was changed: the same command resumes there once it can be read, and from the one before "
                        "if it is moved away."
                    ) from error
                damaged[step] = cause_of(error)
                processes.agree("readable checkpoints", {"the damaged one": step}, seconds=60)
                continue
            return restored.state, step, [self._set_aside(bad, why, step) for bad, why in damaged.items()]
        if damaged:
            newest, why = next(iter(damaged.items()))
            raise UserError(
                f"none of the checkpoints in {self.folder} can be read (step {newest}: {why}); nothing was changed: "
                "repair or remove them, or choose another --workdir."
            )
        return None, None, []

    def run_of(self, step: int) -> dict[str, Any]:
        """The `run` that was given to `save`; {} for checkpoints without one."""
        return {name: value for name, value in _notes(self.folder, step).items() if name != "fingerprints"}

    def _set_aside(self, step: int, why: str, good: int) -> str:
        if jax.process_index() == 0:
            self._damaged.mkdir(parents=True, exist_ok=True)
            taken = {path.name for path in self._damaged.iterdir()} if self._damaged.exists() else set()
            name = next(n for i in range(len(taken) + 1) if (n := f"{step}" + f".{i}" * (i > 0)) not in taken)
            move_step(self.folder / str(step), self._damaged / name)
        ocp.multihost.sync_global_processes(f"set_aside_{step}")  # before the reload below
        self._scores.pop(step, None)
        self._manager.reload()
        return f"checkpoint {step} cannot be read ({why}); it was moved to {self._damaged}, and step {good} is used instead"

    def close(self) -> None:
        """Waits until everything is on disk, and releases the folder.

        Raises:
          UserError: as `save`.
        """
        try:
            self._manager.close()
        except Exception as error:
            self._cannot_write("the last checkpoint", error)
            raise


class _Manager(ocp.CheckpointManager):
    """Orbax's, which leaves preemption to the loop."""

    def reached_preemption(self, step: int) -> bool:
        """Never: Orbax would ask JAX's service with the training's step, and the service takes the last number that a process
        passed for its place (bt_jax/runtime/preemption.py), so a signal would stop the run thousands of asks later, or never.
        """
        del step
        return False


class _Best:
    """Keeps the checkpoints with the highest scores, the later ones on a tie.

    Orbax's own policy reads scores from its metrics file; if that is damaged, even listing the steps fails.
    """

    def __init__(self, scores: Mapping[int, float], count: int):
        self._scores, self._count = scores, count

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        scored = sorted((self._scores[c.step], c.step) for c in checkpoints if c.step in self._scores)
        best = {step for _, step in scored[-self._count :]}
        return [checkpoint.step in best for checkpoint in checkpoints]


def _notes(folder: epath.Path, step: int) -> dict[str, Any]:
    """The JSON of `run`, {} if the checkpoint has none; read directly, without the barriers of a restore."""
    item = folder / str(step) / "run"
    return _unsealed(read_object(item / "metadata")) if item.exists() else {}


def _score(folder: epath.Path, step: int) -> float | None:
    try:
        score = _unsealed(read_object(folder / str(step) / "score" / "metadata"))["score"]
    except (OSError, ValueError, KeyError):  # not measured, or damaged: it cannot be among the best
        return None
    return score if isinstance(score, float) and math.isfinite(score) else None


def _sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its sha256, and with a word that says so, as a flipped bit may be in the name "sha256" itself."""
    return sealed({**content, "sealed": True}, "sha256")


def _unsealed(found: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_sealed`; what has neither of its two entries is returned as it is.

    Raises:
      ValueError: it is not what was sealed.
    """
    if "sealed" not in found and "sha256" not in found:
        return found
    if sealed(found, "sha256") != found:
        raise ValueError("its notes were changed or damaged after they were written, as their sha256 shows")
    return {name: value for name, value in found.items() if name not in ("sealed", "sha256")}


def restore_networks(
    workdir: epath.Path, encoder: Any, step: int | None = None, *, target: bool = False
) -> tuple[dict[str, Any], int]:
    """The variables of a run's encoder and heads, from the newest readable checkpoint.

    Heads are read as they were saved, so the method that trained them is not needed. The workdir is not modified. Warns
    about each newer checkpoint that cannot be read.

    Args:
      encoder: the shapes and dtypes that the encoder's variables must have, {"params": …, "batch_stats": …}.
      step: read this checkpoint and no other.
      target: those of the method's target network, in `method_state["target"]` and under "target" in the batch statistics.

    Returns:
      ({"encoder": variables, head: variables, …}, the step), as arrays on the first local device. A network without batch
      norm has no "batch_stats".

    Raises:
      UserError: the run has no checkpoint, no readable one, or one without such an encoder.
    """
    folder = workdir / "checkpoints"
    steps = steps_in(folder)[::-1] if step is None else [step]
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet; let the run save one first.")
    problem = ""
    for number in steps:
        try:
            networks = _networks_in(absolute(folder) / str(number) / "state", target)
            wrong = shape_differences(encoder, networks.get("encoder", {}))
            if not wrong:
                return _read_networks(folder, number, networks, target), number
        except Exception as error:  # from JSON, tensorstore or the file system
            problem = problem or f"step {number}: {cause_of(error)}"
            if step is None:
                warnings.warn(f"checkpoint {number} in {folder} cannot be read; trying the previous one", stacklevel=6)
            continue
        if "encoder" not in networks:
            missing = "target network; only methods with one, such as byol, save it" if target else "encoder"
            raise UserError(f"the checkpoint of step {number} in {folder} has no {missing}.")
        raise UserError(
            f"the checkpoint of step {number} in {folder} has another encoder than the run's config describes "
            f"({some(wrong)})."
        )
    raise UserError(f"none of the checkpoints in {folder} can be read ({problem}).")


def _networks_in(state: epath.Path, target: bool) -> dict[str, Any]:
    """The shapes of the networks in a saved state, {name: {"params": …, "batch_stats": …}}, on the first local device."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    tree = ocp.PyTreeCheckpointHandler().metadata(state).tree
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)
    return _networks_of(tree, target)


def _networks_of(tree: Any, target: bool) -> dict[str, Any]:
    """The networks in the tree of a state, {name: {"params": …, "batch_stats": …}}; those without batch norm have only params."""
    params = tree.get("method_state", {}).get("target", {}) if target else tree["params"]
    statistics = tree.get("model_state", {}).get("batch_stats", {})
    statistics = statistics.get("target", {}) if target else statistics
    return {
        name: {"params": network} | ({"batch_stats": statistics[name]} if statistics.get(name) else {})
        for name, network in params.items()
        if isinstance(network, dict)
    }


def _read_networks(folder: epath.Path, step: int, networks: dict[str, Any], target: bool) -> dict[str, Any]:
    """The arrays of `networks`, after checking their fingerprints."""
    params: dict[str, Any] = {name: network["params"] for name, network in networks.items()}
    statistics: dict[str, Any] = {name: n["batch_stats"] for name, n in networks.items() if "batch_stats" in n}
    part: dict[str, Any] = {"method_state": {"target": params}} if target else {"params": params}
    if statistics:
        part["model_state"] = {"batch_stats": {"target": statistics} if target else statistics}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        arguments = ocp.args.PyTreeRestore(
            item=part, restore_args=ocp.checkpoint_utils.construct_restore_args(part), partial_restore=True
        )
        found = reader.restore(absolute(folder) / str(step) / "state", args=arguments)
    compare(_notes(folder, step).get("fingerprints", {}), fingerprints(found))
    return _networks_of(found, target)


def config_text(workdir: epath.Path, step: int | None = None) -> str | None:
    """The config in a checkpoint as JSON: that of `step`, or of the newest one that has it; None if none does."""
    for number in steps_in(workdir / "checkpoints")[::-1] if step is None else [step]:
        try:
            return json.dumps(_notes(workdir / "checkpoints", number)["config"])
        except (OSError, ValueError, KeyError):
            continue
    return None
