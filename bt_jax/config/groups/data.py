"""The images: their source and size, and where their views are made."""

from bt_jax.config.field import Field, Group, contradiction
from bt_jax.config.rules import anything, at_least, below_one, between, is_number, one_of, values

SOURCES = ("photographs", "tfds", "folder", "tar", "parquet", "arrays")
SOURCES_OF_FILES = ("folder", "tar", "parquet")  # of encoded images with names


@contradiction("data.source", "data.name")
def _tfds_needs_a_name(source, name):
    if source == "tfds" and name == "":
        return "data.name is empty, but must name the TFDS data set when data.source is 'tfds'"
    return None


@contradiction("data.source", "data.data_dir")
def _files_need_a_place(source, data_dir):
    what = {
        "folder": "the image folder",
        "tar": "the archives",
        "parquet": "the tables",
        "arrays": "the .npz file",
    }.get(source)
    if what and data_dir == "":
        return f"data.data_dir is empty, but must name {what} when data.source is {source!r}"
    return None


@contradiction("data.source", "data.data_dir")
def _photographs_are_in_no_folder(source, data_dir):
    if source == "photographs" and data_dir != "":
        return (
            f"data.data_dir is {data_dir!r}, but data.source is 'photographs', which reads no folder; set data.source "
            "too, as in --config.data.source=folder"
        )
    return None


@contradiction("data.source", "data.labels", "data.test_fraction", "data.exif_orientation")
def _only_files_have_these(source, labels, test_fraction, exif_orientation):
    given = {"labels": labels != "auto", "test_fraction": test_fraction != 0, "exif_orientation": exif_orientation}
    if source not in SOURCES_OF_FILES and any(given.values()):
        names = " and ".join(f"data.{name}" for name, is_given in given.items() if is_given)
        return f"{names} can be set only for images in files, when data.source is 'folder', 'tar' or 'parquet'"
    return None


@contradiction("data.eval_resize", "data.image_size")
def _resize_before_the_crop(eval_resize, image_size):
    if 0 < eval_resize < image_size:
        return f"data.eval_resize is {eval_resize}, but must be 0 or at least data.image_size, which is {image_size}"
    return None


@contradiction("task", "data.image_size")
def _only_embeddings_take_the_encoders_size(task, image_size):
    if image_size == 0 and task != "embed":
        return "data.image_size is 0, but must be an integer of at least 8"
    return None


def _range(ends):
    pairs = list(zip(ends[::2], ends[1::2], strict=False))
    if len(ends) % 2 == 0 and all(map(is_number, ends)) and all(low < high for low, high in pairs):
        return None
    return "must be empty, or a low and a high end, or these of each channel in turn"


@contradiction("task", "data.channels", "data.range", "data.mean", "data.std")
def _a_number_for_each_channel(task, channels, ends, mean, std):
    if task == "statistics":
        return None
    wrong = [
        f"data.{name} has {len(given)}" for name, given in (("mean", mean), ("std", std)) if len(given) != channels
    ]
    if len(ends) not in (0, 2, 2 * channels):
        wrong.append(f"data.range has {len(ends)}")
    if wrong:
        return f"{' and '.join(wrong)} numbers, but data.channels is {channels}; the task statistics finds them"
    return None


@contradiction("data.source", "data.channels", "data.range")
def _photographs_are_photographs(source, channels, ends):
    if source == "photographs" and (channels != 3 or ends):
        return "data.channels and data.range cannot be set for the source photographs, whose images are red, green and blue of 8 bits"
    return None


DATA = Group(
    "data",
    "the images",
    {
        "source": Field("folder", one_of(SOURCES), "Kind of source: photographs, tfds, folder, tar, parquet or arrays"),
        "name": Field("", anything, "Name of the TFDS data set, for the source tfds"),
        "data_dir": Field(
            "",
            anything,
            "Depending on the source: a folder of images of any layout, a list of them (.txt or .csv), or several of these "
            "separated by commas; a folder of tar archives or Parquet files, one of them, or a pattern such as DIR/train-{000..123}.tar; "
            "a TFDS folder; an .npz file with x_train, y_train, x_test and y_test",
            resume="free",
            own=True,
        ),
        "train_split": Field(
            "train",
            lambda v: None if v else "must name a split",
            "Split to train on; a folder without splits is taken as a whole, any other if this is '.'",
        ),
        "test_split": Field("test", anything, "Split to test on; empty for none, which rules out the kNN monitor"),
        "labels": Field(
            "auto",
            lambda v: None if v else "must be 'auto', 'none', 'folders', or name a CSV file",
            "Where labels of images in files come from: none, folders (each folder of the split is a class), a CSV file with the "
            "columns path and label, or auto: the list's labels if it has any, else folders if all images are in folders; "
            "of archives those of .cls or .json files if there are any; of Parquet files a column, which may be named here",
            resume="free",  # the fingerprint of the data tells whether they are the same
        ),
        "test_fraction": Field(
            0.0,
            below_one,
            "Fraction of the images in files that are set aside as test images, by a hash of their paths, if there is no "
            "folder data.test_split",
        ),
        "exif_orientation": Field(
            False,
            anything,
            "Whether images are turned as their EXIF data say, as for photographs of phones; torchvision does not",
        ),
        "image_size": Field(
            224,
            lambda v: None if v == 0 else at_least(8)(v),
            "Height and width of a view, in pixels; in the task embed 0 is the encoder's own, and eval_resize is scaled from 224 to it",
        ),
        "eval_resize": Field(
            256,
            at_least(0),
            "Evaluations resize an image's shorter side to this and crop the centre; 0 resizes the whole image to image_size",
        ),
        "channels": Field(
            3,
            between(1, 1024),
            "Channels of an image; with 1, coloured images are turned to grey, and with 3, grey ones to three equal channels, if they have "
            "8 bits and no range is declared; other images must have as many",
        ),
        "range": Field(
            (),
            _range,
            "Range of the images' values where these are not of 8 bits: the low and high end of all channels, or of each in turn; what lies "
            "outside counts as the end. Empty for 8 bits. The task statistics finds it",
        ),
        "mean": Field(
            (0.485, 0.456, 0.406),
            values(None, "numbers", is_number),
            "Mean of each channel, from 0 to 1 in the range of values, subtracted from each view",
        ),
        "std": Field(
            (0.229, 0.224, 0.225),
            values(None, "positive numbers", lambda x: is_number(x) and x > 0),
            "Standard deviation of each channel, by which views are divided",
        ),
        "download": Field(False, anything, "Whether TFDS may download the data set", resume="free", own=True),
        "max_bad_fraction": Field(
            0.001,
            between(0, 1),
            "Fraction of the images that may fail to decode, of a small set one image at least unless it is 0; other images "
            "replace them, and they are reported; each process counts those that it meets, of P processes a P-th of them in the first "
            "epoch",
            resume="free",
        ),
        "in_memory_bytes": Field(
            4 * 2**30,
            at_least(0),
            "TFDS sets with images of one size are held decoded in the host's memory, up to this many bytes",
            resume="free",
        ),
        "cache_bytes": Field(
            0,
            at_least(0),
            "Memory in which a process caches encoded images, in bytes, for the train and for the test images each; for data on a network "
            "file system",
            resume="free",
        ),
        "shuffle_buffer": Field(
            16384, at_least(1), "Examples in the shuffle buffer of large TFDS sets, which are read as a stream"
        ),
        "threads": Field(0, at_least(0), "Threads of the host's pipeline; 0 for one per core", resume="free", own=True),
        "prefetch": Field(2, at_least(1), "Batches prepared in advance on the host", resume="free", own=True),
        "views": Field(
            "host",
            one_of(("host", "device")),
            "Where views are made: host, with Pillow's arithmetic, or device, for a weak host",
        ),
        "device_bytes": Field(
            0,
            at_least(0),
            "With views on the device, sets of up to this many bytes are held in each device's memory; 0 for a quarter of it",
        ),
        "canvas_size": Field(
            0,
            at_least(0),
            "With views on the device, files are decoded to fit a square of this side, in pixels; 0 for 16/7 of image_size",
        ),
        "photographs.size": Field(48, at_least(8), "For the source photographs: side of a crop, in pixels"),
        "photographs.train_per_class": Field(300, at_least(1), "For the source photographs: train crops per class"),
        "photographs.test_per_class": Field(60, at_least(1), "For the source photographs: test crops per class"),
    },
    (
        _tfds_needs_a_name,
        _files_need_a_place,
        _photographs_are_in_no_folder,
        _only_files_have_these,
        _resize_before_the_crop,
        _only_embeddings_take_the_encoders_size,
        _a_number_for_each_channel,
        _photographs_are_photographs,
    ),
)
