"""A run's folder: the config that it belongs to, what may change on resuming, and a lock for one run at a time."""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from etils import epath
from ml_collections import ConfigDict

from bt_jax.config import fields_of, flatten, from_json, plain, to_json
from bt_jax.errors import UserError, first_line
from bt_jax.runtime.files import errors_of_files, read_object, write_whole


def check_config(config: ConfigDict, workdir: epath.Path) -> None:
    """Compares the config with the workdir's `config.json`, if there is one.

    Raises:
      UserError: the run there has another config (the differing fields are named), or the file cannot be read.
    """
    path = workdir / "config.json"
    try:
        there = from_json(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not the config of a run ({first_line(error)}); remove it if the run has a checkpoint, which has the "
            "config too, or choose another --workdir."
        ) from None
    if there is not None:
        check_same_run(config, there, workdir)


def check_same_run(config: ConfigDict, there: ConfigDict, workdir: epath.Path) -> None:
    """Raises UserError if the run in `workdir`, whose config is `there`, cannot be resumed with `config`."""
    if differ := _differences(there, config):
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(differ)}); choose another --workdir, "
            "or resume it with the old config."
        )


def write_config(config: ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json`; call it after all checks.

    Raises:
      UserError: the workdir cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / "config.json", to_json(config))
    except Exception as error:
        raise _cannot_write(workdir, error) from None


def _differences(there: ConfigDict, config: ConfigDict) -> list[str]:
    """The fields that differ, so that a run with the config `there` cannot be resumed with `config`."""
    new, fields = flatten(config), fields_of(config)
    # A field that is newer than the run counts as its default, which is how the code of that time behaved.
    old = {**{name: field.default for name, field in fields.items()}, **flatten(there)}
    for name in ("task", "method"):  # another kind of run differs in many fields; one is enough
        if old.get(name) != new.get(name):
            return [f"{name} was {old.get(name)!r} and is now {new.get(name)!r}"]
    free = {name for name, field in fields.items() if field.resume == "free"}
    return [
        f"{name} was {old.get(name)!r} and is now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if plain(old.get(name)) != plain(new.get(name)) and name not in free
    ]


BEAT_SECONDS = 5  # between two heartbeats of the run that holds a workdir
SILENT_SECONDS = 20  # without a heartbeat, after which a holder counts as gone


@contextlib.contextmanager
def held(workdir: epath.Path) -> Iterator["Holder"]:
    """Locks a workdir against other runs, on this host and on others, while the context lasts.

    WORKDIR/holder.json names the host and the process, and has a counter that rises every few seconds. On the same host the
    kernel's lock on that file shows at once whether the holder is alive. A holder on another host is watched until its
    counter moves, or has not moved for `SILENT_SECONDS`. Clocks are never compared.

    Raises:
      UserError: another run holds the workdir (its host and process are named), or it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        holder = Holder(workdir / "holder.json")
    except Exception as error:
        raise _cannot_write(workdir, error) from None
    try:
        yield holder
    finally:
        holder.leave()


def _cannot_write(workdir: epath.Path, error: Exception) -> Exception:
    """The error for a user; the same one if it is a UserError, or a bug. Object stores' libraries raise types of their own."""
    if isinstance(error, UserError) or not (isinstance(error, OSError) or "://" in str(workdir)):
        return error
    why = getattr(error, "strerror", None) or first_line(error)
    return UserError(f"the workdir {workdir} cannot be written: {why.rstrip('.')}.")


class Holder:
    """This process's lock on a workdir; see `held`."""

    def __init__(self, path: epath.Path):
        new = not path.exists()
        self._path, self._lock = path, None if "://" in str(path) else _kernel_lock(path)
        self._me = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "machine": _machine(),
            "id": os.urandom(8).hex(),
        }
        try:
            other = _content(path)
            if other is None and new:  # it is empty, as the lock has only just created it
                other = {}
            known_dead = self._lock is not None and other and other.get("machine") == self._me["machine"]
            if other != {} and not known_dead and _gives_signs(path, other):
                raise _busy(path, other or _content(path))
            self._beats = 0
            self._write()
        except BaseException:
            self._release()
            raise
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Checks that the workdir still exists and is still held by this run.

        Raises:
          UserError: it is gone, and anything written now would end up elsewhere (under a lost mount, for example); or
            another run has taken it because this one sent no heartbeat for too long.
        """
        if not self._path.exists():
            raise UserError(
                f"the workdir {self._path.parent} no longer exists ({self._path.name} is gone); bring it back, and the same "
                "command resumes from its last checkpoint."
            )
        other = _content(self._path)
        if (other or {}).get("id", self._me["id"]) != self._me["id"]:
            raise _busy(self._path, other)

    def leave(self) -> None:
        """Releases the lock."""
        self._left.set()
        self._thread.join()
        with contextlib.suppress(*errors_of_files()):  # no workdir, or a full disk: the kernel's lock goes anyway
            if (_content(self._path) or {}).get("id") == self._me["id"]:
                self._path.write_text("{}")
        self._release()

    def _beat(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            with contextlib.suppress(*errors_of_files(), UserError):  # the next save will report it
                self.check()
                self._write()

    def _write(self) -> None:
        """Counts up, in place: the kernel's lock is on this very file, not on its name. A reader may find it half written."""
        self._beats += 1
        self._path.write_text(json.dumps({**self._me, "beats": self._beats}))

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()


def _kernel_lock(path: epath.Path) -> IO[str] | None:
    """The file, kept open and locked while this process lives; None if the file system has no locks."""
    try:
        import fcntl
    except ImportError:
        raise UserError("bt_jax runs on Linux and macOS; on Windows run it in WSL, its subsystem for Linux.") from None
    file = open(path, "a")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise _busy(path, _content(path)) from None
    except OSError:
        file.close()
        return None
    return file


def _gives_signs(path: epath.Path, other: dict[str, Any] | None) -> bool:
    until = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1, SILENT_SECONDS / 10))
        now = _content(path)
        if now == {}:
            return False  # it has left
        if now is not None and now != other:
            return True
    return False


def _content(path: epath.Path) -> dict[str, Any] | None:
    """The file's content; {} if nobody holds the workdir; None if the file cannot be read, as while it is being written."""
    try:
        return read_object(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None


def _machine() -> str:
    """An id of the running kernel: containers may share a host name, and a rebooted host counts as another."""
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _busy(path: epath.Path, other: dict[str, Any] | None) -> UserError:
    other = other or {}
    who = f"process {other.get('process', 'unknown')} on host {other.get('host', 'unknown')}"
    return UserError(
        f"another run is using {path.parent}: {who}; wait for it or stop it first, or choose another --workdir."
    )
