"""Presets of views for images that are not photographs, for config files."""

from ml_collections import ConfigDict

from bt_jax.config.rules import listed, nearest
from bt_jax.config.schema import flatten
from bt_jax.errors import UserError

_NO_COLOURS = {"saturation": 0.0, "hue": 0.0, "grayscale": 0.0}

# Where a preset differs from the views of a method.
PRESETS = {
    "natural": {},
    # One channel, as of X-rays and most microscopes: what changes colours has no meaning.
    "grey": _NO_COLOURS,
    # Bands of any number seen from above: no up and down, levels that are measured and so not inverted, and bands that may be missing.
    "spectral": {**_NO_COLOURS, "solarize": 0.0, "quarter_turns": 0.75, "blur": 0.5, "drop_bands": 0.1},
}


def set_views(config: ConfigDict, preset: str) -> None:
    """Sets all views that a pre-training draws to a preset: natural, grey or spectral.

    Raises:
      UserError: there is no such preset.
    """
    if preset not in PRESETS:
        raise UserError(
            f"there is no preset of views {preset!r}; it must be {listed(PRESETS)}{nearest(preset, PRESETS)}."
        )
    views = [name.rpartition(".")[0] for name in flatten(config) if name.endswith(".crop_scale")]
    for view in views:
        if not view.startswith("judge."):  # the classifier at the end, whose view has no colours anyway
            config.update_from_flattened_dict({f"{view}.{name}": value for name, value in PRESETS[preset].items()})
