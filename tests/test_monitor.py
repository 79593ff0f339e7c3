"""bt_jax/evaluation/monitor.py: kNN accuracy of a run's encoder on a labelled subset."""

import jax
import numpy as np
import pytest
from recipes import quick_views, small_method, spec_of

from bt_jax import config as config_lib
from bt_jax.data.sources.make import make_source
from bt_jax.data.views.spec import ViewGroup, ViewSpec
from bt_jax.errors import UserError
from bt_jax.evaluation.health import health
from bt_jax.evaluation.kept_images import KeptImages
from bt_jax.evaluation.monitor import FeatureMonitor, KnnMonitor
from bt_jax.evaluation.pairs import Pairs
from bt_jax.models.inputs import Inputs


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))


def config_of(tmp_path, train, test):
    """The config of a run on arrays: bright images of class 1 and dark ones of class 0, by their labels."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, labels in (("train", train), ("test", test)):
        labels = np.array(labels)
        base = (100 * (labels[:, None, None, None] % 2)).astype(np.uint8)
        arrays |= {
            f"x_{split}": base + rng.integers(0, 50, (len(labels), 8, 8, 3)).astype(np.uint8),
            f"y_{split}": labels,
        }
    np.savez(tmp_path / "set.npz", **arrays)
    config = config_lib.default()
    config.data.update(source="arrays", data_dir=str(tmp_path / "set.npz"), image_size=8, eval_resize=0)
    config.monitor.update(every_epochs=1, batch_size=8, k=200)
    quick_views(config)
    return config


def pairs_of(config, mesh, source, *, count, batch_size):
    group = ViewGroup("pair", (ViewSpec(), ViewSpec(blur=0.1)), config.data.image_size)
    return Pairs(source, config.data, group, seed=0, count=count, batch_size=batch_size, mesh=mesh)


def monitor_of(config, mesh):
    source = make_source(config.data, "train")
    return KnnMonitor(
        config.monitor,
        config.data,
        encoder=small_method(mesh).encoder,
        inputs=Inputs.of(config.data, "float32"),
        train=source,
        pairs=pairs_of(config, mesh, source, count=16, batch_size=8),
        mesh=mesh,
    )


def test_accuracy_of_classes_that_can_be_told_apart(tmp_path, mesh):
    """k is reduced to what the set allows; the limits on the examples hold."""
    config = config_of(tmp_path, [0, 1] * 10, [0, 1, 1, 0, 1])
    config.monitor.k = 3
    method = small_method(mesh)
    monitor = monitor_of(config, mesh)
    assert monitor.raw_pixels() == 1.0
    params, model_state, _ = method.init(jax.random.key(0), spec_of(method, 8))
    variables = {"params": params["encoder"], "batch_stats": model_state["batch_stats"]["encoder"]}
    assert monitor(variables) == 1.0
    found = monitor.report(variables)
    assert found["knn_accuracy"] == 1.0
    assert found.keys() == {"knn_accuracy", "rankme", "mean_correlation", "dead_features", "alignment", "uniformity"}
    assert 1 <= found["rankme"] <= 8 and 0 < found["alignment"] < 4 and found["uniformity"] < 0
    assert monitor.report(variables) == found, "the same views each time"
    # Of the twenty, numbers 0 and 10 are left, both dark, so that all test images count as dark.
    config.monitor.train_examples, config.monitor.k = 2, 200
    assert monitor.raw_pixels() == 0.4
    config.monitor.test_examples = 2  # numbers 0 and 2, a dark one and a bright one
    assert monitor.raw_pixels() == 0.5


@pytest.mark.parametrize(("pairs", "batch_size", "count"), [(0, 8, 0), (12, 8, 12), (99, 8, 16), (99, 24, 0)])
def test_how_many_pairs_there_are(tmp_path, mesh, pairs, batch_size, count):
    """None if none are wanted or the set is smaller than a batch; at most all of its whole batches."""
    config = config_of(tmp_path, [0, 1] * 10, [0, 1])
    assert pairs_of(config, mesh, make_source(config.data, "train"), count=pairs, batch_size=batch_size).count == count


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        ([0] * 9, [0] * 3, "has 1 class"),
        ([0, 1] * 8, [0, 1, 0], "monitor.batch_size is 12, which does not divide among 8 devices"),
    ],
)
def test_bad_input(tmp_path, mesh, train, test, sentence):
    config = config_of(tmp_path, train, test)
    if "batch_size" in sentence:
        config.monitor.batch_size = 12
    with pytest.raises(UserError, match=sentence):
        monitor_of(config, mesh)


def test_a_test_split_without_labels(tmp_path, mesh, monkeypatch):
    """As of the test images of ImageNet in TFDS, whose labels are known only when they are read."""
    config = config_of(tmp_path, [0, 1] * 10, [0, 1])
    monitor = monitor_of(config, mesh)
    features = np.eye(4, dtype=np.float32)
    with pytest.raises(UserError, match=r"has no labels \(all are -1\); name a labelled split"):
        monitor._accuracy((features, np.array([0, 1, 0, 1])), (features, np.full(4, -1)))
    with pytest.raises(UserError, match="has no labels"):
        monitor._accuracy((features, np.full(4, -1)), (features, np.array([0, 1, 0, 1])))


def test_the_same_images_in_both_splits(tmp_path, mesh):
    config = config_of(tmp_path, [0, 1] * 10, [0, 1])
    config.data.test_split = "train"
    with pytest.raises(UserError, match="all test images .* are also train images"):
        monitor_of(config, mesh)


def test_splits_of_different_classes(tmp_path, mesh):
    from PIL import Image

    for split, names in (("train", "ab"), ("test", "ac")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / split / name / "1.png")
    config = config_lib.default()
    config.data.update(source="folder", data_dir=str(tmp_path), image_size=8, eval_resize=0)
    config.monitor.update(every_epochs=1, batch_size=8)
    with pytest.raises(UserError, match=r"have different classes \(b, c"):
        monitor_of(config, mesh)


def test_splits_with_their_classes_in_different_orders(tmp_path, mesh):
    """Folders are in the order of text, numbers in a list in that of numbers; by a file both are."""
    from PIL import Image

    numbers = [0, 1, 2, 10]
    for split, folder in (("train", "{}"), ("val", "images")):
        for number in numbers:
            place = tmp_path / split / folder.format(number)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / f"{number}.png")
    (tmp_path / "val.csv").write_text("".join(f"val/images/{number}.png,{number}\n" for number in numbers))
    config = config_lib.default()
    config.data.update(source="folder", data_dir=str(tmp_path), image_size=8, eval_resize=0, test_split="val.csv")
    config.monitor.update(every_epochs=1, batch_size=8)
    with pytest.raises(
        UserError,
        match="have their classes in different orders; name a file of the labels of both in data.labels, or set",
    ):
        monitor_of(config, mesh)
    config.data.update(test_split="val", labels=str(tmp_path / "val.csv"))
    monitor = monitor_of(config, mesh)
    assert monitor.test.class_names == ("0", "1", "2", "10") and monitor.test.labels.tolist() == [0, 1, 3, 2]


def test_measures_without_labels(tmp_path, mesh):
    """Those of the kNN monitor on the same images, and of which images the features are; evenly spread if there are many."""
    config = config_of(tmp_path, [0, 1] * 10, [0, 1] * 4)
    method, knn = small_method(mesh), monitor_of(config, mesh)
    params, model_state, _ = method.init(jax.random.key(0), spec_of(method, 8))
    variables = {"params": params["encoder"], "batch_stats": model_state["batch_stats"]["encoder"]}

    def monitor(source):
        pairs = pairs_of(config, mesh, make_source(config.data, "train"), count=16, batch_size=8)
        inputs = Inputs.of(config.data, "float32")
        how = {"encoder": method.encoder, "inputs": inputs, "pairs": pairs, "mesh": mesh}
        return FeatureMonitor(config.monitor, config.data, source=source, **how)

    expected = knn.report(variables)
    del expected["knn_accuracy"]
    assert monitor(knn.test).report(variables) == expected
    config.monitor.test_examples = 5
    watched = monitor(make_source(config.data, "train"))
    watched.kept = KeptImages(most=3, side=4)
    watched.report(variables)
    seen = watched.seen
    assert seen.features.shape[0] == 5 and seen.examples.tolist() == [0, 4, 8, 12, 16]
    assert seen.places.tolist() == [0, 1, 2, 3, 4] and seen.labels.tolist() == [0] * 5 and len(seen.views) == 2
    assert list(watched.kept.images) == [0, 2, 4] and watched.kept.images[2].shape == (4, 4, 3)
    assert health(seen.features).keys() == {"rankme", "mean_correlation", "dead_features"}
