"""bt_jax/command.py and main.py: the command line, and one sentence with exit status 1 for each mistake of a user."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from etils import epath
from PIL import Image

from bt_jax import command
from bt_jax.runtime.workdir import write_config
from configs import quickstart

ROOT = pathlib.Path(__file__).parents[1]


def run(monkeypatch, *arguments):
    """What the command exits with: its last words, which Python prints with status 1."""
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:  # the overrides of an earlier command
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command.run()
    assert isinstance(stopped.value.code, str), "exit status 1"
    assert stopped.value.code.startswith("error: ") and len(stopped.value.code.splitlines()) == 1
    return stopped.value.code


def image_folder(root, images=8, classes=("cat", "dog"), splits=("train", "test")):
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / split / name / f"{i}.png")
    return root


def folder_run(root, workdir, *more):
    """The quickstart's small network on an image folder."""
    return (
        "--config.data.source=folder", f"--config.data.data_dir={root}", f"--workdir={workdir}", "--config.batch_size=8",
        "--config.monitor.batch_size=8", "--config.barlow_twins.projector=(16,16)", "--config.model.width=4", *more
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config.optimizer.weight_decya=1"], "there is no field 'optimizer.weight_decya' (did you mean 'optimizer.weight_decay'?)"),
        (["--config.batch_size=many"], "error: the config is wrong: batch_size is 'many', but must be an integer."),
        (["--config.epochs=1.5"], "epochs is '1.5', but must be an integer."),
        (["--config.epochs="], "epochs is '', but must be an integer."),
        (["--config.barlow_twins.lambd=0,1"], "barlow_twins.lambd is '0,1', but must be a number."),
        (["--config.data.download=maybe"], "data.download is 'maybe', but must be true or false."),
        (["--config.barlow_twins.projector=(1,"], "projector is '(1,', but must be values in parentheses, such as '(1, 2)'"),
        (["--config.epochs=2147483648000"], "which makes 83751862272000 steps of crops of 17 photographs, train, but a run has at"),
        (["--config.loss.lambd=0.1"], "error: the config is wrong: loss.lambd is now called barlow_twins.lambd."),
        (["--config.sgd.momentum=0.1"], "belongs to the tasks 'linear', 'finetune' and 'transfer'"),
        (["--config.task=knn", "--config.init_from=x", "--config.monitor.k=3"], "monitor.k belongs to the task 'pretrain'"),
        (["--config.method=supervised"], "--config=FILE:METHOD, such as"),
        (["--config=configs/quickstart.py:suprvised"], "(did you mean 'supervised'?)"),
        (["--config=configs/quickstart.py:no_such.module:Method"], "there is no module 'no_such'"),
        (["--config=configs/quickstart.py:json:dumps"], "method is 'json:dumps', which does not declare its fields correctly"),
        (["--config=configs/nothing.py", "--config.epochs=2"], "config file configs/nothing.py does not exist."),
        (["--config.barlow_twins.lambd=-1"], "barlow_twins.lambd is -1.0, but must be a number of at least 0"),
        (["--config.data.source=photo"], "(did you mean 'photographs'?)"),
        (["--config=configs/nothing.py"], "config file configs/nothing.py does not exist."),
        (["--config=configs/knn.py:foo"], "knn.py:foo is not known"),
        (["--noconfig.log.tensorbord"], "there is no field 'log.tensorbord' (did you mean 'log.tensorboard'?)"),
        (["--config=quickstart:simclr", "--config.simclr.temperature=abc"], "simclr.temperature is 'abc', but must be a number."),
        (["--config=quickstart:supervised", "--config.optimizer.learning_rate=a"], "optimizer.learning_rate is 'a', but must be a number."),
        (["--config.data.data_dir=DIR"], "data.data_dir is 'DIR', but data.source is 'photographs', which reads no folder"),
        (["--config.model.stem_stride=2"], "model.stem_stride is 2, but is of the 3×3 stem only; set model.small_images=True too"),
        (["train"], "there is no argument 'train'"),
        (["--config.data=folder"], "data is a group of fields, which are set one by one, as in --config.data.source=VALUE"),
        (["--epochs=2"], "error: there is no option --epochs; fields of the config are changed by --config.epochs=VALUE."),
        (["--weight_decay=2"], "error: there is no option --weight_decay; fields of the config are changed by --config.optimizer.w"),
        (["--confg=x"], "confg"),
        (["--config.data.source=folder", "--config.data.data_dir=s3://b/x"], "error: data.data_dir, s3://b/x, "),
        (["--config.data.source=arrays", "--config.data.data_dir=az://b/x.npz"], "error: data.data_dir, az://b/x.npz, "),
        (["--config.data.source=tfds", "--config.data.name=x", "--config.data.data_dir=s3://b/x"], "error: data.data_dir, s3://b/x, "),
        (["--config.task=knn", "--config.init_from=s3://b/x"], "error: init_from, s3://b/x, "),
        (["--config.batch_size=100"], "does not divide among 8 devices; the nearest that do: 96 or 104"),
        (["--config.monitor.batch_size=100"], "monitor.batch_size is 100"),
        (["--config.batch_size=8000"], "fewer than a batch of 8000; set batch_size to at most 5100"),
        (["--config.mesh.data=9"], "mesh.data is 9, but there are 8 devices"),
    ],
)  # fmt: skip
def test_bad_command(monkeypatch, tmp_path, arguments, sentence):
    found = run(monkeypatch, f"--workdir={tmp_path / 'run'}", *arguments)
    assert sentence in found
    assert not (tmp_path / "run").exists(), "a mistaken start leaves nothing behind"


def test_bad_folder(monkeypatch, tmp_path):
    """Missing, empty, with one class, with several files that are not images where one may be."""
    missing = tmp_path / "nowhere"
    assert f"there is no image folder {missing / 'train'} ({missing} does not exist)" in run(
        monkeypatch, *folder_run(missing, tmp_path / "run")
    )
    (tmp_path / "empty" / "train").mkdir(parents=True)
    assert "is empty; it must hold a folder of images for each class" in run(
        monkeypatch, *folder_run(tmp_path / "empty", tmp_path / "run")
    )
    one = image_folder(tmp_path / "one", classes=("cat",))
    assert "has 1 class(es), but the kNN monitor needs at least 2" in run(
        monkeypatch, *folder_run(one, tmp_path / "run")
    )
    assert not (tmp_path / "run").exists()
    broken = image_folder(tmp_path / "broken")
    for name in ("2.png", "3.png"):
        (broken / "train" / "dog" / name).write_text("no image")
    found = run(monkeypatch, *folder_run(broken, tmp_path / "run"))
    assert f"{broken / 'train' / 'dog'}/" in found and "cannot be read as an image" in found
    assert "raise data.max_bad_fraction, which is 0.001 of 16, and one image at least." in found


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config.data.name=cifar1"], "TFDS has no data set 'cifar1'"),
        (["--config.data.name=mnist"], "TFDS mnist is not in"),
        (["--config.data.name=imagenet2012"], "must be fetched by hand"),
    ],
)
def test_bad_tfds(monkeypatch, tmp_path, arguments, sentence):
    (tmp_path / "sets").mkdir()
    places = [
        "--config.data.source=tfds",
        f"--config.data.data_dir={tmp_path / 'sets'}",
        f"--workdir={tmp_path / 'run'}",
    ]
    assert sentence in run(monkeypatch, *places, *arguments)


NPZ = ["--config.data.source=arrays", "--config.data.data_dir={root}/set.npz", "--config.data.image_size=16"]
FOLDER = ["--config.data.source=folder", "--config.data.data_dir={root}"]
JUDGED = ["--config.init_from=x", "--config.features.batch_size=8"]


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        ("bt_jax.data.tensorflow_import", ["--config.data.views=host"], "pip install tensorflow"),
        ("bt_jax.data.tensorflow_import", [*FOLDER, "--config.batch_size=8"], "pip install tensorflow"),
        ("bt_jax.data.tensorflow_import", [*NPZ, "--config.batch_size=8", "--config.data.views=host"], "pip install tensorflow"),
        ("bt_jax.data.tensorflow_import", ["--config.task=knn", *FOLDER, *JUDGED], "pip install tensorflow"),
        ("bt_jax.data.tensorflow_import", ["--config.task=linear", *NPZ, *JUDGED, "--config.data.views=host"], "pip install tensorflow"),
        ("tensorflow_datasets", ["--config.data.source=tfds", "--config.data.name=x"], "pip install tensorflow-datasets."),
        ("tensorboardX", ["--config.log.tensorboard=True"], "pip install tensorboardX, or set log.tensorboard=False."),
        (
            "sklearn.svm",
            ["--config=configs/transfer_voc07.py", *FOLDER, "--config.init_from=x"],
            "transfer.protocol 'svm' needs scikit-learn, which cannot be imported",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_missed_before_anything_is_written(monkeypatch, tmp_path, module, arguments, sentence):
    image_folder(tmp_path)
    images, labels = np.zeros((8, 16, 16, 3), np.uint8), np.arange(8, dtype=np.uint8) % 2
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images + 1, y_test=labels)
    monkeypatch.setitem(sys.modules, module, None)
    arguments = [argument.format(root=tmp_path) for argument in arguments]
    small = (
        []
        if any("task=" in a or "transfer" in a for a in arguments)
        else ["--config.monitor.batch_size=8", "--config.model.width=4"]
    )
    found = run(monkeypatch, f"--workdir={tmp_path / 'run'}", *arguments, *small)
    assert "which cannot be imported" in found and sentence in found
    assert not (tmp_path / "run").exists()


def test_workdir_of_another_config(monkeypatch, tmp_path):
    """The fields that differ are named."""
    write_config(quickstart.get_config(), epath.Path(tmp_path))
    found = run(monkeypatch, f"--workdir={tmp_path}", "--config.barlow_twins.lambd=0.1")
    assert "holds a run with another config (barlow_twins.lambd was" in found and "is now 0.1" in found


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.yaml", "epochs: 3\n", "a.yaml has no function get_config; a config is a Python file with a function get_config, such as"),
        ("b.yaml", "a:\n  - 1\n", "b.yaml, line 1: invalid syntax; a config is"),
        ("c.json", "{}", "c.json has no function get_config"),
        ("d.py", "x = 1\ndef get_config(:\n", "d.py, line 2: invalid syntax; a config is a Python file"),
        ("e.py", "def get_config():\n    return 1 / 0\n", "e.py, line 2: ZeroDivisionError: division by zero."),
        ("f.py", "def get_config():\n    return int('x')\n", "f.py, line 2: ValueError: invalid literal"),
        ("g.py", "import no_such_module\n", "g.py, line 1: ModuleNotFoundError: No module named 'no_such_module'."),
        ("h.py:foo", "def get_config():\n    pass\n", "h.py takes nothing after a colon, but the command gives it 'foo'."),
        ("i.py", b"\x89PNG\r\n\x1a\n\0\0", "i.py"),
    ],
)  # fmt: skip
def test_config_files_that_are_none(monkeypatch, tmp_path, name, content, sentence):
    """The file, and the line where there is one."""
    file = tmp_path / name.partition(":")[0]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert sentence in run(monkeypatch, f"--config={tmp_path / name}", f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_config_files_of_before(monkeypatch, tmp_path):
    """The line that sets an old field, and the new name."""
    lines = "from bt_jax.config import default\ndef get_config():\n    config = default()\n    config.{} = 1\n    return config\n"
    path = tmp_path / "old.py"
    path.write_text(lines.format("loss.lambd"))
    assert f"{path}, line 4: loss.lambd is now called barlow_twins.lambd." in run(monkeypatch, f"--config={path}")
    path.write_text(lines.format("model.projector"))
    assert "model.projector is now called barlow_twins.projector" in run(monkeypatch, f"--config={path}")


def test_a_config_file_that_names_its_own_method(monkeypatch, tmp_path):
    """The command line can set the method's fields, though the file sets only its name."""
    (tmp_path / "users_own.py").write_text(
        "from bt_jax.config import Field\nfrom bt_jax.config.rules import at_least\n"
        "class Mine:\n    config_group = 'mine'\n    optimizer = 'sgd'\n"
        "    fields = {'rank': Field(4, at_least(1), 'A number')}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(
        "from bt_jax.config import default\n"
        "def get_config():\n    config = default()\n    config.method = 'users_own:Mine'\n    return config\n"
    )
    arguments = (f"--config={path}", "--config.data.data_dir=x", f"--workdir={tmp_path / 'run'}")
    found = run(monkeypatch, *arguments, "--config.mine.rank=0", "--config.optimizer.nesterov=True")
    assert found == "error: the config is wrong: mine.rank is 0, but must be an integer of at least 1."
    found = run(monkeypatch, *arguments, "--config.barlow_twins.lambd=1")
    assert "belongs to the method 'barlow_twins', but this run's method is 'users_own:Mine'" in found
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("chosen", [("--config.task=knn",), ("--config.task", "knn")])
def test_the_task_on_the_command_line(monkeypatch, tmp_path, chosen):
    """The config of a pre-training works for an evaluation: with its fields, and on the same data."""
    done = []
    monkeypatch.setattr("bt_jax.tasks.knn.knn", lambda config, workdir: done.append(config) or sys.exit("error: done"))
    run(monkeypatch, *chosen, "--config.init_from=x", "--config.knn.k=(3,)", f"--workdir={tmp_path / 'run'}")
    (config,) = done
    assert (config.task, config.knn.k, config.data.source, config.data.image_size) == ("knn", (3,), "photographs", 48)


def test_fields_are_printed_and_nothing_is_done(tmp_path):
    """All of them, or as many as the reader reads; an incomplete config has fields too."""
    command = [sys.executable, "main.py", "--fields", f"--workdir={tmp_path / 'run'}", "--config.epochs=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    assert "pretrain with barlow_twins" in done.stdout and "* epochs" in done.stdout and "judge.view" in done.stdout
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(120) == 0
    assert not (tmp_path / "run").exists()


def test_a_process_exits_with_status_one():
    """What `run` in this file assumes, once for real."""
    done = subprocess.run([sys.executable, "main.py", "--config.epochs=0"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: the config is wrong: epochs is 0, but must be an integer of at least 1"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("program", "option", "shown"),
    [([str(ROOT / "main.py")], "-h", "python main.py --config=configs/resnet50_imagenet.py"), (["-m", "bt_jax"], "--help", "bt_jax --list")],
)  # fmt: skip
def test_help(tmp_path, monkeypatch, program, option, shown):
    """The options, with the commands of the docstring above them; nothing is done."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, *program, option]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert shown in done.stdout and "--workdir: Folder of the run" in done.stdout
    assert done.stderr == "" and not list(tmp_path.iterdir())


def test_list(monkeypatch, capsys):
    """The names and first lines, without a traceback if the default config is broken."""
    flags.FLAGS.unparse_flags()
    monkeypatch.setattr(sys, "argv", ["bt_jax", "--list"])
    with pytest.raises(SystemExit) as stopped:
        command.run()
    assert not stopped.value.code
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("quickstart  ") and "A narrow ResNet-18 on crops" in line for line in lines)


def test_ctrl_c_before_anything_was_saved():
    """Ends at once with a sentence and the shell's status, and no traceback."""
    code = (
        "import os, signal\nfrom bt_jax import command\n"
        "command.main = lambda argv: os.kill(os.getpid(), signal.SIGINT)\ncommand.run(); print('on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 130 and done.stdout == ""
    assert done.stderr == "ended by Ctrl-C; the same command resumes from the last checkpoint, if there is one\n"
