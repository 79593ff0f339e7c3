"""Batches whose views are made on the device (`data.views = "device"`), for a machine whose host is weak.

A set that fits stays in the memory of each device as levels of 8 or 16 bits, and a step receives only example indices: nothing else crosses
the bus, several steps can be dispatched at once, and for a set that is in memory anyway (photographs, arrays) TensorFlow is
never imported. Each device holds the whole set rather than a part: sets that fit are small compared with a device's memory
(CIFAR-10 154 MB, STL-10 3 GB), and an epoch's order takes every image to every device, so with a divided set each batch
would travel between devices.

For larger sets the host decodes each image whenever a step needs it, and does not augment it. A decoded image is put in the
corner of a canvas, a square of 512 pixels for views of 224, and reduced if it is larger. The price: 0.8 MB per image over the
bus, where two views are 0.3 MB; and in an image larger than the canvas, a crop of 8 % has fewer pixels than in the original.
Most of ImageNet (500×375) fits and loses nothing. A smaller canvas saves bus traffic, memory and work on the device; below 256
the views lose sharpness.

The views differ from the host's: the distributions are the same, but the random numbers are JAX's.
"""

import dataclasses
import os
import weakref
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from bt_jax.data.order import Order
from bt_jax.data.sources.base import ArraySource, Source, StreamSource, import_tensorflow
from bt_jax.data.subsets import check_labels, with_checked_labels
from bt_jax.data.views.device import make_views
from bt_jax.data.views.spec import ViewGroup, canvas_side
from bt_jax.errors import UserError
from bt_jax.facts import Facts
from bt_jax.runtime import mesh as mesh_lib

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceFeed:
    """What both kinds share; see `bt_jax.data.feed.Feed`."""

    source: Source
    config: ConfigDict  # `config.data` of a run
    groups: tuple[ViewGroup, ...]
    mesh: Mesh
    seed: int
    facts: Facts
    labelled: bool
    words: str

    def prepare(self, resident: Arrays | None, item: Arrays) -> Arrays:
        """A method's batch from the item of one step, to be jitted with the step.

        Args:
          resident: as `ResidentFeed.resident`; an argument, as a jitted function should not close over large arrays.
          item: "slot" (N,) int32 and "epoch" () or (N,) int32, by which views are drawn; without `resident` also the images,
            labels, examples and sizes of these slots.
        """
        over_batch = mesh_lib.over_batch(self.mesh)
        if resident is not None:
            item = item | {name: array[item["slot"]] for name, array in resident.items()}
        images = jax.lax.with_sharding_constraint(item["image"], over_batch)
        views = make_views(
            images, item.get("size"), self.groups, seed=self.seed, epoch=item["epoch"], examples=item["slot"]
        )
        views = jax.lax.with_sharding_constraint(views, over_batch)
        return {"views": views, "label": item["label"], "example": item["example"]}

    def _order(self) -> Order:
        return Order(self.seed, self.facts.num_examples, self.facts.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CanvasFeed(DeviceFeed):
    """Images come from the host: decoded ones on canvases, arrays as they are."""

    def batches(self, start_step: int, total_steps: int) -> Generator[tuple[int, Arrays], None, None]:
        rows = mesh_lib.process_rows(self.mesh, self.facts.batch_size)
        steps = range(start_step, total_steps)
        if isinstance(self.source, ArraySource):
            host = self._of_arrays(self.source, rows, steps)
        else:
            host = self._decoded(rows, steps)
        host = with_checked_labels(host, self.source) if self.labelled else host
        items = mesh_lib.prefetch_to_mesh(host, self.mesh, self.facts.batch_size)
        yield from enumerate(items, start_step + 1)

    def _decoded(self, rows: np.ndarray, steps: range) -> Iterator[Arrays]:
        from bt_jax.data.pipeline import canvas_batches

        lengths = {"batch_size": self.facts.batch_size, "start_step": steps.start, "num_steps": len(steps)}
        return canvas_batches(self.source, self.config, seed=self.seed, rows=rows, **lengths)

    def _of_arrays(self, source: ArraySource, rows: np.ndarray, steps: range) -> Iterator[Arrays]:
        order = self._order()
        for step in steps:
            epoch, slots = order.batch(step)
            image, label = source.fetch(slots[rows])
            places = {"example": slots[rows], "slot": slots[rows], "epoch": np.full(len(rows), epoch)}
            yield {"image": image, "label": label, **places}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidentFeed(DeviceFeed):
    """All images are in the memory of each device.

    Attributes:
      resident: {"image": (n, H, W, C) uint8 or uint16, "label": (n,) int32, "example": (n,) int32, the number of the image, which is
        the stand-in's for one that does not decode}, and "size" (n, 2) int32 if images are of mixed sizes.
      steps_per_dispatch: at most this many.
    """

    resident: Arrays
    steps_per_dispatch: int

    def batches(self, start_step: int, total_steps: int) -> Generator[tuple[int, Arrays], None, None]:
        """A dispatch of several steps never crosses the end of an epoch, where checkpoints and evaluations are due."""
        order, step = self._order(), start_step
        while step < total_steps:
            place = step % order.steps_per_epoch
            whole = self.steps_per_dispatch - place % self.steps_per_dispatch
            count = min(whole, order.steps_per_epoch - place, total_steps - step)
            epochs, slots = zip(*(order.batch(step + i) for i in range(count)), strict=True)
            items = {"epoch": np.array(epochs, np.int32), "slot": np.stack(slots).astype(np.int32)}
            step += count
            yield step, {"resident": self.resident, "items": self._placed(items)}

    def _placed(self, items: Arrays) -> Arrays:
        over_rows = NamedSharding(self.mesh, PartitionSpec(None, self.mesh.axis_names))
        shardings = {"epoch": mesh_lib.everywhere(self.mesh), "slot": over_rows}
        return {name: _placed(array, shardings[name]) for name, array in items.items()}


def make_device_feed(
    source: Source,
    config: ConfigDict,
    groups: tuple[ViewGroup, ...],
    *,
    mesh: Mesh,
    seed: int,
    facts: Facts,
    labelled: bool,
    steps_per_dispatch: int,
    may_reside: bool,
) -> CanvasFeed | ResidentFeed:
    """The feed that the devices' memory allows; arguments and errors as for `bt_jax.data.feed.make_feed`."""
    if not isinstance(source, ArraySource):
        import_tensorflow()  # says what is missing, before anything is loaded
    common: Arrays = {"source": source, "config": config, "groups": groups, "mesh": mesh, "seed": seed, "facts": facts}
    common["labelled"] = labelled
    needs, (room, device) = _needs(source, config), _room(config, mesh)
    # A stream would have another order if it were resident; a run's order must not depend on the device's memory.
    streamed = isinstance(source, StreamSource) and not config.device_bytes
    if needs <= room and not streamed and may_reside:
        # On a CPU, XLA runs convolutions in a loop ten times slower, and dispatching costs nothing: the host is the device.
        steps = 1 if mesh.local_devices[0].platform == "cpu" else steps_per_dispatch
        words = f"made on the device, from the set in its memory ({amount(needs)})"
        if steps_per_dispatch > 1:
            words += f"; {steps} steps at once" if steps > 1 else "; on a CPU one step at a time"
        resident = _resident(source, config, mesh)
        if labelled:
            check_labels(np.asarray(resident["label"].addressable_data(0)), source, all_classes=False)
        return ResidentFeed(**common, words=words, resident=resident, steps_per_dispatch=steps)
    why = f"{source.name} needs {amount(needs)} of the memory of each device ({device}), " + (
        "and data.device_bytes must say how much it may take" if streamed else f"of which it may take {amount(room)}"
    )
    smaller = "" if isinstance(source, ArraySource) else f", or lower data.canvas_size, {canvas_side(config)} now"
    if steps_per_dispatch > 1:
        raise UserError(
            f"steps_per_dispatch is {steps_per_dispatch}, which needs the set in the device's memory, but {why}; "
            f"set steps_per_dispatch to 1, or raise data.device_bytes{smaller}."
        )
    words = f"made on the device; images come from the host:\n{why};\nto keep it there raise data.device_bytes{smaller}"
    return CanvasFeed(**common, words=words)


_residents: weakref.WeakKeyDictionary[Source, dict[Any, Arrays]] = weakref.WeakKeyDictionary()


def _resident(source: Source, config: ConfigDict, mesh: Mesh) -> Arrays:
    """All images on the devices, once for all feeds of a source, as trainings with several seeds or rates make them."""
    of_source = _residents.setdefault(source, {})
    key = (mesh, canvas_side(config), frozenset(source.bad))
    if key not in of_source:
        everywhere = mesh_lib.everywhere(mesh)
        of_source[key] = {name: _placed(array, everywhere) for name, array in _loaded(source, config).items()}
        if (found := (mesh, canvas_side(config), frozenset(source.bad))) != key:  # some do not decode
            of_source[found] = of_source.pop(key)
            return of_source[found]
    return of_source[key]


def _needs(source: Source, config: ConfigDict) -> int:
    """Bytes of all images as they would lie on the device."""
    if isinstance(source, ArraySource):
        return source.images.nbytes
    return len(source) * canvas_side(config) ** 2 * source.pixels.channels * source.pixels.dtype.itemsize


def _room(config: ConfigDict, mesh: Mesh) -> tuple[int, str]:
    """Bytes of a device's memory that the set may take, and the device in words.

    Of several processes the least: they must all compile the same program, and hosts differ a little in their memory.
    """
    device = mesh.local_devices[0]
    total = (device.memory_stats() or {}).get("bytes_limit")
    if total is None:  # a CPU, whose devices share the host's memory
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)
    room = config.device_bytes or total // 4
    if jax.process_count() > 1:
        halves = np.array([room], np.int64).view(np.uint32)  # JAX has no integers of 64 bits here
        gathered = np.ascontiguousarray(multihost_utils.process_allgather(halves))
        room = int(gathered.view(np.int64).min())
    return room, f"{device.device_kind} with {amount(total)}"


def _placed(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _loaded(source: Source, config: ConfigDict) -> Arrays:
    """All images of a set, decoded, on the host; others stand in for those that do not decode.

    Returns:
      As `ResidentFeed.resident`.

    Raises:
      UserError: too many images do not decode.
    """
    n, block = len(source), 256
    numbers = np.arange(n, dtype=np.int32)
    if isinstance(source, ArraySource):
        return {"image": source.images, "label": source.labels, "example": numbers}
    from bt_jax.data.eval_pipeline import canvas_batches

    side, pixels = canvas_side(config), source.pixels
    images = np.zeros((n, side, side, pixels.channels), pixels.dtype)
    labels, sizes = np.zeros(n, np.int32), np.ones((n, 2), np.int32)
    batches = canvas_batches(source, config, batch_size=block)
    for start, batch in zip(range(0, n, block), batches, strict=True):
        real = min(block, n - start)
        images[start : start + real] = batch["image"][:real]
        labels[start : start + real], sizes[start : start + real] = batch["label"][:real], batch["size"][:real]
    # An image that stood in for a bad one may itself have turned out bad later.
    bad = np.array([] if isinstance(source, StreamSource) else sorted(source.bad), np.int64)
    standing_in = source.usable(bad)
    for array in (images, labels, sizes, numbers):
        array[bad] = array[standing_in]
    height, width = sizes.max(axis=0)
    resident = {"image": np.ascontiguousarray(images[:, :height, :width]), "label": labels, "example": numbers}
    return resident if (sizes == (height, width)).all() else resident | {"size": sizes}


def amount(count: float) -> str:
    """`154 MB`, `3.1 GB`."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
