"""Who may come in: the gate that every request to a page passes before Bokeh's application has it.

It lets in who names the token of the link, once, and from then on who has the cookie that is given for it. A page of
another site knows no token, its requests carry no cookie, which goes with requests of the same site alone, and their
`Origin` is refused: no web socket is opened by it (cross-site WebSocket hijacking). A name that another site points at
this machine (DNS rebinding) has no cookie either, and is refused as `Host`: that is this machine, or what the link with
its token was used through.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from tornado.routing import Router
from tornado.web import Application, OutputTransform, RequestHandler

from ..errors import InputError

LOCAL = "127.0.0.1"
# Browsers are told to load nothing from elsewhere, whatever a page may ask for.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; base-uri 'self'; form-action 'self'; "
    # Notebooks of this machine may have the page in them.
    "frame-ancestors 'self' http://127.0.0.1:* http://localhost:*"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
INSIDE = ("/", "/ws", "/favicon.ico")  # and what is below STATIC
STATIC = "/static/"
ORIGINS = ("Origin", "Sec-WebSocket-Origin")

log = logging.getLogger(__name__)


def host_of(origin: str) -> str:
    """A host, with its port if that is given, as browsers name it, from an address or a host.

    Examples
    --------
    >>> host_of("https://Hub.example.org/user/me/lab"), host_of("node7:8888")
    ('hub.example.org', 'node7:8888')
    """
    text = origin.strip()
    parts = urlsplit(text if "//" in text else f"//{text}")
    with suppress(ValueError):
        host, port = parts.hostname or "", parts.port
        if re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host) and not parts.username:
            usual = {"http": 80, "https": 443}.get(parts.scheme)
            named = f"[{host}]" if ":" in host else host
            return named if port in (None, usual) else f"{named}:{port}"
    raise InputError(f'The origin "{origin}" is no host; expected one such as hub.example.org or node7:8888.')


class Headers(OutputTransform):
    """Adds what browsers are to know to every answer of an application."""

    def transform_first_chunk(
        self, status_code: int, headers: Any, chunk: bytes, finishing: bool
    ) -> tuple[int, Any, bytes]:
        for name, value in HEADERS.items():
            headers[name] = value
        return status_code, headers, chunk


class Gate(Router):
    """Takes every request, and hands to an application those that may come in.

    Parameters
    ----------
    inside : tornado.web.Application
        Bokeh's.
    port : int
        That the page is served on; it is in the name of the cookie, which browsers share between ports.
    token : str
        Of the link.
    hosts : iterable of str
        Whose pages may ask besides those that this one is seen through, as behind a proxy that names another host.
    """

    def __init__(self, inside: Application, port: int, token: str, hosts: Iterable[str]) -> None:
        inside.add_transform(Headers)
        self._inside, self._token = inside, token.encode()
        self._hosts, self._through = frozenset(hosts), set(hosts)
        self._name, self._key = f"tdm-view-{port}", secrets.token_urlsafe(32)
        self._closed = Application(log_function=lambda handler: None)

    def find_handler(self, request: Any, **keywords: Any) -> Any:
        answer = self._answer(request)
        if answer is None:
            for name in ORIGINS:  # they have been looked at; Bokeh knows less of them
                request.headers.pop(name, None)
            return self._inside.find_handler(request, **keywords)
        return self._closed.get_handler_delegate(request, _Answer, answer)

    def _answer(self, request: Any) -> dict[str, Any] | None:
        """What is answered instead of the page; None for who may come in."""
        given = request.query_arguments.get("token", [])
        named = len(given) == 1 and hmac.compare_digest(given[0], self._token)
        known = self._has_cookie(request)
        if not (named or known):
            return {"status": 403, "text": "This page is closed: open it by the whole link that tdm view has printed."}
        host, origin = _hosts(request)
        if named and host is not None:
            self._through.add(host)
        if host is None or not (_is_local(host) or host in self._through):
            return _elsewhere(host)
        if origin not in (host, *self._hosts):
            return _elsewhere(origin)
        if named and request.path == "/" and request.method == "GET":
            # Not a redirection: after one that a link on another site led to, the cookie would not be sent.
            again = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=./">'
            return {"status": 200, "text": again, "kind": "html", "cookie": (self._name, self._key)}
        if not known:
            return {"status": 403, "text": "This is not the page: open it by the link that tdm view has printed."}
        if not (request.path in INSIDE or request.path.startswith(STATIC)):
            return {"status": 404, "text": "There is nothing here."}
        return None

    def _has_cookie(self, request: Any) -> bool:
        morsel = request.cookies.get(self._name)
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self._key.encode())


class _Answer(RequestHandler):
    """One sentence, or the page that leads on with a cookie."""

    def initialize(self, status: int, text: str, kind: str = "plain", cookie: tuple[str, str] | None = None) -> None:
        self._said = status, text, kind, cookie

    def prepare(self) -> None:
        status, text, kind, cookie = self._said
        self.set_status(status)
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.set_header("Content-Type", f"text/{kind}; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        if cookie is not None:
            # Without a path it is that of this page: behind a proxy /proxy/PORT/ alone.
            self.set_cookie(*cookie, path="", httponly=True, samesite="Strict")
        self.finish(f"{text}\n")


def _hosts(request: Any) -> tuple[str | None, str | None]:
    """The host that a request names, and that of the page which makes it, the same if it says none; None if unknown."""
    host = _plain(f"//{request.headers.get('Host', '')}")
    origins = [request.headers[name] for name in ORIGINS if name in request.headers]
    return host, (None if origins[0] == "null" else _plain(origins[0])) if origins else host


def _plain(address: str) -> str | None:
    try:
        return host_of(address)
    except InputError:
        return None


def _elsewhere(host: str | None) -> dict[str, Any]:
    hint = "an unknown page" if host is None else f"{host}: if it should be, start tdm view with --origin {host}"
    text = f"This page is not served through {hint}."
    log.warning("%s", text)
    return {"status": 403, "text": text}


def _is_local(host: str) -> bool:
    """Whether a host is this machine, at any port: that of an ssh tunnel may be another one."""
    return (host.rpartition(":")[0] or host) in (LOCAL, "localhost")
