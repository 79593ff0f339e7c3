"""bt_jax/planning/chips.py: the names of slices, and that the compiler knows them as we do."""

import subprocess
import sys

import pytest

from bt_jax.errors import UserError
from bt_jax.planning.chips import CHIPS, parse_topology
from bt_jax.tasks.pod_plan import devices_of


@pytest.mark.parametrize(
    ("name", "chips", "devices"), [("v5e:16x16", 256, 256), ("v4:4x4x4", 64, 64), ("7x:2x2x1", 4, 8), ("v6e:1x1", 1, 1)]
)
def test_a_slice_by_its_name(name, chips, devices):
    topology = parse_topology(name)
    assert (topology.name, topology.chips, topology.devices) == (name, chips, devices)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("v9:4x4", "'v9:4x4' is not known; it must be a chip and a shape, such as v4:2x2x1 or 4x4x8; v5e:4x4"),
        ("v5e", "'v5e' is not known"),
        ("v5e:4", "'v5e:4' has 1 axes, but slices of v5e have 2"),
        ("v4:4x4", "'v4:4x4' has 2 axes, but slices of v4 have 3"),
        ("v5e:32x32", "slices of v5e have from 1 chip to 16x16"),
        ("v5e:0x4", "have from 1 chip to 16x16"),
    ],
)
def test_what_is_no_slice(name, sentence):
    with pytest.raises(UserError) as error:
        parse_topology(name)
    assert sentence in str(error.value)


def test_figures_are_of_the_published_size():
    """Each chip's rate between its memory and its links, and newer generations no slower than their kind before."""
    for chip in CHIPS.values():
        assert chip.links < chip.bandwidth < chip.flops
        assert chip.memory > 16e9 and chip.source
    for older, newer in (("v4", "v5p"), ("v5p", "7x"), ("v5e", "v6e")):
        for figure in ("memory", "bandwidth", "flops", "links"):
            assert getattr(CHIPS[older], figure) <= getattr(CHIPS[newer], figure)


def test_the_compiler_has_as_many_devices_of_that_kind():
    """Needs libtpu, an optional extra; in a separate process, as libtpu and JAX's profiler do not work together."""
    pytest.importorskip("libtpu")
    names = ["v4:4x4x4", "v5e:1x1", "v5e:4x4", "v5p:2x2x1", "v6e:2x2", "7x:2x2x1"]
    program = f"""
from bt_jax.planning.chips import parse_topology
from bt_jax.errors import UserError
from bt_jax.tasks.pod_plan import devices_of
slices = [parse_topology(name) for name in {names}]
print([len(devices_of(s)) for s in slices], all(d.device_kind == s.chip.device_kind for s in slices for d in devices_of(s)))
try:
    devices_of(parse_topology("v5e:3x3"))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    counts, refused = done.stdout.splitlines()
    assert counts == f"{[parse_topology(name).devices for name in names]} True", done.stderr
    assert "no topology v5e:3x3" in refused and "sides are even" in refused


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="libtpu, which is not installed; pip install"):
        devices_of(parse_topology("v5e:4x4"))
