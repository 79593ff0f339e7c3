"""bt_jax/reporting/neighbours_page.py: one file with all images in it."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from bt_jax.reporting.neighbours_page import Tile, neighbours_page


def test_a_page():
    """Well-formed, with each image once in its place, names escaped, and nothing from the network."""
    images = [np.full((20, 20, 3), 60 * i, np.uint8) for i in range(4)]
    rows = [
        [Tile(images[0], "a<b>&.png"), Tile(images[1], "b.png", 0.91234)],
        [Tile(images[2], "\udcff.png"), Tile(images[3], 'quote".png', -0.5)],
    ]
    page = neighbours_page("/data & more, after 4 steps", rows)
    page.encode("utf-8")
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(page)
    found = [attributes for tag, attributes in tags if tag == "img"]
    assert [attributes["alt"] for attributes in found] == ["a<b>&.png", "b.png", "\\udcff.png", 'quote".png']
    for attributes, image in zip(found, images, strict=True):
        kind, _, data = attributes["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert pixels.shape == (20, 20, 3) and abs(pixels.astype(int) - image).max() <= 2
    assert "0.912" in page and "-0.500" in page and "/data &amp; more" in page
    assert not re.search(r"https?://|<script", page)
