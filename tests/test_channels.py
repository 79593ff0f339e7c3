"""Runs on images that are not photographs, from their statistics to an encoder elsewhere: one channel of 12 bits, and four bands."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from recipes import quick_views

import bt_jax
from bt_jax import config as config_lib
from bt_jax.config.presets import set_views
from bt_jax.data.eval_batches import evaluation_views
from bt_jax.errors import UserError
from bt_jax.export import from_torch, to_torch
from bt_jax.export.encoder import read_weights
from bt_jax.export.folder import write_folder
from bt_jax.export.safetensors_files import read_safetensors
from bt_jax.export.torch_weights import weights_of_state_dict, without_counters
from bt_jax.export.weights import EncoderWeights
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.models import make_encoder, resnet
from bt_jax.pixels import Pixels
from bt_jax.tasks.export import export
from bt_jax.tasks.knn import knn
from bt_jax.tasks.pretrain import pretrain
from bt_jax.tasks.statistics import statistics

KINDS = {"grey": (1, "uint16", 4095), "spectral": (4, "float32", 3.0)}
SIDE = 12


def arrays(preset):
    """Two classes of different brightness, in a range of values that is not 8 bits."""
    channels, kind, top = KINDS[preset]
    labels = np.arange(48) % 2
    noise = np.random.default_rng(0).uniform(0, 0.5, (48, SIDE, SIDE, channels))
    return (top * (noise + 0.4 * labels[:, None, None, None])).astype(kind), labels


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    """(preset, workdir, config) of a finished run, its data declared as the task statistics said."""
    folder, preset = tmp_path_factory.mktemp(request.param), request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, "resnet18", (1,))
        images, labels = arrays(preset)
        np.savez(folder / "set.npz", x_train=images, y_train=labels, x_test=images[:16], y_test=labels[:16])
        config = config_lib.default()
        config.batch_size, config.epochs, config.optimizer.warmup_epochs = 16, 2, 1
        config.data.update(source="arrays", data_dir=str(folder / "set.npz"), image_size=8, eval_resize=0, threads=2)
        config.model.update(arch="resnet18", width=4)
        config.barlow_twins.projector = (8, 8)
        config.mesh.data = 1
        config.monitor.update(every_epochs=1, batch_size=16, k=5, pairs=16)
        config.log.update(every_steps=1, tensorboard=False)
        set_views(config, preset)
        quick_views(config)
        asking = config.copy_and_resolve_references()
        asking.task, asking.data.channels = "statistics", KINDS[preset][0]  # whose means are to be found
        found = statistics(asking, str(folder / "statistics"))
        config.data.update({name: found[name] for name in ("channels", "range", "mean", "std")})
        pretrain(config, str(folder / "run"))
        yield preset, folder / "run", config


def test_a_run_of_its_own_statistics(run):
    """What was found is declared, the network takes as many channels, and the report is drawn."""
    preset, workdir, config = run
    channels, _, top = KINDS[preset]
    images, _ = arrays(preset)
    low, high = config.data.range
    assert config.data.channels == channels and low == 0 and images.max() <= high <= 1.2 * top
    encoder = bt_jax.load_encoder(str(workdir))
    assert encoder.variables["params"]["conv1"]["kernel"].shape == (7, 7, channels, 4)
    assert encoder.pixels.range == (low, high) and f"with {channels} channels" in repr(encoder)
    result = json.loads((workdir / "pretrain.json").read_text())
    assert result["metrics"]["rankme"] > 1 and result["knn_accuracy_after"] > 0.7
    page = (workdir / "report.html").read_text()
    assert "data:image" in page and encoder.pixels.pictured in page


def test_what_reaches_the_network(run):
    """Normalised values of mean 0 and deviation 1 in each channel, of which none is rounded to 8 bits."""
    preset, _, config = run
    images, _ = arrays(preset)
    method = make_method(config, Facts(48, 2, 16, 1), None)
    x = np.asarray(method.inputs.normalize(jax.numpy.asarray(method.inputs.pixels.levels(images))), np.float64)
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=0.01)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=0.01)
    assert len(np.unique(x[..., 0])) > 256


def test_features_of_values_levels_and_files(run, tmp_path):
    """The same by every way: values in memory, of other types too; a folder; already normalised."""
    preset, workdir, config = run
    images, _ = arrays(preset)
    encoder = bt_jax.load_encoder(str(workdir))
    expected = encoder.features(images)
    np.testing.assert_array_equal(encoder.features_of_levels(encoder.pixels.levels(images)), expected)
    np.testing.assert_allclose(encoder.features(images.astype(np.float64)), expected, atol=1e-4)
    normalised = (images / config.data.range[1] - np.array(config.data.mean)) / np.array(config.data.std)
    np.testing.assert_allclose(encoder.features(normalised, normalised=True), expected, rtol=1e-2, atol=2e-3)
    resized = evaluation_views(encoder.pixels.levels(images[:3]), 0, 8, encoder.pixels)
    whole = encoder.features_of_levels(resized)
    np.testing.assert_array_equal(bt_jax.embed(images[:3], encoder, data={"eval_resize": 0}), whole)
    if preset == "grey":
        for i in range(3):
            Image.fromarray(images[i, ..., 0]).save(tmp_path / f"{i}.png")
        found = bt_jax.embed(tmp_path, encoder, data={"eval_resize": 0, "threads": 2}, features={"batch_size": 8})
        np.testing.assert_allclose(found.features, whole, rtol=1e-3, atol=1e-3)
        in_pillow = bt_jax.embed([Image.open(tmp_path / "0.png")], encoder, data={"eval_resize": 0})
        np.testing.assert_allclose(in_pillow, whole[:1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x[..., 0], r"images is \(48, 12, 12\); it must be \(N, H, W, \d\)"),
        (lambda x: x.transpose(0, 3, 1, 2), "images is .* with channels second; they must be last"),
        (
            lambda x: 2.0 * x - 1,
            r"images reaches from -[0-9.]+ to .*, and .* of it lies outside the range of the encoder's images, 0 to",
        ),
        (
            lambda x: np.where(x == x.max(), np.nan, x.astype(float)),
            "images cannot be used: .* values are NaN or infinite",
        ),
    ],
)
def test_images_that_an_encoder_refuses(run, change, expected):
    preset, workdir, _ = run
    with pytest.raises(UserError, match=expected):
        bt_jax.load_encoder(str(workdir)).features(change(arrays(preset)[0]))


def test_an_export_takes_the_values(run, tmp_path):
    """Read again it is the same encoder; the program takes values; the tensors have as many channels."""
    preset, workdir, _ = run
    channels, images = KINDS[preset][0], arrays(preset)[0][:, :8, :8]
    config = config_lib.default("export")
    config.init_from, config.export.platforms = str(workdir), ("cpu",)
    export(config, str(tmp_path / "out"))
    before, encoder = bt_jax.load_encoder(str(workdir)), bt_jax.load_encoder(str(tmp_path / "out"))
    assert encoder.sha256 == before.sha256 and (encoder.pixels, encoder.mean) == (before.pixels, before.mean)
    expected = encoder.features(images)
    program = jax.export.deserialize(bytearray((tmp_path / "out" / "encoder.jax_export").read_bytes()))
    np.testing.assert_allclose(program.call(images.astype(np.float32)), expected, rtol=1e-4, atol=1e-4)
    tensors, _ = read_safetensors(tmp_path / "out" / "encoder.safetensors")
    assert tensors["conv1.weight"].shape == (4, channels, 7, 7)


def test_an_evaluation_takes_the_encoders_channels(run, tmp_path):
    """Nothing need be declared again; what is declared otherwise is refused."""
    preset, workdir, pretraining = run
    config = config_lib.based_on(pretraining, "knn")
    config.init_from, config.features.batch_size, config.knn.k, config.knn.pairs = str(workdir), 16, (5,), 16
    for view in (config.pairs.view_a, config.pairs.view_b):
        view.update(blur=0.0, solarize=0.0)
    config.data.update(channels=3, range=(), mean=(0.5,) * 3, std=(0.5,) * 3)
    result = knn(config, str(tmp_path / "knn"))
    assert result["config"]["data"]["channels"] == KINDS[preset][0]
    config.data.update(channels=2, range=(0.0, 7.0), mean=(0.5,) * 2, std=(0.5,) * 2)
    with pytest.raises(
        UserError, match=r"data.channels is 2 and data.range \(0.0, 7.0\), but init_from, .* is for images with \d and"
    ):
        knn(config, str(tmp_path / "again"))


def test_colours_are_refused_where_they_have_no_meaning():
    config = config_lib.default()
    config.data.update(channels=2, range=(0, 1), mean=(0.5, 0.5), std=(0.2, 0.2))
    with pytest.raises(
        UserError, match=r"'pair' has saturation 0.2 and hue 0.1 and grayscale 0.2, which only .* set them to 0"
    ):
        make_method(config, Facts(100, 0, 10, 1), None).view_groups  # noqa: B018
    set_views(config, "spectral")
    (group,) = make_method(config, Facts(100, 0, 10, 1), None).view_groups
    assert group.shape == (2, 224, 224, 2) and group.draws[0].quarter_turns == 0.75
    with pytest.raises(UserError, match=r"no preset of views 'spektral'.*did you mean 'spectral'"):
        set_views(config, "spektral")


def test_tensors_of_any_channels_come_back():
    """Bit for bit, for a ResNet and a ViT."""
    for arch, shape in {"resnet34": (1, 32, 32, 6), "vit_tiny": (1, 32, 32, 6)}.items():
        module = make_encoder(arch)
        shapes = jax.eval_shape(lambda m=module, s=shape: m.init(jax.random.key(0), jax.numpy.zeros(s), train=False))
        variables = jax.tree.map(lambda leaf: np.random.default_rng(0).random(leaf.shape, np.float32), shapes)
        back = without_counters(from_torch(to_torch(variables, arch), arch))
        jax.tree.map(np.testing.assert_array_equal, back, jax.tree.map(np.asarray, variables))


def test_an_exported_file_alone_knows_its_images(tmp_path):
    """encoder.safetensors of a ResNet-34 for six channels of a range, without its folder."""
    module = make_encoder("resnet34", width=4)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jax.numpy.zeros((1, 32, 32, 6)), train=False))
    variables = jax.tree.map(lambda leaf: np.random.default_rng(0).random(leaf.shape, np.float32), shapes)
    weights = EncoderWeights(
        "resnet34", variables, "here", width=4, mean=(0.5,) * 6, std=(0.2,) * 6, channels=6, range=(-1.0, 7.0)
    )
    write_folder(weights, epath.Path(tmp_path / "out"), platforms=())
    alone = read_weights(str(tmp_path / "out" / "encoder.safetensors"))
    assert alone.pixels == weights.pixels == Pixels(6, (-1.0, 7.0)) and alone.mean == weights.mean
    foreign = weights_of_state_dict(to_torch(variables, "resnet34"), "a file")
    assert foreign.channels == 6 and foreign.mean == (0.0,) * 6 and foreign.std == (1.0,) * 6
