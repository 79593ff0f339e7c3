"""Evaluations on a run's real features, compared with scikit-learn and plain numpy in float64.

    python experiments/parity/evaluation_references.py RUN [--data_dir DIR] [--train 5000] [--test 2000]

RUN is a pre-training run's workdir; images come from the data set that its config names.
"""

import argparse

import jax
import numpy as np
from etils import epath
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

import bt_jax
import bt_jax.config
from bt_jax.data.order import evenly
from bt_jax.data.sources.make import make_source
from bt_jax.evaluation.cached_probe import CachedProbe
from bt_jax.evaluation.health import mean_correlation, rankme, uniformity
from bt_jax.evaluation.knn import knn_predict
from bt_jax.evaluation.metrics import average_precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data_dir")
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=2000)
    arguments = parser.parse_args()
    config = bt_jax.config.from_json((epath.Path(arguments.run) / "config.json").read_text())
    if arguments.data_dir:
        config.data.data_dir = arguments.data_dir
    encoder = bt_jax.load_encoder(arguments.run)
    features, labels = {}, {}
    for split in ("train", "test"):
        source = make_source(config.data, split)
        images, labels[split] = source.fetch(evenly(len(source), getattr(arguments, split)))
        features[split] = encoder.features(images)
    classes = source.num_classes
    wide = {split: f.astype(np.float64) for split, f in features.items()}
    print(f"{encoder}; {len(labels['train'])} train and {len(labels['test'])} test images\n")
    print("| what | bt_jax | reference | from |\n|---|---|---|---|")

    def row(what, ours, reference, source):
        print(f"| {what} | {ours:.8g} | {reference:.8g} | {source} |", flush=True)

    for k in (10, 200):
        peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.1))
        theirs = peer.fit(wide["train"], labels["train"]).predict(wide["test"])
        ours = knn_predict(features["train"], labels["train"], features["test"], num_classes=classes, k=k)
        row(
            f"kNN, k = {k}: top-1",
            np.mean(ours == labels["test"]),
            np.mean(theirs == labels["test"]),
            "scikit-learn, float64",
        )
        row(f"kNN, k = {k}: same predictions", np.mean(ours == theirs), 1, "scikit-learn, float64")

    mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
    probe = CachedProbe(features["train"], labels["train"], num_classes=classes, mesh=mesh)
    for l2 in (1e-2, 1e-3):
        found = probe.fit(l2)
        counts = probe.count(found, features["test"], labels["test"]).result()
        x, test = (probe.standardized(features[split]).astype(np.float64) for split in ("train", "test"))
        peer = LogisticRegression(C=1 / (len(x) * l2), tol=1e-6, max_iter=10000).fit(x, labels["train"])
        row(
            f"cached probe, l2 {l2:g}: top-1", counts["top1"], peer.score(test, labels["test"]), "scikit-learn, float64"
        )
        logits = test @ found["kernel"].astype(np.float64) + found["bias"]
        top5 = top_k_accuracy_score(labels["test"], logits, k=5, labels=np.arange(classes))
        row(f"top-5 of the same logits, l2 {l2:g}", counts["top5"], top5, "scikit-learn, float64")
        scores, positive = logits[:, 0], labels["test"] == 0
        row("average precision of class 0, all points", average_precision(scores, positive)["all_points"],
            average_precision_score(positive, scores), "scikit-learn")  # fmt: skip

    sigma = np.linalg.svd(wide["test"], compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    row("RankMe", rankme(features["test"]), np.exp(-np.sum(p * np.log(p))), "numpy, singular values")
    correlation = np.abs(np.corrcoef(wide["test"], rowvar=False))
    expected = correlation[~np.eye(len(correlation), dtype=bool)].mean()
    row("mean correlation", mean_correlation(features["test"]), expected, "numpy.corrcoef")
    unit = wide["test"] / np.linalg.norm(wide["test"], axis=1, keepdims=True)
    squares = np.maximum(2 - 2 * (unit @ unit.T)[np.triu_indices(len(unit), 1)], 0)
    row("uniformity", uniformity(features["test"]), np.log(np.mean(np.exp(-2 * squares))), "numpy, all pairs")


if __name__ == "__main__":
    main()
