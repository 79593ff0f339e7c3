"""bt_jax/console.py: output that cannot be printed ends nothing."""

import errno
import io
import os
import pathlib
import subprocess
import sys

import pytest

from bt_jax import console

# The module by itself: it imports nothing of the package, and a process that has no JAX to import starts at once.
FOLDER = pathlib.Path(console.__file__).parent
NAME = "8 × π ‘a’ \udcff\x1b[31m"


def ran(body, **options):
    """A separate process that prints by the console and then does more."""
    code = f"import os, sys, console\n{body}\nopen('ended', 'w').close()"
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), **options.pop("environment", {})}
    return subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, **options)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", r"8 \xd7 \u03c0 \u2018a\u2019 \udcff\x1b[31m"),
        ("latin-1", r"8 × \u03c0 \u2018a\u2019 \udcff\x1b[31m"),
        ("utf-8", r"8 × π ‘a’ \udcff\x1b[31m"),
    ],
)
def test_what_the_encoding_lacks(tmp_path, encoding, expected):
    """Is escaped, on both streams; so are a terminal's control codes."""
    done = ran(
        f"console.say({NAME!r}); console.warn({NAME!r})", cwd=tmp_path, capture_output=True,
        environment={"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "ended").exists()
    assert [text.decode(encoding) for text in (done.stdout, done.stderr)] == [expected + "\n"] * 2


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_went_away(tmp_path, stream):
    """As with `| head`: later output is dropped, the other stream says so once, and the status is 0."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    body = (
        "for i in range(3): console.say(str(i)); console.warn(str(i))\nprint('x' * 9999); print('y', file=sys.stderr)"
    )
    done = ran(body, cwd=tmp_path, **streams)
    os.close(writer)
    assert done.returncode == 0 and (tmp_path / "ended").exists()
    other = (done.stderr if stream == "stdout" else done.stdout).decode()
    assert other.count("cannot be written (Broken pipe); the run continues without it") == 1
    assert "0" in other and "2" in other


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_under_a_log(tmp_path, stream):
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        done = ran("for i in range(3): console.say(str(i)); console.warn('e' * 9999)", cwd=tmp_path, **streams)
    assert done.returncode == 0 and (tmp_path / "ended").exists()
    other = (done.stderr if stream == "stdout" else done.stdout).decode()
    assert other.count("cannot be written (No space left on device)") == 1


def test_streams_that_are_closed(tmp_path):
    """They get open ones, so that no file of the run gets a descriptor to which libraries print."""
    body = "console.open_streams(); console.say('a'); console.warn('b'); sys.stderr.write('c')\n"
    body += "file = open('data', 'wb'); assert file.fileno() > 2; os.write(2, b'chatter')"
    command = [sys.executable, "-c", f"import os, sys, console\n{body}"]
    line = 'exec "$0" "$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", line, *command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(FOLDER)}, timeout=60
    )
    assert done.returncode == 0 and (tmp_path / "data").read_bytes() == b""


def test_a_log_with_room_again(monkeypatch):
    """What was printed is written; a user's own stream that fails does not matter either."""

    class Moody(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    monkeypatch.setattr(console, "_reported", set())
    monkeypatch.setattr(sys, "stdout", Moody())
    console.say("lost")
    sys.stdout.full = False
    console.say("there")
    assert sys.stdout.getvalue() == "there\n"
    sys.stdout.close()
    console.say("closed")
    monkeypatch.setattr(sys, "stdout", None)
    console.say("none")


def test_below_a_bar(capfd):
    """A bar leaves its line open; one that was cleared, or a line that ended, does not."""
    terminal = console.Terminal()
    for shown, expected in (
        ("\r 50 %", "\r 50 %\nwords\n"),
        ("\r 50 %\r   \r", "\r 50 %\r   \rwords\n"),
        ("a\n", "a\nwords\n"),
    ):
        for print_words in (console.warn, console.warn_from_handler):
            terminal.write(shown)
            print_words("words")
            assert capfd.readouterr().err == expected
    console.warn("words")
    assert capfd.readouterr().err == "words\n"


def test_words_of_a_signal_handler(capfd):
    console.warn_from_handler("stopping — at once\udcff")
    assert capfd.readouterr().err == "stopping \\u2014 at once\\udcff\n"
