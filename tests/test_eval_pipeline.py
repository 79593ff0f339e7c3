"""bt_jax/data/eval_pipeline.py: evaluations see every image once, on any number of processes."""

import numpy as np
import pytest
from batches import SIZE, array_source, assert_same, data_config, evaluate, masked, stream

from bt_jax.data.sources.base import ArraySource
from bt_jax.data.sources.make import make_source


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(("n", "limit"), [(16, None), (19, None), (23, 17), (3, 5)])
def test_every_image_is_seen_once(n, limit, processes):
    """Also if some processes get nothing of the last batch: all make as many batches, of one shape."""
    source = array_source(n)
    shares = [evaluate(source, rows=rows, limit=limit) for rows in np.split(np.arange(8), processes)]
    expected = np.arange(n) if limit is None or limit >= n else np.arange(limit) * n // limit
    assert {len(share) for share in shares} == {-(-len(expected) // 8)}
    for share in shares:
        for batch in share:
            assert batch["image"].shape == (8 // processes, SIZE, SIZE, 3) and batch["image"].dtype == np.uint8
            assert batch["label"].dtype == np.int32 and batch["mask"].dtype == bool
    together = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert masked(together)["label"].tolist() == expected.tolist()


def test_evaluation_does_not_touch_images_of_the_right_size():
    source = array_source(5, size=SIZE)
    source = ArraySource("square", np.ascontiguousarray(source.images[:, :, :SIZE]), source.labels)
    np.testing.assert_array_equal(masked(evaluate(source))["image"], source.images)


def test_stream_evaluates_what_memory_does(tfds_dir):
    """The same images with the same labels, though the files are read in another order."""
    config = data_config(source="tfds", name="numbers_set", data_dir=str(tfds_dir))
    in_memory = masked(evaluate(make_source(config, "train")))
    shares = [evaluate(stream(tfds_dir), rows=rows) for rows in (np.arange(4), np.arange(4, 8))]
    assert [len(share) for share in shares] == [5, 5]
    streamed = masked([*shares[0], *shares[1]])
    assert sorted(in_memory["label"]) == sorted(streamed["label"]) == list(range(37))
    np.testing.assert_array_equal(streamed["image"][:, 5, 5, 0], streamed["label"])
    assert sum(batch["mask"].sum() for batch in evaluate(stream(tfds_dir), limit=11)) == 11


@pytest.mark.parametrize("first", [1, 3, 5])
def test_beginning_later(tfds_dir, first):
    """The batches from there on, with the masks that they have among all."""
    for source, limit in ((array_source(37), None), (array_source(50), 37), (stream(tfds_dir), None)):
        assert_same(evaluate(source, limit=limit, first=first), evaluate(source, limit=limit)[first:])
