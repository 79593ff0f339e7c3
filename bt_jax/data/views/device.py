"""Views of a batch of images in JAX, for an accelerator whose host is too weak to make them.

The distributions are the host's (host.py) and so, for the same parameters, are the levels, except for a few roundings. All
images of a batch are processed at once: where the host branches, this computes and selects. An image's views do not depend on
the other images, so the work shards over devices without communication.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.data.views.device_operations import (
    adjust_hue,
    blended,
    gaussian_blur,
    grayscale,
    luma,
    mean_level,
    resized_crops,
    solarize,
    unpacked,
)
from bt_jax.data.views.spec import (
    CROP_TRIES,
    UNIFORMS,
    Jigsaw,
    JigsawParameters,
    ViewGroup,
    ViewParameters,
    ViewSpec,
    draw_number,
)
from bt_jax.errors import UserError


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
      images: (N, H, W, 3) uint8.
      sizes: (N, 2) int32, the height and width of the image in the upper left corner of its array; None: they fill it.
      epoch: () int32, or (N,) if the images are of several epochs.
      examples: (N,) int32, the numbers of the images in their set.

    Returns:
      (N, V, S, S, 3) uint8 of each group, by its name.

    Raises:
      UserError: images of another shape or type.
    """
    check_images(images)
    if sizes is None:
        sizes = jnp.broadcast_to(jnp.array(images.shape[1:3], jnp.int32), (len(images), 2))
    views = {}
    for number, group in enumerate(groups):
        uniforms = functools.partial(draw_uniforms, seed, epoch, examples, number)
        with jax.named_scope("views"):
            if isinstance(group.draws, Jigsaw):
                drawn = sample_jigsaws(uniforms, sizes, group.draws, group.size)
                views[group.name] = apply_jigsaws(images, drawn, group.size, group.draws)
            else:
                drawn = [sample_views(uniforms(view), sizes, spec) for view, spec in enumerate(group.draws)]
                made = [apply_views(images, p, group.size, spec) for p, spec in zip(drawn, group.draws, strict=True)]
                views[group.name] = jnp.stack(made, axis=1)
    return views


def check_images(images: jax.Array | np.ndarray) -> None:
    """Raises UserError unless images are (N, H, W, 3) uint8; the message gives the range of other types."""
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise UserError(f"images are {images.shape}; they must be (N, H, W, 3), with none of these 0.")
    if images.dtype != np.uint8:
        found = ""
        if not isinstance(images, jax.core.Tracer):
            found = f" from {np.min(images):g} to {np.max(images):g}"
        raise UserError(f"images are {images.dtype}{found}; they must be uint8, from 0 to 255.")


def draw_uniforms(
    seed: int, epoch: jax.Array, examples: jax.Array, group: int, view: int, count: int = UNIFORMS
) -> jax.Array:
    """(N, count) float32 in [0, 1), the random numbers of one draw for each image; the host takes TensorFlow's instead."""
    # Threefry is named because the default generator may change, or differ between kinds of device.
    key = jax.random.key(seed, impl="threefry2x32")
    draw = draw_number(group, view)

    def of_one(epoch, example):
        folded = functools.reduce(jax.random.fold_in, (epoch, example, draw), key)
        return jax.random.uniform(folded, (count,), jnp.float32)

    return jax.vmap(of_one)(jnp.broadcast_to(epoch, examples.shape), examples)


def sample_views(uniforms: jax.Array, sizes: jax.Array, spec: ViewSpec) -> ViewParameters:
    """Draws a view of each image, like host.sample_view.

    Args:
      uniforms: (N, UNIFORMS) in [0, 1).
      sizes: (N, 2) int32, heights and widths.

    Returns:
      Parameters with an axis (N,) in front.
    """
    tries, u = uniforms[:, : 2 * CROP_TRIES], uniforms[:, 2 * CROP_TRIES :].T
    crop = crops_from_uniforms(tries[:, :CROP_TRIES], tries[:, CROP_TRIES:], u[0], u[1], sizes, spec)
    return _drawn(u, crop, spec)


def sample_jigsaws(uniforms: Callable[..., jax.Array], sizes: jax.Array, jigsaw: Jigsaw, size: int) -> JigsawParameters:
    """Draws a jigsaw of each image, like host.sample_jigsaw.

    Args:
      uniforms: (view, count) -> (N, count) in [0, 1).

    Returns:
      `crop` (N, 4); `patches` with two axes (N, grid²) in front.
    """
    count, room = jigsaw.grid**2, jigsaw.cell - size
    crop = sample_views(uniforms(count), sizes, jigsaw.view).crop
    cells = jnp.argsort(uniforms(count + 1, count), axis=1).astype(jnp.int32)
    patches = []
    for patch in range(count):
        u = uniforms(patch)[:, 2 * CROP_TRIES :].T
        row, column = cells[:, patch] // jigsaw.grid, cells[:, patch] % jigsaw.grid
        # In float32 a uniform near 1 times a count may round up to it.
        down, across = (jnp.minimum((v * (room + 1)).astype(jnp.int32), room) for v in u[:2])
        side = jnp.full_like(row, size)
        window = jnp.stack([row * jigsaw.cell + down, column * jigsaw.cell + across, side, side], axis=1)
        patches.append(_drawn(u, window, jigsaw.view))
    return JigsawParameters(crop, jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *patches))


def _drawn(u: jax.Array, crop: jax.Array, spec: ViewSpec) -> ViewParameters:
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
    )


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


def apply_views(images: jax.Array, p: ViewParameters, size: int, spec: ViewSpec) -> jax.Array:
    """The view of each image that its parameters describe, in the official order of operations.

    Args:
      images: (N, H, W, 3) uint8.
      p: with an axis (N,) in front.
      size: side of a view, S.
      spec: what `p` was drawn from: says how a crop is resized; what has probability 0 there is left out of the program.

    Returns:
      (N, S, S, 3) uint8.
    """
    p = jax.tree.map(jnp.asarray, p)
    return unpacked(_distorted(resized_crops(images, p.crop, p.flip, size, spec.interpolation), p, spec))


def apply_jigsaws(images: jax.Array, p: JigsawParameters, size: int, jigsaw: Jigsaw) -> jax.Array:
    """The patches of each image that its parameters describe, (N, grid², S, S, 3) uint8; arguments as of `apply_views`."""
    n, count = len(images), jigsaw.grid**2
    p = jax.tree.map(jnp.asarray, p)
    whole = resized_crops(images, p.crop, jnp.zeros(n, bool), jigsaw.grid * jigsaw.cell, jigsaw.view.interpolation)

    def window(image, crop):
        return jax.lax.dynamic_slice(image, crop[:2], (size, size))

    x = jax.vmap(jax.vmap(window, (None, 0)))(whole, p.patches.crop).reshape(n * count, size, size)
    patches = jax.tree.map(lambda leaf: leaf.reshape(n * count, *leaf.shape[2:]), p.patches)
    x = _where(patches.flip, x[:, :, ::-1], x)
    return unpacked(_distorted(x, patches, jigsaw.view)).reshape(n, count, size, size, 3)


def _where(chosen: jax.Array, new: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(chosen[:, None, None], new, x)


def _distorted(x: jax.Array, p: ViewParameters, spec: ViewSpec) -> jax.Array:
    """What comes after the crop and the flip."""
    if spec.jitter:
        x = _where(p.jitter, _jitter(x, p), x)
    if spec.grayscale:
        x = _where(p.grayscale, grayscale(x), x)
    if spec.blur:
        x = _where(p.blur, gaussian_blur(x, p.sigma), x)
    if spec.solarize:
        x = _where(p.solarize, solarize(x), x)
    return x


def _jitter(x: jax.Array, p: ViewParameters) -> jax.Array:
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
    x = adjust_hue(x, p.hue)
    return jax.lax.fori_loop(1, 4, lambda place, x: turn(x, place, place > turn_of_hue), x)
