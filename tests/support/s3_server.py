"""An S3 server on loopback, for tests: moto's, with what it was asked, and faults on the way.

A process has one memory of moto's, which all its servers share: a new server empties it, so there is one at a time.
"""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Callable
from urllib.parse import unquote

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

DENIED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Access Denied</Message><RequestId>1</RequestId></Error>"""


class Handler(MotoRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *message):
        """Nothing: the server keeps what it was asked."""


class Server:
    """moto's server behind a doorkeeper, who notes each request, and does harm to it as told.

    Attributes
    ----------
    requests : list of (method, "bucket/key", query)
    fault : callable, optional
        Called with each of them; gives None, "deny", "drop" (the connection, before an answer), "cut" (the connection,
        within the answer) or "stall" (no answer until the server stops).
    """

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.requests: list[tuple[str, str, str]] = []
        self.fault: Callable[[str, str, str], str | None] | None = None
        self.port = 0
        self.start()
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(f"{self.url}/moto-api/reset", data=b"").close()
        self.requests.clear()

    def start(self) -> None:
        self.stalled = threading.Event()
        self.server = make_server("127.0.0.1", self.port, self, threaded=True, request_handler=Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Go away; what was stored is there when it starts again."""
        self.stalled.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __call__(self, environ, start_response):
        asked = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"]).lstrip("/"), environ["QUERY_STRING"]
        self.requests.append(asked)
        fault = self.fault(*asked) if self.fault else None
        if fault is None:
            return self.moto(environ, start_response)
        if fault == "deny":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("403 Forbidden", [("Content-Type", "text/xml"), ("Content-Length", str(len(DENIED)))])
            return [b"" if asked[0] == "HEAD" else DENIED]
        if fault == "stall":
            self.stalled.wait(60)
        if fault == "cut":
            answer = b"".join(self.moto(environ, start_response))
            return self._cut(answer, environ)
        self._hang_up(environ)
        return []

    def _cut(self, answer, environ):
        yield answer[: len(answer) // 2]
        self._hang_up(environ)

    def _hang_up(self, environ):
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError
