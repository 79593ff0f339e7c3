"""bt_jax/runtime/machine.py: what a fresh process makes of the machine, each in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from bt_jax.config import default
from bt_jax.runtime import machine, processes

PROGRAM = """
import json, os, resource, sys
settings = json.loads(sys.argv[1])
import jax, jax.numpy as jnp
from bt_jax.config import default
from bt_jax.errors import UserError
from bt_jax.runtime import processes
if settings.pop("early", False):
    jax.devices()
config = default("pretrain")
config.update_from_flattened_dict(settings)
try:
    with processes.joined(config, "unused"):
        step = jax.jit(lambda x: jnp.sin(x) @ x)
        x = jnp.ones((2500, 2500))
        faults = []
        for _ in range(30):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            jax.block_until_ready(x + 1.0)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        step.lower(x).compile()
        found = {"devices": len(jax.devices()), "faults": sorted(faults[-10:])[5], "cache": jax.config.jax_compilation_cache_dir}
except UserError as error:
    found = {"error": str(error)}
print(json.dumps(found))
"""


def start(tmp_path, settings=None, **environment):
    """What a process says that begins a run."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings or {})],
        env={**kept, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache"), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


def test_a_fresh_process(tmp_path):
    """A device per core; memory stays; compiled programs are kept in the user's cache folder, and damaged ones passed over."""
    found = start(tmp_path, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    assert found["devices"] == machine.default_devices(default("pretrain"), machine.cores())
    if sys.platform == "linux":
        assert found["faults"] < 2500 * 2500 * 4 / 4096 / 10
    assert found["cache"].startswith(str(tmp_path / "cache" / "bt_jax"))
    programs = [os.path.join(found["cache"], name) for name in os.listdir(found["cache"])]
    assert programs
    for again in (b"damaged", b""):
        for program in programs:
            with open(program, "wb") as file:
                file.write(again)
        assert start(tmp_path, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")["stderr"] == ""
    assert all(os.path.getsize(program) for program in programs)


def test_what_the_user_set_stays(tmp_path):
    """The numbers of devices and the folder of the cache; a cache that is turned off; malloc's own variables."""
    here = str(tmp_path / "here")
    found = start(tmp_path, JAX_NUM_CPU_DEVICES="3", JAX_COMPILATION_CACHE_DIR=here)
    assert (found["devices"], found["cache"]) == (3, here)
    found = start(
        tmp_path,
        XLA_FLAGS="--xla_force_host_platform_device_count=3",
        JAX_ENABLE_COMPILATION_CACHE="0",
        MALLOC_MMAP_THRESHOLD_="65536",
    )
    assert (found["devices"], found["cache"]) == (3, None)
    if sys.platform == "linux":
        assert found["faults"] > 2500 * 2500 * 4 / 4096 / 2
    assert not (tmp_path / "cache").exists()


def test_the_number_of_devices_by_hand(tmp_path):
    """By the config; an error if something else says it too, or if it comes too late; a cache folder that cannot be made."""
    (tmp_path / "cache").write_text("")
    found = start(tmp_path, {"mesh.cpu_devices": 4})
    assert (found["devices"], found["cache"]) == (4, None)
    found = start(tmp_path, {"mesh.cpu_devices": 4}, JAX_NUM_CPU_DEVICES="4")
    assert "leave one of them out" in found["error"]
    found = start(tmp_path, {"mesh.cpu_devices": 4, "early": True})
    assert "JAX has started with 1 CPU devices" in found["error"]
    assert start(tmp_path, {"early": True})["devices"] == 1


@pytest.mark.parametrize(
    ("available", "changes", "expected"),
    [
        (4, {}, 4),
        (6, {}, 4),
        (1, {}, 1),
        (64, {}, machine.MOST_DEVICES),
        (4, {"batch_size": 6, "monitor.batch_size": 9}, 3),
        (4, {"batch_size": 7}, 1),
        (4, {"judge.batch_size": 7}, 4),
        (6, {"mesh.model": 2}, 4),
        (4, {"mesh.model": 3, "batch_size": 6, "monitor.batch_size": 6}, 3),
        (8, {"mesh.data": 2, "mesh.model": 2}, 4),
        (2, {"mesh.data": 4}, 2),
    ],
)
def test_default_number_of_devices(available, changes, expected):
    """All batches divide among them, those of evaluations too."""
    config = default("pretrain")
    config.batch_size = 256
    config.update_from_flattened_dict(changes)
    assert machine.default_devices(config, available) == expected


def test_several_processes_have_a_device_each(monkeypatch):
    """Several on one machine must not multiply; each is told by its config or its cluster."""
    for variables, settings, expected in [
        ({}, {}, True),
        ({}, {"coordinator": "localhost:1", "processes": 2, "process_index": 0}, False),
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "2"}, {}, False),
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "2"}, {"processes": 1}, True),
    ]:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            mesh = default("pretrain").mesh
            mesh.update(settings)
            assert processes.alone(mesh) is expected
    told = []
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(machine._jax_config, "update", lambda *pair: told.append(pair))
    machine.make_cpu_devices(default("pretrain"), alone=False)
    assert not told
    config = default("pretrain")
    config.mesh.cpu_devices = 3
    machine.make_cpu_devices(config, alone=False)
    assert told == [("jax_num_cpu_devices", 3)]


def test_old_programs_are_deleted(tmp_path):
    for age, name in enumerate(("new", "empty", "older", "oldest")):
        (tmp_path / name).write_bytes(bytes(100) if name != "empty" else b"")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    machine.prune(tmp_path, 250)
    assert sorted(os.listdir(tmp_path)) == ["new", "older"]
