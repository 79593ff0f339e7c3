"""What several tests share: parameters by the recipe of tests/golden/README.md, and small methods."""

import dataclasses
import errno
import os
import shutil
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bt_jax import config as config_lib
from bt_jax.data.views.spec import ViewGroup, ViewSpec, batch_spec
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.engine.state import init_state
from bt_jax.engine.step import make_train_step
from bt_jax.facts import Facts
from bt_jax.methods import BYOL, BarlowTwins, SimCLR, VICReg, make_method
from bt_jax.models import Projector, ResNet, resnet
from bt_jax.models.inputs import Inputs
from bt_jax.optim import make_optimizer
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.runtime.workdir import write_config
from bt_jax.tasks.pretrain import pretrain


def recipe(name: str, shape: tuple[int, ...], salt: int) -> np.ndarray:
    """The value of the torch parameter or statistic `name` with which the golden files were made."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + salt)
    if name.endswith("running_var"):
        value = 0.5 + rng.random(shape)
    elif name.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        value = 0.1 * rng.standard_normal(shape) + (1 if name.endswith("weight") else 0)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return value.astype(np.float32)


def relative(found, expected) -> float:
    """‖found - expected‖ / ‖expected‖, in float64."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# Compiler options for `jax.jit` where two programs are compared closely: the older emitters that conftest.py chooses, as they
# compile faster, round differently from one program to the next.
AS_IN_RUNS = {"xla_cpu_use_fusion_emitters": True} if "fusion_emitters" in os.environ["XLA_FLAGS"] else None


def one_program(function, *static):
    """The function compiled as a whole, as it is in a step; `static` names the arguments that are no arrays.

    JAX otherwise compiles every operation by itself, which took most of the time of tests that call losses and encoders.
    """
    return jax.jit(function, static_argnames=static)


def training(module):
    """(variables, inputs) -> (outputs, {"batch_stats": …}) of a Flax module in training mode, as one program."""
    return one_program(lambda variables, x: module.apply(variables, x, train=True, mutable=["batch_stats"]))


def small_method(mesh=None, *, sizes=(32, 32), form="auto", dtype=jnp.float32) -> BarlowTwins:
    """A residual network of two blocks with a small projector: has every part of a step, and compiles quickly."""
    return BarlowTwins(
        encoder=ResNet(blocks=(1, 1), bottleneck=False, small_images=True, width=4, dtype=dtype),
        projector=Projector(sizes, dtype=dtype),
        inputs=Inputs(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), dtype),
        form=form,
        mesh=mesh,
    )


def spec_of(method, batch_size=16):
    """A batch's shapes, for `init` and the state."""
    return batch_spec(method.view_groups, batch_size)


SIZES = (32, 32, 32)  # of a projector with one layer more than those split by inputs


def small_optimizer():
    return make_optimizer(config_lib.default().optimizer, Facts(512, 2, batch_size=256, epochs=12))


def five_steps(mesh, *, form="auto"):
    """The state after five steps of `small_method` on batches of 16, the same for every mesh; and the losses."""
    batches = np.random.default_rng(0).integers(0, 256, (5, 16, 2, 16, 16, 3), np.uint8)
    method, optimizer = small_method(mesh, sizes=SIZES, form=form), small_optimizer()
    state = init_state(method, optimizer, 0, spec_of(method), mesh)
    step = jax.jit(make_train_step(method, optimizer, seed=0), donate_argnums=0)
    rows, losses = mesh_lib.process_rows(mesh, 16), []
    for views in batches:
        state, metrics = step(state, mesh_lib.put_batch(mesh, 16, {"views": {"pair": views[rows]}}))
        losses.append(float(metrics["loss"]))
    return state, losses


METHOD_CLASSES = {"simclr": SimCLR, "byol": BYOL, "vicreg": VICReg}
PAIR_METHODS = tuple(METHOD_CLASSES)


def pair_method(name, mesh=None, *, dtype="float32", **settings):
    """A method of two views from its config, with a network of one block for 8 × 8 pixels; `settings` are of its group."""
    config = config_lib.default(method=name)
    group = config[name]
    group.projector = (16, 8)
    group.update(settings)
    return METHOD_CLASSES[name].build(
        group,
        encoder=ResNet(blocks=(1,), bottleneck=False, small_images=True, width=4, dtype=jnp.dtype(dtype)),
        inputs=Inputs(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), jnp.dtype(dtype)),
        facts=Facts(512, 0, batch_size=16, epochs=2),
        mesh=mesh,
    )


def pair_batches(count=3):
    """Batches of 16 images: the second view is the first and noise."""
    rng = np.random.default_rng(4)
    first = rng.integers(40, 216, (count, 16, 1, 8, 8, 3))
    views = np.concatenate([first, first + rng.integers(-40, 40, first.shape)], axis=2)
    return views.astype(np.uint8)


def three_steps_of(name, mesh):
    """(losses, all arrays of the state in one vector) after three steps of `pair_method`, the same for every mesh."""
    method, optimizer = pair_method(name, mesh), small_optimizer()
    state = init_state(method, optimizer, 0, spec_of(method), mesh)
    step = jax.jit(make_train_step(method, optimizer, seed=0), donate_argnums=0)
    rows, losses = mesh_lib.process_rows(mesh, 16), []
    for views in pair_batches():
        state, metrics = step(state, mesh_lib.put_batch(mesh, 16, {"views": {"pair": views[rows]}}))
        losses.append(float(metrics["loss"]))
    arrays = jax.device_get((state.params, state.model_state, state.method_state))
    return losses, np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(arrays)])


@dataclasses.dataclass(frozen=True)
class TwoSizes(BarlowTwins):
    """Views of two sizes, as multi-crop has them: a pair, and three small ones, of which two make a loss of their own."""

    @property
    def view_groups(self):
        return (*super().view_groups, ViewGroup("small", (ViewSpec(),) * 3, 8))

    def loss(self, params, model_state, method_state, batch, step, rng):
        loss, (model_state, _, parts) = super().loss(params, model_state, method_state, batch, step, rng)
        small = {"views": {"pair": batch["views"]["small"][:, 1:]}}
        other, (model_state, _, _) = super().loss(params, model_state, method_state, small, step, rng)
        return loss + other, (model_state, method_state, parts | {"loss": loss + other})


def three_steps_of_two_sizes(mesh):
    """The losses of three steps on batches of 16 with views of 16 and of 8 pixels, and the parameters after them."""
    rng, method = np.random.default_rng(1), TwoSizes(**vars(small_method(mesh, sizes=SIZES)))
    state = init_state(method, small_optimizer(), 0, spec_of(method), mesh)
    step = jax.jit(make_train_step(method, small_optimizer(), seed=0), donate_argnums=0)
    rows, losses = mesh_lib.process_rows(mesh, 16), []
    for _ in range(3):
        sizes = {"pair": (16, 2, 16, 16, 3), "small": (16, 3, 8, 8, 3)}
        views = {name: rng.integers(0, 256, shape, np.uint8)[rows] for name, shape in sizes.items()}
        state, metrics = step(state, mesh_lib.put_batch(mesh, 16, {"views": views}))
        losses.append(float(metrics["loss"]))
    return losses, np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(state.params))])


def judged_run(folder):
    """A pre-trained run and a labelled set to evaluate it on: (workdir, config of the run, which names itself as `init_from`).

    The encoder is a resnet18 as `bt_jax.models.resnet.BLOCKS` has it, which the fixture that calls this makes small. Of 60
    train and 25 test images of three classes, each class has a colour of its own.
    """
    rng = np.random.default_rng(0)
    colours = np.array([[90, 20, 20], [20, 90, 20], [20, 20, 90]])
    arrays = {}
    for split, count in (("train", 60), ("test", 25)):
        labels = np.arange(count) % 3
        images = colours[labels][:, None, None, :] + rng.integers(0, 90, (count, 16, 16, 3))
        arrays |= {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels}
    np.savez(folder / "set.npz", **arrays)
    config = config_lib.default()
    config.batch_size, config.epochs = 8, 2
    config.data.update(source="arrays", data_dir=str(folder / "set.npz"), image_size=16, eval_resize=0, threads=2)
    config.model.update(arch="resnet18", width=4, small_images=True)
    config.barlow_twins.projector = (16, 16)
    config.optimizer.warmup_epochs = 1
    config.monitor.update(batch_size=16, k=5)
    config.log.update(every_steps=1, tensorboard=False)
    workdir = epath.Path(folder) / "pretrained"
    write_config(config, workdir)
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    checkpoints = Checkpoints(workdir)
    method = make_method(config, Facts(60, 3, 8, 2), mesh)
    checkpoints.save(7, init_state(method, small_optimizer(), 0, spec_of(method), mesh))
    checkpoints.close()
    config.init_from = str(workdir)
    return workdir, config


def evaluation_of(config, task):
    """The config of an evaluation of what `judged_run` made, from the config that it gave."""
    derived = config_lib.based_on(config, task)
    derived.init_from, derived.features.batch_size = config.init_from, config.monitor.batch_size
    if task != "knn":
        derived.batch_size, derived.epochs = config.batch_size, config.epochs
    return derived


def no_room_for(monkeypatch, module, name):
    """The disk is full when `module` writes a file whose name begins with `name`."""
    write = module.write_whole

    def write_whole(path, text):
        if path.name.startswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(module, "write_whole", write_whole)


def quick_views(config):
    """Leaves crops and flips in the views of the config's method: TensorFlow compiles the rest for seconds at every start. For runs
    that are not about views.
    """
    for group in config[config.method].values():
        if "jitter" in getattr(group, "keys", tuple)():
            group.update(jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.0)


def run_of(method, folder, monkeypatch, *, model=None, optimizer=None, **settings):
    """A small run of a method, and the same stopped after the first of two epochs and resumed, in `folder`/run and /again.

    64 images of 8 × 8 pixels, batches of 16, a network of one block on one device; `settings` are of the method's group, and
    `model` and `optimizer` other ones than a narrow resnet18 and the method's.

    Returns:
      The states in their last checkpoints, as nested dictionaries of arrays.
    """
    monkeypatch.setitem(resnet.BLOCKS, "resnet18", (1,))
    rng, labels = np.random.default_rng(0), np.arange(64) % 2
    images = (rng.integers(0, 120, (64, 8, 8, 3)) + 120 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "set.npz", x_train=images, y_train=labels, x_test=images[:16], y_test=labels[:16])
    config = config_lib.default(method=method, optimizer=optimizer)
    config.batch_size, config.epochs, config.optimizer.warmup_epochs = 16, 2, 1
    config.data.update(source="arrays", data_dir=str(folder / "set.npz"), image_size=8, eval_resize=0, threads=2)
    config.model.update(model or {"arch": "resnet18", "width": 4, "small_images": True})
    config[method].update(settings)
    quick_views(config)
    config.mesh.data = 1
    config.monitor.update(every_epochs=2, batch_size=16, k=5, pairs=16)
    config.log.update(every_steps=1, tensorboard=False)
    config.report.write = False
    pretrain(config, str(folder / "run"))
    shutil.copytree(folder / "run", folder / "again")
    shutil.rmtree(folder / "again" / "checkpoints" / "8")
    pretrain(config, str(folder / "again"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax, that the topology could be another
        return [
            ocp.PyTreeCheckpointer().restore(folder / run / "checkpoints" / "8" / "state") for run in ("run", "again")
        ]
