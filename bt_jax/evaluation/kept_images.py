"""Small copies of images that an evaluation reads anyway, kept to be shown."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from PIL import Image

from bt_jax.evaluation.features import EvalBatch


class KeptImages:
    """Copies of some of a set's images on this process, made as their batches pass by for the first time.

    Attributes:
      images: (H, W, 3) uint8 by their positions in the set.
    """

    def __init__(self, most: int, side: int, picture: Callable[[np.ndarray], np.ndarray] = lambda image: image):
        """Args:
        most: the largest number of images, evenly spread over those of this process.
        side: the longest side of a copy, in pixels.
        picture: from levels (H, W, C) to what is shown, (H, W, 3) uint8.
        """
        self.images: dict[int, np.ndarray] = {}
        self._most, self._side, self._whole, self._picture = most, side, False, picture

    def passing(
        self, batches: Iterable[EvalBatch], rows: np.ndarray, batch_size: int, total: int
    ) -> Iterator[EvalBatch]:
        """The same batches.

        Args:
          rows: of the global batch, that this process has.
          total: images in the set.
        """
        mine = -(-total * len(rows) // batch_size)
        stride, seen = max(1, -(-mine // self._most)), 0
        for number, batch in enumerate(batches):
            if not self._whole:
                for row, image, sound in zip(rows.tolist(), batch["image"], batch["mask"].tolist(), strict=True):
                    if sound and seen % stride == 0:
                        self.images[number * batch_size + row] = shrunk(self._picture(image), self._side)
                    seen += sound
            yield batch
        self._whole = True


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """The image (H, W, 3) uint8 with no side above `side` pixels; a copy."""
    if max(image.shape[:2]) <= side:
        return image.copy()
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    return np.asarray(small)
