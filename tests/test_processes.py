"""bt_jax/runtime/processes.py: real processes on one machine that train together, disagree, fail and are killed."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from batches import epoch_of_files, rows_of_each_kind, write_files
from etils import epath
from jax._src import distributed
from ml_collections import ConfigDict
from recipes import (
    PAIR_METHODS,
    evaluation_of,
    five_steps,
    relative,
    small_method,
    three_steps_of,
    three_steps_of_two_sizes,
)
from run_process import quickstart_of

from bt_jax import config as config_lib
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.engine.run import restored_or_new
from bt_jax.errors import UserError
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.runtime import processes
from bt_jax.tasks import pretrain as loop
from bt_jax.tasks.embed import embed
from bt_jax.tasks.knn import knn

HERE = pathlib.Path(__file__).parent
HEARTBEAT = 15


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


class Processes:
    """Two processes of four devices each, with their output in files."""

    def __init__(self, tmp_path, task, workdir, changes=({}, {}), start=(0, 1), **more):
        port = free_port()
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"  # the last one counts
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{HERE}:{HERE.parent}"}
        self._files = [tmp_path / f"said_{port}_{i}" for i in (0, 1)]
        self._running = {}
        for i in start:
            mesh = {"mesh.coordinator": f"localhost:{port}", "mesh.processes": 2, "mesh.process_index": i}
            arguments = json.dumps({"changes": {**mesh, **changes[i]}, "workdir": str(workdir), **more})
            with open(self._files[i], "w") as said:
                self._running[i] = subprocess.Popen(
                    [sys.executable, "-X", "faulthandler", str(HERE / "run_process.py"), task, arguments],  # as absl does
                    env=environment, stdout=said, stderr=subprocess.STDOUT,
                )  # fmt: skip

    def said(self, i):
        return self._files[i].read_text()

    def last_words(self, i):
        return [line for line in self.said(i).splitlines() if line.startswith("error: ")][-1]

    def until(self, happened, seconds=120):
        start = time.monotonic()
        while not happened():
            assert time.monotonic() - start < seconds and all(p.poll() is None for p in self._running.values()), [
                self.said(i) for i in self._running
            ]
            time.sleep(0.05)

    def kill(self, i):
        self.signal(i, signal.SIGKILL)

    def signal(self, i, number):
        self._running[i].send_signal(number)

    def status(self, i, seconds=120):
        status = self._running[i].wait(seconds)
        time.sleep(0.3)  # the companion prints when its process is gone
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._running.values():
            process.kill()
            process.wait()


def parameters(workdir, step):
    """What a checkpoint holds, as one process with eight devices reads it."""
    config = quickstart_of({})
    mesh = mesh_lib.make_mesh(config.mesh)
    setup, _ = loop.prepare(config, epath.Path(workdir), mesh)
    checkpoints = Checkpoints(setup.workdir)
    start = restored_or_new(setup, checkpoints)
    checkpoints.close()
    assert start.step == step
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(start.state.params))])


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of two processes of which one was killed after its first checkpoint: its folder, and how the other ended."""
    folder = tmp_path_factory.mktemp("killed")
    with Processes(folder, "pretrain", folder / "run") as both:
        both.until((folder / "run" / "checkpoints" / "4").exists)
        both.kill(1)
        start = time.monotonic()
        status = both.status(0)
        return folder, status, time.monotonic() - start, both.said(0), both.said(1), both.last_words(0)


def test_a_killed_process_ends_the_others(killed):
    """With a message and a status that is not 0, within the heartbeat."""
    _, status, seconds, _, _, last = killed
    assert status != 0 and seconds < HEARTBEAT
    assert "killed" in last and "start all of them again" in last


def test_every_process_says_its_share_and_the_first_alone_the_rest(killed):
    _, _, _, first, second, _ = killed
    assert "process 0 of 2: rows 0-7 of 16 on devices 0-3 (cpu)" in first
    assert "process 1 of 2: rows 8-15 of 16 on devices " in second
    assert "8 × cpu, 2 images each; 2 processes" in first and "kNN accuracy" in first
    assert "bt_jax " not in second and "loss" not in second


def test_going_on_with_one_process_and_with_two(killed, monkeypatch, tmp_path):
    """From the same checkpoint, to the same parameters; the kNN accuracy of both is the work of all processes."""
    folder = killed[0]
    one, two = tmp_path / "one", tmp_path / "two"
    for copy in (one, two):
        shutil.copytree(folder / "run", copy)
    with Processes(tmp_path, "pretrain", two) as both:
        monkeypatch.setattr(loop, "make_method", lambda config, facts, mesh: small_method(mesh))
        alone = loop.pretrain(quickstart_of({}), str(one))
        assert [both.status(i) for i in (0, 1)] == [0, 0]
        assert "resuming  at step " in both.said(0)
    found, expected = parameters(two, 12), parameters(one, 12)
    assert relative(found, expected) < 1e-4
    together = json.loads((two / "pretrain.json").read_text())
    assert together["knn_accuracy_raw_pixels"] == alone["knn_accuracy_raw_pixels"]
    losses = [
        [r["loss"] for r in map(json.loads, (w / "metrics.jsonl").read_text().splitlines()) if "loss" in r]
        for w in (one, two)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert len(losses[0]) == 12


def test_steps_and_checkpoints_of_two_processes(tmp_path):
    """Batches as one process makes them; steps as on one device, with views of one size and of two; two processes read the
    checkpoint of one, move a damaged one once, and restore a state split along the model axis; and process 0 gone ends all.
    """
    write_files(tmp_path / "images")
    with Processes(tmp_path, "steps", tmp_path) as both:
        one_device = mesh_lib.make_mesh(ConfigDict({"data": 1, "model": 1}))
        state, losses = five_steps(one_device)
        leaves = jax.tree.leaves(jax.device_get(state.params))
        np.savez(tmp_path / "one.npz", *leaves)
        expected = np.concatenate([np.ravel(leaf) for leaf in leaves])
        saved = Checkpoints(epath.Path(tmp_path / "of_one_process"))
        saved.save(5, state)
        saved.close()
        both.until(lambda: all("restored" in both.said(i) for i in (0, 1)), seconds=240)
        results = np.load(tmp_path / "steps.npz")
        np.testing.assert_allclose(results["losses"], losses, rtol=1e-5)
        found = np.concatenate([np.ravel(results[f"arr_{i}"]) for i in range(len(results.files) - 1)])
        assert relative(found, expected) < 1e-5
        _assert_same_batches(np.load(tmp_path / f"rows_{i}.npz") for i in (0, 1))
        _assert_each_file_once([np.load(tmp_path / f"files_{i}.npz") for i in (0, 1)], tmp_path / "images")
        two_sizes, (losses, params) = np.load(tmp_path / "two_sizes.npz"), three_steps_of_two_sizes(one_device)
        np.testing.assert_allclose(two_sizes["losses"], losses, rtol=1e-5)
        assert relative(two_sizes["params"], params) < 1e-5
        of_methods = np.load(tmp_path / "methods.npz")
        for name in PAIR_METHODS:
            assert relative(of_methods[name], np.concatenate(three_steps_of(name, one_device))) < 1e-5, name
        assert all("restored 5 (1 damaged), has [5]" in both.said(i) for i in (0, 1))
        assert (tmp_path / "damaged_checkpoints" / "6").is_dir()
        both.kill(0)
        start = time.monotonic()
        assert both.status(1) != 0 and time.monotonic() - start < HEARTBEAT
        assert "start all of them again" in both.last_words(1)
        assert "Aborted" not in both.said(1)  # no stacks of Python above it


def _assert_same_batches(shares):
    """The processes' rows of a batch by each kind of feed are those that one process makes."""
    shares = list(shares)
    for name, expected in rows_of_each_kind(jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))).items():
        found = np.concatenate([share[name] for share in shares])
        if "views" in name:  # the processes' compilers optimise nothing: a level between two may fall to either side
            assert found.shape == expected.shape and np.mean(found != expected) < 1e-3, name
        else:
            np.testing.assert_array_equal(found, expected, err_msg=name)


def _assert_each_file_once(shares, folder):
    """The batches of an epoch of files are those that one process makes, bit for bit, and have every image once."""
    for name, expected in epoch_of_files(folder, jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))).items():
        found = np.concatenate([share[name] for share in shares], axis=1)
        np.testing.assert_array_equal(found, expected, err_msg=name)
        assert name != "example" or sorted(found.ravel()) == list(range(found.size))


def test_a_signal_to_one_process_ends_all_at_the_same_step(tmp_path):
    """Each saves its part of that step and exits with status 75; SIGUSR1 does what SIGTERM does."""
    changes = {"epochs": 500, "report.write": False, "data.views": "device"}  # without TensorFlow
    with Processes(tmp_path, "pretrain", tmp_path / "run", (changes, changes)) as both:
        both.until(lambda: "ep 0." in both.said(0))
        both.signal(1, signal.SIGUSR1)
        assert [both.status(i) for i in (0, 1)] == [75, 75]
        told = next(line for line in both.said(0).splitlines() if line.startswith("stopped by SIGTERM: step "))
        step = int(told.split()[4])
        newest = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit())
        assert step == newest and f"step {step} of " in told
        assert not any("error: " in both.said(i) for i in (0, 1))


def test_embedding(tmp_path, judged):
    """Two processes write what one writes, each image once; and kNN, probes, RankMe and LiDAR by layer are those of one."""
    config = config_lib.default("embed")
    changes = {
        "init_from": judged[1].init_from, "data.source": "arrays", "data.data_dir": judged[1].data.data_dir,
        "data.train_split": "train", "features.batch_size": 8, "embed.piece": 16,
    }  # fmt: skip
    config.update_from_flattened_dict(changes)
    embed(config, str(tmp_path / "one"))
    by_layer = evaluation_of(judged[1], "knn")
    by_layer.knn.update(k=(3, 1), lidar_images=24, lidar_views=3, layers=True)
    of_one = knn(by_layer, str(tmp_path / "knn_of_one"))["runs"][0]
    fields = {name: value for name, value in config_lib.flatten(by_layer).items() if not name.startswith("mesh.")}
    with Processes(tmp_path, "embed", tmp_path / "two", (changes, changes), knn=fields) as running:
        assert [running.status(i, 240) for i in (0, 1)] == [0, 0], [running.said(i) for i in (0, 1)]
        assert "60 images, 8 features each" in running.said(0) and "features each" not in running.said(1)
    one, two = (np.load(tmp_path / name / "embeddings.npz") for name in ("one", "two"))
    assert one["paths"].tolist() == two["paths"].tolist() == [str(i) for i in range(60)]
    np.testing.assert_array_equal(one["labels"], two["labels"])
    np.testing.assert_allclose(one["features"], two["features"], rtol=1e-4, atol=1e-5)
    of_two = json.loads((tmp_path / "knn_of_two" / "knn.json").read_text())["runs"][0]
    assert of_two["top1"] == of_one["top1"] and len(of_two["layers"]) == 3
    assert of_two["health"]["lidar"] == pytest.approx(of_one["health"]["lidar"], rel=1e-3)
    for found, expected in zip(of_two["layers"], of_one["layers"], strict=True):
        assert (found["layer"], found["width"]) == (expected["layer"], expected["width"])
        for name in ("knn_top1", "linear_top1", "rankme", "lidar"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-2 * name.endswith("top1")), name


def test_different_configs(tmp_path):
    """Every process names who differs and in what, before any data is read."""
    with Processes(
        tmp_path, "pretrain", tmp_path / "run", ({}, {"barlow_twins.lambd": 0.1, "data.threads": 3})
    ) as both:
        for i in (0, 1):
            assert both.status(i) == 1
            assert "process 1 (barlow_twins.lambd is 0.1 and not 0.0051); start all" in both.last_words(i)
            assert "Traceback" not in both.said(i) and "data.threads" not in both.said(i)
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_process_is_told_to_the_others(tmp_path):
    images = {f"x_{split}": np.full((32, 16, 16, 3), i, np.uint8) for i, split in enumerate(("train", "test"))}
    np.savez(tmp_path / "set.npz", **images, y_train=np.arange(32) % 2, y_test=np.arange(32) % 2)
    changes = [{"data.source": "arrays", "data.data_dir": str(tmp_path / name)} for name in ("set.npz", "gone.npz")]
    with Processes(tmp_path, "pretrain", tmp_path / "run", changes) as both:
        assert [both.status(i) for i in (0, 1)] == [1, 1]
        assert "gone.npz" in both.last_words(1)
        assert both.last_words(0).startswith("error: process 1 of 2 ended, and so all do: ")
        assert "gone.npz" in both.last_words(0)


def test_the_others_do_not_come(tmp_path):
    """Process 0 waits as long as the config says."""
    with Processes(tmp_path, "pretrain", tmp_path / "run", ({"mesh.join_seconds": 6}, {}), start=(0,)) as lonely:
        assert lonely.status(0, 30) != 0
        assert "could not be joined through localhost:" in lonely.last_words(0)
        assert "within 6 seconds" in lonely.last_words(0)


def mesh_config(**changes):
    config = config_lib.default().mesh
    config.update(changes)
    return config


def test_a_coordinator_out_of_reach():
    port = free_port()
    config = mesh_config(coordinator=f"localhost:{port}", processes=2, process_index=1, join_seconds=1)
    start = time.monotonic()
    with pytest.raises(
        UserError, match=rf"process 1 could not reach the coordinator localhost:{port} within 1 seconds"
    ):
        processes.start_processes(config)
    assert time.monotonic() - start < 10  # on a busy machine; JAX itself would wait for minutes


def test_a_port_that_is_taken_and_none():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of mesh.coordinator cannot be opened"):
            processes.start_processes(mesh_config(coordinator=f"localhost:{port}", processes=2, process_index=0))
    for place in ("here", "here:", "here:0", "here:99999", "here:²"):
        with pytest.raises(UserError, match=f"mesh.coordinator is '{place}', but must be a host and a port from 1 to"):
            processes.start_processes(mesh_config(coordinator=place, processes=2, process_index=0))


KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4"}, None),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a,b"}, "Slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_MCA_orte_hnp_uri": "x"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "x"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", **KUBERNETES}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", **KUBERNETES}, "the TPU pod"),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "the TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "the TPU pod"),
        ({"TPU_ML_PLATFORM": "JAX"}, "the TPU pod of this VM"),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
        (KUBERNETES, "Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_a_cluster_is_recognised(environment, cluster, monkeypatch):
    """By the same marks that JAX uses; on a single host nothing is joined."""
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: True)
    found = processes._cluster(environment)
    assert (found and found[0]) == cluster


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NODELIST": "a,b",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
ORTE = {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:1"}


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({**SLURM, "SLURM_STEP_NUM_NODES": "2"}, ()),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "1"}, (0,)),
        (SLURM, (0,)),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "2", "JAX_LOCAL_DEVICE_IDS": "3"}, (3,)),
        ({**ORTE, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ()),
        ({**ORTE, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, (0,)),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ()),
    ],
)
def test_the_only_process_of_a_host_has_all_its_devices(environment, devices, monkeypatch):
    """JAX gives it the first one of them; () stands for no restriction."""
    found, visible = [], []
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: found.append(arguments))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.start_processes(mesh_config())
    assert jax.distributed.is_initialized() is False and len(found) == 1
    if found[0].get("cluster_detection_method") == "mpi4py":
        assert found[0]["local_device_ids"] == devices
        return

    # The rest is JAX's own code, up to the service that it would start.
    class Reached(Exception):
        pass

    def reached(*_, **__):
        raise Reached

    state = type(processes.global_state)()
    monkeypatch.setattr(distributed.config, "update", lambda name, value: visible.append((name, value)))
    monkeypatch.setattr(distributed._jax, "get_distributed_runtime_client", reached)
    given = {name: found[0].get(name) for name in ("local_device_ids", "cluster_detection_method")}
    with pytest.raises(Reached):
        state.initialize(**given)
    assert dict(visible).get("jax_cuda_visible_devices", "") == ",".join(map(str, devices))


def test_what_a_cluster_lacks(monkeypatch):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jax\[k8s\]'"):
        processes._cluster(KUBERNETES)
    with pytest.raises(UserError, match="pip install mpi4py"):
        processes._cluster({"OMPI_COMM_WORLD_SIZE": "2"})


def test_a_single_host_starts_nothing(monkeypatch):
    """Nor does a process that is to run alone, on any cluster."""
    processes.start_processes(mesh_config())
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    processes.start_processes(mesh_config(processes=1))
    assert not jax.distributed.is_initialized()


def test_the_compared_code_is_the_whole_package(monkeypatch):
    read, before = pathlib.Path.read_bytes, processes.code_fingerprint()
    changed = ("losses", "barlow_twins.py")
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: b"" if path.parts[-2:] == changed else read(path))
    assert processes.code_fingerprint() != before
