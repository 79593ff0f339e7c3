"""What a step sends between devices, read from the compiled program, compared with the official program.

    python experiments/benchmarks/traffic.py [--config configs/resnet50_imagenet.py] [--devices 8 64 256] [--model 1]

The config's step is compiled for simulated CPU devices; nothing is run. Megabytes are what each device sends per step, by the
algorithms that send least (bt_jax/planning/compiled.py). The official program's traffic is computed from its code, for the same
number of GPUs with one process each:

    gradients    DistributedDataParallel's all-reduce of all parameters, float32
    C            an all-reduce of the D × D cross-correlation, float32
    statistics   SyncBatchNorm, once for each view: in the forward pass each process gathers mean, inverse deviation and
                 count of all (an all-gather of 2C + 1 numbers per norm), in the backward pass an all-reduce of two sums
"""

import argparse
import os
import pathlib
import runpy
import time

DEVICES = (8, 64, 256)


def ring(size: float, devices: int) -> float:
    """Bytes that each device sends in an all-reduce of `size` bytes."""
    return 2 * size * (devices - 1) / devices


def official(parameters: int, channels: int, norms: int, d: int, devices: int) -> dict[str, float]:
    """Bytes that each GPU sends in a step of the official program."""
    gathered = 4 * (2 * channels + norms) * (devices - 1)
    return {
        "gradients": ring(4 * parameters, devices),
        "loss": ring(4 * d * d, devices),
        "statistics": 2 * (gathered + ring(4 * 2 * channels, devices)),
    }


def ours(found: list, n: int, data: int, model: int) -> dict[str, float]:
    """Bytes that each device sends, by purpose; one collective may serve several.

    Args:
      found: the step's collectives.
      n: the batch.
      data, model: devices along the mesh's axes.
    """
    from bt_jax.planning.compiled import size_in_bytes

    sums = {"gradients": 0.0, "loss": 0.0, "statistics": 0.0, "activations": 0.0}
    for collective in found:
        for shape in collective.shapes:
            _, dims = shape
            if dims == (n, n) or collective.kind == "all-to-all":
                purpose = "loss"
            elif collective.kind != "all-reduce" or (model > 1 and len(dims) == 2 and dims[0] == n // data):
                purpose = "activations"  # between layers that are split along "model"
            elif len(dims) == 2 and dims[0] == 2:
                purpose = "statistics"
            else:
                purpose = "gradients"
            sums[purpose] += collective.sent * size_in_bytes(shape) / collective.bytes
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step sends between devices.")
    root = pathlib.Path(__file__).parents[2]
    parser.add_argument("--config", default=str(root / "configs" / "resnet50_imagenet.py"))
    parser.add_argument("--devices", nargs="+", type=int, default=list(DEVICES))
    parser.add_argument("--model", type=int, default=1, help="devices that share each of the projector's layers")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={max(arguments.devices)}"

    import jax

    from bt_jax.data.views.spec import batch_spec
    from bt_jax.engine.state import abstract_state, count_parameters
    from bt_jax.engine.step import jit_step, make_train_step
    from bt_jax.facts import Facts
    from bt_jax.methods import make_method
    from bt_jax.optim import make_optimizer
    from bt_jax.planning.compiled import collectives
    from bt_jax.runtime import mesh as mesh_lib

    config = runpy.run_path(arguments.config)["get_config"]()
    config.mesh.model = arguments.model
    n, d, side = config.batch_size, config.barlow_twins.projector[-1], config.data.image_size
    print(f"{config.model.arch} at {side}×{side}, D = {d}, batch {n}; MB that each device sends per step")
    print(
        f"{'devices':>8} {'program':<10} {'gradients':>10} {'loss':>8} {'statistics':>11} {'between layers':>15} {'total':>8}"
    )
    for devices in arguments.devices:
        config.mesh.data = devices // arguments.model
        mesh = mesh_lib.make_mesh(config.mesh)
        facts = Facts(1000 * n, 0, n, config.epochs)
        method, optimizer = make_method(config, facts, mesh), make_optimizer(config.optimizer, facts)
        batch = batch_spec(method.view_groups, n, mesh_lib.over_batch(mesh))
        state = abstract_state(method, optimizer, batch, mesh)
        begin = time.monotonic()
        program = jit_step(make_train_step(method, optimizer, 0), state, mesh).lower(state, batch).compile()
        seconds = time.monotonic() - begin
        norms = [leaf.size for leaf in jax.tree.leaves(state.model_state)]  # means and variances
        rows = {
            "official": official(count_parameters(state.params), sum(norms) // 2, len(norms) // 2, d, devices),
            "bt_jax": ours(collectives(program.as_text(), devices), n, config.mesh.data, arguments.model),
        }
        for name, row in rows.items():
            cells = [row.get(key, 0) / 1e6 for key in ("gradients", "loss", "statistics", "activations")]
            line = "{:>8} {:<10} {:10.1f} {:8.1f} {:11.2f} {:15.1f} {:8.1f}".format(devices, name, *cells, sum(cells))
            print(line + (f"   compiled in {seconds:.0f} s" if name == "bt_jax" else ""), flush=True)
        share = {key: rows["official"][key] / max(rows["bt_jax"][key], 1) for key in ("loss", "statistics")}
        total = sum(rows["official"].values()) / sum(rows["bt_jax"].values())
        print(
            f"{'':>8} {'ratio':<10} {'':10} {share['loss']:8.1f} {share['statistics']:11.1f} {'':15} {total:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
