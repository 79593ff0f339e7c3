"""bt_jax/planning/compiled.py: collectives and memory traffic, of programs with known ones and of texts as compilers write them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bt_jax.planning.compiled import Collective, Movement, collectives, memory_traffic, movements, size_in_bytes


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("a", "b"), (jax.sharding.AxisType.Auto,) * 2)


def by_shard_map(mesh, function, spec_in, spec_out, shape):
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec_in, out_specs=spec_out, check_vma=False)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.sharding.NamedSharding(mesh, spec_in))
    return jax.jit(mapped).lower(x).compile().as_text()


@pytest.mark.parametrize(
    ("kind", "function", "spec_out", "group", "results", "sent"),
    [
        ("all-reduce", lambda x: jax.lax.psum(x, "b"), ("a",), 4, 32 * 16, 32 * 16 * 2 * 3 / 4),
        ("all-reduce", lambda x: jax.lax.psum(x, ("a", "b")), (), 8, 32 * 16, 32 * 16 * 2 * 7 / 8),
        ("all-gather", lambda x: jax.lax.all_gather(x, "a", tiled=True), ("b",), 2, 64 * 16, 64 * 16 / 2),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "b", tiled=True), (("a", "b"),), 4, 8 * 16, 8 * 16 * 3),
        (
            "all-to-all",
            lambda x: jax.lax.all_to_all(x, "b", split_axis=1, concat_axis=0, tiled=True),
            ("a", "b"),
            4,
            128 * 4,
            128 * 4 * 3 / 4,
        ),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)]),
            (("a", "b"),),
            2,
            32 * 16,
            32 * 16,
        ),
    ],
)
def test_each_kind(mesh, kind, function, spec_out, group, results, sent):
    """(32, 16) numbers of four bytes on each of 2 × 4 devices."""
    text = by_shard_map(mesh, function, PartitionSpec(("a", "b")), PartitionSpec(*spec_out), (256, 16))
    found = [c for c in collectives(text, 8) if c.kind == kind]
    assert len(found) == 1
    assert (found[0].group, found[0].bytes) == (group, 4 * results)
    assert found[0].sent == pytest.approx(4 * sent)


def test_a_program_of_one_device_has_none():
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    assert collectives(jax.jit(lambda x: x @ x).lower(x).compile().as_text(), 1) == []


TPU_TEXT = """HloModule jit_f

%all-reduce-scatter.1 (input: f32[64,16]) -> f32[16,16] {
  %all-reduce.9 = f32[64,16]{1,0:T(8,128)} all-reduce(%input), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%add
}

ENTRY %main (p.0: f32[64,16], p.1: bf16[32]) -> f32[64,16] {
  %p.0 = f32[64,16]{1,0:T(8,128)} parameter(0)
  %p.1 = bf16[32]{0:T(256)(128)(2,1)S(1)} parameter(1)
  %copy-start = (f32[64,16]{1,0:T(8,128)S(1)}, f32[64,16]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p.0)
  %copy-done = f32[64,16]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[64,16]{1,0:T(8,128)}), f32[8,16]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p.0), slice={[0:8], [0:16]}
  %slice-done = f32[8,16]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %all-reduce.1 = (f32[2,16]{1,0:T(2,128)S(1)}, bf16[32]{0:T(256)S(1)}) all-reduce(%a, %p.1), replica_groups=mesh['x'=2,'y'=4] {'y'}, metadata={op_name="jit(f)/loss/psum"}
  %all-gather-start = (f32[8,16]{1,0}, f32[64,16]{1,0}) all-gather-start(%slice-done), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %all-gather-done = f32[64,16]{1,0} all-gather-done(%all-gather-start)
  ROOT %fusion = f32[64,16]{1,0:T(8,128)} fusion(%copy-done, %all-gather-done), kind=kLoop, calls=%fused
}
"""  # fmt: skip


def test_text_of_a_tpu_program():
    """Named groups, asynchronous pairs, tuples, and the fusion by which a sum is left in parts."""
    scatter, reduce, gather = collectives(TPU_TEXT, 8)
    assert scatter == Collective("reduce-scatter", (("f32", (256,)),), 4, "")
    assert scatter.sent == 3 * 4 * 256
    assert reduce == Collective("all-reduce", (("f32", (2, 16)), ("bf16", (32,))), 4, "jit(f)/loss/psum")
    assert reduce.bytes == 4 * 32 + 2 * 32
    assert (gather.kind, gather.shapes, gather.group) == ("all-gather", (("f32", (64, 16)),), 8)


def test_traffic_of_a_tpu_program():
    """What stays in the chip's fast memory does not count, and what is copied there counts once."""
    whole = 4 * 64 * 16
    part = 4 * 8 * 16
    copied, sliced = whole, part
    gathered = part + whole  # of the pair that the instruction gives, both in main memory
    fused = whole + whole  # reads what was gathered, not what was copied in; writes
    assert memory_traffic(TPU_TEXT) == copied + sliced + gathered + fused


def test_movements_of_a_tpu_program():
    """One an instruction, with its source; what holds a convolution is marked."""
    text = TPU_TEXT.replace(
        "\nENTRY", "\n%fused (p: f32[64,16]) -> f32[64,16] {\n  %c = f32[64,16] convolution(%p)\n}\n\nENTRY"
    )
    text = text.replace("calls=%fused", 'calls=%fused, metadata={op_name="jit(f)/layer1/conv"}')
    found = movements(text)
    assert [m.operation for m in found] == ["copy-start", "slice-start", "all-reduce", "all-gather-start", "fusion"]
    assert found[-1] == Movement(2 * 4 * 64 * 16, "fusion", True, "jit(f)/layer1/conv")
    assert not any(m.convolution for m in found[:-1])
    assert sum(m.bytes for m in found) == memory_traffic(TPU_TEXT)


def test_traffic_of_a_product():
    """Two operands are read and the result is written."""
    shapes = (64, 32), (32, 128)
    x, y = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    text = jax.jit(jnp.matmul).lower(x, y).compile().as_text()
    assert memory_traffic(text) == 4 * (64 * 32 + 32 * 128 + 64 * 128)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(("f32", (3, 5)), 60), (("bf16", (7,)), 14), (("pred", (9,)), 9), (("s4", (3,)), 2), (("u64", ()), 8)],
)
def test_sizes(shape, expected):
    assert size_in_bytes(shape) == expected
    assert np.issubdtype(type(size_in_bytes(shape)), np.integer)
