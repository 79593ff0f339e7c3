"""The task `embed`: the features of all images of a source, in files; nothing is trained and no label is needed.

Features are computed batch by batch on all devices, and written in pieces, so that memory is bounded and a killed run resumes
after its last whole piece. At the end the pieces become one file.
"""

import json
import time
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import console
from bt_jax.data.eval_batches import check_reader, check_tensorflow, eval_batches
from bt_jax.data.sources.make import make_source
from bt_jax.engine.session import Session, session
from bt_jax.errors import UserError
from bt_jax.evaluation.features import FeatureExtractor, NotFiniteFeatures, frozen
from bt_jax.evaluation.judged import run_task, with_pixels
from bt_jax.evaluation.results import same_encoder
from bt_jax.export.embeddings import Piece, Pieces, check_parquet, check_same, write_npz, write_parquet
from bt_jax.export.encoder import Encoder, load_encoder
from bt_jax.models.encoders import in_dtype
from bt_jax.models.inputs import Inputs
from bt_jax.reporting.bad_images import BadImages
from bt_jax.reporting.counter import Counter
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.runtime import processes
from bt_jax.runtime.files import errors_of_files, read_object, write_whole
from bt_jax.version import __version__

Result = dict[str, Any]


def embed(config: ConfigDict, workdir: str) -> Result:
    """Writes the features of the images of `config.data` by the encoder that `config.init_from` names.

    Returns:
      The content of WORKDIR/embed.json.

    Raises:
      UserError: bad input; features that are not finite; the workdir holds embeddings of something else.
      Preempted: the process was asked to stop; whole pieces are kept.
    """
    return run_task(config, workdir, embed_images)


def _finished(path: epath.Path) -> Result:
    """The content of an embed.json.

    Raises:
      UserError: it is damaged.
    """
    try:
        result = read_object(path)
        if isinstance(result.get("embedded"), bool) or not isinstance(result.get("embedded"), int):
            raise ValueError(f"embedded is {result.get('embedded')!r}, but must be an integer")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used ({error}); remove it, and the same command makes it again.") from None
    return result


def embed_images(
    config: ConfigDict,
    workdir: epath.Path,
    mesh: Mesh,
    *,
    encoder: Encoder | None = None,
    within: Session | None = None,
) -> Result:
    """Like `embed`, in joined processes, on a mesh.

    Args:
      encoder: in place of that which `config.init_from` names.
      within: the session that this is a part of, which says what it does itself; None for a separate session.
    """
    embedding = _Embedding(config, workdir, mesh, encoder, quiet=within is not None)
    if within is not None:
        return embedding.run(within)
    with session(config, workdir) as held:
        return embedding.run(held)


class _Embedding:
    """One run of the task."""

    def __init__(
        self, config: ConfigDict, workdir: epath.Path, mesh: Mesh, encoder: Encoder | None, *, quiet: bool = False
    ):
        """Raises UserError if the encoder or the images are not what they should be; nothing has been written then."""
        check_tensorflow(config.data)
        self._encoder = encoder or load_encoder(config.init_from)
        self._data = data_for(config.data, self._encoder)
        self._config, self._workdir, self._mesh = config, workdir, mesh
        self._is_first, self._quiet = jax.process_index() == 0, quiet
        self._source = make_source(self._data, "train")
        check_reader(self._source, config.data)
        if config.embed.parquet:
            check_parquet()
        source, size = self._source, config.features.batch_size
        processes.agree("data", {"images": [source.described(), source.fingerprint]})
        mesh_lib.check_batch_size(mesh, size, "features.batch_size")
        self._piece = -(-config.embed.piece // size) * size
        self._pieces = Pieces(workdir, self._piece, len(source))
        self._about = {"images": len(source), "fingerprint": source.fingerprint, "images_per_piece": self._piece}
        self._facts: Result = {
            "source": self._encoder.source,
            "step": self._encoder.step,
            "sha256": self._encoder.sha256,
        }

    def run(self, held: Session) -> Result:
        done = self._workdir / "embed.json"
        self._say(self._summary())
        same_encoder(self._workdir, self._facts, write=self._is_first)
        if done.exists() and _is_whole(self._workdir / "embeddings.npz"):
            result = _finished(done)
            check_same({name: result.get(name) for name in self._about}, self._about, self._workdir)
            wants_more = self._config.embed.parquet and not (self._workdir / "embeddings.parquet").exists()
            if not wants_more:
                self._say(
                    f"complete  {self._workdir / 'embeddings.npz'} has the features of {result['embedded']} images"
                )
                return result
        self._pieces.claim(self._about, write=self._is_first)
        held.claim()
        begin = time.monotonic()
        if not held.preemption.finished(lambda: self._compute(held)):
            self._leave(held)
        seconds, result = time.monotonic() - begin, {}
        if self._is_first:
            result = self._write(seconds)
        processes.agree("embeddings", {"written": True}, seconds=3600)
        if self._is_first:
            self._pieces.remove()
        return result

    def _compute(self, held: Session) -> None:
        """The pieces that are not there yet."""
        config, source, size = self._config, self._source, self._config.features.batch_size
        first = int(multihost_utils.broadcast_one_to_all(np.int32(self._pieces.done()))) if jax.process_count() > 1 else (
            self._pieces.done()
        )  # fmt: skip
        if first:
            self._say(f"resuming  after {min(first * self._piece, len(source))} of {len(source)} images")
        if first == self._pieces.count:
            return
        encoder, dtype = self._encoder, jnp.dtype(config.dtype)
        inputs = Inputs(self._data.image_size, tuple(encoder.mean), tuple(encoder.std), dtype, encoder.pixels)
        extract = FeatureExtractor(frozen(in_dtype(encoder.module, dtype)), self._mesh, inputs)
        variables = jax.device_put(jax.tree.map(np.asarray, encoder.variables), mesh_lib.everywhere(self._mesh))
        rows, begin = mesh_lib.process_rows(self._mesh, size), first * self._piece // size
        batches = eval_batches(source, self._data, batch_size=size, rows=rows, first=begin)
        bad_images = BadImages([source], console.say)
        parts: list[tuple[np.ndarray, ...]] = []
        with Counter(len(source), begin * size, active=self._is_first) as counter:
            try:
                for number, part in enumerate(extract.parts(variables, batches, size, first=begin), begin + 1):
                    parts.append(part)
                    images = min(number * size, len(source))
                    counter.advance(images - (number - 1) * size)
                    if images % self._piece and images < len(source):
                        continue
                    held.check()
                    piece = (images - 1) // self._piece
                    if self._is_first:
                        self._pieces.write(piece, _joined(parts))
                    parts = []
                    bad_images.tell(epoch_ends=images == len(source))
                    if images < len(source) and held.preemption.reached():
                        self._leave(held)
            except NotFiniteFeatures as error:
                raise UserError(
                    f"the features of {source.place(error.place)} are not finite; check the weights that init_from names, "
                    f"{encoder.source}."
                ) from None

    def _leave(self, held: Session) -> None:
        done = min(self._pieces.done() * self._piece, len(self._source))
        held.preemption.leave(f"the features of {done} of {len(self._source)} images are kept in {self._workdir}")

    def _write(self, seconds: float) -> Result:
        source, workdir, pieces = self._source, self._workdir, self._pieces.read
        files = {"npz": "embeddings.npz"}
        count, width = write_npz(workdir / files["npz"], pieces, source.path, source.class_names)
        if self._config.embed.parquet:
            files["parquet"] = "embeddings.parquet"
            write_parquet(workdir / files["parquet"], pieces, source.path, source.class_names)
        result = {
            "task": "embed",
            "bt_jax": __version__,
            "checkpoint": self._facts,
            "data": source.name,
            **self._about,
            "embedded": count,
            "left_out": len(source) - count,
            "features": width,
            "image_size": self._data.image_size,
            "eval_resize": self._data.eval_resize,
            "files": files,
            "seconds_of_last_start": round(seconds, 1),
            "config": self._config.to_dict(),
        }
        write_whole(workdir / "embed.json", json.dumps(result, indent=1) + "\n")
        left = f"; {result['left_out']} that cannot be read are left out" if result["left_out"] else ""
        lines = [f"\nembedded  {count} images, {width} features each{left}"]
        lines += [f"{kind:<9} {workdir / name}" for kind, name in files.items()]
        lines.append(f"to use    python -m bt_jax.evaluation.neighbours {workdir}")
        self._say("\n".join(lines))
        return result

    def _summary(self) -> str:
        config, data, source = self._config, self._data, self._source
        resize = f"shorter side {data.eval_resize}, centre" if data.eval_resize else "the whole image resized to"
        lines = {
            "bt_jax": f"{__version__}, JAX {jax.__version__}: embed",
            "devices": f"{self._mesh.size} × {self._mesh.devices.flat[0].device_kind}, batches of {config.features.batch_size}",
            "data": f"{source.name}: {source.described()}",
            "encoder": f"{self._encoder.arch}, {self._encoder.width} features, from {self._encoder.source}",
            "images": f"{resize} {data.image_size}×{data.image_size}",
            "workdir": str(self._workdir),
        }
        notices = [f"note      {notice}" for notice in source.notices]
        return "\n".join([f"{title:<9} {value}" for title, value in lines.items()] + notices)

    def _say(self, text: str) -> None:
        if self._is_first and not self._quiet:
            console.say(text)


def _is_whole(path: epath.Path) -> bool:
    """Whether the file is there and not cut off: then its directory, which stands at the end, can be read."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return "features.npy" in archive.namelist()
    except (*errors_of_files(), zipfile.BadZipFile):
        return False


def data_for(data: ConfigDict, encoder: Encoder) -> ConfigDict:
    """`config.data` for an encoder's images: its channels and range, and with image_size 0 its size, to which eval_resize is scaled
    from 224.

    Raises:
      UserError: other channels or another range are declared; eval_resize is smaller than the image.
    """
    data = with_pixels(data, encoder.pixels, encoder.source)
    if not data.image_size:
        if 0 < data.eval_resize < 224:
            raise UserError(
                f"data.eval_resize is {data.eval_resize}, but must be 0 or at least 224, from which it is scaled to the encoder's size, "
                "unless data.image_size is given too."
            )
        data.eval_resize = round(data.eval_resize * encoder.input_size / 224)
        data.image_size = encoder.input_size
    return data


def _joined(parts: list[tuple[np.ndarray, ...]]) -> Piece:
    features, labels, examples = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return {"features": features, "labels": labels, "examples": examples}
