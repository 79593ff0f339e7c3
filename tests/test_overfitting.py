"""bt_jax/evaluation/overfitting.py: accuracy that falls while the loss falls, and what only looks like it."""

import pytest

from bt_jax.evaluation.overfitting import overfitting

EPOCH = 10  # steps


def said(accuracies, losses, images=1000):
    """What is said at each look: before training and after each epoch; the loss is recorded twice an epoch."""
    history, sentences = [], []
    for epoch, accuracy in enumerate(accuracies):
        step = epoch * EPOCH
        if epoch:
            for part in (step - EPOCH // 2, step):
                history.append({"step": part, "epoch": part / EPOCH, "loss": losses[epoch - 1]})
        sentences.append(overfitting(history, step, accuracy, images))
        history.append({"step": step, "epoch": float(epoch), "knn_accuracy": accuracy, "rankme": 3.0})
    return sentences


FALLING = [100.0, 90.0, 80.0, 70.0, 60.0, 50.0]


def test_it_is_said_once_and_when_it_is_sure():
    """At the second look in succession that is worse by more than 2 · √(2p(1-p)/n), 4.1 points here."""
    found = said([0.2, 0.5, 0.7, 0.64, 0.63, 0.6, 0.5], FALLING)
    assert [bool(sentence) for sentence in found] == [False, False, False, False, True, False, False]
    assert found[4] == (
        "kNN accuracy has fallen by 7.0 points since epoch 2, while the loss fell from 95 to 78,\n"
        "          as when a network overfits a small set"
    )  # each loss is the mean of the last five records or fewer


@pytest.mark.parametrize(
    ("accuracies", "losses", "images"),
    [
        ([0.2, 0.5, 0.7, 0.69, 0.68, 0.68], FALLING, 1000),  # by less than the noise
        ([0.2, 0.5, 0.7, 0.6, 0.7, 0.6, 0.7], FALLING, 1000),  # a single look each time
        ([0.2, 0.5, 0.7, 0.6, 0.5, 0.4], [50.0, 60.0, 70.0, 80.0, 90.0], 1000),  # the loss rises: another fault
        ([0.6, 0.2, 0.3, 0.4, 0.5], FALLING, 1000),  # worse than untrained, but rising
        ([0.2, 0.5, 0.7, 0.6, 0.6], [float("nan")] * 5, 1000),  # null in the file
        ([0.2, 0.5, 0.7, 0.6, 0.6], FALLING, 20),  # few images
        ([0.2], [], 1000),
    ],
)
def test_what_only_looks_like_it(accuracies, losses, images):
    assert not any(said(accuracies, losses, images))
