"""bt_jax/tasks/embed.py: every image once, with the features of `load_encoder`, whatever interrupts the task."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import bt_jax
from bt_jax import config as config_lib
from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.sources.make import make_source
from bt_jax.errors import Preempted, UserError
from bt_jax.export.embeddings import Pieces
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.tasks import embed as task


@pytest.fixture
def config(judged, tmp_path):
    """Of 45 images of mixed sizes in two folders, in batches of 8 and pieces of 16."""
    rng = np.random.default_rng(0)
    for i in range(45):
        file = tmp_path / "images" / "ab"[i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(16, 40, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file)
    config = config_lib.default("embed")
    config.init_from = judged[1].init_from
    config.data.update(source="folder", data_dir=str(tmp_path / "images"), threads=2)
    config.features.batch_size, config.embed.piece = 8, 16
    return config


def embeddings(workdir):
    with np.load(workdir / "embeddings.npz", allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def by_pillow(path, encoder):
    """As torchvision evaluates: the shorter side resized to 256/224 of the encoder's size, and the centre cropped."""
    image, size = Image.open(path).convert("RGB"), encoder.input_size
    short = round(256 * size / 224)
    width, height = (short * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def test_features_are_those_of_load_encoder(config, tmp_path, capsys):
    """Of every image once, under its path, with its label; the same command again has nothing to do."""
    result = task.embed(config, str(tmp_path / "out"))
    said = capsys.readouterr().out
    for part in (
        "45 images, 2 classes by folders",
        "45 of 45 images",
        "45 images, 8 features each",
        "shorter side 18, centre 16×16",
    ):
        assert part in said, part
    found, encoder = embeddings(tmp_path / "out"), bt_jax.load_encoder(config.init_from)
    names = sorted(f"{'ab'[i % 2]}/{i:02d}.png" for i in range(45))
    assert found["paths"].tolist() == names and found["features"].dtype == np.float32
    images = np.stack([by_pillow(tmp_path / "images" / name, encoder) for name in names])
    np.testing.assert_allclose(found["features"], encoder.features(images), atol=5e-3)
    source, data = make_source(config.data, "train"), task.data_for(config.data, encoder)
    (batch,) = eval_batches(source, data, batch_size=45, rows=np.arange(45))
    assert np.abs(batch["image"].astype(int) - images).max() <= 1, "a few pixels differ by a level"
    np.testing.assert_allclose(found["features"], encoder.features(batch["image"]), rtol=1e-5, atol=1e-6)
    assert found["labels"].tolist() == [int(name[0] == "b") for name in names]
    assert found["class_names"].tolist() == ["a", "b"]
    assert json.loads((tmp_path / "out" / "embed.json").read_text()) == json.loads(json.dumps(result))
    assert result["embedded"] == 45 and result["left_out"] == 0 and not (tmp_path / "out" / "pieces").exists()
    assert task.embed(config, str(tmp_path / "out"))["embedded"] == 45
    assert "complete  " in capsys.readouterr().out
    written = tmp_path / "out" / "embed.json"
    believed = json.dumps(json.loads(written.read_text()) | {"embedded": "45"})
    for damaged, word in (("[]", "a list instead of an object"), (believed, "embedded is '45'")):
        written.write_text(damaged)
        with pytest.raises(UserError, match=f"embed.json cannot be used .*{word}.*; remove it, and the same command"):
            task.embed(config, str(tmp_path / "out"))


def test_one_device_and_eight(config, tmp_path):
    eight = jax.make_mesh((8,), (mesh_lib.DATA_AXIS,), (jax.sharding.AxisType.Auto,))
    one = jax.make_mesh((1,), (mesh_lib.DATA_AXIS,), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    for name, mesh in (("one", one), ("eight", eight)):
        task.embed_images(config, epath.Path(tmp_path / name), mesh)
    a, b = (embeddings(tmp_path / name) for name in ("one", "eight"))
    assert a["paths"].tolist() == b["paths"].tolist()
    np.testing.assert_allclose(a["features"], b["features"], rtol=1e-5, atol=1e-6)


def test_a_signal_and_a_restart(config, tmp_path, monkeypatch, capsys):
    """Whole pieces are kept and not made again; the result is that of an uninterrupted run."""
    task.embed(config, str(tmp_path / "whole"))
    write, written = Pieces.write, []

    def interrupted(self, number, piece):
        write(self, number, piece)
        written.append(number)
        if number == 1 and written.count(1) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Pieces, "write", interrupted)
    with pytest.raises(Preempted):
        task.embed(config, str(tmp_path / "out"))
    assert "the features of 32 of 45 images are kept in" in capsys.readouterr().err
    task.embed(config, str(tmp_path / "out"))
    assert written == [0, 1, 2] and "resuming  after 32 of 45 images" in capsys.readouterr().out
    for name, array in embeddings(tmp_path / "whole").items():
        np.testing.assert_array_equal(embeddings(tmp_path / "out")[name], array)


def test_other_images_or_another_encoder(config, tmp_path, monkeypatch):
    """Pieces of two sets never end in one file."""
    monkeypatch.setattr(Pieces, "read", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        task.embed(config, str(tmp_path / "out"))
    os.rename(tmp_path / "images" / "a" / "00.png", tmp_path / "images" / "a" / "99.png")
    with pytest.raises(
        UserError, match="holds embeddings of other images .*fingerprint was .* choose another --workdir"
    ):
        task.embed(config, str(tmp_path / "out"))


def test_images_that_do_not_decode(config, tmp_path, capsys):
    """They are left out and counted; the others keep their paths."""
    (tmp_path / "images" / "a" / "04.png").write_bytes(b"no image")
    result = task.embed(config, str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "a/04.png cannot be read as an image" in said and "1 that cannot be read are left out" in said
    assert "data.max_bad_fraction, 0.001 of 45, allows one image at least" in said
    found = embeddings(tmp_path / "out")
    assert result["left_out"] == 1 and len(found["paths"]) == 44 and "a/04.png" not in found["paths"]
    clean = embeddings_of_clean(config, tmp_path)
    np.testing.assert_allclose(found["features"], np.delete(clean["features"], 2, 0), rtol=1e-5, atol=1e-6)


def embeddings_of_clean(config, tmp_path):
    """Of the same images, with a readable one in the place of the third."""
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "images" / "a" / "04.png")
    task.embed(config, str(tmp_path / "clean"))
    found = embeddings(tmp_path / "clean")
    assert found["paths"][2] == "a/04.png"
    return found


def test_parquet_and_labels_that_are_none(config, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    config.data.labels, config.embed.parquet = "none", True
    task.embed(config, str(tmp_path / "out"))
    found = embeddings(tmp_path / "out")
    assert found.keys() == {"features", "paths"}
    table = parquet.read_table(tmp_path / "out" / "embeddings.parquet")
    assert table.column("path").to_pylist() == found["paths"].tolist()


def test_arrays(config, judged, tmp_path):
    """Their paths are numbers."""
    config.data.update(source="arrays", data_dir=judged[1].data.data_dir, train_split="test")
    task.embed(config, str(tmp_path / "out"))
    found = embeddings(tmp_path / "out")
    assert found["paths"].tolist() == [str(i) for i in range(25)] and found["labels"].tolist() == [
        i % 3 for i in range(25)
    ]


def test_features_that_are_not_finite(config, tmp_path, monkeypatch):
    load = task.load_encoder

    def broken(path):
        encoder = load(path)
        encoder.variables = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), encoder.variables)
        return encoder

    monkeypatch.setattr(task, "load_encoder", broken)
    with pytest.raises(
        UserError, match="the features of .*a/00.png are not finite; check the weights that init_from names"
    ):
        task.embed(config, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"init_from": ""}, "init_from is empty, but must name the encoder that embed"),
        ({"features.batch_size": 12}, "features.batch_size is 12, which does not divide among 8 devices"),
        ({"data.data_dir": "/nowhere"}, "no image folder /nowhere"),
    ],
)
def test_bad_input(config, tmp_path, changes, sentence):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=sentence):
        task.embed(config, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_only_embeddings_take_the_encoders_size():
    config = config_lib.default("pretrain")
    config.data.update(source="photographs", image_size=0)
    with pytest.raises(UserError, match="data.image_size is 0, but must be an integer of at least 8"):
        config_lib.check(config)
