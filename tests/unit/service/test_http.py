"""Health and metrics over HTTP."""

import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession
from prometheus_client import CollectorRegistry, Counter

from consentgate.errors import EXIT_CONFIG, ConfigError
from consentgate.service.http import HttpServer
from consentgate.web import OK

Components = dict[str, str]


class Service:
    """A server on the loopback, and a client of it."""

    def __init__(self) -> None:
        self.live: Components = {}
        self.ready: Components = {}
        self.registry = CollectorRegistry()
        self.server = HttpServer(
            self.registry,
            lambda: self.live,
            lambda: self.ready,
            lambda since_ms: {"since_ms": since_ms},
        )
        self.port = 0

    async def ask(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with ClientSession() as client, client.request(method, url, headers=headers) as got:
            return got.status, dict(got.headers), await got.text()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    started = Service()
    started.port = await started.server.start("127.0.0.1", 0)
    yield started
    await started.server.stop()


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_health_is_200_where_every_component_is_ok(service: Service, path: str) -> None:
    service.live = service.ready = {"worker": OK, "partition-0": OK}
    status, headers, body = await service.ask(path)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "status": "ok",
        "components": {"worker": "ok", "partition-0": "ok"},
    }


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_health_is_503_where_one_is_not_and_says_which_and_why(
    service: Service, path: str
) -> None:
    service.live = service.ready = {"worker": OK, "partition-0": "bootstrapping"}
    status, headers, body = await service.ask(path)
    assert status == 503
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "status": "unavailable",
        "components": {"worker": "ok", "partition-0": "bootstrapping"},
    }


async def test_being_live_and_being_ready_are_two_things(service: Service) -> None:
    service.live, service.ready = {"worker": OK}, {"worker": "stopping"}
    assert (await service.ask("/livez"))[0] == 200
    assert (await service.ask("/readyz"))[0] == 503


async def test_health_is_asked_for_anew_each_time(service: Service) -> None:
    service.ready = {"broker": "does not answer"}
    assert (await service.ask("/readyz"))[0] == 503
    service.ready = {"broker": OK}
    assert (await service.ask("/readyz"))[0] == 200


async def test_with_nothing_to_care_for_the_service_is_well(service: Service) -> None:
    status, _, body = await service.ask("/livez")
    assert (status, json.loads(body)) == (200, {"status": "ok", "components": {}})


async def test_metrics_are_shown_in_prometheus_format(service: Service) -> None:
    Counter("consentgate_things", "Things.", registry=service.registry).inc(3)
    status, headers, body = await service.ask("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert "consentgate_things_total 3.0\n" in body


async def test_metrics_are_shown_in_openmetrics_format_to_who_asks_for_it(
    service: Service,
) -> None:
    Counter("consentgate_things", "Things.", registry=service.registry).inc(3)
    wanted = "application/openmetrics-text; version=1.0.0"
    _, headers, body = await service.ask("/metrics", Accept=wanted)
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


async def test_the_status_page_is_at_the_root(service: Service) -> None:
    status, headers, body = await service.ask("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "<title>consentgate: status of a worker</title>" in body


async def test_figures_are_told_since_a_moment_and_kept_by_nobody(service: Service) -> None:
    status, headers, body = await service.ask("/status.json?since_ms=17")
    assert (status, json.loads(body)) == (200, {"since_ms": 17})
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"
    assert json.loads((await service.ask("/status.json"))[2]) == {"since_ms": 0}


@pytest.mark.parametrize("since", ["x", "-1", "1.5", "", "%D9%A3", "9" * 5_000])
async def test_a_moment_that_is_none_is_refused(service: Service, since: str) -> None:
    assert (await service.ask(f"/status.json?since_ms={since}"))[0] == 400


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/x", "GET", 404),
        ("/livez/x", "GET", 404),
        ("/livez", "POST", 405),
        ("/livez", "HEAD", 200),
    ],
)
async def test_nothing_else_is_served(
    service: Service, path: str, method: str, status: int
) -> None:
    assert (await service.ask(path, method))[0] == status


async def test_a_port_that_is_taken_is_refused_with_what_to_do(service: Service) -> None:
    other = Service()
    with pytest.raises(ConfigError, match=r"set http\.port to a free one, or to 0") as raised:
        await other.server.start("127.0.0.1", service.port)
    assert f"cannot listen on 127.0.0.1:{service.port}" in str(raised.value)
    assert raised.value.exit_code == EXIT_CONFIG
    await other.server.stop()


async def test_an_address_of_another_machine_is_refused() -> None:
    service = Service()
    with pytest.raises(ConfigError, match="cannot listen on"):
        await service.server.start("192.0.2.1", 0)
    await service.server.stop()


async def test_after_stopping_nobody_listens() -> None:
    service = Service()
    port = await service.server.start("127.0.0.1", 0)
    await service.server.stop()
    again = Service()
    assert await again.server.start("127.0.0.1", port) == port
    await again.server.stop()
