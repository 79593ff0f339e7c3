"""bt_jax/reporting/report/figures.py and picture_map.py: colours of the page, and no picture over another."""

import io
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from bt_jax.reporting.report import figures
from bt_jax.reporting.report.figures import Line
from bt_jax.reporting.report.picture_map import _in_cells, picture_map


def drawn():
    x = np.arange(1000.0)
    return {
        "lines": figures.lines(
            [Line(x, x + 1, "a"), Line(x, x + 2, "b", "orange")], levels=[(3.0, "floor")], marks=[5.0], log=True
        ),
        "histogram": figures.histogram([(np.arange(20), "a", "blue")], low=-1, high=1, x_label="correlation"),
        "correlations": figures.correlations(np.eye(12)),
        "confusion": figures.confusion(np.eye(3, dtype=int), ["a", "b<c>", "a very long name of a class"]),
        "odd names": figures.confusion(np.eye(3, dtype=int), ["$x^$", "猫", "a & b"]),
        "many classes": figures.confusion(np.eye(30, dtype=int), [str(i) for i in range(30)]),
    }


@pytest.mark.parametrize("name", list(drawn()))
def test_svg(name):
    """Well-formed, in the page's colours only, with text of 12 pixels, and no identifiers that repeat in the next figure."""
    svg = drawn()[name]
    xml.etree.ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
    assert all(colour == "none" or colour.startswith("var(--") for colour in colours), colours
    assert set(re.findall(r"font-size: (\d+)px", svg)) <= {"12"} and "<style" not in svg and "#0101" not in svg
    assert not re.findall(r'id="[a-z]+_\d+"', svg) and len(svg) < 60_000


def test_names_of_classes_are_only_text():
    """A dollar is no formula, and a glyph that matplotlib lacks is left to the browser."""
    svg = drawn()["odd names"]
    assert all(name in svg for name in ("$x^$", "猫", "a &amp; b"))


@pytest.mark.parametrize(
    "values", [[0.35095, 0.35098], [0.0123, 0.01231], [1.2e-4, 3e-4], [-1.2345, -1.2346], [99999, 100500], [0, 0], [5]]
)
def test_numbers_beside_an_axis(values):
    """Short enough for the room that they have, and each another one; what hardly moves is drawn as flat."""
    svg = figures.lines([Line(np.arange(len(values)), values)])
    numbers = re.findall(r">([^<>\n]+)</text>", svg.partition("epoch")[2])
    assert len(numbers) >= 3 and len(set(numbers)) == len(numbers) and max(map(len, numbers)) <= 7
    low, high = (float(re.sub("k", "e3", numbers[i])) for i in (0, -1))
    assert high - low > 0.01 * max(map(abs, values))


def test_a_single_point_is_seen():
    svg = {n: figures.lines([Line(np.arange(n), np.arange(n))]) for n in (1, 2)}
    marks = "stroke: var(--blue)"
    assert svg[1].count("<use") > svg[2].count("<use") and marks in svg[1]


def test_a_map():
    """Each picture in a cell of its own; similar images end up near each other; the same each time."""
    rng = np.random.default_rng(0)
    labels = [i % 2 for i in range(20)]
    features = (rng.normal(size=(20, 5)) + 20 * np.array(labels)[:, None]).astype(np.float32)
    images = [np.full((8, 8, 3), 50 + 150 * label, np.uint8) for label in labels]
    file, how = picture_map(features, images, labels, slow=False)
    assert how == "PCA" and picture_map(features, images, labels, slow=False)[0] == file
    pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGBA"))
    shown = np.argwhere(pixels[20::40, 20::40, 3] > 0)
    assert len(shown) == 20
    grey = pixels[20::40, 20::40, 0][tuple(shown.T)] > 128
    assert grey.sum() == 10 and abs(shown[grey, 1].mean() - shown[~grey, 1].mean()) > 2


def test_places_that_are_all_the_same():
    cells = _in_cells(np.zeros((9, 2)), 4)
    assert len(set(cells)) == 9


def test_tsne_if_there_are_enough():
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    assert picture_map(features, [np.zeros((4, 4, 3), np.uint8)] * 40)[1] == "t-SNE"
