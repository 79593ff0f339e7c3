"""Each ablation of Barlow Twins for a few epochs of the quickstart: does it run, and move as the paper's Tables 5 and 6 say?

    python experiments/ablations.py --workdir runs/ablations > experiments/results/ablations.md

All arms have the same seed, so the same images, views and initial weights of the encoder. Runs that have finished are not made
again. One seed of two epochs shows gross effects only.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys

import jax

ROOT = pathlib.Path(__file__).parents[1]

# Name: (fields, of barlow_twins if there is no dot in them; the paper's top-1 in % after 300 epochs of ImageNet).
ARMS = {
    "Barlow Twins": ({}, "71.4"),
    "only the invariance term": ({"terms": "invariance"}, "57.3"),
    "only the redundancy term": ({"terms": "redundancy"}, "0.1"),
    "normalised along features": ({"normalization": "features"}, "69.8"),
    "no batch norm in the projector": ({"projector_batch_norm": False}, "71.2"),
    "and no normalisation": ({"projector_batch_norm": False, "normalization": "none"}, "53.4"),
    "the same, a tenth of the learning rates": (
        {
            "projector_batch_norm": False,
            "normalization": "none",
            "optimizer.learning_rate_weights": 0.03,
            "optimizer.learning_rate_biases": 0.03,
        },
        "",
    ),
    "cross-entropy, temperature 0.1": ({"loss": "cross_entropy"}, "63.3"),
    "stop-gradient": ({"stop_gradient": True}, "70.5"),
    "predictor": ({"predictor": (512,)}, "70.2"),
    "stop-gradient and predictor": ({"stop_gradient": True, "predictor": (512,)}, "61.3"),
    "both, symmetrised": ({"stop_gradient": True, "predictor": (512,), "symmetrized": True}, ""),
    "off-diagonals of auto-correlations": ({"off_diagonals": "auto"}, "similar"),
    "no projector": ({"projector": ()}, ""),
    "projector of one layer": ({"projector": (512,)}, ""),
    "projector of two layers": ({"projector": (512, 512)}, ""),
    "mixed, λ_reg 4": ({"mixed": 4.0}, ""),
}


def run(workdir: pathlib.Path, fields: dict, epochs: int, seed: int) -> None:
    if (workdir / "pretrain.json").exists() or _diverged(workdir):
        return
    settings = {name if "." in name else f"barlow_twins.{name}": value for name, value in fields.items()}
    settings |= {"epochs": epochs, "seed": seed, "monitor.judge_at_end": False, "log.every_steps": 1}
    settings |= {"log.tensorboard": False, "checkpoint.every_epochs": epochs}
    command = [sys.executable, ROOT / "main.py", f"--workdir={workdir}"]
    done = subprocess.run([*command, *(f"--config.{n}={v}" for n, v in settings.items())], stdout=sys.stderr)
    if done.returncode and not _diverged(workdir):
        sys.exit(f"{workdir.name} failed")


def _records(workdir: pathlib.Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _diverged(workdir: pathlib.Path) -> bool:
    return any(record.get("loss", 0.0) is None for record in _records(workdir))


def row(name: str, paper: str, workdir: pathlib.Path) -> str:
    records = _records(workdir)
    losses = [record for record in records if "loss" in record]
    if _diverged(workdir):
        return f"| {name} | {losses[0]['loss']:.4g} | not finite at step {losses[-1]['step']} | | | | | {paper} |"
    looks = [record for record in records if "knn_accuracy" in record]
    last = losses[-10:]
    end, on, off = (sum(r[n] for r in last) / len(last) for n in ("loss", "on_diagonal", "off_diagonal"))
    return (
        f"| {name} | {losses[0]['loss']:.4g} | {end:.4g} | {on:.4g} | {off:.4g} | {looks[-1]['rankme']:.1f} "
        f"| {100 * looks[-1]['knn_accuracy']:.1f} | {paper} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/ablations"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of the first arms that are run")
    arguments = parser.parse_args()
    rows, untrained = [], {}
    for name, (fields, paper) in list(ARMS.items())[: arguments.only]:
        workdir = arguments.workdir / name.replace(" ", "_").replace(",", "")
        run(workdir, fields, arguments.epochs, arguments.seed)
        rows.append(row(name, paper, workdir))
        untrained = _records(workdir)[0]
    device = jax.devices()[0].device_kind
    print(
        f"# Ablations of Barlow Twins on the quickstart\n\n{arguments.epochs} epochs, seed {arguments.seed}, JAX "
        f"{jax.__version__}, {device}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}. Loss, on- and off-diagonal term: means of "
        f"the last 10 steps.\nUntrained: kNN {100 * untrained['knn_accuracy']:.1f} %, RankMe of the features "
        f"{untrained['rankme']:.1f}. The paper's column is its top-1 in % on ImageNet.\n\n"
        "| | loss at the start | at the end | on-diagonal | off-diagonal | RankMe | kNN, % | paper |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
