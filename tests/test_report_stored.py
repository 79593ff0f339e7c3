"""bt_jax/reporting/report/stored.py and run.py: small arrays and images, whole or not at all."""

import io

import numpy as np
from etils import epath
from PIL import Image

from bt_jax.reporting.report.run import read_run
from bt_jax.reporting.report.stored import packed, read_arrays, unpacked, write_arrays


def test_images_come_back(tmp_path):
    """Of different sizes, in order; none leaves nothing."""
    images = [np.full((8, 4 + i, 3), 60 * i, np.uint8) for i in range(4)]
    path = epath.Path(tmp_path) / "folder" / "some.npz"
    write_arrays(path, packed("views", images) | packed("none", []) | {"step": np.array(3)})
    found = read_arrays(path)
    back = [np.asarray(Image.open(io.BytesIO(file))) for file in unpacked("views", found)]
    assert [x.shape for x in back] == [x.shape for x in images] and int(found["step"]) == 3
    assert max(np.abs(x.astype(int) - y).max() for x, y in zip(back, images, strict=True)) <= 2
    assert unpacked("none", found) == [] and [p.name for p in path.parent.iterdir()] == ["some.npz"]


def test_what_is_damaged_is_none(tmp_path):
    path = epath.Path(tmp_path) / "some.npz"
    assert read_arrays(path) is None
    for content in (b"", b"no zip", b"PK\3\4 cut"):
        path.write_bytes(content)
        assert read_arrays(path) is None


def test_series(tmp_path):
    """Numbers by epoch, or by step where there is no epoch; what is no finite number is left out."""
    lines = [
        '{"step": 1, "epoch": 0.5, "a": 2}',
        '{"step": 2, "a": null}',
        '{"step": 3, "a": true}',
        '{"step": 4, "a": 1.5}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    run = read_run(epath.Path(tmp_path))
    epochs, values = run.series("a")
    assert epochs.tolist() == [0.5, 4] and values.tolist() == [2, 1.5] and run.step == 4 and run.names == ["a"]
    assert len(run.series("b")[0]) == 0
