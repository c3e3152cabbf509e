"""What must be true of the topics when a simulated world has come to its end.

Written against the logs alone; it shares the wording of records with the product, and no logic.
"""

import base64
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from world import SUSPENDED_AT_MS, World


def violations(world: World) -> Iterator[str]:
    """Everything that is wrong."""
    for partition in range(world.partitions):
        yield from _chain(world, partition)
        yield from _outcomes(world, partition)
        yield from _forwards(world, partition)
        yield from _retractions(world, partition)


def _chain(world: World, partition: int) -> Iterator[str]:
    next_offset, previous, frontier = 0, "0" * 64, {}
    for entry in world.broker.ledger(partition):
        if entry.source.first != next_offset or entry.previous != previous:
            yield f"partition {partition}: the chain breaks at {entry.source.first}"
        if any(entry.consent[p] < offset for p, offset in frontier.items()):
            yield f"partition {partition}: the frontier goes back"
        next_offset, previous = entry.source.last + 1, entry.hash
        frontier = entry.consent


def _outcomes(world: World, partition: int) -> Iterator[str]:
    """in = forwarded + withheld + quarantined, each once, and the outputs say the same."""
    decided: Counter[int] = Counter()
    forwarded: set[int] = set()
    quarantined: set[int] = set()
    for offset, reason, _ in _decisions(world, partition):
        decided[offset] += 1
        if reason in ("opted-in", "not-opted-out"):
            forwarded.add(offset)
        if reason == "undecodable":
            quarantined.add(offset)
    offsets = Counter(record.offset for record in world.broker.content[partition].committed())
    if decided != offsets:
        yield f"partition {partition}: decided {decided - offsets}, missed {offsets - decided}"
    for topic, wanted, header in (
        ("training", forwarded, "consentgate.source"),
        ("quarantine", quarantined, "__connect.errors.offset"),
    ):
        found = Counter(_offset(output, header) for output in _outputs(world, partition, topic))
        if found != Counter(wanted):
            yield f"partition {partition}: {topic} holds {found}, not {wanted}"


def _forwards(world: World, partition: int) -> Iterator[str]:
    """Nobody's record is forwarded whom a covered record, or the rule, forbids."""
    keys = {record.offset: record.key for record in world.broker.content[partition].committed()}
    for offset, reason, entry in _decisions(world, partition):
        ends = world.consent_ends[partition, offset]
        if any(frontier < ends[int(name)] for name, frontier in entry.consent.items()):
            yield f"content-{partition}@{offset} was decided before older consent was seen"
        if reason in ("opted-in", "not-opted-out"):
            state = _state(world, keys[offset], entry.consent)
            if not _permits(state, entry.decided_at):
                yield f"content-{partition}@{offset} was forwarded without permission"


def _retractions(world: World, partition: int) -> Iterator[str]:
    """Every covered change beyond the baseline that leaves somebody ineligible is retracted."""
    ledger = world.broker.ledger(partition)
    found = {
        json.loads(output.value or b"{}")["consent"]: json.loads(output.value or b"{}")
        for output in _outputs(world, partition, "retractions")
    }
    for before, entry in itertools.pairwise(ledger):
        for name, frontier in entry.consent.items():
            for record in world.broker.consent[int(name)].committed(before.consent[name], frontier):
                state = None if record.value is None else json.loads(record.value)
                retraction = found.get(f"consent-{name}@{record.offset}")
                if _permits(state, entry.decided_at):
                    continue
                if retraction is None:
                    yield f"partition {partition}: consent-{name}@{record.offset} is not retracted"
                elif retraction["before"] != f"content-{partition}@{entry.source.first}":
                    yield f"partition {partition}: wrong place in {retraction}"


def _decisions(world: World, partition: int) -> Iterator[tuple[int, str, Any]]:
    for entry in world.broker.ledger(partition):
        if entry.outcomes.codes:
            codes = zlib.decompress(base64.b64decode(entry.outcomes.codes))
            for offset, code in enumerate(codes, start=entry.source.first):
                if code != 255:
                    yield offset, entry.outcomes.reasons[code], entry


def _outputs(world: World, partition: int, topic: str) -> Iterator[Any]:
    return iter(world.broker.outputs[partition][topic].committed())


def _offset(output: Any, header: str) -> int:
    return int(dict(output.headers)[header].rpartition(b"@")[2])


def _state(world: World, key: bytes | None, frontier: dict[str, int]) -> Any:
    state = None
    for name, offset in frontier.items():
        for record in world.broker.consent[int(name)].committed(0, offset):
            if record.key == key:
                state = None if record.value is None else json.loads(record.value)
    return state


def _permits(state: Any, now_ms: int) -> bool:
    if state is None:
        return False
    choice = state["choices"]["ai-training"]["choice"]
    if state["jurisdiction"] == "GB":
        return bool(choice == "granted") and now_ms < SUSPENDED_AT_MS
    return choice not in ("withdrawn", "objected", "denied")
