"""PASCAL VOC for classification: an image may have several classes, and for some classes it does not count.

From the official folders (`VOC2007/JPEGImages`, `VOC2007/ImageSets/Main`), or from TFDS `voc/2007`. A batch carries one whole
number per image as its label; here that is the image's number, the row of `targets`.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bt_jax.data.sources.base import EncodedSource, Source, StreamSource, import_tfds
from bt_jax.errors import UserError, first_line, some
from bt_jax.runtime.paths import as_path

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class VocFolder(EncodedSource):
    """The official folders.

    Attributes:
      targets: (n, 20) int8: 1, the image shows an object of the class; -1, it shows none; 0, only objects marked difficult,
        and the image does not count for that class (VOC2007 development kit, section 4).
    """

    gives_paths = True

    def __init__(self, root: str, split: str):
        """Args:
        root: VOC2007, or the folder that holds it (VOCdevkit).
        split: train, val, trainval or test.

        Raises:
          UserError: folders or lists are missing, or a list is not as it is distributed.
        """
        top = as_path(root, "data.data_dir")
        if not (top / "ImageSets").is_dir() and (top / "VOC2007").is_dir():
            top = top / "VOC2007"
        lists = top / "ImageSets" / "Main"
        missing = [name for name in CLASSES if not (lists / f"{name}_{split}.txt").exists()]
        if missing:
            raise UserError(
                f"{lists} lacks {len(missing)} of the 20 lists of the split {split!r} ({some(missing)}, like "
                f"{missing[0]}_{split}.txt); data.data_dir must name VOCdevkit or VOC2007 as it is distributed."
            )
        columns, names = [], None
        for name in CLASSES:
            path = lists / f"{name}_{split}.txt"
            try:
                lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{path} cannot be read ({first_line(error)}); it must be a text file.") from None
            if any(len(line) != 2 or line[1] not in ("1", "-1", "0") for line in lines):
                raise UserError(f"{path} must hold an image and one of 1, -1 and 0 in each line.")
            images = [line[0] for line in lines]
            if names is not None and images != names:
                raise UserError(f"{path} names other images than {CLASSES[0]}_{split}.txt; all must name the same.")
            names = images
            columns.append([int(line[1]) for line in lines])
        if not names:
            raise UserError(f"the lists of the split {split!r} in {lists} are empty.")
        super().__init__(f"{top}, {split}", len(names), CLASSES)
        self._paths = [str(top / "JPEGImages" / f"{name}.jpg") for name in names]
        self.targets = np.array(columns, np.int8).T

    def place(self, example: int) -> str:
        return self._paths[example]

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([self._paths[i].encode() for i in examples], object), np.asarray(examples, np.int32)


class VocStream(StreamSource):
    """TFDS `voc/2007`; attributes as of `VocFolder`."""

    def __init__(self, builder: Any, split: str):
        """Raises UserError if the files hold other classes, or not as many examples as dataset_info.json counts."""
        from bt_jax.data.tensorflow_import import tf

        super().__init__(f"TFDS {builder.name}, {split}", builder.info.splits[split].num_examples, CLASSES)
        self._builder, self._split = builder, split
        self.targets = np.full((len(self), len(CLASSES)), -1, np.int8)
        try:
            found = [example["objects"] for example in self._dataset().as_numpy_iterator()]
        except tf.errors.OpError as error:  # TFDS counts them too
            raise UserError(
                f"TFDS {builder.name} in {builder.data_path} cannot be read ({first_line(error)})."
            ) from None
        for number, (row, objects) in enumerate(zip(self.targets, found, strict=True)):
            labels, difficult = objects["label"], objects["is_difficult"]
            if len(labels) and not 0 <= min(labels) <= max(labels) < len(CLASSES):
                raise UserError(
                    f"image {number} of {self.name} has labels from {min(labels)} to {max(labels)}; those of VOC run from "
                    f"0 to {len(CLASSES) - 1}."
                )
            row[labels[difficult]] = 0
            row[labels[~difficult]] = 1

    def _dataset(self):
        import tensorflow_datasets as tfds

        return self._builder.as_dataset(
            split=self._split, shuffle_files=False, decoders={"image": tfds.decode.SkipDecoding()}
        )

    def records(self, seed: int | None, epoch: int):
        """(encoded image, the image's number), in the order of the files: nothing is trained on these."""
        del seed, epoch
        from bt_jax.data.tensorflow_import import tf

        return self._dataset().enumerate().map(lambda place, example: (example["image"], tf.cast(place, tf.int32)))


def voc_source(config: ConfigDict, split: str) -> Source:
    """A split of VOC.

    Args:
      config: `config.data` of a run, with source "folder" or "tfds".
      split: "train" or "test", which `config.train_split` and `config.test_split` translate.

    Raises:
      UserError: it does not exist, or is not VOC.
    """
    name = config[f"{split}_split"]
    if config.source == "folder":
        source = VocFolder(config.data_dir, name)
        source.exif_orientation = config.exif_orientation
        return source
    if config.source != "tfds":
        raise UserError(f"data.source is {config.source!r}; VOC comes from 'folder' (the official folders) or 'tfds'.")
    import_tfds()
    from bt_jax.data.sources.tfds import check_files, prepared_builder

    builder = prepared_builder(config)
    features = builder.info.features
    if "objects" not in features or "is_difficult" not in features["objects"]:
        raise UserError(
            f"TFDS {builder.name} has no objects that are marked difficult or not; data.name must be voc/2007."
        )
    if builder.info.file_format.value == "array_record":
        raise UserError(
            f"TFDS {builder.name} is stored as array_record; VOC is read from tfrecord, or from the official folders."
        )
    try:
        count = builder.info.splits[name].num_examples  # a slice is a split too
    except (KeyError, ValueError):
        splits = ", ".join(builder.info.splits)
        raise UserError(f"TFDS {builder.name} has no split {name!r}; it has {splits}.") from None
    if count == 0:
        raise UserError(f"split {name!r} of TFDS {builder.name} has no examples.")
    check_files(builder, name)
    return VocStream(builder, name)
