"""bt_jax/data/sources/tfds.py: sets as TFDS writes them, in memory, in records and as streams."""

import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bt_jax.config import default
from bt_jax.data.decode import decode
from bt_jax.data.sources.base import ArraySource, EncodedSource, StreamSource
from bt_jax.data.sources.make import make_source
from bt_jax.errors import UserError


def data_config(**fields):
    config = default().data
    config.update(fields)
    return config


def images_of(n, height=8, width=6):
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Tiny sets as TFDS writes them: of one size, grey, of many sizes, not of images, and in ArrayRecord files."""
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    label = tfds.features.ClassLabel(names=["cat", "dog", "owl"])

    def write(name, shape, sizes, features=None, **settings):
        examples = [
            (i, {"image": images_of(1, *size)[0][..., : shape[2]], "label": i % 3}) for i, size in enumerate(sizes)
        ]
        if features is not None:
            examples = [(i, {"text": str(i)}) for i in range(len(sizes))]
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
        ("text_set", {}, "needs an 8-bit 'image' and a class 'label'"),
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
