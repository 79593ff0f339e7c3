"""Processes, devices, the mesh and its axes, and where arrays live.

A batch is sharded over its first axis, everything else is replicated. The arithmetic of a run never depends on how many
devices there are: batch statistics, the loss and the gradients are those of the global batch (DESIGN: invariant 1).
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from bt_jax.errors import UserError, first_line

DATA_AXIS = "data"

# A cluster that JAX can ask for everything by itself shows one of these; each holds a number of processes or a list of
# hosts. On a single machine none is set, and jax.distributed stays off.
_CLUSTER_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_CLUSTER_HOSTS = ("TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS")


def start_processes(config: ConfigDict) -> None:
    """Joins the processes of a run into one (`config.mesh`); does nothing on a single host.

    Raises:
      UserError: the coordinator cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    try:
        if config.coordinator:
            jax.distributed.initialize(config.coordinator, config.processes, config.process_index)
        elif _in_cluster(os.environ):
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        through = config.coordinator or "the cluster they run in"
        raise UserError(
            f"the processes could not be joined through {through} ({first_line(error)}); "
            "start as many processes as mesh.processes says, all with the same coordinator."
        ) from None


def _in_cluster(environment) -> bool:
    if any(int(environment.get(name, "1")) > 1 for name in _CLUSTER_COUNTS):
        return True
    return "," in environment.get(_CLUSTER_HOSTS[0], "") or _CLUSTER_HOSTS[1] in environment


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh over all devices of all processes, with one axis, `data`.

    Raises:
      UserError: `config.data` is not the number of devices.
    """
    devices = jax.device_count()
    if config.data not in (-1, devices):
        if jax.process_count() > 1 or config.data > devices:
            raise UserError(
                f"mesh.data is {config.data}, but there are {devices} devices; set it to {devices} or to -1."
            )
        return jax.make_mesh((config.data,), (DATA_AXIS,), (AxisType.Auto,), devices=jax.devices()[: config.data])
    return jax.make_mesh((devices,), (DATA_AXIS,), (AxisType.Auto,))


def over_batch(mesh: Mesh) -> NamedSharding:
    """First axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(mesh: Mesh, batch_size: int, field: str = "batch_size") -> None:
    """Raises UserError, naming the nearest sizes that do, if the batch does not divide among the devices."""
    devices = mesh.size
    if batch_size % devices:
        below = batch_size // devices * devices
        near = f"{below} or {below + devices}" if below else f"{devices}"
        raise UserError(
            f"{field} is {batch_size}, which does not divide among {devices} devices; the nearest that do: {near}."
        )


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of the global batch that this process loads, (n,) int64, rising."""
    places = over_batch(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places.values()]))


def put_batch(mesh: Mesh, batch_size: int, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes the global batch of what each process has loaded.

    Args:
      batch_size: rows of the global batch.
      local: arrays whose first axis runs over this process's rows, as `process_rows` gives them.
    """
    rows = process_rows(mesh, batch_size)
    sharding = over_batch(mesh)

    def put(array):
        def shard(index):
            start = np.searchsorted(rows, index[0].start or 0)
            length = (batch_size if index[0].stop is None else index[0].stop) - (index[0].start or 0)
            return array[start : start + length]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, shard)

    return {name: put(array) for name, array in local.items()}


def prefetch_to_mesh(batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, batch_size: int) -> Iterator[dict[str, Any]]:
    """Keeps one batch on its way to the devices while the one before is computed on."""
    ahead = None
    for local in batches:
        following = put_batch(mesh, batch_size, local)
        if ahead is not None:
            yield ahead
        ahead = following
    if ahead is not None:
        yield ahead
