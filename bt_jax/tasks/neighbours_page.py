"""The page of nearest neighbours that a run without labels ends with: WORKDIR/neighbours.html."""

import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.order import evenly
from bt_jax.data.sources.base import Source
from bt_jax.data.subsets import take
from bt_jax.evaluation.neighbours import neighbours
from bt_jax.reporting.neighbours_page import Tile, neighbours_page
from bt_jax.runtime.files import write_whole

_NEIGHBOURS = 8  # of each image
_SIDE = 112  # pixels of an image on the page, if it is shown smaller to the encoder


def write_page(
    path: epath.Path,
    source: Source,
    data: ConfigDict,
    features: np.ndarray,
    examples: np.ndarray,
    *,
    count: int,
    title: str,
    mesh: Mesh | None = None,
    write: bool = True,
) -> bool:
    """Writes a page with some images, evenly spread over a set, and the nearest neighbours of each.

    Args:
      data: `config.data` of a run.
      features: (n, F) of some images of the source, and their numbers `examples`, (n,).
      count: rows of the page.
      write: whether this process writes; all take part in the search.

    Returns:
      Whether there are enough images for a page.
    """
    k = min(_NEIGHBOURS, len(features) - 1)
    if k < 1:
        return False
    queries = evenly(len(features), count)
    found, similarities = neighbours(features, features[queries], k=k + 1, mesh=mesh)
    if not write:
        return True
    shown = np.unique(np.concatenate([queries, found.ravel()]))
    images = dict(zip(shown.tolist(), _images(source, data, examples[shown]), strict=True))
    rows = []
    for query, others, cosines in zip(queries.tolist(), found.tolist(), similarities.tolist(), strict=True):
        row = [Tile(images[query], source.path(int(examples[query])))]
        pairs = [(other, cosine) for other, cosine in zip(others, cosines, strict=True) if other != query][:k]
        row += [Tile(images[other], source.path(int(examples[other])), cosine) for other, cosine in pairs]
        rows.append(row)
    write_whole(path, neighbours_page(title, rows))
    return True


def _images(source: Source, data: ConfigDict, examples: np.ndarray) -> np.ndarray:
    """The images as evaluations see them, (n, S, S, 3) uint8, large enough for a page."""
    larger = data.copy_and_resolve_references()
    larger.image_size = max(_SIDE, data.image_size)
    larger.eval_resize = -(-data.eval_resize * larger.image_size // data.image_size)
    part = take(source, examples, source.name)
    (batch,) = eval_batches(part, larger, batch_size=len(examples), rows=np.arange(len(examples)))
    return batch["image"]
