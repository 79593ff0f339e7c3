"""What the train step asks of a method, and all that it knows of one."""

from typing import Any, Protocol

import jax

PyTree = Any
Batch = dict[str, jax.Array]


class Method(Protocol):
    """A way to train an encoder.

    A batch is `{"views": (N, V, H, W, 3) uint8, "label": (N,) int32}`, N over all devices; a method takes what it needs.
    Three things make up its variables:

    - `params`: what the optimiser updates, with the encoder's under `params["encoder"]`;
    - `model_state`: what a forward pass updates, `{"batch_stats": {"encoder": …, …}}`;
    - `method_state`: whatever else lives from step to step (a target network, a queue, prototypes), {} where nothing does.
    """

    encoder: Any  # a Linen module, as bt_jax.models.make_encoder gives it
    metrics: tuple[str, ...]  # what `loss` reports, in the order to be shown; "loss" first

    def init(self, rng: jax.Array, view_shape: tuple[int, ...]) -> tuple[PyTree, PyTree, PyTree]:
        """(params, model_state, method_state) at the start, for views of `view_shape` (H, W, 3)."""

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        """(loss, (model_state, method_state, metrics)) of the global batch; metrics are scalars, by name."""

    def after_update(self, params: PyTree, method_state: PyTree, step: jax.Array) -> PyTree:
        """The method_state after the optimiser has made `params` of step `step` (a moving average, a queue)."""

    def describe(self, batch_size: int) -> dict[str, str]:
        """Lines for the summary at the start of a run, by title."""
