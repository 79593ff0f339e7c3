"""One process of several, for tests/test_processes.py: `python tests/run_process.py pretrain|steps|embed JSON`."""

import json
import pathlib
import sys
import time

import jax
import numpy as np
from etils import epath
from recipes import (
    PAIR_METHODS,
    SIZES,
    five_steps,
    quick_views,
    small_method,
    small_optimizer,
    spec_of,
    three_steps_of,
    three_steps_of_two_sizes,
)

from bt_jax.config import default
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.engine.state import init_state
from bt_jax.errors import UserError
from bt_jax.models import resnet
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.runtime import processes
from bt_jax.tasks import pretrain as loop
from configs import quickstart


def quickstart_of(changes):
    """The quickstart on few small images, with `changes`, values by dotted names."""
    config = quickstart.get_config()
    config.batch_size, config.epochs, config.log.tensorboard, config.log.every_steps = 16, 3, False, 1
    config.data.image_size, config.data.photographs.train_per_class, config.data.photographs.test_per_class = 16, 4, 1
    config.data.photographs.size = 16
    config.checkpoint.every_epochs, config.monitor.every_epochs, config.monitor.batch_size = 1, 3, 16
    config.monitor.k, config.monitor.judge_at_end = 5, False
    config.mesh.heartbeat_seconds, config.mesh.join_seconds = 15, 60
    quick_views(config)
    config.update_from_flattened_dict(changes)
    return config


def pretrain(changes, workdir):
    loop.make_method = lambda config, facts, mesh: small_method(mesh)
    loop.pretrain(quickstart_of(changes), workdir)


def steps(changes, workdir):
    """A batch by each kind of feed; five steps; the same state as one process saved it; checkpoints of a split state, one of them damaged; then
    collectives until it is killed.
    """
    from batches import epoch_of_files, rows_of_each_kind  # imports TensorFlow, for which other processes would wait

    folder = pathlib.Path(workdir)
    config = quickstart_of(changes)
    with processes.joined(config, workdir):
        mesh = mesh_lib.make_mesh(config.mesh)
        np.savez(folder / f"rows_{jax.process_index()}.npz", **rows_of_each_kind(mesh))
        np.savez(folder / f"files_{jax.process_index()}.npz", **epoch_of_files(folder / "images", mesh))
        state, losses = five_steps(mesh)
        two_sizes, of_two_sizes = three_steps_of_two_sizes(mesh)
        of_methods = {name: three_steps_of(name, mesh) for name in PAIR_METHODS}
        params = jax.device_get(state.params)
        if jax.process_index() == 0:
            np.savez(folder / "two_sizes.npz", losses=two_sizes, params=of_two_sizes)
            np.savez(folder / "methods.npz", **{name: np.concatenate(found) for name, found in of_methods.items()})
            np.savez(folder / "steps.npz", *jax.tree.leaves(params), losses=losses)
        config.mesh.model = 2
        mesh = mesh_lib.make_mesh(config.mesh)
        method = small_method(mesh, sizes=SIZES)
        state = init_state(method, small_optimizer(), 0, spec_of(method), mesh)
        checkpoints = Checkpoints(epath.Path(folder))
        checkpoints.save(5, state)
        checkpoints.save(6, state)
        checkpoints.wait()
        if jax.process_index() == 0:
            for file in (folder / "checkpoints" / "6").rglob("*"):
                if file.is_file():
                    file.write_bytes(b"")
        processes.agree("progress", {"damaged": True})
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        while not (folder / "of_one_process" / "checkpoints" / "5").exists():
            time.sleep(0.1)
        theirs, _, _ = Checkpoints(epath.Path(folder / "of_one_process")).restore_newest(like)
        saved = np.load(folder / "one.npz")
        for i, found in enumerate(jax.tree.leaves(theirs.params)):
            for shard in found.addressable_shards:
                np.testing.assert_array_equal(shard.data, saved[f"arr_{i}"][shard.index])
        restored, step, notices = checkpoints.restore_newest(like)
        for found, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
            for a, b in zip(found.addressable_shards, expected.addressable_shards, strict=True):
                np.testing.assert_array_equal(a.data, b.data)
        print(f"restored {step} ({len(notices)} damaged), has {checkpoints.steps()}", flush=True)
        add_up = jax.jit(lambda x: x.sum(), out_shardings=mesh_lib.everywhere(mesh))
        kernel = restored.params["projector"]["linear1"]["kernel"]
        while True:
            add_up(kernel).block_until_ready()
            time.sleep(0.05)


def embed(changes, workdir, knn):
    """The tasks `embed` and `knn`, the latter with the changes `knn`; with the small resnet18 of the fixture `judged`."""
    from bt_jax.tasks import embed as embed_task
    from bt_jax.tasks.knn import evaluate_knn

    resnet.BLOCKS["resnet18"] = (1, 1)
    config, by_layer = default("embed"), default("knn")
    config.update_from_flattened_dict(changes)
    by_layer.update_from_flattened_dict({n: tuple(v) if isinstance(v, list) else v for n, v in knn.items()})
    with processes.joined(config, workdir):
        mesh = mesh_lib.make_mesh(config.mesh)
        embed_task.embed_images(config, epath.Path(workdir), mesh)
        evaluate_knn(by_layer, epath.Path(workdir).with_name("knn_of_two"), mesh)


if __name__ == "__main__":
    task, arguments = sys.argv[1], json.loads(sys.argv[2])
    try:
        {"pretrain": pretrain, "steps": steps, "embed": embed}[task](**arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
