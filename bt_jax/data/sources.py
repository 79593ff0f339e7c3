"""Where images come from: photographs (embedded), TFDS by name, an image folder, arrays in memory.

A source is a numbered list of labelled images. `ArraySource` holds pixels, `FolderSource` names files, and both give any
example at once; `TfdsStream`, for large TFDS sets, can only be read in a row.
"""

import difflib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bt_jax.data.photographs import PHOTOGRAPHS, photograph_crops
from bt_jax.errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


class Source:
    """What all sources have: `len()` examples, their classes, and sentences for the summary of a run.

    Attributes:
      name: for people.
      class_names: in the order of the labels.
      notices: what was passed over, a sentence each.
    """

    def __init__(self, name: str, class_names: tuple[str, ...], notices: tuple[str, ...] = ()):
        self.name, self.class_names, self.notices = name, class_names, notices

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        raise TypeError("a source of this kind has no length")


class ArraySource(Source):
    """Images of one size in memory.

    Attributes:
      images: (N, H, W, 3) uint8.
      labels: (N,) int32.
    """

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...] | None = None):
        """Raises UserError for other shapes or types, or labels outside the classes."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(f"{name}: the images are {images.dtype} {images.shape}; they must be uint8 (N, H, W, 3).")
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{name}: the labels are {labels.dtype} {labels.shape}; they must be integers ({len(images)},), one an image."
            )
        if len(images) == 0:
            raise UserError(f"{name} has no images; it must have at least one.")
        if class_names is None:
            class_names = tuple(str(i) for i in range(int(labels.max()) + 1))
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise UserError(
                f"{name}: labels run from {labels.min()} to {labels.max()}; they must lie in 0 to {len(class_names) - 1}."
            )
        super().__init__(name, class_names)
        self.images, self.labels = np.ascontiguousarray(images), labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self.images)


class FolderSource(Source):
    """Images in files, `ROOT/<split>/<class>/<file>`, local or gs://; classes and files in the order of their names.

    Attributes:
      paths: of the files, as text.
      labels: (N,) int32.
    """

    def __init__(self, root: str, split: str):
        """Raises UserError if the folder or its classes are missing or empty, or other files stand among them."""
        folder = epath.Path(root) / split
        if not folder.is_dir():
            raise UserError(f"there is no image folder {folder}; it must hold a folder of images for each class.")
        classes, paths, labels, stray, hidden = [], [], [], [], 0
        for entry in sorted(folder.iterdir(), key=lambda p: p.name):
            if entry.name.startswith(".") or entry.name == "Thumbs.db":
                hidden += 1
                continue
            if not entry.is_dir():
                stray.append(str(entry))
                continue
            files = [f for f in sorted(entry.iterdir(), key=lambda p: p.name)]
            images = [str(f) for f in files if f.name.lower().endswith(IMAGE_ENDINGS) and not f.name.startswith(".")]
            others = [f for f in files if str(f) not in set(images)]
            hidden += sum(f.name.startswith(".") or f.name == "Thumbs.db" for f in others)
            stray += [str(f) for f in others if not (f.name.startswith(".") or f.name == "Thumbs.db")]
            if not images:
                raise UserError(f"the class folder {entry} holds no images ({', '.join(IMAGE_ENDINGS)}); fill or remove it.")
            classes.append(entry.name)
            paths += images
            labels += [len(classes) - 1] * len(images)
        if stray:
            raise UserError(
                f"{folder} must hold class folders of images and nothing else, but {len(stray)} stray file(s) stand there: "
                f"{', '.join(stray[:3])}{', …' if len(stray) > 3 else ''}; move them away."
            )
        if not classes:
            raise UserError(f"the image folder {folder} is empty; it must hold a folder of images for each class.")
        notices = (f"{hidden} hidden file(s) in {folder} were passed over",) if hidden else ()
        super().__init__(str(folder), tuple(classes), notices)
        self.paths, self.labels = paths, np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.paths)


class TfdsStream(Source):
    """A large TFDS set, read in a row from its files as encoded images.

    The order is a function of (seed, epoch): files permuted, 16 read in turn, and a shuffle buffer of fixed seed. A resumed
    run reads and drops the records before its step without decoding them (about 1 ms in 10 records), and each process reads
    all records but decodes its own rows only. Sets that fit in memory and image folders are free of both costs.
    """

    def __init__(self, builder: Any, split: str):
        info = builder.info
        label = info.features["label"]
        super().__init__(f"TFDS {builder.name}, {split}", tuple(label.names))
        self._builder, self._split = builder, split
        self._length = info.splits[split].num_examples

    def __len__(self) -> int:
        return self._length

    def records(self, seed: int | None, epoch: int) -> Any:
        """A tf.data.Dataset of (encoded image, label) in the order of an epoch; in the files' order without a seed."""
        import tensorflow as tf
        import tensorflow_datasets as tfds

        options = tf.data.Options()
        options.deterministic = True
        mixed = None if seed is None else int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        dataset = self._builder.as_dataset(
            split=self._split,
            shuffle_files=seed is not None,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(shuffle_seed=mixed, options=options, try_autocache=False, skip_prefetch=True),
        )
        return dataset.map(lambda e: (e["image"], tf.cast(e["label"], tf.int32)), num_parallel_calls=1)


def make_source(config: ConfigDict, split: str) -> Source:
    """The source that `config.data` names.

    Args:
      split: "train" or "test", which `config.train_split` and `config.test_split` translate.

    Raises:
      UserError: it is not there, or not what it should be.
    """
    theirs = config[f"{split}_split"]
    if config.source == "photographs":
        crops = config.photographs
        images, labels = photograph_crops(split, size=crops.size, per_class=crops[f"{split}_per_class"])
        return ArraySource(f"crops of {len(PHOTOGRAPHS)} photographs, {split}", images, labels, tuple(PHOTOGRAPHS))
    if config.source == "folder":
        return FolderSource(config.data_dir, theirs)
    if config.source == "arrays":
        return _arrays(config.data_dir, theirs)
    return _tfds(config, theirs)


def _arrays(file: str, split: str) -> ArraySource:
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}; data.data_dir must name an .npz file of arrays.")
    try:
        with np.load(path) as arrays:
            missing = [name for name in (f"x_{split}", f"y_{split}") if name not in arrays]
            if missing:
                raise UserError(f"{path} holds {', '.join(arrays.files)}; it must also hold {' and '.join(missing)}.")
            return ArraySource(f"{path}, {split}", arrays[f"x_{split}"], arrays[f"y_{split}"])
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as an .npz file of arrays ({error}).") from None


def _tfds(config: ConfigDict, split: str) -> Source:
    import tensorflow_datasets as tfds

    data_dir = config.data_dir or None
    try:
        builder = tfds.builder(config.name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        near = difflib.get_close_matches(config.name, tfds.list_builders(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        reason = "" if isinstance(error, tfds.core.registered.DatasetNotFoundError) else f" ({str(error).splitlines()[0]})"
        raise UserError(f"TFDS has no data set {config.name!r}{reason}{hint}") from None
    if not (epath.Path(builder.data_path) / "dataset_info.json").exists():
        _prepare(builder, config)
    splits = builder.info.splits
    if split not in splits:
        raise UserError(f"TFDS {builder.name} has no split {split!r}; it has {', '.join(map(repr, splits))}.")
    for part in ("image", "label"):
        if part not in builder.info.features:
            raise UserError(f"TFDS {builder.name} has no {part!r} in its examples; bt_jax needs image and label.")
    shape = builder.info.features["image"].shape
    if None not in shape and splits[split].num_examples * int(np.prod(shape)) <= config.in_memory_bytes:
        return _in_memory(builder, split)
    return TfdsStream(builder, split)


def _prepare(builder: Any, config: ConfigDict) -> None:
    """Downloads a set that is not there, if the user allows it and TFDS can."""
    manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    where = f"TFDS {builder.name} is not in {builder.data_path}"
    if manual:
        raise UserError(
            f"{where}, and must be fetched by hand: {' '.join(manual.split())} Then run "
            f"`tfds build {builder.name} --data_dir={config.data_dir or '~/tensorflow_datasets'} --manual_dir=FOLDER`."
        )
    if not config.download:
        raise UserError(f"{where}; set data.data_dir to where it is, or data.download=True to let TFDS fetch it.")
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever the network or the host of the set had to say
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}, and could not be downloaded ({reason}).") from error


def _in_memory(builder: Any, split: str) -> ArraySource:
    examples = _decoded(builder, split)
    images, labels = zip(*((batch["image"], batch["label"]) for batch in examples), strict=True)
    images = np.concatenate(images)
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    names = tuple(builder.info.features["label"].names)
    return ArraySource(f"TFDS {builder.name}, {split}", images, np.concatenate(labels), names)


def _decoded(builder: Any, split: str) -> Iterator[dict[str, np.ndarray]]:
    import tensorflow_datasets as tfds

    order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)  # the order of the files
    return builder.as_dataset(split=split, shuffle_files=False, batch_size=1024, read_config=order).as_numpy_iterator()
