"""The page's server: who comes in, what is served, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import importlib.util
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from browser import chromium, visit

from tdm_dask.cli import main
from tdm_dask.errors import InputError, MaskError, sentence
from tdm_dask.viewer import opening, server
from tdm_dask.viewer.gate import host_of
from tdm_dask.viewer.server import Address, guarded, serve, tell_errors

pn = pytest.importorskip("panel")

# The name that buttons have had is to become a label one day.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Widget.name is deprecated:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:reference already known"),  # Bokeh, of a tab that comes back
]
LONG = 60  # seconds that nothing here takes, unless it hangs
MANY = {"GET": "/", "static": "/static/js/bokeh.min.js", "ws": "/ws", "metadata": "/metadata", "icon": "/favicon.ico"}


def until(holds):
    """Wait until something holds."""
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)


def make_page():
    """A page with a slider, a button whose callback fails, and one that fails outside of Panel's callbacks."""
    said = pn.pane.Str("")

    def tell(error):
        said.object = sentence(error)

    def fail(event):
        raise MaskError("The mask is not finite; derive it again.")

    tell_errors(tell)
    slider = pn.widgets.IntSlider(name="sigma", start=0, end=10)
    button = pn.widgets.Button(name="fail")
    button.on_click(fail)
    other = pn.widgets.Button(name="divide")
    other.on_click(guarded(tell, lambda event: 1 / 0))
    return pn.Column(slider, pn.bind(lambda value: f"value {value}", slider), button, other, said)


@contextlib.contextmanager
def served(page=make_page, **options):
    """The address of a page while a thread serves it."""
    addresses, failures = [], []
    stop = threading.Event()

    def run():
        try:
            serve(page, announce=addresses.append, stop=stop, **options)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="page")
    thread.start()
    try:
        until(lambda: addresses or failures)
        if failures:
            raise failures[0]
        yield addresses[0]
    finally:
        stop.set()
        thread.join(LONG)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def address():
    with served(origins=("https://portal.example.org/pun",)) as made:
        yield made


def ask(address, path, method="GET", **headers):
    """Status, headers and text of an answer; the path goes as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=LONG)
    with contextlib.closing(connection):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=names)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode(errors="replace")


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def cookie(address):
    """What a browser sends once it has used the link."""
    status, headers, _ = ask(address, f"/?token={address.token}")
    assert status == 200
    return headers["Set-Cookie"].split(";")[0]


def socket_of(address, **headers):
    """The first message of a web socket, or the status that refuses it."""
    from tornado.httpclient import HTTPClientError, HTTPRequest
    from tornado.websocket import websocket_connect

    async def connect(subprotocols):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = HTTPRequest(f"ws://127.0.0.1:{address.port}/ws", headers=names)
        try:
            connection = await websocket_connect(request, subprotocols=subprotocols)
        except HTTPClientError as error:
            return error.code
        message = await asyncio.wait_for(connection.read_message(), LONG)
        connection.close()
        return message

    def in_a_thread(*subprotocols):  # the browser keeps an event loop in this one
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, connect(list(subprotocols))).result()

    return in_a_thread


@pytest.mark.parametrize("path", MANY.values(), ids=MANY)
@pytest.mark.parametrize(
    ("query", "header"),
    [
        ("", None),
        ("?token=", None),
        ("?token=wrong", None),
        ("?token=RIGHT&token=wrong", None),
        ("?TOKEN=RIGHT", None),
        ("", "tdm-view-PORT="),
        ("", "tdm-view-PORT=RIGHT"),
    ],
)
def test_without_the_token_everything_is_closed(address, path, query, header):
    cookies = {} if header is None else {"Cookie": header.replace("PORT", str(address.port))}
    cookies = {name: value.replace("RIGHT", address.token) for name, value in cookies.items()}
    status, headers, text = ask(address, path + query.replace("RIGHT", address.token), **cookies)
    assert status == 403
    assert text == "This page is closed: open it by the whole link that tdm view has printed.\n"
    assert "Set-Cookie" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"])
def test_no_method_goes_around_the_token(address, method):
    assert ask(address, "/", method)[0] in (403, 405)


def test_the_link_gives_a_cookie_of_this_page_and_leads_to_it_without_the_token(address):
    status, headers, text = ask(address, f"/?token={address.token}")
    assert status == 200
    assert re.fullmatch(
        rf"tdm-view-{address.port}=[\w-]{{40,}}; HttpOnly; SameSite=Strict", headers["Set-Cookie"]
    )  # no path and no domain: those that were asked for
    assert address.token not in headers["Set-Cookie"] + text
    assert 'content="0; url=./"' in text
    assert headers["Cache-Control"] == "no-store"


def test_with_the_cookie_the_page_and_its_files_are_there_and_nothing_else(address, cookie):
    status, headers, text = ask(address, "/", Cookie=cookie)
    assert status == 200
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text)
    for path in re.findall(r'<script[^>]* src="([^"]+)"', text):
        assert ask(address, "/" + path, Cookie=cookie)[0] == 200
    for path in ("/metadata", "/autoload.js", "/components/panel/Column/_stylesheets/x", "/admin", "/other"):
        assert ask(address, path, Cookie=cookie)[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../../../../../../../../etc/passwd",
        "/static//etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static/%2e%2e%2f%2e%2e%2fserver.py",
        "/static/..%5c..%5cserver.py",
        "/static/extensions/panel/../../config.py",
        "/static/extensions/panel/%2e%2e%2fconfig.py",
        "/static/extensions/other/panel.js",
        "/static/extensions//etc/passwd",
        "/../../../../../etc/passwd",
        "/etc/passwd",
    ],
)
def test_no_file_outside_of_the_libraries_is_read(address, cookie, path):
    status, _, text = ask(address, path, Cookie=cookie)
    assert status in (403, 404)
    assert "root:" not in text
    assert "import" not in text


def test_another_name_of_this_machine_is_refused_unless_the_link_was_used_through_it(address, cookie):
    status, _, text = ask(address, "/", Host=f"rebound.example.org:{address.port}", Cookie=cookie)
    assert status == 403
    assert text == (
        f"This page is not served through rebound.example.org:{address.port}: if it should be, start tdm view with "
        f"--origin rebound.example.org:{address.port}.\n"
    )
    assert ask(address, "/", Host="localhost:7777", Cookie=cookie)[0] == 200  # the near end of an ssh tunnel
    assert ask(address, f"/?token={address.token}", Host="hub.example.org")[0] == 200
    assert ask(address, "/", Host="hub.example.org", Cookie=cookie)[0] == 200
    assert ask(address, "/", Host="hub.example.org.evil.org", Cookie=cookie)[0] == 403


def test_a_web_socket_needs_cookie_origin_and_the_signed_token_of_a_page(address, cookie):
    here = f"http://127.0.0.1:{address.port}"
    token = re.search(r'"token":"([^"]+)"', ask(address, "/", Cookie=cookie)[2])[1]
    assert socket_of(address)("bokeh", token) == 403
    assert socket_of(address, Origin=here)("bokeh", token) == 403
    for origin in ("https://evil.org", "http://localhost:8888", "null", "http://127.0.0.1.evil.org"):
        assert socket_of(address, Cookie=cookie, Origin=origin)("bokeh", token) == 403
    head, _, tail = token.partition(".")
    assert socket_of(address, Cookie=cookie, Origin=here)("bokeh", f"{head}.{tail[::-1]}") is None  # closed again
    for origin in (here, "https://portal.example.org"):
        assert "ACK" in socket_of(address, Cookie=cookie, Origin=origin)("bokeh", token)


@pytest.mark.long
def test_in_a_browser_nothing_is_asked_of_other_machines_and_errors_are_sentences(address, browser):
    with visit(address.link, browser=browser) as seen:
        page = seen.page
        page.wait_for_selector("text=value 0")
        assert page.url == f"http://127.0.0.1:{address.port}/"
        page.click("button:has-text('fail')")
        page.wait_for_selector("text=The mask is not finite; derive it again.")
        page.click("button:has-text('divide')")
        page.wait_for_selector("text=ZeroDivisionError: division by zero.")
        page.focus(".noUi-handle")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("text=value 1")
        assert seen.troubles() == []
        assert seen.elsewhere() == []
        assert f"ws://127.0.0.1:{address.port}/ws" in seen.requests
        assert address.token not in page.content()
        refused = """() => new Promise(done => {
            document.addEventListener("securitypolicyviolation", event => done(event.blockedURI))
            new Image().src = "http://localhost:1/elsewhere.png"
        })"""
        assert page.evaluate(refused) == "http://localhost:1/elsewhere.png"
    with visit(f"http://127.0.0.1:{address.port}/", browser=browser) as seen:
        assert "This page is closed" in seen.page.content()


@pytest.mark.long
def test_a_page_that_cannot_be_made_says_why_in_its_tab(browser):
    def page():
        raise MaskError("The mask is not finite; derive it again.")

    with served(page) as address, visit(address.link, browser=browser) as seen:
        seen.page.wait_for_selector("text=The mask is not finite; derive it again.")
        assert seen.troubles() == []


@pytest.mark.long
def test_what_a_tab_holds_goes_with_it(monkeypatch):
    monkeypatch.setattr(server, "KEPT_SECONDS", 0.05)
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.05)
    tabs, gone = [], []

    class Tab:
        def __init__(self):
            self.document = pn.state.curdoc
            self.message = pn.pane.Str("")
            tell_errors(self.tell)

        def tell(self, error):
            self.message.object = sentence(error)

    def page():
        tab = Tab()
        tabs.append(weakref.ref(tab))
        pn.state.on_session_destroyed(lambda context: gone.append(True))
        return pn.Column(tab.message, pn.widgets.IntSlider(start=0, end=10))

    with served(page) as address:
        _, headers, _ = ask(address, f"/?token={address.token}")
        for _ in range(3):
            assert ask(address, "/", Cookie=headers["Set-Cookie"].split(";")[0])[0] == 200
        until(lambda: len(gone) == 3)
        until(lambda: gc.collect() >= 0 and not any(tab() for tab in tabs))
    assert len(tabs) == 3


@pytest.mark.long
def test_a_tab_that_lost_its_connection_goes_on_where_it_was(browser, monkeypatch):
    monkeypatch.setattr(server, "END_SECONDS", LONG)  # a busy machine may need more to tell a tab of its end
    made, gone = [], []

    def page():
        made.append(pn.state.curdoc)
        pn.state.on_session_destroyed(lambda context: gone.append(context))
        return make_page()

    with served(page) as address:
        (bokeh,) = (found for found, *_ in pn.state._servers.values() if found.port == address.port)
        with visit(address.link, browser=browser) as seen:
            seen.page.wait_for_selector("text=value 0")
            for number in (1, 2):
                seen.page.focus(".noUi-handle")
                seen.page.keyboard.press("ArrowRight")
                seen.page.wait_for_selector(f"text=value {number}")
                (connection,) = bokeh._tornado._clients
                bokeh.io_loop.add_callback(connection._socket.close)
                until(lambda lost=connection: bokeh._tornado._clients - {lost})
            assert seen.troubles() == []
        assert gone == []
    assert (len(made), len(gone)) == (1, 1)  # it is told that the server ended


def test_a_port_in_use_is_a_sentence_and_without_one_the_next_is_taken(address, monkeypatch):
    for port, said in (
        (address.port, f"The port {address.port} is in use, perhaps by a page that is still open; choose another"),
        (0, "The port 0 is none; choose one"),
        (70000, "The port 70000 is none; choose one between 1024 and 65535"),
    ):
        with pytest.raises(InputError, match=said), served(port=port):
            pass
    monkeypatch.setattr(server, "FIRST_PORT", address.port)
    with served() as other:
        assert address.port < other.port < address.port + server.PORTS
    monkeypatch.setattr(server, "PORTS", 1)
    with pytest.raises(InputError, match="is free; name another one"), served():
        pass


@pytest.mark.long
def test_variables_for_bokeh_change_nothing_and_panel_is_as_it_was_afterwards(browser, monkeypatch):
    monkeypatch.setenv("BOKEH_RESOURCES", "cdn")
    monkeypatch.setenv("BOKEH_ALLOW_WS_ORIGIN", "other.example.org")
    servers = dict(pn.state._servers)
    with served() as address, visit(address.link, browser=browser) as seen:
        seen.page.wait_for_selector("text=value 0")
        assert seen.troubles() == []
        assert seen.elsewhere() == []
    assert dict(pn.state._servers) == servers


@pytest.mark.parametrize("origin", ["", "*", "*.example.org", "https://", "a b", "host:port", "me@host", "//"])
def test_an_origin_that_is_no_host_is_refused(origin):
    with pytest.raises(InputError, match="is no host"):
        host_of(origin)


def test_the_address_says_how_to_reach_it_from_elsewhere(monkeypatch):
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    text = str(Address(5006, "secret"))
    assert "http://127.0.0.1:5006/?token=secret" in text
    assert f"ssh -L 5006:127.0.0.1:5006 {server.getpass.getuser()}@{socket.gethostname()}" in text
    assert "hub" not in text
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/me/")
    assert "/user/me/proxy/5006/?token=secret" in str(Address(5006, "secret"))


SCRIPT = """
import panel as pn
from tdm_dask.viewer.server import serve
serve(lambda: pn.pane.Str("page"))
print("closed")
"""


def listening(pid):
    """Addresses at which a process listens, as Linux tells them."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes |= set(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()]
    return [row[1] for row in rows if len(row) > 9 and row[3] == "0A" and row[9] in inodes]


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux tells what a process listens to")
def test_it_listens_here_alone_and_signals_end_it_in_order():
    numbers = (signal.SIGINT, signal.SIGTERM)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", SCRIPT], **pipes) for _ in numbers]
    try:
        for process, number in zip(processes, numbers, strict=True):
            link = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=[\w-]{43}", process.stdout.readline())
            assert link is not None
            assert listening(process.pid) == [f"0100007F:{int(link[1]):04X}"]
            process.send_signal(number)
        for process in processes:
            out, err = process.communicate(timeout=LONG)
            assert (process.returncode, err) == (0, "")
            assert out.endswith("closed\n")
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def asked(monkeypatch):
    """What the command asks the viewer for."""
    calls = []
    monkeypatch.setattr(opening, "view_store", lambda store, **options: calls.append((store, options)))
    return calls


def run(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(["view", *map(str, arguments)])
    return caught.value.code


def test_the_command_hands_its_options_on(asked, capsys, monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "here there")
    assert run("a/scan.zarr") == 0
    assert capsys.readouterr().out == "The page is closed.\n"
    options = "--port 5050 --origin a.org --origin b.org:80 --bin 2 --proxy-memory 2GiB --recipe a.toml --out b --open"
    assert run("a/scan.zarr", *options.split()) == 0
    (store, first), (_, second) = asked
    assert store == Path("a/scan.zarr")
    assert callable(first.pop("stage"))
    assert callable(second.pop("stage"))
    assert first == {
        "port": None,
        "origins": (),
        "bin": None,
        "proxy_memory": None,
        "recipe": None,
        "out": Path("scan-view"),
        "browser": False,
    }
    assert second == {
        "port": 5050,
        "origins": ("a.org", "b.org:80"),
        "bin": 2,
        "proxy_memory": "2GiB",
        "recipe": Path("a.toml"),
        "out": Path("b"),
        "browser": True,
    }


def test_without_panel_one_sentence_says_what_to_install(asked, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "panel" else found(name, *rest)
    )
    assert run("scan.zarr") == 2
    said = 'tdm: tdm view needs the package panel, which is not here; install it with pip install "tdm-dask[view]".\n'
    assert capsys.readouterr().err == said
    assert asked == []
