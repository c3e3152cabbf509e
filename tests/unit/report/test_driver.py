"""The tables: what the changelog says, unless more was counted already."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from consentgate.report.driver import CountedStore
from consentgate.report.figures import Counted, Key


def event(at: int | None, partition: int = 3) -> Any:
    value = None if at is None else msgspec.json.encode(Counted(at))
    key = Key(partition).encode()
    return SimpleNamespace(message=SimpleNamespace(key=key, value=value, partition=partition))


@pytest.fixture
def store() -> CountedStore:
    return CountedStore("memory://", SimpleNamespace(), SimpleNamespace(name="ledger"))


def apply(store: CountedStore, *events: Any) -> None:
    store.apply_changelog_batch(events, lambda key: key, lambda value: value)


def test_what_has_counted_less_does_not_replace_what_has_counted_more(store: CountedStore) -> None:
    # Checked: figures would be lost that a worker had written late, long after others went on.
    apply(store, event(5), event(9), event(7))
    assert store[Key(3).encode()] == event(9).message.value
    apply(store, event(9), event(10))
    assert store[Key(3).encode()] == event(10).message.value


def test_what_was_deleted_is_gone(store: CountedStore) -> None:
    apply(store, event(5), event(None))
    assert Key(3).encode() not in store
    apply(store, event(1))
    assert store[Key(3).encode()] == event(1).message.value


async def test_what_belongs_to_others_now_is_forgotten(store: CountedStore) -> None:
    apply(store, event(5), event(5, partition=1))
    await store.on_recovery_completed({("ledger-changelog", 3)}, set())
    assert list(store) == [Key(3).encode()]
