"""bt_jax/evaluation/few_labels_table.py: Table 2, the paper's numbers beside one's own only where they belong."""

import json

import pytest
from etils import epath

from bt_jax import config as config_lib
from bt_jax.evaluation import table
from bt_jax.evaluation.few_labels_table import HEADER, PAPER, few_labels_table, label_list, method_of
from bt_jax.evaluation.results import make_result, write_result


def result_of(argument, *, method="same", classes=1000, seeds=(0,), top1=0.5, labels=None, **changes):
    """A made-up result with the config of semi_supervised_imagenet.py:ARGUMENT."""
    from configs.semi_supervised_imagenet import get_config

    config = get_config(argument)
    config.update_from_flattened_dict(changes)
    chosen = config.finetune
    data = {
        "train": f"TFDS {config.data.name}, train",
        "test": f"TFDS {config.data.name}, validation",
        "test_images": 50000,
    }
    labels = labels or (12_811 if argument.startswith("1percent") else 128_116)
    data |= {"classes": classes, "labels": labels, "percent": None if chosen.per_class else chosen.percent}
    data |= {"per_class": chosen.per_class or None, "chosen_by": chosen.chosen_by}
    checkpoint = {"source": "x", "step": 312_500, "sha256": "ab" * 32, "arch": "resnet50", "width": 64}
    if method is not None:
        checkpoint["method"] = [*argument.split(","), "barlow_twins"][1] if method == "same" else method
    runs = [{"seed": seed, "final": {"top1": top1 + seed / 100, "top5": 0.9}, "best": {"top1": 0.6}} for seed in seeds]
    scratch = config.finetune.from_scratch
    return make_result(config, protocol="words", data=data, checkpoint=None if scratch else checkpoint, runs=runs)


def printed(*results):
    """The rows as lists of cells, the notes, and all lines of the table."""
    text = few_labels_table([(f"runs/{i}", json.loads(json.dumps(result))) for i, result in enumerate(results)])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == HEADER
    return rows[2:], [line for line in text.splitlines() if line[:1].isdigit()], lines


def test_six_systems_beside_the_papers_numbers():
    """Every row of the paper once, in its order; ours beside its own method and share of labels."""
    rows, notes, lines = printed(
        result_of("10percent,swav", top1=0.61),
        result_of("1percent", top1=0.54),
        result_of("1percent,supervised", top1=0.2),
    )
    assert [row[:2] for row in rows] == [[f"{percent} % of ImageNet", name] for percent in (1, 10) for name in PAPER]
    assert rows[0] == ["1 % of ImageNet", "Supervised", "20.0%", "90.0%", "25.4%", "48.4%", "1"]
    assert rows[5] == ["1 % of ImageNet", "Barlow Twins", "54.0%", "90.0%", "55.0%", "79.2%", "2"]
    assert rows[10] == ["10 % of ImageNet", "SwAV", "61.0%", "90.0%", "70.2%", "89.9%", "3"]
    assert rows[1] == ["1 % of ImageNet", "PIRL", "—", "—", "—", "57.2%", ""]
    assert rows[8][4:6] == ["65.6%", "87.8%"] and rows[9][4:6] == ["68.8%", "89.0%"]
    assert len({len(line) for line in lines}) == 1  # padded
    assert len(notes) == 3 and "from scratch" in notes[0] and "SwAV" in notes[2]


def test_another_data_set_stands_apart():
    """A test set without 1000 classes: the paper's numbers are in rows of their own, also for the same method and share."""
    rows, _, _ = printed(result_of("1percent", classes=10))
    assert len(rows) == 13
    assert rows[0][1:] == ["Barlow Twins", "50.0%", "90.0%", "—", "—", "1"] and "ImageNet" not in rows[0][0]
    assert all(row[2] == "—" for row in rows[1:])


@pytest.mark.parametrize(
    "changes", [{"finetune.percent": 5.0}, {"finetune.per_class": 13, "finetune.chosen_by": "seed"}]
)
def test_another_share_stands_apart(changes):
    rows, _, _ = printed(result_of("1percent", **changes))
    assert len(rows) == 13 and rows[0][4:6] == ["—", "—"]


@pytest.mark.parametrize(
    ("argument", "labels", "belongs"),
    [
        ("1percent", 12_811, True), ("1percent,supervised", 13_000, True), ("10percent", 128_116, True),
        ("10percent", 128_000, True), ("1percent", 1_281_167, False), ("1percent", 128_116, False), ("10percent", 12_811, False),
    ],
)  # fmt: skip
def test_the_labels_are_counted(argument, labels, belongs):
    """Whatever the config says of their share: all labels of ImageNet are not 1 %."""
    rows, notes, _ = printed(result_of(argument, labels=labels))
    (own,) = [row for row in rows if row[6] == "1"]
    assert own[0].endswith("of ImageNet") == belongs == (own[4] != "—") and f"{labels} labels" in notes[0]


def test_methods():
    """An encoder that was pre-trained with labels is not the paper's Supervised, and old results do not say."""
    assert method_of(result_of("1percent,byol")) == "BYOL"
    assert method_of(result_of("1percent,supervised")) == "Supervised"
    assert method_of(result_of("1percent", method="supervised")) == "pre-trained with labels"
    assert method_of(result_of("1percent", method="my.module:Mine")) == "my.module:Mine"
    rows, _, _ = printed(result_of("1percent", method=None), result_of("1percent"))
    (unknown,) = (row for row in rows if row[1] == "method not recorded")
    assert unknown[4:6] == ["—", "—"] and len(rows) == 13


def test_two_protocols_of_one_method():
    """Two rows, each with its note and the paper's numbers; seeds share a row."""
    rows, notes, _ = printed(result_of("1percent,simclr"), result_of("1percent,simclr,barlow_twins", seeds=(0, 1)))
    ours = [row for row in rows if row[1] == "SimCLR" and row[0].startswith("1 %")]
    assert [row[6] for row in ours] == ["1", "2"] and all(row[4] == "48.3%" for row in ours)
    assert ours[1][2] == "50.5% ± 0.7% (2 seeds)"
    assert notes[0] == (
        "1. Protocol: SimCLR; fine-tuned, batch 4096, 60 epochs; rates 0.05 (encoder) and 0.05 (head) × 4096/256, cosine, Nesterov "
        "momentum, weight decay 0; SimCLR's list, 12811 labels; resnet50, step 312500, abababab; tested on TFDS imagenet2012_subset/1pct, "
        "validation, 50000 images; from runs/0"
    )
    assert notes[1].startswith(
        "2. Protocol: Barlow Twins; fine-tuned, batch 256, 20 epochs; rates 0.005 (encoder) and 0.5"
    )


def test_the_note_of_training_from_scratch():
    _, (note,), _ = printed(result_of("10percent,supervised"))
    assert "from scratch, batch 256, 200 epochs; rate 0.1 × 256/256, warm-up 5 epochs, then ×0.1 after" in note
    assert "weight decay 0.001" in note and "; resnet50; tested" in note


@pytest.mark.parametrize(
    ("changes", "labels", "expected"),
    [
        ({}, 12_811, "SimCLR's list"),
        ({"data.name": "other"}, 12_811, "all labels of TFDS other, train"),
        ({"finetune.chosen_by": "list", "finetune.list_file": "1.txt"}, 12_811, "SimCLR's list"),
        ({"finetune.chosen_by": "list", "finetune.list_file": "10.txt"}, 128_116, "SimCLR's list"),
        ({"finetune.chosen_by": "list", "finetune.list_file": "13.txt"}, 13_000, "the list 13.txt"),
        ({"finetune.chosen_by": "seed"}, 12_811, "a stratified share by seeds 0, 3"),
        ({"finetune.chosen_by": "seed", "finetune.per_class": 13}, 13_000, "13 per class by seeds 0, 3"),
    ],
)
def test_label_lists(changes, labels, expected):
    assert label_list(result_of("1percent", labels=labels, seeds=(0, 3), **changes)) == expected


def test_old_results(tmp_path):
    """Without a method, a protocol, and the newer fields of sgd."""
    result = json.loads(json.dumps(result_of("1percent", method=None)))
    del result["config"]["finetune"]["protocol"], result["config"]["sgd"]["warmup_epochs"]
    write_result(epath.Path(tmp_path), result)
    said = []
    table.main([str(tmp_path)], said.append)
    assert "method not recorded" in said[0] and "1. Protocol: not recorded;" in said[0]


def test_the_field_has_a_default():
    assert config_lib.default("finetune").finetune.protocol == "own settings"
