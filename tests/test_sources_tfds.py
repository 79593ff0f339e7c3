"""bt_jax/data/sources/tfds.py: sets as TFDS writes them, in memory, in records and as streams."""

import json
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bt_jax.config import default
from bt_jax.data.bad_images import bad_images
from bt_jax.data.decode import decode
from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.sources.base import ArraySource, EncodedSource, StreamSource
from bt_jax.data.sources.make import images_as_stored, make_source
from bt_jax.data.tensorflow_import import tf
from bt_jax.errors import UserError
from bt_jax.pixels import Pixels


def data_config(**fields):
    config = default().data
    config.update(fields)
    return config


def images_of(n, height=8, width=6):
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), np.uint8)


def values_of_bands(kind):
    """Of a dozen images, (12, 8, 6, C): float32 from -1 to 3, or uint8."""
    if kind == np.uint8:
        return images_of(12)
    return np.random.default_rng(0).uniform(-1, 3, (12, 8, 6, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Tiny sets as TFDS writes them: of one size, grey, of many sizes, not of images, and in ArrayRecord files."""
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    label = tfds.features.ClassLabel(names=["cat", "dog", "owl"])

    def write(name, shape, sizes, features=None, bands=None, **settings):
        if bands is not None:
            kept = [feature for feature in features if feature != "label"]
            examples = [
                (
                    i,
                    {name: bands[i] if len(features[name].shape) == 3 else bands[i, ..., 0] for name in kept}
                    | {"label": i % 3},
                )
                for i in range(len(sizes))
            ]
        elif features is not None:
            examples = [(i, {"text": str(i)}) for i in range(len(sizes))]
        else:
            examples = [
                (i, {"image": images_of(1, *size)[0][..., : shape[2]], "label": i % 3}) for i, size in enumerate(sizes)
            ]
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                features or {"image": tfds.features.Image(shape=shape), "label": label}
            ),
            split_datasets={"train": examples, "test": examples[:4]},
            data_dir=root,
            description="for tests",
            **settings,
        )

    write("even_set", (8, 6, 3), [(8, 6)] * 12)
    write("grey_set", (8, 6, 1), [(8, 6)] * 5)
    write("uneven_set", (None, None, 3), [(8 + i, 9) for i in range(7)])
    write("text_set", (1, 1, 1), [(1, 1)] * 3, features={"text": tfds.features.Text()})
    write("record_set", (None, None, 3), [(8 + i, 9) for i in range(7)], file_format="array_record")
    write("even_record_set", (8, 6, 3), [(8, 6)] * 12, file_format="array_record")
    for name, kind, files in (("bands_set", np.float32, None), ("band_record_set", np.float32, "array_record"),
                              ("bytes_set", np.uint8, None)):  # fmt: skip
        bands = {"sentinel2": tfds.features.Tensor(shape=(8, 6, 4 - (kind == np.uint8)), dtype=kind), "label": label}
        write(name, None, [()] * 12, features=bands, bands=values_of_bands(kind), file_format=files)
    two = {name: tfds.features.Tensor(shape=(8, 6, 4), dtype=np.float32) for name in ("before", "after")}
    two["thermal"] = tfds.features.Tensor(shape=(8, 6), dtype=np.float32)
    write("two_set", None, [()] * 3, features=two | {"label": label}, bands=values_of_bands(np.float32))
    write("parquet_set", (8, 6, 3), [(8, 6)] * 3, file_format="parquet")
    return root


def tfds_config(root, name, **fields):
    return data_config(source="tfds", name=name, data_dir=str(root), **fields)


def test_small_sets_are_decoded_into_memory(tfds_dir):
    source = make_source(tfds_config(tfds_dir, "even_set"), "train")
    assert isinstance(source, ArraySource) and source.class_names == ("cat", "dog", "owl")
    theirs = tfds.builder("even_set", data_dir=tfds_dir).as_dataset(split="train", shuffle_files=False)
    theirs = list(theirs.as_numpy_iterator())
    np.testing.assert_array_equal(source.images, [example["image"] for example in theirs])
    np.testing.assert_array_equal(source.labels, [example["label"] for example in theirs])
    assert sorted(source.labels.tolist()) == sorted([0, 1, 2] * 4)


def test_grey_sets_become_rgb(tfds_dir):
    images = make_source(tfds_config(tfds_dir, "grey_set"), "train").images
    assert images.shape == (5, 8, 6, 3)
    np.testing.assert_array_equal(images[..., 0], images[..., 2])


def test_a_slice_is_a_split(tfds_dir):
    source = make_source(tfds_config(tfds_dir, "even_set", train_split="train[:50%]+test"), "train")
    assert len(source) == 10


@pytest.mark.parametrize(
    ("name", "fields"), [("uneven_set", {}), ("even_set", {"in_memory_bytes": 12 * 8 * 6 * 3 - 1})]
)
def test_other_sets_are_read_as_streams(tfds_dir, name, fields):
    """Of several sizes, or too large for memory."""
    source = make_source(tfds_config(tfds_dir, name, **fields), "train")
    assert isinstance(source, StreamSource)
    records = list(source.records(None, 0).as_numpy_iterator())
    assert len(records) == len(source)
    assert all(encoded.startswith(b"\x89PNG") for encoded, _ in records)


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("even_st", {}, "TFDS has no data set 'even_st'.*did you mean even_set"),
        ("cifer10", {}, "no data set 'cifer10'.*cifar10"),
        ("", {}, "data.name is empty"),
        ("not a name", {}, "TFDS cannot make 'not a name'"),
        ("cifar10/fast", {}, "TFDS cannot make 'cifar10/fast'"),
        ("even_set", {"train_split": "trian"}, "even_set has no split 'trian'; it has train, test"),
        (
            "even_set",
            {"train_split": "training"},
            "has no split 'training'; it has train, test: set data.train_split to 'train'",
        ),
        ("even_set", {"train_split": "train[12:]"}, "has no examples"),
        (
            "text_set",
            {},
            "needs a feature 'image', or .* holds 8-bit images, and a class 'label'; others if data.channels and data.range are",
        ),
        ("bands_set", {}, "holds FeaturesDict.*sentinel2.* holds 8-bit images"),
        ("bands_set", {"channels": 4, "range": (0.0, 1.0)}, "of the values of .* images .*lie outside data.range"),
        ("bands_set", {"channels": 5, "range": (-1.0, 3.0)}, "has 4 channels, but data.channels is 5"),
        (
            "two_set",
            {"channels": 4, "range": (-1.0, 3.0)},
            "holds FeaturesDict.*after.*before.*a single one with 4 channels",
        ),
        ("parquet_set", {}, "stored as parquet; bt_jax reads array_record and tfrecord"),
        ("cifar10", {}, "cifar10 is not in .*cifar10/3.*; set data.data_dir to where it is, or data.download to True"),
        (
            "imagenet2012",
            {"download": True},
            "imagenet2012 is not in .* fetched by hand.*ILSVRC2012_img_train.tar.*"
            "`tfds build imagenet2012 --data_dir={root} --manual_dir=",
        ),
    ],
)
def test_wrong_tfds_sets(tfds_dir, name, fields, sentence):
    """Nothing is downloaded, neither to look something up nor to replace the set."""
    with pytest.raises(UserError, match=sentence.replace("{root}", str(tfds_dir))) as raised:
        make_source(tfds_config(tfds_dir, name, **fields), "train")
    assert "\n" not in str(raised.value)


def test_another_version_is_there(tfds_dir):
    """What one finds after an update of TFDS."""
    (tfds_dir / "mnist" / "1.2.3").mkdir(parents=True)
    with pytest.raises(UserError, match="mnist is not in .*version 1.2.3 is: for that, set data.name to mnist:1.2.3"):
        make_source(tfds_config(tfds_dir, "mnist"), "train")


def test_a_set_that_lost_its_files(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "even_set", tmp_path / "even_set")
    for file in (tmp_path / "even_set" / "1.0.0").glob("*tfrecord*"):
        file.unlink()
    with pytest.raises(UserError, match="even_set in .* cannot be read"):
        make_source(tfds_config(tmp_path, "even_set"), "train")


@pytest.mark.parametrize("name", ["even_set", "uneven_set", "record_set"])
def test_counts_that_files_do_not_bear_out(tfds_dir, tmp_path, name):
    """A million million examples in a file of a few kilobytes: refused before memory is allocated for them."""
    shutil.copytree(tfds_dir / name, tmp_path / name)
    path = tmp_path / name / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    for split in info["splits"]:
        split["shardLengths"] = [str(10**12)]
    path.write_text(json.dumps(info))
    with pytest.raises(
        UserError, match="holds .* bytes, too few for the 1000000000000 examples that dataset_info.json counts"
    ):
        make_source(tfds_config(tmp_path, name), "train")


def test_a_count_that_is_a_little_too_high(tfds_dir, tmp_path):
    """No image is made up for the example that is missing."""
    shutil.copytree(tfds_dir / "even_set", tmp_path / "even_set")
    path = tmp_path / "even_set" / "1.0.0" / "dataset_info.json"
    path.write_text(path.read_text().replace('"12"', '"13"'))
    with pytest.raises(UserError, match="holds 12 examples of train, not the 13|cannot be read"):
        make_source(tfds_config(tmp_path, "even_set"), "train")


@pytest.mark.parametrize("name", ["uneven_set", "record_set"])
def test_a_fingerprint_tells_other_records(tfds_dir, tmp_path, name):
    """From those of another split, slice or set; not by where the set is."""

    def fingerprint(root, **fields):
        source = make_source(tfds_config(root, name, **fields), "train")
        assert not isinstance(source, ArraySource)
        return source.fingerprint

    shutil.copytree(tfds_dir / name, tmp_path / name)
    expected = fingerprint(tfds_dir)
    assert fingerprint(tmp_path) == expected
    others = {fingerprint(tfds_dir, train_split=split) for split in ("train[:4]", "train[3:]", "test")}
    other_set = tfds_config(tfds_dir, {"uneven_set": "record_set", "record_set": "uneven_set"}[name])
    others.add(make_source(other_set, "train").fingerprint)
    assert len(others) == 4 and expected not in others


def test_records_are_read_anywhere(tfds_dir):
    """In the order asked for, slices of splits too, and only as many as exist."""
    source = make_source(tfds_config(tfds_dir, "record_set", train_split="train[3:]+test", cache_bytes=1000), "train")
    assert isinstance(source, EncodedSource) and not source.gives_paths
    assert len(source) == 4 + 4 and source.class_names == ("cat", "dog", "owl")
    theirs = tfds.builder("record_set", data_dir=tfds_dir).as_data_source("train[3:]+test")
    order = np.array([7, 0, 3, 3, 1])
    for _ in range(2):  # the second time from memory
        images, labels = source.fetch(order)
        assert labels.dtype == np.int32 and labels.tolist() == [theirs[int(i)]["label"] for i in order]
        for encoded, i in zip(images, order, strict=True):
            np.testing.assert_array_equal(decode(encoded), theirs[int(i)]["image"])
    assert source.place(3) == "image 3 of TFDS record_set, train[3:]+test"


def test_records_that_fit_are_decoded_into_memory(tfds_dir):
    """What ArrayRecord files hold, and what TFRecord files hold."""
    records = make_source(tfds_config(tfds_dir, "even_record_set"), "train")
    assert isinstance(records, ArraySource)
    other = make_source(tfds_config(tfds_dir, "even_set"), "train")
    for source in (records, other):
        assert sorted(source.labels.tolist()) == sorted([0, 1, 2] * 4)
    np.testing.assert_array_equal(np.sort(records.images, axis=0), np.sort(other.images, axis=0))


@pytest.mark.parametrize("name", ["bands_set", "band_record_set"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_arrays_of_several_bands(tfds_dir, name, in_memory):
    """As EuroSAT holds those of Sentinel-2, under a name of their own: their levels, wherever they are read."""
    pixels = Pixels(4, (-1.0, 3.0))
    fields = {} if in_memory else {"in_memory_bytes": 12 * 8 * 6 * 4 * 2 - 1}
    source = make_source(tfds_config(tfds_dir, name, channels=4, range=pixels.range, **fields), "train")
    assert source.pixels == pixels
    if in_memory:
        found = source.images
    elif name == "bands_set":
        found = np.stack([decode(encoded, pixels) for encoded, _ in source.records(None, 0)])
    else:
        found = np.stack([decode(encoded, pixels) for encoded in source.fetch(np.arange(12))[0]])
    expected = pixels.levels(values_of_bands(np.float32))
    assert found.dtype == np.uint16 and found.shape == expected.shape
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(expected, axis=0))


def test_the_number_of_channels_tells_which(tfds_dir):
    source = make_source(tfds_config(tfds_dir, "two_set", channels=1, range=(-1.0, 3.0)), "train")
    assert isinstance(source, ArraySource)
    expected = Pixels(1, (-1.0, 3.0)).levels(values_of_bands(np.float32)[:3, ..., :1])
    np.testing.assert_array_equal(np.sort(source.images, axis=0), np.sort(expected, axis=0))


@pytest.mark.parametrize("in_memory", [True, False])
def test_arrays_of_8_bits_are_photographs(tfds_dir, in_memory):
    fields = {} if in_memory else {"in_memory_bytes": 1}
    source = make_source(tfds_config(tfds_dir, "bytes_set", **fields), "train")
    found = source.images if in_memory else np.stack([decode(image) for image, _ in source.records(None, 0)])
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(values_of_bands(np.uint8), axis=0))


def test_arrays_are_looked_at_before_they_are_declared(tfds_dir):
    """By --config.task=statistics."""
    name, count, images = images_as_stored(tfds_config(tfds_dir, "bands_set"), "train", 100)
    values = [values for _, values in images]
    assert count == len(values) == 12 and "bands_set" in name
    np.testing.assert_array_equal(np.sort(values, axis=0), np.sort(values_of_bands(np.float32), axis=0))


def with_damage(tfds_dir, tmp_path, name, split, number):
    """A copy of a set, in which a byte of an image's pixels is changed, and for TFRecord its checksums are right."""
    root = tmp_path / "tfds"
    if not root.exists():
        shutil.copytree(tfds_dir, root)
    (path,) = (root / name / "1.0.0").glob(f"*-{split}.*-00000-of-00001")
    content = path.read_bytes()
    if "array_record" in path.name:
        at = [found.start() for found in re.finditer(b"IDAT", content)][number]
        path.write_bytes(content[: at + 8] + bytes([content[at + 8] ^ 255]) + content[at + 9 :])
        return root
    records = [bytes(record) for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    records[number] = records[number].replace(b"PNG", b"xxx")
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return root


def test_a_damaged_record_is_a_bad_image(tfds_dir, tmp_path):
    """Another stands in for it; a file that is gone is a sentence."""
    root = with_damage(tfds_dir, tmp_path, "record_set", "train", 3)
    source, whole = (make_source(tfds_config(place, "record_set"), "train") for place in (root, tfds_dir))
    (images, labels), (theirs, their_labels) = (s.fetch(np.arange(7)) for s in (source, whole))
    good = np.arange(7) != 3
    assert images[3] == b"" and images[good].tolist() == theirs[good].tolist()
    np.testing.assert_array_equal(labels[good], their_labels[good])
    assert list(bad_images(source, [2, 3, 4])) == [3]
    for path in (root / "record_set" / "1.0.0").glob("*.array_record-*"):
        path.unlink()
    source = make_source(tfds_config(root, "record_set"), "train")
    with pytest.raises(
        UserError, match=r"TFDS record_set, train cannot be read \(No such file or directory; opening .*\); bring it"
    ):
        source.fetch(np.arange(2))


@pytest.mark.parametrize("name", ["even_set", "even_record_set"])
def test_images_in_memory_that_do_not_decode(tfds_dir, tmp_path, name):
    """Others stand in for as many as data.max_bad_fraction allows, and evaluations leave them out; more end the run."""
    root = with_damage(tfds_dir, tmp_path, name, "train", 5)
    whole = make_source(tfds_config(tfds_dir, name), "train")
    source = make_source(tfds_config(root, name, max_bad_fraction=0.1), "train")
    good = np.arange(12) != 5
    assert (
        isinstance(source, ArraySource)
        and list(source.bad) == [5]
        and source.usable(np.array([4, 5])).tolist() == [4, 6]
    )
    np.testing.assert_array_equal(source.images[good], whole.images[good])
    np.testing.assert_array_equal(source.labels[good], whole.labels[good])
    config = tfds_config(root, name, views="device", image_size=6, eval_resize=6)
    batches = list(eval_batches(source, config, batch_size=4, rows=np.arange(4)))
    np.testing.assert_array_equal(np.concatenate([batch["mask"] for batch in batches]), good)
    with pytest.raises(UserError, match=f"image 5 of TFDS {name}, train cannot be read as an image"):
        make_source(tfds_config(root, name, max_bad_fraction=0.0), "train")
