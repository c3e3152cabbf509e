"""The shared fixtures on the real broker: the same outcomes as in memory, record by record."""

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import yaml

from consentgate.config import Config, KeysConfig
from consentgate.core.gate import CONSENT_HEADER, SOURCE_HEADER, Output
from consentgate.errors import EXIT_INTERRUPTED, ConfigError, ConsentgateError
from consentgate.kafka.cluster import connected
from consentgate.kafka.settings import kafka_settings
from consentgate.policies import load_policy
from consentgate.tools import rehearsal
from consentgate.tools.broker import EmbeddedKafka
from consentgate.tools.rehearsal import rehearse
from consentgate.tools.replay import Replayed
from consentgate.tools.replay import replay as replay_in_memory
from harness import DEADLINE_SECONDS, Probe, run_python, until
from shared import FILES, name_of, settings_of

PREFIX = "consentgate-replay-"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with structlog.testing.capture_logs() as log:
        yield
    # Shown where the test fails.
    print(*log, sep="\n")


def servers(kafka: EmbeddedKafka) -> dict[str, Any]:
    return {"bootstrap.servers": kafka.bootstrap_servers}


def comparable(replayed: Replayed) -> Any:
    """All but what depends on the names of the topics and on how lines fall into batches."""
    decided = replayed.decided
    return (
        replayed.line,
        decided.reason,
        decided.entry.decided_at,
        decided.entry.policy,
        _without_places(decided.forwarded),
        _without_places(decided.quarantined),
    )


def _without_places(output: Output | None) -> Output | None:
    def is_place(name: str) -> bool:
        return name in (SOURCE_HEADER, CONSENT_HEADER) or name.startswith("__connect.errors.")

    if output is None:
        return None
    return output._replace(headers=[h for h in output.headers if not is_place(h[0])])


@pytest.mark.parametrize("path", FILES, ids=name_of)
async def test_the_broker_comes_to_what_memory_comes_to(
    shared_kafka: EmbeddedKafka, path: Path
) -> None:
    config, policy = settings_of(path)
    config = msgspec.structs.replace(config, kafka=servers(shared_kafka))
    in_memory = [replayed for _, replayed in replay_in_memory(config, policy, [path])]
    on_kafka = await rehearse(config, policy, path)
    assert list(map(comparable, on_kafka)) == list(map(comparable, in_memory))
    assert all(replayed.matches for replayed in on_kafka)


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


POST = {"topic": "content-events", "key": "m1", "payload": None}


async def test_what_memory_comes_to_is_expected_on_the_broker(
    shared_kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    file = write(tmp_path / "f.jsonl", POST, {**POST, "expect": "quarantine"}, {**POST, "key": "x"})
    wrong = write(tmp_path / "wrong.jsonl", {**POST, "expect": "forward"})
    config, policy = Config(kafka=servers(shared_kafka)), load_policy("opt-in")
    found = [*await rehearse(config, policy, file), *await rehearse(config, policy, wrong)]
    tombstone = "quarantine:tombstone"
    assert [each.expect for each in found] == [tombstone, tombstone, tombstone, "forward"]
    assert [each.matches for each in found] == [True, True, True, False]


async def test_nothing_is_left_on_the_broker(
    shared_kafka: EmbeddedKafka, probe: Probe, tmp_path: Path
) -> None:
    config, policy = Config(kafka=servers(shared_kafka)), load_policy("opt-in")
    await rehearse(config, policy, write(tmp_path / "f.jsonl", POST))
    # A topic that is being deleted may be listed for a moment.
    await until(lambda: are_gone(probe), "the topics of the replay are gone")


async def of_replays(probe: Probe) -> list[str]:
    return [name for name in await probe.admin.list_topics() if name.startswith(PREFIX)]


async def are_gone(probe: Probe) -> bool:
    return not await of_replays(probe)


async def test_nothing_is_left_where_the_replay_fails(
    shared_kafka: EmbeddedKafka, probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, policy = Config(kafka=servers(shared_kafka)), load_policy("opt-in")
    monkeypatch.setattr(rehearsal, "DECIDED_SECONDS_MAX", 0.0)
    with pytest.raises(ConsentgateError, match="line 1: the worker has not decided within 0 s"):
        await rehearse(config, policy, write(tmp_path / "f.jsonl", POST))
    await until(lambda: are_gone(probe), "the topics of the replay are gone")


async def test_a_topic_that_never_was_is_not_left(
    shared_kafka: EmbeddedKafka,
) -> None:
    async with connected(kafka_settings(servers(shared_kafka)), DEADLINE_SECONDS) as cluster:
        assert await cluster.delete([f"{PREFIX}never-was"]) == []


async def test_a_worker_that_ends_ends_the_replay(
    shared_kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    config, policy = Config(kafka=servers(shared_kafka)), load_policy("opt-in")
    config = msgspec.structs.replace(config, keys=KeysConfig(signing=str(tmp_path / "nowhere.pem")))
    with pytest.raises(ConfigError, match="nowhere"):
        await rehearse(config, policy, write(tmp_path / "f.jsonl", POST))


@pytest.mark.parametrize("option", ["--kafka", "--configured-kafka"])
async def test_the_command_runs_on_an_embedded_kafka_or_on_the_configured_one(
    shared_kafka: EmbeddedKafka, tmp_path: Path, option: str
) -> None:
    config = tmp_path / "consentgate.yaml"
    config.write_text(yaml.safe_dump({"kafka": servers(shared_kafka), "policy": "opt-in"}))
    file = write(tmp_path / "f.jsonl", {**POST, "expect": "quarantine"}, {**POST, "key": None})
    command = ("-m", "consentgate", "replay", "-c", str(config), option, "--format", "json")
    exit_code, out, errors = await run_python(*command, str(file))
    assert exit_code == 0, errors
    outcome = {"outcome": "quarantine", "reason": "tombstone", "record": None}
    *lines, summary = map(json.loads, out.splitlines())
    assert lines == [{"line": 1, **outcome}, {"line": 2, **outcome}]
    assert summary["summary"]["quarantine"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_replay_leaves_nothing(
    shared_kafka: EmbeddedKafka, probe: Probe, tmp_path: Path, number: signal.Signals
) -> None:
    config = tmp_path / "consentgate.yaml"
    config.write_text(yaml.safe_dump({"kafka": servers(shared_kafka), "policy": "opt-in"}))
    consent = {"topic": "consent-state", "key": "m1", "payload": None}
    file = write(tmp_path / "f.jsonl", *[consent, POST] * 5_000)
    command = ("-m", "consentgate", "replay", "-c", str(config), "--configured-kafka", str(file))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )

    async def is_under_way() -> bool:
        content = [topic for topic in await of_replays(probe) if topic.endswith("-content")]
        return bool(content) and (await probe.ends(content[0], 1)).high[0] > 2

    try:
        await until(is_under_way, "the replay is under way")
        process.send_signal(number)
        async with asyncio.timeout(DEADLINE_SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == EXIT_INTERRUPTED, output
    await until(lambda: are_gone(probe), "the topics of the replay are gone")
