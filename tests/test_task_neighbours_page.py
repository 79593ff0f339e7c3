"""bt_jax/tasks/neighbours_page.py: the page shows the images of the set, each query's nearest first."""

import base64
import io
import re

import numpy as np
import pytest
from batches import data_config
from etils import epath
from PIL import Image

from bt_jax.data.sources.folder import FolderSource
from bt_jax.tasks.neighbours_page import write_page


@pytest.fixture
def folder(tmp_path):
    """Twelve grey images, each of its own level."""
    (tmp_path / "images").mkdir()
    for i in range(12):
        Image.fromarray(np.full((20, 24, 3), 20 * i, np.uint8)).save(tmp_path / "images" / f"{i:02d}.png")
    return FolderSource(str(tmp_path / "images"), "train")


def test_images_and_names_on_the_page(folder, tmp_path):
    """Features are of eleven images, as one did not decode: their numbers tell which."""
    examples = np.delete(np.arange(12), 4)
    angle = examples / 10
    features = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    path = epath.Path(tmp_path / "page.html")
    assert write_page(path, folder, data_config(eval_resize=14), features, examples, count=3, title="some")
    page = path.read_text()
    rows = [re.findall(r'alt="(\d+).png" src="data:image/jpeg;base64,([^"]+)"', row) for row in page.split("<tr>")[1:]]
    assert [row[0][0] for row in rows] == ["00", "03", "08"] and [len(row) for row in rows] == [9, 9, 9]
    for row in rows:
        numbers = [int(name) for name, _ in row]
        distances = [abs(number - numbers[0]) for number in numbers]
        assert distances == sorted(distances) and 4 not in numbers and len(set(numbers)) == 9
        for name, data in row:
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            assert pixels.shape == (112, 112, 3) and abs(int(pixels[50, 50, 0]) - 20 * int(name)) <= 2


def test_too_few_images(folder, tmp_path):
    path = epath.Path(tmp_path / "page.html")
    assert not write_page(path, folder, data_config(), np.ones((1, 2), np.float32), np.arange(1), count=3, title="one")
    assert not path.exists()
    assert write_page(
        path, folder, data_config(), np.ones((2, 2), np.float32), np.arange(2), count=3, title="two", write=False
    )
    assert not path.exists(), "another process writes it"
