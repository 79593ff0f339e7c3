"""What PIRL's memory bank costs: bytes on each device, and a checkpoint of it.

    python experiments/benchmarks/memory_bank.py [--images 1281167] [--devices 16]

The encoder is tiny, so that nearly all of the state is the bank. The checkpoint is written and read by Orbax's
PyTreeCheckpointer, in a temporary folder. The devices are simulated on a CPU.
"""

import argparse
import pathlib
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from bt_jax import config as config_lib
from bt_jax.data.views.spec import batch_spec
from bt_jax.engine.state import init_state
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.optim import make_optimizer
from bt_jax.runtime import mesh as mesh_lib

BATCH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="What PIRL's memory bank costs.")
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--devices", type=int, default=16)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    config = config_lib.default(method="pirl")
    config.model.update(arch="resnet18", width=4)
    mesh = mesh_lib.make_mesh(config.mesh)
    facts = Facts(arguments.images, 0, BATCH, config.epochs)
    method, optimizer = make_method(config, facts, mesh), make_optimizer(config.optimizer, facts)
    state = init_state(method, optimizer, 0, batch_spec(method.view_groups, BATCH), mesh)
    bank = jax.block_until_ready(state).method_state["bank"]
    shard = bank.addressable_shards[0].data
    rest = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) - bank.nbytes
    print(
        f"bank {bank.shape}, {bank.nbytes / 2**20:.1f} MiB; on each of {mesh.size} devices {shard.nbytes / 2**20:.1f} MiB"
    )
    with tempfile.TemporaryDirectory() as folder:
        path, checkpointer = pathlib.Path(folder, "state"), ocp.PyTreeCheckpointer()
        begin = time.perf_counter()
        checkpointer.save(path, state)
        written = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        restore_args = ocp.checkpoint_utils.construct_restore_args(state)
        begin = time.perf_counter()
        back = checkpointer.restore(path, item=state, restore_args=restore_args).method_state["bank"]
        jax.block_until_ready(back)
        read = time.perf_counter() - begin
    print(
        f"checkpoint {size / 1e6:.0f} MB (the rest of the state has {rest / 1e6:.1f}), written in {written:.1f} s, read in "
        f"{read:.1f} s; the bank is the same: {np.array_equal(np.asarray(back), np.asarray(bank))}"
    )


if __name__ == "__main__":
    main()
