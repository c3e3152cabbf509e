"""Who may do what: every way to log in, the least rights, and what a broker that refuses stops."""

import asyncio
import base64
import contextlib
import dataclasses
import datetime
import itertools
import json
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from aiokafka.errors import KafkaError

from certificates import Authority
from consentgate.core import partition
from consentgate.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, ConfigError, ConsentgateError
from consentgate.kafka.cluster import connected
from consentgate.kafka.connecting import attempt, denial
from consentgate.kafka.settings import kafka_settings
from consentgate.report.topics import prepare_changelogs
from consentgate.service import worker as worker_module
from consentgate.tools.broker import HOST
from harness import (
    Feed,
    Probe,
    Running,
    Site,
    SiteFactory,
    StartWorker,
    consent,
    meanwhile,
    post,
    run_python,
    until,
    working,
)
from secured import (
    CLIENT_SECRET,
    PASSWORD,
    WORKER,
    Acl,
    Endpoint,
    Issuer,
    Rights,
    Secured,
    documented_acls,
    secured_kafka,
    serving,
)

MakeAllowed = Callable[..., Awaitable[Site]]

ROLES = {
    "content-events": "content",
    "consent-state": "consent",
    "training-data": "training",
    "consent-decisions": "decisions",
    "content-quarantine": "quarantine",
    "training-retractions": "retractions",
}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_kafka(tmp_path_factory.mktemp("secured")) as running:
        yield running


@pytest.fixture(scope="module")
async def operator(secured: Secured) -> AsyncIterator[Probe]:
    async with Probe(secured.kafka) as connected:
        yield connected


@pytest.fixture(scope="module")
async def producer(secured: Secured) -> AsyncIterator[Feed]:
    async with Feed(secured.kafka) as connected:
        yield connected


@pytest.fixture
def rights(operator: Probe) -> Rights:
    return Rights(operator.admin)


@pytest.fixture
def make_secured_site(
    secured: Secured, operator: Probe, producer: Feed, tmp_path: Path
) -> SiteFactory:
    return SiteFactory(secured.kafka, operator, producer, tmp_path)


@pytest.fixture
def make_allowed(make_secured_site: SiteFactory, rights: Rights) -> MakeAllowed:
    """Makes sites whose workers may do what the page grants; anna has consented."""

    async def make(name: str, user: str = WORKER) -> Site:
        site = await make_secured_site(name)
        await rights.grant(user, acls_of(site, "run"))
        await site.feed.one(site.consent, consent("anna"))
        return site

    return make


@pytest.fixture(autouse=True)
def watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(worker_module, "STALE_SECONDS", 1.0)


def acls_of(site: Site, command: str) -> list[Acl]:
    """What the page grants for a command, with the names of this site."""

    def named(name: str) -> str:
        if name in ROLES:
            return str(getattr(site.config.topics, ROLES[name]))
        return re.sub("^consentgate(?!-replay)", site.config.group, name)

    return [acl._replace(name=named(acl.name)) for acl in documented_acls()[command]]


def by(site: Site, kafka: Mapping[str, Any]) -> Site:
    """The same site, to be reached so."""
    config = msgspec.structs.replace(site.config, kafka=dict(kafka))
    site.path.write_text(yaml.safe_dump(msgspec.to_builtins(config)))
    return dataclasses.replace(site, config=config)


async def decides(site: Site, name: str) -> None:
    """What is appended now is decided on."""
    await site.feed.many(site.content, [post("anna", name)])
    await site.decided()


async def forwarded(site: Site) -> int:
    """How many records have been forwarded."""
    return sum(map(len, (await site.seen()).training.values()))


# Ways to log in. PLAIN, mutual TLS and OAUTHBEARER lead to work in the tests further down.


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_who_logs_in_by_scram_over_tls_can_work(
    mechanism: str, secured: Secured, make_allowed: MakeAllowed, tmp_path: Path
) -> None:
    site = by(await make_allowed("scram"), secured.scram(tmp_path, mechanism))
    async with working(site) as running:
        await running.ready()
        await decides(site, "e1")
    assert (await site.check()).reasons() == {"opted-in": 1}


# Rights.


async def test_run_needs_each_right_that_the_page_grants(
    secured: Secured, make_allowed: MakeAllowed, rights: Rights
) -> None:
    user = "user1"
    site = by(await make_allowed("each", user), secured.plain(user))
    await site.feed.one(site.content, post("anna", "e1"))
    for acl in acls_of(site, "run"):
        await rights.revoke(user, [acl])
        async with working(site, may_fail=True) as running:
            why = await until(lambda: missed(running), f"{acl} is missed")
            assert acl.name in why, (acl, why)
        assert not any((await site.committed()).values())
        await rights.grant(user, [acl])
    async with working(site):
        await site.decided()
    assert (await site.check()).reasons() == {"opted-in": 1}


def missed(running: Running) -> str:
    """Why the worker does not work; nothing yet."""
    if running.task.done():
        error = running.task.exception()
        assert isinstance(error, ConfigError), error
        return str(error)
    return " ".join(entry["why"] for entry in running.logged("recycled"))


async def test_a_consent_topic_that_may_not_be_read_any_more_stops_forwarding(
    secured: Secured,
    make_allowed: MakeAllowed,
    rights: Rights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partition, "BACKOFF_MS_MAX", 500)
    user = "user2"
    site = by(await make_allowed("denied", user), secured.plain(user))
    granted = acls_of(site, "run")
    reading = [acl for acl in granted if (acl.name, acl.operation) == (site.consent, "Read")]
    async with working(site) as running:
        await running.ready()
        await decides(site, "earlier")
        before = await forwarded(site)
        await rights.revoke(user, reading)
        await site.feed.many(site.content, [post("anna", f"later{n}") for n in range(100)])

        async def is_told() -> bool:
            status, body = await running.get("/readyz")
            components = json.loads(body)["components"]
            denied = f"lacks a right on the topic {site.consent}"
            return status == 503 and all(denied in components[n] for n in ("broker", "partition-0"))

        await until(is_told, "/readyz is red, and says why")
        assert await forwarded(site) == before
        await rights.grant(user, reading)
        await running.ready()
        await site.decided()
    assert (await site.check()).reasons() == {"opted-in": 101}


async def test_a_worker_that_the_group_refuses_ends_and_says_so(
    secured: Secured, make_allowed: MakeAllowed, rights: Rights
) -> None:
    user = "user19"
    site = by(await make_allowed("outside", user), secured.plain(user))
    reading = [acl for acl in acls_of(site, "run") if acl.name == site.config.group]
    async with working(site, may_fail=True) as running:
        await running.ready()
        await rights.revoke(user, reading)
        await until(running.task.done, "the worker has ended")
    assert f"lacks a right on the group {site.config.group}" in missed(running)


async def test_the_page_has_what_each_command_needs(
    secured: Secured, make_secured_site: SiteFactory, rights: Rights, tmp_path: Path
) -> None:
    site = await make_secured_site("commands")
    fixture = tmp_path / "more.jsonl"
    fixture.write_text(
        "".join(
            json.dumps({"topic": topic, "key": "ben", "ts": 1, "payload": {}}) + "\n"
            for topic in (site.consent, site.content)
        )
    )
    await site.feed.one(site.consent, consent("anna"))
    await site.feed.many(site.content, [post("anna", "e1"), post("anna", "", kind="")])
    async with working(by(site, {"bootstrap.servers": site.kafka.bootstrap_servers})):
        await site.decided()
    reading = {
        "verify": [],
        "receipt": ["anna"],
        "explain": [f"{site.content}-0@0"],
        "diff": ["opt-in", "opt-in", "--last", "10"],
        "doctor": [],
        "quarantine list": [],
    }
    writing = {
        "publish": [str(fixture)],
        "quarantine redrive": ["--all"],
        "topics create": [],
        "replay --configured-kafka": [str(fixture)],
    }
    documented = documented_acls()
    assert documented.keys() == {"run", "report", *reading, *writing}

    async def can_be_run(user: str, command: str, arguments: list[str]) -> None:
        there = await make_secured_site("new", create=False) if "create" in command else site
        # Each has a user, and a file, of its own.
        path = tmp_path / f"{user}.yaml"
        reached = by(dataclasses.replace(there, path=path), secured.plain(user))
        await rights.grant(user, acls_of(there, command))
        words = ("-m", "consentgate", *command.split(), *arguments, "-c", str(reached.path))
        code, out, errors = await run_python(*words)
        assert code == 0, (command, out, errors)
        assert "lacks a right" not in out + errors, command

    users = map("user{}".format, range(3, 19))
    for commands in (reading, writing):
        runs = (
            can_be_run(user, *each) for user, each in zip(users, commands.items(), strict=False)
        )
        await asyncio.gather(*runs)


async def test_the_page_has_what_the_report_needs(
    secured: Secured, make_secured_site: SiteFactory, rights: Rights, start_worker: StartWorker
) -> None:
    user = "user18"
    site = await make_secured_site("reported")
    await site.feed.one(site.consent, consent("anna"))
    await site.feed.many(site.content, [post("anna", "e1")])
    async with working(by(site, {"bootstrap.servers": site.kafka.bootstrap_servers})):
        await site.decided()
    site = by(site, secured.plain(user))
    await rights.grant(user, acls_of(site, "report"))
    report = await start_worker(site, "--port", "0", subcommand="report")

    async def has_counted() -> bool:
        assert report.running, report.errors()
        status, text = await report.get("/api/totals")
        return status == 200 and json.loads(text)["totals"]["forwarded"] == 1

    await until(has_counted, "the report has counted", 60)
    assert "lacks a right" not in report.errors()
    report.signal(signal.SIGTERM)
    assert await report.wait() == 0


async def test_a_report_that_lacks_a_right_ends_and_says_so(
    secured: Secured, make_secured_site: SiteFactory, rights: Rights
) -> None:
    user = "user17"
    site = by(await make_secured_site("unreported"), secured.plain(user))
    granted = acls_of(site, "report")
    await rights.grant(user, granted)
    async with connected(kafka_settings(site.config.kafka), timeout_seconds=10) as cluster:
        await prepare_changelogs(site.config, cluster)
        for acl in granted:
            if acl.operation in ("Create", "DescribeConfigs"):
                continue
            seen = acl._replace(operation="Describe")
            await rights.grant(user, [seen])
            await rights.revoke(user, [acl])
            with pytest.raises(KafkaError) as raised:
                await prepare_changelogs(site.config, cluster)
            assert acl.name in str(denial(raised.value)), acl
            await rights.grant(user, [acl])
            await rights.revoke(user, [seen])
        await prepare_changelogs(site.config, cluster)


async def test_who_may_not_create_a_topic_is_told_which_right_is_missing(
    secured: Secured, make_secured_site: SiteFactory, rights: Rights
) -> None:
    user = "user16"
    site = by(await make_secured_site("uncreated"), secured.plain(user))
    granted = acls_of(site, "report")
    await rights.grant(user, [acl for acl in granted if acl.operation != "Create"])
    async with connected(kafka_settings(site.config.kafka), timeout_seconds=10) as cluster:
        with pytest.raises(KafkaError) as raised:
            await prepare_changelogs(site.config, cluster)
    name = f"{site.config.group}-report-ledger-changelog"
    assert f"lacks a right on the topic {name}" in str(denial(raised.value))


# Being refused, or not trusting.


async def shut_out(kafka: Mapping[str, Any]) -> ConsentgateError:
    """The error with which a command ends that connects so."""
    with pytest.raises(ConsentgateError) as raised:
        async with connected(kafka_settings(kafka), timeout_seconds=0.5):
            pass
    return raised.value


Case = Callable[[Secured, Path, Endpoint], dict[str, Any]]


def oauth(secured: Secured, tmp_path: Path, endpoint: Endpoint) -> dict[str, Any]:
    tls = secured.tls(tmp_path)
    return {**secured.on("LOGIN"), **tls, "security.protocol": "SASL_SSL", **endpoint.settings()}


def mutual(secured: Secured, tmp_path: Path, *files: Path) -> dict[str, Any]:
    named = zip(("ssl.certificate.location", "ssl.key.location"), map(str, files), strict=False)
    tls = secured.tls(tmp_path)
    return {**secured.on("MUTUAL"), **tls, "security.protocol": "SSL", **dict(named)}


def by_name(kafka: dict[str, Any]) -> dict[str, Any]:
    return {**kafka, "bootstrap.servers": kafka["bootstrap.servers"].replace(HOST, "localhost")}


EXPIRED = datetime.timedelta(seconds=-10)

CASES: dict[str, tuple[Case, int, list[str]]] = {
    "password": (
        lambda s, d, e: {**s.scram(d), "sasl.password": "wrong"},
        EXIT_CONFIG,
        ["refuses the user by SCRAM-SHA-512", "kafka.sasl.password", "how to make one"],
    ),
    "password by PLAIN": (
        lambda s, d, e: {**s.plain("user0"), "sasl.password": "wrong"},
        EXIT_CONFIG,
        ["refuses the user by PLAIN", "kafka.sasl.password"],
    ),
    "mechanism": (
        lambda s, d, e: {**s.plain("user0"), "sasl.mechanism": "SCRAM-SHA-256"},
        EXIT_CONFIG,
        ["does not take kafka.sasl.mechanism SCRAM-SHA-256"],
    ),
    "foreign broker": (
        lambda s, d, e: {**s.scram(d), **s.tls(d, Authority.make("another"))},
        EXIT_CONFIG,
        ["is not accepted", "kafka.ssl.ca.location"],
    ),
    "host": (
        lambda s, d, e: by_name(s.scram(d)),
        EXIT_CONFIG,
        ["Hostname mismatch", "kafka.bootstrap.servers"],
    ),
    "no certificate": (
        lambda s, d, e: mutual(s, d),
        EXIT_CONFIG,
        ["CERTIFICATE_REQUIRED", "set kafka.ssl.certificate.location"],
    ),
    "foreign certificate": (
        lambda s, d, e: mutual(s, d, *Authority.make("another").give(d, "foreign")),
        EXIT_CONFIG,
        ["kafka.ssl.certificate.location is signed by an authority that the broker trusts"],
    ),
    "expired certificate": (
        lambda s, d, e: mutual(s, d, *s.authority.give(d, "expired", lives=EXPIRED)),
        EXIT_CONFIG,
        ["kafka.ssl.certificate.location expired at 20"],
    ),
    "no SASL": (
        lambda s, d, e: {**s.plain("user0"), "bootstrap.servers": s.kafka.bootstrap_servers},
        EXIT_CONFIG,
        ["is one without SASL", "kafka.security.protocol"],
    ),
    "secret": (
        lambda s, d, e: {**oauth(s, d, e), "sasl.oauthbearer.client.secret": "wrong"},
        EXIT_CONFIG,
        ["HTTP 401 invalid_client", "kafka.sasl.oauthbearer.client.secret"],
    ),
    "URL": (
        lambda s, d, e: {**oauth(s, d, e), "sasl.oauthbearer.token.endpoint.url": e.url + "x"},
        EXIT_CONFIG,
        ["HTTP 404", "kafka.sasl.oauthbearer.token.endpoint.url"],
    ),
    "endpoint away": (
        lambda s, d, e: {
            **oauth(s, d, e),
            "sasl.oauthbearer.token.endpoint.url": "http://127.0.0.1:1/token",
        },
        EXIT_UNAVAILABLE,
        ["cannot be reached", "kafka.sasl.oauthbearer.token.endpoint.url"],
    ),
    "token": (
        oauth,
        EXIT_CONFIG,
        ["refuses the token", "kafka.sasl.oauthbearer.scope"],
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_who_is_shut_out_is_told_why_and_what_to_set(
    case: str, secured: Secured, tmp_path: Path
) -> None:
    make, exit_code, said = CASES[case]
    foreign = Issuer() if case == "token" else secured.issuer
    async with serving(Endpoint(foreign)) as endpoint:
        error = await shut_out(make(secured, tmp_path, endpoint))
    assert error.exit_code == exit_code, error
    for words in said:
        assert words in str(error)


# Files that are replaced, tokens and sessions that end.


async def test_replaced_files_serve_the_next_connection(
    secured: Secured, make_allowed: MakeAllowed, tmp_path: Path
) -> None:
    site = await make_allowed("rotated")
    certificate, key = secured.authority.give(tmp_path, WORKER)
    site = by(site, mutual(secured, tmp_path, certificate, key))
    async with working(site) as running:
        await running.ready()
        await decides(site, "e1")
        # Half of a certificate, as where somebody writes it just now.
        certificate.write_bytes(certificate.read_bytes()[:300])
        settings = running.worker._settings
        assert (await attempt(settings, HOST, secured.kafka.port_of("MUTUAL"))).problem is None
        # Another authority altogether, for either side.
        secured.authority = Authority.make("the next authority")
        secured.authority.give(tmp_path, WORKER)
        secured.tls(tmp_path)
        secured.keep()
        await asyncio.to_thread(secured.kafka.restart)
        await running.ready()
        await decides(site, "e2")
    assert (await site.check()).reasons() == {"opted-in": 2}


async def test_tokens_and_sessions_may_last_for_seconds(
    secured: Secured, make_allowed: MakeAllowed, tmp_path: Path
) -> None:
    site = await make_allowed("seconds")
    appended = itertools.count()
    async with serving(Endpoint(secured.issuer, seconds=2.0)) as endpoint:
        site = by(site, oauth(secured, tmp_path, endpoint))
        async with working(site) as running:
            await running.ready()

            async def append() -> None:
                await site.feed.many(site.content, [post("anna", f"e{next(appended)}")])
                await asyncio.sleep(0.02)

            async with meanwhile(append):
                await until(lambda: len(endpoint.asked) >= 4, "tokens are renewed")
                endpoint.away = True

                async def is_told() -> bool:
                    status, body = await running.get("/readyz")
                    return status == 503 and f"token endpoint {endpoint.url} refuses" in body

                await until(is_told, "/readyz is red, and says why")
                endpoint.away = False
                await running.ready()
            await site.decided()
    # The brokers have closed the connections of each session, transactions in their midst.
    assert running.logged("recycled")
    assert (await site.check()).reasons() == {"opted-in": next(appended)}


# Secrets.


def command_lines() -> Iterator[str]:
    """How the processes of this project were started, as everybody on the machine may see."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if "consentgate" in (command := path.read_text(errors="replace")):
                yield command


async def test_no_secret_comes_out(
    secured: Secured,
    make_allowed: MakeAllowed,
    start_worker: StartWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = {
        "SASL_PASSWORD": PASSWORD,
        "SASL_OAUTHBEARER_CLIENT_SECRET": CLIENT_SECRET,
        "SSL_KEY_PASSWORD": "key-secret-Vb3",
    }
    for name, secret in secrets.items():
        (tmp_path / name).write_text(secret + "\n")
        monkeypatch.setenv(f"CONSENTGATE_KAFKA__{name}_FILE", str(tmp_path / name))
    certificate, key = secured.authority.give(tmp_path, WORKER, password="key-secret-Vb3")
    out: list[str] = []

    async def run(*arguments: str) -> int:
        code, *said = await run_python("-m", "consentgate", *arguments)
        out.extend(said)
        return code

    async def use(way: dict[str, Any], secret: str) -> None:
        public = {name: value for name, value in way.items() if value not in secrets.values()}
        site = by(await make_allowed("secrets"), public)
        config = ("-c", str(site.path))
        worker = await start_worker(site)
        await worker.ready()
        out.extend([(await worker.get(page))[1] for page in ("/metrics", "/readyz", "/livez")])
        out.extend(command_lines())
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
        out.extend((worker.errors(), worker.output()))
        assert await run("doctor", *config) == 0
        # Nor does one that is wrong.
        (tmp_path / secret).write_text(secrets[secret] + "-wrong")
        assert await run("run", *config) == EXIT_CONFIG

    async with serving(Endpoint(secured.issuer)) as endpoint:
        files = {"ssl.certificate.location": str(certificate), "ssl.key.location": str(key)}
        await asyncio.gather(
            use({**secured.scram(tmp_path), **files}, "SASL_PASSWORD"),
            use(oauth(secured, tmp_path, endpoint), "SASL_OAUTHBEARER_CLIENT_SECRET"),
            run("run", "--help"),
        )
    everything = "\n".join(out)
    said = ("consentgate_", "refuses the user", "invalid_client", "--until-drained")
    assert [words for words in said if words not in everything] == []
    login = base64.b64encode(f"{WORKER}:{CLIENT_SECRET}".encode()).decode()
    # The last one is how tokens begin.
    assert [each for each in (*secrets.values(), login, "eyJ") if each in everything] == []
