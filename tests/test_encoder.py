"""bt_jax/export/encoder.py: an encoder taken from a run, without TensorFlow and without training code."""

import json
import pathlib
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from recipes import one_program, recipe, spec_of

import bt_jax
from bt_jax import config as config_lib
from bt_jax.data.views.spec import ViewSpec
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.engine.state import init_state
from bt_jax.export.encoder import host_images, read_weights
from bt_jax.export.folder import write_folder
from bt_jax.export.safetensors_files import write_safetensors
from bt_jax.export.torch_files import read_torch
from bt_jax.export.torch_weights import to_torch
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.methods.supervised import Supervised
from bt_jax.models import LinearClassifier, make_encoder
from bt_jax.models.inputs import Inputs, normalize
from bt_jax.optim import make_optimizer
from bt_jax.pixels import Pixels
from bt_jax.runtime.workdir import write_config

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with checkpoints of steps 3 and 7 of a narrow ResNet-18, and the state at step 7."""
    workdir = epath.Path(tmp_path_factory.mktemp("run"))
    config = config_lib.default()
    config.data.update(source="photographs", image_size=24)
    config.model.update(arch="resnet18", width=4, small_images=True)
    config.barlow_twins.projector = (16, 16)
    write_config(config, workdir)
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    facts = Facts(8, 0, 8, 20)
    method, optimizer = make_method(config, facts, mesh), make_optimizer(config.optimizer, facts)
    state = init_state(method, optimizer, 0, spec_of(method, 8), mesh)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(3, state)
    state = state.replace(params=jax.tree.map(lambda p: p * 1.1, state.params))
    checkpoints.save(7, state)
    checkpoints.close()
    return workdir, method, state


def test_features_are_those_of_the_run(run):
    """By running statistics; from uint8 and from normalised floats, for any number of images and any block."""
    workdir, method, state = run
    encoder = bt_jax.load_encoder(str(workdir))
    assert (encoder.arch, encoder.width, encoder.input_size) == ("resnet18", 32, 24)
    assert "step 7" in repr(encoder) and len(repr(encoder).splitlines()) == 1
    images = np.random.default_rng(0).integers(0, 256, (13, 24, 24, 3), np.uint8)
    floats = normalize(images)
    expected = one_program(lambda v, x: method.encoder.apply(v, x, train=False))(state.encoder_variables(), floats)
    for given in (images, floats, np.asarray(floats)):
        np.testing.assert_allclose(encoder.features(given, block=8), expected, rtol=1e-4, atol=1e-5)
    assert encoder.features(images[:0]).shape == (0, 32)
    np.testing.assert_allclose(encoder.features(images[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    assert encoder.features(np.zeros((2, 40, 31, 3), np.uint8)).shape == (2, 32)


def test_a_path_may_be_relative(run, monkeypatch):
    """As the README has it."""
    workdir, *_ = run
    monkeypatch.chdir(workdir.parent)
    assert bt_jax.load_encoder(workdir.name).step == 7


def test_weights_are_known_by_step_and_hash(run):
    """Read again they have the same hash; with one bit changed they have another."""
    workdir, _, _ = run
    encoder, again = (bt_jax.load_encoder(str(workdir)) for _ in range(2))
    assert encoder.step == 7
    assert len(encoder.sha256) == 64 and encoder.sha256 == again.sha256
    changed = bt_jax.load_encoder(str(workdir))
    kernel = changed.variables["params"]["conv1"]["kernel"]
    changed.variables["params"]["conv1"]["kernel"] = kernel.at[0, 0, 0, 0].set(np.nextafter(kernel[0, 0, 0, 0], 9))
    assert changed.sha256 != encoder.sha256


def test_bad_images(run):
    encoder = bt_jax.load_encoder(str(run[0]))
    with pytest.raises(bt_jax.UserError, match=r"images is \(24, 24, 3\); it must be \(N, H, W, 3\)"):
        encoder.features(np.zeros((24, 24, 3), np.uint8))
    with pytest.raises(bt_jax.UserError, match="images is int64"):
        encoder.features(np.zeros((1, 24, 24, 3), np.int64))


class Tensor:
    """What PyTorch's tensors offer to code that does not know them."""

    def __init__(self, array, numpy=None):
        self._array, self.shape, self.dtype, self.ndim = array, array.shape, f"torch.{array.dtype}", array.ndim
        self._numpy = numpy

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        if self._numpy:
            raise self._numpy
        return self._array


@pytest.mark.parametrize("block", [-1, 0, 3.5, True, None, "8"])
def test_a_block_that_is_no_number_of_images(run, block):
    encoder = bt_jax.load_encoder(str(run[0]))
    with pytest.raises(bt_jax.UserError, match=f"block is {block!r}; it must be a positive integer"):
        encoder.features(np.zeros((5, 24, 24, 3), np.uint8), block=block)
    assert encoder.features(np.zeros((5, 24, 24, 3), np.uint8), block=np.int64(2)).shape == (5, 32)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (None, r"images is None; it must be an array \(N, H, W, 3\)"),
        ([[1]], "images is list; it must be an array"),
        (np.zeros((2, 0, 24, 3), np.uint8), r"images is \(2, 0, 24, 3\), without pixels"),
        (np.zeros((2, 3, 24, 24), np.uint8), r"with channels second; they must be last: use images.transpose\(0, 2, 3, 1\)"),
        (Tensor(np.zeros((2, 3, 24, 24), np.uint8)), "with channels second; .* permute in PyTorch"),
        (np.zeros((2, 24, 24, 3), object), "images is object; it must be uint8"),
        (
            Tensor(np.zeros((2, 24, 24, 3)), TypeError("Got unsupported ScalarType BFloat16")),
            r"Tensor that cannot be converted to NumPy \(Got unsupported ScalarType BFloat16\); pass uint8 or float32",
        ),
    ],
)  # fmt: skip
def test_what_is_no_images(run, images, sentence):
    with pytest.raises(bt_jax.UserError, match=sentence):
        bt_jax.load_encoder(str(run[0])).features(images)


def test_images_of_other_kinds(run):
    """Byte orders, precisions and libraries: the same features."""
    encoder = bt_jax.load_encoder(str(run[0]))
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    floats = np.asarray(normalize(images))
    expected = encoder.features(floats)
    for given in (
        floats.astype(">f4"),
        floats.astype(">f8"),
        floats.astype(np.longdouble),
        Tensor(floats),
        Tensor(images),
    ):
        np.testing.assert_allclose(encoder.features(given), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder.features(jnp.asarray(floats, jnp.bfloat16)), expected, rtol=5e-2, atol=5e-2)
    assert host_images(np.ones((1, 4, 4, 1), jnp.bfloat16), Pixels(1, (0.0, 9.0))).dtype == np.float32


def test_floats_that_are_not_normalised(run):
    """Are refused, unless they are declared normalised; floats that may be normalised are not."""
    encoder = bt_jax.load_encoder(str(run[0]))
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    for given, sentence in (
        (images / 255, r"float64 from 0 to 1, which looks like pixels of 0 to 1 .* \(x - mean\) / std"),
        (np.float32(images / 600), "pixels of 0 to 1 that are not normalised"),
        (jnp.float32(images), r"float32 from 0 to 255, .* 0 to 255 that .* \(x / 255 - mean\) / std"),
        (images.astype(np.float16), "float16 from 0 to 255"),
    ):
        with pytest.raises(bt_jax.UserError, match=sentence):
            encoder.features(given)
        assert encoder.features(given, normalised=True).shape == (3, 32)
    for given in (np.maximum(images, 128), np.zeros_like(images), np.full_like(images, 255)):  # bright, dark, white
        floats = np.asarray(normalize(given))
        np.testing.assert_allclose(encoder.features(floats), encoder.features(given), rtol=1e-4, atol=1e-5)
    assert encoder.features(np.zeros((2, 24, 24, 3), np.float32)).shape == (2, 32), "of the mean's colour"
    floats = np.array(normalize(images))
    floats[1, 2, 3, 0] = np.nan
    with pytest.raises(bt_jax.UserError, match="images has NaN or infinite values, first in image 1"):
        encoder.features(floats)


def test_a_damaged_checkpoint_is_stepped_over(run, tmp_path):
    """With a warning, and nothing in the workdir is changed."""

    workdir = pathlib.Path(shutil.copytree(run[0], tmp_path / "copy"))
    for step, then in (
        (7, pytest.warns(UserWarning, match="checkpoint 7 in .* cannot be read")),
        (3, pytest.raises(bt_jax.UserError, match="none of the checkpoints")),
    ):
        for file in (workdir / "checkpoints" / str(step)).rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
        with then:
            assert "step 3" in repr(bt_jax.load_encoder(workdir))
        assert sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == ["3", "7"]


def test_no_run(tmp_path):
    with pytest.raises(bt_jax.UserError, match="nowhere does not exist; name the workdir of a run"):
        bt_jax.load_encoder(tmp_path / "nowhere")
    with pytest.raises(bt_jax.UserError, match="is not the workdir of a run .it has no config.json"):
        bt_jax.load_encoder(tmp_path)
    write_config(config_lib.default(), epath.Path(tmp_path))
    with pytest.raises(bt_jax.UserError, match="has no checkpoint yet"):
        bt_jax.load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "config.json").write_bytes(b'{"task": "pretrain\xff"}')
    with pytest.raises(bt_jax.UserError, match="config.json is not the config of a run .it is not UTF-8"):
        bt_jax.load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(bt_jax.UserError, match="is not the config of a run"):
        bt_jax.load_encoder(tmp_path)
    evaluation = config_lib.default("finetune")
    evaluation.init_from = "runs/some"
    write_config(evaluation, epath.Path(tmp_path / "tuned"))
    with pytest.raises(bt_jax.UserError, match=r"of an evaluation \(finetune\), .* that it evaluated, runs/some"):
        bt_jax.load_encoder(tmp_path / "tuned")


def test_a_config_that_was_changed(tmp_path):
    """config.json has no hash, but the checkpoint knows the config too: a digit of data.mean is noticed."""
    config = small_config()
    encoder = make_encoder("resnet18", width=4, small_images=True)
    method = Supervised(encoder, LinearClassifier(3), Inputs(16), ViewSpec())
    saved(epath.Path(tmp_path), method, config, run={"config": json.loads(config_lib.to_json(config))})
    assert bt_jax.load_encoder(tmp_path).mean == (0.485, 0.456, 0.406)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("0.485", "0.481"))
    with pytest.raises(
        bt_jax.UserError, match=r"config.json has data.mean=\(0.481, .* of step 5 was trained with \(0.485"
    ):
        bt_jax.load_encoder(tmp_path)
    path.unlink()
    assert bt_jax.load_encoder(tmp_path).mean == (0.485, 0.456, 0.406)


def test_without_tensorflow(run, tmp_path):
    """In a process where TensorFlow and PyTorch cannot be imported, the run, its export, the safetensors and the portable
    program give the same features.
    """
    weights = read_weights(run[0])
    write_folder(weights, epath.Path(tmp_path / "export"))
    program = f"""
import sys
sys.modules["tensorflow"] = sys.modules["torch"] = None
import jax, numpy as np
import bt_jax
images = np.random.default_rng(0).integers(0, 256, (7, 24, 24, 3), np.uint8)
places = ({str(run[0])!r}, {str(tmp_path / "export")!r}, {str(tmp_path / "export" / "encoder.safetensors")!r})
encoders = [bt_jax.load_encoder(place) for place in places]
expected = encoders[0].features(images)
for encoder in encoders[1:]:
    np.testing.assert_allclose(encoder.features(images), expected, rtol=1e-5, atol=1e-5)
    assert encoder.sha256 == encoders[0].sha256 and encoder.step == 7
portable = jax.export.deserialize(bytearray(open({str(tmp_path / "export" / "encoder.jax_export")!r}, "rb").read()))
for count in (1, 7):
    np.testing.assert_allclose(portable.call(images[:count]), expected[:count], rtol=1e-5, atol=1e-5)
print(expected.shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(7, 32)"


def saved(workdir, method, config, step=5, run=None):
    """A workdir with a checkpoint of a method's first state."""
    write_config(config, workdir)
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = init_state(method, optimizer, 0, spec_of(method, 8), mesh)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(step, state, run=run)
    checkpoints.close()
    return state


def small_config(**model):
    config = config_lib.default()
    config.data.update(source="photographs", image_size=16)
    config.model.update(arch="resnet18", width=4, small_images=True)
    config.model.update(**model)
    return config


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_heads_of_a_method_that_nobody_knows(tmp_path, task):
    """What stands on the encoder is read as it was saved; the method need not be there to be imported. Likewise of an
    evaluation that trained an encoder.
    """
    config = small_config()
    config.task, config.method = task, "a_package.that_is_gone:Method"
    encoder = make_encoder("resnet18", width=4, small_images=True)
    method = Supervised(encoder, LinearClassifier(3), Inputs(16), ViewSpec())
    state = saved(epath.Path(tmp_path), method, config)
    loaded = bt_jax.load_encoder(tmp_path)
    assert loaded.heads.keys() == {"classifier"} and loaded.projector_variables is None
    chex.assert_trees_all_equal(loaded.classifier_variables, {"params": state.params["classifier"]})
    chex.assert_trees_all_equal(loaded.variables, state.encoder_variables())


def test_an_encoder_of_ones_own(tmp_path):
    """By its import path, without batch norm; an error if its class is gone or is another."""
    config = small_config(arch="test_encoders:Patches")
    encoder = make_encoder("test_encoders:Patches", width=4)
    state = saved(
        epath.Path(tmp_path / "run"), Supervised(encoder, LinearClassifier(3), Inputs(16), ViewSpec()), config
    )
    loaded = bt_jax.load_encoder(tmp_path / "run")
    assert (loaded.arch, loaded.width) == ("test_encoders:Patches", 12)
    chex.assert_trees_all_equal(loaded.variables, {"params": state.params["encoder"]})
    assert loaded.features(np.zeros((3, 16, 16, 3), np.uint8)).shape == (3, 12)

    def again(**model):
        (tmp_path / "run" / "config.json").write_text(config_lib.to_json(small_config(**model)))
        return bt_jax.load_encoder(tmp_path / "run")

    with pytest.raises(bt_jax.UserError, match="model.arch is 'gone:Net', but there is no module 'gone'"):
        again(arch="gone:Net")
    with pytest.raises(
        bt_jax.UserError, match=r"has another encoder than .* describes \(.* is missing and must be .* more"
    ):
        again(arch="resnet18")


@pytest.mark.parametrize(
    ("group", "field", "odd"),
    [
        ("model", "width", 10**9), ("model", "width", True), ("model", "width", -1), ("model", "small_images", 3),
        ("model", "stem_stride", 0), ("data", "image_size", 10**9), ("data", "image_size", float("nan")),
        ("data", "mean", [0.5, 0.5]), ("data", "mean", ["x", 0, 0]), ("data", "std", [1, 1, 0]), ("data", "std", [1, 1, -1]),
    ],
)  # fmt: skip
def test_numbers_in_a_config_that_no_encoder_has(run, tmp_path, group, field, odd):
    """Are refused before anything is made from them, also where no checkpoint tells otherwise."""
    config = json.loads((run[0] / "config.json").read_text())
    config[group][field] = odd
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = {"image_size": "input_size"}.get(field, field)
    with pytest.raises(
        bt_jax.UserError, match=f"config.json is not the config of a run .its field {name} is .*, but must"
    ):
        bt_jax.load_encoder(tmp_path)


def test_the_projector_comes_along(run):
    """And a single checkpoint may be named, with or without the run around it."""
    workdir, _, state = run
    encoder = bt_jax.load_encoder(str(workdir))
    jax.tree.map(np.testing.assert_array_equal, encoder.projector_variables["params"], state.params["projector"])
    assert encoder.classifier_variables is None
    assert bt_jax.load_encoder(workdir / "checkpoints" / "3").step == 3
    with pytest.raises(bt_jax.UserError, match="checkpoints/4 is neither the workdir of a run"):
        bt_jax.load_encoder(workdir / "checkpoints" / "4")


def test_paths_that_are_no_weights(run, tmp_path):
    """A missing step, the folder of checkpoints, and addresses."""
    folder = run[0] / "checkpoints"
    for name in ("99", "latest", "007"):
        with pytest.raises(
            bt_jax.UserError, match=f"checkpoints/{name} is neither .*; .*checkpoints has those of steps 3, 7"
        ):
            bt_jax.load_encoder(folder / name)
    with pytest.raises(bt_jax.UserError, match=f"checkpoints is not .*; name {run[0]}, or a checkpoint, {folder}/7"):
        bt_jax.load_encoder(folder)
    for path, sentence in (
        (f"file://{run[0]}", f"is a URL; use the path itself, {run[0]}."),
        (
            "https://example.org/resnet50.pth",
            "weights are not downloaded from the web; save the file and use its path",
        ),
        (
            "ssh://host/x",
            "init_from, ssh://host/x, is neither a local path nor one that begins with gs://",
        ),
    ):
        with pytest.raises(bt_jax.UserError, match=sentence):
            bt_jax.load_encoder(path)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_of_weights_that_are_not_finite(tmp_path, ending):
    tensors = {name: np.abs(value) for name, value in read_torch(epath.Path(GOLDEN / "torch_2_13.pth")).items()}
    path = epath.Path(tmp_path / f"x.{ending}")
    for value, sentence in ((np.nan, "bn1/var is not finite"), (-1, "bn1/var, a variance, is -1")):
        write_safetensors(path, tensors | {"bn1.running_var": np.full(2, value, np.float32)}, {})
        with pytest.raises(bt_jax.UserError, match=f"x.{ending} are damaged, or their training diverged: .*{sentence}"):
            bt_jax.load_encoder(path)


def test_what_a_file_does_not_say_is_stated(run, tmp_path):
    """The normalisation, the size, and the stem's stride and padding, of weights of other programs only."""
    module = make_encoder("resnet18", width=4, small_images=True)
    variables = jax.jit(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))()
    path = tmp_path / "x.safetensors"
    write_safetensors(epath.Path(path), to_torch(jax.device_get(variables), "resnet18"), {})
    stated = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": 24, "stem_stride": 2, "stem_padding": 2}
    encoder = bt_jax.load_encoder(path, **stated)
    assert (encoder.mean, encoder.std, encoder.input_size) == ((0.5,) * 3, (0.25,) * 3, 24)
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    own = module.clone(stem_stride=2, stem_padding=2)
    normalised = (images / np.float32(255) - 0.5) / 0.25
    expected = one_program(lambda v, x: own.apply(v, x, train=False))(variables, normalised)
    np.testing.assert_allclose(encoder.features(images), expected, rtol=1e-4, atol=1e-4)
    assert bt_jax.load_encoder(path).mean == (0.485, 0.456, 0.406)
    for given, arguments, sentence in (
        (
            path,
            {"means": [0.5] * 3},
            "there is no argument 'means'; what can be stated is mean, std, input_size, stem_stride, stem_p",
        ),
        (path, {"mean": [0.5]}, r"mean is \[0.5\], but must be three numbers"),
        (path, {"input_size": "24"}, "input_size is '24', but must be an integer from 1"),
        (run[0], {"mean": [0.5] * 3}, "says itself what its mean is; leave out the argument"),
        (None, {}, "the path of an encoder is NoneType; it must be"),
    ):
        with pytest.raises(bt_jax.UserError, match=sentence):
            bt_jax.load_encoder(given, **arguments)


def test_official_checkpoint():
    """The official program's own file: encoder and projector, by name and shape; the features are finite and the same."""
    encoder = bt_jax.load_encoder(GOLDEN / "torch_1_13_checkpoint.pth")
    assert (encoder.arch, encoder.width, encoder.input_size, encoder.step) == ("resnet18", 16, 224, None)
    assert encoder.projector_variables["params"]["linear2"]["kernel"].shape == (6, 4)
    kernel = recipe("module.backbone.layer2.0.downsample.0.weight", (4, 2, 1, 1), 0)
    found = encoder.variables["params"]["layer2_0"]["downsample_conv"]["kernel"]
    np.testing.assert_array_equal(found, kernel.transpose(2, 3, 1, 0))
    assert "torch_1_13_checkpoint.pth" in repr(encoder)
    assert np.isfinite(encoder.features(np.full((1, 40, 40, 3), 99, np.uint8))).all()


def test_no_such_file(tmp_path):
    for name in ("nothing.pth", "nothing"):
        with pytest.raises(
            bt_jax.UserError, match=f"{name} does not exist; .* an export folder, or a .pth or .safetensors file"
        ):
            bt_jax.load_encoder(tmp_path / name)
    with pytest.raises(bt_jax.UserError, match="has no config.json., an export folder, or a .pth or .safetensors file"):
        bt_jax.load_encoder(tmp_path)


def test_dtype_of_features(run):
    assert bt_jax.load_encoder(run[0]).features(np.zeros((1, 24, 24, 3), np.uint8)).dtype == jnp.float32
