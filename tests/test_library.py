"""bt_jax/library.py: configs with changes, and the same features of a folder and of images in memory."""

import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import bt_jax
from bt_jax import library
from bt_jax.config import flatten
from bt_jax.data.decode import decode
from bt_jax.data.values import levels_of_image
from bt_jax.pixels import Pixels

IMAGE = np.zeros((16, 16, 3), np.uint8)


@pytest.fixture
def runs(monkeypatch):
    """The arguments of runs, which are not made."""
    made = []
    monkeypatch.setattr(library, "run_pretrain", lambda config, workdir: made.append((config, workdir)) or {"step": 1})
    return made


def test_pretrain_by_name_with_changes(runs, tmp_path):
    """Nested fields and full names; numbers of NumPy and paths become plain."""
    changes = {"data": {"source": "folder", "data_dir": tmp_path}, "optimizer.warmup_epochs": 2}
    assert bt_jax.pretrain("quickstart:simclr", epochs=np.int64(20), **changes) == {"step": 1}
    (config, workdir), *_ = runs
    assert (config.method, config.epochs, workdir) == ("simclr", 20, "runs/quickstart-simclr")
    assert (config.data.data_dir, config.optimizer.warmup_epochs) == (str(tmp_path), 2)
    bt_jax.pretrain("configs/quickstart.py", workdir=tmp_path / "run", barlow_twins={"lambd": 1, "projector": [8, 8]})
    config, workdir = runs[1]
    assert (config.barlow_twins.lambd, config.barlow_twins.projector, workdir) == (1, (8, 8), str(tmp_path / "run"))


def test_pretrain_of_a_config(runs):
    """It is not modified."""
    config = bt_jax.load_config("quickstart", epochs=3)
    before = flatten(config)
    bt_jax.pretrain(config, "runs/mine", seed=5)
    assert flatten(config) == before and runs[0][0].seed == 5 and runs[0][0].epochs == 3


@pytest.mark.parametrize(
    ("arguments", "changes", "sentence"),
    [
        (["quikstart"], {}, "there is no config named quikstart"),
        (["quickstart"], {"epoch": 3}, r"there is no field 'epoch' \(did you mean 'epochs'\?\)"),
        (["quickstart"], {"data": {"sauce": "x"}}, r"there is no field 'data\.sauce'"),
        (["quickstart"], {"data": "folder"}, "data is a group of fields, which are set one by one"),
        (["quickstart"], {"method": "simclr"}, "it is chosen with the config file"),
        (["knn:quickstart"], {}, "the config's task is 'knn', not 'pretrain'"),
        ([bt_jax.load_config("quickstart")], {}, "pass workdir"),
    ],
)
def test_what_is_no_run(runs, arguments, changes, sentence):
    with pytest.raises(bt_jax.UserError, match=sentence):
        bt_jax.pretrain(*arguments, **changes)
    assert not runs


def test_values_of_another_type_are_told_by_the_check(tmp_path):
    with pytest.raises(bt_jax.UserError, match="epochs is 'many', but must be an integer"):
        bt_jax.pretrain("quickstart", tmp_path / "run", epochs="many")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def folder(tmp_path):
    """Five images of three sizes, and a file that is none."""
    rng, images = np.random.default_rng(0), []
    for number, shape in enumerate([(20, 30, 3), (20, 30, 3), (16, 16, 3), (40, 18, 3), (20, 30, 3)]):
        images.append(rng.integers(0, 256, shape, np.uint8))
        (tmp_path / "images" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[-1]).save(tmp_path / "images" / str(number % 2) / f"{number}.png")
    (tmp_path / "images" / "0" / "notes.txt").write_text("no image")
    return tmp_path / "images", images


def test_embed(judged, folder, tmp_path, monkeypatch, capsys):
    """A folder, its images in memory and Pillow's, the same features; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    workdir, _ = judged
    place, images = folder
    encoder = bt_jax.load_encoder(workdir)
    small = {"features": {"batch_size": 8}}
    before = set(tmp_path.iterdir())
    features, paths = found = bt_jax.embed(place, encoder, **small)
    assert found.features is features and set(tmp_path.iterdir()) == before
    assert features.shape == (5, encoder.width) and features.dtype == np.float32
    assert "embedded" not in capsys.readouterr().out, "that is for the command"
    order = [int(pathlib.PurePath(path).stem) for path in paths]
    assert sorted(order) == list(range(5))
    in_memory = bt_jax.embed(images, encoder)
    np.testing.assert_allclose(features, in_memory[order], rtol=2e-2, atol=2e-2)  # Pillow's and TensorFlow's resizing
    np.testing.assert_array_equal(bt_jax.embed([Image.fromarray(x) for x in images], encoder), in_memory)
    np.testing.assert_allclose(bt_jax.embed(np.stack(images[:2]), encoder), in_memory[:2], rtol=1e-5, atol=1e-6)
    whole = bt_jax.embed(images[2:3], encoder, data={"eval_resize": 0})
    np.testing.assert_allclose(whole, encoder.features(images[2][None]), rtol=1e-5, atol=1e-6)
    assert bt_jax.embed([], encoder).shape == (0, encoder.width)


def test_embed_of_images_in_memory_by_its_fields(judged, monkeypatch):
    """The network computes in the dtype that is asked for, on as many images at a time."""
    encoder, sizes = bt_jax.load_encoder(judged[0]), []
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    encode = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda v, x, *more: sizes.append(len(x)) or encode(v, x, *more))
    changes = {"data": {"eval_resize": 0}, "features.batch_size": 8}
    found = {dtype: bt_jax.embed(images, encoder, dtype=dtype, **changes) for dtype in ("float32", "bfloat16")}
    assert sizes == [8, 8, 8] * 2
    normalised = ((images / 255 - encoder.mean) / encoder.std).astype(jnp.bfloat16)
    expected = encoder.module.clone(dtype=jnp.bfloat16).apply(encoder.variables, normalised, train=False)
    np.testing.assert_allclose(found["bfloat16"], expected.astype(np.float32), rtol=2e-2, atol=2e-2)
    np.testing.assert_array_equal(found["bfloat16"], found["bfloat16"].astype(jnp.bfloat16).astype(np.float32))
    assert not np.array_equal(found["float32"], found["bfloat16"])


def test_embed_keeps_its_files_in_a_workdir(judged, folder, tmp_path):
    """And does nothing the second time."""
    place, _ = folder
    small = {"features": {"batch_size": 8}, "data": {"views": "host"}}
    first = bt_jax.embed(place, judged[0], workdir=tmp_path / "out", **small)
    written = (tmp_path / "out" / "embeddings.npz").stat().st_mtime_ns
    again = bt_jax.embed(place, judged[0], workdir=tmp_path / "out", **small)
    np.testing.assert_array_equal(first.features, again.features)
    assert (tmp_path / "out" / "embeddings.npz").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.zeros((2, 16, 16, 3), np.float32), r"images is float32; it must be uint8"),
        (np.zeros((16, 16, 3), np.uint8), r"images is \(16, 16, 3\); it must be \(N, H, W, 3\)"),
        ([np.zeros((16, 16), np.uint8)], r"image 0 is \(16, 16\); images are a folder's name, an array \(N, H, W, 3\)"),
        ([IMAGE, np.zeros((16, 16, 3), np.float32)], r"image 1: images is float32; it must be uint8"),
        (["a.png", "b.png"], "image 0 is str; images are a folder's name"),
        (Image.new("RGB", (16, 16)), "images is a single image; images are a folder's name, an array"),
        (None, "images is NoneType; images are"),
        ([IMAGE, Image.new("F", (16, 16))], "image 1 cannot be used: its pixels are of mode F, 32 bits"),
        ("nowhere", "nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_embedded(judged, tmp_path, monkeypatch, images, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(bt_jax.UserError, match=sentence):
        bt_jax.embed(images, judged[0], features={"batch_size": 8})


def test_images_of_pillow_are_those_of_their_files(tmp_path):
    """Of any mode and depth, for photographs and for one channel; turned if that is asked for."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 2**16, (12, 9), np.uint16))
    turned = rgb.copy()
    turned.getexif()[274] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    images = {
        "rgb": rgb,
        "deep": deep,
        "palette": rgb.quantize(8),
        "grey": rgb.convert("L"),
        "alpha": rgb.convert("RGBA"),
    }
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    for pixels, names in ((Pixels(), [*images, "turned"]), (Pixels(1), ["rgb", "palette", "grey", "alpha"])):
        for name in names:
            path, exif = tmp_path / f"{name}.png", name == "turned"
            with Image.open(path) as image:
                found = levels_of_image(image, pixels, exif_orientation=exif)
            expected = decode(path.read_bytes(), pixels, exif_orientation=exif).numpy()
            np.testing.assert_array_equal(found, expected, err_msg=f"{name} {pixels}")
    (tmp_path / "cut.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:-60])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(ValueError, match="truncated"):
        levels_of_image(image, Pixels())


def test_an_encoder_that_is_none(judged):
    with pytest.raises(bt_jax.UserError, match="the path of an encoder is NoneType; it must be the workdir of a run"):
        bt_jax.embed(np.zeros((2, 16, 16, 3), np.uint8), None)


def test_features_that_are_not_finite(judged):
    encoder = bt_jax.load_encoder(judged[0])
    encoder.features_of_levels = lambda levels, **_: np.where(
        np.arange(len(levels))[:, None] == 3, np.nan, np.zeros((len(levels), 8))
    )
    with pytest.raises(
        bt_jax.UserError, match="the features of image 3 are not finite; check the weights of step 7 of"
    ):
        bt_jax.embed(np.zeros((5, 16, 16, 3), np.uint8), encoder)


def test_embed_takes_its_encoder_as_an_argument(judged):
    with pytest.raises(bt_jax.UserError, match="init_from is 'other', but the encoder is given as an argument; leave"):
        bt_jax.embed(np.zeros((2, 16, 16, 3), np.uint8), judged[0], init_from="other")


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_resize_that_is_smaller_than_the_image(judged, folder, in_memory):
    place, images = folder
    with pytest.raises(
        bt_jax.UserError, match="data.eval_resize is 100, but must be 0 or at least 224, from which it is scaled"
    ):
        bt_jax.embed(images if in_memory else place, judged[0], data={"eval_resize": 100})


def test_a_damaged_file_of_embeddings_is_made_again(judged, folder, tmp_path):
    place, _ = folder
    first = bt_jax.embed(place, judged[0], workdir=tmp_path / "out", features={"batch_size": 8})
    path = tmp_path / "out" / "embeddings.npz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = bt_jax.embed(place, judged[0], workdir=tmp_path / "out", features={"batch_size": 8})
    np.testing.assert_array_equal(first.features, again.features)


def test_importing_the_package_imports_neither_flax_nor_tensorflow():
    """They come with the first function that needs them; `dir` shows all."""
    code = (
        "import sys, bt_jax; print(sorted({'flax', 'orbax', 'tensorflow', 'absl.flags', 'ml_collections'} & set(sys.modules)))\n"
        "print('pretrain' in dir(bt_jax), set(bt_jax.__all__) <= set(dir(bt_jax)))\n"
        "print(bt_jax.optim.lars.__name__, bt_jax.models.make_encoder.__name__, bt_jax.export.from_torch.__name__, 'optim' in dir(bt_jax))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["[]", "True True", "lars make_encoder from_torch True"]
