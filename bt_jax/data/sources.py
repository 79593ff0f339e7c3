"""Where images come from: photographs (embedded), TFDS by name, an image folder, arrays in memory.

A source is a numbered list of labelled images. `ArraySource` holds pixels and `FolderSource` names files; both have
`fetch`, which gives what they hold of any examples. `TfdsStream`, for large TFDS sets, can only be read in a row.
"""

import difflib
import os
import zipfile
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bt_jax.data.order import single_seed
from bt_jax.data.photographs import PHOTOGRAPHS, photograph_crops
from bt_jax.errors import UserError, first_line

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")  # what TensorFlow decodes; upper case too


class Source:
    """What all sources have: `len()` examples, their classes, and sentences for the summary of a run.

    Attributes:
      name: for people.
      class_names: in the order of the labels.
      notices: what was passed over, a sentence each.
      bad: the examples that turned out not to decode, and why; others stand in for them.
    """

    def __init__(self, name: str, length: int, class_names: tuple[str, ...], notices: tuple[str, ...] = ()):
        self.name, self.class_names, self.notices = name, class_names, notices
        self.bad: dict[int, str] = {}
        self._length = length

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return self._length

    def usable(self, examples: np.ndarray) -> np.ndarray:
        """These examples, and in the place of each bad one the next that is not: a function of the example alone."""
        if not self.bad:
            return examples
        return np.array([self._next_good(int(example)) for example in examples], np.int64)

    def _next_good(self, example: int) -> int:
        while example in self.bad:
            example = (example + 1) % len(self)
        return example


class ArraySource(Source):
    """Images of one size in memory.

    Attributes:
      images: (N, H, W, 3) uint8.
      labels: (N,) int32.
    """

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...] | None = None):
        """Raises UserError for other shapes or types, or labels outside the classes."""
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(f"{name}: the images are {images.dtype} {images.shape}; they must be uint8 (N, H, W, 3).")
        if images.size == 0:
            raise UserError(
                f"{name}: the images are {images.shape}; there must be at least one, of at least one pixel."
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{name}: the labels are {labels.dtype} {labels.shape}; "
                f"they must be integers ({len(images)},), one an image."
            )
        if class_names is None:
            class_names = _numbers_as_names(labels)
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise UserError(
                f"{name}: the labels run from {labels.min()} to {labels.max()}; "
                f"they must lie in 0 to {len(class_names) - 1}."
            )
        super().__init__(name, len(images), tuple(class_names))
        self.images, self.labels = images, labels.astype(np.int32)

    def fetch(self, examples: np.ndarray) -> np.ndarray:
        """The pixels of these examples, (n, H, W, 3) uint8."""
        return self.images[examples]


class FolderSource(Source):
    """Images in files, `ROOT/<split>/<class>/<file>`, local or gs://; classes and files in the order of their names.

    Attributes:
      paths: of the files, as text.
      labels: (N,) int32.
    """

    def __init__(self, root: str, split: str):
        """Raises UserError if the folder or its classes are missing or empty, or other files stand among them."""
        if not root:
            raise UserError("data.data_dir is empty; it must name the folder that holds <split>/<class>/<image files>.")
        top = epath.Path(root).expanduser()
        folder = top / split
        if not folder.is_dir():
            here = [name for name, is_folder in _listing(top) if is_folder] if top.is_dir() else None
            found = f"{top} does not exist" if here is None else f"{top} holds {_some(here) if here else 'no folders'}"
            raise UserError(
                f"there is no image folder {folder} ({found}); it must hold a folder of images for each class."
            )
        classes, counts, paths, empty, stray, hidden = [], [], [], [], [], 0
        for name, is_folder in _listing(folder):
            if _is_hidden(name):
                hidden += 1
                continue
            if not is_folder:
                stray.append(name)
                continue
            files = []
            for file, is_inner_folder in _listing(folder / name):
                if _is_hidden(file):
                    hidden += 1
                elif is_inner_folder or not _is_image(file):
                    stray.append(f"{name}/{file}")
                else:
                    files.append(os.path.join(str(folder), name, file))
            classes.append(name)
            counts.append(len(files))
            paths += files
            if not files:
                empty.append(name)
        if stray:
            raise UserError(
                f"{folder} must hold a folder of images ({', '.join(IMAGE_ENDINGS)}) for each class and nothing else, "
                f"but {len(stray)} stray file(s) or folder(s) stand there: {_some(stray)}; move them elsewhere."
            )
        if not classes:
            raise UserError(f"the image folder {folder} is empty; it must hold a folder of images for each class.")
        if empty:
            raise UserError(
                f"{len(empty)} class folder(s) in {folder} hold no images: {_some(empty)}; fill or remove each of them."
            )
        notices = (f"{hidden} hidden file(s) in {folder} were passed over",) if hidden else ()
        super().__init__(str(folder), len(paths), tuple(classes), notices)
        self.paths, self.labels = paths, np.repeat(np.arange(len(classes), dtype=np.int32), counts)

    def fetch(self, examples: np.ndarray) -> np.ndarray:
        """The paths of these examples, (n,) bytes."""
        return np.array([os.fsencode(self.paths[example]) for example in examples], object)

    def exclude(self, found: dict[int, str], max_fraction: float) -> None:
        """Takes note of examples that do not decode, with the reasons.

        Raises:
          UserError: they are now more than `max_fraction` of all; names them.
        """
        bad = self.bad | found
        if len(bad) > max_fraction * len(self) or len(bad) == len(self):
            first, why = next(iter(bad.items()))
            others = [self.paths[example] for example in bad if example != first]
            more = f", and so cannot {_some(others)}" if others else ""
            raise UserError(
                f"{self.paths[first]} cannot be read as an image ({why}){more}; mend or remove "
                f"{'them' if others else 'it'}, or raise data.max_bad_fraction, which is {max_fraction:g} of {len(self)}."
            )
        self.bad = bad


class TfdsStream(Source):
    """A large TFDS set in TFRecord files, read in a row as encoded images.

    The order is a function of (seed, epoch): files permuted, 16 of them read in turn, and a shuffle buffer seeded by
    both. What that costs: the buffer holds `data.shuffle_buffer` encoded images (16 384 of ImageNet are 1.8 GB); a
    resumed run reads the records of the epoch before its step, without decoding their images (about 5000 of ImageNet's
    size a second on one core, if the disk gives them), and refills the buffer; of several processes each reads all
    records and decodes its own rows only. Image folders and sets that fit in memory are free of all this; ArrayRecord
    files, which can be read anywhere, would be too.
    """

    def __init__(self, builder: Any, split: str):
        info = builder.info
        names = tuple(info.features["label"].names)
        super().__init__(f"TFDS {builder.name}, {split}", info.splits[split].num_examples, names)
        self._builder, self._split = builder, split

    def records(self, seed: int | None, epoch: int) -> Any:
        """A tf.data.Dataset of (encoded image, label int32) in the order of an epoch; in the files' without a seed."""
        tf = import_tensorflow()
        import tensorflow_datasets as tfds

        options = tf.data.Options()
        options.deterministic = True
        mixed = None if seed is None else single_seed(seed, epoch)
        decoders = {"image": tfds.decode.SkipDecoding()}
        dataset = self._builder.as_dataset(
            split=self._split,
            shuffle_files=seed is not None,
            decoders=tfds.decode.PartialDecoding({"image": True, "label": True}, decoders=decoders),
            read_config=tfds.ReadConfig(shuffle_seed=mixed, options=options, try_autocache=False, skip_prefetch=True),
        )
        return dataset.map(lambda example: (example["image"], tf.cast(example["label"], tf.int32)))


def make_source(config: ConfigDict, split: str) -> Source:
    """The source that `config.data` names.

    Args:
      config: `config.data` of a run.
      split: "train" or "test", which `config.train_split` and `config.test_split` translate.

    Raises:
      UserError: it is not there, or not what it should be.
    """
    theirs = config[f"{split}_split"]
    if not theirs:
        raise UserError(f"data.{split}_split is empty; name the {split} split, or set monitor.every_epochs to 0.")
    if config.source == "photographs":
        crops = config.photographs
        images, labels = photograph_crops(split, size=crops.size, per_class=crops[f"{split}_per_class"])
        return ArraySource(f"crops of {len(PHOTOGRAPHS)} photographs, {split}", images, labels, tuple(PHOTOGRAPHS))
    if config.source == "folder":
        return FolderSource(config.data_dir, theirs)
    if config.source == "arrays":
        return _arrays(config.data_dir, theirs)
    if config.source == "tfds":
        return _tfds(config, theirs)
    raise UserError(f"data.source is {config.source!r}; it must be photographs, tfds, folder or arrays.")


def import_tensorflow() -> Any:
    """TensorFlow, when it is first needed: in-memory training does without."""
    try:
        from bt_jax.data.tensorflow_import import tf
    except ImportError as error:
        raise UserError(
            f"reading images needs TensorFlow, which cannot be imported ({error}); pip install tensorflow."
        ) from None
    return tf


def _numbers_as_names(labels: np.ndarray) -> tuple[str, ...]:
    return tuple(str(i) for i in range(int(labels.max(initial=-1)) + 1))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def _listing(folder: epath.Path) -> list[tuple[str, bool]]:
    """(name, is it a folder) of all entries, in the order of their names."""
    if "://" not in str(folder):
        with os.scandir(folder) as entries:  # for a million files many times faster than asking each path
            return sorted((entry.name, entry.is_dir()) for entry in entries)
    # A question for each entry would be a request each: what is named like an image is taken for a file.
    return sorted((entry.name, not _is_image(entry.name) and entry.is_dir()) for entry in folder.iterdir())


def _some(names: list[str]) -> str:
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _arrays(file: str, split: str) -> ArraySource:
    path = epath.Path(file).expanduser()
    if not file or not path.is_file():
        raise UserError(f"there is no file {str(path)!r}; data.data_dir must name an .npz file of arrays.")
    images, labels = f"x_{split}", f"y_{split}"
    try:
        with path.open("rb") as opened, np.load(opened) as arrays:
            missing = [name for name in (images, labels) if name not in arrays]
            if not missing:
                # Both splits have the same classes, though one may lack the last of them.
                known = [_numbers_as_names(arrays[name]) for name in arrays.files if name.startswith("y_")]
                return ArraySource(f"{path}, {split}", arrays[images], arrays[labels], max(known, key=len))
            held = ", ".join(arrays.files)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as an .npz file of arrays ({first_line(error)}).") from None
    raise UserError(f"{path} holds {held or 'no arrays'}; it must hold {images} and {labels}.")


def _tfds(config: ConfigDict, split: str) -> Source:
    builder = _builder(config)
    _require_prepared(builder, config)
    info = builder.info
    try:
        count = info.splits[split].num_examples  # a slice like train[:10%] is a split too
    except (KeyError, ValueError):
        raise UserError(f"TFDS {builder.name} has no split {split!r}; it has {', '.join(info.splits)}.") from None
    if count == 0:
        raise UserError(f"split {split!r} of TFDS {builder.name} has no examples; it has {', '.join(info.splits)}.")
    features = info.features
    parts = [part for part in ("image", "label") if part not in features]
    if parts or features["image"].dtype != np.uint8 or not hasattr(features["label"], "names"):
        held = " ".join(str(features).split())
        raise UserError(f"TFDS {builder.name} holds {held}; bt_jax needs an 8-bit 'image' and a class 'label'.")
    if info.file_format.value != "tfrecord":
        raise UserError(
            f"TFDS {builder.name} in {builder.data_path} is stored as {info.file_format.value}; "
            "bt_jax reads tfrecord: build it with --file_format=tfrecord."
        )
    shape = features["image"].shape
    if None not in shape and count * shape[0] * shape[1] * 3 <= config.in_memory_bytes:
        return _in_memory(builder, split, count)
    return TfdsStream(builder, split)


def _builder(config: ConfigDict) -> Any:
    import_tensorflow()  # first, as TFDS would let it have the accelerators
    import tensorflow_datasets as tfds

    if not config.name:
        raise UserError("data.name is empty; it must name a TFDS data set, for example cifar10.")
    try:
        return tfds.builder(config.name, data_dir=config.data_dir or None)
    except tfds.core.registered.DatasetNotFoundError:
        folder = epath.Path(config.data_dir or tfds.core.constants.DATA_DIR).expanduser()
        theirs = [name for name, is_folder in _listing(folder) if is_folder] if folder.is_dir() else []
        known = [*theirs, *tfds.list_builders(with_community_datasets=False)]
        near = list(dict.fromkeys(difflib.get_close_matches(config.name, known, n=3)))
        hint = f"did you mean {' or '.join(near)}?" if near else "see tensorflow.org/datasets/catalog."
        raise UserError(f"TFDS has no data set {config.name!r}, nor is there one in {folder}; {hint}") from None
    except (ValueError, TypeError, AssertionError, ImportError) as error:  # a configuration or version that is not
        raise UserError(f"TFDS cannot make {config.name!r} ({first_line(error)}); mend data.name.") from None


def _require_prepared(builder: Any, config: ConfigDict) -> None:
    """Sees that the set is there; downloads it if the user allows that and TFDS can."""
    folder = epath.Path(builder.data_path)
    if (folder / "dataset_info.json").exists():
        return
    where = f"TFDS {builder.name} is not in {folder}"
    others = (
        [n for n, is_folder in _listing(folder.parent) if is_folder and n[0].isdigit()]
        if folder.parent.is_dir()
        else []
    )
    if others:
        where += (
            f" (version {_some(others)} is: for that, set data.name to {config.name.partition(':')[0]}:{others[-1]})"
        )
    if manual := builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        data_dir = folder.parents[1 if builder.builder_config is None else 2]  # DIR/name[/configuration]/version
        raise UserError(
            f"{where}, and must be fetched by hand. TFDS says: {' '.join(manual.split())} Put that in a folder and run "
            f"`tfds build {config.name} --data_dir={data_dir} --manual_dir=THAT_FOLDER`."
        )
    if not config.download:
        raise UserError(f"{where}; set data.data_dir to where it is, or data.download to True to let TFDS fetch it.")
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever the network, the disk or the set's host had to say
        raise UserError(f"{where}, and could not be downloaded ({first_line(error)}).") from error


def _in_memory(builder: Any, split: str, count: int) -> ArraySource:
    """All images decoded, in the order of the files."""
    tf = import_tensorflow()
    import tensorflow_datasets as tfds

    height, width, channels = builder.info.features["image"].shape
    images, labels = np.empty((count, height, width, 3), np.uint8), np.empty(count, np.int64)
    try:
        dataset = builder.as_dataset(
            split=split,
            shuffle_files=False,
            batch_size=1024,
            decoders=tfds.decode.PartialDecoding({"image": True, "label": True}),
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        start = 0
        for batch in dataset.as_numpy_iterator():
            stop = start + len(batch["label"])
            images[start:stop] = batch["image"] if channels in (1, 3) else batch["image"][..., :3]  # a fourth is alpha
            labels[start:stop] = batch["label"]
            start = stop
    except tf.errors.OpError as error:
        raise UserError(f"TFDS {builder.name} in {builder.data_path} cannot be read ({first_line(error)}).") from None
    return ArraySource(f"TFDS {builder.name}, {split}", images, labels, tuple(builder.info.features["label"].names))
