"""The protocol of a method: all that the rest of bt_jax knows of how an encoder is trained."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import flax.linen as nn
import jax
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from bt_jax.data.views.spec import ViewGroup
from bt_jax.facts import Facts
from bt_jax.models.inputs import Inputs

PyTree = Any
Batch = dict[str, Any]


class Method(Protocol):
    """A way to train an encoder: networks, views, loss, and what follows an update of the parameters.

    A batch is `{"views": {group: (N, V, S, S, 3) uint8}, "label": (N,) int32, "example": (N,) int32}`, with a group for
    each of `view_groups` and N over all devices; "example" is an image's number in the training set. Three pytrees make
    up what is trained:

    - `params`: what the optimiser updates, with the encoder's under `params["encoder"]`;
    - `model_state`: what a forward pass updates, `{"batch_stats": {"encoder": …, …}}`;
    - `method_state`: what else is carried from step to step (a target network, a queue, a bank), {} where nothing is.

    All functions of arrays are traced by `jax.jit` and must be pure. Subclass it, and only `name`, `metrics`, `build`,
    `encoder`, `view_groups`, `init` and `loss` are left to be defined; a class that does not must define every part.

    A user's own method also describes its fields of the config, as class attributes: `config_group`, the name of its
    group; `fields`, a `bt_jax.config.Field` for each by its name; `optimizer`, the name of the optimiser that it is
    trained with, "lars" or "sgd". (Those of bt_jax's own methods are in bt_jax/config/methods.)

    Attributes:
      name: what the method is called in a run's log.
      encoder: the Linen module that `build` was given.
      view_groups: the views of a batch; Barlow Twins has one group of two.
      metrics: the names of what `loss` reports, in the order of the progress line; "loss" is the first.
      short_names: shorter names for the progress line, by metric.
      needs_labels: whether the training set must have labels.
      needs_stable_examples: whether an image must have the same number in every epoch, as a memory bank needs.
      alignment: the group and the two of its views whose features' alignment and uniformity the monitor reports; None
        where no two views show the same image.
      advice: what to change where the loss is not finite, a whole sentence.
    """

    if TYPE_CHECKING:  # to be read only; at run time a dataclass would take a property for its field's default

        @property
        def encoder(self) -> nn.Module: ...

        @property
        def view_groups(self) -> tuple[ViewGroup, ...]: ...

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    short_names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    needs_labels: ClassVar[bool] = False
    needs_stable_examples: ClassVar[bool] = False
    alignment: ClassVar[tuple[str, int, int] | None] = None
    advice: ClassVar[str] = "Lower the learning rates in optimizer, or lengthen optimizer.warmup_epochs."

    config_group: ClassVar[str]
    fields: ClassVar[Mapping[str, Any]]
    optimizer: ClassVar[str]

    @classmethod
    def build(
        cls, settings: ConfigDict, *, encoder: nn.Module, inputs: Inputs, facts: Facts, mesh: Mesh | None
    ) -> Self:
        """The method of a run.

        Args:
          settings: the method's group of the config.
          encoder: as `bt_jax.models.make_encoder` makes it.
          inputs: the images' size, normalisation and dtype.
          facts: the lengths of the run.
          mesh: of the run; None: one device.

        Raises:
          UserError: settings that do not go together.
        """
        raise NotImplementedError

    def init(self, rng: jax.Array, batch_spec: Batch) -> tuple[PyTree, PyTree, PyTree]:
        """(params, model_state, method_state) before the first step.

        Args:
          batch_spec: shapes and dtypes of a batch, as `bt_jax.data.views.spec.batch_spec` gives them.
        """
        raise NotImplementedError

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, step: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        """The loss of the global batch, to be differentiated by `params`.

        Args:
          step: () int32, how many updates were made before.
          rng: a key of this step's own.

        Returns:
          (loss, (model_state, method_state, metrics)): a scalar; the states after the forward pass, structured as they
          came; scalars by the names in `metrics`.
        """
        raise NotImplementedError

    def after_update(
        self, old_params: PyTree, params: PyTree, method_state: PyTree, step: jax.Array
    ) -> tuple[PyTree, PyTree]:
        """(params, method_state) after an update: where a target network follows or prototypes are renormalised.

        Args:
          old_params, params: before the optimiser's update and after it.
          method_state: as `loss` returned it.
          step: () int32, how many updates have been made, this one included.
        """
        del old_params, step
        return params, method_state

    def partition(self, path: Sequence[str]) -> PartitionSpec:
        """How an array of the train state is split over the axes of the run's mesh; by default every device holds all.

        Args:
          path: the names on the way to it, such as ("params", "projector", "linear1", "kernel"); what the optimiser
            keeps of a parameter has that parameter's names at its end.
        """
        del path
        return PartitionSpec()

    def heads(self) -> dict[str, nn.Module]:
        """What stands on the encoder, by its name in `params`: it is exported with the encoder."""
        return {}

    def loss_flops(self, batch_size: int) -> float:
        """The FLOPs of the loss's float32 products (precision "highest") in a step, on each device."""
        del batch_size
        return 0.0

    def describe(self, batch_size: int) -> dict[str, str]:
        """Lines for the summary at the start of a run, by title."""
        del batch_size
        return {}


def model_state_of(variables: Mapping[str, PyTree]) -> PyTree:
    """The `model_state` among the variables of a network whose encoder is named "encoder".

    An encoder without batch norm has no statistics: its place is kept, empty.
    """
    return {"batch_stats": {"encoder": {}, **variables.get("batch_stats", {})}}
