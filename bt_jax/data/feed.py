"""Batches whose views are made on the device (`data.views = "device"`), for a machine whose host is weak.

A set that fits lives in the memory of each device as uint8, and a step is told only which examples it takes: nothing else
crosses the bus, several steps can be started at once, and where the set is in memory already (photographs, arrays)
TensorFlow is never imported. Each device holds all of the set rather than a part: sets that fit are small beside what a
device has (CIFAR-10 154 MB, STL-10 3 GB), and an epoch's order takes every image to every device, so that a set in parts
would send each batch between devices.

Larger sets come from the host, each image decoded once a step and not augmented there: encoded ones on a canvas, a square
of 512 pixels for views of 224 in whose corner the image stands, reduced if it is larger. What that costs: 0.8 MB an image
over the bus, where two views are 0.3 MB, and of an image larger than the canvas a crop of 8 % has fewer pixels than it
could. Most of ImageNet (500×375) fits and loses nothing. A smaller canvas saves bus, memory and the device's work for crops;
below 256 it costs sharpness that the views would have had.

What is made is a pure function of (seed, step), on any number of devices. The views are not the host's: the distributions
are the same, the random numbers are JAX's.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from PIL import Image

from bt_jax.data.order import Order, evenly
from bt_jax.data.sources.base import ArraySource, Source, StreamSource, import_tensorflow
from bt_jax.data.views.device import make_views
from bt_jax.data.views.spec import VIEW_A, VIEW_B, ViewSpec, canvas_side, kernel_of
from bt_jax.errors import UserError
from bt_jax.runtime import mesh as mesh_lib

Arrays = dict[str, Any]


class DeviceFeed:
    """A run's batches, as what the device makes them of.

    Attributes:
      words: how views are made, for the summary of a run.
      together: steps in a dispatch, at most.
      held: what the device keeps, {"image": (n, H, W, 3) uint8, "label": (n,) int32} and "size" where images are of mixed
        sizes; None where images come from the host.
    """

    def __init__(self, config: ConfigDict, source: Source, mesh: Mesh):
        """Raises UserError if several steps are to be started at once, and the set does not fit the devices."""
        self._config, self._source, self._mesh = config, source, mesh
        views = config[config.method]
        self._specs = [ViewSpec(**views[name]) for name in ("view_a", "view_b")]
        if not isinstance(source, ArraySource):
            import_tensorflow()  # says what is missing, before anything is loaded
        needs, room, device = self._needs(), *self._room()
        self.held, self.together = None, config.steps_per_dispatch
        if mesh.local_devices[0].platform == "cpu":
            self.together = 1  # XLA runs convolutions in a loop ten times slower there, and the host is the device
        # A stream has an order of its own, which must not depend on what device there is.
        streamed = isinstance(source, StreamSource) and not config.data.device_bytes
        if needs <= room and not streamed:
            self.held = self._put(_loaded(source, config.data))
            self.words = f"made on the device, from the set in its memory ({amount(needs)})"
            if config.steps_per_dispatch > 1:
                self.words += (
                    f"; {self.together} steps at once" if self.together > 1 else "; on a CPU one step at a time"
                )
            return
        why = f"{source.name} needs {amount(needs)} of the memory of each device ({device}), of which " + (
            "data.device_bytes must say how much is for it" if streamed else f"{amount(room)} are for it"
        )
        smaller = (
            "" if isinstance(source, ArraySource) else f", or lower data.canvas_size, {canvas_side(config.data)} now"
        )
        if config.steps_per_dispatch > 1:
            raise UserError(
                f"steps_per_dispatch is {config.steps_per_dispatch}, which takes the set in the device's memory, but {why}; "
                f"set steps_per_dispatch to 1, or raise data.device_bytes{smaller}."
            )
        self.words = (
            f"made on the device; images come from the host:\n{why};\nto keep it there raise data.device_bytes{smaller}"
        )

    def _needs(self) -> int:
        if isinstance(self._source, ArraySource):
            return self._source.images.nbytes
        return len(self._source) * canvas_side(self._config.data) ** 2 * 3

    def _room(self) -> tuple[int, str]:
        """Bytes of a device's memory that the set may take, and what device that is."""
        device = self._mesh.local_devices[0]
        total = (device.memory_stats() or {}).get("bytes_limit")
        if total is None:  # a CPU, whose devices share the host's memory
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(self._mesh.local_devices)
        return self._config.data.device_bytes or total // 4, f"{device.device_kind} with {amount(total)}"

    def _put(self, arrays: Arrays) -> Arrays:
        everywhere = mesh_lib.everywhere(self._mesh)
        return {
            name: jax.make_array_from_callback(array.shape, everywhere, lambda index, array=array: array[index])
            for name, array in arrays.items()
        }

    def batches(self, start_step: int, total_steps: int) -> Iterator[tuple[int, Arrays]]:
        """(the number of steps that are done after it, what `prepare` makes batches of), each for one dispatch.

        With a set in the device's memory a dispatch is `together` steps, fewer where an epoch ends, so that what happens at
        the end of an epoch happens there; otherwise it is one step.
        """
        if self.held is None:
            yield from enumerate(self._from_host(start_step, total_steps), start_step + 1)
            return
        order = Order(self._config.seed, len(self._source), self._config.batch_size)
        step = start_step
        while step < total_steps:
            place = step % order.steps_per_epoch
            count = min(self.together - place % self.together, order.steps_per_epoch - place, total_steps - step)
            epochs, examples = zip(*(order.batch(step + i) for i in range(count)), strict=True)
            items = {"epoch": np.array(epochs, np.int32), "example": np.stack(examples).astype(np.int32)}
            step += count
            yield step, {"held": self.held, "items": self._placed(items)}

    def _placed(self, items: Arrays) -> Arrays:
        over_rows = NamedSharding(self._mesh, PartitionSpec(None, self._mesh.axis_names))
        shardings = {"epoch": mesh_lib.everywhere(self._mesh), "example": over_rows}
        return {
            name: jax.make_array_from_callback(array.shape, shardings[name], lambda index, array=array: array[index])
            for name, array in items.items()
        }

    def _from_host(self, start_step: int, total_steps: int) -> Iterator[Arrays]:
        batch_size = self._config.batch_size
        rows = mesh_lib.process_rows(self._mesh, batch_size)
        if isinstance(self._source, ArraySource):
            host = self._fetched(rows, start_step, total_steps)
        else:
            from bt_jax.data import pipeline

            place = {"seed": self._config.seed, "start_step": start_step, "num_steps": total_steps - start_step}
            host = pipeline.train_batches(
                self._source, self._config.data, batch_size=batch_size, rows=rows, canvas=True, **place
            )
        return mesh_lib.prefetch_to_mesh(host, self._mesh, batch_size)

    def _fetched(self, rows: np.ndarray, start_step: int, total_steps: int) -> Iterator[Arrays]:
        order = Order(self._config.seed, len(self._source), self._config.batch_size)
        for step in range(start_step, total_steps):
            epoch, examples = order.batch(step)
            image, label = self._source.fetch(examples[rows])
            places = {"epoch": np.full(len(rows), epoch, np.int32), "example": examples[rows].astype(np.int32)}
            yield {"image": image, "label": label, **places}

    def prepare(self, held: Arrays | None, item: Arrays) -> Arrays:
        """A method's batch, {"views": (N, 2, S, S, 3) uint8, "label": (N,) int32}; to be jitted with the step.

        Args:
          held: `self.held`, handed in, as a jitted function should not close over large arrays.
          item: of one step: "epoch" and "example", and the images where nothing is held.
        """
        over_batch = mesh_lib.over_batch(self._mesh)
        if held is not None:
            item = item | {name: array[item["example"]] for name, array in held.items()}
        images = jax.lax.with_sharding_constraint(item["image"], over_batch)
        views = make_views(
            images,
            item.get("size"),
            seed=self._config.seed,
            epoch=item["epoch"],
            examples=item["example"],
            specs=self._specs,
            size=self._config.data.image_size,
        )
        return {"views": jax.lax.with_sharding_constraint(views, over_batch), "label": item["label"]}


def _loaded(source: Source, config: ConfigDict) -> Arrays:
    """All images and labels of a set, on the host; encoded ones are decoded, and those that do not decode stood in for.

    Raises:
      UserError: too many images do not decode.
    """
    if isinstance(source, ArraySource):
        return {"image": source.images, "label": source.labels}
    from bt_jax.data import pipeline

    n, side, block = len(source), canvas_side(config), 256
    images, labels, sizes = np.zeros((n, side, side, 3), np.uint8), np.zeros(n, np.int32), np.ones((n, 2), np.int32)
    batches = pipeline.eval_batches(source, config, batch_size=block, rows=np.arange(block), canvas=True)
    for start, batch in zip(range(0, n, block), batches, strict=True):
        real = min(block, n - start)
        images[start : start + real] = batch["image"][:real]
        labels[start : start + real], sizes[start : start + real] = batch["label"][:real], batch["size"][:real]
    # What stood in for a bad image while it was read may have turned out bad itself since.
    bad = np.array([] if isinstance(source, StreamSource) else sorted(source.bad), np.int64)
    standing_in = source.usable(bad)
    for array in (images, labels, sizes):
        array[bad] = array[standing_in]
    height, width = sizes.max(axis=0)
    held = {"image": np.ascontiguousarray(images[:, :height, :width]), "label": labels}
    return held if (sizes == (height, width)).all() else held | {"size": sizes}


def train_batches(
    source: Source,
    config: ConfigDict,
    *,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    start_step: int = 0,
    num_steps: int | None = None,
    specs: Sequence[ViewSpec] = (VIEW_A, VIEW_B),
) -> Iterator[Arrays]:
    """As pipeline.train_batches; without TensorFlow where views are made on the device and the set is in memory."""
    if config.views == "device" and isinstance(source, ArraySource):
        return _array_train_batches(source, config, seed, batch_size, rows, start_step, num_steps, specs)
    from bt_jax.data import pipeline

    lengths = {"start_step": start_step, "num_steps": num_steps, "specs": specs}
    return pipeline.train_batches(source, config, seed=seed, batch_size=batch_size, rows=rows, **lengths)


def _array_train_batches(source, config, seed, batch_size, rows, start_step, num_steps, specs) -> Iterator[Arrays]:
    settings = {"seed": seed, "specs": specs, "size": config.image_size, "kernel": kernel_of(specs)}
    draw = jax.jit(lambda images, epoch, examples: make_views(images, None, epoch=epoch, examples=examples, **settings))
    order = Order(seed, len(source), batch_size)
    for step in itertools.count(start_step) if num_steps is None else range(start_step, start_step + num_steps):
        epoch, examples = order.batch(step)
        images, labels = source.fetch(examples[rows])
        drawn = draw(images, np.int32(epoch), examples[rows].astype(np.int32))
        yield {"views": np.asarray(drawn), "label": labels}


def eval_batches(
    source: Source, config: ConfigDict, *, batch_size: int, rows: np.ndarray, limit: int | None = None
) -> Iterator[Arrays]:
    """As pipeline.eval_batches; without TensorFlow where views are made on the device and the set is in memory."""
    if config.views == "device" and isinstance(source, ArraySource):
        return _array_eval_batches(source, config, batch_size, rows, limit)
    from bt_jax.data import pipeline

    return pipeline.eval_batches(source, config, batch_size=batch_size, rows=rows, limit=limit)


def _array_eval_batches(source: ArraySource, config: ConfigDict, batch_size: int, rows: np.ndarray, limit: int | None):
    shown = evenly(len(source), limit)
    for start in range(0, len(shown), batch_size):
        places = start + rows
        mask = places < len(shown)
        images, labels = source.fetch(shown[np.minimum(places, len(shown) - 1)])
        yield {"image": evaluation_views(images, config.eval_resize, config.image_size), "label": labels, "mask": mask}


def evaluation_views(images: np.ndarray, resize: int, size: int) -> np.ndarray:
    """The images as evaluations look at them, by Pillow: as views.evaluation_view, for (N, H, W, 3) uint8."""
    height, width = images.shape[1:3]
    if resize:
        short = min(height, width)
        new_height, new_width = resize * height // short, resize * width // short
    else:
        new_height, new_width = size, size
    if (new_height, new_width) != (height, width):
        resized = (Image.fromarray(x).resize((new_width, height), Image.Resampling.BILINEAR) for x in images)
        resized = (x.resize((new_width, new_height), Image.Resampling.BILINEAR) for x in resized)
        images = np.stack([np.asarray(x) for x in resized])
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return images[:, top : top + size, left : left + size]


def amount(count: float) -> str:
    """`154 MB`, `3.1 GB`."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
