"""The distribution of one view of an image; all views have these fields."""

from typing import Any

from bt_jax.config.field import Field
from bt_jax.config.rules import between, one_of, range_within

# The defaults are the paper's view A (Zbontar et al. 2021, appendix A).
_FIELDS = {
    "crop_scale": Field((0.08, 1.0), range_within(1e-6, 1), "Range of the crop's area, as a fraction of the image's"),
    "crop_ratio": Field((3 / 4, 4 / 3), range_within(1e-3, 1e3), "Range of the crop's aspect ratio, width over height"),
    "flip": Field(0.5, between(0, 1), "Probability of a horizontal flip"),
    "quarter_turns": Field(
        0.0, between(0, 1), "Probability of one, two or three quarter turns, for images without an up and a down"
    ),
    "jitter": Field(0.8, between(0, 1), "Probability of colour jitter: the next four, in random order"),
    "brightness": Field(0.4, between(0, 1), "The brightness factor is uniform in 1 ± this"),
    "contrast": Field(0.4, between(0, 1), "The contrast factor is uniform in 1 ± this"),
    "saturation": Field(0.2, between(0, 1), "The saturation factor is uniform in 1 ± this"),
    "hue": Field(0.1, between(0, 0.5), "The hue shift is uniform in ± this, in turns of the colour wheel"),
    "grayscale": Field(0.2, between(0, 1), "Probability of conversion to grey"),
    "blur": Field(1.0, between(0, 1), "Probability of a Gaussian blur"),
    # The blur's boxes of five taps reach up to 2.4 (views/host.py, gaussian_blur).
    "blur_sigma": Field(
        (0.1, 2.0), range_within(1e-3, 2.4), "Range of the blur's standard deviation, in pixels, at most 2.4"
    ),
    "solarize": Field(0.0, between(0, 1), "Probability of solarising, which inverts levels of 128 and more"),
    "drop_bands": Field(
        0.0,
        between(0, 1),
        "Probability, for each channel, that it is set to the low end of its range; one always stays",
    ),
    "interpolation": Field(
        "bicubic", one_of(("bicubic", "bilinear")), "How the crop is resized to the view's size: bicubic or bilinear"
    ),
}


def view_fields(prefix: str, **defaults: Any) -> dict[str, Field]:
    """The fields of one view, as a group `prefix` within a group.

    Args:
      defaults: where this view differs from the paper's view A.
    """
    unknown = defaults.keys() - _FIELDS.keys()
    if unknown:
        raise TypeError(f"views have no {', '.join(sorted(unknown))}")
    return {
        f"{prefix}.{name}": Field(defaults.get(name, field.default), field.rule, field.doc)
        for name, field in _FIELDS.items()
    }


# Only crop and flip, as for training classifiers (official evaluate.py).
CROP_AND_FLIP: dict[str, Any] = {
    "jitter": 0.0,
    "grayscale": 0.0,
    "blur": 0.0,
    "solarize": 0.0,
    "interpolation": "bilinear",
}
