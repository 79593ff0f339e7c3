"""The task `statistics`: what the values of a set's images are, and what a config has to declare of them."""

import json
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax import console
from bt_jax.data.sources.make import images_as_stored
from bt_jax.data.statistics import Statistics, notices, statistics_of
from bt_jax.errors import UserError
from bt_jax.pixels import Pixels
from bt_jax.runtime.files import write_whole
from bt_jax.runtime.paths import as_folder

LOOKED_AT = 10_000  # encoded images
_SMALLEST = 1e-6  # standard deviation of a channel; a constant one would be divided by 0


def statistics(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Prints channel by channel what the values of the train images are, and the options that declare them.

    Returns:
      The content of WORKDIR/statistics.json.

    Raises:
      UserError: there are no images, or the file cannot be written.
    """
    config_lib.check(config)
    folder = as_folder(workdir, "--workdir")
    name, count, images = images_as_stored(config.data, "train", LOOKED_AT)
    found = statistics_of(images, min(count, LOOKED_AT), Pixels.of(config.data))
    options = declared(found)
    console.say("\n".join(_lines(name, count, found, options)))
    result = {
        "task": "statistics",
        "data": name,
        "images": found.images,
        "types": list(found.kinds),
        "lowest": found.lowest.tolist(),
        "highest": found.highest.tolist(),
        "constant_channels": list(found.constant),
        "not_finite": sum(found.not_finite.values()),
        "outside_the_range": found.outside,
        **options,
    }
    path = folder / "statistics.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another --workdir.") from error
    console.say(f"written   {path}")
    return result


def declared(found: Statistics) -> dict[str, Any]:
    """The fields of `config.data` that fit the images: channels, range, mean and std."""
    std = np.maximum(found.std, _SMALLEST)
    return {
        "channels": found.channels,
        "range": list(found.range),
        "mean": [round(float(value), 5) for value in found.mean],
        "std": [float(f"{value:.4g}") for value in std],
    }


def _lines(name: str, count: int, found: Statistics, options: dict[str, Any]) -> list[str]:
    sizes = [f"{height}×{width}" for height, width in found.sizes]
    size = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes, most often {sizes[0]}"
    of = f"{found.images} of {count} images" if found.images < count else f"{count} images"
    channels = f"{found.channels} channel{'s' * (found.channels != 1)}"
    lines = [
        f"data      {name}: {of}, {channels}, {' and '.join(found.kinds)}, {size}",
        "",
        f"{'channel':>9} {'lowest':>10} {'0.1 %':>10} {'99.9 %':>10} {'highest':>10} {'mean':>9} {'deviation':>9}",
    ]
    columns = (found.lowest, found.low, found.high, found.highest, found.mean, found.std)
    lines += [
        f"{channel:>9} " + " ".join(f"{value:>10.5g}" for value in row[:4]) + f" {row[4]:>9.4f} {row[5]:>9.4f}"
        for channel, row in enumerate(zip(*columns, strict=True))
    ]
    lines.append("")
    if not found.range:
        lines.append("range     0 to 255, of 8 bits; mean and deviation are on a scale of 0 to 1")
    elif len(found.range) == 2:
        lines.append(
            f"range     {found.range[0]:g} to {found.range[1]:g}; mean and deviation are on a scale of 0 to 1 in it"
        )
    else:
        lines.append("range     one for each channel; mean and deviation are on a scale of 0 to 1 in it")
    lines += [f"note      {sentence}" for sentence in notices(found)]
    shown = {
        name: value if isinstance(value, int) else ",".join(f"{x:g}" for x in value) for name, value in options.items()
    }
    if found.channels == 3:
        shown.pop("channels")
    lines += [
        "",
        "to use    " + " ".join(f"--config.data.{name}={value}" for name, value in shown.items() if value != ""),
        "",
    ]
    return lines
