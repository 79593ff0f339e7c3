"""bt_jax/tasks/pretrain.py: a run from its start to its end, interrupted anywhere, failed, resumed."""

import dataclasses
import functools
import json
import os
import shlex
import shutil
import signal
import sys
import types

import chex
import jax
import jax.experimental.compilation_cache.compilation_cache as compilation_cache
import numpy as np
import pytest
from etils import epath
from PIL import Image
from recipes import pair_method, quick_views, small_method

from bt_jax import config as config_lib
from bt_jax.data.sources.make import make_source
from bt_jax.engine import checkpoint, loop, run
from bt_jax.engine.checkpoint import Checkpoints, config_text
from bt_jax.errors import Preempted, UserError
from bt_jax.export import init_from
from bt_jax.export.weights import EncoderWeights
from bt_jax.facts import Facts
from bt_jax.optim import make_optimizer
from bt_jax.reporting import progress
from bt_jax.tasks import pretrain as task
from bt_jax.tasks.summary import farewell, summary

STEPS = 6  # three epochs of two steps


class Killed(Exception):
    """Represents anything that kills a process."""


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The runs here compile the same programs many times: they are cached as long as this file's tests run."""
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}

    def use(settings):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    use(wanted)
    yield
    use(before)


@pytest.fixture
def small_run(tmp_path, monkeypatch, light_views):
    """A config of a few seconds: 24 images of two classes in a batch of 8, and a small network."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = (rng.integers(0, 160, (24, 16, 16, 3)) + 80 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    monkeypatch.setattr(task, "make_method", lambda config, facts, mesh: small_method(mesh))
    config = config_lib.default()
    config.batch_size, config.epochs = 8, 2
    config.data.update(source="arrays", data_dir=str(tmp_path / "set.npz"), image_size=16, eval_resize=0, threads=2)
    config.model.update(arch="resnet18", width=4, small_images=True)
    config.barlow_twins.projector = (32, 32)
    config.optimizer.warmup_epochs = 1
    config.checkpoint.every_epochs = 1
    config.monitor.update(every_epochs=1, batch_size=8, k=5)
    config.log.every_steps = 1
    config.log.tensorboard = False
    config.report.write = False  # tests/test_task_report.py has runs with one
    return config


def begun(config, workdir, mesh=None):
    """The setup of a run, and where it would start now."""
    mesh = mesh or jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    setup, _ = task.prepare(config, epath.Path(workdir), mesh)
    checkpoints = Checkpoints(setup.workdir)
    fresh = functools.partial(init_from.start_from, config)
    start = run.restored_or_new(setup, checkpoints, fresh)
    checkpoints.close()
    return setup, start


def final_parameters(config, workdir):
    """What the last checkpoint holds, on the host."""
    _, start = begun(config, workdir)
    return start.step, jax.device_get(start.state)


class CutFeed:
    """A feed whose batches end in `act()` after so many of them."""

    def __init__(self, feed, after, act):
        self.words, self.prepare, self._feed, self._after, self._act = feed.words, feed.prepare, feed, after, act

    def batches(self, start, total):
        for i, delivery in enumerate(self._feed.batches(start, total)):
            if i == self._after:
                self._act()
            yield delivery


def killed():
    raise Killed


def told():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def cut(monkeypatch):
    """`cut(after, act)`: runs that begin from now on do `act` before the batch of that number; `cut(None)`: none do."""
    make_feed = task.make_feed

    def change(after, act=None):
        def made(*args, **kwargs):
            feed = make_feed(*args, **kwargs)
            return feed if after is None else CutFeed(feed, after, act)

        monkeypatch.setattr(task, "make_feed", made)

    return change


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_and_what_it_leaves(small_run, tmp_path, capsys):
    """Summary, progress, kNN before and after, files; the same command again has nothing to do."""
    workdir = tmp_path / "run"
    result = task.pretrain(small_run, str(workdir))
    said = capsys.readouterr().out
    for part in (
        "8 × cpu, 1 images each; 1 process", "24 images, 2 classes", "3 steps per epoch, 2 epochs, 6 steps",
        "weights 0.00625 = 0.2 × 8/256, biases 0.00015 = 0.0048 × 8/256", "gradients divided by 1",
        "kNN accuracy", "untrained", "after epoch 1", "on raw pixels", "done in", f"load_encoder('{workdir}')",
    ):  # fmt: skip
        assert part in said, part
    assert all(len(line) <= 120 for line in said.splitlines() if str(tmp_path) not in line)
    lines = records(workdir)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "knn_accuracy" in line] == [0, 3, 6]
    assert json.loads((workdir / "pretrain.json").read_text()) == json.loads(json.dumps(result))
    assert result["step"] == STEPS and 0 <= result["knn_accuracy_after"] <= 1
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == [3, 6]

    again = task.pretrain(small_run, str(workdir))
    assert "this run has finished all its 6 steps" in capsys.readouterr().out
    assert again["metrics"] == result["metrics"] and records(workdir) == lines


def test_official_rates_are_printed(capsys, small_run, tmp_path):
    """The ImageNet config's effective rates: weights 0.2·bs/256, biases 0.0048·bs/256, divisor 16."""
    from configs import resnet50_imagenet

    official = resnet50_imagenet.get_config()
    small_run.optimizer = official.optimizer
    small_run.epochs = 11
    small_run.batch_size = 24
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    setup, start = begun(small_run, tmp_path / "run", mesh)
    facts = Facts(4096, 2, batch_size=official.batch_size, epochs=11)
    setup = dataclasses.replace(setup, facts=facts, optimizer=make_optimizer(official.optimizer, facts))
    text = summary(small_run, setup, start)
    assert "weights 1.6 = 0.2 × 2048/256, biases 0.0384 = 0.0048 × 2048/256" in text
    assert "gradients divided by 16; warm-up 10 epochs" in text


def test_the_papers_rates_know_the_width(small_run, tmp_path):
    """The rate of biases is that for the projector's last layer."""
    small_run.optimizer.rates = "paper"
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    setup, _ = task.prepare(small_run, tmp_path / "run", mesh)
    assert "biases 196/32 of weights" in setup.optimizer.description


def test_interrupted_at_any_step_and_resumed_is_bit_equal(small_run, tmp_path, cut):
    """After each step in turn: parameters, statistics, optimiser and the written losses are those of an uninterrupted run.

    One run is interrupted again and again, so that each start goes on from what the interruption before has left.
    """
    small_run.monitor.every_epochs = 0
    task.pretrain(small_run, str(tmp_path / "whole"))
    expected = final_parameters(small_run, tmp_path / "whole")
    losses = [(r["step"], r["loss"]) for r in records(tmp_path / "whole") if "loss" in r]

    def ended(workdir):
        """The last start, to the end; all is as it would have been."""
        cut(None)
        task.pretrain(small_run, str(workdir))
        found = final_parameters(small_run, workdir)
        assert found[0] == expected[0] == STEPS
        chex.assert_trees_all_equal(found[1], expected[1])
        assert [(r["step"], r["loss"]) for r in records(workdir) if "loss" in r] == losses

    def saved(workdir):
        return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())

    workdir = tmp_path / "told"
    for after, step in ((0, 1), (0, 2), (2, 5)):  # by a signal: the step that is being made is saved
        cut(after, told)
        with pytest.raises(Preempted):
            task.pretrain(small_run, str(workdir))
        assert saved(workdir)[-1] == step
    ended(workdir)

    workdir = tmp_path / "killed"
    for start, end in ((0, 0), (0, 1), (0, 2), (0, 3), (3, 4), (3, 5)):  # step 3 is the only one that is saved
        cut(end - start, killed)
        with pytest.raises(Killed):
            task.pretrain(small_run, str(workdir))
        assert saved(workdir) == [3] * (end >= 3)
    ended(workdir)


def test_mixed_images_are_the_same_after_a_restart(small_run, tmp_path, cut, monkeypatch):
    """Their order and share follow from (seed, step): a killed run of Mixed Barlow Twins resumes to the same bits."""
    mixed = lambda config, facts, mesh: dataclasses.replace(small_method(mesh), mixed=4.0)  # noqa: E731
    monkeypatch.setattr(task, "make_method", mixed)
    small_run.monitor.every_epochs = 0
    task.pretrain(small_run, str(tmp_path / "whole"))
    shown = [(r["loss"], r["mixed"]) for r in records(tmp_path / "whole") if "loss" in r]
    cut(4, killed)
    with pytest.raises(Killed):
        task.pretrain(small_run, str(tmp_path / "killed"))
    cut(None)
    task.pretrain(small_run, str(tmp_path / "killed"))
    runs = [final_parameters(small_run, tmp_path / name) for name in ("whole", "killed")]
    chex.assert_trees_all_equal(*runs)
    assert [(r["loss"], r["mixed"]) for r in records(tmp_path / "killed") if "loss" in r] == shown


def test_a_look_that_shows_overfitting():
    """A note with the method's advice; all of it follows from the history, which a checkpoint has too."""
    history = [{"step": 10 * e, "epoch": e, "loss": 99.0 - e, "knn_accuracy": 0.9 - 0.1 * e} for e in range(1, 3)]
    history = [{"step": 0, "epoch": 0, "knn_accuracy": 0.2}, *history]
    method = small_method()
    setup = types.SimpleNamespace(facts=types.SimpleNamespace(steps_per_epoch=10), method=method)
    run = types.SimpleNamespace(setup=setup, reporter=types.SimpleNamespace(history=lambda: history))
    measures = {"knn_accuracy": 0.6, "rankme": 2.0, "dead_features": 0}
    monitor = types.SimpleNamespace(report=lambda _: measures, source=range(1000))
    watch = types.SimpleNamespace(look=lambda *_: None)
    look = task._looker(config_lib.default(), run, monitor, watch)
    said = look(types.SimpleNamespace(encoder_variables=lambda: None), 30).sentence
    assert "kNN accuracy has fallen by 20.0 points since epoch 1, while the loss fell from 98 to 97.5" in said
    assert method.overfitting_advice in said and "barlow_twins.mixed=4" in said
    assert said.endswith(
        ", or try barlow_twins.mixed=4;\n"
        "          the best of RUN/checkpoints is the step with the highest knn_accuracy in RUN/metrics.jsonl, to be named as\n"
        "          load_encoder('RUN/checkpoints/STEP') or --config.init_from=RUN/checkpoints/STEP"
    )
    assert all(len(line) <= 120 for line in said.splitlines())


@pytest.mark.parametrize("name", ["knn_accuracy", "rankme"])
@pytest.mark.parametrize(
    ("first", "weights", "words"), [(0, "", " untrained"), (0, "a run", " before training"), (3, "", None)]
)
def test_what_was_before_training(name, first, weights, words):
    """Is the look at step 0, of given weights or of an untrained network; a run that began without a monitor has none."""
    config = config_lib.default()
    config.init_from = weights
    history = [{"step": step, name: 0.25 + step / 12, "dead_features": 0} for step in (first, 6)]
    history.insert(1, {"step": 5, "loss": 1.0})
    setup = types.SimpleNamespace(
        facts=types.SimpleNamespace(total_steps=6),
        method=small_method(),
        workdir=epath.Path("run"),
        config=config.to_dict(),
        log=types.SimpleNamespace(tensorboard=True),
    )
    reporter = types.SimpleNamespace(history=lambda: history)
    run = types.SimpleNamespace(setup=setup, reporter=reporter, seconds=lambda: 2.0, seconds_of_this_start=lambda: 1.0)
    result = task._result(config, run, None)
    assert result[f"{name}_after"] == 0.75 and result.get(f"{name}_before") == (None if first else 0.25)
    said = farewell(setup, result)
    assert "75.0% with the trained encoder" in said if name == "knn_accuracy" else "RankMe         0.8 of " in said
    shown = "25.0%" if name == "knn_accuracy" else "0.2"
    assert f", {shown}{words}" in said if words else "untrained" not in said and "before training" not in said


def test_a_mesh_that_splits_nothing(small_run, tmp_path, monkeypatch):
    """Is refused before the run begins."""
    monkeypatch.setattr(task, "make_method", lambda config, facts, mesh: pair_method("simclr", mesh))
    small_run.data.image_size = 8
    mesh = jax.make_mesh((4, 2), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(UserError, match="mesh.model is 2, but SimCLR has no layers that are split over devices"):
        task.prepare(small_run, epath.Path(tmp_path) / "run", mesh)


@pytest.mark.parametrize("name", ["runs/plain", "runs/my run", "runs/it's", "runs/$HOME"])
@pytest.mark.parametrize("tensorboard", [True, False])
def test_the_commands_of_a_farewell(name, tensorboard):
    """A shell takes them, whatever the path is; and there is something to view."""
    setup = types.SimpleNamespace(
        facts=types.SimpleNamespace(total_steps=6), method=small_method(), workdir=epath.Path(name), config={},
        log=types.SimpleNamespace(tensorboard=tensorboard),
    )  # fmt: skip
    lines = {line[:14].strip(): line[15:] for line in farewell(setup, {"seconds_of_last_start": 1.0}).splitlines()}
    assert ("to view" in lines) == tensorboard
    if tensorboard:
        assert shlex.split(lines["to view"].partition("   (")[0]) == ["tensorboard", "--logdir", name]
    python, option, code = shlex.split(lines["to use"])
    assert (python, option) == ("python", "-c") and f"load_encoder({name!r})" in code
    compile(code, "code", "exec")


def test_views_made_on_the_device(small_run, tmp_path, monkeypatch, capsys):
    """The same reports, monitor and checkpoints, one step or two at a time; resumed to the same bits.

    A compiler may order the sums of a loop's body otherwise than those of a single step: between one and two at a time 1e-5.
    """
    small_run.data.views = "device"
    quick_views(small_run)
    monkeypatch.setitem(sys.modules, "bt_jax.data.pipeline", None)  # nothing here asks for TensorFlow

    make_feed, together = task.make_feed, 1

    def made(*args, **kwargs):
        return dataclasses.replace(make_feed(*args, **kwargs), steps_per_dispatch=together)  # on a CPU it would be one

    monkeypatch.setattr(task, "make_feed", made)
    losses, parameters = [], []
    for together in (1, 2):
        workdir = tmp_path / f"{together} at a time"
        task.pretrain(small_run, str(workdir))
        assert "made on the device, from the set in its memory" in capsys.readouterr().out
        lines = records(workdir)
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
        assert [line["step"] for line in lines if "knn_accuracy" in line] == [0, 3, 6]
        assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == [3, 6]
        losses.append([line["loss"] for line in lines if "loss" in line])
        parameters.append(final_parameters(small_run, workdir)[1])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    chex.assert_trees_all_close(parameters[1].params, parameters[0].params, rtol=1e-3, atol=1e-5)

    shutil.rmtree(workdir / "checkpoints" / "6")  # as if it had been killed in the second epoch
    task.pretrain(small_run, str(workdir))
    assert "resuming  at step 3 of 6" in capsys.readouterr().out
    chex.assert_trees_all_equal(final_parameters(small_run, workdir)[1], parameters[1])


def test_a_loss_that_is_not_finite_stops_the_run(small_run, tmp_path, monkeypatch, request):
    """With the step, and the last good checkpoint kept; what is not finite is never saved."""
    make = loop.make_train_step
    loop._jitted.cache_clear()
    request.addfinalizer(loop._jitted.cache_clear)

    def poisoned(*arguments):
        step = make(*arguments)

        def train_step(state, batch):
            new, metrics = step(state, batch)
            scale = jax.numpy.where(new.step == 5, jax.numpy.nan, 1.0)
            return new.replace(params=jax.tree.map(lambda p: p * scale, new.params)), metrics

        return train_step

    monkeypatch.setattr(loop, "make_train_step", poisoned)
    with pytest.raises(UserError, match=r"the loss is not finite at step 6 .*the last good checkpoint is step 3 in"):
        task.pretrain(small_run, str(tmp_path / "run"))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()] == ["3"]
    assert records(tmp_path / "run")[-1]["loss"] is None


def test_a_damaged_checkpoint_is_stepped_over(small_run, tmp_path, capsys):
    """The run resumes from the one before, says so, and ends as it would have."""
    workdir = tmp_path / "run"
    task.pretrain(small_run, str(workdir))
    expected = final_parameters(small_run, workdir)
    for file in (workdir / "checkpoints" / "6").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    capsys.readouterr()
    task.pretrain(small_run, str(workdir))
    said = capsys.readouterr().out
    assert (
        "checkpoint 6 cannot be read" in said
        and "step 3 is used instead" in said
        and "resuming  at step 3 of 6" in said
    )
    found = final_parameters(small_run, workdir)
    chex.assert_trees_all_equal(found[1], expected[1])


def test_images_that_do_not_decode_are_named_once(small_run, tmp_path, capsys):
    """The run continues without them, and counts them at the end of each epoch."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / split / name / f"{i}.png")
    (tmp_path / "train" / "dog" / "3.png").write_bytes(b"no image")
    small_run.data.update(source="folder", data_dir=str(tmp_path), max_bad_fraction=0.1)
    result = task.pretrain(small_run, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert result["step"] == STEPS
    assert said.count(f"{tmp_path / 'train' / 'dog' / '3.png'} cannot be read as an image") == 1
    assert said.count("1 of 24 images in") == 2


@pytest.mark.parametrize("layout", ["none", "classes", "test"])
def test_without_labels_all_the_way(small_run, tmp_path, capsys, layout):
    """A folder of images, with classes but without test images, or with test images without labels: the same command runs to its
    end, shows what can be seen, says in a sentence what cannot, and resumes; the report has images of the set and their neighbours.
    """
    rng = np.random.default_rng(0)
    names = {"none": ["1", "x/2"], "classes": ["a/1", "b/2"], "test": ["train/1", "test/2"]}[layout]
    for i in range(24):
        file = tmp_path / "images" / f"{names[i % 2]}{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
    small_run.data.update(source="folder", data_dir=str(tmp_path / "images"))
    small_run.monitor.judge_at_end = layout != "classes"
    small_run.report.write = True
    images = 12 if layout == "test" else 24
    classes = "2 classes by folders" if layout == "classes" else "no labels"
    workdir = tmp_path / "run"
    result = task.pretrain(small_run, str(workdir))
    said = capsys.readouterr().out
    why = "no test images (data.test_fraction would set some aside)" if layout == "classes" else "no labels"
    for part in (
        f"{images} images, {classes}; two views", "untrained; alignment", "uniformity", "RankMe ", "report.html",
        f"has {why}: RankMe, alignment, uniformity and dead features are measured, and no kNN accuracy",
    ):  # fmt: skip
        assert part in said, part
    left_out = "the evaluation at the end is left out: it needs labels, and"
    assert (left_out in said) == (layout != "classes") and "kNN accuracy  " not in said
    steps = images // 8
    looks = [line for line in records(workdir) if "rankme" in line]
    assert [line["step"] for line in looks] == [0, steps, 2 * steps]
    assert {"alignment", "uniformity", "dead_features"} <= looks[0].keys() and "knn_accuracy" not in looks[0]
    assert result["rankme_before"] == looks[0]["rankme"] and result["rankme_after"] == looks[-1]["rankme"]
    page = (workdir / "report.html").read_text()
    assert page.count('class="tile first"') == 12 and "Confusion" in page
    tiles = page[page.index("Nearest neighbours") : page.index("Map of the features")]
    assert ('alt="test/2' in tiles) == (layout == "test")
    (workdir / "report.html").unlink()
    again = task.pretrain(small_run, str(workdir))
    assert (
        again["rankme_after"] == result["rankme_after"]
        and (workdir / "report.html").read_text().count("tile first") == 12
    )


def test_a_signal_while_the_monitor_looks(small_run, tmp_path, monkeypatch, capsys):
    """The evaluation is interrupted and the step saved; after a resume it comes first, and none is reported twice."""
    workdir = tmp_path / "run"
    take, looks = loop._Looks.take, []

    def signalled(self, state, step):
        looks.append(step)
        if len(looks) in (1, 3):  # at the start, and at the end of the first epoch
            os.kill(os.getpid(), signal.SIGUSR1)
        take(self, state, step)

    monkeypatch.setattr(loop._Looks, "take", signalled)
    for sentence in ("nothing new was to be saved", "step 3 of 6 is saved"):
        with pytest.raises(Preempted):
            task.pretrain(small_run, str(workdir))
        assert sentence in capsys.readouterr().err
    result = task.pretrain(small_run, str(workdir))
    assert looks == [0, 0, 3, 3, 6]
    assert [line["step"] for line in records(workdir) if "knn_accuracy" in line] == [0, 3, 6]
    assert [line["step"] for line in records(workdir) if "loss" in line] == list(range(1, STEPS + 1))
    assert result["seconds"] >= result["seconds_of_last_start"]


def test_what_a_checkpoint_tells(small_run, tmp_path):
    """Config, place in the data, metrics and score: lost metrics come back, other data is refused."""
    workdir = tmp_path / "run"
    small_run.checkpoint.every_steps = 2
    task.pretrain(small_run, str(workdir))
    lines = records(workdir)
    notes = json.loads((workdir / "checkpoints" / "4" / "run" / "metadata").read_text())
    fingerprint = notes["data"].pop("fingerprint")
    assert notes["data"] == {"images": 24, "steps_per_epoch": 3, "epoch": 1, "batch": 1} and notes["watched"] is True
    assert fingerprint == make_source(small_run.data, "train").fingerprint
    assert notes["history"] == [line for line in lines if line["step"] <= 4]
    assert notes["config"]["batch_size"] == 8 and notes["seconds"] > 0
    score = json.loads((workdir / "checkpoints" / "6" / "score" / "metadata").read_text())["score"]
    assert score == lines[-1]["knn_accuracy"]

    (workdir / "metrics.jsonl").unlink()
    (workdir / "config.json").unlink()
    assert config_lib.from_json(config_text(epath.Path(workdir))).to_dict() == small_run.to_dict()
    task.pretrain(small_run, str(workdir))
    assert records(workdir) == lines

    arrays = dict(np.load(tmp_path / "set.npz"))
    arrays["x_train"], arrays["y_train"] = arrays["x_train"][:20], arrays["y_train"][:20]
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(
        UserError, match=r"the data has changed since checkpoint 6 was saved \(images was 24 and is now 20; steps"
    ):
        task.pretrain(small_run, str(workdir))


def test_a_workdir_that_fails(small_run, tmp_path, monkeypatch):
    """Full, or gone: a message names the last good checkpoint."""
    record = progress.Reporter.record

    def fail_at_5(self, step, values):
        if step == 5:
            raise OSError(28, "No space left on device")
        record(self, step, values)

    monkeypatch.setattr(progress.Reporter, "record", fail_at_5)
    with pytest.raises(
        UserError, match=r"can no longer be written \(No space left on device\); the last good checkpoint is step 3"
    ):
        task.pretrain(small_run, str(tmp_path / "full"))

    def vanish_at_2(self, step, values):
        record(self, step, values)
        if step == 2:
            shutil.rmtree(tmp_path / "gone")

    monkeypatch.setattr(progress.Reporter, "record", vanish_at_2)
    with pytest.raises(UserError, match="gone no longer exists"):
        task.pretrain(small_run, str(tmp_path / "gone"))


def test_start_from_weights(small_run, tmp_path, monkeypatch, capsys):
    """Of a run, with its projector if it fits; an error for another encoder. From then on it is a separate run."""
    task.pretrain(small_run, str(tmp_path / "first"))
    _, first = final_parameters(small_run, tmp_path / "first")
    monkeypatch.setattr(init_from, "read_weights", lambda path: weights)
    small_run.init_from = "elsewhere"
    encoder = {"params": first.params["encoder"], "batch_stats": first.model_state["batch_stats"]["encoder"]}
    projector = {"params": first.params["projector"], "batch_stats": first.model_state["batch_stats"]["projector"]}

    weights = EncoderWeights(
        "resnet18", encoder, "step 6 of a run", width=4, small_images=True, mean=(0.5,) * 3, std=(0.25,) * 3, heads={"projector": projector}
    )  # fmt: skip

    def fresh():
        _, start = begun(small_run, tmp_path / "second")
        assert start.step == 0
        return jax.device_get(start.state), "; ".join(start.notices)

    state, told = fresh()
    chex.assert_trees_all_equal(state.params, first.params)
    chex.assert_trees_all_equal(state.model_state, first.model_state)
    assert (
        "the encoder and the projector start from the weights of step 6 of a run; it was trained with data.mean" in told
    )
    other = {"projector": {**projector, "params": {"linear1": {"kernel": np.zeros((8, 3))}}}}
    weights = dataclasses.replace(weights, heads=other)
    state, told = fresh()
    chex.assert_trees_all_equal(state.params["encoder"], first.params["encoder"])
    assert "the encoder starts from" in told and "its projector does not fit 32-32, which starts at random" in told
    weights = dataclasses.replace(
        weights, variables={**encoder, "params": {"conv1": {"kernel": np.zeros((7, 7, 3, 4))}}}
    )
    with pytest.raises(
        UserError, match=r"init_from is 'elsewhere', a resnet18 of width 4, which does not fit .* and \d+ more"
    ):
        fresh()


def test_names_that_look_like_patterns(small_run, tmp_path, monkeypatch, capsys):
    """A run in such a folder ends, and is found again; a folder that libraries cannot find again is refused at once."""
    small_run.epochs, small_run.monitor.every_epochs, small_run.optimizer.warmup_epochs = 1, 0, 0
    (tmp_path / "[a]").mkdir()
    monkeypatch.chdir(tmp_path / "[a]")
    task.pretrain(small_run, "lr=[0.1]")
    task.pretrain(small_run, str(tmp_path / "[a]" / "lr=[0.1]"))
    assert "this run has finished all its 3 steps" in capsys.readouterr().out
    with pytest.raises(UserError, match="tensorstore, the library that writes arrays, takes for a /"):
        task.pretrain(small_run, "a\\b")
    assert [path.name for path in (tmp_path / "[a]").iterdir()] == ["lr=[0.1]"]


def test_a_last_checkpoint_that_cannot_be_read_back(small_run, tmp_path, monkeypatch, capsys):
    """Nothing says that the run is done."""
    small_run.epochs, small_run.monitor.every_epochs = 2, 0
    right, calls = checkpoint.fingerprints_on_host, []

    def other(state):
        calls.append(state)
        return {name: value + (len(calls) > 1) for name, value in right(state).items()}

    monkeypatch.setattr(checkpoint, "fingerprints_on_host", other)
    with pytest.raises(UserError, match="the checkpoint of step 6 was written to .*, but cannot be read back"):
        task.pretrain(small_run, str(tmp_path / "run"))
    assert len(calls) == 2 and "done in" not in capsys.readouterr().out


def test_a_refused_start_changes_nothing(small_run, tmp_path):
    """Another config with a lost config.json; other images of the same number: each is refused, and config.json is unchanged."""
    small_run.epochs, small_run.monitor.every_epochs, small_run.optimizer.warmup_epochs = 1, 0, 0
    workdir = tmp_path / "run"
    task.pretrain(small_run, str(workdir))
    text = (workdir / "config.json").read_text()
    small_run.log.every_steps = 2
    arrays = dict(np.load(small_run.data.data_dir))
    arrays["x_train"][0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "other.npz", **arrays)
    whole, small_run.data.data_dir = small_run.data.data_dir, str(tmp_path / "other.npz")
    with pytest.raises(UserError, match="the fingerprint of its files, labels or pixels was .* and is now"):
        task.pretrain(small_run, str(workdir))
    assert (workdir / "config.json").read_text() == text
    small_run.data.data_dir = whole
    small_run.barlow_twins.lambd *= 2
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match="barlow_twins.lambd was"):
        task.pretrain(small_run, str(workdir))
    assert not (workdir / "config.json").exists()
    small_run.barlow_twins.lambd /= 2
    task.pretrain(small_run, str(workdir))
    assert json.loads((workdir / "config.json").read_text())["log"]["every_steps"] == 2


def test_a_damaged_line_of_the_metrics(small_run, tmp_path, capsys):
    """Comes back from the checkpoint, with a note."""
    small_run.epochs, small_run.monitor.every_epochs, small_run.optimizer.warmup_epochs = 1, 0, 0
    task.pretrain(small_run, str(tmp_path / "run"))
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"loss", b"lo\xffs", 1))
    task.pretrain(small_run, str(tmp_path / "run"))
    assert path.read_bytes() == whole
    assert f"note      {path} is damaged in line 1; it was restored from the checkpoint" in capsys.readouterr().out
