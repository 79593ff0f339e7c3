"""bt_jax/mesh.py: who loads what, and where it goes."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from bt_jax import mesh as mesh_lib
from bt_jax.errors import UserError


def mesh_of(devices):
    return mesh_lib.make_mesh(ConfigDict({"data": devices}))


def test_mesh_takes_all_devices_or_those_asked_for():
    assert mesh_of(-1).shape == {"data": 8} and mesh_of(2).shape == {"data": 2}
    with pytest.raises(UserError, match="mesh.data is 9, but there are 8 devices"):
        mesh_of(9)


@pytest.mark.parametrize(("batch", "near"), [(12, "8 or 16"), (5, "8"), (260, "256 or 264")])
def test_batch_that_does_not_divide(batch, near):
    """The nearest that do are named."""
    with pytest.raises(UserError, match=f"batch_size is {batch}, .* 8 devices; the nearest that do: {near}"):
        mesh_lib.check_batch_size(mesh_of(8), batch)
    mesh_lib.check_batch_size(mesh_of(8), 16)


def test_rows_go_to_their_devices():
    """Eight shards of two rows, in order, from one process that holds all rows."""
    mesh = mesh_of(8)
    rows = mesh_lib.process_rows(mesh, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    array = np.arange(16 * 3).reshape(16, 3)
    batch = mesh_lib.put_batch(mesh, 16, {"x": array[rows]})["x"]
    np.testing.assert_array_equal(batch, array)
    for shard in batch.addressable_shards:
        assert shard.data.shape == (2, 3)


def test_prefetch_keeps_order_and_count():
    mesh = mesh_of(2)
    batches = ({"x": np.full((4, 1), i)} for i in range(5))
    seen = [int(b["x"][0, 0]) for b in mesh_lib.prefetch_to_mesh(batches, mesh, 4)]
    assert seen == [0, 1, 2, 3, 4]
    assert list(mesh_lib.prefetch_to_mesh(iter(()), mesh, 4)) == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_a_cluster_is_recognised(environment, expected):
    """On a single host jax.distributed stays off."""
    assert mesh_lib._in_cluster(environment) is expected


def test_single_host_starts_nothing():
    mesh_lib.start_processes(ConfigDict({"coordinator": "", "processes": 0, "process_index": -1}))
    assert not jax.distributed.is_initialized()
