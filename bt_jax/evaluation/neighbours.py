"""Nearest images and near-duplicates of a set, from its features.

    python -m bt_jax.evaluation.neighbours OUT [--threshold=0.99]     groups of near-duplicates
    python -m bt_jax.evaluation.neighbours OUT --of=PATH [--k=10]     the images nearest to one of the set

OUT is the workdir of a task `embed`, or its embeddings.npz; PATH is one of its paths.
"""

import argparse
import numbers
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
from jax.sharding import Mesh

from bt_jax import console
from bt_jax.errors import UserError, first_line
from bt_jax.evaluation.knn import nearest
from bt_jax.runtime.paths import as_path

_FEW = 100  # images, whose mean says little


def neighbours(
    features: np.ndarray, queries: np.ndarray | None = None, *, k: int = 10, mesh: Mesh | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest images by cosine similarity: an exact search, which never holds all similarities.

    Args:
      features: (n, F) floats of the images that are searched, not necessarily normalised.
      queries: (m, F) of the images whose neighbours are wanted; by default those of `features`, none its own neighbour.
      k: the number of neighbours.
      mesh: its devices share the search; by default the first local device.

    Returns:
      (images, similarities): (m, k) int32, places in `features`, the nearest first, and (m, k) float32 from -1 to 1. Among
      equally similar images the first is nearer.

    Raises:
      UserError: shapes that do not match, features that are not finite, or k outside 1 to the number of other images.
    """
    features = np.asarray(features)
    own = queries is None
    queries = features if queries is None else np.asarray(queries)
    if features.ndim != 2 or queries.ndim != 2 or features.shape[1] != queries.shape[1]:
        raise UserError(f"features is {features.shape} and queries {queries.shape}; both must be (n, F).")
    if isinstance(k, bool) or not isinstance(k, numbers.Integral) or not 1 <= k <= len(features) - own:
        raise UserError(
            f"k is {k!r}; it must be an integer, at least 1 and at most {len(features) - own}, the number of other images."
        )
    if not (np.isfinite(features).all() and np.isfinite(queries).all()):
        raise UserError("some features are not finite; the encoder's weights or its input must be wrong.")
    images, similarities = np.zeros((len(queries), k), np.int32), np.zeros((len(queries), k), np.float32)
    for rows, similarity, index in nearest(features, queries, k=k + own, block=1024, train_block=2048, mesh=mesh):
        if own:  # an image is among its nearest, unless as many are equal to it
            is_self = index == rows[:, None]
            is_self[~is_self.any(axis=1), -1] = True
            index, similarity = (x[~is_self].reshape(len(rows), k) for x in (index, similarity))
        images[rows], similarities[rows] = index, similarity
    return images, similarities


def near_duplicates(
    features: np.ndarray, *, threshold: float = 0.99, k: int = 16, mesh: Mesh | None = None
) -> list[list[int]]:
    """Groups of images with nearly the same features: each is linked to those of its k nearest that are that similar.

    The mean of the features is subtracted first, as features after a ReLU all point much the same way; of fewer than 100 images it
    says too little, and stays.

    Args:
      features: (n, F) floats.
      threshold: cosine similarity from which two images count as near-duplicates.

    Returns:
      Groups of two or more images, by their places in `features`, increasing; the largest group first.

    Raises:
      UserError: as `neighbours`.
    """
    n = len(features)
    if n < 2:
        return []
    features = np.asarray(features, np.float32)
    centred = features - features.mean(axis=0) if n >= _FEW else features
    images, similarities = neighbours(centred, k=min(k, n - 1), mesh=mesh)
    group = list(range(n))

    def root(image: int) -> int:
        while group[image] != image:
            group[image] = group[group[image]]
            image = group[image]
        return image

    for image, place in np.argwhere(similarities >= threshold).tolist():
        one, other = root(image), root(int(images[image, place]))
        group[max(one, other)] = min(one, other)
    members: dict[int, list[int]] = {}
    for image in range(n):
        members.setdefault(root(image), []).append(image)
    return sorted((found for found in members.values() if len(found) > 1), key=lambda found: (-len(found), found[0]))


def read_embeddings(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(features (n, F), paths (n,)) of the task `embed`.

    Args:
      path: its workdir, or the file embeddings.npz there.

    Raises:
      UserError: there is no such file, or it is something else.
    """
    place = as_path(path, "the embeddings")
    file = place / "embeddings.npz" if place.is_dir() else place
    if not file.exists():
        raise UserError(f"there are no embeddings in {place}; name the --workdir of a task embed, configs/embed.py.")
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as saved:
            features, paths = saved["features"], saved["paths"]
    except Exception as error:  # numpy and zipfile may raise anything on a damaged file
        raise UserError(f"{file} cannot be read as embeddings ({first_line(error)}); make it again.") from None
    if features.ndim != 2 or paths.shape != features.shape[:1]:
        raise UserError(f"{file} has features {features.shape} and paths {paths.shape}; they must be (n, F) and (n,).")
    return features, paths


def main(arguments: Sequence[str], say: Callable[[str], None] = console.say) -> None:
    """The command; see above.

    Raises:
      UserError: bad arguments, or embeddings that cannot be read.
    """
    parser = _Parser(prog="python -m bt_jax.evaluation.neighbours", add_help=False)
    parser.add_argument("embeddings")
    parser.add_argument("--of", default="")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threshold", type=float, default=0.99)
    wanted = parser.parse_args(arguments)
    features, paths = read_embeddings(wanted.embeddings)
    if wanted.of:
        found = np.flatnonzero(paths == wanted.of)
        if not len(found):
            raise UserError(
                f"{wanted.of} is not among the {len(paths)} paths of {wanted.embeddings}, such as {paths[0]}."
            )
        others = np.delete(np.arange(len(paths)), found[0])
        images, similarities = neighbours(features[others], features[found[:1]], k=min(wanted.k, len(others)))
        for image, similarity in zip(others[images[0]], similarities[0], strict=True):
            say(f"{similarity:.4f}  {paths[image]}")
        return
    groups = near_duplicates(features, threshold=wanted.threshold)
    count = sum(map(len, groups))
    say(
        f"{count} of {len(paths)} images are near-duplicates, in {len(groups)} group(s), by a cosine of {wanted.threshold:g} or "
        "more"
    )
    for group in groups:
        say("\n" + "\n".join(str(paths[image]) for image in group))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{message}; python -m bt_jax.evaluation.neighbours OUT [--of=PATH] [--k=10] [--threshold=0.99]"
        )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(console.printable(f"error: {error}"))  # which Python prints, with status 1
