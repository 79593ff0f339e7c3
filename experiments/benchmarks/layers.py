"""Where a step's time goes on a CPU: each kind of layer of a ResNet-18, forward and backward, beside PyTorch's in the same run.

    python experiments/benchmarks/layers.py [--width 64] [--size 32] [--images 256] [--turns 5]

Each layer runs by itself on random activations of the size that it has in the network, over all cores (bt_jax: a device per
core, as in runs). Times are the least of the turns, in which both sides alternate: what other work disturbs least. "count" is how
often the network has such a layer, and the sums are of counts times times. A step's remainder (loss, projector, optimizer) is not
here; experiments/benchmarks/train_step.py has the whole.
"""

import argparse
import os
import time
from functools import partial

import jax
import numpy as np
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bt_jax.models import ViewBatchNorm
from bt_jax.models.conv import convolution
from bt_jax.runtime import machine


def layers(size: int, width: int, stem_7x7: bool) -> list[tuple[str, int, tuple]]:
    """(kind, count, (side, channels in, channels out, kernel, stride)) of a ResNet-18."""
    found, side = [], size
    if stem_7x7:
        found.append(("conv", 1, (size, 3, width, 7, 2)))
        found.append(("norm", 1, (size // 2, width)))
        side = size // 4
    else:
        found.append(("conv", 1, (size, 3, width, 3, 1)))
        found.append(("norm", 1, (size, width)))
    found += [("conv", 4, (side, width, width, 3, 1)), ("norm", 4, (side, width))]
    for stage in range(1, 4):
        c = width * 2**stage
        found += [
            ("conv", 1, (side, c // 2, c, 3, 2)),
            ("conv", 1, (side, c // 2, c, 1, 2)),
            ("conv", 3, (side // 2, c, c, 3, 1)),
            ("norm", 5, (side // 2, c)),
        ]
        side //= 2
    return found


def ours(kind: str, shape: tuple, images: int, sharding: NamedSharding, whole: NamedSharding):
    """(forward, forward and backward): functions without arguments that run to their end."""
    rng = np.random.default_rng(0)
    side, channels = shape[:2]
    x = jax.device_put(rng.standard_normal((images, side, side, channels), np.float32), sharding)
    if kind == "conv":
        _, c, f, k, stride = shape
        w = jax.device_put(rng.standard_normal((k, k, c, f), np.float32), whole)
        p = (k - 1) // 2
        apply = partial(convolution, strides=(stride, stride), padding=((p, p), (p, p)))
    else:
        norm = ViewBatchNorm()
        variables = norm.init(jax.random.key(0), x[:2], views=1, train=False)
        w = jax.device_put(variables["params"], whole)

        def apply(x, w):
            y, _ = norm.apply({**variables, "params": w}, x, views=2, train=True, mutable=["batch_stats"])
            return jax.nn.relu(y)

    dy = jax.device_put(rng.standard_normal(jax.eval_shape(apply, x, w).shape, np.float32), sharding)

    @jax.jit
    def both(x, w, dy):
        y, back = jax.vjp(apply, x, w)
        return y, back(dy)

    forward = jax.jit(apply)
    return lambda: jax.block_until_ready(forward(x, w)), lambda: jax.block_until_ready(both(x, w, dy))


def theirs(kind: str, shape: tuple, images: int):
    """The same in PyTorch, channels last. Batch norm sees both views at once, which is no more work."""
    side, channels = shape[:2]
    x = torch.randn(images, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
    if kind == "conv":
        _, c, f, k, stride = shape
        layer = torch.nn.Conv2d(c, f, k, stride, (k - 1) // 2, bias=False).to(memory_format=torch.channels_last)
    else:
        layer = torch.nn.Sequential(torch.nn.BatchNorm2d(channels), torch.nn.ReLU(inplace=True))
    with torch.no_grad():
        dy = torch.randn_like(layer(x))

    def forward():
        with torch.no_grad():
            layer(x)

    def both():
        x.grad = None
        layer.zero_grad(set_to_none=True)
        layer(x).backward(dy)

    return forward, both


def least(functions: list, turns: int) -> list[float]:
    """The least milliseconds of each, after a first run that does not count."""
    found = [[] for _ in functions]
    for turn in range(turns + 1):
        for times, function in zip(found, functions, strict=True):
            begin = time.perf_counter()
            function()
            if turn:
                times.append(1e3 * (time.perf_counter() - begin))
    return [min(times) for times in found]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of each layer of a ResNet-18 on a CPU, beside PyTorch's.")
    parser.add_argument("--size", type=int, default=32, help="side of an image in pixels")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--images", type=int, default=256, help="views in a step: twice the batch")
    parser.add_argument("--stem-7x7", action="store_true", help="the stem of large images, with its pool")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", machine.cores())
    machine.keep_memory(os.environ)
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), (AxisType.Auto,))
    sharding, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    print(f"JAX {jax.__version__}, PyTorch {torch.__version__}, {len(jax.devices())} cores; ms, bt_jax / PyTorch")
    sums = np.zeros(4)
    by_kind = {"conv": np.zeros(4), "norm": np.zeros(4)}
    for kind, count, shape in layers(arguments.size, arguments.width, arguments.stem_7x7):
        mine, peer = ours(kind, shape, arguments.images, sharding, whole), theirs(kind, shape, arguments.images)
        found = np.array(least([mine[0], peer[0], mine[1], peer[1]], arguments.turns))
        sums, by_kind[kind] = sums + count * found, by_kind[kind] + count * found
        text = "×".join(map(str, shape[:2])) if kind == "norm" else "{0}×{0}, {1} → {2}, {3}×{3} / {4}".format(*shape)
        print(f"{count} × {kind} {text:<28} {_words(found)}", flush=True)
    for kind, total in (*by_kind.items(), ("all", sums)):
        print(f"{'sum of ' + kind:<37} {_words(total)}")


def _words(found: np.ndarray) -> str:
    forward, peer, both, peer_both = found
    back, peer_back = both - forward, peer_both - peer
    return f"forward {forward:8.1f} / {peer:8.1f} = {peer / forward:4.2f}   backward {back:8.1f} / {peer_back:8.1f} = {peer_back / back:4.2f}"


if __name__ == "__main__":
    main()
