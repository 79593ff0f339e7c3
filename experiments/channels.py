"""Images that are not photographs, from made-up sets of known statistics: does their depth reach the network, and are they kept whole?

    python experiments/channels.py DIR          makes the sets in DIR and runs on them; experiments/results/channels.md

The sets are the quickstart's crops of 17 photographs (which come with scikit-image and scikit-learn), turned into

    8bit     grey of 8 bits
    deep     the same grey in a hundredth of the range of 16 bits, 20 000 to 20 655: in 8 bits it has 3 levels
    high     `deep` in 8 bits, as its high bytes: what is left if depth is lost
    bands    13 bands of reflectance, as a satellite's: mixtures of red, green and blue, 1400 on average and 5000 at most

Each is pre-trained by configs/channels.py, with the range, mean and deviation that the task `statistics` finds, and one seed.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bt_jax.config import from_json  # noqa: E402
from bt_jax.data.sources.make import make_source  # noqa: E402
from bt_jax.data.sources.photographs import photograph_crops  # noqa: E402
from bt_jax.data.views import device  # noqa: E402
from bt_jax.facts import Facts  # noqa: E402
from bt_jax.methods import make_method  # noqa: E402

PRESETS = {"8bit": "grey", "deep": "grey", "high": "grey", "bands": "spectral"}
LOOKED_AT = 1000  # images, of which views are made for the statistics


def make_sets(folder: pathlib.Path) -> None:
    """Writes DIR/<set>.npz."""
    rng = np.random.default_rng(0)
    mixtures = rng.dirichlet((1.0, 1.0, 1.0), 13)  # of red, green and blue
    arrays: dict[str, dict[str, np.ndarray]] = {name: {} for name in PRESETS}
    for split, count in (("train", 300), ("test", 60)):
        images, labels = photograph_crops(split, size=48, per_class=count)
        grey = images @ np.array((0.299, 0.587, 0.114))
        deep = np.round(20_000 + grey / 255 * 655).astype(np.uint16)
        bands = 400 * np.exp(2.5 * (images / 255) @ mixtures.T) + rng.normal(0, 20, (*images.shape[:3], 13))
        made = {
            "8bit": np.round(grey).astype(np.uint8),
            "deep": deep,
            "high": (deep >> 8).astype(np.uint8),
            "bands": bands.clip(0).astype(np.uint16),
        }
        for name, values in made.items():
            arrays[name] |= {f"x_{split}": values, f"y_{split}": labels.astype(np.int32)}
    for name, found in arrays.items():
        np.savez(folder / f"{name}.npz", **found)  # pyrefly: ignore[bad-argument-type]


def run(folder: pathlib.Path, name: str, epochs: int) -> dict:
    """The statistics, the pre-training, and what was measured."""
    common = [
        sys.executable, "main.py", f"--config=configs/channels.py:{PRESETS[name]}", "--config.data.source=arrays",
        f"--config.data.data_dir={folder / name}.npz", "--config.data.image_size=48", f"--config.epochs={epochs}",
    ]  # fmt: skip
    subprocess.run([*common, "--config.task=statistics", f"--workdir={folder / name}"], cwd=ROOT, check=True)
    found = json.loads((folder / name / "statistics.json").read_text())
    declared = [
        f"--config.data.{field}={','.join(map(str, found[field])) if isinstance(found[field], list) else found[field]}"
        for field in ("channels", "range", "mean", "std")
        if found[field] != []
    ]
    subprocess.run([*common, *declared, f"--workdir={folder / name / 'run'}"], cwd=ROOT, check=True)
    result = json.loads((folder / name / "run" / "pretrain.json").read_text())
    config = from_json((folder / name / "run" / "config.json").read_text())
    source = make_source(config.data, "train")
    method = make_method(config, Facts.of(source, batch_size=config.batch_size, epochs=1), None)
    images = jnp.asarray(source.fetch(np.arange(0, len(source), max(1, len(source) // LOOKED_AT)))[0])
    x = np.asarray(method.inputs.normalize(images), np.float64)
    views = device.make_views(images, None, method.view_groups, seed=0, epoch=0, examples=jnp.arange(len(images)))
    (pair,) = (np.asarray(made) for made in views.values())
    whole = np.broadcast_to(pair.max(axis=(2, 3), keepdims=True) > 0, pair.shape)  # a dropped band is not clipped
    clipped = np.mean(((pair == 0) | (pair == method.inputs.pixels.top))[whole])
    return {
        "range": list(method.inputs.pixels.range) or [0, 255],
        "mean": x.mean((0, 1, 2)),
        "std": x.std((0, 1, 2)),
        "levels": len(np.unique(np.asarray(images)[..., 0])),
        "clipped": clipped,
        "rankme": result["metrics"]["rankme"],
        "knn": [result[f"knn_accuracy_{when}"] for when in ("before", "after", "raw_pixels")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--only", nargs="*", default=list(PRESETS), choices=PRESETS)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    make_sets(folder)
    rows = []
    for name in arguments.only:
        found = run(folder, name, arguments.epochs)
        low, high = (f"{end:g}" for end in found["range"][:2])
        means, stds = found["mean"], found["std"]
        before, after, raw = (f"{100 * value:.1f}" for value in found["knn"])
        rows.append(
            f"| `{name}` | {low} to {high} | {found['levels']} | {means.min():.3f} to {means.max():.3f} | "
            f"{stds.min():.3f} to {stds.max():.3f} | {found['clipped']:.2%} | {found['rankme']:.1f} | {before} | {after} | {raw} |"
        )
    print(
        "\n| set | range | levels of the first channel | mean | deviation | clipped | RankMe | kNN untrained | trained | raw pixels |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
