"""bt_jax/evaluation/knn.py against plain numpy in float64."""

import numpy as np
import pytest

from bt_jax.evaluation.knn import knn_accuracy, knn_predict


def reference(train, labels, test, num_classes, k, temperature):
    """As Wu et al. write it, one test image at a time, in float64."""
    train = train.astype(np.float64) / np.linalg.norm(train.astype(np.float64), axis=1, keepdims=True)
    predicted = []
    for row in test.astype(np.float64):
        similarity = train @ (row / np.linalg.norm(row))
        nearest = np.argsort(-similarity, kind="stable")[:k]
        votes = np.zeros(num_classes)
        for i in nearest:
            votes[labels[i]] += np.exp(similarity[i] / temperature)
        predicted.append(np.argmax(votes))
    return np.array(predicted)


@pytest.mark.parametrize(("n", "m", "k"), [(50, 1, 1), (300, 37, 20), (200, 65, 200)])
def test_equals_the_reference(n, m, k):
    """Block sizes that divide the test set and that do not."""
    rng = np.random.default_rng(n)
    centres = rng.standard_normal((7, 16))
    labels = rng.integers(0, 7, n).astype(np.int32)
    train = (centres[labels] + 1.5 * rng.standard_normal((n, 16))).astype(np.float32)
    test = (centres[rng.integers(0, 7, m)] + 1.5 * rng.standard_normal((m, 16))).astype(np.float32)
    expected = reference(train, labels, test, 7, k, 0.1)
    for block in (16, 64):
        found = knn_predict(train, labels, test, num_classes=7, k=k, temperature=0.1, block=block)
        np.testing.assert_array_equal(found, expected)


def test_scale_of_features_does_not_matter():
    """Cosine similarity: each feature vector may be of any length."""
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((60, 8)), rng.standard_normal((20, 8))
    labels = rng.integers(0, 3, 60)
    first = knn_predict(train, labels, test, num_classes=3, k=5)
    again = knn_predict(train * rng.uniform(0.1, 10, (60, 1)), labels, test * 3, num_classes=3, k=5)
    np.testing.assert_array_equal(first, again)


def test_accuracy_counts():
    """Two right of three."""
    train, labels = np.eye(3), np.array([0, 1, 2])
    test = np.array([[1, 0.1, 0], [0, 1, 0.1], [0, 0.1, 1]])
    assert knn_accuracy(train, labels, test, np.array([0, 1, 0]), num_classes=3, k=1) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": 5}, "k is 5"),
        ({"num_classes": 2}, "train labels run from 0 to 2"),
        ({"train_labels": np.array([0, 1])}, "3 train features but 2 labels"),
        ({"test_features": np.ones((2, 4))}, r"\(n, F\)"),
        ({"train_features": np.full((3, 3), np.nan)}, "not finite"),
    ],
)
def test_bad_input(change, sentence):
    settings = {
        "train_features": np.eye(3), "train_labels": np.arange(3), "test_features": np.eye(3), "num_classes": 3, "k": 1
    }  # fmt: skip
    with pytest.raises(ValueError, match=sentence):
        knn_predict(**settings | change)
