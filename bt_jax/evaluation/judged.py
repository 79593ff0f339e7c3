"""What evaluations share: the encoder, two labelled splits, the mesh, and checks of all of them."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax import console
from bt_jax.data.eval_batches import check_reader, check_tensorflow, eval_batches
from bt_jax.data.order import evenly
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.make import make_source
from bt_jax.data.subsets import check_apart, check_labels
from bt_jax.data.views.spec import ViewGroup, ViewSpec
from bt_jax.engine.session import Session, session
from bt_jax.errors import UserError
from bt_jax.evaluation.features import FeatureExtractor, NotFiniteFeatures, first_bad_layer, frozen
from bt_jax.evaluation.pairs import Pairs
from bt_jax.evaluation.results import Result, same_encoder
from bt_jax.export.encoder import load_encoder
from bt_jax.models import ViT, check_encoder, make_encoder
from bt_jax.models.encoders import described, in_dtype, takes_any_size
from bt_jax.models.inputs import Inputs
from bt_jax.pixels import Pixels
from bt_jax.reporting.bad_images import BadImages
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.runtime import processes
from bt_jax.runtime.machine import more_cores
from bt_jax.runtime.paths import as_folder
from bt_jax.runtime.workdir import check_config, write_config
from bt_jax.version import __version__


@dataclasses.dataclass(frozen=True)
class Judged:
    """An encoder to be evaluated, on a mesh.

    Attributes:
      module: computes in the config's dtype.
      variables: on all devices of the mesh; None for a new encoder.
      inputs: normalises images as in its training.
      facts: source, step, sha256, arch, width and the method of its pre-training, for the result; None for a new encoder.
      heads: the variables of its heads in training, by name; {} if the source has none.
    """

    module: nn.Module
    variables: Any
    inputs: Inputs
    facts: Result | None
    heads: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def judged_encoder(config: ConfigDict, mesh: Mesh) -> Judged:
    """The encoder that `config.init_from` names, or a new one with `finetune.from_scratch`.

    Raises:
      UserError: it cannot be loaded, or does not match `config.model`.
    """
    model, dtype = config.model, jnp.dtype(config.dtype)
    wanted = make_encoder(**model, dtype=dtype)
    if not takes_any_size(wanted):
        check_encoder(wanted, model.arch, config.data.image_size, channels=config.data.channels)
    if config.task == "finetune" and config.finetune.from_scratch:
        return Judged(wanted, None, Inputs.of(config.data, dtype), None)
    encoder = load_encoder(config.init_from)
    if in_dtype(encoder.module, dtype) != wanted:
        raise UserError(
            f"init_from, {config.init_from}, is a {described(encoder.module, encoder.arch)}, but the config's model is a "
            f"{described(wanted, model.arch)}; set model.arch and the other fields of model to match the checkpoint."
        )
    if isinstance(wanted, ViT) and encoder.input_size != config.data.image_size:
        raise UserError(
            f"data.image_size is {config.data.image_size}, but init_from, {config.init_from}, is a {model.arch} whose position "
            f"embedding is for {encoder.input_size}×{encoder.input_size}; set data.image_size to {encoder.input_size}."
        )
    facts = {"source": encoder.source, "step": encoder.step, "sha256": encoder.sha256}
    facts |= {"arch": encoder.arch, "width": model.width, "features": encoder.width, "method": encoder.method}
    # A run that init_from names may have saved another step meanwhile.
    processes.agree("encoder", {"init_from": [facts["source"], facts["sha256"]]})
    host = jax.tree.map(np.asarray, encoder.variables)
    placed = jax.device_put(host, mesh_lib.everywhere(mesh))
    inputs = Inputs(config.data.image_size, tuple(encoder.mean), tuple(encoder.std), dtype, encoder.pixels)
    return Judged(wanted, placed, inputs, facts, encoder.heads)


def with_pixels(data: ConfigDict, pixels: Pixels, init_from: str) -> ConfigDict:
    """`config.data` for an encoder's images: where no channels and range are declared they are the encoder's.

    Raises:
      UserError: others are declared.
    """
    declared = Pixels.of(data)
    if declared != pixels and not declared.are_photographs:
        raise UserError(
            f"data.channels is {declared.channels} and data.range {declared.range}, but init_from, {init_from}, is for images with "
            f"{pixels.channels} and {pixels.range}; leave them out, and the encoder's are taken."
        )
    data = data.copy_and_resolve_references()
    data.channels, data.range = pixels.channels, pixels.range
    return data


class Evaluation:
    """One evaluation: its config, encoder, splits, mesh and output.

    Attributes:
      config: with the channels and the range of the encoder's images.
      train, test: labelled sources with the same classes; every class has an image in `train`.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        mesh: Mesh,
        *,
        within: Session | None = None,
        say: Callable[[str], None] | None = None,
    ):
        """Args:
        within: the session of a run that this evaluation is a part of; None for a separate session.
        say: called with lines for the user; by default the first process prints them.

        Raises:
          UserError: something is wrong with the encoder, the data or the workdir; nothing has been written then.
        """
        check_tensorflow(config.data)
        self.judged = judged_encoder(config, mesh)
        config = config.copy_and_resolve_references()
        config.data = with_pixels(config.data, self.judged.inputs.pixels, config.init_from)
        self.config, self.workdir, self.mesh, self._within = config, workdir, mesh, within
        self.is_first = jax.process_index() == 0
        self.say = say or (console.say if self.is_first else lambda _: None)
        self.train, self.test = (self._source(split) for split in ("train", "test"))
        self._check_splits()
        # Each process reports those that it has met itself.
        tell = self.say if self.is_first or within is not None else console.say
        self._bad_images = {source: BadImages([source], tell) for source in (self.train, self.test)}
        for source in (self.train, self.test):
            check_reader(source, config.data)
        counts = {f"split {i}": [f"{len(s)} images", s.fingerprint] for i, s in enumerate((self.train, self.test))}
        processes.agree("data", counts)
        mesh_lib.check_batch_size(mesh, config.features.batch_size, "features.batch_size")

    def _source(self, split: str) -> Source:
        return make_source(self.config.data, split)

    def _check_splits(self) -> None:
        train, test = self.train, self.test
        check_apart(train, test)
        for source, all_classes in ((train, True), (test, False)):
            if source.num_classes < 2:
                if not source.num_classes:
                    raise UserError(
                        f"{source.name} has no labels, but the task {self.config.task} needs them; data.labels says where they "
                        "come from."
                    )
                raise UserError(
                    f"{source.name} has {source.num_classes} class(es), but an evaluation needs at least 2."
                )
            labels = getattr(source, "labels", None)
            if labels is not None:  # labels in records are checked as they are read
                check_labels(labels, source, all_classes=all_classes)
        if train.class_names != test.class_names:
            odd = sorted(set(train.class_names) ^ set(test.class_names))
            found = (
                f"have different classes ({', '.join(odd[:3])}…)" if odd else "have their classes in different orders"
            )
            raise UserError(f"{train.name} and {test.name} {found}; they must have the same.")

    @contextlib.contextmanager
    def begun(self, protocol: str, *, seeds: str = "") -> Iterator[Session]:
        """Locks the workdir while the evaluation lasts, and prints what it will do.

        Raises:
          UserError, Preempted: as `bt_jax.engine.session.session`.
        """
        if self._within is None:
            with session(self.config, self.workdir) as held:
                self._say_start(protocol, seeds)
                yield held
            return
        problem = ""
        try:
            check_config(self.config, self.workdir)
            if self.is_first:
                self.workdir.mkdir(parents=True, exist_ok=True)
            self._say_start(protocol, seeds)
            if self.is_first:
                write_config(self.config, self.workdir)
        except UserError as error:
            problem = str(error)
        # Before the work, as a run goes on without this evaluation and the others would wait for this process in it.
        processes.agree("folders of an evaluation", {str(self.workdir): problem})
        if problem:
            raise UserError(problem)
        yield self._within

    def _say_start(self, protocol: str, seeds: str) -> None:
        config = self.config
        same_encoder(self.workdir, self.judged.facts, write=self.is_first)
        facts, width = self.judged.facts, self.judged.module.num_features
        origin = "from scratch; init_from is not used" if facts is None else f"from {facts['source']}"
        lines = {
            "bt_jax": f"{__version__}, JAX {jax.__version__}: {config.task}, {seeds or f'seed {config.seed}'}",
            "devices": f"{self.mesh.size} × {self.mesh.devices.flat[0].device_kind}{more_cores(self.mesh)}",
            "encoder": f"{config.model.arch}, {width} features, {origin}",
            "train": f"{self.train.name}: {len(self.train)} images, {self.train.num_classes} classes",
            "test": f"{self.test.name}: {len(self.test)} images",
            "protocol": protocol,
            "workdir": str(self.workdir),
        }
        notices = [f"note      {notice}" for notice in (*self.train.notices, *self.test.notices)]
        self.say("\n".join([f"{title:<9} {value}" for title, value in lines.items()] + notices))

    def features(self, source: Source, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, F) float32 and labels (n,) int32 of a source's images, each once.

        Raises:
          UserError: features are not finite (the image and the layer are named), or labels are not among the classes.
        """
        size = self.config.features.batch_size
        rows = mesh_lib.process_rows(self.mesh, size)
        batches = eval_batches(source, self.config.data, batch_size=size, rows=rows, limit=limit)
        try:
            features, labels = self._extract(self.judged.variables, batches, size)
        except NotFiniteFeatures as error:
            raise self._explained(error, source, limit) from None
        self._bad_images[source].tell(epoch_ends=True)
        self._check_labels(labels, source)
        return features, labels

    def _check_labels(self, labels: np.ndarray, source: Source) -> None:
        check_labels(labels, source, all_classes=False)

    @functools.cached_property
    def _extract(self) -> FeatureExtractor:
        judged = self.judged
        return FeatureExtractor(frozen(judged.module), self.mesh, judged.inputs)

    def _explained(self, error: NotFiniteFeatures, source: Source, limit: int | None) -> UserError:
        """The error with the image's name and the first layer whose result is not finite."""
        judged, where = self.judged, "in a layer that only the process with that image can name"
        if error.image is not None:
            images = judged.inputs.normalize(jnp.asarray(error.image[None]))
            here = jax.tree.map(lambda leaf: leaf.addressable_data(0), judged.variables)
            where = f"first in layer {first_bad_layer(judged.module, here, images)}"
        place = source.place(int(evenly(len(source), limit)[error.place]))
        return UserError(
            f"the features of {place} are not finite, {where}; check the weights that init_from names, "
            f"{(judged.facts or {}).get('source', 'none')}."
        )

    def pairs_of_views(self) -> tuple[np.ndarray, ...] | None:
        """The features of two views each of `knn.pairs` train images, with the views of `config.pairs`; None without pairs."""
        return self._features_of_views("pair", 2, self.config.knn.pairs)

    def views_for_lidar(self) -> np.ndarray | None:
        """The features (n, q, F) of `knn.lidar_views` views each of `knn.lidar_images` train images, or None without any.

        The views are drawn from `config.pairs.view_a` and `view_b` in turn, without changes of colours if images have none.
        """
        found = self._features_of_views("lidar", self.config.knn.lidar_views, self.config.knn.lidar_images)
        return None if found is None or len(found[0]) < 2 else np.stack(found, axis=1)

    def _features_of_views(self, name: str, views: int, count: int) -> tuple[np.ndarray, ...] | None:
        config = self.config
        kinds = (ViewSpec(**config.pairs.view_a), ViewSpec(**config.pairs.view_b))
        if self.judged.inputs.pixels.channels != 3:
            kinds = tuple(kind.without_colours() for kind in kinds)
        draws = tuple(kinds[view % 2] for view in range(views))
        pairs = Pairs(
            self.train,
            config.data,
            ViewGroup(name, draws, config.data.image_size, self.judged.inputs.pixels),
            tuple(range(views)),
            seed=config.seed,
            count=count,
            # One that a small set fills, as there is no part of a batch.
            batch_size=min(config.features.batch_size, max(1, len(self.train) // self.mesh.size) * self.mesh.size),
            mesh=self.mesh,
        )
        return pairs.features(self._extract, self.judged.variables)

    def data_facts(self) -> Result:
        """The data sets, for the result."""
        return {
            "train": self.train.name,
            "train_images": len(self.train),
            "test": self.test.name,
            "test_images": len(self.test),
            "classes": self.train.num_classes,
        }


def run_task(config: ConfigDict, workdir: str, evaluate: Callable[[ConfigDict, epath.Path, Mesh], Result]) -> Result:
    """Runs an evaluation as a command: checks the config, joins the processes, makes the mesh."""
    config_lib.check(config)
    folder = as_folder(workdir, "--workdir")
    with processes.joined(config, workdir):
        return evaluate(config, folder, mesh_lib.make_mesh(config.mesh))
