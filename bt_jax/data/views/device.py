"""Views of a batch of images in JAX, for an accelerator whose host is too weak to make them.

The distributions are the host's (host.py) and so, for the same parameters, are the levels, except for a few roundings; images that
are not photographs are distorted in floats, as there (value_operations.py). All
images of a batch are processed at once: where the host branches, this computes and selects. An image's views do not depend on
the other images, so the work shards over devices without communication.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.data.views import value_operations
from bt_jax.data.views.device_operations import (
    VALUES,
    adjust_hue,
    blended,
    box_weights,
    gaussian_blur,
    grayscale,
    luma,
    mean_level,
    resized_crops,
    resized_values,
    solarize,
    unpacked,
)
from bt_jax.data.views.spec import (
    CROP_TRIES,
    MORE,
    UNIFORMS,
    Jigsaw,
    JigsawParameters,
    ViewGroup,
    ViewParameters,
    ViewSpec,
    draw_number,
    more_of,
)
from bt_jax.errors import UserError
from bt_jax.pixels import PHOTOGRAPHS, Pixels


def make_views(
    images: jax.Array,
    sizes: jax.Array | None,
    groups: Sequence[ViewGroup],
    *,
    seed: int,
    epoch: jax.Array,
    examples: jax.Array,
) -> dict[str, jax.Array]:
    """Draws and applies all views of images, a pure function of (seed, epoch, example, group, view) and the image.

    Args:
      images: levels (N, H, W, C), uint8 or uint16 as the groups' `pixels` say.
      sizes: (N, 2) int32, the height and width of the image in the upper left corner of its array; None: they fill it.
      epoch: () int32, or (N,) if the images are of several epochs.
      examples: (N,) int32, the numbers of the images in their set.

    Returns:
      (N, V, S, S, C) of the same type of each group, by its name.

    Raises:
      UserError: images of another shape or type.
    """
    check_images(images, groups[0].pixels)
    if sizes is None:
        sizes = jnp.broadcast_to(jnp.array(images.shape[1:3], jnp.int32), (len(images), 2))
    views = {}
    for number, group in enumerate(groups):
        uniforms, pixels = functools.partial(draw_uniforms, seed, epoch, examples, number), group.pixels
        with jax.named_scope("views"):
            if isinstance(group.draws, Jigsaw):
                drawn = sample_jigsaws(uniforms, sizes, group.draws, group.size, pixels.channels)
                views[group.name] = apply_jigsaws(images, drawn, group.size, group.draws, pixels)
            else:
                made = []
                for view, spec in enumerate(group.draws):
                    more = _more(uniforms, view, spec, pixels.channels)
                    drawn = sample_views(uniforms(view), sizes, spec, more)
                    made.append(apply_views(images, drawn, group.size, spec, pixels))
                views[group.name] = jnp.stack(made, axis=1)
    return views


def _more(uniforms: Callable[..., jax.Array], view: int, spec: ViewSpec, channels: int) -> jax.Array | None:
    """(N, MORE + C) in [0, 1), for what only some views have; None for others."""
    return uniforms(view, MORE + channels, more=True) if spec.draws_more else None


def check_images(images: jax.Array | np.ndarray, pixels: Pixels = PHOTOGRAPHS) -> None:
    """Raises UserError unless images are levels (N, H, W, C); the message gives the range of other types."""
    if images.ndim != 4 or images.shape[-1] != pixels.channels or 0 in images.shape:
        raise UserError(f"images are {images.shape}; they must be (N, H, W, {pixels.channels}), with none of these 0.")
    if images.dtype != pixels.dtype:
        found = ""
        if not isinstance(images, jax.core.Tracer):
            found = f" from {np.min(images):g} to {np.max(images):g}"
        raise UserError(f"images are {images.dtype}{found}; they must be {pixels.dtype}, from 0 to {pixels.top}.")


def draw_uniforms(
    seed: int,
    epoch: jax.Array,
    examples: jax.Array,
    group: int,
    view: int,
    count: int = UNIFORMS,
    *,
    more: bool = False,
) -> jax.Array:
    """(N, count) float32 in [0, 1), the random numbers of one draw for each image; the host takes TensorFlow's instead.

    Args:
      more: whether they are those for what only some views have.
    """
    # Threefry is named because the default generator may change, or differ between kinds of device.
    key = jax.random.key(seed, impl="threefry2x32")
    draw = draw_number(group, view)
    draw = more_of(draw) if more else draw

    def of_one(epoch, example):
        folded = functools.reduce(jax.random.fold_in, (epoch, example, draw), key)
        return jax.random.uniform(folded, (count,), jnp.float32)

    return jax.vmap(of_one)(jnp.broadcast_to(epoch, examples.shape), examples)


def sample_views(
    uniforms: jax.Array, sizes: jax.Array, spec: ViewSpec, more: jax.Array | None = None
) -> ViewParameters:
    """Draws a view of each image, like host.sample_view.

    Args:
      uniforms: (N, UNIFORMS) in [0, 1).
      sizes: (N, 2) int32, heights and widths.
      more: (N, MORE + C) in [0, 1), for what only some views have.

    Returns:
      Parameters with an axis (N,) in front.
    """
    tries, u = uniforms[:, : 2 * CROP_TRIES], uniforms[:, 2 * CROP_TRIES :].T
    crop = crops_from_uniforms(tries[:, :CROP_TRIES], tries[:, CROP_TRIES:], u[0], u[1], sizes, spec)
    return _drawn(u, crop, spec, more)


def sample_jigsaws(
    uniforms: Callable[..., jax.Array], sizes: jax.Array, jigsaw: Jigsaw, size: int, channels: int = 3
) -> JigsawParameters:
    """Draws a jigsaw of each image, like host.sample_jigsaw.

    Args:
      uniforms: (view, count) -> (N, count) in [0, 1).
      channels: of an image.

    Returns:
      `crop` (N, 4); `patches` with two axes (N, grid²) in front.
    """
    count, places = jigsaw.grid**2, max(jigsaw.cell - size, 1)
    crop = sample_views(uniforms(count), sizes, jigsaw.view).crop
    cells = jnp.argsort(uniforms(count + 1, count), axis=1).astype(jnp.int32)
    patches = []
    for patch in range(count):
        u = uniforms(patch)[:, 2 * CROP_TRIES :].T
        row, column = cells[:, patch] // jigsaw.grid, cells[:, patch] % jigsaw.grid
        # In float32 a uniform near 1 times a count may round up to it.
        down, across = (jnp.minimum((v * places).astype(jnp.int32), places - 1) for v in u[:2])
        side = jnp.full_like(row, size)
        window = jnp.stack([row * jigsaw.cell + down, column * jigsaw.cell + across, side, side], axis=1)
        patches.append(_drawn(u, window, jigsaw.view, _more(uniforms, patch, jigsaw.view, channels)))
    return JigsawParameters(crop, jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *patches))


def _drawn(u: jax.Array, crop: jax.Array, spec: ViewSpec, more: jax.Array | None) -> ViewParameters:
    """All of a view except its crop, from the random numbers after those of the crop's tries, (16, N)."""

    def between(uniform, low, high):
        return low + uniform * (high - low)

    def factor(uniform, strength):
        return between(uniform, max(0.0, 1 - strength), 1 + strength)

    return ViewParameters(
        crop=crop,
        flip=u[2] < spec.flip,
        jitter=u[3] < spec.jitter,
        order=jnp.argsort(u[4:8].T, axis=1).astype(jnp.int32),
        brightness=factor(u[8], spec.brightness),
        contrast=factor(u[9], spec.contrast),
        saturation=factor(u[10], spec.saturation),
        hue=between(u[11], -spec.hue, spec.hue),
        grayscale=u[12] < spec.grayscale,
        blur=u[13] < spec.blur,
        sigma=between(u[14], *spec.blur_sigma),
        solarize=u[15] < spec.solarize,
        **_drawn_more(more, spec),
    )


def _drawn_more(u: jax.Array | None, spec: ViewSpec) -> dict[str, jax.Array]:
    if not spec.draws_more:
        return {}
    assert u is not None
    bands = u[:, MORE:]
    stays = jnp.arange(bands.shape[1])[None] == jnp.argmax(bands, axis=1)[:, None]
    turns = jnp.where(u[:, 0] < spec.quarter_turns, 1 + (u[:, 1] * 3).astype(jnp.int32), 0)
    return {"turns": jnp.minimum(turns, 3), "dropped": (bands < spec.drop_bands) & ~stays}


def crops_from_uniforms(area, ratio, top, left, sizes, spec: ViewSpec) -> jax.Array:
    """torchvision's RandomResizedCrop.get_params, like host.crop_from_uniforms but in float32, for N images.

    Args:
      area, ratio: (N, 10) uniforms in [0, 1), one per try; top, left: (N,) uniforms for the place of the crop that fits.
      sizes: (N, 2) int32.

    Returns:
      (N, 4) int32: top, left, height, width.
    """
    height, width = sizes.astype(jnp.float32).T
    low, high = spec.crop_scale
    target = (height * width)[:, None] * (low + area * (high - low))
    log_low, log_high = math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])
    aspect = jnp.exp(log_low + ratio * (log_high - log_low))
    w, h = jnp.round(jnp.sqrt(target * aspect)), jnp.round(jnp.sqrt(target / aspect))
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])

    first = jnp.argmax(fits, axis=1)[:, None]  # the first True
    narrow, wide = width / height < spec.crop_ratio[0], width / height > spec.crop_ratio[1]
    whole_h = jnp.where(narrow, jnp.round(width / spec.crop_ratio[0]), height)
    whole_w = jnp.where(wide, jnp.round(height * spec.crop_ratio[1]), width)
    any_fits = jnp.any(fits, axis=1)

    def chosen(tries, whole):
        return jnp.where(any_fits, jnp.take_along_axis(tries, first, axis=1)[:, 0], whole)

    def place(uniform, rest):
        # In float32 a uniform near 1 times a count may round up to it.
        return jnp.where(any_fits, jnp.minimum(jnp.floor(uniform * (rest + 1)), rest), jnp.floor(rest / 2))

    h, w = chosen(h, whole_h), chosen(w, whole_w)
    return jnp.stack([place(top, height - h), place(left, width - w), h, w], axis=1).astype(jnp.int32)


def apply_views(
    images: jax.Array, p: ViewParameters, size: int, spec: ViewSpec, pixels: Pixels = PHOTOGRAPHS
) -> jax.Array:
    """The view of each image that its parameters describe, in the official order of operations.

    Args:
      images: levels (N, H, W, C), as `pixels` says.
      p: with an axis (N,) in front.
      size: side of a view, S.
      spec: what `p` was drawn from: says how a crop is resized; what has probability 0 there is left out of the program.

    Returns:
      (N, S, S, C) of the same type.
    """
    p = jax.tree.map(jnp.asarray, p)
    if pixels.are_photographs:
        return unpacked(_distorted(resized_crops(images, p.crop, p.flip, size, spec.interpolation), p, spec))
    x = resized_values(images, p.crop, p.flip, size, spec.interpolation)
    return _as_levels(_distorted_values(jnp.clip(x / pixels.top, 0, 1), p, spec), pixels)


def apply_jigsaws(
    images: jax.Array, p: JigsawParameters, size: int, jigsaw: Jigsaw, pixels: Pixels = PHOTOGRAPHS
) -> jax.Array:
    """The patches of each image that its parameters describe, (N, grid², S, S, C) of its type; arguments as of `apply_views`."""
    n, count = len(images), jigsaw.grid**2
    p = jax.tree.map(jnp.asarray, p)
    resize = resized_crops if pixels.are_photographs else resized_values
    whole = resize(images, p.crop, jnp.zeros(n, bool), jigsaw.grid * jigsaw.cell, jigsaw.view.interpolation)
    depth = whole.shape[3:]  # none if packed

    def window(image, crop):
        return jax.lax.dynamic_slice(image, (crop[0], crop[1], *(0,) * len(depth)), (size, size, *depth))

    x = jax.vmap(jax.vmap(window, (None, 0)))(whole, p.patches.crop).reshape(n * count, size, size, *depth)
    patches = jax.tree.map(lambda leaf: leaf.reshape(n * count, *leaf.shape[2:]), p.patches)
    x = _where(patches.flip, x[:, :, ::-1], x)
    if pixels.are_photographs:
        made = unpacked(_distorted(x, patches, jigsaw.view))
    else:
        made = _as_levels(_distorted_values(jnp.clip(x / pixels.top, 0, 1), patches, jigsaw.view), pixels)
    return made.reshape(n, count, size, size, pixels.channels)


def _as_levels(x: jax.Array, pixels: Pixels) -> jax.Array:
    """Values from 0 to 1 as the nearest levels."""
    return jnp.floor(x * pixels.top + 0.5).astype(pixels.dtype)


def _where(chosen: jax.Array, new: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(_per_image(chosen, x), new, x)


def _per_image(parameter: jax.Array, x: jax.Array) -> jax.Array:
    """(N,) with as many axes as images (N, …)."""
    return parameter.reshape(-1, *(1,) * (x.ndim - 1))


def _turned(x: jax.Array, p: ViewParameters, spec: ViewSpec) -> jax.Array:
    """(N, S, S, …) turned counterclockwise."""
    if not spec.quarter_turns:
        return x
    x = _where(p.turns % 2 == 1, x.swapaxes(1, 2), x)
    x = _where((p.turns == 1) | (p.turns == 2), x[:, ::-1], x)
    return _where(p.turns >= 2, x[:, :, ::-1], x)


def _distorted(x: jax.Array, p: ViewParameters, spec: ViewSpec) -> jax.Array:
    """What comes after the crop and the flip, of photographs, packed."""
    x = _turned(x, p, spec)
    if spec.jitter:
        x = _where(p.jitter, _jitter(x, p, spec), x)
    if spec.grayscale:
        x = _where(p.grayscale, grayscale(x), x)
    if spec.blur:
        x = _where(p.blur, gaussian_blur(x, p.sigma), x)
    if spec.solarize:
        x = _where(p.solarize, solarize(x), x)
    if spec.drop_bands:
        kept = jnp.sum(jnp.where(p.dropped, 0, 255) << jnp.array([[0, 8, 16]]), axis=1)
        x = x & _per_image(kept, x)
    return x


def _distorted_values(x: jax.Array, p: ViewParameters, spec: ViewSpec) -> jax.Array:
    """The same of other images, values (N, S, S, C) from 0 to 1."""
    x = _turned(x, p, spec)
    if spec.jitter:
        x = _where(p.jitter, _jitter_values(x, p), x)
    if spec.grayscale:
        x = _where(p.grayscale, value_operations.grayscale(VALUES, x), x)
    if spec.blur:
        inside, near, far = (_per_image(w, x).astype(jnp.float32) / (1 << 24) for w in box_weights(p.sigma))
        x = _where(p.blur, value_operations.gaussian_blur(VALUES, x, (inside, near, far)), x)
    if spec.solarize:
        x = _where(p.solarize, value_operations.solarize(VALUES, x), x)
    return jnp.where(p.dropped[:, None, None], 0.0, x) if spec.drop_bands else x


def _jitter_values(x: jax.Array, p: ViewParameters) -> jax.Array:
    """Each image's operations in its own order: at each place all are computed, and one is taken."""
    changes = [(value_operations.adjust_brightness, p.brightness), (value_operations.adjust_contrast, p.contrast)]
    if x.shape[-1] == 3:
        changes += [(value_operations.adjust_saturation, p.saturation), (value_operations.adjust_hue, p.hue)]

    def turn(place, x):
        which, new = p.order[:, place], x
        for number, (change, parameter) in enumerate(changes):
            new = _where(which == number, change(VALUES, x, _per_image(parameter, x)), new)
        return new

    return jax.lax.fori_loop(0, 4, turn, x)


def _jitter(x: jax.Array, p: ViewParameters, spec: ViewSpec) -> jax.Array:
    """Brightness, contrast, saturation and hue, in each image's own order.

    Three of the four are blends, so at each place in the order one blend is computed, with the base and factor that the image's
    order puts there. Hue costs more than the others together and is computed once: what precedes it in an image's order is
    blended before, the rest after. A blend with factor 1 changes nothing.
    """
    turn_of_hue = jnp.argmax(p.order == 3, axis=1)
    factors = jnp.stack([p.brightness, p.contrast, p.saturation, jnp.ones_like(p.hue)], axis=1)

    def turn(x, place, active):
        which = p.order[:, place]
        factor = jnp.where(active, jnp.take_along_axis(factors, which[:, None], axis=1)[:, 0], 1.0)
        which = which[:, None, None]
        grey = luma(x)
        base = jnp.where(which == 0, 0, jnp.where(which == 1, mean_level(grey), grey))
        return blended(base.astype(jnp.float32), x, factor)

    # Loops, as XLA would otherwise fuse the blends and compute each pixel of the first many times.
    x = jax.lax.fori_loop(0, 3, lambda place, x: turn(x, place, place < turn_of_hue), x)
    if spec.hue:  # even a shift of 0 would round to 8-bit HSV and back; torchvision leaves it out too
        x = adjust_hue(x, p.hue)
    return jax.lax.fori_loop(1, 4, lambda place, x: turn(x, place, place > turn_of_hue), x)
