"""bt_jax/methods/barlow_twins.py: the paper's ablations and Mixed Barlow Twins as methods, on one device and on a mesh."""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict
from recipes import relative, small_method, spec_of

from bt_jax import UserError, barlow_twins_loss
from bt_jax import config as config_lib
from bt_jax.engine.state import init_state
from bt_jax.facts import Facts
from bt_jax.losses import Ablation, ablated_barlow_twins_loss, mixed_regulariser
from bt_jax.methods import make_method
from bt_jax.methods.barlow_twins import suited_width
from bt_jax.models import Projector
from bt_jax.models.norm import ViewBatchNorm
from bt_jax.runtime import mesh as mesh_lib

N = 16
BATCH = {"views": {"pair": np.random.default_rng(0).integers(0, 256, (N, 2, 16, 16, 3), np.uint8)}}
KEY = jax.random.key(7)
VARIANTS = {
    "predictor": {"predictor": Projector((48, 32)), "stop_gradient": True, "symmetrized": True},
    "no projector": {"projector": Projector(())},
    "no batch norm": {"projector": Projector((32, 32), batch_norm=False), "ablation": Ablation(normalization="none")},
    "mixed": {"mixed": 4.0},
    "joint statistics": {"joint_statistics": True},
    "cross-entropy": {"ablation": Ablation(loss="cross_entropy", off_diagonals="auto")},
}


class Patches(nn.Module):
    """A linear layer on patches of 4 × 4 pixels, batch norm, ReLU and a mean: all kinds of sums, and compiles in no time."""

    dtype: Any = jnp.float32
    num_features: ClassVar[int] = 24

    @nn.compact
    def __call__(self, images, *, train):
        lead, side = images.shape[:-3], images.shape[-2] // 4
        x = images.reshape(-1, side, 4, side, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, side, side, 48)
        x = nn.Dense(24, use_bias=False, dtype=self.dtype)(x)
        x = nn.relu(ViewBatchNorm(dtype=self.dtype)(x, views=lead[1] if len(lead) > 1 else 1, train=train))
        return x.mean((1, 2)).reshape(*lead, -1)


def variant(mesh=None, dtype=jnp.float32, **fields):
    heads = {n: f.clone(dtype=dtype) for n, f in fields.items() if isinstance(f, Projector)}
    return dataclasses.replace(small_method(mesh, dtype=dtype), encoder=Patches(dtype), **{**fields, **heads})


@functools.cache
def of_one_device(name):
    return loss_and_gradient(VARIANTS[name], mesh_lib.make_mesh(ConfigDict({"data": 1})))


def loss_and_gradient(fields, mesh, dtype=jnp.float32):
    """At the initial parameters: (loss, the gradient by path, the new state)."""
    method = variant(mesh, dtype, **fields)
    state = init_state(method, optax.identity(), 0, spec_of(method, N), mesh)
    program = jax.jit(jax.value_and_grad(lambda p, s, b: method.loss(p, s, {}, b, 0, KEY), has_aux=True))
    (loss, (new, _, metrics)), gradient = program(state.params, state.model_state, mesh_lib.put_batch(mesh, N, BATCH))
    assert set(metrics) == set(method.metrics)
    return float(loss), jax.device_get(gradient), jax.device_get(new)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("model", [1, 2])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_device_count_is_not_a_hyper_parameter(name, model):
    """Loss, gradients and statistics on 8 devices and on 4 × 2: those of one to 1e-5."""
    mesh = mesh_lib.make_mesh(ConfigDict({"data": -1, "model": model}))
    for found, expected in zip(loss_and_gradient(VARIANTS[name], mesh), of_one_device(name), strict=True):
        assert relative(flat(found), flat(expected)) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_is_near_float32(name):
    mesh = mesh_lib.make_mesh(ConfigDict({"data": 1}))
    loss, gradient, _ = loss_and_gradient(VARIANTS[name], mesh, jnp.bfloat16)
    assert loss == pytest.approx(of_one_device(name)[0], rel=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype("float32")}


def loss_of(method, params, state, batch=BATCH, key=KEY):
    """(loss, metrics), compiled."""
    loss, (_, _, metrics) = jax.jit(lambda p, s, b: method.loss(p, s, {}, b, 0, key))(params, state, batch)
    return float(loss), metrics


def parts_of(method, views=None):
    """The embeddings of each view by encoder and projector put together by hand, and the initial state."""
    params, state, _ = jax.jit(lambda: method.init(jax.random.key(0), spec_of(method, N)))()
    views = method.inputs.normalize(BATCH["views"]["pair"]) if views is None else views
    return jax.jit(functools.partial(embeddings, method))(params, state, views), params, state


def embeddings(method, params, state, x):
    for name, module in (("encoder", method.encoder), ("projector", method.projector)):
        variables = {"params": params.get(name, {}), "batch_stats": state["batch_stats"].get(name, {})}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return x


def predicted(method, z, params, state):
    variables = {"params": params["predictor"], "batch_stats": state["batch_stats"]["predictor"]}
    return method.predictor.apply(variables, z, train=True, mutable=["batch_stats"])[0]


def test_predictor_and_stop_gradient():
    """One-sided and symmetrised, from the parts; the target has no gradient."""
    fields = {"predictor": Projector((48, 32)), "stop_gradient": True}
    one, both = variant(**fields), variant(**fields, symmetrized=True)
    z, params, state = parts_of(one)

    def by_hand(params, a, target):
        z = embeddings(one, params, state, one.inputs.normalize(BATCH["views"]["pair"]))
        return barlow_twins_loss(predicted(one, z[:, a], params, state), target)[0]

    by_hand = jax.jit(jax.value_and_grad(by_hand), static_argnums=1)
    (there, gradient), (back, other) = by_hand(params, 0, z[:, 1]), by_hand(params, 1, z[:, 0])
    assert loss_of(one, params, state)[0] == pytest.approx(float(there), rel=1e-5)
    assert loss_of(both, params, state)[0] == pytest.approx(float(there + back) / 2, rel=1e-5)
    swapped = {"views": {"pair": BATCH["views"]["pair"][:, ::-1]}}
    assert loss_of(both, params, state, swapped)[0] == pytest.approx(float(there + back) / 2, rel=1e-5)
    for method, expected in ((one, flat(gradient)), (both, (flat(gradient) + flat(other)) / 2)):
        found = jax.jit(jax.grad(lambda p, m=method: m.loss(p, state, {}, BATCH, 0, None)[0]))(params)
        assert relative(flat(found), expected) < 1e-4


def test_a_symmetrised_stop_gradient_alone_halves_the_gradient():
    """So that the config refuses it: with LARS it would be no ablation."""
    usual, halved = variant(), variant(stop_gradient=True, symmetrized=True)
    _, params, state = parts_of(usual)
    gradients = [
        jax.jit(jax.grad(lambda p, m=m: m.loss(p, state, {}, BATCH, 0, None)[0]))(params) for m in (usual, halved)
    ]
    assert relative(2 * flat(gradients[1]), flat(gradients[0])) < 1e-5


def test_without_a_projector_embeddings_are_the_features():
    method = variant(projector=Projector(()))
    z, params, state = parts_of(method)
    assert set(params) == {"encoder"} == set(state["batch_stats"]) and method.heads() == {}
    assert z.shape == (N, 2, method.encoder.num_features) and method.width == method.encoder.num_features
    expected = float(barlow_twins_loss(z[:, 0], z[:, 1])[0])
    assert loss_of(method, params, state)[0] == pytest.approx(expected, rel=1e-5)


def test_ablated_loss_of_the_embeddings():
    """The method's fields reach the loss."""
    ablation = Ablation(normalization="features", terms="redundancy")
    method = variant(ablation=ablation, lambd=0.1)
    z, params, state = parts_of(method)
    expected, parts = ablated_barlow_twins_loss(z[:, 0], z[:, 1], ablation, lambd=0.1)
    loss, metrics = loss_of(method, params, state)
    assert loss == pytest.approx(float(expected), rel=1e-4)
    assert float(metrics["on_diagonal"]) == pytest.approx(float(parts["on_diagonal"]), rel=1e-4)


def test_mixed_is_the_regulariser_of_mixed_images():
    """A third view with its own statistics; order and share follow from the step's key and nothing else."""
    method = variant(mixed=4.0, lambd=0.1)
    for_order, for_share = jax.random.split(KEY)
    order, share = jax.random.permutation(for_order, N), jax.random.uniform(for_share)
    views = method.inputs.normalize(BATCH["views"]["pair"])
    mixed = share * views[:, 0] + (1 - share) * views[order, 1]
    z, params, state = parts_of(method, jnp.concatenate([views, mixed[:, None]], axis=1))
    regulariser = mixed_regulariser(z[:, 0], z[:, 1], z[:, 2], order=order, share=share)
    expected = barlow_twins_loss(z[:, 0], z[:, 1], lambd=0.1)[0] + 4 * 0.1 * regulariser
    loss, metrics = loss_of(method, params, state)
    assert loss == pytest.approx(float(expected), rel=1e-4)
    assert float(metrics["mixed"]) == pytest.approx(float(regulariser), rel=1e-3)
    assert loss_of(method, params, state)[0] == loss
    assert loss_of(method, params, state, key=jax.random.key(8))[0] != loss


def test_weights_at_the_start_are_those_without_ablations():
    """For paired comparisons: the same seed gives the same encoder and projector."""
    usual = parts_of(variant())[1]
    for fields in ({"predictor": Projector((48, 32))}, {"mixed": 1.0}, {"ablation": Ablation(terms="invariance")}):
        found = parts_of(variant(**fields))[1]
        for head in ("encoder", "projector"):
            jax.tree.map(np.testing.assert_array_equal, found[head], usual[head])


def built(batch_size=256, mesh=None, **fields):
    config = config_lib.default()
    config.data.update(source="photographs")
    config.model.update(arch="resnet18", width=8)
    config.barlow_twins.update({"projector": (512, 512, 512), **fields})
    config_lib.check(config)
    return make_method(config, Facts(4096, 3, batch_size, 12), mesh)


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({}, {"projector": "512-512-512", "loss": "about 519.2 for unrelated views, D(1+1/N)+λD(D-1)/N; never below 2.6"}),
        ({"terms": "redundancy"}, {"ablation": "only the redundancy term", "loss": "about 5.2 for unrelated views"}),
        ({"normalization": "none"}, {"ablation": "embeddings only centred", "loss": "at the start it depends on"}),
        (
            {"loss": "cross_entropy", "predictor": (64,), "stop_gradient": True},
            {"ablation": "cross-entropy with temperature 0.1; no gradient through view b; predictor 64-512"},
        ),
        ({"projector": ()}, {"projector": "none; the embeddings are the 64 features"}),
        ({"projector_batch_norm": False}, {"projector": "512-512-512, without batch norm"}),
        ({"mixed": 4.0}, {"mixed": "images of both views, weight 4 λ", "loss": "about 592.3 for unrelated views"}),
    ],
)  # fmt: skip
def test_description(fields, lines):
    found = built(**fields).describe(256)
    for title, text in lines.items():
        assert found[title].startswith(text), found
    assert all(len(line) <= 110 for text in found.values() for line in text.splitlines())
    assert "note" not in found


def test_a_batch_that_is_small_for_its_embeddings():
    """A note with advice below 1/64 of the width; the advised width needs none."""
    method = built()
    assert "note" not in method.describe(8) and suited_width(8) == 128
    note = method.describe(7)["note"]
    assert "batch_size is 7, less than 1/64 of the embeddings' 512 columns" in note
    assert (
        "projector='(64,64,64)'" in note
        and max(map(len, note.splitlines())) <= 110
        and "--config.optimizer.rates=paper" in note
    )
    assert [suited_width(n) for n in (2, 100, 128, 512, 4096)] == [32, 1024, 2048, 8192, 8192]


def test_loss_flops():
    """8N²D or 6ND² of a loss; twice if symmetrised, and twice more with mixed images."""
    n, d = 256, 512
    usual = min(8 * n * n * d, 6 * n * d * d)
    assert built().loss_flops(n) == usual
    assert built(predictor=(64,), symmetrized=True).loss_flops(n) == 2 * usual
    assert built(mixed=1.0).loss_flops(n) == 3 * usual
    assert built(loss="cross_entropy").loss_flops(n) == 6 * n * d * d


def test_layers_of_the_predictor_are_split_in_turns():
    """After two layers of the projector, the third is split by outputs; all of it by axes that a mesh has."""
    mesh = mesh_lib.make_mesh(ConfigDict({"data": -1, "model": 2}))
    method = variant(mesh, predictor=Projector((48, 32)))
    assert method.partition(("params", "predictor", "linear1", "kernel")) == PartitionSpec(None, "model")
    assert method.partition(("params", "predictor", "linear2", "kernel")) == PartitionSpec("model", None)
    assert method.partition(("batch_stats", "predictor", "bn1", "mean")) == PartitionSpec("model")
    odd = variant(mesh, projector=Projector((32,)), predictor=Projector((48, 32)))
    assert odd.partition(("params", "predictor", "linear1", "kernel")) == PartitionSpec("model", None)
    assert set(method.heads()) == {"projector", "predictor"}


def test_a_model_axis_that_does_not_divide_the_features():
    mesh = mesh_lib.make_mesh(ConfigDict({"data": 2, "model": 3}), jax.devices()[:6])
    with pytest.raises(UserError, match=r"mesh.model is 3, but must divide the width of the embeddings, 64\."):
        built(mesh=mesh, projector=(), predictor=(33,))


def test_joint_statistics_are_those_of_both_views_in_one_batch():
    """Each view alone has other means, so that the loss differs, and the running mean moves once, by both."""
    separate, joint = small_method(), dataclasses.replace(small_method(), joint_statistics=True)
    params, model_state, _ = separate.init(KEY, spec_of(separate, N))
    losses = {}
    for method in (separate, joint):
        loss, (new, _, _) = jax.jit(lambda m=method: m.loss(params, model_state, {}, BATCH, jnp.int32(0), KEY))()
        losses[method.joint_statistics] = float(loss), new["batch_stats"]["encoder"]["bn1"]["mean"]
    assert losses[True][0] != pytest.approx(losses[False][0], rel=1e-4)
    views = joint.inputs.normalize(BATCH["views"]["pair"]).reshape(2 * N, 16, 16, 3)
    first = jax.lax.conv_general_dilated(
        views,
        params["encoder"]["conv1"]["kernel"],
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(losses[True][1], 0.1 * np.mean(first, axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)
