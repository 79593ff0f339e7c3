"""bt_jax/tasks/knn.py: the task, against the same numbers by hand from the encoder's features."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from recipes import evaluation_of, no_room_for
from sklearn.neighbors import KNeighborsClassifier

import bt_jax
from bt_jax.errors import UserError
from bt_jax.evaluation import results
from bt_jax.evaluation.health import rankme
from bt_jax.evaluation.judged import judged_encoder
from bt_jax.runtime.mesh import make_mesh
from bt_jax.tasks.knn import knn


def test_against_scikit_learn_on_real_features(judged, tmp_path, capsys):
    """The encoder's own features, brute force in float64 with the same weights."""
    workdir, config = judged
    config = evaluation_of(config, "knn")
    config.knn.k = (1, 7, 60)
    result = knn(config, str(tmp_path / "run"))
    encoder = bt_jax.load_encoder(str(workdir))
    arrays = np.load(config.data.data_dir)
    train, test = (encoder.features(arrays[f"x_{split}"]).astype(np.float64) for split in ("train", "test"))
    for k in (1, 7, 60):
        peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.1))
        expected = peer.fit(train, arrays["y_train"]).score(test, arrays["y_test"])
        assert result["runs"][0]["top1"][str(k)] == pytest.approx(expected)
    assert result["mean"]["health.rankme"] == pytest.approx(rankme(test), rel=1e-4)
    assert json.loads((tmp_path / "run" / "knn.json").read_text())["runs"] == result["runs"]
    said = capsys.readouterr().out
    assert 0 < result["mean"]["health.alignment"] < 4 and result["mean"]["health.uniformity"] < 0
    assert (
        "kNN top-1" in said
        and "RankMe" in said
        and "for two training views each of 48 images" in said
        and "with k = 60" in said
    )

    config.knn.k = (61,)
    with pytest.raises(UserError, match="knn.k has 61, but must be at most 60"):
        knn(config, str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_an_image_that_does_not_decode(judged, tmp_path, capsys):
    """It is named, and does not count."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name in ("a", "b"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(
                    tmp_path / "set" / split / name / f"{i}.png"
                )
    (tmp_path / "set" / "test" / "a" / "1.png").write_bytes(b"no image")
    config = evaluation_of(judged[1], "knn")
    config.data.update(source="folder", data_dir=str(tmp_path / "set"))
    config.features.batch_size = 24
    config.knn.update(k=(1,), pairs=8)
    run = knn(config, str(tmp_path / "run"))["runs"][0]
    said = capsys.readouterr().out
    assert "test/a/1.png cannot be read as an image" in said and "1 of 8 images in" in said
    assert run["health"]["alignment"] > 0, "of a set smaller than features.batch_size too"


def test_a_full_disk(judged, tmp_path, monkeypatch, capsys):
    """The numbers are printed before the file fails, and a message says so."""
    config = evaluation_of(judged[1], "knn")
    config.knn.k = (1,)
    no_room_for(monkeypatch, results, "knn.json")
    with pytest.raises(
        UserError,
        match=r"knn.json cannot be written \(No space left on device\), so the numbers are only in the output above",
    ):
        knn(config, str(tmp_path / "run"))
    assert "kNN top-1" in capsys.readouterr().out


def test_lidar_and_layers(judged, tmp_path, capsys):
    """The encoder's row has the numbers of the task itself; the others are of the projector's two layers."""
    config = evaluation_of(judged[1], "knn")
    config.knn.update(k=(3, 1), lidar_images=20, lidar_views=3, layers=True, layer_examples=60)
    run = knn(config, str(tmp_path / "run"))["runs"][0]
    encoder, *layers = run["layers"]
    assert encoder["layer"] == "encoder" and [row["layer"][-1] for row in layers] == ["1", "2"]
    assert [row["width"] for row in layers] == [16, 16]
    assert encoder["knn_top1"] == run["top1"]["3"]
    assert encoder["rankme"] == run["health"]["rankme"] and encoder["lidar"] == run["health"]["lidar"]
    assert 1 <= run["health"]["lidar"] <= 19
    assert json.loads((tmp_path / "run" / "knn.json").read_text())["runs"] == [run]
    said = capsys.readouterr().out
    assert "for 3 training views each of 20 images" in said and "with 60 train images" in said
    table = said[said.index("kNN, k=3") - 30 :].split("kNN top-1")[0]
    assert max(map(len, table.splitlines())) <= 80


def test_layers_without_a_projector(judged, tmp_path, monkeypatch):
    config = evaluation_of(judged[1], "knn")
    config.knn.update(k=(1,), layers=True)
    found = judged_encoder(config, make_mesh(config.mesh))
    monkeypatch.setattr("bt_jax.evaluation.judged.judged_encoder", lambda *_: dataclasses.replace(found, heads={}))
    with pytest.raises(UserError, match="has no projector, which knn.layers needs"):
        knn(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
