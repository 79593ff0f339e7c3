"""bt_jax/engine/checkpoint.py: what was saved comes back bit for bit, and a damaged checkpoint is skipped."""

import errno
import json
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from bt_jax.engine import checkpoint
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.engine.storage import of_access, steps_in
from bt_jax.errors import UserError
from bt_jax.runtime import mesh as mesh_lib


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))


def state_at(step, mesh):
    tree = {"step": jnp.int32(step), "params": {"w": jax.random.normal(jax.random.key(step), (5, 3))}, "extra": {}}
    return jax.device_put(tree, mesh_lib.everywhere(mesh))


def like(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save(tmp_path, mesh, steps, keep=3):
    checkpoints = Checkpoints(epath.Path(tmp_path), keep)
    for step in steps:
        checkpoints.save(step, state_at(step, mesh))
    checkpoints.close()


def damage(folder):
    """Cuts every file of a checkpoint in half."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_newest_comes_back(tmp_path, mesh):
    """Bit for bit, with its shardings; older ones than asked to keep are gone."""
    save(tmp_path, mesh, [1, 2, 3, 4], keep=2)
    checkpoints = Checkpoints(epath.Path(tmp_path), 2)
    assert checkpoints.steps() == [3, 4]
    expected = state_at(4, mesh)
    state, step, notices = checkpoints.restore_newest(like(expected))
    assert (step, notices) == (4, [])
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert state["params"]["w"].sharding == expected["params"]["w"].sharding
    checkpoints.close()


def test_saved_state_may_be_donated(tmp_path, mesh):
    """The arrays are copied before `save` returns: steps that overwrite them do not reach the file."""
    change = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(epath.Path(tmp_path))
    state = state_at(1, mesh)
    expected = jax.device_get(state)
    checkpoints.save(1, state)
    for _ in range(5):
        state = change(state)
    checkpoints.wait()
    found, _, _ = checkpoints.restore_newest(like(state))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
    checkpoints.close()


def test_nothing_there(tmp_path, mesh):
    checkpoints = Checkpoints(epath.Path(tmp_path))
    assert checkpoints.restore_newest(like(state_at(0, mesh))) == (None, None, [])
    checkpoints.close()


def test_damaged_newest_falls_back(tmp_path, mesh):
    """To the one before, with a notice; the damaged one is moved away and its step can be saved again."""
    save(tmp_path, mesh, [1, 2, 3])
    damage(tmp_path / "checkpoints" / "3")
    checkpoints = Checkpoints(epath.Path(tmp_path))
    state, step, notices = checkpoints.restore_newest(like(state_at(0, mesh)))
    assert step == 2 and int(state["step"]) == 2
    (notice,) = notices
    assert "checkpoint 3 cannot be read" in notice and "step 2 is used instead" in notice
    assert (tmp_path / "damaged_checkpoints" / "3").is_dir()
    checkpoints.save(3, state_at(3, mesh))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.close()


class OfAStore(Exception):
    """As of a library that reaches object stores."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("UNAVAILABLE: HTTP 503 [source locations]"), "UNAVAILABLE: HTTP 503"),
        (ValueError("DEADLINE_EXCEEDED: no answer"), "DEADLINE_EXCEEDED: no answer"),
        (ValueError("PERMISSION_DENIED: HTTP 403"), "PERMISSION_DENIED: HTTP 403"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "Connection timed out"),
        (OfAStore("503"), "503"),
    ],
)
@pytest.mark.parametrize("notes", [False, True])
def test_what_cannot_be_read_now_is_not_damaged(tmp_path, mesh, monkeypatch, error, words, notes):
    """A sentence, and nothing is moved; once it can be read, it is used."""
    monkeypatch.setitem(sys.modules, "botocore.exceptions", SimpleNamespace(ClientError=OfAStore))
    save(tmp_path, mesh, [1, 2])
    checkpoints = Checkpoints(epath.Path(tmp_path))

    def fail(*_, **__):
        raise ValueError("a restore failed") from error

    with monkeypatch.context() as patch:
        patch.setattr(*((checkpoint, "_notes") if notes else (checkpoints._manager, "restore")), fail)
        with pytest.raises(UserError) as found:
            checkpoints.restore_newest(like(state_at(0, mesh)))
    assert str(found.value) == (
        f"the checkpoint of step 2 in {tmp_path}/checkpoints cannot be read now ({words}), and may be good; nothing was changed: "
        "the same command resumes there once it can be read, and from the one before if it is moved away."
    )
    assert not (tmp_path / "damaged_checkpoints").exists()
    assert checkpoints.restore_newest(like(state_at(0, mesh)))[1:] == (2, [])
    checkpoints.close()


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        ValueError("NOT_FOUND: Error opening"),
        ValueError("DATA_LOSS: Error reading"),
        OSError(errno.EBADMSG, "Bad message"),
    ],
)
def test_what_is_missing_or_differs_is_damaged(error):
    assert not of_access(error)


def test_all_damaged(tmp_path, mesh):
    """A sentence, and nothing is moved."""
    save(tmp_path, mesh, [1, 2])
    for step in "12":
        damage(tmp_path / "checkpoints" / step)
    checkpoints = Checkpoints(epath.Path(tmp_path))
    with pytest.raises(UserError, match="none of the checkpoints in .* can be read"):
        checkpoints.restore_newest(like(state_at(0, mesh)))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    checkpoints.close()


def test_every_turned_bit_is_seen(tmp_path, mesh):
    """In any file of a checkpoint, at any place: it comes back as it was saved, or not at all. Some bytes are never read."""
    save(tmp_path, mesh, [1, 2])
    expected = jax.device_get(state_at(2, mesh))
    files = sorted(p for p in (tmp_path / "checkpoints" / "2").rglob("*") if p.is_file() and p.stat().st_size)
    rng, seen = np.random.default_rng(0), 0
    for turn in range(24):
        file = files[turn % len(files)]
        before = file.read_bytes()
        content = bytearray(before)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        checkpoints = Checkpoints(epath.Path(tmp_path))
        state, step, notices = checkpoints.restore_newest(like(state_at(0, mesh)))
        checkpoints.close()
        if step == 2:
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
            file.write_bytes(before)
        else:
            assert len(notices) == 1
            seen += 1
            aside = max((tmp_path / "damaged_checkpoints").iterdir())
            aside.rename(tmp_path / "checkpoints" / "2")
            file.write_bytes(before)
    assert seen > 4


def test_what_is_kept(tmp_path, mesh):
    """The newest, those at multiples permanently, and the best by score, which are still known after a restart."""
    scores = {1: 0.9, 2: 0.2, 3: 0.4, 4: 0.3, 5: 0.4, 6: 0.1, 7: None, 8: 0.2}
    for steps in ((1, 2, 3, 4), (5, 6, 7, 8)):
        checkpoints = Checkpoints(epath.Path(tmp_path), 2, keep_every_steps=3, keep_best=2)
        for step in steps:
            checkpoints.save(step, state_at(step, mesh), score=scores[step])
        checkpoints.close()
    assert Checkpoints(epath.Path(tmp_path), 2, keep_every_steps=3, keep_best=2).steps() == [1, 3, 5, 6, 7, 8]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == list("135678")


def test_what_else_a_run_knows(tmp_path, mesh):
    """Is as it was when `save` was called, even if it changes while it is written."""
    checkpoints = Checkpoints(epath.Path(tmp_path))
    run = {"history": [{"step": 1, "loss": 2.5}], "sizes": (1, 2)}
    checkpoints.save(1, state_at(1, mesh), run=run)
    run["history"].append({"step": 2})
    checkpoints.save(2, state_at(2, mesh))
    checkpoints.wait()
    assert checkpoints.run_of(1) == {"history": [{"step": 1, "loss": 2.5}], "sizes": [1, 2]}
    assert checkpoints.run_of(2) == {}
    checkpoints.close()


def test_every_changed_byte_of_the_notes_is_seen(tmp_path, mesh):
    """At each place, one bit and all eight: they say what was saved, or they are not read. So with the score."""
    checkpoints = Checkpoints(epath.Path(tmp_path))
    run = {"config": {"seed": 3}, "data": {"epoch": 1}, "history": [{"step": 1, "loss": 2.5}], "seconds": 1.5}
    checkpoints.save(1, state_at(1, mesh), run=run, score=0.25)
    checkpoints.close()
    folder = epath.Path(tmp_path / "checkpoints")
    for item, expected in (("run", checkpoint._notes(folder, 1)), ("score", 0.25)):
        path = tmp_path / "checkpoints" / "1" / item / "metadata"
        whole, seen = path.read_bytes(), 0
        for place in range(len(whole)):
            for bits in (1 << place % 8, 255):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :])
                if item == "score":
                    found = checkpoint._score(folder, 1)
                    assert found in (expected, None), place
                    seen += found is None
                    continue
                try:
                    found = checkpoint._notes(folder, 1)
                except ValueError as error:
                    seen += 1
                    assert len(str(error).splitlines()) == 1
                else:
                    assert found == expected, place
        assert seen > 1.9 * len(whole)
        path.write_bytes(whole)
    assert {name: value for name, value in expected_notes(folder).items() if name != "fingerprints"} == run


def expected_notes(folder):
    return checkpoint._notes(folder, 1)


def test_notes_that_were_changed(tmp_path, mesh):
    """Make a checkpoint a damaged one; notes and scores of before, which have no hash, are read."""

    def state(step):
        found = state_at(step, mesh)
        return {**found, "params": {"encoder": found["params"]}}

    for step in (1, 2):
        checkpoints = Checkpoints(epath.Path(tmp_path))
        checkpoints.save(step, state(step), run={"seconds": 1.5}, score=0.5)
        checkpoints.close()
    paths = [tmp_path / "checkpoints" / "2" / item / "metadata" for item in ("run", "score")]
    notes, score = (json.loads(path.read_text()) for path in paths)
    for content in ({**notes, "seconds": 9}, {n: v for n, v in notes.items() if n != "sha256"}):
        paths[0].write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"step 2: its notes were changed or damaged after they were written"):
            checkpoint.restore_networks(epath.Path(tmp_path), {"params": {"w": jnp.zeros((5, 3))}}, 2)
    checkpoints = Checkpoints(epath.Path(tmp_path))
    _, step, (notice,) = checkpoints.restore_newest(like(state(0)))
    checkpoints.close()
    assert step == 1 and "checkpoint 2 cannot be read (its notes were changed or damaged" in notice
    (tmp_path / "damaged_checkpoints" / "2").rename(tmp_path / "checkpoints" / "2")
    old = {name: value for name, value in notes.items() if name not in ("sealed", "sha256")}
    for path, content in zip(paths, (old, {"score": 0.5}), strict=True):
        path.write_text(json.dumps(content))
    checkpoints = Checkpoints(epath.Path(tmp_path))
    assert checkpoints.restore_newest(like(state(0)))[1:] == (2, [])
    assert checkpoints.run_of(2) == {"seconds": 1.5} and checkpoints._scores == {1: 0.5, 2: 0.5}
    checkpoints.close()
    for odd in (float("nan"), float("inf"), "0.9", None, [], True, 10**400):
        paths[1].write_text(json.dumps({"score": odd}))
        assert checkpoint._score(epath.Path(tmp_path / "checkpoints"), 2) is None
    assert score["score"] == 0.5


def test_leftovers_of_killed_saves_go(tmp_path, mesh):
    save(tmp_path, mesh, [1])
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-1"
    half.mkdir()
    (half / "part").write_bytes(b"x")
    save(tmp_path, mesh, [3])
    assert not half.exists()


def test_a_folder_that_cannot_be_written(tmp_path, mesh, monkeypatch):
    """A sentence with the last good step, and a bug stays a bug; the disk that is really full is in experiments/stress."""
    checkpoints = Checkpoints(epath.Path(tmp_path))
    checkpoints.save(1, state_at(1, mesh))
    checkpoints.wait()
    full = ValueError('RESOURCE_EXHAUSTED: Error writing local file "x": No space left on device [source locations]')
    for error, expected, sentence in (
        (full, UserError, r"could not be written to .* \(No space left.*\); the last good one is step 1"),
        (OSError(28, "No space left on device"), UserError, "No space left"),
        (ValueError("a bug"), ValueError, "a bug"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(checkpoints._manager, "save", fail)
        with pytest.raises(expected, match=sentence):
            checkpoints.save(2, state_at(2, mesh))
    assert steps_in(epath.Path(tmp_path) / "checkpoints") == [1]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="checkpoints cannot be kept in"):
        Checkpoints(epath.Path(tmp_path / "file"))


@pytest.mark.parametrize("name", ["lr=[0.1]", "a?", "a*"])
def test_names_that_look_like_patterns(tmp_path, mesh, name, monkeypatch):
    """Everything saved under them comes back, by a relative path too; the neighbour that matches the pattern is untouched."""
    (tmp_path / name).mkdir()
    save(tmp_path / "ab", mesh, [7])
    save(tmp_path / name / "run", mesh, [1, 2])
    monkeypatch.chdir(tmp_path / name)
    checkpoints = Checkpoints(epath.Path("run"))
    expected = state_at(2, mesh)
    state, step, notices = checkpoints.restore_newest(like(expected))
    checkpoints.close()
    assert (step, notices) == (2, [])
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_the_first_is_read_back(tmp_path, mesh, monkeypatch, capfd):
    """The next save reports an array that was lost or changed; no such checkpoint gets its final name."""
    looked, right = [], checkpoint.fingerprints_on_host
    monkeypatch.setattr(checkpoint, "fingerprints_on_host", lambda state: looked.append(state) or right(state))
    save(tmp_path / "good", mesh, [1, 2, 3])
    assert len(looked) == 1
    monkeypatch.setattr(checkpoint, "fingerprints_on_host", lambda state: {n: v + 1 for n, v in right(state).items()})
    checkpoints = Checkpoints(epath.Path(tmp_path / "turned"))
    checkpoints.check()
    checkpoints.save(1, state_at(1, mesh))
    with pytest.raises(UserError, match="the checkpoint of step 1 was written to .*, but cannot be read back"):
        for _ in range(1000):  # as after every step
            checkpoints.check()
            time.sleep(0.02)
    with pytest.raises(
        UserError, match="the checkpoint of step 1 was written to .*, but cannot be read back .*fingerprint"
    ):
        checkpoints.save(2, state_at(2, mesh))
    checkpoints.close()
    monkeypatch.setattr(checkpoint, "fingerprints_on_host", right)
    monkeypatch.setattr(
        checkpoint, "absolute", lambda path: epath.Path(path).absolute()
    )  # in which Orbax finds nothing
    checkpoints = Checkpoints(epath.Path(tmp_path / "[lost]"))
    checkpoints.save(1, state_at(1, mesh))
    with pytest.raises(
        UserError, match="the checkpoint of step 1 was written to .*, but cannot be read back .*NOT_FOUND"
    ):
        checkpoints.wait()
    checkpoints.close()
    assert [steps_in(epath.Path(tmp_path / name / "checkpoints")) for name in ("turned", "[lost]")] == [[], []]
    assert capfd.readouterr().err == "", "Orbax's own tracebacks stay away"
