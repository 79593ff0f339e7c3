"""The protocol of a method: all that the rest of bt_jax knows about how an encoder is trained."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import flax.linen as nn
import jax
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from bt_jax.config import Field
from bt_jax.data.views.spec import ViewGroup
from bt_jax.facts import Facts
from bt_jax.models.inputs import Inputs

PyTree = Any
Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LossLevels:
    """What is known about a loss before the first step.

    Attributes:
      start: its expected value for embeddings that have learnt nothing; None if that is not known.
      floor: a lower bound; None if none is known.
      weights: the factors with which parts of the loss, by their names in `metrics`, add up to it; {} if it has none.
    """

    start: float | None = None
    floor: float | None = None
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Method(Protocol):
    """A way to train an encoder: networks, views, loss, and what follows an update of the parameters.

    A batch is `{"views": {group: (N, V, S, S, C) uint8 or uint16}, "label": (N,) int32, "example": (N,) int32}`, with a group for
    each of `view_groups` and N over all devices; "example" is an image's number in the training set. Training state is
    three pytrees:

    - `params`: updated by the optimizer, with the encoder's under `params["encoder"]`;
    - `model_state`: updated by a forward pass, `{"batch_stats": {"encoder": …, …}}`;
    - `method_state`: anything else that is carried from step to step (a queue, a bank), or {}. A target network's parameters
      are in `method_state["target"]` and its statistics in `batch_stats["target"]`, by the names that they have for the
      online network: then it can be exported, and starts from the weights of `init_from` too.

    All functions of arrays are traced by `jax.jit` and must be pure. A subclass must define only `name`, `metrics`, `build`,
    `encoder`, `view_groups`, `init` and `loss`; a class that is not a subclass must define every part.

    A user's own method also declares its config fields, as class attributes: `config_group`, the name of its group;
    `fields`, `bt_jax.config.Field` objects by name; `optimizer`, the optimizer that trains it, such as "lars"; optionally
    `defaults` of other fields, such as "epochs", and `contradictions` between fields. (Those of bt_jax's own methods are in
    bt_jax/config/methods.)

    Attributes:
      name: the method's name in a run's log.
      encoder: the Linen module that `build` was given.
      view_groups: the views of a batch; Barlow Twins has one group of two.
      metrics: the names of the metrics that `loss` returns, in the order of the progress line, "loss" first.
      short_names: shorter names for the progress line, by metric.
      title: the method's name as people write it, for the report; "" for `name`. (A class that is no subclass may do without,
        and without the next.)
      metric_words: for the report, what metrics are that are no parts of the loss, a whole sentence by metric.
      needs_labels: whether the training set must have labels.
      needs_stable_examples: whether an image must have the same number in every epoch, as for a memory bank.
      alignment: a group and two of its views, for the monitor's alignment and uniformity; None if no two views show the
        same image.
      advice: what to change if the loss is not finite, a whole sentence.
      overfitting_advice: what to do if the accuracy falls while the loss falls, the rest of a sentence that begins with "to
        cure that, ".
    """

    if TYPE_CHECKING:  # read-only; at run time a dataclass would take a property for its field's default

        @property
        def encoder(self) -> nn.Module: ...

        @property
        def view_groups(self) -> tuple[ViewGroup, ...]: ...

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    short_names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    title: ClassVar[str] = ""
    metric_words: ClassVar[Mapping[str, str]] = MappingProxyType({})
    needs_labels: ClassVar[bool] = False
    needs_stable_examples: ClassVar[bool] = False
    alignment: ClassVar[tuple[str, int, int] | None] = None
    advice: ClassVar[str] = "Lower the learning rates in optimizer, or lengthen optimizer.warmup_epochs."
    overfitting_advice: ClassVar[str] = "train for fewer epochs"

    config_group: ClassVar[str]
    fields: ClassVar[Mapping[str, Field]]
    optimizer: ClassVar[str]

    @classmethod
    def build(
        cls, settings: ConfigDict, *, encoder: nn.Module, inputs: Inputs, facts: Facts, mesh: Mesh | None
    ) -> Self:
        """The method for a run.

        Args:
          settings: the method's group of the config.
          encoder: from `bt_jax.models.make_encoder`.
          inputs: the images' size, normalisation and dtype.
          facts: the lengths of the run.
          mesh: of the run; None for one device.

        Raises:
          UserError: settings that contradict each other.
        """
        raise NotImplementedError

    def init(self, rng: jax.Array, batch_spec: Batch) -> tuple[PyTree, PyTree, PyTree]:
        """(params, model_state, method_state) before the first step.

        Args:
          batch_spec: shapes and dtypes of a batch, from `bt_jax.data.views.spec.batch_spec`.
        """
        raise NotImplementedError

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, step: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        """The loss of the global batch, to be differentiated with respect to `params`.

        Args:
          step: () int32, the number of updates before this one.
          rng: a key for this step.

        Returns:
          (loss, (model_state, method_state, metrics)): a scalar; the states after the forward pass, with unchanged
          structure; scalars by the names in `metrics`.
        """
        raise NotImplementedError

    def after_update(
        self, old_params: PyTree, params: PyTree, method_state: PyTree, step: jax.Array
    ) -> tuple[PyTree, PyTree]:
        """(params, method_state) after an update, for example to move a target network or to renormalise prototypes.

        Args:
          old_params, params: before and after the optimizer's update.
          method_state: from `loss`.
          step: () int32, the number of updates so far, including this one.
        """
        del old_params, step
        return params, method_state

    def partition(self, path: Sequence[str]) -> PartitionSpec:
        """How an array of the train state is split over the axes of the run's mesh; by default every device has all of it.

        Args:
          path: the names on the path to it, such as ("params", "projector", "linear1", "kernel"); the path of an
            optimizer's state for a parameter ends with that parameter's names.
        """
        del path
        return PartitionSpec()

    def heads(self) -> dict[str, nn.Module]:
        """The modules on top of the encoder, by their names in `params`; they are exported with it."""
        return {}

    def collapse(self, metrics: Mapping[str, float]) -> str:
        """A sentence with advice if a step's metrics show that the network collapses, else ""; a run says it once."""
        del metrics
        return ""

    def loss_levels(self, batch_size: int) -> LossLevels:
        """What the report of a run draws beside the loss. (A class that is no subclass may do without.)"""
        del batch_size
        return LossLevels()

    def loss_flops(self, batch_size: int) -> float:
        """FLOPs of the loss's float32 products (precision "highest") per step and device."""
        del batch_size
        return 0.0

    def describe(self, batch_size: int) -> dict[str, str]:
        """Lines for the summary at the start of a run, by title."""
        del batch_size
        return {}


def model_state_of(variables: Mapping[str, PyTree]) -> PyTree:
    """The `model_state` from the variables of a network whose encoder is named "encoder".

    For an encoder without batch norm it has an empty entry.
    """
    return {"batch_stats": {"encoder": {}, **variables.get("batch_stats", {})}}
