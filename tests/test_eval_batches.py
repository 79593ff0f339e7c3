"""bt_jax/data/eval_batches.py: without TensorFlow the same images as with it."""

import numpy as np
import pytest
from batches import assert_same, device_config, noise

from bt_jax.data import eval_pipeline
from bt_jax.data.eval_batches import eval_batches, evaluation_views


@pytest.mark.parametrize(("resize", "size"), [(0, 24), (32, 28)])
def test_evaluation_is_as_with_tensorflow(resize, size):
    """The same labels and masks, and images that differ by at most a level in 3 % of values; with and without a limit."""
    source, config = noise(), device_config(image_size=size, eval_resize=resize)
    for limit in (None, 19):
        batches = [
            list(make(source, config, batch_size=8, rows=np.array([0, 1, 5]), limit=limit))
            for make in (eval_batches, eval_pipeline.eval_batches)
        ]
        assert len(batches[0]) == len(batches[1])
        for found, batch in zip(*batches, strict=True):
            np.testing.assert_array_equal(found["mask"], batch["mask"])
            np.testing.assert_array_equal(found["label"][found["mask"]], batch["label"][batch["mask"]])
            difference = np.abs(found["image"].astype(int) - batch["image"])[batch["mask"]]
            assert difference.max(initial=0) <= 1 and np.mean(difference > 0) <= 3e-2


def test_beginning_later():
    found, expected = (
        list(eval_batches(noise(), device_config(), batch_size=8, rows=np.arange(8), limit=19, first=first))
        for first in (1, 0)
    )
    assert_same(found, expected[1:])


def test_images_of_the_right_size_pass_untouched():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    assert evaluation_views(images, 0, 16).base is images or evaluation_views(images, 0, 16) is images


def test_rows_that_are_none():
    """Reported at once, not with the first batch."""
    with pytest.raises(ValueError, match="must be increasing and lie in 0 to 7"):
        eval_batches(noise(), device_config(), batch_size=8, rows=np.array([0, 8]))
