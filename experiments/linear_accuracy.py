"""Accuracy of a linear classifier on the frozen features of a run, by scikit-learn's logistic regression.

    python experiments/linear_accuracy.py WORKDIR [--out FILE]

Reads the run's own data set, which must be one that is in memory (photographs, arrays); no TensorFlow is needed. Features
are standardised by the train split's. Regularisation is chosen on a fifth of the train split, then all of it is fitted.
"""

import argparse
import json
import time

import numpy as np
from etils import epath
from sklearn.linear_model import LogisticRegression

import bt_jax
from bt_jax import config as config_lib
from bt_jax.data.resident import evaluation_views
from bt_jax.data.sources import ArraySource, make_source
from bt_jax.errors import UserError

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C


def linear_accuracy(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """(accuracy from 0 to 1 on the test set, the C that was chosen) of features (n, F) and labels (n,)."""
    mean, std = train[0].mean(0), train[0].std(0) + 1e-6
    (x, y), (x_test, y_test) = (((features - mean) / std, labels) for features, labels in (train, test))
    order = np.random.default_rng(0).permutation(len(x))
    held, fitted = order[: len(x) // 5], order[len(x) // 5 :]

    def fit(strength, rows):
        return LogisticRegression(C=strength, max_iter=200).fit(x[rows], y[rows])

    best = max(STRENGTHS, key=lambda strength: fit(strength, fitted).score(x[held], y[held]))
    return float(fit(best, order).score(x_test, y_test)), best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir")
    parser.add_argument("--out", help="a file for the numbers, as JSON")
    arguments = parser.parse_args()
    encoder = bt_jax.load_encoder(arguments.workdir)
    config = config_lib.from_json((epath.Path(arguments.workdir) / "config.json").read_text()).data
    splits = []
    for split in ("train", "test"):
        source = make_source(config, split)
        if not isinstance(source, ArraySource):
            raise UserError(f"data.source is {config.source!r}; this needs a set in memory: photographs or arrays.")
        images = evaluation_views(source.images, config.eval_resize, config.image_size)
        splits.append((encoder.features(images), source.labels))
    begin = time.monotonic()
    accuracy, strength = linear_accuracy(*splits)
    print(f"linear accuracy {accuracy:.1%} of {encoder!r}; C {strength:g}, {time.monotonic() - begin:.0f} s")
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"linear_accuracy": accuracy, "C": strength, "step": encoder.step}, file, indent=2)


if __name__ == "__main__":
    main()
