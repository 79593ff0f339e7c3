"""bt_jax/models/encoders.py: encoders by import path, and an error for each that cannot be used."""

import flax.linen as nn
import jax.numpy as jnp
import pytest

from bt_jax import UserError
from bt_jax.models import check_encoder, make_encoder


class Patches(nn.Module):
    """An encoder without batch norm, of patches of 8×8."""

    width: int = 64
    dtype: jnp.dtype = jnp.float32
    num_features = 12

    @nn.compact
    def __call__(self, images, *, train):
        lead, (height, wide, _) = images.shape[:-3], images.shape[-3:]
        if height % 8 or wide % 8:
            raise ValueError(f"sides must be multiples of 8, not {height}")
        x = nn.Conv(self.width, (8, 8), (8, 8), dtype=self.dtype)(images.reshape(-1, height, wide, 3))
        return nn.Dense(self.num_features)(x.mean((1, 2))).reshape(*lead, -1)


class Unpooled(Patches):
    """Does not average over the positions."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Conv(self.num_features, (8, 8), (8, 8))(images)


class OneViewOnly(Patches):
    """Takes V images as one, V times as high."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(self.num_features)(images.reshape(images.shape[0], -1))


class OneSize(Patches):
    """Has parameters for each position."""

    @nn.compact
    def __call__(self, images, *, train):
        pixels = images.reshape(*images.shape[:-3], -1, 3)
        places = self.param("places", nn.initializers.ones, (pixels.shape[-2],))
        return nn.Dense(self.num_features)(jnp.einsum("...pc,p->...c", pixels, places))


class NoTrain(Patches):
    @nn.compact
    def __call__(self, images):
        return images.mean((-3, -2))


class OddVariables(Patches):
    @nn.compact
    def __call__(self, images, *, train):
        self.variable("cache", "last", jnp.zeros, (1,))
        return nn.Dense(self.num_features)(images.mean((-3, -2)))


class NoFeatures(nn.Module):
    pass


class NoDefault(nn.Module):
    depth: int
    num_features = 3


def encoder():
    pass


def test_a_module_gets_the_fields_that_it_has():
    """And no others; it is checked by shapes alone."""
    made = make_encoder("test_encoders:Patches", width=8, dtype=jnp.bfloat16, small_images=True, stem_stride=2)
    assert made == Patches(width=8, dtype=jnp.bfloat16)
    check_encoder(made, "test_encoders:Patches", 16, [(2, 16), (6, 8)])


def test_remat_needs_a_field():
    with pytest.raises(UserError, match="model.remat is true, but 'test_encoders:Patches' has no field 'remat'"):
        make_encoder("test_encoders:Patches", width=8, remat=True)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("encoder", "'test_encoders:encoder', but must be a class derived from flax.linen.Module"),
        ("pytest", "but must be a class"),
        ("NoFeatures", "which lacks num_features, the length of a feature vector"),
        ("NoDefault", "whose field 'depth' has no default"),
    ],
)
def test_what_is_no_encoder(name, sentence):
    with pytest.raises(UserError, match=sentence):
        make_encoder(f"test_encoders:{name}")


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        (
            "Patches",
            20,
            r"cannot take images of shape \(2, 20, 20, 3\) with train=False \(ValueError: sides must be mult",
        ),
        (
            "Unpooled",
            16,
            r"returns \(2, 2, 2, 12\) for images of shape \(2, 16, 16, 3\), but must return \(2, 12\): \(N, F\), or",
        ),
        ("OneViewOnly", 16, r"cannot take images of shape \(2, 2, 16, 16, 3\) with train=True"),
        ("OneSize", 16, r"cannot take images of shape \(2, 6, 8, 8, 3\) with train=True"),
        ("NoTrain", 16, "unexpected keyword argument 'train'"),
        ("OddVariables", 16, "which has variables 'cache'; only 'params' and 'batch_stats' are trained and saved"),
    ],
)
def test_what_an_encoder_must_take_and_return(name, size, sentence):
    """One sentence with the shapes."""
    path = f"test_encoders:{name}"
    with pytest.raises(UserError, match=sentence) as caught:
        check_encoder(make_encoder(path), path, size, [(2, 16), (6, 8)])
    assert len(str(caught.value).splitlines()) == 1
