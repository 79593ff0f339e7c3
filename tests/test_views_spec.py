"""bt_jax/data/views/spec.py: groups of views, and the batch that they make up."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.data.views.spec import (
    MAX_VIEWS,
    Jigsaw,
    ViewGroup,
    ViewSpec,
    batch_spec,
    check_groups,
    draw_number,
    group_named,
)
from bt_jax.errors import UserError

GLOBAL, LOCAL = ViewGroup("global", (ViewSpec(),) * 2, 32), ViewGroup("local", [ViewSpec(blur=0.5)] * 3, 16)


def test_batch_spec():
    """Two groups of different sizes, and a jigsaw."""
    patches = ViewGroup("patches", Jigsaw(cell=11), 8)
    spec = batch_spec((GLOBAL, LOCAL, patches), 4)
    shapes = {"global": (4, 2, 32, 32, 3), "local": (4, 3, 16, 16, 3), "patches": (4, 9, 8, 8, 3)}
    assert {name: views.shape for name, views in spec["views"].items()} == shapes
    assert {views.dtype for views in spec["views"].values()} == {jnp.dtype("uint8")}
    for name in ("label", "example"):
        assert (spec[name].shape, spec[name].dtype) == ((4,), jnp.dtype("int32"))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    assert {leaf.sharding for leaf in jax.tree.leaves(batch_spec((GLOBAL,), 4, sharding))} == {sharding}


def test_groups_are_what_they_are_given():
    """Draws may be a list; groups compare and hash, as compiled programs are cached by them."""
    assert LOCAL.draws == (ViewSpec(blur=0.5),) * 3 and LOCAL.num_views == 3
    assert ViewGroup("local", (ViewSpec(blur=0.5),) * 3, 16) == LOCAL
    assert hash(LOCAL) == hash(ViewGroup("local", (ViewSpec(blur=0.5),) * 3, 16))
    assert group_named((GLOBAL, LOCAL), "local") is LOCAL


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("pair", (), 8), "view group 'pair' has no draws; it must have 1 to 510"),
        (("pair", [ViewSpec()] * (MAX_VIEWS + 1), 8), "'pair' has 511 draws"),
        (("two views", (ViewSpec(),), 8), "a view group is called 'two views'; its name must be a Python identifier"),
        (("", (ViewSpec(),), 8), "a view group is called ''"),
        (("pair", (ViewSpec(),), 0), "the views of group 'pair' are 0 pixels wide"),
        (("pair", (ViewSpec(), ViewSpec(interpolation="cubic")), 8), "interpolation 'cubic'; it must be bicubic or bilinear"),
        (("patches", Jigsaw(cell=21), 64), "jigsaw of view group 'patches' has 3 × 3 cells of 21 pixels for windows of 64"),
        (("patches", Jigsaw(grid=0), 8), "0 × 0 cells"),
    ],
)  # fmt: skip
def test_groups_that_cannot_be_drawn(arguments, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        ViewGroup(*arguments)
    assert "\n" not in str(raised.value)


def test_groups_that_do_not_go_together():
    with pytest.raises(UserError, match="there are no view groups; a batch has 1 to 64"):
        batch_spec((), 4)
    with pytest.raises(UserError, match="two view groups are called 'global'"):
        check_groups([GLOBAL, LOCAL, GLOBAL])
    with pytest.raises(UserError, match="there is no view group 'golbal'; the groups of a batch are 'global', 'local'"):
        group_named((GLOBAL, LOCAL), "golbal")


def test_draw_numbers_are_all_different():
    """The first group's views keep their numbers."""
    numbers = [draw_number(group, view) for group, view in itertools.product(range(64), range(MAX_VIEWS + 2))]
    assert len(np.unique(numbers)) == len(numbers)
    assert max(numbers) < 2**15, "as order.draw_seed asks"
    assert [draw_number(0, view) for view in range(3)] == [0, 1, 2]


def test_views_in_words():
    assert ViewSpec(jitter=0, grayscale=0, blur=0).described() == "crop and flip"
    assert ViewSpec(jitter=0, grayscale=0, blur=0, flip=0).described() == "crop"
    assert ViewSpec(blur=0.1, solarize=0.2).described() == "crop, flip, colours, grey, blur and solarise"
    assert ViewSpec(brightness=0, contrast=0, saturation=0, hue=0, grayscale=0, blur=0).described() == "crop and flip"
