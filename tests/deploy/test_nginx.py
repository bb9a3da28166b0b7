"""examples/online_serving/nginx/core.conf in a real nginx, in front of two real servers on a simulated device."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from free_ports import free_ports
from real_server import RealServer, events, real_server, until
from steady_load import SteadyLoad, steady_load

from core.server.options import ServerOptions

pytestmark = pytest.mark.deploy

CONF = Path(__file__).parents[2] / "examples" / "online_serving" / "nginx" / "core.conf"
STEP_S = 0.03
#: What core.conf says: as long is a server left alone that has failed.
FAIL_TIMEOUT_S = 5.0

_MAIN = """
daemon off;
error_log {directory}/error.log info;
pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/core.conf;
}}
"""


class Site:
    """nginx and the two servers behind it."""

    def __init__(self, arguments: tuple[str, ...], directory: Path) -> None:
        self.ports = free_ports(3)
        self.url = f"http://127.0.0.1:{self.ports[2]}"
        self.running: dict[int, RealServer] = {}
        self._arguments = arguments
        self._directory = directory
        self._stacks: dict[int, ExitStack] = {}

    def start(self, index: int) -> RealServer:
        stack = self._stacks[index] = ExitStack()
        server = stack.enter_context(real_server(*self._arguments, port=self.ports[index]))
        self.running[index] = server
        return server

    def stop(self, index: int) -> None:
        """Drain it, unless it is gone."""
        del self.running[index]
        self._stacks.pop(index).close()

    def address(self, index: int) -> str:
        return f"127.0.0.1:{self.ports[index]}"

    @contextmanager
    def nginx(self) -> Iterator[None]:
        """The file as it is, but for addresses."""
        text = CONF.read_text()
        for name, address in (("core0:8000", self.address(0)), ("core1:8000", self.address(1))):
            assert text.count(name) == 2
            text = text.replace(name, address)
        assert text.count("listen 80;") == 1
        (self._directory / "core.conf").write_text(text.replace("listen 80;", f"listen 127.0.0.1:{self.ports[2]};"))
        main = self._directory / "nginx.conf"
        main.write_text(_MAIN.format(directory=self._directory))
        command = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        assert command, "nginx is needed: apt-get install nginx-light"
        process = subprocess.Popen([command, "-c", str(main), "-e", str(self._directory / "error.log")])
        try:
            until((self._directory / "nginx.pid").exists)
            yield
        finally:
            process.send_signal(signal.SIGQUIT)
            assert process.wait(30) == 0, (self._directory / "error.log").read_text()


@pytest.fixture(scope="module")
def site(sim_arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(sim_arguments, tmp_path_factory.mktemp("nginx"))
    try:
        with site.nginx():
            with ThreadPoolExecutor() as pool:
                list(pool.map(site.start, (0, 1)))
            yield site
    finally:
        for index in list(site.running):
            site.stop(index)


@contextmanager
def through(site: Site) -> Iterator[RealServer]:
    """The site as if it were a server."""
    first = site.running[0]
    yield RealServer(first.process, first.directory, first.log, site.url, "sim")


def warm(load: SteadyLoad, site: Site) -> None:
    """Wait until both servers have answered."""
    until(lambda: load.served_by() == {site.address(0), site.address(1)})


def test_a_stream_passes_unbuffered(site: Site) -> None:
    """Events come a step or more after the one before (some tokens are halves of a character), not in a heap."""
    with through(site) as proxied:
        connection, response = proxied.stream("/v1/completions", {"prompt": "Hello", "max_tokens": 40})
        times = [time.monotonic() for _ in events(response)]
        connection.close()
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(gaps) >= 8
    assert sum(gap > STEP_S / 3 for gap in gaps) > len(gaps) * 0.6
    assert max(gaps) < (times[-1] - times[0]) / 2


def test_a_body_as_large_as_the_server_s_limit_passes(site: Site) -> None:
    assert f"client_max_body_size {ServerOptions().max_body_bytes >> 20}m;" in CONF.read_text()
    prompt = "x" * (ServerOptions().max_body_bytes - 100)
    with through(site) as proxied:
        status, headers, answer = proxied.complete(prompt, max_tokens=1)
    assert status == 400 and answer["error"]["param"] == "prompt", answer  # too long for the model: the server's answer
    assert headers["X-Served-By"]


def test_each_server_s_own_routes_do_not_pass(site: Site) -> None:
    with through(site) as proxied:
        assert proxied.send("GET", "/metrics")[0] == 404
        assert proxied.send("POST", "/reset_prefix_cache")[0] == 404
        assert proxied.get("/v1/models")[1]["data"][0]["id"] == "sim"


def test_a_client_s_responses_stay_where_they_are_stored(site: Site) -> None:
    with through(site) as proxied:
        for _ in range(4):
            body = json.dumps({"model": "sim", "input": "Hello", "max_output_tokens": 1})
            status, _, answer = proxied.send("POST", "/v1/responses", body)
            assert status == 200, answer
            assert proxied.get(f"/v1/responses/{json.loads(answer)['id']}")[0] == 200


def test_servers_drained_and_started_again_in_turn_under_load_fail_no_request(site: Site) -> None:
    with steady_load(site.url) as load:
        warm(load, site)
        for index in (0, 1):
            site.stop(index)  # SIGTERM; it must drain and end with status 0
            site.start(index)  # ready
            time.sleep(FAIL_TIMEOUT_S + 1)
            answered = len(load.outcomes)
            until(lambda: any(each.server == site.address(index) for each in load.outcomes[answered:]))  # noqa: B023
    assert load.failed() == [] and len(load.outcomes) > 50


def test_a_server_killed_under_load_fails_only_what_it_had_begun(site: Site) -> None:
    with steady_load(site.url) as load:
        warm(load, site)
        for process in reversed(site.running[1].tree()):
            process.kill()
        site.running[1].process.wait()
        gone = time.monotonic()
        time.sleep(3)
    site.stop(1)
    failed = load.failed()
    assert all(each.began < gone and each.server == site.address(1) for each in failed), failed
    assert all("without [DONE]" in each.error or "Payload" in each.error for each in failed), failed
    later = [each for each in load.outcomes if each.began > gone]
    assert len(later) > 20 and not any(each.error for each in later)
    assert {each.server for each in later} == {site.address(0)}
    assert len(failed) <= 8, "each client had one request in flight"
    site.start(1)  # as it was
