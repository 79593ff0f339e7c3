"""Supervised training as a method: one view of an image, its label, and a linear classifier on the encoder."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.views.spec import ViewGroup, ViewSpec
from bt_jax.errors import UserError
from bt_jax.facts import Facts
from bt_jax.losses.softmax import smoothed_entropy, softmax_cross_entropy
from bt_jax.methods.base import Batch, LossLevels, Method, PyTree, model_state_of
from bt_jax.models import LinearClassifier
from bt_jax.models.inputs import Inputs


@dataclasses.dataclass(frozen=True)
class Supervised(Method):
    """The method `supervised`: `params` has "encoder" and "classifier"; no `method_state`.

    Evaluations that train a classifier use this method too: fine-tuning starts from a trained encoder, and linear probes
    freeze it (official evaluate.py).

    Attributes:
      classifier: features (N, F) -> logits (N, K); with a batch norm, `batch_stats` has "classifier" too.
      view: the distribution of the view.
      label_smoothing: see `bt_jax.losses.softmax`.
      freeze_encoder: whether the encoder only computes features, with its running statistics, without a gradient and
        without updating the statistics. The optimizer must leave `params["encoder"]` out, as weight decay would change it.
    """

    encoder: nn.Module
    classifier: LinearClassifier
    inputs: Inputs
    view: ViewSpec
    label_smoothing: float = 0.0
    freeze_encoder: bool = False

    name: ClassVar[str] = "supervised"
    title: ClassVar[str] = "supervised learning"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    short_names: ClassVar[dict[str, str]] = {"accuracy": "acc"}
    metric_words: ClassVar[dict[str, str]] = {
        "accuracy": "Share of the batch's views that are classified correctly, while the network learns them."
    }
    needs_labels: ClassVar[bool] = True

    @classmethod
    def build(
        cls, settings: ConfigDict, *, encoder: nn.Module, inputs: Inputs, facts: Facts, mesh: Mesh | None
    ) -> "Supervised":
        del mesh
        if facts.num_classes < 2:
            raise UserError(
                f"supervised training needs labels of at least 2 classes, but the training set has {facts.num_classes}; "
                "choose a labelled set, or another method."
            )
        return cls(
            encoder=encoder,
            classifier=LinearClassifier(facts.num_classes),
            inputs=inputs,
            view=ViewSpec(**settings.view),
            label_smoothing=settings.label_smoothing,
        )

    @property
    def view_groups(self) -> tuple[ViewGroup, ...]:
        return (ViewGroup("image", (self.view,), self.inputs.image_size, self.inputs.pixels),)

    def init(self, rng: jax.Array, batch_spec: Batch) -> tuple[PyTree, PyTree, PyTree]:
        classifier_rng, encoder_rng = jax.random.split(rng)
        images = jnp.zeros((2, *batch_spec["views"]["image"].shape[2:]), self.inputs.dtype)
        encoder = self.encoder.init(encoder_rng, images, train=False)
        features = jnp.zeros((1, self.encoder.num_features))
        classifier = self.classifier.init(classifier_rng, features)
        statistics = {"encoder": encoder.get("batch_stats", {})}
        if "batch_stats" in classifier:
            statistics["classifier"] = classifier["batch_stats"]
        params = {"encoder": encoder["params"], "classifier": classifier["params"]}
        return params, model_state_of({"batch_stats": statistics}), {}

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, step: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        del step, rng  # the view is already made, and nothing else is random
        images = self.inputs.normalize(batch["views"]["image"][:, 0])
        statistics = dict(model_state["batch_stats"])
        encoder = {"params": params["encoder"], "batch_stats": statistics["encoder"]}
        if self.freeze_encoder:
            features = jax.lax.stop_gradient(self.encoder.apply(encoder, images, train=False))
        else:
            features, new = self.encoder.apply(encoder, images, train=True, mutable=["batch_stats"])
            statistics["encoder"] = new.get("batch_stats", {})
        with jax.named_scope("loss"):
            classifier = {"params": params["classifier"], "batch_stats": statistics.get("classifier", {})}
            logits: Any
            logits, new = self.classifier.apply(classifier, features, train=True, mutable=["batch_stats"])
            if "classifier" in statistics:
                statistics["classifier"] = new["batch_stats"]
            loss, parts = softmax_cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        return loss, (model_state_of({"batch_stats": statistics}), method_state, {"loss": loss, **parts})

    def heads(self) -> dict[str, nn.Module]:
        return {"classifier": self.classifier}

    def loss_levels(self, batch_size: int) -> LossLevels:
        del batch_size
        classes = self.classifier.num_classes
        return LossLevels(math.log(classes), smoothed_entropy(classes, self.label_smoothing))

    def describe(self, batch_size: int) -> dict[str, str]:
        classes, levels = self.classifier.num_classes, self.loss_levels(batch_size)
        return {
            "classes": f"{classes}, with a linear classifier on {self.encoder.num_features} features",
            "loss": f"about {levels.start:.2f} at the start, ln {classes}"
            + (
                f"; never below {levels.floor:.3g}, with labels smoothed by {self.label_smoothing:g}"
                if levels.floor
                else ""
            ),
        }
