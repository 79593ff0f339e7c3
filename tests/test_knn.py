"""bt_jax/evaluation/knn.py against plain numpy in float64."""

import jax
import numpy as np
import pytest

from bt_jax.evaluation.knn import _search, knn_accuracy, knn_predict, nearest


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


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
@pytest.mark.parametrize(("n", "m", "k"), [(50, 1, 1), (300, 37, 20), (200, 65, 200)])
def test_equals_the_reference(n, m, k, temperature):
    """Block sizes that divide the test set and that do not; the temperature decides some of the votes."""
    rng = np.random.default_rng(n)
    centres = rng.standard_normal((7, 16))
    labels = rng.integers(0, 7, n).astype(np.int32)
    train = (centres[labels] + 1.5 * rng.standard_normal((n, 16))).astype(np.float32)
    test = (centres[rng.integers(0, 7, m)] + 1.5 * rng.standard_normal((m, 16))).astype(np.float32)
    expected = reference(train, labels, test, 7, k, temperature)
    assert k < 200 or temperature == 0.1 or (expected != reference(train, labels, test, 7, k, 0.1)).any()
    for block in (16, 64):
        found = knn_predict(train, labels, test, num_classes=7, k=k, temperature=temperature, block=block)
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


def meshes():
    for devices in (1, 8):
        yield jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])


def test_the_devices_make_no_difference():
    """On 1 and 8, with test sets of 1, 7 and 1000: the same neighbours and similarities to the last bit."""
    rng = np.random.default_rng(3)
    train, test = rng.standard_normal((700, 24)).astype(np.float32), rng.standard_normal((1000, 24)).astype(np.float32)
    labels = rng.integers(0, 5, 700)
    for m in (1, 7, 1000):
        found = [
            list(nearest(train, test[:m], k=9, block=256, train_block=64, mesh=mesh)) for mesh in meshes()
        ]  # fmt: skip
        for one, eight in zip(*found, strict=True):
            for a, b in zip(one, eight, strict=True):
                np.testing.assert_array_equal(a, b)
        predicted = knn_predict(train, labels, test[:m], num_classes=5, k=9, block=256, train_block=64)
        np.testing.assert_array_equal(predicted, reference(train, labels, test[:m], 5, 9, 0.1))


def test_several_k_are_one_search():
    """Each row is what k alone gives; a block of train images may be shorter than k."""
    rng = np.random.default_rng(4)
    train, test, labels = rng.standard_normal((90, 8)), rng.standard_normal((20, 8)), rng.integers(0, 4, 90)
    ks = (1, 5, 90)
    together = knn_predict(train, labels, test, num_classes=4, k=ks, train_block=32)
    assert together.shape == (3, 20)
    for row, k in zip(together, ks, strict=True):
        np.testing.assert_array_equal(row, knn_predict(train, labels, test, num_classes=4, k=k, train_block=32))
        np.testing.assert_array_equal(row, reference(train, labels, test, 4, k, 0.1))
    accuracies = knn_accuracy(train, labels, test, together[1], num_classes=4, k=ks, train_block=32)
    assert len(accuracies) == 3 and accuracies[1] == 1.0


def test_of_equally_near_images_the_first_votes():
    """Copies in other blocks and on other devices: the lowest number comes first, wherever it is."""
    train = np.repeat(np.eye(4), 20, axis=0)[np.arange(80).reshape(4, 20).T.ravel()]  # 0 1 2 3 0 1 2 3 …
    labels = np.arange(80) % 4 + 4 * (np.arange(80) // 4 >= 3)  # classes 0-3 for the first three copies, then 4-7
    for mesh in meshes():
        predicted = knn_predict(train, labels, np.eye(4), num_classes=8, k=5, train_block=8, mesh=mesh)
        np.testing.assert_array_equal(predicted, [0, 1, 2, 3])


def test_the_matrix_of_all_similarities_is_never_held():
    """The memory of the compiled search besides its inputs grows with the blocks, not with the train images."""
    mesh = next(meshes())
    allotted = []
    for blocks in (4, 64):
        train = jax.ShapeDtypeStruct((blocks, 128, 16), np.float32)
        test = jax.ShapeDtypeStruct((32, 16), np.float32)
        memory = _search(mesh, 10, blocks * 128).lower(train, test).compile().memory_analysis()
        allotted.append(memory.temp_size_in_bytes + memory.output_size_in_bytes)
    assert allotted[1] < 1.1 * allotted[0] < 32 * 64 * 128 * 4
