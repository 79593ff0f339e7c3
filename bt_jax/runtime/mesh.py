"""The device mesh, its axes, and the placement of arrays on it.

The mesh has an axis "data" and, if `mesh.model` is above 1, an axis "model". The first axis of a batch is sharded along
both, so that no device repeats another's work in the encoder. Parameters are replicated, except that the projector's layers
and their optimizer state are split along "model" (bt_jax/models/heads.py). The arithmetic of a run does not depend on the
number of devices: batch statistics, the loss and the gradients are those of the global batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from bt_jax.errors import UserError
from bt_jax.runtime.processes import start_processes as start_processes  # the first thing to do with a config.mesh

DATA_AXIS = "data"
MODEL_AXIS = "model"


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices of all processes: ("data",), or ("data", "model") where `config.model` is above 1.

    With several TPU slices, "data" spans the slices and "model" stays inside one: it carries much traffic, and the network
    between slices is slow.

    Args:
      config: `config.mesh` of a run.
      devices: used in place of `jax.devices()`, for example those of a topology that is only planned.

    Raises:
      UserError: `data` times `model` is not the number of devices, or does not divide among the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    model = config.get("model", 1)
    data = len(devices) // model if config.data == -1 else config.data
    wanted = data * model
    if wanted != len(devices):
        whole = len(devices) // model * model
        if config.data == -1:
            raise UserError(
                f"mesh.model is {model}, which does not divide the {len(devices)} devices; set it to a number that does."
            )
        if wanted > len(devices) or jax.process_count() > 1:
            product = f"mesh.data is {data}" + (f" and mesh.model {model}, {wanted} together" if model > 1 else "")
            right = f"; set mesh.data to {whole // model} or to -1" if whole == len(devices) else ""
            raise UserError(f"{product}, but there are {len(devices)} devices{right}.")
        devices = devices[:wanted]
    shape, names = ((data, model), (DATA_AXIS, MODEL_AXIS)) if model > 1 else ((data,), (DATA_AXIS,))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if data % slices:
        raise UserError(f"mesh.data is {data}, which does not divide among {slices} slices; lower mesh.model.")
    return Mesh(_arranged(shape, slices, devices), names, axis_types=(AxisType.Auto,) * len(names))


def _arranged(shape: tuple[int, ...], slices: int, devices: Sequence[Any]) -> np.ndarray:
    """The devices in an array of `shape`, neighbours along the axes being near in the TPU's network where JAX knows it.

    `jax.make_mesh` splits a physical axis over two of the mesh's on v5e only, and so has no mesh with a small axis "model" on
    most other slices.
    """
    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        within, across = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
        return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError):  # no box of chips, such as three of a host's eight
        in_order = sorted(devices, key=lambda device: (getattr(device, "slice_index", 0), device.id))
        return np.array(in_order, object).reshape(shape)


def over_batch(mesh: Mesh) -> NamedSharding:
    """First axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def over_data(mesh: Mesh) -> NamedSharding:
    """First axis split along "data" only, for inputs to layers that are split along "model"."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(mesh: Mesh, batch_size: int, field: str = "batch_size") -> None:
    """Raises UserError, with the nearest valid sizes, if the batch does not divide among the devices."""
    devices = mesh.size
    if batch_size % devices:
        below = batch_size // devices * devices
        near = f"{below} or {below + devices}" if below else f"{devices}"
        raise UserError(
            f"{field} is {batch_size}, which does not divide among {devices} devices; the nearest that do: {near}."
        )


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of the global batch that this process loads, (n,) int64, in increasing order."""
    places = over_batch(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places.values()]))


def put_batch(mesh: Mesh, batch_size: int, local: Any) -> Any:
    """Makes the global batch from what each process has loaded.

    Args:
      batch_size: rows of the global batch.
      local: a pytree of arrays whose first axis runs over this process's rows, as `process_rows` gives them.

    Returns:
      The same tree of jax.Array, sharded over the batch. int64 becomes int32, as numbers are on the devices.
    """
    sharding = over_batch(mesh)

    def put(array: np.ndarray) -> jax.Array:
        array = array.astype(np.int32) if array.dtype == np.int64 else array
        return jax.make_array_from_process_local_data(sharding, array, (batch_size, *array.shape[1:]))

    return jax.tree.map(put, local)


def local_rows(batch: Any) -> Any:
    """The inverse of `put_batch`: this process's rows of a pytree of arrays sharded over the batch, on the host."""

    def rows(array: jax.Array) -> np.ndarray:
        shards = {shard.index[0].start or 0: np.asarray(shard.data) for shard in array.addressable_shards}
        return np.concatenate([shards[start] for start in sorted(shards)])

    return jax.tree.map(rows, batch)


def share(mesh: Mesh, batch_size: int) -> str:
    """This process's part of a batch and of the devices: `process 1 of 2: rows 8-15 of 16 on devices 4-7 (cpu)`."""
    rows = _ranges(process_rows(mesh, batch_size))
    devices = _ranges(sorted(device.id for device in mesh.local_devices))
    return (
        f"process {jax.process_index()} of {jax.process_count()}: rows {rows} of {batch_size} "
        f"on devices {devices} ({mesh.local_devices[0].device_kind})"
    )


def _ranges(numbers: Iterable[int]) -> str:
    """Increasing numbers as ranges: `0-3, 8-11`."""
    numbers = np.asarray(numbers)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def prefetch_to_mesh(batches: Iterable[Any], mesh: Mesh, batch_size: int) -> Iterator[Any]:
    """Starts the transfer of each batch to the devices while the previous one is computed on."""
    ahead = None
    for local in batches:
        following = put_batch(mesh, batch_size, local)
        if ahead is not None:
            yield ahead
        ahead = following
    if ahead is not None:
        yield ahead
