"""Plots a run by epoch: its loss with the two parts, and its kNN accuracy.

    python experiments/plot_run.py runs/resnet18_cifar10_cpu --out run.png

Needs matplotlib (pip install -e '.[plots]').
"""

import argparse
import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("run.png"))
    arguments = parser.parse_args()
    metrics, config = arguments.workdir / "metrics.jsonl", arguments.workdir / "config.json"
    if not metrics.exists():
        sys.exit(f"error: {arguments.workdir} is not the workdir of a run: it has no metrics.jsonl.")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    run = json.loads(config.read_text())
    group = run.get("barlow_twins") or run.get("loss")  # "loss" in runs of bt_jax 0.1.0
    if not group:
        sys.exit(f"error: {arguments.workdir} is not a run of Barlow Twins.")
    lambd = group["lambd"]
    steps = [r for r in records if r.get("loss") is not None]
    watched = [r for r in records if "knn_accuracy" in r]

    figure, axes = plt.subplots(1, 2 if watched else 1, figsize=(10, 3.8), squeeze=False)
    loss = axes[0][0]
    epochs = [r["epoch"] for r in steps]
    loss.plot(epochs, [r["loss"] for r in steps], color="black", label="loss")
    loss.plot(epochs, [r["on_diagonal"] for r in steps], color="tab:blue", label="on the diagonal")
    off = [lambd * r["off_diagonal"] for r in steps]
    loss.plot(epochs, off, color="tab:orange", label=f"off the diagonal, times λ = {lambd:g}")
    loss.set(xlabel="epoch", ylabel="loss", title="Barlow Twins loss")
    loss.set_ylim(0, 1.35 * loss.dataLim.ymax)  # room for the legend
    loss.legend(frameon=False, loc="upper right")
    if watched:
        knn = axes[0][1]
        accuracy = [100 * r["knn_accuracy"] for r in watched]
        knn.plot([r["epoch"] for r in watched], accuracy, marker="o", color="tab:green")
        knn.axhline(accuracy[0], color="grey", linestyle=":", linewidth=1)
        knn.annotate("untrained", (watched[-1]["epoch"], accuracy[0]), ha="right", va="bottom", color="grey")
        knn.set(xlabel="epoch", ylabel="accuracy, %", title="k-nearest-neighbours accuracy on test images")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=110)
    print(arguments.out)


if __name__ == "__main__":
    main()
