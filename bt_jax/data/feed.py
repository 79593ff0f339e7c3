"""A run's batches on the mesh: one interface, wherever the views are made.

`data.views` says where. "host": by TensorFlow, with exactly Pillow's levels. "device": on the accelerator, for a machine whose
host is weak; a set that fits stays in its memory, others are sent image by image (device_feed.py).
"""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.device_feed import make_device_feed
from bt_jax.data.sources.base import Source, import_tensorflow
from bt_jax.data.subsets import with_checked_labels
from bt_jax.data.views.spec import ViewGroup, check_groups
from bt_jax.facts import Facts
from bt_jax.runtime import mesh as mesh_lib

Tree = Any


class Feed(Protocol):
    """A run's batches on the mesh, either as a train step takes them or as `prepare` needs them.

    A batch is {"views": {group: (N, V, S, S, C) uint8 or uint16}, "label": (N,) int32, "example": (N,) int32}, a pure function of (seed,
    step) on any number of devices (bt_jax/data/views/spec.py, `batch_spec`).

    Attributes:
      words: how views are made, for the summary of a run; "" if the host makes them.
      prepare: None if batches come ready; else (resident, item) -> batch, to be jitted together with the step.
    """

    @property
    def mesh(self) -> Mesh: ...

    @property
    def words(self) -> str: ...

    @property
    def prepare(self) -> Callable[[Tree, Tree], Tree] | None: ...

    def batches(self, start_step: int, total_steps: int) -> Generator[tuple[int, Tree], None, None]:
        """(the number of steps done after it, a delivery), one per dispatch.

        A delivery is a batch if `prepare` is None. Otherwise it is an item of one step, to be prepared with resident None, or
        {"resident": …, "items": …}, whose items have an axis of steps in front.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostFeed:
    """Views are made by the host; batches come ready."""

    source: Source
    config: ConfigDict  # `config.data` of a run
    groups: tuple[ViewGroup, ...]
    mesh: Mesh
    seed: int
    facts: Facts
    labelled: bool
    words: str = ""
    prepare: None = None

    def batches(self, start_step: int, total_steps: int) -> Generator[tuple[int, Tree], None, None]:
        from bt_jax.data.pipeline import train_batches

        batch_size = self.facts.batch_size
        host = train_batches(
            self.source,
            self.config,
            self.groups,
            seed=self.seed,
            batch_size=batch_size,
            rows=mesh_lib.process_rows(self.mesh, batch_size),
            start_step=start_step,
            num_steps=total_steps - start_step,
        )
        host = with_checked_labels(host, self.source) if self.labelled else host
        yield from enumerate(mesh_lib.prefetch_to_mesh(host, self.mesh, batch_size), start_step + 1)


def make_feed(
    source: Source,
    config: ConfigDict,
    groups: Sequence[ViewGroup],
    *,
    mesh: Mesh,
    seed: int,
    facts: Facts,
    steps_per_dispatch: int = 1,
    may_reside: bool = True,
    labelled: bool = False,
) -> Feed:
    """The feed of a training on `source`.

    Args:
      config: `config.data` of a run.
      groups: what is drawn of each image.
      steps_per_dispatch: the most steps to start at once; more than 1 needs the set in the device's memory.
      may_reside: whether the set may be put there; False for a few more batches of a set that is there already.
      labelled: whether labels must be classes, as for training that uses them.

    Raises:
      UserError: groups that cannot be drawn together; TensorFlow is needed but not installed; several steps per dispatch of
        a set that does not fit the devices; (also while iterating) labels that are not classes, too many images that do not
        decode.
    """
    groups = check_groups(groups)
    common = {"mesh": mesh, "seed": seed, "facts": facts, "labelled": labelled}
    if config.views == "device":
        how = {"steps_per_dispatch": steps_per_dispatch, "may_reside": may_reside}
        return make_device_feed(source, config, groups, **common, **how)
    import_tensorflow()  # if it is missing, the run ends before anything is written
    return HostFeed(source=source, config=config, groups=groups, **common)


def ready_batches(feed: Feed, start_step: int, total_steps: int) -> Iterator[Tree]:
    """The batch of each step, its views made, for callers that do not jit `prepare` together with a step."""
    prepare = feed.prepare and jax.jit(feed.prepare, out_shardings=mesh_lib.over_batch(feed.mesh))
    for _, delivery in feed.batches(start_step, total_steps):
        if prepare is None:
            yield delivery
        elif "items" not in delivery:
            yield prepare(None, delivery)
        else:
            for i in range(len(delivery["items"]["epoch"])):
                yield prepare(delivery["resident"], jax.tree.map(lambda leaf, i=i: leaf[i], delivery["items"]))
