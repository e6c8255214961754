"""Google Cloud Storage on this machine: gcp-storage-emulator in a process of its own, with weather.

What the emulator lacks and gcsfs or TensorStore needs is added here: preconditions on the generation of an object
(locks, and every write of TensorStore), the header that tells the generation of what is read (TensorStore refuses
objects without), and answers to several requests at once.
"""

import contextlib
import functools
import http.client
import json
import re
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus, server
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlparse

BUCKET = "photos-and-runs"


class Bucket:
    """A running emulator with one empty bucket."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process, self.port = process, port
        self.url = f"http://127.0.0.1:{port}"
        # By default gcsfs asks by gRPC what kind a bucket is, which no emulator answers.
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",
        }

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """The status and content of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def weather(self, status: int = 200, *, seconds: float = 1e9, pattern: str = ".*", methods: str = ".*") -> None:
        """For so many seconds answer requests of these paths and methods with this status; 200 is fine weather."""
        query = urlencode({"status": status, "seconds": seconds, "pattern": pattern, "methods": methods})
        assert self.ask("PUT", f"/weather?{query}")[0] == 200

    def refused(self) -> int:
        """How many requests were answered by the weather."""
        return int(self.ask("GET", "/weather")[1])

    def names(self, prefix: str = "") -> list[str]:
        """The names of the objects."""
        found = json.loads(self.ask("GET", f"/storage/v1/b/{BUCKET}/o?{urlencode({'prefix': prefix})}")[1])
        return [item["name"] for item in found["items"]]

    def read(self, name: str) -> bytes:
        status, content = self.ask("GET", f"/{BUCKET}/{name}")
        assert status == 200, name
        return content

    def stop(self) -> None:
        """End the emulator; what it held is lost."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running() -> Iterator[Bucket]:
    """An emulator on a free port."""
    command = [sys.executable, "-W", "ignore", __file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield Bucket(process, int(process.stdout.readline()))
        finally:
            process.kill()


def _serve() -> None:
    from gcp_storage_emulator.handlers import buckets, objects
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    storage, one_at_a_time = Storage(use_memory_fs=True), threading.Lock()
    buckets.create_bucket(BUCKET, storage)
    weather: dict[str, Any] = {"until": 0.0, "count": 0}
    download = objects.download

    def with_generation(request: Any, response: Any, storage: Any, **_: Any) -> None:
        download(request, response, storage)
        bucket, name = request.params["bucket_name"], request.params["object_id"]
        if found := storage.objects.get(bucket, {}).get(name):
            response["x-goog-generation"] = found["generation"]

    objects.download = with_generation

    def answer(self: Any, inner: Any) -> None:
        with one_at_a_time:
            status = _status(self, storage, weather)
            if status is None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    inner(self)
                return
        if length := self.headers.get("Content-Length"):
            self.rfile.read(int(length))
        error = {"error": {"code": status, "message": "bad weather"}}
        content = (str(weather["count"]) if status == HTTPStatus.OK else json.dumps(error)).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    methods = {
        name: functools.partialmethod(answer, getattr(RequestHandler, name))
        for name in ("do_GET", "do_POST", "do_PUT", "do_DELETE", "do_PATCH")
    }
    handler: Any = type("Handler", (RequestHandler,), {**methods, "log_message": lambda *_: None})

    class Threaded(socketserver.ThreadingMixIn, server.HTTPServer):
        daemon_threads, request_queue_size = True, 128

    httpd = Threaded(("127.0.0.1", 0), functools.partial(handler, storage))
    print(httpd.server_address[1], flush=True)
    httpd.serve_forever()


def _status(handler: Any, storage: Any, weather: dict[str, Any]) -> int | None:
    """The status to answer with, None to pass the request on."""
    url = urlparse(handler.path)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    if url.path == "/weather":
        if handler.command == "PUT":
            weather.update(query, until=time.monotonic() + float(query["seconds"]), status=int(query["status"]))
        return HTTPStatus.OK
    bad = time.monotonic() < weather["until"] and weather["status"] != HTTPStatus.OK
    if bad and re.fullmatch(weather["methods"], handler.command) and re.search(weather["pattern"], handler.path):
        weather["count"] += 1
        return weather["status"]
    found = re.search(r"/b/([^/]+)/o(?:/(.+))?$", url.path)
    if found is None:
        return None
    name = unquote(found[2]) if found[2] else query.get("name", "")
    now = storage.objects.get(found[1], {}).get(name, {}).get("generation", "0")
    if query.get("ifGenerationMatch", now) != now:
        return HTTPStatus.PRECONDITION_FAILED
    if "ifGenerationNotMatch" in query and query["ifGenerationNotMatch"] == now:
        return HTTPStatus.NOT_MODIFIED if handler.command == "GET" else HTTPStatus.PRECONDITION_FAILED
    return None


if __name__ == "__main__":
    _serve()
