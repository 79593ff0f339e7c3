"""The linear probe on cached features: multinomial logistic regression by L-BFGS, in minutes where SGD takes hours.

    minimise  Σ_i w_i · -log softmax(W x_i + b)[y_i] / Σ_i w_i  +  ½ l2 ‖W‖²

The features are standardised, column by column, with the mean and deviation of the train images, so that one l2 suits all
columns and the problem is well conditioned in float32. l2 is chosen on a held-out part of the *train* images (the largest
one on a tie), and the classifier is then refitted on all of them. The test images are used once, at the end.

In scikit-learn this is LogisticRegression(C=1 / (n · l2)).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from bt_jax.data.order import permutation
from bt_jax.evaluation.metrics import Counts, count_hits
from bt_jax.runtime import mesh as mesh_lib

Classifier = dict[str, np.ndarray]  # {"kernel": (F, C), "bias": (C,)}, float32


def standardizer(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, deviation) of each column, (F,) float32 both, computed in float64; 1 in place of a deviation of 0."""
    mean = features.mean(axis=0, dtype=np.float64)
    squares = sum(np.square(part - mean).sum(axis=0) for part in _parts(features))
    deviation = np.sqrt(squares / len(features))
    return mean.astype(np.float32), np.where(deviation > 0, deviation, 1.0).astype(np.float32)


def _parts(features: np.ndarray) -> list[np.ndarray]:
    """Blocks of rows, so that no float64 copy of the whole is made."""
    return [features[i : i + 65536] for i in range(0, len(features), 65536)]


class CachedProbe:
    """Fits classifiers to the features of train images, which are kept on the devices.

    Attributes:
      iterations: of L-BFGS in the last fit.
    """

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, *, num_classes: int, mesh: Mesh, max_iterations: int = 1000
    ):
        """Args:
        features: (n, F) float32; labels: (n,) integers from 0 to num_classes - 1.
        max_iterations: of L-BFGS in one fit; it stops earlier if the gradient vanishes.
        """
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError(f"features is {features.shape} and labels {labels.shape}; they must be (n, F) and (n,).")
        self._mesh, self._n, self._num_classes = mesh, len(features), num_classes
        self._mean, self._deviation = standardizer(features)
        self._features = self._placed(features)
        self._labels = mesh_lib.put_batch(mesh, self._padded(self._n), {"y": self._mine(labels.astype(np.int32))})["y"]
        self._fit, self.iterations = _compiled_fit(mesh, num_classes, max_iterations), 0

    def fit(self, l2: float, *, counted: np.ndarray | None = None, start: Any = None) -> Classifier:
        """The classifier with the smallest loss.

        Args:
          counted: (n,) bool, the images that the loss covers; all of them by default.
          start: the classifier to start from, zeros by default; it does not change the optimum.
        """
        counted = np.ones(self._n, bool) if counted is None else counted
        weights = mesh_lib.put_batch(
            self._mesh, self._padded(self._n), {"w": self._mine((counted / counted.sum()).astype(np.float32))}
        )["w"]
        width = self._features.shape[1]
        start = start or {
            "kernel": np.zeros((width, self._num_classes), np.float32), "bias": np.zeros(self._num_classes, np.float32)
        }  # fmt: skip
        start = jax.device_put(start, mesh_lib.everywhere(self._mesh))
        found, iterations = jax.device_get(self._fit(start, self._features, self._labels, weights, np.float32(l2)))
        self.iterations = int(iterations)
        return found

    def fit_best(
        self, l2s: Sequence[float], *, held_out: float = 0.1, seed: int = 0
    ) -> tuple[Classifier, float, dict[float, float]]:
        """Chooses l2 on a part of the train images, and fits on all of them.

        Args:
          l2s: tried from the largest down, each starting from the previous classifier.
          held_out: the fraction held out, at least one image and not all.
          seed: for the choice of that part.

        Returns:
          (classifier, l2, accuracy on the held-out part by l2).

        Raises:
          ValueError: there is only one image.
        """
        if self._n < 2:
            raise ValueError("a single image cannot be both fitted and held out; at least 2 are needed.")
        held = np.zeros(self._n, bool)
        held[permutation(seed, 0, self._n)[: min(max(1, round(self._n * held_out)), self._n - 1)]] = True
        accuracy, classifiers, classifier = {}, {}, None
        for l2 in sorted(l2s, reverse=True):
            classifier = self.fit(l2, counted=~held, start=classifier)
            classifiers[l2] = classifier
            accuracy[l2] = self._count(classifier, self._features, self._labels, self._mine(held)).result()["top1"]
        best = max(accuracy, key=lambda l2: accuracy[l2])  # on a tie the first, which is the largest l2
        return self.fit(best, start=classifiers[best]), best, accuracy

    def count(self, classifier: Classifier, features: np.ndarray, labels: np.ndarray) -> Counts:
        """Hits among other images with features (m, F) and labels (m,); each image counts once."""
        y = mesh_lib.put_batch(self._mesh, self._padded(len(labels)), {"y": self._mine(labels.astype(np.int32))})["y"]
        return self._count(classifier, self._placed(features), y, self._mine(np.ones(len(labels), bool)))

    def _count(self, classifier, features, labels, mask) -> Counts:
        mask = mesh_lib.put_batch(self._mesh, len(features), {"m": mask})["m"]
        classifier = jax.device_put(classifier, mesh_lib.everywhere(self._mesh))
        return Counts.of(jax.device_get(_count(classifier, features, labels, mask)))

    def standardized(self, features: np.ndarray) -> np.ndarray:
        """Features (m, F) standardised as the classifier expects them, float32."""
        return (features - self._mean) / self._deviation

    def _placed(self, features: np.ndarray) -> jax.Array:
        """Standardised features split over all devices, padded with zeros."""
        return mesh_lib.put_batch(
            self._mesh, self._padded(len(features)), {"x": self._mine(self.standardized(features))}
        )["x"]

    def _padded(self, n: int) -> int:
        return -(-n // self._mesh.size) * self._mesh.size

    def _mine(self, array: np.ndarray) -> np.ndarray:
        """This process's rows of an array that every process holds, padded with zeros."""
        size = self._padded(len(array))
        filled = np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
        rows = mesh_lib.process_rows(self._mesh, size)
        return filled if len(rows) == size else filled[rows]


def _logits(classifier: Any, features: jax.Array) -> jax.Array:
    product = jnp.matmul(features, classifier["kernel"], precision="highest")
    return product + classifier["bias"][None, :]


@jax.jit
def _count(classifier, features, labels, mask):
    return count_hits(_logits(classifier, features), labels, mask)


@functools.lru_cache(maxsize=4)
def _compiled_fit(mesh: Mesh, num_classes: int, max_iterations: int):
    """fit(start, features, labels, weights, l2) -> (classifier, iterations); compiled once for all values of l2."""
    solver = optax.lbfgs(memory_size=10)

    def fit(start, features, labels, weights, l2):
        def loss(classifier):
            nll = optax.softmax_cross_entropy_with_integer_labels(_logits(classifier, features), labels)
            return jnp.sum(weights * nll) + 0.5 * l2 * jnp.sum(jnp.square(classifier["kernel"]))

        value_and_grad = optax.value_and_grad_from_state(loss)

        def goes_on(carry):
            _, state, iteration, stalled = carry
            gradient = optax.tree_utils.tree_get(state, "grad")
            size = optax.tree_utils.tree_norm(gradient, ord=jnp.inf)
            return (iteration < max_iterations) & (stalled < 3) & ((iteration == 0) | (size > 1e-6))

        def iterate(carry):
            classifier, state, iteration, stalled = carry
            before = optax.tree_utils.tree_get(state, "value")
            value, gradient = value_and_grad(classifier, state=state)
            updates, state = solver.update(gradient, state, classifier, value=value, grad=gradient, value_fn=loss)
            after = optax.tree_utils.tree_get(state, "value")
            # A float32 loss cannot fall forever: stop after three steps without a gain.
            gains = (before - after) > 1e-7 * jnp.abs(after)
            return optax.apply_updates(classifier, updates), state, iteration + 1, jnp.where(gains, 0, stalled + 1)

        carry = (start, solver.init(start), jnp.int32(0), jnp.int32(0))
        classifier, _, iterations, _ = jax.lax.while_loop(goes_on, iterate, carry)
        return classifier, iterations

    return jax.jit(fit, out_shardings=mesh_lib.everywhere(mesh))
