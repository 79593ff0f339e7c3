"""A run's batches on the mesh: one interface, whoever makes the views.

`data.views` says who does. "host": TensorFlow, with Pillow's levels. "device": the accelerator, for a machine whose host is
weak; a set that fits lives in its memory, and others come image by image (device_feed.py).
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
    """A run's batches: on the mesh as a train step takes them, or what `prepare` makes them of there.

    A batch is {"views": {group: (N, V, S, S, 3) uint8}, "label": (N,) int32, "example": (N,) int32}, a pure function of (seed,
    step) on any number of devices (bt_jax/data/views/spec.py, `batch_spec`).

    Attributes:
      words: how views are made, for the summary of a run; "" where the host makes them.
      prepare: None where batches come ready; else (resident, item) -> batch, to be jitted together with the step.
    """

    @property
    def mesh(self) -> Mesh: ...

    @property
    def words(self) -> str: ...

    @property
    def prepare(self) -> Callable[[Tree, Tree], Tree] | None: ...

    def batches(self, start_step: int, total_steps: int) -> Generator[tuple[int, Tree], None, None]:
        """(the number of steps that are done after it, a delivery), each for one dispatch.

        A delivery is a batch where `prepare` is None; else an item of one step, which `prepare` takes with None; or
        {"resident": …, "items": …}, where items have an axis of steps in front.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostFeed:
    """Views by the host, ready on the mesh."""

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
      steps_per_dispatch: steps to start at once, at most; more than 1 takes a set in the device's memory.
      may_reside: whether the set may be put there; not for a few more batches of a set that is there already.
      labelled: whether labels must be classes, for a training that looks at them.

    Raises:
      UserError: groups that cannot be drawn together; TensorFlow is needed and absent; several steps are to be started at
        once, and the set does not fit the devices; too many images do not decode. (Also while iterating:) labels that are
        no classes, too many images that do not decode.
    """
    groups = check_groups(groups)
    common = {"mesh": mesh, "seed": seed, "facts": facts, "labelled": labelled}
    if config.views == "device":
        how = {"steps_per_dispatch": steps_per_dispatch, "may_reside": may_reside}
        return make_device_feed(source, config, groups, **common, **how)
    import_tensorflow()  # says what is missing, before anything is written
    return HostFeed(source=source, config=config, groups=groups, **common)


def ready_batches(feed: Feed, start_step: int, total_steps: int) -> Iterator[Tree]:
    """The batch of each step on the mesh, its views made: for those who do not make them together with a step of their own."""
    prepare = feed.prepare and jax.jit(feed.prepare, out_shardings=mesh_lib.over_batch(feed.mesh))
    for _, delivery in feed.batches(start_step, total_steps):
        if prepare is None:
            yield delivery
        elif "items" not in delivery:
            yield prepare(None, delivery)
        else:
            for i in range(len(delivery["items"]["epoch"])):
                yield prepare(delivery["resident"], jax.tree.map(lambda leaf, i=i: leaf[i], delivery["items"]))
