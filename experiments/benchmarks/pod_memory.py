"""What a step of a TPU run reads from and writes to HBM, by layer and kind, beside the lower limit by arithmetic.

    JAX_PLATFORMS=cpu python experiments/benchmarks/pod_memory.py [--topology v5e:4x4] [--remat] [--program FILE]

Needs libtpu (pip install -e '.[pod-plan]'). The program that is counted is the one that `--config.task=pod_plan` plans; with
`--program` its text is kept in a file, and read from there the next time. Nothing is run: the bytes are the operands and
results of the compiled program's instructions (bt_jax/planning/compiled.py). GB = 10⁹ bytes, per device and step.
"""

import argparse
import collections
import pathlib
import re
import runpy

from bt_jax.data.views.spec import batch_spec
from bt_jax.engine.state import abstract_state
from bt_jax.engine.step import jit_step, make_train_step
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.models.resnet import BLOCKS
from bt_jax.optim import make_optimizer
from bt_jax.planning.chips import parse_topology
from bt_jax.planning.compiled import Movement, movements
from bt_jax.planning.slices import devices_of
from bt_jax.runtime import mesh as mesh_lib

PARTS = ("optimizer", "loss", "projector", "layer1", "layer2", "layer3", "layer4")
PARAMETERS = 174_535_744  # of the ImageNet config; plans give them


def compiled_text(topology: str, remat: bool) -> str:
    """The text of the ImageNet config's step, compiled for a slice."""
    root = pathlib.Path(__file__).parents[2]
    config = runpy.run_path(str(root / "configs" / "resnet50_imagenet.py"))["get_config"]()
    config.model.remat = remat
    mesh = mesh_lib.make_mesh(config.mesh, devices_of(parse_topology(topology)))
    facts = Facts(1_281_167, 1000, config.batch_size, config.epochs)
    method, optimizer = make_method(config, facts, mesh), make_optimizer(config.optimizer, facts)
    batch = batch_spec(method.view_groups, config.batch_size, mesh_lib.over_batch(mesh))
    state = abstract_state(method, optimizer, batch, mesh)
    return jit_step(make_train_step(method, optimizer, 0), state, mesh).lower(state, batch).compile().as_text()


def part_of(movement: Movement) -> str:
    """The part of the step that an instruction belongs to; what names none is fetched ahead for one of them."""
    if not movement.source:
        return "fetched ahead"
    found = re.search("|".join(PARTS), movement.source)
    return found[0] if found else "stem"


def kind_of(movement: Movement) -> str:
    if movement.convolution:
        return "convolutions"
    if movement.operation in ("fusion", "all-reduce", "select-and-scatter"):
        return movement.operation
    return "copies" if re.match("copy|slice|transpose|pad", movement.operation) else "others"


def by_part(found: list[Movement]) -> dict[tuple[str, str, str], int]:
    """Bytes by part, direction and kind."""
    sums: dict[tuple[str, str, str], int] = collections.Counter()
    for movement in found:
        direction = "backward" if "transpose(" in movement.source else "forward"
        sums[part_of(movement), direction, kind_of(movement)] += movement.bytes
    return sums


def lower_limit(images: int, parameters: int = PARAMETERS, size: int = 2) -> dict[str, float]:
    """GB of a ResNet-50's step if each convolution is one kernel, with all that is around it fused into it.

    Of a convolution with input x and output y (elements; da is the gradient of what follows its norm):

        forward          read x, write y (with its sums)                                   x + y
        by weights       read da and y (the norm's gradient), and x                        2y + x
        by input         read da and y, write dx; read what made x (its mask and sums)     2y + 2x

    A block's end is a kernel that reads two arrays and writes their sum. Of its backward pass, the kernel before it writes
    the gradient and reads two of the three, for the ReLU's mask and the norms' sums. All of it goes to HBM and back; what the
    compiler keeps in the chip's fast memory (128 MiB on v5e) is less. Of the state, a parameter (4 bytes) is read forward,
    backward, for its norm and for its update, its gradient (2 bytes) written, summed over devices (2 · 2), and read for
    both, its momentum read and it and the parameter written: 38 bytes. "together" is the same with both gradients of a convolution in one kernel, which XLA does not have.

    Args:
      images: views per device.
      parameters: float32, of the network.
      size: bytes of an activation.
    """
    stem, pooled = 112**2 * 64, 56**2 * 64
    forward = 224**2 * 3 + stem + stem + pooled  # the images, y, y again for the pool, and its maxima
    backward = stem + 4 * pooled + 224**2 * 3  # y; maxima and their gradients, once for the sums; the images
    by_weights, x, summed = 0, pooled, False  # whether x is a block's end
    for stage, count in enumerate(BLOCKS["resnet50"]):
        side, channels = 56 // 2**stage, 64 * 2**stage
        out = side**2 * channels * 4
        for i in range(count):
            side_in = side * (2 if i == 0 and stage else 1)
            y1, y2 = side_in**2 * channels, side**2 * channels
            inner = [(y1, y2), (y2, out)]  # (x, y) of the second and third convolution
            first = i == 0
            forward += x + y1 + sum(a + b for a, b in inner) + (x + out if first else 0) + 3 * out
            weights = 2 * y1 + x + sum(2 * b + a for a, b in inner) + (2 * out + x if first else 0)
            inputs = 2 * y1 + sum(2 * b + 2 * a for a, b in inner)
            inputs += (2 * out + 2 * x) if first else x  # the shortcut: its convolution's result written and read, or g
            inputs += 3 * x if summed else x  # the gradient is written; two of the sum and its terms give mask and sums
            by_weights, backward = by_weights + weights, backward + weights + inputs
            x, summed = out, True
    backward += 2 * x  # the last block's end
    state = 38 * parameters
    return {
        "forward": forward * images * size / 1e9,
        "backward": backward * images * size / 1e9,
        "state": state / 1e9,
        "together": (forward + backward - by_weights) * images * size / 1e9 + state / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step reads from and writes to HBM.")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--remat", action="store_true", help="with model.remat")
    parser.add_argument(
        "--program", type=pathlib.Path, help="file with the program's text; written if it does not exist"
    )
    arguments = parser.parse_args()
    if arguments.program and arguments.program.exists():
        text = arguments.program.read_text()
    else:
        text = compiled_text(arguments.topology, arguments.remat)
        if arguments.program:
            arguments.program.write_text(text)
    found = movements(text)
    print("| part | direction | kind | GB |\n|---|---|---|---|")
    for (part, direction, kind), count in sorted(by_part(found).items()):
        if count >= 5e7:
            print(f"| {part} | {direction} | {kind} | {count / 1e9:.2f} |")
    print(f"| **all** | | | **{sum(m.bytes for m in found) / 1e9:.2f}** |")
    limit = lower_limit(2 * 2048 // parse_topology(arguments.topology).devices)
    parts = limit["forward"] + limit["backward"] + limit["state"]
    print(
        f"\nlower limit, a kernel a convolution: {parts:.1f} GB = forward {limit['forward']:.1f} + backward "
        f"{limit['backward']:.1f} + state {limit['state']:.1f}; both gradients in one kernel: {limit['together']:.1f}"
    )


if __name__ == "__main__":
    main()
