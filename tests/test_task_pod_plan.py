"""bt_jax/tasks/pod_plan.py: a plan with CPU devices for a pod, the search, and a real plan if libtpu is installed."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from recipes import no_room_for, small_method

from bt_jax import config as config_lib
from bt_jax.errors import UserError
from bt_jax.planning.chips import parse_topology
from bt_jax.tasks import pod_plan


def small_config(**changes):
    config = config_lib.default()
    config.task, config.batch_size, config.epochs = "pod_plan", 16, 20
    config.data.source, config.data.image_size = "photographs", 16
    config.barlow_twins.projector = (32, 64)
    config.pod.topology, config.pod.images = "v5e:2x4", 1000
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """What the task returns and writes for 8 CPU devices that represent a v5e:2x4, and the plan itself."""
    workdir = tmp_path_factory.mktemp("plan")
    plans = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pod_plan, "devices_of", lambda topology: jax.devices()[: topology.devices])
        method = lambda config, facts, mesh: small_method(mesh, sizes=config.barlow_twins.projector)  # noqa: E731
        patch.setattr(pod_plan, "make_method", method)
        make = pod_plan.make_plan
        patch.setattr(pod_plan, "make_plan", lambda *args: plans.append(make(*args)) or plans[-1])
        result = pod_plan.pod_plan(small_config(), str(workdir))
    return result, json.loads((workdir / "pod_plan_v5e_2x4.json").read_text()), plans[0]


def test_a_plan_is_the_step_of_a_run(planned):
    """Its memory is at least the state and the batch, and its collectives move at least the gradients and the loss."""
    _, _, plan = planned
    assert plan.mesh == {"data": 8} and plan.batch_size == 16
    state = 4 * 2 * plan.parameters  # parameters and momentum; there are running statistics besides
    batch = 2 * 2 * 16 * 16 * 3
    assert state + batch <= plan.arguments <= 1.1 * (state + batch)
    assert plan.results < 0.1 * state, "the state is donated"
    assert plan.memory == plan.arguments + plan.temporaries + plan.results + plan.program
    moved = {kind: sum_["bytes"] for kind, sum_ in plan.collectives.items()}
    assert moved["all-to-all"] == 4 * 4 * 16 * 64 / 8
    assert 4 * plan.parameters + 2 * 4 * 16 * 16 <= moved["all-reduce"] <= 1.2 * (4 * plan.parameters + 2 * 4 * 16 * 16)
    assert plan.traffic > plan.arguments
    assert plan.loss_flops == 8 * 16 * 16 * 64 / 8 < plan.flops


@pytest.mark.parametrize(
    ("steps", "found", "right"),
    [(1, "", ""), (10, " and steps_per_dispatch 10", " and steps_per_dispatch to 1")],
)
def test_views_of_the_device_are_not_planned(tmp_path, steps, found, right):
    """They are part of a run's program, and would be missing in the plan's."""
    with pytest.raises(UserError) as error:
        pod_plan.pod_plan(small_config(**{"data.views": "device", "steps_per_dispatch": steps}), str(tmp_path))
    assert str(error.value) == (
        f"data.views is 'device'{found}, but a plan is of single steps whose views come from the host; "
        f"set data.views to 'host'{right}."
    )


def test_what_follows_from_a_plan(planned):
    """Rates are the chip's, times add up, and a run takes its epochs' steps."""
    result, written, plan = planned
    assert written.pop("config")["pod"]["topology"] == "v5e:2x4"
    assert written == json.loads(json.dumps(result))
    assert result["fits"] is True and result["chips"] == 8
    times, seconds = plan.times, result["seconds"]
    assert times["products"] == pytest.approx((plan.flops + 5 * plan.loss_flops) / 197e12)
    assert times["memory"] == pytest.approx(plan.traffic / 819e9)
    count = sum(kind["count"] for kind in plan.collectives.values())
    sent = sum(kind["sent"] for kind in plan.collectives.values())
    assert times["links"] == pytest.approx(sent / 200e9 + count * 6e-6)
    assert seconds["bound"] == max(times.values())
    assert seconds["one_after_another"] == pytest.approx(sum(times.values()))
    assert result["images_per_second"] == pytest.approx(16 / seconds["bound"])
    assert result["days"] == pytest.approx(seconds["bound"] * (1000 // 16) * 20 / 86400)


def test_two_devices_share_a_chip(planned):
    """A 7x chip is two devices: each has half of its memory and of its rates."""
    _, _, plan = planned
    shared = dataclasses.replace(plan, topology=parse_topology("7x:2x2x1"))
    assert shared.capacity == 96 * 2**30
    assert shared.times["memory"] == pytest.approx(2 * plan.traffic / 7380e9)


def test_the_table_fits_a_screen(planned):
    _, _, plan = planned
    text = pod_plan.table(plan, images=1000, epochs=20)
    assert all(len(line) <= 120 for line in text.splitlines())
    for words in (
        "8 × v5e",
        "2 images per device",
        "17.18 GB per device: fits",
        "all-reduce",
        "at least",
        "cloud.google.com",
    ):
        assert words in text
    full = dataclasses.replace(plan, temporaries=10**12)
    assert "DOES NOT FIT" in pod_plan.table(full, images=1000, epochs=20)


@pytest.mark.parametrize("limit", [0, 1, 7, 23, 64, 100, 999])
@pytest.mark.parametrize("start", [1, 8, 200])
def test_search_finds_the_largest_that_fits(planned, limit, start):
    """To within 3 %, for memory that is not linear in the batch, in few compilations."""
    plan = dataclasses.replace(planned[2], arguments=0, results=0, program=0)
    tried = []

    def plan_at(n):
        tried.append(n)
        if n > 1.5 * limit:
            return "out of memory"
        bend = n**1.1 / limit**1.1 if limit else 2.0
        return dataclasses.replace(plan, temporaries=int(plan.capacity * min(bend, 1.0)) + (n > limit))

    found = pod_plan.search(plan_at, start, 500)
    best = min(limit, 500)
    assert best - max(1, 0.03 * best) < found <= best
    assert len(tried) == len(set(tried)) <= 12


def test_search_reports_each_trial(monkeypatch, capsys, tmp_path, planned):
    """The compiler's own verdict counts as well as the sum."""
    real = dataclasses.replace(planned[2], arguments=0, results=0, program=0)

    def make_plan(config, mesh, topology, facts):
        n = facts.batch_size // mesh.size
        if n > 20:
            return "the total memory required (17.00G) exceeds available HBM (15.75G)."
        return dataclasses.replace(real, batch_size=facts.batch_size, temporaries=real.capacity // 20 * n)

    monkeypatch.setattr(pod_plan, "devices_of", lambda topology: jax.devices())
    monkeypatch.setattr(pod_plan, "make_plan", make_plan)
    result = pod_plan.pod_plan(small_config(**{"pod.search": True}), str(tmp_path))
    assert (result["batch_size"], result["fits"]) == (160, True)
    assert result["tried"][160] and not result["tried"][168]
    printed = capsys.readouterr().out
    assert "batch 168: does not fit (the total memory" in printed and "batch 160: fits, 17.18 of 17.18 GB" in printed

    monkeypatch.setattr(pod_plan, "make_plan", lambda *_: "nothing fits")
    result = pod_plan.pod_plan(small_config(**{"pod.search": True}), str(tmp_path))
    assert (result["batch_size"], result["fits"], result["why"]) == (8, False, "nothing fits")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pod.topology": ""}, "pod.topology is empty, but must name a slice when task is 'pod_plan': v4:2x2x1"),
        ({"pod.topology": "v9:2x2"}, "the topology 'v9:2x2' is not known"),
        ({"batch_size": 12}, "batch_size is 12, which does not divide among 8 devices"),
        ({"mesh.model": 3, "barlow_twins.projector": (3, 3)}, "mesh.model is 3, which does not divide the 8 devices"),
        ({"pod.images": 15}, "pod.images is 15, fewer than a batch of 16"),
    ],
)
def test_bad_input(changes, sentence, monkeypatch, tmp_path):
    monkeypatch.setattr(pod_plan, "devices_of", lambda topology: jax.devices()[: topology.devices])
    with pytest.raises(UserError) as error:
        pod_plan.pod_plan(small_config(**changes), str(tmp_path))
    assert sentence in str(error.value)


def test_a_source_of_few_images(monkeypatch, tmp_path):
    """Is named where pod.images is not given."""
    np.savez(tmp_path / "set.npz", x_train=np.zeros((12, 8, 8, 3), np.uint8), y_train=np.arange(12) % 2)
    changes = {"pod.images": 0, "data.source": "arrays", "data.data_dir": str(tmp_path / "set.npz")}
    with pytest.raises(
        UserError, match=r"set.npz.* has 12 images, fewer than a batch of 16; set batch_size to at most 12"
    ):
        pod_plan.pod_plan(small_config(**changes), str(tmp_path))


def plan_by_libtpu(workdir, **changes):
    """What the command prints and writes, in a separate process: libtpu and JAX's profiler do not work together."""
    fields = {"task": "pod_plan", "data.image_size": 32, "model.width": 4, "barlow_twins.projector": "(16,)"}
    fields |= {"model.small_images": True, **changes}
    command = [sys.executable, "main.py", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (path,) = workdir.glob("pod_plan_*.json")
    return done.stdout, json.loads(path.read_text())


def test_a_plan_by_libtpu(tmp_path):
    """The whole command, for a slice of four chips; needs libtpu, an optional extra."""
    pytest.importorskip("libtpu")
    _, result = plan_by_libtpu(tmp_path, batch_size=8, **{"pod.topology": "v5e:2x2"})
    assert result["fits"] and result["mesh"] == {"data": 4}
    assert {"all-reduce", "all-to-all"} <= result["collectives"].keys()
    # Of each device: the images it has, and the parameters with their momentum.
    assert result["arguments"] > 8 * result["parameters"]


def test_more_than_fits_is_said_by_libtpu(tmp_path):
    """The compiler refuses what exceeds a chip's memory; its sentence is the plan."""
    pytest.importorskip("libtpu")
    large = {"data.image_size": 512, "pod.topology": "v5e:1x1"}
    printed, result = plan_by_libtpu(tmp_path, batch_size=2**16, **large, **{"pod.images": 2**16})
    assert result["fits"] is False and "exceeds available HBM" in result["why"]
    assert "does not fit: " in printed


def test_a_full_disk(planned, tmp_path, monkeypatch, capsys):
    """The numbers are printed before the file fails, and a message says so."""
    monkeypatch.setattr(pod_plan, "devices_of", lambda topology: jax.devices())
    monkeypatch.setattr(pod_plan, "make_plan", lambda *_: planned[2])
    no_room_for(monkeypatch, pod_plan, "pod_plan")
    with pytest.raises(
        UserError,
        match=r"pod_plan_v5e_2x4.json cannot be written \(No space left on device\), so the plan is only in the output above",
    ):
        pod_plan.pod_plan(small_config(), str(tmp_path))
    assert "a step" in capsys.readouterr().out
