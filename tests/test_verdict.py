"""bt_jax/evaluation/verdict.py: each warning appears where it should, and nowhere else."""

import pytest

from bt_jax.evaluation.verdict import warnings_of

KNOWN = {"width": 128, "start": 500.0, "floor": 8.0, "images": 1000}


def run(
    losses=(400, 300, 200, 150, 120, 110, 100, 90, 80, 70), looks=((0.4, 10, 0), (0.5, 20, 0), (0.6, 30, 0)), **more
):
    """Records of a run with these losses, and looks of (kNN accuracy, RankMe, dead features)."""
    records = [{"step": i + 1, "epoch": i + 1.0, "loss": loss, **more} for i, loss in enumerate(losses)]
    for i, (accuracy, rank, dead) in enumerate(looks):
        records.append(
            {"step": 5 * i, "epoch": 5.0 * i, "knn_accuracy": accuracy, "rankme": rank, "dead_features": dead}
        )
    return sorted(records, key=lambda record: record["step"])


def test_a_good_run_has_none():
    assert warnings_of(run(spread=0.9, input_wait=0.02), **KNOWN) == []
    assert warnings_of([], **KNOWN) == [] and warnings_of([{"step": 3}]) == []
    late = [r for r in run(looks=((0.4, 20, 0), (0.5, 20, 0), (0.49, 21, 0))) if r["step"]]
    assert warnings_of(late, **KNOWN) == [], "its first look was of a trained network"


@pytest.mark.parametrize(
    ("title", "records"),
    [
        ("The loss was not finite", run(losses=(5, 4, None))),
        ("The features have collapsed", run(looks=((0.4, 20, 0), (0.5, 1.2, 0)))),
        ("The embeddings have collapsed", run(spread=0.01)),
        ("Some features are dead", run(looks=((0.4, 20, 100), (0.5, 21, 64)))),
        ("The loss is at its floor", run(losses=(400, 100, 20, 10, 9, *[8.5] * 5))),
        ("The loss has hardly fallen", run(losses=(500,) * 12)),
        ("Training has made the features worse", run(looks=((0.4, 20, 0), (0.35, 21, 0)))),
        (
            "The network overfits",
            run(looks=((0.4, 20, 0), (0.9, 20, 0), (0.7, 20, 0), (0.6, 20, 0)), losses=range(100, 20, -4)),
        ),
        ("The run is input-bound", run(input_wait=0.5)),
    ],
)
def test_each_warning(title, records):
    """Alone, and with advice."""
    (found,) = warnings_of(records, **KNOWN)
    assert found.title == title and found.text.endswith(".") and found.advice.endswith(".")


def test_the_best_checkpoint_is_named():
    """A run's folder stands for its newest checkpoint."""
    records = run(looks=((0.4, 20, 0), (0.9, 20, 0), (0.7, 20, 0), (0.6, 20, 0)), losses=range(100, 20, -4))
    (found,) = warnings_of(records, **KNOWN)
    assert found.advice == (
        "Train for fewer epochs, or use the checkpoint of the step with the highest knn_accuracy in metrics.jsonl: "
        "load_encoder('RUN/checkpoints/STEP'), or --config.init_from=RUN/checkpoints/STEP."
    )


def test_what_is_not_known_is_not_judged():
    records = run(looks=((0.4, 20, 100), (0.5, 1.2, 64)), losses=(8,) * 12)
    assert warnings_of(records) == []
