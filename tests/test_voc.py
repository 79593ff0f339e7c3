"""bt_jax/data/sources/voc.py, and bt_jax/evaluation/voc.py and transfer.py: a small VOC by the official folders and by TFDS."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from recipes import evaluation_of, no_room_for
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from bt_jax import config as config_lib
from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.sources.voc import CLASSES, voc_source
from bt_jax.errors import UserError
from bt_jax.evaluation import results
from bt_jax.evaluation.voc import svm_average_precisions
from bt_jax.tasks.transfer import transfer


@pytest.fixture(scope="module")
def devkit(tmp_path_factory):
    """80 images per split; image i is of classes i % 20 and (i + 1) % 20, and of (i + 2) % 20 only difficult objects."""
    root = tmp_path_factory.mktemp("VOCdevkit")
    top = root / "VOC2007"
    (top / "JPEGImages").mkdir(parents=True)
    (top / "ImageSets" / "Main").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, first in (("trainval", 0), ("test", 100)):
        names = [f"{first + i:06}" for i in range(80)]
        for i, name in enumerate(names):
            image = np.full((20, 24, 3), 12 * (i % 20), np.uint8) + rng.integers(0, 20, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(image).save(top / "JPEGImages" / f"{name}.jpg")
        for c, label in enumerate(CLASSES):
            said = [{0: 1, 1: 1, 2: 0}.get((c - i) % 20, -1) for i in range(80)]
            lines = [f"{name} {one:2d}\n" for name, one in zip(names, said, strict=True)]
            (top / "ImageSets" / "Main" / f"{label}_{split}.txt").write_text("".join(lines))
    return root


def data_of(devkit):
    data = config_lib.default().data
    data.update(source="folder", data_dir=str(devkit), train_split="trainval", image_size=16, eval_resize=16, threads=2)
    return data


def test_official_folders(devkit):
    """1, -1 and 0 as the lists have them; the pipeline passes each image's number."""
    source = voc_source(data_of(devkit), "train")
    assert (len(source), source.num_classes) == (80, 20)
    expected = np.array([[{0: 1, 1: 1, 2: 0}.get((c - i) % 20, -1) for c in range(20)] for i in range(80)])
    np.testing.assert_array_equal(source.targets, expected)
    batches = list(eval_batches(source, data_of(devkit), batch_size=32, rows=np.arange(32)))
    numbers = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(numbers, np.arange(80))
    assert batches[1]["image"][0].mean() == pytest.approx(12 * (32 % 20) + 9.5, abs=3)
    assert source.place(3).endswith("000003.jpg")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"000000 1\n\xff\xfe", "cat_trainval.txt cannot be read .*; it must be a text file"),
        (b"000000 yes\n", "cat_trainval.txt must hold an image and one of 1, -1 and 0 in each line"),
        (b"000001 1\n", "cat_trainval.txt names other images than aeroplane_trainval.txt"),
    ],
)
def test_damaged_lists(devkit, tmp_path, content, sentence):
    shutil.copytree(devkit / "VOC2007" / "ImageSets", tmp_path / "VOC2007" / "ImageSets")
    (tmp_path / "VOC2007" / "JPEGImages").mkdir()
    (tmp_path / "VOC2007" / "ImageSets" / "Main" / "cat_trainval.txt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        voc_source(data_of(tmp_path), "train")


def store(root, found, classes=CLASSES):
    """A set with the features of voc/2007 in TFDS's format; for each image its objects, (label, whether difficult)."""
    import tensorflow_datasets as tfds

    objects = {"label": tfds.features.ClassLabel(names=classes), "is_difficult": np.bool_}
    examples = [
        (i, {"image": np.full((8, 8, 3), i, np.uint8), "objects": [{"label": c, "is_difficult": d} for c, d in one]})
        for i, one in enumerate(found)
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny_voc",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(), "objects": tfds.features.Sequence(objects)}
        ),
        split_datasets={"train": examples},
        data_dir=root,
        description="for tests",
    )
    data = data_of(root)
    data.update(source="tfds", name="tiny_voc", train_split="train", image_size=8, eval_resize=0)
    return data


def test_tfds(tmp_path):
    """Objects, difficult or not, from a set with the features of voc/2007."""
    data = store(tmp_path, [[(3, False), (3, True)], [(5, True)], []])
    source = voc_source(data, "train")
    batch = next(eval_batches(source, data, batch_size=3, rows=np.arange(3)))
    rows = {
        int(image[0, 0, 0]): source.targets[number]
        for image, number in zip(batch["image"], batch["label"], strict=True)
    }
    assert [(row > 0).sum() for _, row in sorted(rows.items())] == [1, 0, 0]
    assert rows[0][3] == 1 and rows[1][5] == 0 and (rows[2] == -1).all() and rows[0][5] == -1
    data.test_split = "test"
    with pytest.raises(UserError, match="has no split 'test'; it has train"):
        voc_source(data, "test")


@pytest.mark.parametrize("count", [10**12, 4, 2, 0])
def test_tfds_counts_that_files_do_not_bear_out(tmp_path, count):
    """A message, before memory is allocated for that many images, and no row for an image that is not there."""
    data = store(tmp_path, [[(3, False)], [(5, True)], []])
    path = tmp_path / "tiny_voc" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = [str(count)]
    path.write_text(json.dumps(info))
    expected = {10**12: "too few for the 1000000000000 examples", 0: "split 'train' of TFDS tiny_voc has no examples"}
    with pytest.raises(
        UserError, match=expected.get(count, f"tiny_voc in .* cannot be read .*expected to contain {count} elements")
    ):
        voc_source(data, "train")


def test_tfds_classes_that_voc_has_not(tmp_path):
    data = store(tmp_path, [[(3, False)], [(5, True), (20, False)]], (*CLASSES, "zebra"))
    with pytest.raises(
        UserError, match="image 1 of TFDS tiny_voc, train has labels from 5 to 20; those of VOC run from 0"
    ):
        voc_source(data, "train")


def test_lists_that_are_wrong(devkit, tmp_path):
    data = data_of(devkit)
    data.train_split = "val"
    with pytest.raises(UserError, match="lacks 20 of the 20 lists of the split 'val'"):
        voc_source(data, "train")
    data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match="data.data_dir must name VOCdevkit or VOC2007"):
        voc_source(data, "test")
    data.source = "photographs"
    with pytest.raises(UserError, match="VOC comes from 'folder'"):
        voc_source(data, "test")


def _voc07(scores, positive):
    """The mean over eleven recalls of the best precision from there on."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    recall, precision = hits / positive.sum(), hits / np.arange(1, len(hits) + 1)
    return np.mean([max(precision[recall >= level], default=0) for level in np.arange(11) / 10])


def test_svm_against_scikit_learn():
    """One cost, no image left out: average precision of the same SVM; and images that do not count do not."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 8))
    labels = rng.integers(0, 3, 200)
    features = centres[labels] + rng.standard_normal((200, 8))
    targets = np.where(labels[:, None] == np.arange(3), 1, -1)
    train, test = slice(0, 120), slice(120, 200)
    arguments = (features[train], targets[train], features[test], targets[test], "abc")
    found = svm_average_precisions(*arguments, costs=(0.5,))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for c, name in enumerate("abc"):
        svm = LinearSVC(C=0.5, class_weight={True: 2, False: 1}, random_state=0).fit(unit[train], labels[train] == c)
        expected = average_precision_score(labels[test] == c, svm.decision_function(unit[test]))
        assert found["average_precision"][name]["all_points"] == pytest.approx(expected, abs=1e-3)
    assert found["map_all_points"] == pytest.approx(
        np.mean([p["all_points"] for p in found["average_precision"].values()])
    )
    assert found["not_converged"] == 0

    costs = (1e-4, 0.3, 1e4)
    several = svm_average_precisions(*arguments, costs=costs, seed=3)
    for c, name in enumerate("abc"):
        y, scores = labels[train] == c, []
        for cost in costs:
            svm = LinearSVC(C=cost, class_weight={True: 2, False: 1}, random_state=0)
            folds = StratifiedKFold(3, shuffle=True, random_state=3).split(unit[train], y)
            scores.append(
                np.mean(
                    [_voc07(svm.fit(unit[train][a], y[a]).decision_function(unit[train][b]), y[b]) for a, b in folds]
                )
            )
        assert several["cost"][name] == costs[np.argmax(scores)] and len(set(scores)) > 1
    noisy = targets.copy()
    noisy[:40] = 0  # of no class do these say anything
    spoilt = features.copy()
    spoilt[:40] = 1e6
    found = svm_average_precisions(spoilt[train], noisy[train], features[test], targets[test], "abc", costs=(0.5,))
    without = (features[40:120], targets[40:120], features[test], targets[test], "abc")
    assert found["map_voc07"] == pytest.approx(svm_average_precisions(*without, costs=(0.5,))["map_voc07"], abs=1e-9)
    with pytest.raises(UserError, match="class a has 0 positive or negative train images"):
        svm_average_precisions(features[train], -np.ones((120, 3)), features[test], targets[test], "abc", costs=(1.0,))


def test_transfer_by_svms(judged, devkit, tmp_path, capsys):
    config = evaluation_of(judged[1], "transfer")
    config.transfer.update(protocol="svm", svm_costs=(0.1, 1.0))
    config.data = data_of(devkit)
    result = transfer(config, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert all(name in said for name in ("mAP, interpolated", "mAP, 11-point rule", "mAP, all points"))
    assert 0.1 < result["mean"]["map_voc07"] <= 1
    assert (
        result["mean"]["map_all_points"] <= result["mean"]["map_interpolated"] <= 1
        and len(result["runs"][0]["average_precision"]) == 20
    )
    assert json.loads((tmp_path / "run" / "transfer.json").read_text())["checkpoint"]["step"] == 7


def test_too_few_images_for_the_folds(judged, devkit, tmp_path, monkeypatch):
    """Are found before any features are computed."""
    config = evaluation_of(judged[1], "transfer")
    config.transfer.update(protocol="svm", svm_costs=(0.1, 1.0), svm_folds=50)
    config.data = data_of(devkit)
    monkeypatch.setattr("bt_jax.evaluation.voc.VocEvaluation.features", lambda *_: pytest.fail("features"))
    with pytest.raises(UserError, match="positive or negative train images; 50 folds need that many"):
        transfer(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_transfer_by_a_linear_classifier(judged, tmp_path):
    """The loop of the task `linear`, under the name of this one."""
    config = evaluation_of(judged[1], "transfer")
    config.linear.cached = True
    result = transfer(config, str(tmp_path / "run"))
    assert result["task"] == "transfer" and (tmp_path / "run" / "transfer.json").exists()
    assert result["mean"]["final.top1"] > 0.9


def test_a_full_disk(judged, devkit, tmp_path, monkeypatch, capsys):
    """The numbers are printed before the file fails, and a message says so."""
    config = evaluation_of(judged[1], "transfer")
    config.transfer.update(protocol="svm", svm_costs=(0.1,))
    config.data = data_of(devkit)
    no_room_for(monkeypatch, results, "transfer.json")
    with pytest.raises(
        UserError,
        match=r"transfer.json cannot be written \(No space left on device\), so the numbers are only in the output above",
    ):
        transfer(config, str(tmp_path / "run"))
    assert "mAP, 11-point rule" in capsys.readouterr().out
