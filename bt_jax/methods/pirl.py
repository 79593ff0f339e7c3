"""PIRL (Misra and van der Maaten 2020, arXiv 1912.01991; facebookresearch/vissl) as a method."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from bt_jax.data.views.spec import Jigsaw, ViewGroup, ViewSpec
from bt_jax.errors import UserError
from bt_jax.facts import Facts
from bt_jax.losses.nce import memory_cross_entropy, memory_nce, moved_rows, partition_constant
from bt_jax.losses.pairs import product, spread_of_unit, unit
from bt_jax.methods.base import Batch, LossLevels, Method, PyTree
from bt_jax.methods.networks import SPREAD_WORDS, collapse_in_words, statistics_of
from bt_jax.models import MLPHead
from bt_jax.models.inputs import Inputs

NETWORKS = ("encoder", "projector", "patch_projector", "patch_joint")
_ROWS = 1024  # a bank has a multiple of these, so that devices divide it and their number does not change its shape


class JigsawNetwork(nn.Module):
    """Normalised patches (N, P, S, S, C) and images (N, 1, …) -> embeddings (N, D) of both.

    All patches of a batch go through the encoder as one batch, and then the images: each have their own batch statistics, and
    the running ones are updated in this order (vissl, MULTI_INPUT_HEAD_MAPPING). Features of an image's patches are projected
    one by one and joined in the order in which the patches come.

    Attributes:
      patch_relu: whether a ReLU follows the projection of each patch.
    """

    encoder: nn.Module
    projector: nn.Module
    patch_projector: nn.Module
    patch_joint: nn.Module
    patch_relu: bool = False

    def __call__(self, patches: jax.Array, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        of_patches: Any = self.encoder(patches.reshape(-1, *patches.shape[2:]), train=train)
        projected = self.patch_projector(of_patches, train=train).reshape(patches.shape[0], -1)
        if self.patch_relu:
            projected = nn.relu(projected)
        of_image: Any = self.encoder(images[:, 0], train=train)
        return self.patch_joint(projected, train=train), self.projector(of_image, train=train)


@dataclasses.dataclass(frozen=True)
class PIRL(Method):
    """The method `pirl`: an image, and its nine shuffled patches, are each to find the image's own row in a memory bank.

    - `params`: "encoder", "projector" (the image's head), "patch_projector" (of each patch) and "patch_joint" (of all patches).
    - `method_state`: {"bank": (rows, D) float32, of length 1}, split over all devices if they divide it. Row i belongs to image i
      of the training set; rows after the last image are never used. With the loss "nce" also {"normalizer": () float32}, Z, which
      the first batch's patches set; 0 before.

    After a batch was compared, the rows of its images move half way to the images' embeddings (`bt_jax.losses.nce.moved_rows`);
    those of the patches do not enter the bank, and no gradient does.

    If the patches' head has several layers, as in the variant with an MLP, a ReLU follows its last one too, before the patches are
    joined (vissl, pretrain/pirl/models/resnet50_mlphead.yaml: `skip_last_layer_relu_bn: False`); the image's head ends bare.

    Differences from vissl: one set of negatives is drawn for the whole batch, where vissl draws for each image; an image's own row is
    never among its negatives, as in the paper; and batch statistics are of the global batch, where vissl's are of each GPU's images.
    The paper's block of posterising, sharpening, solarising and autocontrast is left out.

    Attributes:
      num_images: in the training set, the rows of the bank that are used.
      negatives: K, how many rows are drawn; 0 for all others.
      patch_weight: λ.
    """

    encoder: nn.Module
    projector: MLPHead
    patch_projector: MLPHead
    patch_joint: MLPHead
    inputs: Inputs
    num_images: int
    view: ViewSpec
    jigsaw: Jigsaw
    patch_size: int
    form: str = "nce"
    temperature: float = 0.07
    negatives: int = 32000
    patch_weight: float = 0.5
    bank_momentum: float = 0.5
    mesh: Mesh | None = None

    name: ClassVar[str] = "pirl"
    title: ClassVar[str] = "PIRL"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "image", "patches", "spread")
    short_names: ClassVar[Mapping[str, str]] = {"image": "img", "patches": "patch"}
    metric_words: ClassVar[Mapping[str, str]] = {"spread": SPREAD_WORDS}
    needs_stable_examples: ClassVar[bool] = True
    advice: ClassVar[str] = "Lower optimizer.learning_rate, or lengthen optimizer.warmup_epochs."

    @classmethod
    def build(
        cls, settings: ConfigDict, *, encoder: nn.Module, inputs: Inputs, facts: Facts, mesh: Mesh | None
    ) -> "PIRL":
        if settings.negatives >= facts.num_examples:
            raise UserError(
                f"pirl.negatives is {settings.negatives}, but the training set has only {facts.num_examples - 1} other images "
                "for each; set it to 0 for all of them."
            )
        sizes = tuple(settings.projector)

        def head(*sizes):
            return MLPHead(sizes, batch_norm=False, output_bias=True, dtype=inputs.dtype)

        return cls(
            encoder=encoder,
            projector=head(*sizes),
            patch_projector=head(*sizes),
            patch_joint=head(sizes[-1]),
            inputs=inputs,
            num_images=facts.num_examples,
            view=ViewSpec(**settings.view),
            jigsaw=Jigsaw(ViewSpec(**settings.patch_view), settings.cell),
            patch_size=settings.patch_size,
            form=settings.loss,
            temperature=settings.temperature,
            negatives=settings.negatives,
            patch_weight=settings.patch_weight,
            bank_momentum=settings.bank_momentum,
            mesh=mesh,
        )

    @property
    def view_groups(self) -> tuple[ViewGroup, ...]:
        image = ViewGroup("image", (self.view,), self.inputs.image_size, self.inputs.pixels)
        return image, ViewGroup("patches", self.jigsaw, self.patch_size, self.inputs.pixels)

    @property
    def network(self) -> JigsawNetwork:
        several = len(self.patch_projector.sizes) > 1
        return JigsawNetwork(self.encoder, self.projector, self.patch_projector, self.patch_joint, patch_relu=several)

    @property
    def rows(self) -> int:
        """Of the bank."""
        return -(-self.num_images // _ROWS) * _ROWS

    @property
    def num_negatives(self) -> int:
        """K."""
        return self.negatives or self.num_images - 1

    @property
    def _splits(self) -> bool:
        return self.mesh is not None and self.rows % self.mesh.size == 0

    def partition(self, path: Sequence[str]) -> PartitionSpec:
        if tuple(path) == ("method_state", "bank") and self._splits:
            assert self.mesh is not None
            return PartitionSpec(tuple(self.mesh.axis_names))
        return PartitionSpec()

    def init(self, rng: jax.Array, batch_spec: Batch) -> tuple[PyTree, PyTree, PyTree]:
        network_rng, bank_rng = jax.random.split(rng)
        views = {name: jnp.zeros((2, *x.shape[1:]), self.inputs.dtype) for name, x in batch_spec["views"].items()}
        variables = self.network.init(network_rng, views["patches"], views["image"], train=False)
        # vissl's ±1/√(D/3) before the rows are scaled makes no difference after it.
        full = jnp.promote_types(self.inputs.dtype, jnp.float32)
        bank = unit(jax.random.uniform(bank_rng, (self.rows, self.projector.sizes[-1]), full, -1.0, 1.0))
        state = {"bank": bank} | ({"normalizer": jnp.zeros((), full)} if self.form == "nce" else {})
        return variables["params"], {"batch_stats": statistics_of(variables, NETWORKS)}, state

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, step: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        del step  # the views are already made
        patches, image = (self.inputs.normalize(batch["views"][name]) for name in ("patches", "image"))
        variables = {"params": params, **model_state}
        embeddings, new = self.network.apply(variables, patches, image, train=True, mutable=["batch_stats"])
        with jax.named_scope("loss"):
            of_patches, of_image = map(unit, embeddings)
            bank, example = jax.lax.stop_gradient(method_state["bank"]), batch["example"]
            own = bank[example]
            negatives, numbers = self._negatives(bank, rng)
            counted = (numbers[None, :] != example[:, None]) & (numbers < self.num_images)[None, :]

            def cosines(u):
                others = product("nd,kd->nk", u if self.negatives else self._on(PartitionSpec(), u), negatives)
                return jnp.sum(u * own, axis=1), self._against_all(others), self._against_all(counted)

            state, constant = {}, None
            if self.form == "nce":
                estimate = partition_constant(
                    *cosines(of_patches), num_images=self.num_images, temperature=self.temperature
                )
                before = method_state["normalizer"]
                constant = state["normalizer"] = jnp.where(before == 0, estimate, before)
            from_patches, from_image = (self._compared(*cosines(u), constant) for u in (of_patches, of_image))
            loss = self.patch_weight * from_patches + (1 - self.patch_weight) * from_image
            state["bank"] = self._moved(bank, own, jax.lax.stop_gradient(of_image), example)
        metrics = {"loss": loss, "image": from_image, "patches": from_patches, "spread": spread_of_unit(of_image)}
        return loss, ({"batch_stats": statistics_of(new, NETWORKS)}, state, metrics)

    def _negatives(self, bank: jax.Array, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(rows (M, D), their numbers (M,)): drawn uniformly and with replacement, as in vissl, or all."""
        if not self.negatives:
            return bank, jnp.arange(self.rows)
        numbers = jax.random.randint(rng, (self.negatives,), 0, self.num_images)
        return self._on(PartitionSpec(), bank[numbers]), numbers

    def _compared(self, positive, negative, counted, constant: Any) -> jax.Array:
        if self.form == "cross_entropy":
            return memory_cross_entropy(positive, negative, counted, temperature=self.temperature)
        return memory_nce(
            positive, negative, counted, num_images=self.num_images, num_negatives=self.num_negatives, normalizer=constant,
            temperature=self.temperature,
        )  # fmt: skip

    def _moved(self, bank: jax.Array, own: jax.Array, of_image: jax.Array, example: jax.Array) -> jax.Array:
        """The bank after the batch. Of images that occur twice, as stand-ins can, the first counts, on any device."""
        same = example[:, None] == example[None, :]
        is_first = jnp.argmax(same, axis=1) == jnp.arange(len(example))
        places = jnp.where(is_first, example, bank.shape[0])  # beyond the end, where nothing is written
        return bank.at[places].set(moved_rows(own, of_image, self.bank_momentum), mode="drop")

    def _against_all(self, x: jax.Array) -> jax.Array:
        """(N, rows): when all rows are compared, each device takes its own rows of the bank, so that none receives others."""
        if self.mesh is None or not self._splits or self.negatives:
            return x
        return self._on(PartitionSpec(None, tuple(self.mesh.axis_names)), x)

    def _on(self, spec: PartitionSpec, x: jax.Array) -> jax.Array:
        return x if self.mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def heads(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in NETWORKS[1:]}

    def collapse(self, metrics: Mapping[str, float]) -> str:
        return collapse_in_words(metrics["spread"], "lower the learning rate, or raise pirl.negatives.")

    def loss_levels(self, batch_size: int) -> LossLevels:
        del batch_size
        k, weights = self.num_negatives, {"image": 1 - self.patch_weight, "patches": self.patch_weight}
        if self.form == "nce":
            return LossLevels(math.log1p(k) + k * math.log1p(1 / k), None, weights)
        return LossLevels(math.log1p(k), math.log1p(k * math.exp(-2 / self.temperature)), weights)

    def loss_flops(self, batch_size: int) -> float:
        """Cosines of two embeddings an image, forward, and backward to them."""
        devices = 1 if self.mesh is None else self.mesh.size
        rows = self.negatives or self.rows
        return 2 * 2 * 2 * batch_size * rows * self.projector.sizes[-1] / devices

    def describe(self, batch_size: int) -> dict[str, str]:
        levels = self.loss_levels(batch_size)
        k, width = self.num_negatives, self.projector.sizes[-1]
        size = 4 * self.rows * width / 2**20
        devices = 1 if self.mesh is None else self.mesh.size
        place = f", {size / devices:.3g} MiB on each device" if self._splits and devices > 1 else ""
        if self.form == "nce":
            start = f"about {levels.start:.2f} at the start, ln(1+K) + K ln(1+1/K)"
        else:
            start = f"about {levels.start:.2f} at the start, ln(K+1), more while rows are met for the first time, and never below {levels.floor:.3g}"
        return {
            "views": f"the image, and {self.jigsaw.grid**2} patches of {self.patch_size} pixels",
            "projector": "-".join(map(str, self.projector.sizes)),
            "bank": f"{self.num_images} images × {width}, {size:.3g} MiB{place}; {k} negatives"
            + ("" if self.negatives else ", all other images"),
            "loss": f"{start}; {self.form.replace('_', '-')} at temperature {self.temperature:g}",
        }
