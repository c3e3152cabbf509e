"""Answers of a report application about three days in which the United Kingdom was suspended."""

import hashlib
import math
import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any

HOUR_MS = 3_600_000
START_MS = int(datetime(2024, 9, 18, 12, tzinfo=UTC).timestamp() * 1000)
SUSPENDED_MS = int(datetime(2024, 9, 20, tzinfo=UTC).timestamp() * 1000)
HOURS = 72
POLICY = "linkedin@31529b625a40"

_PARTITIONS = 3
_SHARES = {"*": 520, "GB": 210, "EEA": 300, "unknown": 14}


def answers(
    jurisdiction: str = "GB", policy: str = POLICY
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Totals and windows; `jurisdiction` is the one that is suspended."""
    chance = random.Random(7)
    windows = [_window(hour, jurisdiction, policy, chance) for hour in range(HOURS)]
    outcomes: Counter[tuple[str, ...]] = Counter()
    for window in windows:
        for each in window["outcomes"]:
            key = (each["jurisdiction"], each["reason"], each["verdict"], each["policy"])
            outcomes[key] += each["count"]
    by_verdict: Counter[str] = Counter()
    for key, count in outcomes.items():
        by_verdict[key[2]] += count
    through = [_position(partition) for partition in range(_PARTITIONS)]
    retractions_through = [{"partition": n, "offset": 4_260 + n} for n in range(_PARTITIONS)]
    name, _, digits = policy.rpartition("@")
    totals = {
        "generated_at_ms": START_MS + HOURS * HOUR_MS + 4_000,
        "through": through,
        "retractions_through": retractions_through,
        "counting": "ok",
        "totals": {
            "in": by_verdict.total(),
            "forwarded": by_verdict["forward"],
            "withheld": by_verdict["withhold"],
            "quarantined": by_verdict["quarantine"],
        },
        "outcomes": [_outcome(*key, count=count) for key, count in outcomes.items()],
        "withdrawals": {
            "count": sum(each["withdrawals"]["count"] for each in windows),
            "effect_ms": {"p50": 412, "p95": 1_350, "max": 4_200},
            "retracted_records": sum(each["withdrawals"]["retracted_records"] for each in windows),
        },
        "chain": {"state": "verified", "entries": 48_213, "problems": []},
        "policies": [
            {
                "hash": digits,
                "name": name,
                "first_seen_ms": START_MS,
                "timeline": [
                    {
                        "at_ms": SUSPENDED_MS,
                        "jurisdiction": jurisdiction,
                        "label": jurisdiction,
                        "basis_before": "opt-out",
                        "basis_after": "suspended",
                    }
                ],
            }
        ],
    }
    return totals, {
        "size_ms": HOUR_MS,
        "through": through,
        "retractions_through": retractions_through,
        "windows": windows,
    }


def _outcome(
    jurisdiction: str, reason: str, verdict: str, policy: str, *, count: int
) -> dict[str, Any]:
    return {
        "jurisdiction": jurisdiction,
        "reason": reason,
        "verdict": verdict,
        "policy": policy,
        "count": count,
    }


def _window(hour: int, suspended: str, policy: str, chance: random.Random) -> dict[str, Any]:
    start_ms = START_MS + hour * HOUR_MS
    # Fewer at night than by day.
    of_day = 1 + 0.55 * math.sin((hour - 3) * math.tau / 24)
    outcomes = []
    for label, share in _SHARES.items():
        name = suspended if label == "GB" else label
        number = round(share * of_day * chance.uniform(0.92, 1.08))
        off = label == "EEA" or (label == "GB" and start_ms >= SUSPENDED_MS)
        for reason, verdict, part in _parts(label, off):
            count = round(number * part)
            if count:
                outcomes.append(_outcome(name, reason, verdict, policy, count=count))
    number = round(6 * of_day * chance.uniform(0.5, 1.5)) + (34 if hour in (37, 38) else 0)
    return {
        "start_ms": start_ms,
        "outcomes": outcomes,
        "withdrawals": {
            "count": number,
            "effect_ms": {
                "p50": chance.randint(320, 560),
                "p95": chance.randint(900, 1_500),
                "max": 4_200 if hour == 38 else chance.randint(1_500, 2_100),
            },
            "retracted_records": number,
        },
    }


def _parts(label: str, off: bool) -> list[tuple[str, str, float]]:
    if label == "unknown":
        return [("no-consent-record", "withhold", 0.6), ("undecodable", "quarantine", 0.4)]
    if off:
        return [("jurisdiction-suspended", "withhold", 1.0)]
    return [
        ("not-opted-out", "forward", 0.83),
        ("opted-out", "withhold", 0.11),
        ("withdrawn", "withhold", 0.04),
        ("objected", "withhold", 0.02),
    ]


def _position(partition: int) -> dict[str, Any]:
    return {
        "partition": partition,
        "ledger_offset": 31_900 + 17 * partition,
        "ledger_time_ms": START_MS + HOURS * HOUR_MS - 700 * (partition + 1),
        "hash": hashlib.sha256(str(partition).encode()).hexdigest(),
    }
