"""Memory and speed of the exact kNN search, compared with the usual way, which holds a block's similarities with all images.

    python experiments/benchmarks/knn.py [--train 50000] [--features 512] [--test 2048] [--k 200] [--devices 1]

Each implementation runs in a separate process, so that its peak of resident memory can be measured; memory held before the
search (the interpreter, the libraries, the features as numpy arrays) is subtracted. The peer is what most programs do, in the
same JAX: one product of a block of test images with all train images, and a top-k over all of it. scikit-learn's brute force in
float32 is the third. All predictions are compared.
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import threading
import time

import numpy as np

CLASSES, BLOCK = 100, 1024


def features(n: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes, float32, and their labels."""
    centres = np.random.default_rng(0).standard_normal((CLASSES, width), np.float32)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    return centres[labels] + 3 * rng.standard_normal((n, width), np.float32), labels


def sharded(train, labels, test, k):
    from bt_jax.evaluation.knn import knn_predict

    return knn_predict(train, labels, test, num_classes=CLASSES, k=k, block=BLOCK, mesh=mesh())


@functools.cache
def votes_of(k):
    """Compiled once, not at each turn."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def votes(train, labels, rows):
        top, index = jax.lax.top_k(jnp.matmul(rows, train.T, precision="highest"), k)
        one_hot = jnp.zeros((len(rows), CLASSES))
        return one_hot.at[jnp.arange(len(rows))[:, None], labels[index]].add(jnp.exp((top - 1) / 0.1)).argmax(axis=1)

    return votes


def all_at_once(train, labels, test, k):
    import jax.numpy as jnp

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    votes, held, y = votes_of(k), jnp.asarray(unit(train)), jnp.asarray(labels)
    return np.concatenate([votes(held, y, unit(test[i : i + BLOCK])) for i in range(0, len(test), BLOCK)])


def scikit_learn(train, labels, test, k):
    from sklearn.neighbors import KNeighborsClassifier

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    # On the unit sphere the squared distance is 2 - 2·similarity.
    peer = KNeighborsClassifier(k, algorithm="brute", weights=lambda d: np.exp(-np.square(d) / 2 / 0.1))
    return peer.fit(unit(train), labels).predict(unit(test))


def mesh():
    import jax

    return jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))


WAYS = {"bt_jax": sharded, "all at once": all_at_once, "scikit-learn": scikit_learn}


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def measured(way: str, arguments: argparse.Namespace) -> dict:
    """Measures in this process: seconds, and peak memory in bytes above what was held before."""
    train, labels = features(arguments.train, arguments.features, 1)
    test, _ = features(arguments.test, arguments.features, 2)
    WAYS[way](
        train[:4096], labels[:4096], test[:BLOCK], min(arguments.k, 4096)
    )  # imports, and their permanent allocations
    before, peak, done = resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    predicted = WAYS[way](train, labels, test, arguments.k)
    done.set()
    watcher.join()
    times = []
    for _ in range(arguments.repeats):  # compiled by now
        begin = time.perf_counter()
        WAYS[way](train, labels, test, arguments.k)
        times.append(time.perf_counter() - begin)
    return {"seconds": float(np.median(times)), "bytes": peak[0] - before, "predicted": np.asarray(predicted).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("train", 50000),
        ("features", 512),
        ("test", 2048),
        ("k", 200),
        ("devices", 1),
        ("repeats", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measured(arguments.way, arguments)))
        return
    n, f, k, p = arguments.train, arguments.features, arguments.k, arguments.devices
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={p}"}
    print(
        f"{n} × {f} train features ({4 * n * f / 2**20:.0f} MiB), {arguments.test} test images, k = {k}, {p} device(s)\n"
    )
    print(
        "| implementation | peak above the inputs, MiB | test images per second | time relative to bt_jax | same predictions |"
    )
    print("|---|---|---|---|---|")
    ours = None
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, *sys.argv[1:]]
        found = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
        ours = ours or found
        same = np.mean(np.array(found["predicted"]) == np.array(ours["predicted"]))
        rate = arguments.test / found["seconds"]
        ratio = found["seconds"] / ours["seconds"]
        print(f"| {way} | {found['bytes'] / 2**20:.0f} | {rate:.0f} | {ratio:.2f} | {same:.2%} |", flush=True)


if __name__ == "__main__":
    main()
