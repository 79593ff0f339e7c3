"""docs/own_method.md: its code, outside the package, trains, resumes, and is loaded; faults in it are reported."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from etils import epath

import bt_jax
from bt_jax.config import based_on, default
from bt_jax.tasks.export import export
from bt_jax.tasks.finetune import finetune
from bt_jax.tasks.knn import knn
from bt_jax.tasks.pretrain import pretrain

NO_COLOURS = ("jitter", "grayscale", "blur", "solarize")  # as by recipes.quick_views
ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
    "mesh.data": 1,
    "batch_size": 64,
    "epochs": 2,
    "data.image_size": 16,
    "data.threads": 2,
    "data.photographs.size": 16,
    "data.photographs.train_per_class": 4,  # 68 images: a step an epoch
    "data.photographs.test_per_class": 2,
    "model.width": 4,
    "vicreg.projector": (16, 16),
    **{f"vicreg.view_{v}.{name}": 0.0 for v in "ab" for name in NO_COLOURS},
    "monitor.every_epochs": 1,
    "monitor.batch_size": 32,
    "monitor.pairs": 32,
    "log.tensorboard": False,
    "report.write": False,
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The page's files, on the path."""
    folder = tmp_path_factory.mktemp("own")
    files = re.findall(
        r"`(my_package/\w+\.py)`:\n\n```python\n(.*?)```", (ROOT / "docs" / "own_method.md").read_text(), re.DOTALL
    )
    assert [name for name, _ in files] == ["my_package/vicreg.py", "my_package/nets.py", "my_package/config.py"]
    (folder / "my_package").mkdir()
    for name, code in files:
        (folder / name).write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def small_config(**changes):
    """The page's config shortened to a few seconds; with another method if one is given."""
    from my_package.config import get_config

    config = get_config()
    if method := changes.pop("method", None):
        config = default(method=method)
        config.data.source, config.optimizer.warmup_epochs = "photographs", 1
    config.update_from_flattened_dict({n: v for n, v in SMALL.items() if not (method and "vicreg" in n)} | changes)
    return config


@pytest.fixture(scope="module")
def run(package):
    """The workdir of two steps, by the page's command."""
    workdir = package / "run"
    command = [
        sys.executable,
        ROOT / "main.py",
        f"--config={package / 'my_package' / 'config.py'}",
        f"--workdir={workdir}",
    ]
    command += [f"--config.{name}={value}" for name, value in SMALL.items()]
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr + done.stdout
    return workdir, done.stdout


def test_the_pages_command(run):
    """Its loss is printed with its parts, and the monitor measures the alignment of its two views."""
    workdir, said = run
    assert re.search(r"loss [\d.]+ inv [\d.]+ var [\d.]+ cov [\d.e+-]+", said), said
    assert "kNN accuracy" in said
    metrics = (workdir / "metrics.jsonl").read_text()
    assert '"covariance"' in metrics and '"alignment"' in metrics


def test_the_run_goes_on_to_the_same_bits(run, package, capsys):
    """From its first step, within this process."""
    workdir, _ = run
    copy = pathlib.Path(shutil.copytree(workdir, package / "interrupted"))
    shutil.rmtree(copy / "checkpoints" / "2")
    pretrain(small_config(), str(copy))
    assert "resuming  at step 1 of 2" in capsys.readouterr().out
    first, second = (bt_jax.load_encoder(str(path)) for path in (workdir, copy))
    assert first.step == second.step == 2 and first.sha256 == second.sha256
    chex.assert_trees_all_equal(first.heads, second.heads)


def test_the_encoder_is_loaded_and_exported(run, package, capsys):
    workdir, _ = run
    encoder = bt_jax.load_encoder(str(workdir))
    assert (encoder.arch, encoder.width, encoder.heads.keys()) == ("my_package.nets:ConvNet", 16, {"projector"})
    config = default("export")
    config.init_from, config.export.program = str(workdir), False
    export(config, str(package / "exported"))
    assert "in torch  no file, as torchvision has no my_package.nets:ConvNet" in (said := capsys.readouterr().out)
    assert "projector 16-16" in said
    again = bt_jax.load_encoder(str(package / "exported"))
    assert again.sha256 == encoder.sha256
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(again.features(images), encoder.features(images))
    chex.assert_trees_all_equal(jax.device_get(again.heads), jax.device_get(encoder.heads))


def test_the_encoder_is_evaluated(run, package):
    """By the page's command, and fine-tuned; an error with another config."""
    workdir, _ = run
    small = small_config(**{"data.photographs.train_per_class": 8})
    config = based_on(small, "knn")
    config.init_from, config.knn.k, config.knn.pairs, config.features.batch_size = str(workdir), (5,), 32, 32
    found = knn(config, str(package / "knn"))
    assert found["checkpoint"]["arch"] == "my_package.nets:ConvNet" and 0 <= found["runs"][0]["top1"]["5"] <= 1
    config.model.width = 8
    with pytest.raises(bt_jax.UserError, match="is a my_package.nets:ConvNet width=4, but .*ConvNet width=8; set"):
        knn(config, str(package / "wrong"))
    config = based_on(small, "finetune")
    config.init_from, config.batch_size, config.epochs, config.features.batch_size = str(workdir), 64, 1, 32
    config.finetune.percent = 50.0
    config.data.mean = (0.5, 0.5, 0.5)  # not what the encoder was trained with, which is what counts
    finetune(config, str(package / "tuned"))
    tuned = bt_jax.load_encoder(str(package / "tuned"))
    assert tuned.classifier_variables["params"]["linear"]["bias"].shape == (17,)
    assert tuned.mean == bt_jax.load_encoder(str(workdir)).mean != config.data.mean


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.arch": "my_package.net:ConvNet"}, "model.arch is .*, but there is no module 'my_package.net'"),
        (
            {"model.arch": "test_encoders:Unpooled"},
            r"returns \(2, 2, 2, 12\) for images .* but must return \(2, 12\): \(N, F\)",
        ),
        (
            {"model.arch": "test_encoders:Patches", "data.image_size": 20},
            r"cannot take images of shape \(2, 20, 20, 3\)",
        ),
        (
            {"method": "my_package.vicreg:Network"},
            "method is 'my_package.vicreg:Network', which .*: config_group is missing",
        ),
        (
            {"method": "test_methods:NoLoss"},
            "method is 'test_methods:NoLoss', which does not implement .*: loss is missing",
        ),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_written(package, tmp_path, changes, sentence):
    with pytest.raises(bt_jax.UserError, match=sentence):
        pretrain(small_config(**changes), str(tmp_path / "run"))
    assert not epath.Path(tmp_path / "run").exists()
