"""bt_jax/tasks/finetune.py: few labels, a fine-tuned encoder and a new one on the same labels."""

import json

import numpy as np
import pytest
from PIL import Image
from recipes import evaluation_of, no_room_for

from bt_jax import config as config_lib
from bt_jax.data.sources.make import make_source
from bt_jax.errors import UserError
from bt_jax.evaluation import results
from bt_jax.evaluation.few_labels_table import few_labels_table
from bt_jax.tasks.finetune import finetune, labelled_part


@pytest.fixture
def config(judged):
    config = evaluation_of(judged[1], "finetune")
    config.finetune.percent = 50.0
    config.batch_size = 24
    return config


def test_tuned_and_from_scratch_on_the_same_labels(config, tmp_path, capsys):
    """Two seeds choose different labels; the baseline has exactly these labels, and no checkpoint."""
    config.repeats, config.finetune.protocol = 2, "SimCLR"
    tuned = finetune(config, str(tmp_path / "tuned"))
    config.finetune.from_scratch = True
    scratch = finetune(config, str(tmp_path / "scratch"))
    said = capsys.readouterr().out
    assert "fine-tuned on 30 labels" in said and "from scratch on 30 labels" in said and "init_from is not used" in said
    assert tuned["data"]["labels"] == 30 and tuned["data"]["percent"] == 50.0
    labels = [run["labels"] for run in tuned["runs"]]
    assert labels == [run["labels"] for run in scratch["runs"]] and labels[0] != labels[1]
    assert tuned["checkpoint"]["step"] == 7 and scratch["checkpoint"] is None
    assert tuned["checkpoint"]["method"] == "barlow_twins"
    assert json.loads((tmp_path / "tuned" / "judged.json").read_text())["method"] == "barlow_twins"
    written = json.loads((tmp_path / "tuned" / "finetune.json").read_text())
    assert written["spread"]["final.top1"] is not None and written["config"]["finetune"]["protocol"] == "SimCLR"
    assert sorted(p.name for p in (tmp_path / "tuned").iterdir() if p.is_dir()) == ["seed_0", "seed_1"]
    lines = few_labels_table([("tuned", written), ("scratch", scratch)]).splitlines()
    assert [line.split("|")[2].strip() for line in lines[4:6]] == ["Supervised", "Barlow Twins"]
    assert any(line.startswith("2. Protocol: SimCLR; fine-tuned, batch 24") for line in lines)


def test_parts(config, tmp_path):
    """By the seed, by the list, or all that the source has."""
    train = make_source(config.data, "train")
    part, examples = labelled_part(train, config.finetune, 0)
    assert len(part) == 30 and np.bincount(part.labels).tolist() == [10, 10, 10]
    np.testing.assert_array_equal(train.images[examples], part.images)
    config.finetune.per_class = 2
    assert len(labelled_part(train, config.finetune, 0)[0]) == 6
    config.finetune.update(chosen_by="source", per_class=0)
    assert labelled_part(train, config.finetune, 0)[0] is train

    for name in ("n01", "n02"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / f"{name}_{i}.png")
    config.data.update(source="folder", data_dir=str(tmp_path))
    folder = make_source(config.data, "train")
    path = tmp_path / "list.txt"
    config.finetune.update(chosen_by="list", list_file=str(path))
    path.write_text("n01_0.png\nn02_2.png\n")
    assert labelled_part(folder, config.finetune, 0)[1].tolist() == [0, 5]
    path.write_text("n01_0.png\nn01_2.png\n")
    with pytest.raises(UserError, match="1 of the 2 classes have no image in .*: n02"):
        labelled_part(folder, config.finetune, 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"finetune.list_file": "x.txt"}, "finetune.list_file must name a file if finetune.chosen_by is 'list'"),
        ({"finetune.chosen_by": "list"}, "finetune.list_file must name a file"),
        ({"finetune.chosen_by": "source", "finetune.per_class": 3}, "finetune.per_class is 3, but must be 0"),
        ({"finetune.chosen_by": "sead"}, "did you mean 'seed'"),
        ({"finetune.percent": 0.0}, "must be more than 0 and at most 100"),
        ({"sgd.schedule": "steps"}, "sgd.decay_epochs is empty"),
        ({"sgd.decay_epochs": (3, 2)}, "must be increasing numbers above 0"),
        ({"sgd.warmup_epochs": 2}, "epochs is 2, but must be more than sgd.warmup_epochs, which is 2"),
        ({"data.test_split": ""}, "must name the labelled split that finetune tests on"),
        ({"init_from": ""}, "init_from is empty"),
    ],
)
def test_bad_config(config, changes, sentence):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=sentence):
        config_lib.check(config)


def test_from_scratch_needs_no_encoder(config):
    config.init_from, config.finetune.from_scratch = "", True
    config_lib.check(config)


def test_a_full_disk(config, tmp_path, monkeypatch, capsys):
    """The numbers are printed before the file fails, and a message says so."""
    config.epochs = 1
    no_room_for(monkeypatch, results, "finetune.json")
    with pytest.raises(
        UserError,
        match=r"finetune.json cannot be written \(No space left on device\), so the numbers are only in the output above",
    ):
        finetune(config, str(tmp_path / "run"))
    assert "top-1, final" in capsys.readouterr().out
