"""The quickstart's images: labelled crops of free photographs that come with scikit-image and scikit-learn.

Each photograph is a class. It is cut along its longer side into five strips; test crops come from the middle strip and train
crops from the others, so no pixel is in both. Nothing is downloaded.
"""

import importlib.util
import pathlib

import numpy as np
from PIL import Image

from bt_jax.errors import UserError

_SKIMAGE = ("skimage", "data", "scikit-image")
_SKLEARN = ("sklearn", "datasets/images", "scikit-learn")
PHOTOGRAPHS = {
    "astronaut": (_SKIMAGE, "astronaut.png"),
    "brick": (_SKIMAGE, "brick.png"),
    "camera": (_SKIMAGE, "camera.png"),
    "cat": (_SKIMAGE, "chelsea.png"),
    "coffee": (_SKIMAGE, "coffee.png"),
    "coins": (_SKIMAGE, "coins.png"),
    "grass": (_SKIMAGE, "grass.png"),
    "gravel": (_SKIMAGE, "gravel.png"),
    "galaxies": (_SKIMAGE, "hubble_deep_field.jpg"),
    "tissue": (_SKIMAGE, "ihc.png"),
    "moon": (_SKIMAGE, "moon.png"),
    "motorcycle": (_SKIMAGE, "motorcycle_left.png"),
    "page": (_SKIMAGE, "page.png"),
    "retina": (_SKIMAGE, "retina.jpg"),
    "rocket": (_SKIMAGE, "rocket.jpg"),
    "temple": (_SKLEARN, "china.jpg"),
    "flower": (_SKLEARN, "flower.jpg"),
}
_LONG_SIDE = 640  # larger photographs are reduced to this, so that crops show about as much of each
_STRIPS, _TEST_STRIP = 5, 2
_CROP = (40, 72)  # sides of a crop, in pixels of the photograph


def load_photograph(name: str) -> np.ndarray:
    """One photograph, (H, W, 3) uint8, grey ones with three equal channels.

    Raises:
      UserError: the package that ships it is not installed, or no longer has it.
    """
    (module, folder, package), file = PHOTOGRAPHS[name]
    found = importlib.util.find_spec(module)  # finds it without importing it, which takes a second
    path = None if found is None or found.origin is None else pathlib.Path(found.origin).parent / folder / file
    if path is None or not path.exists():
        raise UserError(f"the photograph {file} comes with {package}, where it was not found; pip install {package}.")
    image = Image.open(path).convert("RGB")
    image.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def photograph_crops(split: str, *, size: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops of random places and sizes, the same at every call.

    Args:
      split: "train" or "test".
      size: side of the result, in pixels.
      per_class: crops of each photograph.

    Returns:
      images (17·per_class, size, size, 3) uint8 and labels (17·per_class,) int32.
    """
    rng = np.random.RandomState({"train": 1, "test": 2}[split])  # numpy has frozen its stream
    images = np.empty((len(PHOTOGRAPHS), per_class, size, size, 3), np.uint8)
    for label, name in enumerate(PHOTOGRAPHS):
        photograph = load_photograph(name)
        tall = photograph.shape[0] > photograph.shape[1]
        if tall:
            photograph = photograph.transpose(1, 0, 2)
        height, width = photograph.shape[:2]
        bounds = [width * i // _STRIPS for i in range(_STRIPS + 1)]
        start, stop = bounds[_TEST_STRIP], bounds[_TEST_STRIP + 1]
        regions = [(start, stop)] if split == "test" else [(0, start), (stop, width)]
        for i in range(per_class):
            left, right = regions[rng.randint(len(regions))]
            side = rng.randint(_CROP[0], min(_CROP[1], height, right - left) + 1)
            x, y = rng.randint(left, right - side + 1), rng.randint(height - side + 1)
            crop = photograph[y : y + side, x : x + side]
            crop = crop.transpose(1, 0, 2) if tall else crop
            images[label, i] = np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))
    labels = np.repeat(np.arange(len(PHOTOGRAPHS), dtype=np.int32), per_class)
    return images.reshape(-1, size, size, 3), labels
