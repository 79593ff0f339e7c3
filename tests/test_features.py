"""bt_jax/evaluation/features.py: every image counted once, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.evaluation.features import FeatureExtractor, NotFiniteFeatures, first_bad_layer, frozen, raw_pixels
from bt_jax.models import ResNet
from bt_jax.models.inputs import Inputs

INPUTS = Inputs(4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def batches(images, labels, size):
    """Of `size`, the last one padded."""
    for start in range(0, len(images), size):
        real = min(size, len(images) - start)
        image, label = np.full((size, *images.shape[1:]), 99, np.uint8), np.full(size, 99, np.int32)
        image[:real], label[:real] = images[start : start + real], labels[start : start + real]
        yield {"image": image, "label": label, "mask": np.arange(size) < real}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("n", [1, 8, 19])
def test_each_image_once_and_in_order(devices, n):
    """The padding of the last batch leaves no trace."""
    rng = np.random.default_rng(n)
    images, labels = rng.integers(0, 256, (n, 4, 4, 3), np.uint8), rng.integers(0, 5, n).astype(np.int32)
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    extract = FeatureExtractor(raw_pixels, mesh, INPUTS)
    features, found = extract(None, batches(images, labels, 8), 8)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_allclose(features, INPUTS.normalize(images).reshape(n, -1), rtol=1e-5, atol=1e-6)


def test_a_frozen_encoder_looks_at_each_image_alone():
    """Running statistics, and variables that stay as they are."""
    encoder = ResNet(blocks=(1,), bottleneck=False, small_images=True, width=4)
    variables = encoder.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=False)
    before = jax.tree.map(np.array, variables)
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    extract = FeatureExtractor(frozen(encoder), mesh, INPUTS)
    features, _ = extract(variables, batches(images, np.zeros(16, np.int32), 8), 8)
    other, _ = extract(variables, batches(images[::-1], np.zeros(16, np.int32), 8), 8)
    np.testing.assert_allclose(features, other[::-1], rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_features_that_are_not_finite():
    """The number of the first such image, and the first layer that is not finite."""
    encoder = ResNet(blocks=(1,), bottleneck=False, small_images=True, width=4)
    variables = jax.tree.map(np.array, encoder.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=False))
    variables["params"]["layer1_0"]["conv2"]["kernel"][0, 0, 0, 0] = np.nan
    images = jnp.ones((1, 8, 8, 3))
    assert first_bad_layer(encoder, variables, images) == "layer1_0/conv2"
    variables["params"]["layer1_0"]["conv2"]["kernel"][0, 0, 0, 0] = 0
    assert first_bad_layer(encoder, variables, images) == "none when that image is computed alone"

    def bright_is_bad(_, images):
        features = images.reshape(len(images), -1)
        return jnp.where(features > 3.3, jnp.nan, features)  # only pixels of 255 are that bright

    images = np.zeros((19, 4, 4, 3), np.uint8)
    images[11] = images[14] = 255
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    extract = FeatureExtractor(bright_is_bad, mesh, Inputs(4, (0.2, 0.2, 0.2), (0.2, 0.2, 0.2)))
    with pytest.raises(NotFiniteFeatures, match="the features of image 11 are not finite") as error:
        extract(None, batches(images, np.zeros(19, np.int32), 8), 8)
    assert error.value.place == 11 and error.value.image.min() == 255
