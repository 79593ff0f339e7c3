"""bt_jax/models/vit.py against timm's network (experiments/parity/timm_vit.py), and what it takes and returns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from recipes import AS_IN_RUNS, one_program, recipe, relative, run_of

from bt_jax import UserError, load_encoder
from bt_jax import config as config_lib
from bt_jax.evaluation.judged import judged_encoder
from bt_jax.export import from_torch, to_torch
from bt_jax.export.encoder import read_weights
from bt_jax.export.folder import write_folder
from bt_jax.export.weights import encoder_shapes
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.models import ViT, make_encoder
from bt_jax.models.encoders import described
from bt_jax.models.vit import VITS

SMALL = ViT(width=48, depth=2, heads=3, patch_size=8)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (4, 2, 16, 16, 3))


@pytest.fixture(scope="module")
def variables(images):
    return jax.jit(lambda x: SMALL.init(jax.random.key(1), x, train=False))(images)


def test_golden_features(golden, monkeypatch):
    """timm's features with the same weights, to 1e-4; names and shapes are timm's."""
    monkeypatch.setitem(VITS, "vit_tiny", (48, 2, 3))
    results = golden("vit")
    shapes = {name: tuple(map(int, shape.split(","))) for name, shape in map(str.split, results["names"].tolist())}
    state = {name: recipe(name, shape, int(results["salt"])) for name, shape in shapes.items()}
    variables = from_torch(state, "vit_tiny")
    features = one_program(SMALL.apply, "train")(variables, results["images_nhwc"], train=False)
    assert features.shape == (3, 48) and relative(features, results["features"]) < 1e-4
    again = to_torch(variables, "vit_tiny")
    assert {name: value.shape for name, value in again.items()} == shapes
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_sizes_are_those_of_the_names():
    """timm's parameters of vit_tiny, small and base with patches of 16 for 224 pixels, without their classifiers."""
    for arch, count in (("vit_tiny", 5_524_416), ("vit_small", 21_665_664), ("vit_base", 85_798_656)):
        encoder = make_encoder(arch)
        shapes = encoder_shapes(encoder, 224)
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count and shapes.keys() == {"params"}
        assert encoder.num_features == VITS[arch][0] and VITS[arch][0] == 64 * VITS[arch][2]
    assert described(make_encoder("vit_small", patch_size=8), "vit_small") == "vit_small with patches of 8×8 pixels"


def test_views_come_out_as_they_went_in(variables, images):
    """Views do not mix, training changes nothing, and bfloat16 computes with float32 parameters."""
    apply = jax.jit(lambda x, train=False: SMALL.apply(variables, x, train=train), static_argnames="train")
    together = apply(images)
    np.testing.assert_allclose(together[:, 1], apply(images[:, 1]), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(apply(images, train=True), together)
    half = SMALL.clone(dtype=jnp.bfloat16)
    features = one_program(half.apply, "train")(variables, images, train=False)
    assert features.dtype == jnp.bfloat16 and relative(features, together) < 0.05
    assert {leaf.dtype for leaf in jax.tree.leaves(encoder_shapes(half, 16))} == {jnp.dtype("float32")}


def test_new_weights(variables):
    """As timm draws them."""
    params = variables["params"]
    assert not params["blocks_1"]["mlp"]["fc1"]["bias"].any() and params["norm"]["scale"].all()
    assert 0.019 < params["blocks_0"]["attn"]["qkv"]["kernel"].std() < 0.021
    assert 0 < jnp.abs(params["cls_token"]).max() < 1e-5
    bound = (3 * 8 * 8) ** -0.5
    assert 0.9 * bound < jnp.abs(params["patch_embed"]["proj"]["kernel"]).max() <= bound


def test_remat_computes_the_same(variables, images):
    """Loss and gradients to 1e-5 of those without."""
    results = []
    for remat in (False, True):
        encoder = SMALL.clone(remat=remat)
        assert encoder == SMALL  # the same network, for exports and evaluations

        def loss(params, encoder=encoder):
            return jnp.sum(jnp.sin(encoder.apply({"params": params}, images, train=True)))

        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(variables["params"]))) == remat
        results.append(jax.jit(jax.value_and_grad(loss), compiler_options=AS_IN_RUNS)(variables["params"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)


def test_a_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    """With AdamW, stopped after the first epoch; `load_encoder` takes the run, its export, and timm's tensors in that."""
    monkeypatch.setitem(VITS, "vit_tiny", (12, 1, 3))
    model = {"arch": "vit_tiny", "patch_size": 4}
    states = run_of("barlow_twins", tmp_path, monkeypatch, model=model, optimizer="adamw", projector=(16, 8))
    chex.assert_trees_all_equal(*states)
    run = str(tmp_path / "run")
    write_folder(read_weights(run), epath.Path(tmp_path / "export"), platforms=("cpu",))
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    encoders = [
        load_encoder(place) for place in (run, tmp_path / "export", tmp_path / "export" / "encoder.safetensors")
    ]
    features = [encoder.features(images) for encoder in encoders]
    assert (
        features[0].shape == (5, 12)
        and [(e.arch, e.input_size, e.module.patch_size) for e in encoders] == [("vit_tiny", 8, 4)] * 3
    )
    np.testing.assert_array_equal(features[1], features[0])
    np.testing.assert_array_equal(features[2], features[0])
    program = jax.export.deserialize(bytearray((tmp_path / "export" / "encoder.jax_export").read_bytes()))
    np.testing.assert_allclose(program.call(images), features[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="images are 16×16, but this ViT's position embedding is for 8×8"):
        encoders[0].features(np.zeros((1, 16, 16, 3), np.uint8))
    knn = config_lib.based_on(config_lib.from_json((tmp_path / "run" / "config.json").read_text()), "knn")
    knn.init_from = run
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    assert judged_encoder(knn, mesh).facts["features"] == 12
    knn.data.image_size = 12
    with pytest.raises(
        UserError, match="data.image_size is 12, but init_from, .* embedding is for 8×8; set data.image_size to 8"
    ):
        judged_encoder(knn, mesh)


def test_views_of_another_size():
    """Small crops are refused before the run starts."""
    config = config_lib.default(method="swav", optimizer="adamw")
    config.model.update(arch="vit_tiny", patch_size=8)
    config.data.image_size, config.swav.small_size = 48, 24
    facts = Facts(num_examples=64, num_classes=2, batch_size=16, epochs=50)
    with pytest.raises(
        UserError, match="model.arch is 'vit_tiny', which cannot take the run's images: images are 24×24, but"
    ):
        make_method(config, facts, None)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"arch": "resnet18", "patch_size": 8},
            "model.patch_size is 8, but is of ViTs only, and model.arch is 'resnet18'",
        ),
        ({"width": 32}, "model.width is 32, but is of ResNets only, and model.arch is 'vit_tiny'; leave it at 64"),
        ({"small_images": True}, "model.small_images is True, but is of ResNets only"),
        ({"patch_size": 10}, "data.image_size is 48, but must be a multiple of model.patch_size, which is 10, for"),
    ],
)
def test_fields_of_the_other_kind(fields, sentence):
    """Are refused, not ignored."""
    config = config_lib.default(optimizer="adamw")
    config.data.data_dir, config.data.image_size, config.data.eval_resize = "images", 48, 0
    config.model.update({"arch": "vit_tiny", "patch_size": 8})
    config_lib.check(config)
    config.model.update(fields)
    with pytest.raises(UserError, match=sentence):
        config_lib.check(config)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 20, 20, 3), r"images is \(1, 20, 20, 3\), but a ViT with patches of 8×8 .* a multiple of 8"),
        ((1, 8, 32, 3), r"images is \(1, 8, 32, 3\), but .* takes square images"),
        ((1, 24, 24, 3), "images are 24×24, but this ViT's position embedding is for 16×16, .* resize them to 16×16"),
    ],
)
def test_images_of_another_size(variables, shape, sentence):
    """One sentence; a file's position embedding is not interpolated."""
    with pytest.raises(UserError, match=sentence):
        SMALL.apply(variables, jnp.zeros(shape), train=False)
