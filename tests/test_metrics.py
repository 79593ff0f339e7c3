"""bt_jax/evaluation/metrics.py against scikit-learn and plain numpy, and against itself on 1 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from bt_jax import config as config_lib
from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.sources.base import ArraySource
from bt_jax.evaluation.metrics import Counts, average_precision, count_hits
from bt_jax.runtime import mesh as mesh_lib

count = jax.jit(count_hits)


def counts_of(logits, labels, mask=None):
    mask = np.ones(len(labels), bool) if mask is None else mask
    return Counts.of(jax.device_get(count(logits, labels.astype(np.int32), mask)))


def test_equals_scikit_learn():
    """Top-1, top-5 and the loss, without ties."""
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((200, 11)).astype(np.float32), rng.integers(0, 11, 200)
    found = counts_of(logits, labels).result()
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=np.arange(11), normalize=False)
        assert found[f"top{k}"] == expected / 200
    wide = logits.astype(np.float64)
    nll = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(200), labels]
    assert found["loss"] == pytest.approx(nll.mean(), rel=1e-6)


@pytest.mark.parametrize("parts", [(200,), (1, 199), (64, 64, 64, 8)])
def test_sums_merge(parts):
    """Any division into batches gives the same counts; an average of averages would not."""
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((200, 7)).astype(np.float32), rng.integers(0, 7, 200)
    whole, total, start = counts_of(logits, labels), Counts(), 0
    for part in parts:
        total += counts_of(logits[start : start + part], labels[start : start + part])
        start += part
    assert (total.images, total.top1, total.top5) == (whole.images, whole.top1, whole.top5)
    assert total.nll == pytest.approx(whole.nll, rel=1e-6)


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_each_image_once_on_1_and_8_devices(n):
    """Through the pipeline's padded batches: the counts are those of plain numpy, on any number of devices."""
    rng = np.random.default_rng(n)
    images, labels = rng.integers(0, 256, (n, 8, 8, 3), np.uint8), rng.integers(0, 10, n)
    weights = rng.standard_normal((8 * 8 * 3, 10)).astype(np.float32)
    source = ArraySource("random", images, labels, tuple("abcdefghij"))
    config = config_lib.default().data
    config.image_size, config.eval_resize = 8, 0

    @jax.jit
    def of_batch(batch):
        # Whole numbers below 2²⁴: no order of adding up makes a difference.
        logits = jnp.round(batch["image"].reshape(len(batch["label"]), -1) @ jnp.round(8 * weights))
        return count_hits(logits, batch["label"], batch["mask"])

    found = []
    for devices in (1, 8):
        mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
        total = Counts()
        for local in eval_batches(source, config, batch_size=64, rows=np.arange(64)):
            total += Counts.of(jax.device_get(of_batch(mesh_lib.put_batch(mesh, 64, local))))
        found.append(total)
    logits = images.reshape(n, -1).astype(np.float64) @ np.round(8 * weights.astype(np.float64))
    place = np.argsort(-logits, axis=1, kind="stable")
    hits = [int((place[:, :k] == labels[:, None]).any(axis=1).sum()) for k in (1, 5)]
    for total in found:
        assert (total.images, total.top1, total.top5) == (n, *hits)


def test_ties_and_what_is_no_number():
    """Of equal logits the lowest class is first, as in argmax; NaN is never a hit."""
    equal = np.zeros((6, 6), np.float32)
    assert counts_of(equal, np.arange(6)) == Counts(6, 1, 5, pytest.approx(6 * np.log(6), rel=1e-6))
    bad = np.full((2, 6), np.nan, np.float32)
    found = counts_of(bad, np.array([0, 5]))
    assert (found.top1, found.top5) == (0, 0)
    one_bad = np.array([[1.0, np.nan, 0.0]], np.float32)
    assert counts_of(one_bad, np.array([0])).top1 == 0


def test_padding_counts_nothing():
    mask = np.array([True, False, True])
    logits = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    found = counts_of(logits, np.array([0, 0, 1]), mask)
    assert (found.images, found.top1) == (2, 1)
    with pytest.raises(ValueError, match="no image was counted"):
        counts_of(logits, np.array([0, 0, 1]), np.zeros(3, bool)).result()


def eleven_points(scores, positive):
    """The development kit's VOCap, written out, for scores without ties."""
    order = np.argsort(-scores)
    hits = np.cumsum(positive[order])
    recall, precision = hits / positive.sum(), hits / np.arange(1, len(scores) + 1)
    return np.mean(
        [max([p for r, p in zip(recall, precision, strict=True) if r >= t - 1e-12]) for t in np.arange(11) / 10]
    )


def area_under_the_interpolated_curve(scores, positive):
    """VISSL's calculate_ap, written out, for scores without ties: precision is made to fall, from the last point back."""
    hits = np.cumsum(positive[np.argsort(-scores)], dtype=np.float64)
    recall, precision = hits / positive.sum(), hits / np.arange(1, len(scores) + 1)
    recall, precision = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


@pytest.mark.parametrize("n", [3, 40, 500])
def test_average_precision(n):
    """All points as scikit-learn, with ties too; the 11 points as the development kit; interpolated as VISSL."""
    rng = np.random.default_rng(n)
    positive = rng.random(n) < 0.3
    positive[0] = True
    scores = rng.standard_normal(n) + positive
    found = average_precision(scores, positive)
    assert found["all_points"] == pytest.approx(average_precision_score(positive, scores), abs=1e-12)
    assert found["voc07"] == pytest.approx(eleven_points(scores, positive), abs=1e-12)
    expected = area_under_the_interpolated_curve(scores, positive)
    assert found["interpolated"] == pytest.approx(expected, abs=1e-12) and expected >= found["all_points"]
    tied = np.round(scores)
    assert average_precision(tied, positive)["all_points"] == pytest.approx(
        average_precision_score(positive, tied), abs=1e-12
    )


def test_average_precision_by_hand():
    """Positives at places 1 and 4 of 5: precision 1 up to recall 0.5, then 0.5. At 3, 4 and 5 of 5: it only rises."""
    found = average_precision(np.array([5.0, 4, 3, 2, 1]), np.array([True, False, False, True, False]))
    assert found.pop("interpolated") == pytest.approx(0.75)
    assert found == {"voc07": pytest.approx((6 * 1 + 5 * 0.5) / 11), "all_points": pytest.approx(0.75)}
    found = average_precision(np.array([5.0, 4, 3, 2, 1]), np.array([False, False, True, True, True]))
    assert found["interpolated"] == pytest.approx(3 / 5)
    assert found["all_points"] == pytest.approx((1 / 3 + 1 / 2 + 3 / 5) / 3)
    with pytest.raises(ValueError, match="no image is positive"):
        average_precision(np.ones(3), np.zeros(3, bool))
    with pytest.raises(ValueError, match="not finite"):
        average_precision(np.array([np.nan, 1]), np.array([True, False]))
    with pytest.raises(ValueError, match=r"both must be \(n,\)"):
        average_precision(np.ones(3), np.ones(2, bool))
