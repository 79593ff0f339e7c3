"""bt_jax/tasks/judge_at_end.py: what a finished run reports of its encoder, by the tasks' own functions."""

import shutil

import jax
import numpy as np
import pytest
from etils import epath

from bt_jax.engine.session import Session
from bt_jax.errors import UserError
from bt_jax.runtime.preemption import Preemption
from bt_jax.tasks import judge_at_end as at_end


@pytest.fixture
def run(judged, tmp_path):
    """A copy of the run for one test, its config, and the mesh; trainings on labels take one epoch."""
    workdir, config = judged
    copied = epath.Path(tmp_path) / "run"
    shutil.copytree(workdir, copied)
    config.judge.epochs = 1
    return copied, config, jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))


def test_three_numbers_and_their_files(run):
    """Linear, fine-tuned and from scratch on the same labels; nothing is printed, and each leaves its file."""
    copied, config, mesh = run
    config.judge.batch_size = 24
    found = at_end.judge_at_end(config, Session(copied, Preemption()), mesh)
    assert found.keys() == {"linear_top1", "finetune_top1", "from_scratch_top1", "labels_a_class"}
    assert found["linear_top1"] > 0.9 and found["labels_a_class"] == 10
    for name, file in (("linear", "linear.json"), ("finetune", "finetune.json"), ("from_scratch", "finetune.json")):
        assert (copied / name / file).exists()
    assert np.isfinite(list(found.values())).all()


def test_what_cannot_be_judged_is_told(run, monkeypatch):
    """A finished run ends well; it takes as few labels as the smallest class has, and no larger batch than there are labels."""
    copied, config, mesh = run
    given, told = [], []

    def linear(derived, *_, **__):
        given.append(derived)
        raise UserError("the test split has no labels.")

    def finetune(derived, *_, **__):
        given.append(derived)
        return {"mean": {"final.top1": 0.5}}

    monkeypatch.setattr(at_end, "evaluate_linear", linear)
    monkeypatch.setattr(at_end, "evaluate_finetune", finetune)
    found = at_end.judge_at_end(
        config, Session(copied, Preemption()), mesh, labels=np.repeat([0, 1], [9, 30]), say=told.append
    )
    assert told == ["the linear accuracy is left out: the test split has no labels."]
    assert found == {"finetune_top1": 0.5, "from_scratch_top1": 0.5, "labels_a_class": 9}
    assert [d.task for d in given] == ["linear", "finetune", "finetune"]
    assert [d.finetune.from_scratch for d in given[1:]] == [False, True]
    assert {d.batch_size for d in given} == {16} and {d.finetune.per_class for d in given[1:]} == {9}
