"""bt_jax/methods and bt_jax/optim: every field of a method's or an optimizer's group reaches what is built from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax import config as config_lib
from bt_jax.config.methods import METHODS
from bt_jax.config.optimizers import OPTIMIZERS
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.models import resnet
from bt_jax.optim import make_optimizer

FACTS = Facts(num_examples=40_000, num_classes=3, batch_size=8, epochs=20)
STRINGS = {
    "barlow_twins.form": "gram", "barlow_twins.terms": "invariance", "barlow_twins.normalization": "none",
    "barlow_twins.loss": "cross_entropy", "barlow_twins.off_diagonals": "auto", "interpolation": "bilinear", "optimizer.rates": "paper",
    "optimizer.scaling": "sqrt", "optimizer.schedule": "steps",
}  # fmt: skip


def other(name, field):
    """A legal value other than the default."""
    default = field.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        found = STRINGS.get(name) or STRINGS.get(name.rpartition(".")[2]) or "full"
        candidates = [found, "cross_entropy", "bicubic"]
    elif isinstance(default, tuple):
        candidates = [tuple(0.9 * value for value in default), (8, *default), (2.0,)]
    else:
        candidates = [default + 1, default - 1, default / 2 + 0.01, default * 0.9]
    return next(value for value in candidates if value != default and field.rule(value) is None)


def fields_of(groups):
    named = [(owner, name, field) for owner, group in groups.items() for name, field in group.named().items()]
    return [
        pytest.param(owner, name, field, id=f"{owner}-{name}")
        for owner, name, field in named
        if name != "optimizer.name"
    ]


@pytest.fixture(scope="module", autouse=True)
def a_small_encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, "resnet50", (1,))
        yield


# Settings that give others a meaning.
WITH = {
    "barlow_twins.temperature": {"barlow_twins.loss": "cross_entropy"},
    "barlow_twins.symmetrized": {"barlow_twins.predictor": (8,)},
    "swav.queue_from_epoch": {"swav.queue": 64},
    "optimizer.decay_epochs": {"optimizer.schedule": "steps"},
    "optimizer.decay_factor": {"optimizer.schedule": "steps", "optimizer.decay_epochs": (1,)},
    "optimizer.schedule": {"optimizer.decay_epochs": (1,)},
    "optimizer.end_factor": {"optimizer.schedule": "cosine"},
}


@pytest.mark.parametrize(("method", "name", "field"), fields_of({name: found.group for name, found in METHODS.items()}))
def test_fields_of_methods(method, name, field):
    """A method is a value: with another setting it is another one, so that no field is without effect."""
    config = config_lib.default(method=method)
    config.update_from_flattened_dict(WITH.get(name, {}))
    before = make_method(config, FACTS, None)
    assert make_method(config.copy_and_resolve_references(), FACTS, None) == before
    config.update_from_flattened_dict({name: other(name, field)})
    assert make_method(config, FACTS, None) != before


@pytest.mark.parametrize(("optimizer", "name", "field"), fields_of(OPTIMIZERS))
def test_fields_of_optimizers(optimizer, name, field):
    """With another setting the parameters end elsewhere after all steps of a run of three epochs."""
    config = config_lib.default(optimizer=optimizer).optimizer
    with config.unlocked():
        if "warmup_epochs" in config:
            config.warmup_epochs = 1
    changed = config.copy_and_resolve_references()
    for found in (config, changed):
        known = {key.removeprefix("optimizer."): value for key, value in WITH.get(name, {}).items()}
        found.update({key: value for key, value in known.items() if key in found})
    short = name.removeprefix("optimizer.")
    value = {"warmup_epochs": 2, "decay_epochs": (2,), "eps": 0.1}.get(short, other(name, field))
    with changed.ignore_type():
        changed[short] = value
    facts = Facts(num_examples=1024, num_classes=10, batch_size=512, epochs=3)
    layers = {
        "linear": {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    }
    params = {"net": layers}

    def end(settings):
        made, found = make_optimizer(settings, facts, width=512), params
        state = made.init(params)
        for step in range(facts.total_steps):
            gradients = jax.tree.map(lambda x, s=step: jnp.sin(jnp.arange(x.size) + s).reshape(x.shape), params)
            updates, state = made.update(gradients, state, found)
            found = jax.tree.map(jnp.add, found, updates)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])

    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        assert np.abs(end(config) - end(changed)).max() > 0
