"""bt_jax/engine/loop.py and run.py: what happens between steps, with a model of two numbers that compiles in no time."""

import itertools
import json
import os
import signal
import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from bt_jax.data.views.spec import ViewGroup, ViewSpec
from bt_jax.engine import checkpoint, loop
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.engine.due import Cadence
from bt_jax.engine.loop import Look, run_steps
from bt_jax.engine.run import started
from bt_jax.engine.session import Session
from bt_jax.engine.setup import Setup
from bt_jax.errors import NotFinite, Preempted, UserError
from bt_jax.facts import Facts
from bt_jax.methods.base import Method
from bt_jax.optim import make_optimizer
from bt_jax.reporting.progress import Reporter
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.runtime import preemption
from bt_jax.runtime.preemption import Preemption

FACTS = Facts(num_examples=16, num_classes=2, batch_size=8, epochs=3)  # 2 steps an epoch, 6 in all
SGD = {
    "name": "sgd", "learning_rate": 1.0, "momentum": 0.5, "weight_decay": 0.0, "schedule": "cosine", "decay_epochs": (),
    "decay_factor": 1.0,
}  # fmt: skip


class TwoNumbers(Method):
    """Its loss is what the images' mean makes of a weight; not finite from step `ends` on."""

    name, metrics, encoder = "two_numbers", ("loss",), nn.Dense(1)
    view_groups = (ViewGroup("image", (ViewSpec(),), 4),)

    def __init__(self, ends=100):
        self.ends = ends

    def init(self, rng, batch_spec):
        return {"encoder": {"w": jnp.ones(2)}}, {"batch_stats": {"encoder": {}}}, {"seen": jnp.int32(0)}

    def loss(self, params, model_state, method_state, batch, step, rng):
        level = jnp.mean(batch["views"]["image"].astype(jnp.float32)) / 255
        loss = jnp.sum(jnp.square(params["encoder"]["w"] - level)) + jnp.where(step >= self.ends, jnp.nan, 0.0)
        return loss, (model_state, {"seen": method_state["seen"] + 1}, {"loss": loss})


class Batches:
    """A feed: step k has images of one level; a signal or an error may come before a step. Several steps may come together."""

    words = ""

    def __init__(self, mesh, before=None, together=1):
        self.mesh, self.before, self.together = mesh, before or {}, together
        self.prepare = None if together == 1 else prepared

    def batches(self, start_step, total_steps):
        for step in range(start_step, total_steps, self.together):
            self.before.get(step, lambda: None)()
            items = [self.batch(step + i) for i in range(self.together)]
            several = {"resident": None, "items": jax.tree.map(lambda *x: jnp.stack(x), *items)}
            yield step + self.together, items[0] if self.together == 1 else several

    def batch(self, step):
        views, numbers = np.full((8, 1, 4, 4, 3), 20 * step % 256, np.uint8), np.arange(8)
        return mesh_lib.put_batch(self.mesh, 8, {"views": {"image": views}, "label": numbers, "example": numbers})


def prepared(_, item):
    return item


def run(workdir, *, look=None, cadence=Cadence(), before=None, method=None, facts=FACTS, together=1, keep=(10, 0, 0)):  # noqa: B008
    """One start; returns the state after the last step."""
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    setup = Setup(
        workdir=epath.Path(workdir), seed=0, facts=facts, method=method or TwoNumbers(),
        optimizer=make_optimizer(SGD, facts), feed=Batches(mesh, before, together), mesh=mesh, sources=(), cadence=cadence,
        checkpoint=ConfigDict(dict(zip(("keep", "keep_every_epochs", "keep_best"), keep, strict=True))),
        log=ConfigDict({"every_steps": 1, "tensorboard": False, "wandb": False, "mlflow": False}), profile=ConfigDict({"steps": 0, "after": 1}),
        dtype="float32", config={}, advice="Lower the rate.",
    )  # fmt: skip
    with Preemption() as asked, started(setup, Session(setup.workdir, asked), quiet=True) as begun:
        return run_steps(begun, look)


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def notes(workdir, step):
    return json.loads((workdir / "checkpoints" / str(step) / "run" / "metadata").read_text())


def test_losses_looks_and_checkpoints_in_their_order(tmp_path):
    """Each step is recorded once; the monitor sees the state of its step, and its score is saved with that step's checkpoint."""
    looks = []

    def look(state, step):
        looks.append((step, int(state.step), int(state.method_state["seen"])))
        return Look({"seen": step}, "", score=float(-step))

    state = run(tmp_path, look=look, cadence=Cadence(save_epochs=1, look_epochs=2, look_first=True))
    assert int(state.step) == 6 and looks == [(0, 0, 0), (4, 4, 4), (6, 6, 6)]
    assert saved(tmp_path) == [2, 4, 6]
    found = records(tmp_path)
    assert [r["step"] for r in found if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in found if "seen" in r] == [0, 4, 6]
    assert [r["step"] for r in found] == [0, 1, 2, 3, 4, 4, 5, 6, 6]
    assert [r["learning_rate_weights"] for r in found if "loss" in r][::2] == pytest.approx(
        [1 / 32, 0.75 / 32, 0.25 / 32]
    )
    score = json.loads((tmp_path / "checkpoints" / "4" / "score" / "metadata").read_text())["score"]
    assert score == -4 and not (tmp_path / "checkpoints" / "2" / "score").exists()
    assert notes(tmp_path, 4)["history"] == found[:6] and notes(tmp_path, 4)["watched"] is True


@pytest.mark.parametrize("after", range(6))
def test_a_signal_before_any_step(tmp_path, after):
    """That step is finished and saved; the run resumes to the same bits as an uninterrupted one, records included."""
    whole = run(tmp_path / "whole")
    with pytest.raises(Preempted) if after < 5 else nullcontext():
        run(tmp_path / "cut", before={after: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert saved(tmp_path / "cut")[-1] == after + 1
    state = run(tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    timed = {"images_per_second": 0, "input_wait": 0}
    assert [r | timed for r in records(tmp_path / "cut")] == [r | timed for r in records(tmp_path / "whole")]


class SyncPoint:
    """JAX's, for this process and others that ask like it: a signal sets it once, to one more than the number passed last."""

    def __init__(self):
        self.last, self.point = 0, None

    def signal(self):
        self.point = self.last + 1

    def reached(self, number):
        self.last = number
        return number == self.point


@pytest.fixture
def start_of_several(monkeypatch):
    """Lets signals be answered as in a new process among several; gives their sync point."""

    def start():
        point = SyncPoint()
        monkeypatch.setattr(preemption, "_asks", itertools.count(1))
        monkeypatch.setattr(preemption, "jax", SimpleNamespace(process_count=lambda: 2, process_index=lambda: 0))
        monkeypatch.setattr(preemption.multihost_utils, "reached_preemption_sync_point", point.reached)
        return point

    return start


def test_a_signal_to_several_processes(tmp_path, start_of_several):
    """Is answered at the next step: before the first one of a resumed start too, and in a process's second training."""
    for before, step in ((1, 2), (2, 3)):
        with pytest.raises(Preempted):
            run(tmp_path / "resumed", before={before: start_of_several().signal})
        assert saved(tmp_path / "resumed")[-1] == step
    point = start_of_several()
    run(tmp_path / "first")
    with pytest.raises(Preempted):
        run(tmp_path / "second", before={1: point.signal})
    assert saved(tmp_path / "second") == [2]


def test_a_signal_to_several_processes_after_a_save(tmp_path, start_of_several):
    """Is answered at the next step, though the saves of a resumed run have other numbers than its asks, and so in a second one."""
    facts = Facts(num_examples=1600, num_classes=2, batch_size=8, epochs=1)
    parts = {"facts": facts, "cadence": Cadence(save_steps=10), "method": TwoNumbers(ends=1000)}
    for before, step in ((100, 101), (121, 122)):
        with pytest.raises(Preempted):
            run(tmp_path / "resumed", before={before: start_of_several().signal}, **parts)
        assert saved(tmp_path / "resumed")[-1] == step
    point = start_of_several()
    run(tmp_path / "first", **parts)
    with pytest.raises(Preempted):
        run(tmp_path / "second", before={10: point.signal}, **parts)
    assert saved(tmp_path / "second") == [10, 11]


def test_a_signal_to_several_processes_that_dispatch_ten_steps(tmp_path, start_of_several):
    """Is answered after the next ten."""
    facts = Facts(num_examples=320, num_classes=2, batch_size=8, epochs=1)
    with pytest.raises(Preempted):
        run(tmp_path, before={20: start_of_several().signal}, facts=facts, together=10)
    assert saved(tmp_path) == [30]


def test_a_look_that_is_broken_off_is_taken_again(tmp_path):
    """It is the first thing that the resumed run does, and is recorded once; the checkpoint says that it is due."""
    looks = []

    def look(_, step):
        looks.append(step)
        if len(looks) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return Look({"seen": step}, "")

    cadence = Cadence(look_epochs=1)
    with pytest.raises(Preempted):
        run(tmp_path, look=look, cadence=cadence)
    assert saved(tmp_path) == [2] and notes(tmp_path, 2)["watched"] is False
    run(tmp_path, look=look, cadence=cadence)
    assert looks == [2, 2, 4, 6]
    assert [r["step"] for r in records(tmp_path) if "seen" in r] == [2, 4, 6]


def test_a_look_that_is_taken_again_counts_for_its_step(tmp_path):
    """Its score is the best, so its checkpoint stays, also after one more restart."""
    looks = []

    def look(_, step):
        looks.append(step)
        if looks == [2]:
            os.kill(os.getpid(), signal.SIGTERM)
        return Look({"seen": step}, "", score=-step)

    parts = {"look": look, "cadence": Cadence(look_epochs=1), "keep": (1, 0, 1)}
    for before, kept in ({}, [2]), ({4: lambda: os.kill(os.getpid(), signal.SIGTERM)}, [2, 5]):
        with pytest.raises(Preempted):
            run(tmp_path, before=before, **parts)
        assert saved(tmp_path) == kept
    run(tmp_path, **parts)
    assert saved(tmp_path) == [2, 6] and looks == [2, 2, 4, 6]


def test_a_last_look_that_is_broken_off_twice(tmp_path):
    """The run ends only once it is taken, as its result would be that of the look before."""
    looks = []

    def look(_, step):
        looks.append(step)
        if looks.count(6) in (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return Look({"seen": step}, "")

    for _ in range(2):
        with pytest.raises(Preempted):
            run(tmp_path, look=look, cadence=Cadence(look_epochs=1))
    assert [r["step"] for r in records(tmp_path) if "seen" in r] == [2, 4]
    run(tmp_path, look=look, cadence=Cadence(look_epochs=1))
    assert looks == [2, 4, 6, 6, 6]
    assert [r["step"] for r in records(tmp_path) if "seen" in r] == [2, 4, 6]


def test_what_is_not_finite_is_never_saved(tmp_path):
    """Found one step late at most, before anything of it is written; the advice comes from the setup."""
    with pytest.raises(
        UserError, match=r"not finite at step 4 \(loss nan\); the last good checkpoint is step 2 .*Lower the rate"
    ):
        run(tmp_path, method=TwoNumbers(ends=3))
    assert saved(tmp_path) == [2]
    assert records(tmp_path)[-1]["step"] == 4 and records(tmp_path)[-1]["loss"] is None


class SteepAtTheEnd(TwoNumbers):
    """From step `ends` on its loss is finite, and its gradient is not: that of a root at 0."""

    def loss(self, params, model_state, method_state, batch, step, rng):
        loss, (model_state, method_state, _) = super().loss(params, model_state, method_state, batch, 0, rng)
        loss += jnp.sqrt(jnp.where(step >= self.ends, 0.0, 1.0) * jnp.sum(jnp.square(params["encoder"]["w"])))
        return loss, (model_state, method_state, {"loss": loss})


@pytest.mark.parametrize(("step", "kept"), [(3, 2), (4, 2), (6, 4)])
def test_an_update_that_is_not_finite_is_never_saved(tmp_path, step, kept):
    """Neither when a signal comes, nor at an epoch's end, nor at the last step."""
    before = {2: lambda: os.kill(os.getpid(), signal.SIGTERM)} if step == 3 else None
    sentence = rf"the update is not finite at step {step} \(params/encoder/w.*\), though its loss is; the last good checkpoint is step {kept} "
    with pytest.raises(NotFinite, match=sentence):
        run(tmp_path, method=SteepAtTheEnd(ends=step - 1), before=before)
    assert saved(tmp_path)[-1] == kept
    assert records(tmp_path)[-1]["step"] == step and np.isfinite(records(tmp_path)[-1]["loss"])


def test_a_first_checkpoint_that_cannot_be_read_back(tmp_path, monkeypatch):
    """Ends the run before its next step, and not at its next save."""
    failed, made = threading.Event(), []
    read_back = Checkpoints._read_back_first

    def told(self):
        try:
            read_back(self)
        finally:
            failed.set()

    monkeypatch.setattr(Checkpoints, "_read_back_first", told)
    monkeypatch.setattr(checkpoint, "fingerprints_on_host", lambda state: {"params/encoder/w": -1})
    before = {2: lambda: failed.wait(60), 3: lambda: made.append(3)}
    with pytest.raises(UserError, match="the checkpoint of step 2 was written to .*, but cannot be read back"):
        run(tmp_path, before=before, cadence=Cadence(save_steps=2))
    assert failed.is_set() and not made and saved(tmp_path) == []


class Collapsing(TwoNumbers):
    """Has collapsed in all but its second step."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def collapse(self, metrics):
        self.asked += 1
        assert set(metrics) == {"loss"}
        return "" if self.asked == 2 else "all is the same; change something."


def test_a_collapse_is_said_once(tmp_path, monkeypatch):
    """When it has lasted for some steps without a break, and with the step since when."""
    monkeypatch.setattr(loop._CollapseWatch, "STEPS", 2)
    said = []
    monkeypatch.setattr(Reporter, "say", lambda self, text: said.append(text))
    run(tmp_path, method=Collapsing())
    assert [text for text in said if "the same" in text] == ["since step 3 all is the same; change something."]


def test_a_finished_run_has_nothing_to_do(tmp_path):
    whole = run(tmp_path)
    found = records(tmp_path)
    again = run(tmp_path, before={6: pytest.fail})
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert records(tmp_path) == found


def test_equal_trainings_share_a_program():
    """Cached by what it is made of: a second training of the same method and optimiser compiles nothing."""
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    method, optimizer = TwoNumbers(), make_optimizer(SGD, FACTS)
    one = loop._jitted(method, optimizer, 0, 8, mesh, None)
    assert loop._jitted(method, make_optimizer(dict(SGD), FACTS), 0, 8, mesh, None) is one
    assert loop._jitted(method, optimizer, 1, 8, mesh, None) is not one


def test_which_checkpoints_are_kept(tmp_path):
    """The newest, those of every second epoch, and the best by the looks; of two steps an epoch."""
    facts = Facts(num_examples=16, num_classes=2, batch_size=8, epochs=7)
    scores = {2: 0.1, 4: 0.2, 6: 0.9, 8: 0.3, 10: 0.4, 12: 0.5, 14: 0.6}
    cadence = Cadence(save_epochs=1, look_epochs=1)

    def look(_, step):
        return Look(record={}, sentence="", score=scores.get(step, 0.0))

    run(tmp_path / "epochs", look=look, cadence=cadence, facts=facts, keep=(1, 3, 0))
    assert saved(tmp_path / "epochs") == [6, 12, 14]
    run(tmp_path / "best", look=look, cadence=cadence, facts=facts, keep=(1, 0, 2))
    assert saved(tmp_path / "best") == [6, 14]
    run(tmp_path / "newest", look=look, cadence=cadence, facts=facts, keep=(2, 0, 0))
    assert saved(tmp_path / "newest") == [12, 14]


@pytest.mark.parametrize("together", [1, 2])
def test_reporting_asks_the_device_for_nothing(tmp_path, monkeypatch, together):
    """Nothing is computed between dispatches, which would wait for the step just dispatched: rates come from the steps."""
    facts = Facts(num_examples=32, num_classes=2, batch_size=8, epochs=2)
    settings = {**SGD, "schedule": "steps", "decay_epochs": (1,), "decay_factor": 0.1, "warmup_epochs": 1}
    traced, report = [], loop._report

    def schedule_of_steps(step):
        traced.append(isinstance(step, jax.core.Tracer))
        return schedule(step)

    def only_reported(*arguments, **more):
        with jax.transfer_guard_host_to_device("disallow"):  # of which an operation on a Python number is one
            report(*arguments, **more)

    optimizer = make_optimizer(settings, facts)
    schedule = optimizer.schedules["weights"]
    optimizer.schedules["weights"] = schedule_of_steps
    monkeypatch.setattr(loop, "_report", only_reported)
    monkeypatch.setattr(sys.modules[__name__], "make_optimizer", lambda *_: optimizer)
    run(tmp_path, facts=facts, together=together)
    assert traced and all(traced)
    rates = [r["learning_rate_weights"] for r in records(tmp_path) if "loss" in r]
    peak = np.float32(8 / 256)
    np.testing.assert_array_equal(
        rates, [float(x) for x in (0, peak / 4, peak / 2, 3 * peak / 4, *[peak * np.float32(0.1)] * 4)]
    )


class Metric:
    """A scalar that is being computed: who asks for it is noted."""

    def __init__(self, step, events):
        self._step, self._events = step, events

    def __array__(self, *_, **__):
        self._events.append(("read", self._step))
        return np.float32(1.0)

    def block_until_ready(self):
        return np.asarray(self)


def test_the_next_step_does_not_wait_for_the_last_ones_metrics(tmp_path, monkeypatch):
    """They are read only once the next step is on its way, so that the device never waits for the host."""
    events = []

    def program(state, _):
        step = int(state.step) + 1
        events.append(("begun", step))
        return state.replace(step=jnp.int32(step)), {"loss": Metric(step, events), "learning_rate_weights": 1.0}

    monkeypatch.setattr(loop, "_program", lambda _: program)
    monkeypatch.setattr(jax, "transfer_guard", lambda _: nullcontext())
    run(tmp_path, cadence=Cadence(save_epochs=3))
    order = [f"{what} {step}" for what, step in events]
    for step in range(1, 5):
        assert order.index(f"begun {step + 1}") < order.index(f"read {step}")
    assert order[-1] == "read 6"
