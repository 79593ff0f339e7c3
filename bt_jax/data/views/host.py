"""Views of an image in TensorFlow ops: training's groups of views, the evaluation view, and canvases for the device.

The arithmetic is Pillow's and torchvision's, level by level (host_operations.py). Parameters are drawn (`sample_view`)
separately from being applied (`apply_views`), so that they can be given to another implementation too.
"""

import functools
import math
from collections.abc import Callable, Sequence

from bt_jax.data.order import draw_seed
from bt_jax.data.tensorflow_import import tf
from bt_jax.data.views.host_operations import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    grayscale,
    levels,
    packed,
    resized,
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


def make_views(
    image: tf.Tensor, groups: Sequence[ViewGroup], *, seed: int, epoch: tf.Tensor, example: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Draws and applies all views of an image, a pure function of (seed, epoch, example, group, view) and the image.

    Args:
      image: (H, W, 3) uint8.
      epoch, example: () int64.

    Returns:
      (V, S, S, 3) uint8 of each group, by its name.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    views = {}
    for number, group in enumerate(groups):

        def seed_of(view, number=number):
            return tf.stack(draw_seed(seed, epoch, example, draw_number(number, view)))

        if isinstance(group.draws, Jigsaw):
            drawn = sample_jigsaw(seed_of, height, width, group.draws, group.size)
            views[group.name] = apply_jigsaw(image, group.draws, drawn, group.size)
        else:
            drawn = [sample_view(seed_of(view), height, width, spec) for view, spec in enumerate(group.draws)]
            views[group.name] = apply_views(image, group.draws, drawn, group.size)
    return views


def sample_view(seed: tf.Tensor, height: tf.Tensor, width: tf.Tensor, spec: ViewSpec) -> ViewParameters:
    """Draws a view of an image of this size; a pure function of its arguments.

    Args:
      seed: (2,) int64.
    """
    u = _uniforms(seed, UNIFORMS)
    tries, u = u[: 2 * CROP_TRIES], tf.unstack(u[2 * CROP_TRIES :])
    crop = crop_from_uniforms(tries[:CROP_TRIES], tries[CROP_TRIES:], u[0], u[1], height, width, spec)
    return _drawn(u, crop, spec)


def sample_jigsaw(
    seed_of: Callable[[int], tf.Tensor], height: tf.Tensor, width: tf.Tensor, jigsaw: Jigsaw, size: int
) -> JigsawParameters:
    """Draws a jigsaw of an image of this size; a pure function of its arguments.

    Args:
      seed_of: the seed, (2,) int64, of a patch by its place in the group; the two places after the last are for the crop and the
        order.
      size: side of a window.
    """
    count, patches = jigsaw.grid**2, []
    crop = sample_view(seed_of(count), height, width, jigsaw.view).crop
    cells = tf.argsort(_uniforms(seed_of(count + 1), count))

    def offset(uniform):
        room = jigsaw.cell - size
        # In float32 a uniform near 1 times a count may round up to it.
        return tf.minimum(tf.cast(uniform * (room + 1), tf.int32), room)

    for patch in range(count):
        u = tf.unstack(_uniforms(seed_of(patch), UNIFORMS)[2 * CROP_TRIES :])
        row, column = cells[patch] // jigsaw.grid, cells[patch] % jigsaw.grid
        window = tf.stack([row * jigsaw.cell + offset(u[0]), column * jigsaw.cell + offset(u[1]), size, size])
        patches.append(_drawn(u, window, jigsaw.view))
    return JigsawParameters(crop, patches)


def _uniforms(seed: tf.Tensor, count: int) -> tf.Tensor:
    # Philox is named because the default generator may differ between kinds of device.
    return tf.random.stateless_uniform([count], seed, dtype=tf.float32, alg="philox")


def _drawn(u: list[tf.Tensor], crop: tf.Tensor, spec: ViewSpec) -> ViewParameters:
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
    )


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
    image: tf.Tensor, specs: Sequence[ViewSpec], parameters: Sequence[ViewParameters], size: int
) -> tf.Tensor:
    """The views of an image that the parameters describe, in the official order of operations.

    Args:
      image: (H, W, 3) uint8.
      specs: what the parameters were drawn from: says how a crop is resized; what has probability 0 there is left out.

    Returns:
      (V, size, size, 3) uint8.
    """
    crops = [resized(image, p.crop, size, size, s.interpolation) for s, p in zip(specs, parameters, strict=True)]
    return _distortion(tuple(specs))(crops, list(parameters))


def apply_jigsaw(image: tf.Tensor, jigsaw: Jigsaw, parameters: JigsawParameters, size: int) -> tf.Tensor:
    """The patches of an image that the parameters describe, (grid², size, size, 3) uint8."""
    side = jigsaw.grid * jigsaw.cell
    whole = levels(resized(image, parameters.crop, side, side, jigsaw.view.interpolation))
    windows = [tf.slice(whole, [p.crop[0], p.crop[1], 0], [size, size, 3]) for p in parameters.patches]
    specs = (jigsaw.view,) * len(windows)
    return _distortion(specs)([tf.cast(window, tf.float32) for window in windows], list(parameters.patches))


@functools.lru_cache(maxsize=64)
def _distortion(specs: tuple[ViewSpec, ...]) -> Callable[[list[tf.Tensor], list[ViewParameters]], tf.Tensor]:
    """What follows the crops, which are (S, S, 3) float32 before their last rounding: gives (V, S, S, 3) uint8."""

    # XLA makes one pass over the image instead of dozens, several times faster. It compiles once for each size.
    @functools.partial(tf.function, jit_compile=True, autograph=False)
    def distorted(crops, parameters):
        views = zip(crops, parameters, specs, strict=True)
        return tf.stack([unpacked(_distort(packed(levels(x)), p, spec)) for x, p, spec in views])

    return distorted


def _distort(x: tf.Tensor, p: ViewParameters, spec: ViewSpec) -> tf.Tensor:
    def maybe(probability, drawn, change, x):
        return tf.cond(drawn, lambda: change(x), lambda: x) if probability else x

    x = maybe(spec.flip, p.flip, lambda x: tf.reverse(x, [1]), x)
    x = maybe(spec.jitter, p.jitter, lambda x: _jitter(x, p), x)
    x = maybe(spec.grayscale, p.grayscale, grayscale, x)
    x = maybe(spec.blur, p.blur, lambda x: gaussian_blur(x, p.sigma), x)
    return maybe(spec.solarize, p.solarize, solarize, x)


def _jitter(x: tf.Tensor, p: ViewParameters) -> tf.Tensor:
    def one(place, x):
        adjusted = tf.switch_case(
            p.order[place],
            [
                lambda: adjust_brightness(x, p.brightness),
                lambda: adjust_contrast(x, p.contrast),
                lambda: adjust_saturation(x, p.saturation),
                lambda: adjust_hue(x, p.hue),
            ],
        )
        return place + 1, adjusted

    return tf.while_loop(lambda place, _: place < 4, one, (0, x))[1]


def evaluation_view(image: tf.Tensor, resize: int, size: int) -> tf.Tensor:
    """The image as evaluations see it.

    Args:
      image: (H, W, 3) uint8.
      resize: the shorter side is resized to this (antialiased bilinear, as the official evaluate.py) and the centre is
        cut out; 0: the whole image is resized to the square, unless it has that size already.

    Returns:
      (size, size, 3) uint8.
    """
    shape = tf.shape(image)
    height, width = shape[0], shape[1]

    def whole(new_height, new_width):
        return levels(resized(image, tf.stack([0, 0, height, width]), new_height, new_width, "bilinear"))

    if not resize:
        same = (height == size) & (width == size)
        return tf.ensure_shape(tf.cond(same, lambda: image, lambda: whole(size, size)), (size, size, 3))
    short = tf.minimum(height, width)
    new_height, new_width = resize * height // short, resize * width // short
    top, left = (tf.cast(tf.round(tf.cast(n - size, tf.float64) / 2), tf.int32) for n in (new_height, new_width))
    return tf.ensure_shape(whole(new_height, new_width)[top : top + size, left : left + size], (size, size, 3))


def on_canvas(image: tf.Tensor, side: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The image in the upper left corner of a black square, for views that are made on the device.

    Args:
      image: (H, W, 3) uint8; what is larger than the square is reduced to fit it (antialiased bicubic).

    Returns:
      (side, side, 3) uint8, and the height and width that the image has there, (2,) int32.
    """
    shape = tf.shape(image)
    longest = tf.maximum(tf.maximum(shape[0], shape[1]), side)
    size = tf.maximum((2 * shape[:2] * side + longest) // (2 * longest), 1)  # rounded
    whole = tf.stack([0, 0, shape[0], shape[1]])
    fits = longest == side
    image = tf.cond(fits, lambda: image, lambda: levels(resized(image, whole, size[0], size[1])))
    padded = tf.pad(image, [[0, side - size[0]], [0, side - size[1]], [0, 0]])
    return tf.ensure_shape(padded, (side, side, 3)), size
