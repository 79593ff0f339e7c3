"""TFDS sets as sources: decoded in memory if they fit, else read from ArrayRecord files at random or TFRecord files in sequence.

Importing this imports TensorFlow.
"""

import dataclasses
import difflib
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict

from bt_jax.data.decode import decode
from bt_jax.data.order import single_seed
from bt_jax.data.sources.base import (
    MOST_CLASSES,
    ArraySource,
    BytesCache,
    EncodedSource,
    Source,
    StreamSource,
    other_split,
)
from bt_jax.data.sources.declared import check_declared
from bt_jax.data.sources.listing import listing
from bt_jax.data.tensorflow_import import SAID, tf
from bt_jax.errors import UserError, first_line, some
from bt_jax.parts import import_part
from bt_jax.pixels import PHOTOGRAPHS, Pixels
from bt_jax.runtime.files import allow_open
from bt_jax.runtime.paths import as_path

_INT32 = np.iinfo(np.int32)  # labels beyond it are clipped, so that they stay outside the classes
_RECORD_BYTES = 16  # of an empty record, in both formats at least


@dataclasses.dataclass(frozen=True)
class _Images:
    """Which feature of a TFDS set holds its images.

    Attributes:
      name: of the feature: "image", or another if it is the only one that can be, such as EuroSAT's "sentinel2", or the only one
        with the declared number of channels.
      are_files: whether it holds encoded images; else it holds arrays, which are handed on as the bytes of .npy files.
    """

    name: str
    are_files: bool

    @classmethod
    def of(cls, builder: Any, pixels: Pixels) -> "_Images":
        """Raises UserError if no feature, or more than one, holds images of such pixels beside a class "label"."""
        features = builder.info.features
        can = [name for name in features if _holds_images(features[name], pixels)]
        if len(can) > 1 and "image" not in can:  # bands of two satellites, say
            can = [name for name in can if (*features[name].shape, 1)[2] == pixels.channels] or can
        name = "image" if "image" in can else can[0] if len(can) == 1 else ""
        if name and "label" in features and hasattr(features["label"], "names"):
            feature = features[name]
            files = isinstance(feature, tfds.features.Image) and feature.np_dtype in (np.uint8, np.uint16)
            return cls(name, files)
        found = " ".join(str(features).split())
        which = "images of real numbers" if pixels.range else "8-bit images"
        declare = "" if pixels.range else "; others if data.channels and data.range are declared"
        raise UserError(
            f"TFDS {builder.name} holds {found}; bt_jax needs a feature 'image', or a single one with "
            f"{pixels.channels} channels, that holds {which}, and a class 'label'{declare}."
        )


def _holds_images(feature: Any, pixels: Pixels) -> bool:
    """Whether it may hold images (H, W, C), or (H, W) for a single channel, of values that `pixels` allows."""
    if type(feature) not in (tfds.features.Image, tfds.features.Tensor):
        return False
    kind = np.dtype(feature.np_dtype)
    return len(feature.shape) in (2, 3) and (kind.kind in "uif" if pixels.range else kind == np.uint8)


def _as_npy(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, image, allow_pickle=False)
    return file.getvalue()


class RecordSource(EncodedSource):
    """A TFDS set in ArrayRecord files, which can be read at random: any examples, in any order, at the speed of files."""

    def __init__(self, builder: Any, split: str, kept: _Images, cache_bytes: int = 0):
        """Args: cache_bytes: as for `FolderSource`."""
        reader = import_part(
            "array_record.python.array_record_data_source",
            use=f"TFDS {builder.name}, which is stored as array_record,",
            name="array_record",
        )
        info = builder.info
        super().__init__(
            f"TFDS {builder.name}, {split}", info.splits[split].num_examples, tuple(info.features["label"].names)
        )
        self._builder, self._split, self._kept = builder, split, kept
        self._arrays = tfds.decode.PartialDecoding({kept.name: True}).extract_features(info.features)
        files = info.splits[split].file_instructions
        allow_open(len(files), f"TFDS {builder.name}, {split},")  # its reader closes none
        self._reader = reader.ArrayRecordDataSource(files)
        self._cache = BytesCache(cache_bytes)

    def _identity(self) -> Iterator[bytes]:
        yield _identity_of(self._builder, self._split)

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = np.empty(len(examples), object), np.zeros(len(examples), np.int64)
        for i, record in enumerate(self._cache.get(examples, self._read)):
            images[i] = b""
            if record:  # the label of a damaged one is not known, nor is it needed, as another stands in
                part = tf.train.Example.FromString(record).features.feature
                images[i], labels[i] = self._image(record, part), part["label"].int64_list.value[0]
        return images, np.clip(labels, _INT32.min, _INT32.max).astype(np.int32)

    def _image(self, record: bytes, part: Any) -> bytes:
        name = self._kept.name
        if self._kept.are_files:
            return part[name].bytes_list.value[0]
        return _as_npy(self._arrays.deserialize_example_np(record)[name])

    def _read(self, examples: list[int]) -> list[bytes]:
        """The records; nothing, which is no image, for one that is damaged.

        Raises:
          UserError: a file is gone, or cannot be opened.
        """
        try:
            return list(self._reader.__getitems__(examples))
        except RuntimeError:  # it does not say of which
            return [self._read_one(example) for example in examples]

    def _read_one(self, example: int) -> bytes:
        try:
            return self._reader[example]
        except RuntimeError as error:
            if (why := first_line(error)).startswith("open() failed: "):
                raise UserError(
                    f"{self.name} cannot be read ({why.removeprefix('open() failed: ')}); bring it back, and the same command resumes "
                    "from the last checkpoint."
                ) from None
            return b""

    def in_a_row(self) -> tf.data.Dataset:
        """(encoded image, label int32) of all examples, in order."""

        def fetch(examples):
            images, labels = tf.numpy_function(self.fetch, [examples], [tf.string, tf.int32], stateful=False)
            return tf.ensure_shape(images, (None,)), tf.ensure_shape(labels, (None,))

        return tf.data.Dataset.range(len(self)).batch(1024).map(fetch).unbatch()


class TfdsStream(StreamSource):
    """A large TFDS set in TFRecord files, read in sequence as encoded images.

    The order is a function of (seed, epoch): files permuted, 16 of them read in turn, and a shuffle buffer seeded by
    both. The price: the buffer holds `data.shuffle_buffer` encoded images (16 384 of ImageNet are 1.8 GB); a resumed run
    re-reads the epoch up to its step, without decoding (about 5000 images of ImageNet's size a second on one core, if the
    disk can deliver them), and refills the buffer; each of several processes reads all records and decodes only its own
    rows. Image folders, sets in ArrayRecord files and sets that fit in memory have none of this.

    A record whose image does not decode is identified by a fingerprint of its bytes, and the one before it in the epoch
    stands in; a damaged file ends the run.
    """

    def __init__(self, builder: Any, split: str, kept: _Images):
        info = builder.info
        names = tuple(info.features["label"].names)
        super().__init__(f"TFDS {builder.name}, {split}", info.splits[split].num_examples, names)
        self._builder, self._split, self._kept = builder, split, kept

    def _identity(self) -> Iterator[bytes]:
        yield _identity_of(self._builder, self._split)

    def records(self, seed: int | None, epoch: int) -> tf.data.Dataset:
        shuffle_seed = None if seed is None else single_seed(seed, epoch)
        return _encoded_stream(self._builder, self._split, self._kept, shuffle_seed)


def _identity_of(builder: Any, split: str) -> bytes:
    """The set's name and version, the size of its splits, and which examples of which files the split is."""
    info = builder.info
    sizes = {name: (part.num_examples, part.num_bytes) for name, part in sorted(info.splits.items())}
    files = [(os.path.basename(f.filename), f.skip, f.take) for f in info.splits[split].file_instructions]
    return repr((info.full_name, sizes, files)).encode()


def _encoded_stream(builder: Any, split: str, kept: _Images, shuffle_seed: int | None) -> tf.data.Dataset:
    """(encoded image, label int32), in the order of the files, or with the files permuted and 16 read in turn."""
    options = tf.data.Options()
    options.deterministic = True
    name = kept.name
    decoders = {name: tfds.decode.SkipDecoding()} if kept.are_files else None
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=shuffle_seed is not None,
        decoders=tfds.decode.PartialDecoding({name: True, "label": True}, decoders=decoders),
        read_config=tfds.ReadConfig(
            shuffle_seed=shuffle_seed,
            interleave_cycle_length=1 if shuffle_seed is None else 16,
            options=options,
            try_autocache=False,
            skip_prefetch=True,
        ),
    )

    def part(example):
        label = tf.clip_by_value(tf.cast(example["label"], tf.int64), _INT32.min, _INT32.max)
        image = example[name]
        if not kept.are_files:
            image = tf.ensure_shape(tf.numpy_function(_as_npy, [image], tf.string, stateful=False), ())
        return image, tf.cast(label, tf.int32)

    return dataset.map(part)


def tfds_source(config: ConfigDict, split: str, use: str = "train", pixels: Pixels = PHOTOGRAPHS) -> Source:
    """The TFDS source that `config.data` names: in memory if it fits, else in records, else as a stream.

    Args:
      use: of the split, "train" or "test", for messages.
      pixels: of the images.

    Raises:
      UserError: it does not exist, or is not what bt_jax can use.
    """
    builder = prepared_builder(config)
    info = builder.info
    try:
        count = info.splits[split].num_examples  # a slice like train[:10%] is a split too
    except (KeyError, ValueError):
        hint = other_split(split, info.splits, use)
        raise UserError(
            f"TFDS {builder.name} has no split {split!r}; it has {', '.join(info.splits)}{hint and ': ' + hint}."
        ) from None
    if count == 0:
        raise UserError(f"split {split!r} of TFDS {builder.name} has no examples; it has {', '.join(info.splits)}.")
    kept = _Images.of(builder, pixels)
    stored = info.file_format.value
    if stored not in ("tfrecord", "array_record"):
        raise UserError(
            f"TFDS {builder.name} in {builder.data_path} is stored as {stored}; bt_jax reads array_record and tfrecord: "
            "build it with --file_format=array_record."
        )
    _check_counts(builder, split)
    records = RecordSource(builder, split, kept, config.cache_bytes) if stored == "array_record" else None
    shape = info.features[kept.name].shape
    size = pixels.channels * pixels.dtype.itemsize
    if None not in shape and count * shape[0] * shape[1] * size <= config.in_memory_bytes:
        return _in_memory(builder, split, kept, count, records, pixels, config.max_bad_fraction)
    return records or TfdsStream(builder, split, kept)


def _check_counts(builder: Any, split: str) -> None:
    """Compares what dataset_info.json says with the files.

    Raises:
      UserError: it counts more examples than its files have room for, or more classes than the set can have.
    """
    info = builder.info
    classes, images = info.features["label"].num_classes, info.splits.total_num_examples
    if (classes or 0) > max(images, MOST_CLASSES):
        raise UserError(
            f"TFDS {builder.name} in {builder.data_path} claims {classes} classes for {images} images; correct its "
            "features.json."
        )
    check_files(builder, split)


def check_files(builder: Any, split: str) -> None:
    """Raises UserError if dataset_info.json counts more examples than the files of a split have room for."""
    for file in builder.info.splits[split].file_instructions:
        path = epath.Path(file.filename)
        if not path.exists():
            continue  # its reader reports that
        size = path.stat().length
        if file.examples_in_shard * _RECORD_BYTES > size:
            raise UserError(
                f"TFDS {builder.name}: {path} holds {size} bytes, too few for the {file.examples_in_shard} examples that "
                "dataset_info.json counts; fetch or build the set again."
            )


def prepared_builder(config: ConfigDict) -> Any:
    """The TFDS builder that `config.data` names, its files prepared.

    Raises:
      UserError: TFDS does not know the set, or it is not prepared.
    """
    builder = _builder(config)
    _require_prepared(builder, config)
    return builder


def _builder(config: ConfigDict) -> Any:
    if not config.name:
        raise UserError("data.name is empty; it must name a TFDS data set, for example cifar10.")
    if config.data_dir:
        as_path(config.data_dir, "data.data_dir")
    try:
        return tfds.builder(config.name, data_dir=config.data_dir or None)
    except tfds.core.registered.DatasetNotFoundError:
        folder = epath.Path(config.data_dir or tfds.core.constants.DATA_DIR).expanduser()
        local = [name for name, is_folder in listing(folder) if is_folder] if folder.is_dir() else []
        known = [*local, *tfds.list_builders(with_community_datasets=False)]
        near = list(dict.fromkeys(difflib.get_close_matches(config.name, known, n=3)))
        hint = f"did you mean {' or '.join(near)}?" if near else "see tensorflow.org/datasets/catalog."
        raise UserError(f"TFDS has no data set {config.name!r}, nor is there one in {folder}; {hint}") from None
    except (ValueError, TypeError, AssertionError, ImportError) as error:  # a wrong configuration or version
        raise UserError(f"TFDS cannot make {config.name!r} ({first_line(error)}); correct data.name.") from None


def _require_prepared(builder: Any, config: ConfigDict) -> None:
    """Makes sure that the set is prepared; downloads it if the user allows that and TFDS can."""
    folder = epath.Path(builder.data_path)
    if (folder / "dataset_info.json").exists():
        return
    where = f"TFDS {builder.name} is not in {folder}"
    others = (
        [n for n, is_folder in listing(folder.parent) if is_folder and n[0].isdigit()] if folder.parent.is_dir() else []
    )
    if others:
        where += (
            f" (version {some(others)} is: for that, set data.name to {config.name.partition(':')[0]}:{others[-1]})"
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
    except Exception as error:  # anything from the network, the disk or the server
        raise UserError(f"{where}, and could not be downloaded ({first_line(error)}).") from error


def _in_memory(
    builder: Any,
    split: str,
    kept: _Images,
    count: int,
    records: RecordSource | None,
    pixels: Pixels,
    max_bad_fraction: float,
) -> ArraySource:
    """All images decoded, in the order of the files; those that do not decode are black, and recorded as bad."""
    encoded_source = records or TfdsStream(builder, split, kept)
    if not pixels.are_photographs:
        encoded_source.pixels = pixels
        check_declared(encoded_source)
    height, width = builder.info.features[kept.name].shape[:2]
    images = np.empty((count, height, width, pixels.channels), pixels.dtype)
    labels = np.empty(count, np.int32)
    start, bad = 0, {}
    try:
        encoded = _encoded_stream(builder, split, kept, None) if records is None else records.in_a_row()
        decoded = encoded.map(lambda image, label: (decode(image, pixels), label), num_parallel_calls=tf.data.AUTOTUNE)
        try:
            for some_images, some_labels in decoded.batch(1024).as_numpy_iterator():
                stop = start + len(some_labels)
                images[start:stop], labels[start:stop] = some_images, some_labels
                start = stop
        except (tf.errors.OpError, ValueError):  # it does not say of which image
            start, bad = _one_by_one(encoded, images, labels, pixels)
    except (tf.errors.OpError, ValueError) as error:
        if said := SAID.search(str(error)):
            raise UserError(said[1]) from None
        raise UserError(f"TFDS {builder.name} in {builder.data_path} cannot be read ({first_line(error)}).") from None
    if start != count:
        raise UserError(
            f"TFDS {builder.name} in {builder.data_path} holds {start} examples of {split}, not the {count} that "
            "dataset_info.json counts; fetch or build the set again."
        )
    names = tuple(builder.info.features["label"].names)
    source = ArraySource(f"TFDS {builder.name}, {split}", images, labels, names, pixels)
    source.notices += encoded_source.notices
    if bad:
        source.exclude(bad, max_bad_fraction)
    return source


def _one_by_one(
    encoded: tf.data.Dataset, images: np.ndarray, labels: np.ndarray, pixels: Pixels
) -> tuple[int, dict[int, str]]:
    """Fills the arrays with what decodes: (how many examples there are, which of them do not decode, and why)."""
    count, bad = 0, {}
    for image, label in encoded:
        if count < len(labels):
            labels[count] = label
            try:
                images[count] = decode(image, pixels)
            except (tf.errors.OpError, ValueError) as error:
                images[count], bad[count] = 0, first_line(error)
        count += 1
    return count, bad
