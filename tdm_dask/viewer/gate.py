"""Who may come in: the gate that every request to a page passes before Bokeh's application has it.

It lets in who names the token of the link, once, and from then on who has the cookie that is given for it. A page of
another site cannot read the token, and its requests carry no cookie, which goes with requests of the same site alone;
besides, their `Origin` and `Host` are refused. So neither a web socket that another site opens (cross-site WebSocket
hijacking) nor a name that another site points at this machine (DNS rebinding) gets in.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterator
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
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'self'; "
    "base-uri 'self'; form-action 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
INSIDE = ("/", "/ws", "/favicon.ico")  # and what is below STATIC
STATIC = "/static/"


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
        if parts.hostname and "*" not in parts.netloc and not parts.username:
            usual = {"http": 80, "https": 443}.get(parts.scheme)
            named = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return named if parts.port in (None, usual) else f"{named}:{parts.port}"
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
    hosts : frozenset of str
        Through which the page may be asked for besides this machine.
    """

    def __init__(self, inside: Application, port: int, token: str, hosts: frozenset[str]) -> None:
        inside.add_transform(Headers)
        self._inside, self._token, self._hosts = inside, token.encode(), hosts
        self._name, self._key = f"tdm-view-{port}", secrets.token_urlsafe(32)
        self._closed = Application(log_function=lambda handler: None)

    def find_handler(self, request: Any, **keywords: Any) -> Any:
        answer = self._answer(request)
        if answer is None:
            return self._inside.find_handler(request, **keywords)
        return self._closed.get_handler_delegate(request, _Answer, answer)

    def _answer(self, request: Any) -> dict[str, Any] | None:
        """What is answered instead of the page; None for who may come in."""
        given = request.query_arguments.get("token", [])
        named = len(given) == 1 and hmac.compare_digest(given[0], self._token)
        known = self._has_cookie(request)
        if not (named or known):
            return {"status": 403, "text": "This page is closed: open it by the whole link that tdm view has printed."}
        for host in _asked_through(request):
            if host is None:
                return {"status": 403, "text": "This page is for browsers that say which page asks for it."}
            if not (_is_local(host) or host in self._hosts):
                return {
                    "status": 403,
                    "text": f"This page is not served through {host}: start tdm view with --origin {host}.",
                }
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


def _asked_through(request: Any) -> Iterator[str | None]:
    """Hosts that a request names as this one and, where a page has made it, as that page's; None for what is none."""
    yield _plain(f"//{request.headers.get('Host', '')}")
    for header in ("Origin", "Sec-WebSocket-Origin"):
        if header in request.headers:
            named = request.headers[header]
            yield None if named == "null" else _plain(named)


def _plain(address: str) -> str | None:
    try:
        return host_of(address)
    except InputError:
        return None


def _is_local(host: str) -> bool:
    """Whether a host is this machine, at any port: that of an ssh tunnel may be another one."""
    return (host.rpartition(":")[0] or host) in (LOCAL, "localhost")
