"""Bad input is set aside, each kind for its reason, and what stands next to it goes on."""

import gzip
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka.record.util import calc_crc32c

import checker
from checker import Kept
from harness import (
    SPOILT_NAME,
    Sent,
    Site,
    SiteFactory,
    consent,
    metric,
    post,
    spoil_header_names,
    working,
)

SUBJECT = "anna"

FAR_FUTURE_MS = 10 * 365 * 86_400_000
VALUE_BYTES_MAX = 900_000


def raw(value: bytes | None, key: bytes | None = SUBJECT.encode(), **parts: Any) -> Sent:
    return Sent(key, value, **parts)


def deep(levels: int) -> bytes:
    """A post whose body nests this deep, itself included."""
    nested: Any = "x"
    for _ in range(levels - 1):
        nested = [nested]
    return post(SUBJECT, "deep", body=nested).value or b""


def good() -> Sent:
    return post(SUBJECT, "good")


def value_of(**fields: Any) -> bytes:
    return post(SUBJECT, "bad", **fields).value or b""


def spoil_and_compress(data: bytearray) -> None:
    """The same in a compressed batch."""
    spoil_header_names(data)
    data[61:] = gzip.compress(data[61:])
    data[8:12] = (len(data) - 12).to_bytes(4, "big")
    data[22] |= 1  # The codec, in the attributes.
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")


def headers_of(record: Kept) -> dict[str, bytes | None]:
    return dict(record.headers or ())


BAD = {
    "tombstone": [raw(None), Sent(None, None)],
    "subject-mismatch": [raw(value_of(), key=None), raw(value_of(subject="ben"))],
    "undecodable": [
        raw(b"{"),
        raw(b""),
        raw(value_of().replace(b"What", b"\xff\xfe")),
        raw(b"\xef\xbb\xbf" + value_of()),
        raw(value_of(body={"score": float("nan")})),
        raw(deep(65)),
        raw(b"\x00\x00\x00\x00\x07" + value_of()),
    ],
    "missing-field": [
        raw(b"{}"),
        raw(b"[]"),
        raw(value_of(id="")),
        raw(value_of(id=7)),
        raw(value_of(visibility=None)),
        raw(value_of(created_at="2024-09-20T10:00:00")),
    ],
    "too-large": [
        raw(value_of(body={"text": "x" * VALUE_BYTES_MAX})),
        raw(value_of(), headers=[("h", b"x" * 70_000)]),
    ],
    "bad-timestamp": [raw(value_of(), timestamp_ms=int(time.time() * 1000) + FAR_FUTURE_MS)],
}


async def test_each_kind_of_bad_input_is_quarantined(make_site: SiteFactory) -> None:
    # Checked, one by one: fails where the limit of size, of depth or of the future is not looked
    # at, where text is not checked to be UTF-8, where key and subject are not compared, and where
    # an oversized value is copied.
    site = await make_site(
        "quarantine",
        topics={"content": {"message.timestamp.after.max.ms": str(2 * FAR_FUTURE_MS)}},
    )
    await site.feed.many(site.consent, [consent(SUBJECT), consent("ben", "denied")])
    expected = {}
    for reason, records in BAD.items():
        for record in records:
            together = [good(), record, good()]
            size = len(record.value or b"") + sum(len(v or b"") for _, v in record.headers)
            if size < 100_000:
                first = await site.feed.batch(site.content, together)
            else:
                first, *_ = [await site.feed.one(site.content, sent) for sent in together]
            expected[first + 1] = (reason, record)
    # Of somebody who may not be used nothing is copied, not even what is broken.
    await site.feed.many(site.content, [raw(b"{", key=b"ben")], 0)

    async with working(site):
        await site.decided()

    seen = await site.check()
    assert {o: seen.reason_of(0, o) for o in expected} == {o: r for o, (r, _) in expected.items()}
    assert seen.reasons()["opted-in"] == 2 * len(expected)
    assert seen.reasons()["opted-out"] == 1
    quarantined = {
        int(headers_of(r)["__connect.errors.offset"] or 0): r for r in seen.quarantine[0]
    }
    assert quarantined.keys() == expected.keys()
    for offset, (reason, sent) in expected.items():
        check_quarantined(site, quarantined[offset], reason, sent)


def check_quarantined(site: Site, record: Kept, reason: str, sent: Sent) -> None:
    headers = headers_of(record)
    assert headers["__connect.errors.topic"] == site.content.encode()
    assert headers["__connect.errors.partition"] == b"0"
    assert headers["__connect.errors.exception.class.name"] == reason.encode()
    assert headers["__connect.errors.exception.message"]
    assert headers["__connect.errors.stage"] in (b"DECODE", b"DECIDE")
    assert record.key == sent.key
    if reason not in ("too-large", "bad-timestamp"):
        assert record.value == sent.value
        return
    value = sent.value or b""
    assert record.value is None
    assert headers["consentgate.size"] == str(len(value)).encode()
    assert headers["consentgate.sha256"] == hashlib.sha256(value).hexdigest().encode()


@pytest.mark.parametrize("spoil", [spoil_header_names, spoil_and_compress])
async def test_content_that_the_client_cannot_read_is_set_aside(
    make_site: SiteFactory, spoil: Callable[[bytearray], None]
) -> None:
    # Checked: the worker hangs where `ContentSource.fetch` knows no way around, and the good
    # neighbours are lost where it steps over the offset only.
    site = await make_site("unreadable")
    await site.feed.many(site.consent, [consent(SUBJECT)])
    marked = Sent(SUBJECT.encode(), value_of(), headers=[(SPOILT_NAME, b"x")])
    batch = [good(), marked, good(), marked, good()]
    now_ms = int(time.time() * 1000)
    batch = [sent._replace(timestamp_ms=now_ms) for sent in batch]
    await site.feed.many(site.content, [good()])
    first = await site.feed.batch(site.content, batch, patch=spoil)
    await site.feed.many(site.content, [good()])

    async with working(site):
        await site.decided()

    supplied = [
        Kept(0, offset, now_ms, sent.key, sent.value, None if sent.headers else ())
        for offset, sent in enumerate(batch, first)
    ]
    seen = await site.check({site.content: supplied})
    assert seen.reasons() == {"opted-in": 5, "undecodable": 2}
    assert [(r.key, r.value) for r in seen.quarantine[0]] == [(None, None)] * 2


async def test_consent_that_the_client_cannot_read_stops_nobody_else(
    make_site: SiteFactory,
) -> None:
    # Checked: forwards the post of the one whose record is unreadable where `ConsentView` leaves
    # such records out, and decides nothing where it knows no way around them.
    site = await make_site("consent-unreadable")
    records = [
        consent("before"),
        consent(SUBJECT)._replace(headers=[(SPOILT_NAME, b"x")]),
        consent("after"),
    ]
    await site.feed.many(site.consent, [consent(SUBJECT)])
    everybody = ("before", SUBJECT, "after")
    async with working(site) as running:
        await running.ready()
        first = await site.feed.batch(site.consent, records, patch=spoil_header_names)
        await site.feed.many(site.content, [post(person, "1") for person in everybody])
        await site.decided()
        _, page = await running.get("/metrics")
        assert 'consentgate_consent_unreadable_total{cause="headers"}' in page
        # A readable record makes it good again.
        await site.feed.many(site.consent, [consent(SUBJECT)])
        await site.feed.many(site.content, [post(person, "2") for person in everybody])
        await site.decided()

    supplied = [
        Kept(0, offset, 0, sent.key, sent.value, None if sent.headers else ())
        for offset, sent in enumerate(records, first)
    ]
    seen = await site.check({site.consent: supplied})
    assert seen.reasons() == {"opted-in": 5, "consent-unreadable": 1}


async def test_unreadable_json_in_consent_denies_its_subject_alone(make_site: SiteFactory) -> None:
    # Checked: gives another reason where the decoder takes such a record for a tombstone.
    site = await make_site("consent-json")
    state = json.loads(consent("x").value or b"")
    broken = {
        "not-json": b"{",
        "number": b"7",
        "twice": b'{"subject": "twice", "subject": "twice", "jurisdiction": "US", "choices": {}}',
        "other": json.dumps(state | {"subject": "somebody-else"}).encode(),
        "choice": json.dumps(
            state | {"subject": "choice", "choices": {checker.PURPOSE: {"choice": "maybe"}}}
        ).encode(),
        "latin-1": b'{"subject": "latin-1", "jurisdiction": "\xff"}',
    }
    await site.feed.many(site.consent, [consent(subject) for subject in broken])
    await site.feed.many(site.consent, [Sent(s.encode(), value) for s, value in broken.items()])
    await site.feed.many(site.consent, [consent("good")])
    await site.feed.many(site.content, [post(subject, "1") for subject in (*broken, "good")])

    async with working(site) as running:
        await site.decided()
        _, page = await running.get("/metrics")

    assert metric(page, "consentgate_consent_unreadable_total") == len(broken)
    seen = await site.check()
    assert seen.reasons() == {"opted-in": 1, "consent-unreadable": len(broken)}
