"""A map of features in two dimensions, with a small picture of each image, none of which covers another."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

_CELL, _FRAME = 40, 3  # pixels
_COLOURS = 20  # of frames


def picture_map(
    features: np.ndarray, images: Sequence[np.ndarray], labels: Sequence[int] | None = None, *, slow: bool = True
) -> tuple[bytes, str]:
    """The map as a WebP file with a transparent ground, and how its places were found, in words.

    Args:
      features: (n, F), n at least 3; images: n arrays (H, W, 3) uint8.
      labels: a class for each image, below 20, for the colour of its frame; None for no frames.
      slow: whether t-SNE may be used, which takes some seconds and needs scikit-learn; otherwise the map is by PCA.
    """
    places, how = (_tsne(features) if slow and len(features) >= 30 else None), "t-SNE"
    if places is None:
        places, how = _pca(features), "PCA"
    side = int(np.ceil(np.sqrt(1.5 * len(features))))
    canvas = Image.new("RGBA", (side * _CELL, side * _CELL), (0, 0, 0, 0))
    classes = {label: i for i, label in enumerate(sorted(set(labels or [])))}
    for number, (row, column) in enumerate(_in_cells(places, side)):
        corner = (column * _CELL, row * _CELL)
        inner = _CELL - 2
        if labels is not None:
            canvas.paste(_colour(classes[labels[number]]), (*corner, corner[0] + inner, corner[1] + inner))
        width = inner - 2 * _FRAME
        small = Image.fromarray(images[number]).resize((width, width), Image.Resampling.BICUBIC)
        canvas.paste(small, (corner[0] + _FRAME, corner[1] + _FRAME))
    file = io.BytesIO()
    canvas.save(file, "WEBP", quality=80)
    return file.getvalue(), how


def _tsne(features: np.ndarray) -> np.ndarray | None:
    """(n, 2) by t-SNE of unit vectors, the same every time; None without scikit-learn."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return None
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=0).fit_transform(unit)


def _pca(features: np.ndarray) -> np.ndarray:
    """(n, 2), the first two principal components."""
    x = features.astype(np.float64) - features.mean(axis=0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    found = np.zeros((len(x), 2))
    found[:, : min(2, len(s))] = (u * s)[:, :2]
    return found


def _in_cells(places: np.ndarray, side: int) -> list[tuple[int, int]]:
    """(row, column) of a grid for each place (n, 2): the nearest cell that is free, the crowded middle first."""
    low, extent = places.min(axis=0), np.ptp(places, axis=0)
    wanted = (places - low) / np.where(extent > 0, extent, 1) * (side - 1)
    free = np.array([(row, column) for row in range(side) for column in range(side)], float)
    cells = [(0, 0)] * len(places)
    for number in np.argsort(np.square(wanted - (side - 1) / 2).sum(axis=1), kind="stable").tolist():
        nearest = int(np.argmin(np.square(free - wanted[number, ::-1]).sum(axis=1)))
        cells[number] = (int(free[nearest, 0]), int(free[nearest, 1]))
        free[nearest] = np.inf
    return cells


def _colour(number: int) -> tuple[int, int, int, int]:
    """Of a frame: hues in turn, the second half of the classes darker."""
    hue = (number % (_COLOURS // 2)) / (_COLOURS // 2)
    value = 0.9 if number < _COLOURS // 2 else 0.55
    k = (np.array([5, 3, 1]) + hue * 6) % 6
    rgb = value - value * 0.75 * np.clip(np.minimum(k, 4 - k), 0, 1)
    red, green, blue = np.round(255 * rgb).astype(int).tolist()
    return red, green, blue, 255
