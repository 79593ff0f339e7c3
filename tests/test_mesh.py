"""bt_jax/runtime/mesh.py: which process loads which rows, and on which devices they go."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from bt_jax.errors import UserError
from bt_jax.runtime import mesh as mesh_lib


def mesh_of(data, model=1, **settings):
    return mesh_lib.make_mesh(ConfigDict({"data": data, "model": model}), **settings)


def test_mesh_takes_all_devices_or_those_asked_for():
    assert mesh_of(-1).shape == {"data": 8} and mesh_of(2).shape == {"data": 2}
    assert mesh_of(-1, 2).shape == mesh_of(4, 2).shape == {"data": 4, "model": 2}
    assert mesh_of(-1, devices=jax.devices()[4:]).devices.tolist() == jax.devices()[4:]


@pytest.mark.parametrize(
    ("data", "model", "sentence"),
    [
        (9, 1, "mesh.data is 9, but there are 8 devices; set mesh.data to 8 or to -1."),
        (8, 2, "mesh.data is 8 and mesh.model 2, 16 together, but there are 8 devices; set mesh.data to 4 or to -1."),
        (-1, 3, "mesh.model is 3, which does not divide the 8 devices; set it to a number that does."),
        (3, 3, "mesh.data is 3 and mesh.model 3, 9 together, but there are 8 devices."),
    ],
)
def test_a_mesh_that_does_not_multiply_to_the_devices(data, model, sentence):
    with pytest.raises(UserError) as found:
        mesh_of(data, model)
    assert str(found.value) == sentence


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """The attributes of devices that a mesh over slices reads."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "fake"
    device_kind: str = "fake"


def test_several_slices():
    """The data axis runs over the slices first and the model axis stays inside one, for any order of the devices."""
    devices = [FakeDevice(i, i // 4) for i in range(8)]
    shuffled = [devices[i] for i in (5, 0, 3, 6, 1, 7, 2, 4)]
    mesh = mesh_of(-1, 2, devices=shuffled)
    assert mesh.shape == {"data": 4, "model": 2}
    assert [[d.slice_index for d in row] for row in mesh.devices] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert [d.slice_index for d in mesh_of(-1, devices=shuffled).devices] == [0] * 4 + [1] * 4
    with pytest.raises(UserError, match="mesh.data is 1, which does not divide among 2 slices; lower mesh.model"):
        mesh_of(-1, 8, devices=devices)


@dataclasses.dataclass(frozen=True)
class FakeChip:
    """The attributes of a TPU's devices that decide their order."""

    id: int
    device_kind: str
    coords: tuple[int, int, int]
    slice_index: int = 0
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"


def chips(kind, *sides, slices=1):
    """The chips of slices, numbered as a TPU's: x runs fastest."""
    places = list(itertools.product(*(range(side) for side in (*sides, 1, 1)[:3][::-1])))
    return [FakeChip(i, kind, places[i % len(places)][::-1], i // len(places)) for i in range(slices * len(places))]


@pytest.mark.parametrize("model", [2, 4])
@pytest.mark.parametrize(
    ("kind", "sides", "slices"),
    [
        ("TPU v6 lite", (4, 4), 1),
        ("TPU v6 lite", (16, 16), 1),
        ("TPU v4", (4, 4, 4), 1),
        ("TPU v5p", (4, 4, 8), 1),
        ("TPU v5 lite", (4, 4), 2),
        ("TPU v5 lite", (16, 16), 2),
    ],
)
def test_a_model_axis_on_slices(kind, sides, slices, model):
    """Of two or four chips that are nearest neighbours, or in a square; each chip stands in the mesh once."""
    devices = chips(kind, *sides, slices=slices)
    mesh = mesh_of(-1, model, devices=devices)
    assert mesh.shape == {"data": len(devices) // model, "model": model}
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 2
    assert sorted(chip.id for chip in mesh.devices.flat) == list(range(len(devices)))
    for row in mesh.devices:
        assert len({chip.slice_index for chip in row}) == 1
        extent = np.ptp([chip.coords for chip in row], axis=0)
        assert sorted(extent) in {2: [[0, 0, 1]], 4: [[0, 0, 3], [0, 1, 1]]}[model]


@pytest.mark.parametrize("count", [3, 5, 7])
def test_some_of_a_hosts_chips(count):
    """That are no box: in the order of their numbers."""
    assert [chip.id for chip in mesh_of(count, devices=chips("TPU v5 lite", 2, 4)).devices] == list(range(count))


@pytest.mark.parametrize(
    ("kind", "sides", "model"), [("TPU v5 lite", (2, 4), 1), ("TPU v4", (2, 2, 4), 4), ("gpu", (8,), 2)]
)
def test_the_order_is_that_of_jax(kind, sides, model):
    """Where `jax.make_mesh` has one."""
    devices = [dataclasses.replace(chip, platform="gpu" if kind == "gpu" else "tpu") for chip in chips(kind, *sides)]
    shape, names = ((len(devices) // model, model), ("data", "model")) if model > 1 else ((len(devices),), ("data",))
    assert mesh_of(-1, model, devices=devices) == jax.make_mesh(
        shape, names, (jax.sharding.AxisType.Auto,) * len(names), devices=devices
    )


@pytest.mark.parametrize(("batch", "near"), [(12, "8 or 16"), (5, "8"), (260, "256 or 264")])
def test_batch_that_does_not_divide(batch, near):
    """The nearest that do are named."""
    with pytest.raises(UserError, match=f"batch_size is {batch}, .* 8 devices; the nearest that do: {near}"):
        mesh_lib.check_batch_size(mesh_of(8), batch)
    mesh_lib.check_batch_size(mesh_of(8), 16)


@pytest.mark.parametrize("model", [1, 2])
def test_rows_go_to_their_devices(model):
    """Eight shards of two rows, in order, from one process that holds all rows: also where there is a model axis."""
    mesh = mesh_of(-1, model)
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


def test_prefetch_is_a_batch_ahead():
    """The next batch is on its way to the devices while one is used."""
    drawn = []

    def batches():
        for i in range(5):
            drawn.append(i)
            yield {"x": np.full((4, 1), i)}

    for place, _ in enumerate(mesh_lib.prefetch_to_mesh(batches(), mesh_of(2), 4)):
        assert drawn[-1] == min(place + 1, 4)


def test_share():
    assert mesh_lib.share(mesh_of(-1, 2), 16) == "process 0 of 1: rows 0-15 of 16 on devices 0-7 (cpu)"
    assert mesh_lib._ranges([0, 1, 2, 8, 10, 11]) == "0-2, 8, 10-11"
