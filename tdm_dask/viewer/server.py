"""A page for one user: served on this machine alone, to whoever has its link, and closed to everything else.

Every request passes the gate (`gate.py`); what Bokeh and Panel load comes from their own folders here, and nothing else
is served.
"""

from __future__ import annotations

import errno
import getpass
import logging
import os
import secrets
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any

from ..errors import InputError, sentence
from .gate import LOCAL, Gate, host_of

FIRST_PORT, PORTS = 5006, 100
# How long what a tab holds is kept when it is gone, for one that lost its connection to go on, and how often is looked.
KEPT_SECONDS, LOOK_SECONDS = 300.0, 15.0
STOP_SECONDS, END_SECONDS = 0.1, 5.0
# A page that was left open over a weekend may reconnect.
SESSION_SECONDS = 7 * 24 * 3600
BODY_BYTES = 2**20  # of a request; files go through the web socket
MESSAGE_BYTES = 64 * 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """Where a page is.

    Examples
    --------
    >>> Address(5006, "secret").link
    'http://127.0.0.1:5006/?token=secret'
    """

    port: int
    token: str

    @property
    def link(self) -> str:
        return f"http://{LOCAL}:{self.port}/?token={self.token}"

    def __str__(self) -> str:
        there = f"{getpass.getuser()}@{socket.gethostname()}"
        hub = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
        lines = [
            f"The page is at  {self.link}",
            f"From elsewhere  ssh -L {self.port}:{LOCAL}:{self.port} {there}  and then the same link there",
            f"On this hub     {hub}proxy/{self.port}/?token={self.token}  after its address" if hub else None,
            "Whoever has the link can use the page; Ctrl-C ends it.",
        ]
        return "\n".join(line for line in lines if line)


def serve(
    make_page: Callable[[], Any],
    *,
    port: int | None = None,
    origins: Iterable[str] = (),
    title: str = "tdm view",
    token: str | None = None,
    announce: Callable[[Address], Any] | None = None,
    browser: bool = False,
    stop: threading.Event | None = None,
) -> None:
    """Serve a page until Ctrl-C, SIGTERM or `stop`.

    It listens on 127.0.0.1. Nothing is loaded from other machines, and no file but those of Bokeh and Panel is served.

    Parameters
    ----------
    make_page : callable
        Called once for each tab that opens the page; gives what Panel can show. If it fails, the tab says why.
    port : int, optional
        To listen on. Default: the first that is free, from 5006 on.
    origins : iterable of str, optional
        Hosts whose pages may use this one, such as "portal.example.org", with ":port" where that is not the usual one:
        for a proxy that keeps its own name from this server. Behind jupyter-server-proxy none is needed.
    title : str
        Of the page.
    token : str, optional
        Of the link. Default: a new random one.
    announce : callable, optional
        Called with the :class:`Address` once the page can be opened. Default: it is printed.
    browser : bool, default False
        Whether to open the page in this machine's browser.
    stop : threading.Event, optional
        Ends it when it is set.

    Raises
    ------
    InputError
        If the port cannot be had, or an origin is none.
    """
    address = Address(0, token or secrets.token_urlsafe(32))
    hosts = frozenset(host_of(origin) for origin in origins)
    with _bokeh(make_page, port, hosts, title, address.token) as (server, loop):
        address = Address(server.port, address.token)
        _end_with_signals(loop)  # before anybody can know that there is something to end
        print(address, flush=True) if announce is None else announce(address)
        if browser:
            threading.Thread(target=webbrowser.open, args=(address.link,), daemon=True).start()
        _run(loop, stop)


@contextmanager
def _bokeh(
    make_page: Callable[[], Any], port: int | None, hosts: frozenset[str], title: str, token: str
) -> Iterator[tuple[Any, Any]]:
    """A server of Panel with the gate before it, on an event loop of its own, neither of them running yet."""
    import asyncio

    import panel as pn
    from tornado.ioloop import IOLoop
    from tornado.util import TimeoutError as LoopTimeoutError

    loop = IOLoop(make_current=False)
    name = f"tdm-{secrets.token_hex(8)}"
    with _signals_kept(), _files_from_here():
        try:
            server = _listen(
                port,
                panel=lambda: _page(make_page),
                address=LOCAL,
                title=title,
                loop=loop,
                server_id=name,
                admin=False,
                session_history=0,
                use_index=False,
                include_headers=[],
                include_cookies=[],
                sign_sessions=True,
                secret_key=secrets.token_hex(32),
                session_token_expiration=SESSION_SECONDS,
                unused_session_lifetime_milliseconds=int(KEPT_SECONDS * 1000),
                check_unused_sessions_milliseconds=int(LOOK_SECONDS * 1000),
                websocket_max_message_size=MESSAGE_BYTES,
                http_server_kwargs={"max_body_size": BODY_BYTES},
                log_function=lambda handler: None,
            )
            try:
                server._http.request_callback = Gate(server._tornado, server.port, token, hosts)
                server.start()
                yield server, loop
            finally:
                pn.state._servers.pop(name, None)
                server.stop(wait=False)
                with suppress(LoopTimeoutError):  # of a page that is busy
                    loop.run_sync(lambda: _end_sessions(server), timeout=END_SECONDS)
        finally:
            loop.close(all_fds=True)
            asyncio.set_event_loop(None)


async def _end_sessions(server: Any) -> None:
    """Have every tab know that it is closed, as when its window is."""
    import asyncio

    await server._http.close_all_connections()
    while any(session.connection_count for session in server.get_sessions()):
        await asyncio.sleep(0.01)
    for context in server._tornado.applications.values():
        await context._cleanup_sessions(-1)


def _page(make_page: Callable[[], Any]) -> Any:
    """What is shown in a tab: the page, or why there is none."""
    import panel as pn

    pn.config.reconnect = True  # of this tab alone
    try:
        return make_page()
    except Exception as error:
        _log(error)
        return pn.pane.Str(sentence(error))


def _listen(port: int | None, **options: Any) -> Any:
    from panel.io.server import get_server

    if port is not None and not 0 < port < 2**16:
        raise InputError(f"The port {port} is none; choose one between 1024 and 65535.")
    for candidate in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,):
        try:
            return get_server(port=candidate, start=False, show=False, **options)
        except PermissionError as error:
            raise InputError(f"The port {port} may not be used; choose one between 1024 and 65535.") from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    if port is None:
        raise InputError(f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free; name another one.")
    raise InputError(
        f"The port {port} is in use, perhaps by a page that is still open; choose another one, or none for the first "
        "that is free."
    )


_serving = 0
_lock = threading.Lock()


@contextmanager
def _files_from_here() -> Iterator[None]:
    """Bokeh and Panel load their files from the server, whatever the environment says (BOKEH_RESOURCES)."""
    global _serving
    from bokeh.settings import settings

    with _lock:
        _serving += 1
        settings.resources.set_value("server")
    try:
        yield
    finally:
        with _lock:
            _serving -= 1
            if not _serving:
                settings.resources.unset_value()


def _run(loop: Any, stop: threading.Event | None) -> None:
    """Run an event loop until it is told to stop."""
    from tornado.ioloop import PeriodicCallback

    def look() -> None:
        if stop is not None and stop.is_set():
            loop.stop()

    async def watch() -> None:
        if stop is not None:
            PeriodicCallback(look, STOP_SECONDS * 1000).start()

    loop.add_callback(watch)
    loop.start()


def _end_with_signals(loop: Any) -> None:
    """Have the signals that end a program end the loop, once it runs, in order."""
    ended = threading.Event()

    def end(number: int, frame: Any) -> None:
        if ended.is_set():  # the loop is in something that lasts
            raise KeyboardInterrupt
        ended.set()
        loop.asyncio_loop.call_soon_threadsafe(loop.stop)

    if threading.current_thread() is threading.main_thread():
        for number in _ending():
            signal.signal(number, end)


def _ending() -> list[int]:
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def _signals_kept() -> Iterator[None]:
    """What signals do is the same after the block, in which Panel takes Ctrl-C to itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in _ending()}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def guarded(tell: Callable[[Exception], Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A callback whose errors are told, and logged, while the page lives on.

    Parameters
    ----------
    tell : callable
        Called with the error.
    function : callable
        What may fail. If it does, None is returned.

    Examples
    --------
    >>> half = guarded(print, lambda number: 1 / number)
    >>> half(2)
    0.5
    >>> half(0)
    division by zero
    """

    @wraps(function)
    def safely(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except Exception as error:
            _log(error)
            tell(error)
            return None

    return safely


def tell_errors(tell: Callable[[Exception], Any]) -> None:
    """Have what Panel's callbacks of this tab raise told as :func:`guarded` does; call it where the page is made."""
    import panel as pn
    from panel.io.state import set_curdoc

    document = pn.state.curdoc

    def handle(error: Exception) -> None:
        _log(error)
        tell(error)

    pn.config.exception_handler = handle

    def forget(context: Any) -> None:
        # Panel keeps what is set for a tab as long as its document is there, which `tell` may hold.
        with set_curdoc(document):
            pn.config.exception_handler = None

    if document is not None:
        document.on_session_destroyed(forget)


def _log(error: BaseException) -> None:
    """Log an error as a sentence; with its traceback where logs of this package are for developers."""
    log.warning("%s", sentence(error), exc_info=error if log.isEnabledFor(logging.DEBUG) else None)


def has_display(environment: Mapping[str, str], platform: str) -> bool:
    """Whether a browser that is opened here would be seen by who asks for it: not at the far end of an ssh.

    Examples
    --------
    >>> has_display({"DISPLAY": ":0"}, "linux"), has_display({"DISPLAY": ":0", "SSH_TTY": "/dev/pts/0"}, "linux")
    (True, False)
    """
    if any(environment.get(name) for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY", "SLURM_JOB_ID")):
        return False
    return platform in ("darwin", "win32") or any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
