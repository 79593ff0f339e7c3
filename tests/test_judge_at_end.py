"""bt_jax/tasks/judge_at_end.py: what a finished run reports of its encoder, by the tasks' own functions."""

import shutil

import jax
import numpy as np
import pytest
from etils import epath

from bt_jax import config as config_lib
from bt_jax.engine.session import Session
from bt_jax.errors import UserError
from bt_jax.runtime import processes
from bt_jax.runtime.preemption import Preemption
from bt_jax.runtime.workdir import write_config
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


def test_a_finished_run_is_judged_anew_with_other_fields(run, monkeypatch):
    """And on other devices: what was judged before is removed; what a user has put there is not, and is told by all processes."""
    copied, config, mesh = run
    session = Session(copied, Preemption())
    begun = []

    def finetune(derived, folder, *_, **__):
        begun.append(sorted(path.name for path in folder.iterdir()) if folder.exists() else [])
        folder.mkdir(parents=True, exist_ok=True)
        write_config(derived, folder)
        (folder / "checkpoints").mkdir(exist_ok=True)
        return {"mean": {"final.top1": 0.5}}

    monkeypatch.setattr(at_end, "evaluate_finetune", finetune)
    told = []
    for epochs, batch_size, left in ((1, 16, 0), (1, 16, 2), (3, 24, 0)):
        config.judge.update(epochs=epochs, batch_size=batch_size)
        found = at_end.judge_at_end(config, session, mesh, say=told.append)
        assert found["linear_top1"] > 0.9 and not told
        assert [len(names) for names in begun[-2:]] == [left, left]
        assert (copied / "linear" / "earlier").exists() == (left > 0)
        (copied / "linear" / "earlier").touch()

    own = config_lib.from_json((copied / "linear" / "config.json").read_text())
    own.epochs = 7
    write_config(own, copied / "linear")
    agreed = []
    monkeypatch.setattr(processes, "agree", lambda what, facts, seconds=300: agreed.append((what, facts)))
    found = at_end.judge_at_end(config, session, mesh, say=told.append)
    assert "linear_top1" not in found and "finetune_top1" in found
    problem = f"{copied / 'linear'} holds a run with another config (epochs was 7 and is now 3)"
    assert len(told) == 1 and problem in told[0] and (copied / "linear" / "linear.json").exists()
    folder = [facts[str(copied / "linear")] for what, facts in agreed if what == "folders of an evaluation"]
    assert len(folder) == 1 and folder[0].startswith(problem)


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


def test_a_problem_of_one_process_alone(run, monkeypatch):
    """The others may wait for it in the middle of the work: it ends with what is wrong, not with how long it waited."""
    copied, config, mesh = run
    waits = []

    def agree(what, facts, seconds=300):
        waits.append(seconds)
        if seconds == 60:
            raise UserError("process 1 waited 60 seconds for the others")

    def linear(*_, **__):
        raise UserError("image 3 cannot be read.")

    monkeypatch.setattr(processes, "agree", agree)
    monkeypatch.setattr(at_end, "evaluate_linear", linear)
    with pytest.raises(UserError, match=r"^image 3 cannot be read\.$"):
        at_end.judge_at_end(config, Session(copied, Preemption()), mesh)
    assert waits == [300, 60]
