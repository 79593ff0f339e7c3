"""Views of an image in TensorFlow ops: training's groups of views, the evaluation view, and canvases for the device.

The arithmetic is Pillow's and torchvision's, level by level (host_operations.py); of images that are not photographs it is in
floats (value_operations.py). Parameters are drawn (`sample_view`) separately from being applied (`apply_views`), so that they can
be given to another implementation too.
"""

import functools
import math
from collections.abc import Callable, Sequence

from bt_jax.data.order import draw_seed
from bt_jax.data.tensorflow_import import tf
from bt_jax.data.views import value_operations
from bt_jax.data.views.host_operations import (
    VALUES,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    box_weights,
    gaussian_blur,
    grayscale,
    levels,
    packed,
    resized,
    resized_values,
    resized_window,
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
from bt_jax.pixels import PHOTOGRAPHS, Pixels

_BYTE = 255
_LONG = 16  # times as long as wide: of longer images an evaluation resizes only what it shows


def make_views(
    image: tf.Tensor, groups: Sequence[ViewGroup], *, seed: int, epoch: tf.Tensor, example: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Draws and applies all views of an image, a pure function of (seed, epoch, example, group, view) and the image.

    Args:
      image: levels (H, W, C), uint8 or uint16 as the groups' `pixels` say.
      epoch, example: () int64.

    Returns:
      (V, S, S, C) of the same type of each group, by its name.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    views = {}
    for number, group in enumerate(groups):
        pixels = group.pixels

        def seed_of(view, more=False, number=number):
            draw = draw_number(number, view)
            return tf.stack(draw_seed(seed, epoch, example, more_of(draw) if more else draw))

        if isinstance(group.draws, Jigsaw):
            drawn = sample_jigsaw(seed_of, height, width, group.draws, group.size, pixels.channels)
            views[group.name] = apply_jigsaw(image, group.draws, drawn, group.size, pixels)
        else:
            drawn = [
                sample_view(seed_of(view), height, width, spec, more=seed_of(view, True), channels=pixels.channels)
                for view, spec in enumerate(group.draws)
            ]
            views[group.name] = apply_views(image, group.draws, drawn, group.size, pixels)
    return views


def sample_view(
    seed: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    spec: ViewSpec,
    *,
    more: tf.Tensor | None = None,
    channels: int = 3,
) -> ViewParameters:
    """Draws a view of an image of this size; a pure function of its arguments.

    Args:
      seed: (2,) int64.
      more: another such seed, for what only some views have.
      channels: of the image.
    """
    u = _uniforms(seed, UNIFORMS)
    tries, u = u[: 2 * CROP_TRIES], tf.unstack(u[2 * CROP_TRIES :])
    crop = crop_from_uniforms(tries[:CROP_TRIES], tries[CROP_TRIES:], u[0], u[1], height, width, spec)
    return _drawn(u, crop, spec, more, channels)


def sample_jigsaw(
    seed_of: Callable[..., tf.Tensor], height: tf.Tensor, width: tf.Tensor, jigsaw: Jigsaw, size: int, channels: int = 3
) -> JigsawParameters:
    """Draws a jigsaw of an image of this size; a pure function of its arguments.

    Args:
      seed_of: the seed, (2,) int64, of a patch by its place in the group; the two places after the last are for the crop and the
        order. With a second argument, True, another one, for what only some views have.
      size: side of a window.
      channels: of the image.
    """
    count, patches = jigsaw.grid**2, []
    crop = sample_view(seed_of(count), height, width, jigsaw.view).crop
    cells = tf.argsort(_uniforms(seed_of(count + 1), count))

    def offset(uniform):
        places = max(jigsaw.cell - size, 1)
        # In float32 a uniform near 1 times a count may round up to it.
        return tf.minimum(tf.cast(uniform * places, tf.int32), places - 1)

    for patch in range(count):
        u = tf.unstack(_uniforms(seed_of(patch), UNIFORMS)[2 * CROP_TRIES :])
        row, column = cells[patch] // jigsaw.grid, cells[patch] % jigsaw.grid
        window = tf.stack([row * jigsaw.cell + offset(u[0]), column * jigsaw.cell + offset(u[1]), size, size])
        more = seed_of(patch, True) if jigsaw.view.draws_more else None
        patches.append(_drawn(u, window, jigsaw.view, more, channels))
    return JigsawParameters(crop, patches)


def _uniforms(seed: tf.Tensor, count: int) -> tf.Tensor:
    # Philox is named because the default generator may differ between kinds of device.
    return tf.random.stateless_uniform([count], seed, dtype=tf.float32, alg="philox")


def _drawn(
    u: list[tf.Tensor], crop: tf.Tensor, spec: ViewSpec, more: tf.Tensor | None, channels: int
) -> ViewParameters:
    """All of a view except its crop, from the random numbers after those of the crop's tries; the first two are its place."""

    def between(uniform, low, high):
        return low + uniform * (high - low)

    def factor(uniform, strength):
        return between(uniform, max(0.0, 1 - strength), 1 + strength)

    return ViewParameters(
        crop=crop,
        flip=u[2] < spec.flip,
        jitter=u[3] < spec.jitter,
        order=tf.argsort(tf.stack(u[4:8])),
        brightness=factor(u[8], spec.brightness),
        contrast=factor(u[9], spec.contrast),
        saturation=factor(u[10], spec.saturation),
        hue=between(u[11], -spec.hue, spec.hue),
        grayscale=u[12] < spec.grayscale,
        blur=u[13] < spec.blur,
        sigma=between(u[14], *spec.blur_sigma),
        solarize=u[15] < spec.solarize,
        **_drawn_more(more, spec, channels),
    )


def _drawn_more(seed: tf.Tensor | None, spec: ViewSpec, channels: int) -> dict[str, tf.Tensor]:
    if not spec.draws_more:
        return {}
    assert seed is not None
    u = _uniforms(seed, MORE + channels)
    dropped = u[MORE:] < spec.drop_bands
    stays = tf.range(channels, dtype=tf.int64) == tf.argmax(u[MORE:])
    turns = tf.where(u[0] < spec.quarter_turns, 1 + tf.cast(u[1] * 3, tf.int32), 0)
    return {"turns": tf.minimum(turns, 3), "dropped": dropped & ~stays}


def crop_from_uniforms(area, ratio, top, left, height, width, spec: ViewSpec) -> tf.Tensor:
    """torchvision's RandomResizedCrop.get_params: the first of ten tries that fits, or else the largest centred crop.

    Args:
      area, ratio: (10,) uniforms in [0, 1), one per try; top, left: uniforms for the place of the crop that fits.

    Returns:
      (4,) int32: top, left, height, width.
    """
    area, ratio, top, left = (tf.cast(u, tf.float64) for u in (area, ratio, top, left))
    full_height, full_width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    low, high = spec.crop_scale
    target = full_height * full_width * (low + area * (high - low))
    log_low, log_high = math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])
    aspect = tf.exp(log_low + ratio * (log_high - log_low))
    w, h = tf.round(tf.sqrt(target * aspect)), tf.round(tf.sqrt(target / aspect))
    fits = (w > 0) & (w <= full_width) & (h > 0) & (h <= full_height)

    first = tf.argmax(fits)  # the first True
    narrow = full_width / full_height < spec.crop_ratio[0]
    wide = full_width / full_height > spec.crop_ratio[1]
    whole_h = tf.where(narrow, tf.round(full_width / spec.crop_ratio[0]), full_height)
    whole_w = tf.where(wide, tf.round(full_height * spec.crop_ratio[1]), full_width)
    any_fits = tf.reduce_any(fits)
    h, w = tf.where(any_fits, h[first], whole_h), tf.where(any_fits, w[first], whole_w)
    y = tf.where(any_fits, tf.floor(top * (full_height - h + 1)), tf.floor((full_height - h) / 2))
    x = tf.where(any_fits, tf.floor(left * (full_width - w + 1)), tf.floor((full_width - w) / 2))
    return tf.cast(tf.stack([y, x, h, w]), tf.int32)


def apply_views(
    image: tf.Tensor,
    specs: Sequence[ViewSpec],
    parameters: Sequence[ViewParameters],
    size: int,
    pixels: Pixels = PHOTOGRAPHS,
) -> tf.Tensor:
    """The views of an image that the parameters describe, in the official order of operations.

    Args:
      image: levels (H, W, C), as `pixels` says.
      specs: what the parameters were drawn from: says how a crop is resized; what has probability 0 there is left out.

    Returns:
      (V, size, size, C) of the same type.
    """
    resize = resized if pixels.are_photographs else resized_values
    crops = [resize(image, p.crop, size, size, s.interpolation) for s, p in zip(specs, parameters, strict=True)]
    return _distortion(tuple(specs), pixels)(crops, list(parameters))


def apply_jigsaw(
    image: tf.Tensor, jigsaw: Jigsaw, parameters: JigsawParameters, size: int, pixels: Pixels = PHOTOGRAPHS
) -> tf.Tensor:
    """The patches of an image that the parameters describe, (grid², size, size, C) of the image's type."""
    side, interpolation = jigsaw.grid * jigsaw.cell, jigsaw.view.interpolation
    if pixels.are_photographs:
        whole = tf.cast(levels(resized(image, parameters.crop, side, side, interpolation)), tf.float32)
    else:
        whole = resized_values(image, parameters.crop, side, side, interpolation)
    windows = [tf.slice(whole, [p.crop[0], p.crop[1], 0], [size, size, pixels.channels]) for p in parameters.patches]
    return _distortion((jigsaw.view,) * len(windows), pixels)(windows, list(parameters.patches))


@functools.lru_cache(maxsize=64)
def _distortion(
    specs: tuple[ViewSpec, ...], pixels: Pixels
) -> Callable[[list[tf.Tensor], list[ViewParameters]], tf.Tensor]:
    """What follows the crops, which are (S, S, C) float32 before their last rounding: gives levels (V, S, S, C)."""

    # XLA makes one pass over the image instead of dozens, several times faster. It compiles once for each size.
    @functools.partial(tf.function, jit_compile=True, autograph=False)
    def distorted(crops, parameters):
        views = zip(crops, parameters, specs, strict=True)
        if pixels.are_photographs:
            return tf.stack([unpacked(_distort(packed(levels(x)), p, spec)) for x, p, spec in views])
        return tf.stack([_as_levels(_distort_values(x, p, spec, pixels), pixels) for x, p, spec in views])

    return distorted


def _maybe(probability: float, drawn: tf.Tensor, change: Callable, x: tf.Tensor) -> tf.Tensor:
    return tf.cond(drawn, lambda: change(x), lambda: x) if probability else x


def _distort(x: tf.Tensor, p: ViewParameters, spec: ViewSpec) -> tf.Tensor:
    """Of a photograph, packed."""
    x = _maybe(spec.flip, p.flip, lambda x: tf.reverse(x, [1]), x)
    x = _turned(x, p, spec)
    x = _maybe(spec.jitter, p.jitter, lambda x: _jitter(x, p, spec), x)
    x = _maybe(spec.grayscale, p.grayscale, grayscale, x)
    x = _maybe(spec.blur, p.blur, lambda x: gaussian_blur(x, p.sigma), x)
    x = _maybe(spec.solarize, p.solarize, solarize, x)
    if spec.drop_bands:
        kept = tf.where(p.dropped, 0, _BYTE) * [1, 1 << 8, 1 << 16]
        x = tf.bitwise.bitwise_and(x, tf.reduce_sum(kept))
    return x


def _turned(x: tf.Tensor, p: ViewParameters, spec: ViewSpec) -> tf.Tensor:
    """(S, S, …) turned counterclockwise."""
    if not spec.quarter_turns:
        return x
    rows_and_columns_exchanged = (1, 0, 2)[: x.shape.rank]
    x = tf.cond(p.turns % 2 == 1, lambda: tf.transpose(x, rows_and_columns_exchanged), lambda: x)
    x = tf.cond((p.turns == 1) | (p.turns == 2), lambda: tf.reverse(x, [0]), lambda: x)
    return tf.cond(p.turns >= 2, lambda: tf.reverse(x, [1]), lambda: x)


def _distort_values(x: tf.Tensor, p: ViewParameters, spec: ViewSpec, pixels: Pixels) -> tf.Tensor:
    """Of other images, (S, S, C) float32: crops of levels, which the cubic may overshoot; gives values from 0 to 1."""

    def solarized(x):
        return value_operations.solarize(VALUES, x)

    def blurred(x):
        inside, near, far = tf.unstack(tf.cast(box_weights(p.sigma), tf.float32) / (1 << 24))
        return value_operations.gaussian_blur(VALUES, x, (inside, near, far))

    x = tf.clip_by_value(x / pixels.top, 0.0, 1.0)
    x = _maybe(spec.flip, p.flip, lambda x: tf.reverse(x, [1]), x)
    x = _turned(x, p, spec)
    x = _maybe(spec.jitter, p.jitter, lambda x: _jitter_values(x, p), x)
    x = _maybe(spec.grayscale, p.grayscale, lambda x: value_operations.grayscale(VALUES, x), x)
    x = _maybe(spec.blur, p.blur, blurred, x)
    x = _maybe(spec.solarize, p.solarize, solarized, x)
    return tf.where(p.dropped, 0.0, x) if spec.drop_bands else x


def _as_levels(x: tf.Tensor, pixels: Pixels) -> tf.Tensor:
    """Values from 0 to 1 as the nearest levels."""
    # XLA converts no floats to uint16 on every platform; by way of int32 it does.
    return tf.cast(tf.cast(x * pixels.top + 0.5, tf.int32), tf.as_dtype(pixels.dtype))


def _jitter_values(x: tf.Tensor, p: ViewParameters) -> tf.Tensor:
    operations = [
        lambda x: value_operations.adjust_brightness(VALUES, x, p.brightness),
        lambda x: value_operations.adjust_contrast(VALUES, x, p.contrast),
        (lambda x: value_operations.adjust_saturation(VALUES, x, p.saturation)) if x.shape[-1] == 3 else (lambda x: x),
        (lambda x: value_operations.adjust_hue(VALUES, x, p.hue)) if x.shape[-1] == 3 else (lambda x: x),
    ]
    return _in_order(x, p, operations)


def _jitter(x: tf.Tensor, p: ViewParameters, spec: ViewSpec) -> tf.Tensor:
    # Even a shift of 0 would round to 8-bit HSV and back; torchvision leaves it out too.
    operations = [
        lambda x: adjust_brightness(x, p.brightness),
        lambda x: adjust_contrast(x, p.contrast),
        lambda x: adjust_saturation(x, p.saturation),
        (lambda x: adjust_hue(x, p.hue)) if spec.hue else (lambda x: x),
    ]
    return _in_order(x, p, operations)


def _in_order(x: tf.Tensor, p: ViewParameters, operations: Sequence[Callable[[tf.Tensor], tf.Tensor]]) -> tf.Tensor:
    def one(place, x):
        return place + 1, tf.switch_case(p.order[place], [functools.partial(change, x) for change in operations])

    return tf.while_loop(lambda place, _: place < 4, one, (0, x))[1]


def evaluation_view(image: tf.Tensor, resize: int, size: int, pixels: Pixels = PHOTOGRAPHS) -> tf.Tensor:
    """The image as evaluations see it.

    Args:
      image: levels (H, W, C), as `pixels` says.
      resize: the shorter side is resized to this (antialiased bilinear, as the official evaluate.py) and the centre is
        cut out; 0: the whole image is resized to the square, unless it has that size already.

    Returns:
      (size, size, C) of the same type.
    """
    shape = tf.shape(image)
    height, width = shape[0], shape[1]
    square = (size, size, pixels.channels)

    def whole(new_height, new_width):
        return _resized_levels(image, new_height, new_width, "bilinear", pixels)

    if not resize:
        same = (height == size) & (width == size)
        return tf.ensure_shape(tf.cond(same, lambda: image, lambda: whole(size, size)), square)
    short, long = tf.minimum(height, width), tf.maximum(height, width)

    def resized_to(kind):
        short_, height_, width_ = (tf.cast(n, kind) for n in (short, height, width))
        shape = resize * height_ // short_, resize * width_ // short_
        return *shape, *(tf.cast(tf.round(tf.cast(n - size, tf.float64) / 2), tf.int32) for n in shape)

    def centre_of_whole():
        new_height, new_width, top, left = resized_to(tf.int32)
        return whole(new_height, new_width)[top : top + size, left : left + size]

    def centre_alone():
        new_height, new_width, top, left = resized_to(tf.int64)
        window = tf.stack([top, left, size, size])
        if pixels.are_photographs:
            return levels(resized_window(image, new_height, new_width, window, "bilinear"))
        values = resized_window(image, new_height, new_width, window, "bilinear", whole_levels=False) / pixels.top
        return _as_levels(tf.clip_by_value(values, 0.0, 1.0), pixels)

    # Usual images are resized whole, level by level as ever; of a strip of 2000 pixels by 1 that would take gigabytes.
    return tf.ensure_shape(tf.cond(long <= _LONG * short, centre_of_whole, centre_alone), square)


def on_canvas(image: tf.Tensor, side: int, pixels: Pixels = PHOTOGRAPHS) -> tuple[tf.Tensor, tf.Tensor]:
    """The image in the upper left corner of a black square, for views that are made on the device.

    Args:
      image: levels (H, W, C), as `pixels` says; what is larger than the square is reduced to fit it (antialiased bicubic).

    Returns:
      (side, side, C) of the same type, and the height and width that the image has there, (2,) int32.
    """
    shape = tf.shape(image)
    longest = tf.maximum(tf.maximum(shape[0], shape[1]), side)
    size = tf.maximum((2 * shape[:2] * side + longest) // (2 * longest), 1)  # rounded
    fits = longest == side
    image = tf.cond(fits, lambda: image, lambda: _resized_levels(image, size[0], size[1], "bicubic", pixels))
    padded = tf.pad(image, [[0, side - size[0]], [0, side - size[1]], [0, 0]])
    return tf.ensure_shape(padded, (side, side, pixels.channels)), size


def _resized_levels(image: tf.Tensor, height, width, interpolation: str, pixels: Pixels) -> tf.Tensor:
    """The whole image, resized and rounded."""
    whole = tf.stack([0, 0, tf.shape(image)[0], tf.shape(image)[1]])
    if pixels.are_photographs:
        return levels(resized(image, whole, height, width, interpolation))
    values = resized_values(image, whole, height, width, interpolation) / pixels.top
    return _as_levels(tf.clip_by_value(values, 0.0, 1.0), pixels)
