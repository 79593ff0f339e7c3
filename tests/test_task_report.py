"""bt_jax/tasks/report.py and watch.py: the page of a run, whatever its workdir has and lacks."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
from etils import epath
from recipes import no_room_for, quick_views

from bt_jax import config as config_lib
from bt_jax.data.feed import make_feed
from bt_jax.errors import UserError
from bt_jax.methods.barlow_twins import BarlowTwins
from bt_jax.models import resnet
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.tasks import report as task
from bt_jax.tasks import watch
from bt_jax.tasks.pretrain import prepare, pretrain
from bt_jax.tasks.report import report, write_comparison, write_report


def config_of(folder, *, classes=2, train=64, test=16):
    """A config of a second: a network of one block, on images whose class is their level of grey."""
    rng, labels = np.random.default_rng(0), np.arange(train) % classes
    images = (rng.integers(0, 120, (train, 8, 8, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "set.npz", x_train=images, y_train=labels, x_test=images[:test], y_test=labels[:test])
    config = config_lib.default()
    config.batch_size, config.epochs, config.optimizer.warmup_epochs = 16, 2, 1
    config.data.update(source="arrays", data_dir=str(folder / "set.npz"), image_size=8, eval_resize=0, threads=2)
    config.model.update(arch="resnet18", width=4, small_images=True)
    config.barlow_twins.projector = (16, 16)
    config.mesh.data = 1
    config.monitor.update(every_epochs=1, batch_size=16, k=5, pairs=16)
    config.log.update(every_steps=1, tensorboard=False)
    quick_views(config)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a run that was made with its report; its path has blanks."""
    folder = tmp_path_factory.mktemp("a run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, "resnet18", (1,))
        pretrain(config_of(folder), str(folder / "the run"))
    return epath.Path(folder / "the run")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, without what is large."""
    shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "report.html"))
    return epath.Path(tmp_path / "copy")


def text_of(path):
    return path.read_text()


class _Page(HTMLParser):
    """The tags that a browser would read, and whether they close."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("img", "meta", "wbr", "link", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_of_a_finished_run(finished):
    """Complete, well-formed, in one file, in the order in which people read it."""
    page = text_of(finished / "report.html")
    parsed = _Page()
    parsed.feed(page)
    assert not parsed.open and "script" not in parsed.tags and "link" not in parsed.tags
    assert all(source.startswith(("data:image/", "#")) for source in parsed.sources) and "url(http" not in page
    titles = re.findall(r"<h2[^>]*>([^<]+)", page)
    assert titles == [
        "What the network sees", "Loss", "Measures of the features", "Embeddings", "Nearest neighbours", "Map of the features",
        "Confusion", "Warnings", "Config", "Run and versions",
    ]  # fmt: skip
    for part in (
        "<h1>Barlow Twins on", "trained by Barlow Twins", "resnet18", "2 epochs, 8 steps of 16 images", "kNN accuracy on test images is", "expected at the start", "floor",
        "off diagonal × 0.0051", "Cross-correlation, before training", "Cross-correlation, step 8", "Spectrum of the embeddings",
        "among 16 images", "Images per second", "bt_jax", "All ",
    ):  # fmt: skip
        assert part in page, part
    assert page.count('class="tile first"') == 12 and page.count('class="whole"') == 8
    changed = page[page.index("changed field") : page.index("<details>")]
    assert "batch_<wbr>size" in changed and "seed" not in changed
    assert len(page) < 3e6 and not list((finished / "report").glob("*.new"))


def test_views_are_those_of_the_first_batch(finished):
    """Each image beside its own views: a view has the grey of its image's class, whatever its crop."""
    with np.load(finished / "report" / "views.npz") as file:
        assert int(file["count"]) == 8 and len(file["images_ends"]) == 8 and len(file["view_pair_ends"]) == 16
        from bt_jax.data.order import Order

        _, examples = Order(0, 64, 8).batch(0)
        assert file["names"].tolist() == [str(e) for e in examples]


def test_the_task_draws_the_same_page_from_the_files(finished, run, monkeypatch, capsys):
    """Without data, checkpoints or devices."""
    monkeypatch.setattr("bt_jax.data.sources.make.make_source", None)
    path = report(config_lib.default(), str(run))
    assert path == str(run / "report.html") and path in capsys.readouterr().out
    drawn, before = text_of(run / "report.html"), text_of(finished / "report.html")
    assert drawn == before.replace(str(finished), str(run))


def test_restarts_are_marked(run):
    facts = json.loads(text_of(run / "report" / "run.json"))
    facts["starts"].append({"step": 4, "at": "2026-01-02T03:04:05+00:00", "stopped": "2026-01-01T00:00:00+00:00"})
    (run / "report" / "run.json").write_text(json.dumps(facts))
    page = text_of(write_report(run))
    assert "restart at step 4" in page and "2026-01-01T00:00:00" in page and "Dotted: restarts" in page


def test_restarts_at_the_same_step(run):
    """As of a machine that is taken away twice before the next checkpoint: both are there."""
    facts = json.loads(text_of(run / "report" / "run.json"))
    facts["starts"] += [{"step": 4, "at": "2026-01-02"}, {"step": 4, "at": "2026-01-03"}]
    (run / "report" / "run.json").write_text(json.dumps(facts))
    assert "2026-01-02; 2026-01-03" in text_of(write_report(run))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_losses(run, count):
    """As many as there are; a run that has ended will record no more."""
    lines = [{"step": i + 1, "epoch": i + 1, "loss": 5.5 - i} for i in range(count)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("No loss is recorded,", "The only loss recorded is 5.5,", "The loss went from 5.5 to 4.5,")
    assert words[count] in text_of(write_report(run))


def test_a_class_whose_name_is_no_text(run):
    """A folder's name in another encoding, as file systems allow, is escaped in the figure too."""
    (run / "linear").mkdir(exist_ok=True)
    names = np.array(["caf\udce9", "$x^$"])
    watch.write_arrays(run / "linear" / "confusion.npz", {"counts": np.ones((2, 2), int), "names": names})
    page = text_of(write_report(run))
    assert page.count("caf\\udce9") >= 3 and "$x^$" in page


def test_metrics_of_a_method(run):
    """What are no parts of the loss have figures of their own, with the method's words."""
    facts = json.loads(text_of(run / "report" / "run.json"))
    (run / "report" / "run.json").write_text(
        json.dumps(facts | {"title": "mine", "metric_words": {"spread": "So wide."}})
    )
    records = [json.loads(line) | {"spread": 0.5} for line in text_of(run / "metrics.jsonl").splitlines()]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    page = text_of(write_report(run))
    assert "<h1>Mine on" in page and re.search(r"<h3>Spread</h3>.*?<figcaption>So wide.</figcaption>", page, re.DOTALL)


@pytest.mark.parametrize("lacks", ["report", "pretrain.json", "config.json", "metrics.jsonl"])
def test_what_is_missing_is_said(run, lacks):
    """An old run has no arrays, an unfinished one no result; any file may be lost."""
    shutil.rmtree(run / lacks) if lacks == "report" else (run / lacks).unlink()
    page = text_of(write_report(run))
    expected = {
        "report": [
            "Views are left out: this run has not kept what it takes",
            "expected at the start",
            "The map is left out",
        ],
        "pretrain.json": ["this report is of a run that is not finished", "step 8 of 8"],
        "config.json": ["The config cannot be read."],
        "metrics.jsonl": ["No loss is recorded", "No measurement by the monitor is recorded"],
    }[lacks]
    for sentence in expected:
        assert sentence in page, sentence


def test_damaged_files_are_named(run):
    """A torn last line, a line that is no record, arrays cut short, a config that is no JSON."""
    with open(run / "metrics.jsonl", "a") as file:
        file.write('[1]\n{"step": 9, "lo')
    (run / "report" / "last.npz").write_bytes((run / "report" / "last.npz").read_bytes()[:500])
    (run / "config.json").write_text("{")
    (run / "report" / "run.json").write_text("[]")
    page = text_of(write_report(run))
    for sentence in (
        "2 lines of metrics.jsonl are damaged or torn",
        "last.npz is damaged",
        "config.json cannot be read",
    ):
        assert sentence in page, sentence


def test_metrics_of_an_older_version(tmp_path):
    """Without epochs, with a null, with other names: what is there is drawn."""
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join(json.dumps({"step": s, "loss": None if s == 3 else 5.0 / s, "knn": 0.1}) for s in range(1, 6))
    )
    page = text_of(write_report(epath.Path(tmp_path)))
    assert "The loss was not finite" in page and "From step 3 on" in page and "What loss to expect" in page


@pytest.mark.parametrize("images", [1, 2])
def test_few_images(run, images):
    """One image has no neighbours and no map; two have no map."""
    from bt_jax.evaluation.monitor import Seen

    kept = watch.KeptImages(10, 8)
    kept.images = {i: np.full((8, 8, 3), 50 * i, np.uint8) for i in range(images)}
    few = np.arange(images)
    seen = Seen(np.eye(2, dtype=np.float32)[:images], np.zeros(images, np.int32), few, few, None)

    class Named:
        def path(self, example):
            return f"{example}.png"

    arrays = watch._pictured(seen, kept, Named(), 12)
    watch.write_arrays(
        run / "report" / "last.npz", arrays | {"step": np.array(8), "feature_spectrum": np.zeros(2, np.float32)}
    )
    page = text_of(write_report(run))
    assert "The map is left out" in page and page.count("tile first") == (0 if images == 1 else 2)
    assert "Cross-correlation, before training" in page, "which is of what was kept, whatever the images are"


def test_one_class(run):
    """A confusion of one class is drawn."""
    (run / "linear").mkdir()
    watch.write_arrays(run / "linear" / "confusion.npz", {"counts": np.array([[3]]), "names": np.array(["cat"])})
    assert "100.0% of 3 test images are right" in text_of(write_report(run))


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="there is no workdir"):
        write_report(epath.Path(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"neither metrics.jsonl nor config.json"):
        write_report(epath.Path(tmp_path))
    (tmp_path / "config.json").write_text('{"task": "linear"}')
    with pytest.raises(UserError, match="workdir of the task 'linear'"):
        write_report(epath.Path(tmp_path))


def again(finished, tmp_path, monkeypatch, capsys):
    """The result and the output of the same command on a copy of the finished run."""
    monkeypatch.setitem(resnet.BLOCKS, "resnet18", (1,))
    shutil.copytree(finished, tmp_path / "again", ignore=shutil.ignore_patterns("report.html"))
    capsys.readouterr()
    result = pretrain(config_of(finished.parent), str(tmp_path / "again"))
    return result, capsys.readouterr().out


def test_without_matplotlib(finished, run, tmp_path, monkeypatch, capsys):
    """The task says what to install; a run says so once, and is finished like any other."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"report.html needs matplotlib.*pip install matplotlib"):
        write_report(run)
    result, said = again(finished, tmp_path, monkeypatch, capsys)
    assert result["step"] == 8 and said.count("report.html needs matplotlib") == 1 and "done in" in said
    assert not (tmp_path / "again" / "report.html").exists()


def test_a_page_that_cannot_be_written(run, monkeypatch):
    """A sentence, for the task as for the command; the page of before stays."""
    before = text_of(write_report(run))
    no_room_for(monkeypatch, task, "report.html")
    for write in (lambda: report(None, str(run)), lambda: write_comparison([run, run], run / "report.html")):
        with pytest.raises(UserError, match=r"report.html cannot be written \(No space left on device\); make room"):
            write()
    assert text_of(run / "report.html") == before


def test_a_failure_never_ends_a_run(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watch, "write_report", lambda workdir: 1 / 0)
    result, said = again(finished, tmp_path, monkeypatch, capsys)
    assert (
        result["step"] == 8
        and said.count("note      report.html is not complete: it failed with ZeroDivisionError") == 1
    )


@pytest.fixture
def on_eight(finished, tmp_path, monkeypatch):
    """The config and the setup of the finished run, on a mesh of eight devices."""
    monkeypatch.setitem(resnet.BLOCKS, "resnet18", (1,))
    config = config_of(finished.parent)
    config.mesh.data = 8
    return config, prepare(config, epath.Path(tmp_path), mesh_lib.make_mesh(config.mesh))[0]


def test_the_first_process_makes_the_views_alone(finished, on_eight, monkeypatch):
    """On one device of its own, whatever the mesh of the run is: if it fails, no other process waits for it."""
    meshes = []
    monkeypatch.setattr(watch, "make_feed", lambda *a, **k: meshes.append(k["mesh"]) or make_feed(*a, **k))
    monkeypatch.setattr(watch.Watch, "_write_facts", lambda *_: None)
    reporter = SimpleNamespace(say=None, images=lambda *_: None)
    for process in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        watch.Watch(*on_eight, None).begin(SimpleNamespace(start=SimpleNamespace(step=0), reporter=reporter))
        assert len(meshes) == (process == 0)
    assert meshes[0].size == 1
    views = [np.load(folder / "report" / "views.npz") for folder in (on_eight[1].workdir, finished)]
    assert views[0]["names"].tolist() == views[1]["names"].tolist()
    np.testing.assert_array_equal(views[0]["view_pair"], views[1]["view_pair"])


@pytest.mark.parametrize("fits", [True, False])
def test_embeddings_of_a_projector(on_eight, monkeypatch, fits):
    """One that does not take features, as a user's own may be, leaves them out; it is found while tracing."""
    kept = watch.Watch(*on_eight, None)
    state, features = on_eight[1].init_state(), np.ones((16, on_eight[1].method.encoder.num_features), np.float32)
    if not fits:
        monkeypatch.setattr(BarlowTwins, "heads", lambda _: {"projector": nn.Dense(3)})
    found = kept._embeddings(state, (features, 2 * features))
    assert [z.shape for z in found] == [(16, 16)] * 2 if fits else found is None
    assert len(kept._problems) == (0 if fits else 1)


def test_several_runs_on_one_page(run, finished, tmp_path):
    config = json.loads(text_of(run / "config.json"))
    config["optimizer"]["weight_decay"] = 0.5
    (run / "config.json").write_text(json.dumps(config))
    page = text_of(write_comparison([finished, run], epath.Path(tmp_path / "compare.html")))
    assert "optimizer.<wbr>weight_<wbr>decay" in page and "0.5" in page and "the run" in page and "copy" in page
    differ = page[page.index("Fields that differ") : page.index("<h2>Runs")]
    assert differ.count("<code>") == 1
    assert "no common scale" not in page and "not all runs have" not in page
    config = {name: value for name, value in config.items() if name != "barlow_twins"} | {"method": "byol"}
    (run / "config.json").write_text(json.dumps(config | {"byol": {"target_momentum": 0.9}}))
    (run / "pretrain.json").unlink()
    page = text_of(write_comparison([finished, run], epath.Path(tmp_path / "compare.html")))
    common, _, of_some = page[page.index("Fields that differ") : page.index("<h2>Runs")].partition("not all runs have")
    assert (
        common.count("<code>") == 2 and common.index("method") < common.index("weight_") and "no common scale" in page
    )
    assert "target_<wbr>momentum" in of_some and "barlow_<wbr>twins.<wbr>lambd" in of_some
    with pytest.raises(UserError, match="9 runs are too many"):
        write_comparison([run] * 9, epath.Path(tmp_path / "compare.html"))
