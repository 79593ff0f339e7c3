"""The page of nearest neighbours: one HTML file with the images in it, which needs no network."""

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

_SIDE = 112  # pixels of an image on the page


class Tile(NamedTuple):
    """An image on the page.

    Attributes:
      image: (H, W, 3) uint8.
      name: its path or number.
      similarity: cosine to the first image of the row; None for that image.
    """

    image: np.ndarray
    name: str
    similarity: float | None = None


def neighbours_page(title: str, rows: Sequence[Sequence[Tile]]) -> str:
    """The HTML of a page with a row for each query: the image itself and its neighbours.

    Args:
      title: what the page shows, a line.
    """
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>
<style>
body {{ font: 13px sans-serif; margin: 2em; }}
td {{ vertical-align: top; padding: 3px; max-width: {_SIDE}px; overflow-wrap: anywhere; color: #555; font-size: 10px; }}
td:first-child {{ padding-right: 24px; }}
img {{ width: {_SIDE}px; display: block; image-rendering: auto; }}
</style></head><body>
<h1>Nearest neighbours</h1>
<p>{_text(title)}. The first image of a row, and those whose features are nearest to its own, with the cosine similarity.</p>
<table>
{body}
</table>
</body></html>
"""


def _cell(tile: Tile) -> str:
    file = io.BytesIO()
    Image.fromarray(tile.image).save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    words = _text(tile.name) if tile.similarity is None else f"<b>{tile.similarity:.3f}</b> {_text(tile.name)}"
    return f'<td><img alt="{_text(tile.name)}" src="data:image/jpeg;base64,{data}">{words}</td>'


def _text(text: str) -> str:
    return html.escape(text.encode("utf-8", "backslashreplace").decode())
