"""The life of one input partition, driven by hand: what it asks for, and in which order."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.decide import Limits
from consentgate.core.decode import ContentFields, content_decoder
from consentgate.core.gate import Batch, BatchOutcome, Gate
from consentgate.core.ledger import GENESIS, Chain, read_codes, read_entry
from consentgate.core.model import Choice, ConsentState, Reason, consent_state
from consentgate.core.partition import (
    BACKOFF_MS_MAX,
    BACKOFF_MS_MIN,
    BATCH_OFFSETS_MAX,
    BATCH_RECORDS_MAX,
    CHANGES_MAX,
    IDLE_MS,
    URGENT_RECORDS_MAX,
    Abort,
    Aborted,
    AwaitFrontier,
    Changes,
    Commit,
    Committed,
    Event,
    Fence,
    Fetch,
    Moment,
    Partition,
    Pause,
    Phase,
    Position,
    ReadChanges,
    ReadClock,
    ReadHighWatermarks,
    ReadPosition,
    Ready,
    Recycled,
    Retire,
    Revoked,
    Seek,
    Send,
    SendOffset,
    Stalled,
    Step,
    StepFailed,
    Transform,
    WatchConsent,
)
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.core.transform import Transformer

NOW_MS = 1_726_826_400_000
FIRST = 100
BEHIND = "the consent view is behind"
SUBJECTS = (b"m0", b"m1", b"m2", b"m3")
GRANTED = consent_state("GB", True, Choice.GRANTED)
WITHDRAWN = consent_state("GB", True, Choice.WITHDRAWN)
PAUSE_MS = NOW_MS + 3_600_000
POLICY = Policy(
    "p",
    "ai-training",
    {},
    (Rule(("GB",), Basis.OPT_OUT, until_ms=PAUSE_MS), Rule(("*",), Basis.OPT_OUT)),
)
REDACTING = replace(POLICY, rules=tuple(replace(r, redact=("email",)) for r in POLICY.rules))
S = TypeVar("S", bound=Step[Any])


@dataclass(frozen=True)
class Content:
    """A consumed record."""

    offset: int
    key: bytes
    value: bytes
    timestamp: int = NOW_MS
    headers: tuple[tuple[str, bytes | None], ...] = ()


def batch(number: int = 4, first: int = FIRST) -> Batch:
    """Records of as many people, one after another."""
    records = []
    for offset in range(first, first + number):
        subject = SUBJECTS[offset % len(SUBJECTS)]
        known = {"id": "e", "subject": subject.decode(), "kind": "k", "visibility": "v"}
        records.append(Content(offset, subject, json.dumps({**known, "created_at": 0}).encode()))
    return Batch(first, first + number, records)


@dataclass
class Hand:
    """Performs the steps of a partition's life in a world of a few variables, without I/O.

    The world keeps what a cluster would keep: content, consent, and what was committed last.
    """

    frontier: dict[int, int] | None = field(default_factory=lambda: {3: 50})
    """The last committed one."""
    max_exposure_ms: int = 5_000
    policy: Policy = POLICY

    def __post_init__(self) -> None:
        self.table = ConsentTable([3])
        for subject in SUBJECTS:
            self.table.apply(3, subject, GRANTED)
        self.table.advance(3, 50)
        chain = Chain("group", "content-events", 3)
        decode = content_decoder(ContentFields(), 64)
        transform = Transformer(redact=lambda texts, *_: texts)
        known = (chain, "consent-state", self.table, self.policy, decode, Limits())
        gate = Gate(*known, key_is_subject=True, transformer=transform)
        self.events: list[Event] = []
        self.partition = Partition(gate, self.events.append, self.max_exposure_ms)
        self.position = Position(FIRST, GENESIS, self.frontier)
        self.content: list[Content] = []
        self.content_end = FIRST
        self.fetch_from: int | None = None
        self.history: list[ConsentChange] = []
        self.sent: BatchOutcome | None = None
        self.kept: list[BatchOutcome] = []
        """What the cluster has committed, whether or not the partition knows."""
        self.now_ms = NOW_MS
        self.answers: dict[type[Step[Any]], Callable[[Any], Any]] = {}
        """What is answered other than the world would."""
        self.world: dict[type[Step[Any]], Callable[[Any], Any]] = {
            ReadClock: self._read_clock,
            ReadPosition: lambda _: self.position,
            ReadHighWatermarks: lambda _: dict(self.table.frontier),
            AwaitFrontier: lambda step: None if self.table.covers(step.high_watermarks) else BEHIND,
            WatchConsent: lambda _: dict(self.table.frontier),
            ReadChanges: self._read_changes,
            Seek: self._seek,
            Fetch: self._fetch,
            Transform: lambda step: [transform.value(work) for work in step.works],
            Send: self._send,
            Commit: self._commit,
        }
        self.done: list[Step[Any]] = []
        self.life = self.partition.life()
        self.step: Step[Any] | None = next(self.life)

    def perform(self) -> None:
        """Perform the step that is asked for."""
        step = self._take_step()
        nothing: Callable[[Any], Any] = lambda _: None  # noqa: E731
        answer = self.answers.get(type(step)) or self.world.get(type(step), nothing)
        reply = answer(step)
        self._go_on(lambda: self.life.send(reply))

    def throw(self, problem: Exception) -> None:
        """Let the step that is asked for not succeed."""
        self._take_step()
        self._go_on(lambda: self.life.throw(problem))

    def until(self, *kinds: type[S]) -> S:
        """Perform steps until one of these kinds is asked for, and return that one."""
        for _ in range(200):
            assert self.step is not None, "the life has ended"
            if isinstance(self.step, kinds):
                return self.step
            self.perform()
        raise AssertionError(f"{kinds} was never asked for")

    def past(self, *kinds: type[S]) -> S:
        """Perform steps up to the next one of these kinds, and that one."""
        step = self.until(*kinds)
        self.perform()
        return step

    def to_the_end(self) -> list[str]:
        """Perform all steps that are left; their names."""
        start = len(self.done)
        while self.step is not None:
            assert len(self.done) < start + 200, "the life does not end"
            self.perform()
        return names(self.done[start:])

    def publish(self, batch: Batch) -> None:
        """More content is there."""
        self.content += batch.records  # type: ignore[arg-type]
        self.content_end = batch.next_offset

    def changes(self, subject: bytes, state: ConsentState | None, *, seen: bool = True) -> None:
        """A consent record of the subject is appended and applied."""
        offset = self.table.frontier[3]
        self.table.apply(3, subject, state)
        self.table.advance(3, offset + 1)
        after = self.table.holdings.get(subject)
        change = ConsentChange(3, offset, NOW_MS, subject, after)
        self.history.append(change)
        if seen:
            self.partition.consent_changed(change)

    def committed(self) -> list[BatchOutcome]:
        """The outcomes of all transactions that were reported as committed."""
        return [event.outcome for event in self.events if isinstance(event, Committed)]

    def whys(self, kind: type[Aborted] | type[Stalled] | type[Recycled]) -> list[str]:
        """The explanations of all events of a kind."""
        return [event.why for event in self.events if isinstance(event, kind)]

    def _take_step(self) -> Step[Any]:
        assert self.step is not None, "the life has ended"
        self.done.append(self.step)
        return self.step

    def _go_on(self, move: Callable[[], Step[Any]]) -> None:
        try:
            self.step = move()
        except StopIteration:
            self.step = None

    def _read_clock(self, step: ReadClock) -> Moment:
        self.now_ms += 1
        return Moment(self.now_ms, self.now_ms - NOW_MS)

    def _read_changes(self, step: ReadChanges) -> Changes:
        """One change at a time, as if no more could be read at once."""
        since = step.since[3]
        found = [change for change in self.history if since <= change.offset][:1]
        return Changes(found, {3: found[0].offset + 1} if found else dict(step.until))

    def _seek(self, step: Seek) -> None:
        self.fetch_from = step.offset

    def _fetch(self, step: Fetch) -> Batch:
        assert self.fetch_from == step.first, "records were left out or are fetched again"
        there = [each for each in self.content if each.offset >= step.first]
        some = there[: step.records_max]
        self.fetch_from = self.content_end if some == there else some[-1].offset + 1
        return Batch(step.first, self.fetch_from, some)

    def _send(self, step: Send) -> None:
        self.sent = step.outcome

    def _commit(self, step: Commit) -> None:
        assert self.sent is not None, "nothing was sent"
        self.kept.append(self.sent)
        outcome, self.sent = self.sent, None
        self.position = Position(
            outcome.batch.next_offset, outcome.entry.hash, dict(outcome.frontier)
        )


def names(steps: list[Step[Any]]) -> list[str]:
    """What was asked for, without the readings of the clock."""
    return [type(step).__name__ for step in steps if not isinstance(step, ReadClock)]


def taken_over(**settings: Any) -> Hand:
    """A partition that is ready, and asks for its first batch."""
    hand = Hand(**settings)
    hand.until(Fetch)
    hand.done.clear()
    return hand


def working(number: int = 4, **settings: Any) -> Hand:
    """A partition that is ready and about to get a batch of so many records."""
    hand = taken_over(**settings)
    hand.publish(batch(number))
    return hand


def withdrawing(hand: Hand, *subjects: bytes) -> Callable[[Step[Any]], Any]:
    """Somebody withdraws whenever the second of two barriers, the one before a commit, is passed.

    One person each time, until none is left.
    """
    left = list(subjects)
    count = 0

    def passed(step: Step[Any]) -> None:
        nonlocal count
        count += 1
        if count % 2 == 0 and left:
            hand.changes(left.pop(0), WITHDRAWN)

    return passed


def reasons(outcome: BatchOutcome) -> list[Reason | None]:
    return read_codes(read_entry(outcome.entry.value).outcomes)


TAKING_OVER = [
    "Fence",
    "ReadPosition",
    "ReadHighWatermarks",
    "AwaitFrontier",
    "WatchConsent",
    "Seek",
]
TRANSACTION = [
    "ReadHighWatermarks",
    "AwaitFrontier",
    "Send",
    "SendOffset",
    "ReadHighWatermarks",
    "AwaitFrontier",
    "Commit",
]
TURN = ["Fetch", *TRANSACTION]


# Taking over.


def test_a_partition_is_fenced_before_its_position_is_read_and_fresh_before_it_fetches() -> None:
    hand = Hand()
    hand.until(Fetch)
    assert names(hand.done) == TAKING_OVER
    assert hand.done[-1] == Seek(FIRST)
    assert hand.events == [Ready(hand.position)]
    assert hand.partition.phase is Phase.READY


def test_a_partition_is_not_ready_before_it_has_been_taken_over() -> None:
    hand = Hand()
    phases = []
    while not isinstance(hand.step, Fetch):
        phases.append(hand.partition.phase)
        hand.perform()
    assert Phase.READY not in phases
    assert list(dict.fromkeys(phases)) == [Phase.FENCING, Phase.BOOTSTRAPPING]


def test_a_table_that_is_still_read_is_awaited_without_a_word_of_stalling() -> None:
    hand = Hand()
    hand.answers[ReadHighWatermarks] = lambda _: {3: 51}
    for _ in range(3):
        assert hand.past(AwaitFrontier) == AwaitFrontier({3: 51})
        assert hand.partition.phase is Phase.BOOTSTRAPPING
    del hand.answers[ReadHighWatermarks]
    hand.until(Fetch)
    assert hand.events == [Ready(hand.position)]


def test_the_barrier_asks_for_what_was_read_anew_each_time() -> None:
    hand = Hand()
    high = iter([{3: 60}, {3: 70}, {3: 50}])
    hand.answers[ReadHighWatermarks] = lambda _: next(high)
    hand.until(WatchConsent)
    awaited = [step for step in hand.done if isinstance(step, AwaitFrontier)]
    assert awaited == [AwaitFrontier({3: 60}), AwaitFrontier({3: 70}), AwaitFrontier({3: 50})]


def test_the_first_start_takes_what_it_finds_as_its_baseline_and_retracts_nothing() -> None:
    hand = Hand(frontier=None)
    hand.table.apply(3, b"m0", WITHDRAWN)
    hand.past(Commit)
    assert "ReadChanges" not in names(hand.done)
    hand.until(Fetch)
    (outcome,) = hand.committed()
    assert (outcome.frontier, outcome.retractions) == ({3: 50}, [])


# Catching up with what changed while nobody watched.


def catching_up(*subjects: bytes, policy: Policy = POLICY) -> Hand:
    """These have withdrawn since the committed frontier."""
    hand = Hand(policy=policy)
    for subject in subjects:
        hand.changes(subject, WITHDRAWN, seen=False)
    return hand


def test_what_changed_while_nobody_watched_is_retracted_before_content_is_fetched() -> None:
    hand = catching_up(b"m0", b"m1")
    hand.until(Fetch)
    portion = ["ReadChanges", "Send", "SendOffset", "Commit"]
    assert names(hand.done) == [*TAKING_OVER[:-1], *portion, *portion, "Seek"]
    asked = [step for step in hand.done if isinstance(step, ReadChanges)]
    assert asked == [ReadChanges({3: 50}, {3: 52}), ReadChanges({3: 51}, {3: 52})]
    assert hand.partition.phase is Phase.READY
    assert isinstance(hand.events[-1], Ready)


def test_catching_up_advances_the_frontier_in_steps_without_content() -> None:
    hand = catching_up(b"m0", b"m1")
    hand.until(Fetch)
    entries = [read_entry(outcome.entry.value) for outcome in hand.committed()]
    assert [entry.consent for entry in entries] == [{"3": 51}, {"3": 52}]
    assert [(entry.source.first, entry.source.last) for entry in entries] == [(100, 99)] * 2
    assert [entry.previous for entry in entries] == [GENESIS, entries[0].hash]
    retracted = [[output.key for output in each.retractions] for each in hand.committed()]
    assert retracted == [[b"m0"], [b"m1"]]


def test_a_change_that_comes_while_catching_up_is_retracted_with_the_next_commit() -> None:
    hand = catching_up(b"m0")
    hand.until(Send)
    hand.changes(b"m2", WITHDRAWN)
    hand.past(Fetch)
    hand.until(Fetch)
    assert [[output.key for output in each.retractions] for each in hand.committed()] == [
        [b"m0"],
        [b"m2"],
    ]


def test_an_entry_of_another_scope_is_never_gone_on_from() -> None:
    for frontier in ({3: 50, 4: 0}, {4: 50}, {}):
        hand = Hand(frontier=frontier)
        for _ in range(3):
            hand.past(Retire)
        assert not {"Fetch", "Send", "ReadChanges"} & set(names(hand.done))
        assert "another scope" in hand.whys(Recycled)[-1]


def test_a_consent_topic_that_was_made_anew_is_never_taken_as_caught_up() -> None:
    hand = Hand(frontier={3: 51})
    for _ in range(3):
        hand.past(Retire)
    assert not {"Fetch", "Send", "ReadChanges"} & set(names(hand.done))
    assert "truncated or made anew" in hand.whys(Recycled)[-1]


# A turn.


def test_between_fetching_and_judging_and_again_before_the_commit_there_is_a_barrier() -> None:
    hand = working()
    hand.past(Commit)
    assert names(hand.done) == TURN
    hand.until(Fetch)
    (outcome,) = hand.committed()
    assert len(outcome.training) == 4


def test_a_batch_is_fetched_from_where_the_last_one_ended() -> None:
    hand = working(4)
    fetches = [hand.past(Fetch)]
    hand.publish(batch(2, FIRST + 4))
    fetches += [hand.past(Fetch), hand.until(Fetch)]
    assert [fetch.first for fetch in fetches] == [100, 104, 106]
    assert hand.partition.next_offset == 106


def test_the_entries_of_successive_batches_are_chained() -> None:
    hand = working(4)
    hand.past(Commit)
    hand.publish(batch(2, FIRST + 4))
    hand.past(Commit)
    hand.until(Fetch)
    first, second = (read_entry(outcome.entry.value) for outcome in hand.committed())
    assert (first.previous, second.previous) == (GENESIS, first.hash)
    assert (first.source.last + 1, second.source.first) == (104, 104)


def test_the_chain_goes_on_from_the_last_committed_entry() -> None:
    hand = Hand()
    hand.position = Position(FIRST, "ab" * 32, {3: 50})
    hand.publish(batch())
    hand.past(Commit)
    hand.until(Fetch)
    assert read_entry(hand.committed()[0].entry.value).previous == "ab" * 32


def test_a_withdrawal_that_the_barrier_brings_is_seen_by_the_batch() -> None:
    hand = working()
    hand.past(Fetch)
    hand.until(AwaitFrontier)
    hand.changes(b"m1", WITHDRAWN)
    outcome = hand.until(Send).outcome
    assert reasons(outcome).count(Reason.WITHDRAWN) == 1
    assert outcome.frontier == {3: 51}
    assert [output.key for output in outcome.retractions] == [b"m1"]


def test_what_is_committed_is_what_was_sent() -> None:
    hand = working()
    sent = hand.past(Send).outcome
    assert hand.past(SendOffset).outcome is sent
    hand.past(Commit)
    hand.until(Fetch)
    assert hand.committed() == [sent]


def test_a_committed_batch_is_reported_with_its_times() -> None:
    hand = working()
    hand.past(Send)
    hand.now_ms += 1_000
    hand.past(Commit)
    hand.until(Fetch)
    event = hand.events[-1]
    assert isinstance(event, Committed)
    moments = (event.fetched, event.fresh, event.judged, event.sent, event.committed)
    times = [moment.monotonic_ms for moment in moments]
    assert times == sorted(set(times))
    assert event.outcome.decided_at_ms == event.fresh.unix_ms
    # From the reading of the clock before the first barrier to the one before the commit.
    assert event.age_ms == event.sent.monotonic_ms - event.fetched.monotonic_ms - 1
    assert event.age_ms > 1_000


def test_idle_with_an_unchanged_frontier_commits_nothing() -> None:
    hand = taken_over()
    for _ in range(3):
        hand.past(Fetch)
    hand.until(Fetch)
    assert names(hand.done) == ["Fetch", "ReadHighWatermarks", "AwaitFrontier"] * 3
    assert hand.committed() == []


def test_idle_with_an_advanced_frontier_commits_an_entry_without_content() -> None:
    hand = taken_over()
    hand.past(Fetch)
    hand.changes(b"m1", WITHDRAWN)
    hand.past(Commit)
    hand.until(Fetch)
    (outcome,) = hand.committed()
    entry = read_entry(outcome.entry.value)
    assert (entry.source.first, entry.source.last, entry.consent) == (100, 99, {"3": 51})
    assert [output.key for output in outcome.retractions] == [b"m1"]
    assert hand.partition.next_offset == 100
    # And no more than one.
    hand.past(Fetch)
    hand.until(Fetch)
    assert len(hand.committed()) == 1


def test_after_a_take_over_an_advanced_frontier_is_not_kept_waiting() -> None:
    hand = taken_over()
    waits = [hand.past(Fetch).wait_ms for _ in range(3)]
    hand.throw(StepFailed("broken"))
    waits += [hand.past(Fetch).wait_ms for _ in range(2)]
    assert waits == [0, IDLE_MS, IDLE_MS, 0, IDLE_MS]
    # Nor is one that advances later kept waiting for a second.
    assert IDLE_MS < 1_000


def test_offsets_without_records_are_passed_over_and_accounted_for() -> None:
    hand = taken_over()
    hand.publish(Batch(FIRST, FIRST + 3, ()))
    hand.past(Commit)
    hand.until(Fetch)
    (outcome,) = hand.committed()
    assert reasons(outcome) == [None, None, None]
    assert hand.partition.next_offset == 103


def test_a_batch_over_too_many_offsets_is_cut() -> None:
    hand = taken_over()
    (inside,), (beyond,) = batch(1).records, batch(1, FIRST + BATCH_OFFSETS_MAX).records
    hand.publish(Batch(FIRST, FIRST + BATCH_OFFSETS_MAX + 1, [inside, beyond]))
    hand.past(Fetch)
    assert hand.step == Seek(FIRST + BATCH_OFFSETS_MAX)
    outcome = hand.until(Send).outcome
    assert list(outcome.batch.records) == [inside]
    assert len(reasons(outcome)) == BATCH_OFFSETS_MAX
    hand.past(Fetch)
    assert list(hand.until(Send).outcome.batch.records) == [beyond]


def test_a_batch_over_as_many_offsets_as_allowed_is_not_cut() -> None:
    hand = taken_over()
    hand.publish(Batch(FIRST, FIRST + BATCH_OFFSETS_MAX, batch(1).records))
    hand.past(Fetch)
    hand.until(Send)
    assert "Seek" not in names(hand.done)


def test_a_frontier_that_went_back_is_never_committed() -> None:
    hand = working()
    hand.past(Fetch)
    hand.table.reset()
    for subject in SUBJECTS:
        hand.table.apply(3, subject, GRANTED)
    hand.table.advance(3, 49)
    for _ in range(3):
        assert isinstance(hand.until(Send, Retire), Retire)
        hand.perform()
    assert "would go back from 50" in hand.whys(Recycled)[0]
    # Nor later, as long as it has not come back.
    hand.table.advance(3, 50)
    hand.past(Commit)
    hand.until(Fetch)
    assert [outcome.frontier for outcome in hand.kept] == [{3: 50}]


# Retractions: each change is retracted once, in the transaction that covers it.


def test_a_change_is_retracted_in_the_transaction_that_covers_it_and_in_no_other() -> None:
    hand = working(1)
    hand.until(Send)
    hand.changes(b"m3", WITHDRAWN)
    hand.past(Commit)
    for number in (1, 2):
        hand.publish(batch(1, FIRST + number))
        hand.past(Commit)
    hand.until(Fetch)
    retracted = [[output.key for output in each.retractions] for each in hand.committed()]
    assert retracted == [[], [b"m3"], []]
    assert [outcome.frontier for outcome in hand.committed()] == [{3: 50}, {3: 51}, {3: 51}]


def test_while_a_change_waits_for_its_commit_batches_are_small() -> None:
    hand = working(4)
    assert hand.until(Fetch).records_max == BATCH_RECORDS_MAX
    hand.past(Commit)
    hand.changes(b"m3", WITHDRAWN)
    assert hand.until(Fetch).records_max == URGENT_RECORDS_MAX
    hand.past(Commit)
    assert hand.until(Fetch).records_max == BATCH_RECORDS_MAX


def test_a_batch_is_cut_where_a_change_waits_and_nothing_of_it_is_left_out() -> None:
    total = URGENT_RECORDS_MAX + 3
    hand = working(total)
    hand.until(ReadHighWatermarks)
    hand.changes(b"m3", WITHDRAWN)
    hand.past(Commit)
    hand.past(Commit)
    hand.until(Fetch)
    accounted = [(o.batch.first, o.batch.next_offset) for o in hand.committed()]
    cut = FIRST + URGENT_RECORDS_MAX
    assert accounted == [(FIRST, cut), (cut, FIRST + total)]
    retracted = [[output.key for output in each.retractions] for each in hand.committed()]
    assert retracted == [[b"m3"], []]


def test_a_change_that_waits_for_a_commit_is_a_hurry_and_no_longer() -> None:
    hand = working(4)
    hand.past(Fetch)
    assert not hand.partition.hurries
    hand.changes(b"m3", WITHDRAWN)
    assert hand.partition.hurries
    hand.until(Commit)
    assert hand.partition.hurries
    hand.perform()
    hand.until(Fetch)
    assert not hand.partition.hurries


def test_nobody_hurries_who_has_no_content_or_cannot_go_on() -> None:
    hand = working(4)
    hand.past(Commit)
    hand.past(Fetch)
    hand.until(Fetch)
    hand.changes(b"m3", WITHDRAWN)
    assert not hand.partition.hurries  # It waits for content, which may take long.
    hand.publish(batch(4, FIRST + 4))
    hand.past(Fetch)
    assert hand.partition.hurries
    hand.throw(StepFailed("broken"))
    assert not hand.partition.hurries


def test_a_grant_is_no_retraction() -> None:
    hand = working()
    hand.changes(b"m1", GRANTED)
    assert hand.until(Send).outcome.retractions == []


def test_a_change_of_an_aborted_transaction_is_retracted_by_the_next_one() -> None:
    hand = working()
    hand.changes(b"m3", WITHDRAWN)
    hand.answers[AwaitFrontier] = withdrawing(hand, b"m1")
    first = hand.past(Send).outcome
    hand.past(Abort)
    second = hand.past(Send).outcome
    assert [output.key for output in first.retractions] == [b"m3"]
    assert [output.key for output in second.retractions] == [b"m3", b"m1"]


def test_after_a_failure_changes_are_read_again_from_the_committed_frontier() -> None:
    hand = working()
    hand.changes(b"m3", WITHDRAWN)
    hand.until(Commit)
    hand.throw(StepFailed("broken"))
    assert hand.until(ReadChanges) == ReadChanges({3: 50}, {3: 51})


def flooded(hand: Hand, number: int) -> None:
    """One change, and so many more that nothing becomes of."""
    hand.changes(b"m3", WITHDRAWN)
    for _ in range(number - 1):
        hand.partition.consent_changed(hand.history[0])


def test_as_many_changes_as_are_kept_are_covered_by_a_commit() -> None:
    hand = working()
    hand.past(Fetch)
    flooded(hand, CHANGES_MAX)
    assert len(hand.until(Send).outcome.retracted) == CHANGES_MAX
    assert isinstance(hand.until(Commit, Retire), Commit)


def test_a_flood_of_changes_at_the_first_start_is_outlived() -> None:
    hand = Hand(frontier=None)
    hand.until(Fetch)
    flooded(hand, 2 * CHANGES_MAX)
    hand.past(Retire)
    hand.past(Commit)
    hand.until(Fetch)
    assert hand.partition.phase is Phase.READY
    assert len(hand.whys(Recycled)) == 1


def test_a_flood_of_changes_takes_no_more_than_its_share_of_memory() -> None:
    hand = taken_over()
    flooded(hand, 2 * CHANGES_MAX)
    assert len(hand.partition._changes) == CHANGES_MAX + 1


@pytest.mark.parametrize("barrier", [1, 2])
def test_more_changes_than_are_kept_are_never_covered_by_a_commit(barrier: int) -> None:
    hand = working()
    hand.past(Fetch)
    for _ in range(barrier - 1):
        hand.past(AwaitFrontier)
    hand.until(AwaitFrontier)
    flooded(hand, CHANGES_MAX + 1)
    assert isinstance(hand.until(Commit, Retire), Retire)
    assert hand.until(ReadChanges) == ReadChanges({3: 50}, {3: 51})
    assert hand.whys(Recycled) == ["consent changes faster than transactions commit"]


# The last look before the commit.


def test_a_withdrawal_during_the_transaction_aborts_it_and_is_decided_anew() -> None:
    hand = working()
    hand.answers[AwaitFrontier] = withdrawing(hand, b"m1")
    hand.past(Commit)
    hand.until(Fetch)
    attempt = TRANSACTION[:-1]
    assert names(hand.done) == ["Fetch", *attempt, "Abort", *attempt, "Commit"]
    (outcome,) = hand.committed()
    assert reasons(outcome).count(Reason.WITHDRAWN) == 1
    assert b"m1" not in {output.key for output in outcome.training}
    assert len(hand.whys(Aborted)) == 1


def test_a_withdrawal_of_somebody_else_aborts_nothing() -> None:
    hand = working(1)
    hand.answers[AwaitFrontier] = withdrawing(hand, b"m3")
    hand.past(Commit)
    assert names(hand.done) == TURN


def test_a_rule_that_ends_during_the_transaction_aborts_it() -> None:
    hand = working()
    hand.now_ms = PAUSE_MS - 50
    hand.past(Send)
    hand.now_ms = PAUSE_MS
    hand.past(Abort)
    assert hand.whys(Aborted) == ["a newer consent record or rule turns an outcome"]
    outcome = hand.until(Send).outcome
    assert set(reasons(outcome)) == {Reason.NO_RULE}


def test_repeated_conflicts_halve_the_batch() -> None:
    hand = working(4)
    hand.answers[AwaitFrontier] = withdrawing(hand, *(SUBJECTS[n % 4] for n in (100, 101, 102)))
    sizes = [len(hand.past(Send).outcome.batch.records) for _ in range(3)]
    assert sizes == [4, 4, 2]
    assert names(hand.done).count("Abort") == 2
    assert [step for step in hand.done if isinstance(step, Seek)] == [Seek(102)]
    hand.past(Commit)
    assert hand.until(Fetch).first == 102
    assert reasons(hand.committed()[0]) == [Reason.WITHDRAWN] * 2


def slow(hand: Hand, delay_ms: int) -> None:
    """Every sending takes so long."""

    def sent(step: Send) -> None:
        hand.now_ms += delay_ms
        hand.sent = step.outcome

    hand.answers[Send] = sent


def test_a_transaction_beyond_the_limit_of_exposure_is_aborted_and_redone_smaller() -> None:
    hand = working(4)
    slow(hand, 6_000)
    assert len(hand.past(Send).outcome.batch.records) == 4
    hand.past(Abort)
    assert hand.step == Seek(102)
    assert len(hand.past(Send).outcome.batch.records) == 2
    hand.past(Abort)
    assert hand.step == Seek(101)
    slow(hand, 0)
    hand.past(Commit)
    assert hand.until(Fetch).first == 101
    assert "from reading the high watermark to the commit" in hand.whys(Aborted)[0]
    assert len(hand.committed()) == 1


def test_exposure_is_measured_from_before_the_high_watermark_was_read() -> None:
    hand = working(max_exposure_ms=1_000)
    hand.past(Fetch)
    hand.until(ReadHighWatermarks)
    hand.now_ms += 1_001
    hand.past(Abort)


def test_exposure_at_the_limit_is_allowed() -> None:
    hand = working(max_exposure_ms=1_000)
    hand.past(Fetch)
    hand.until(ReadHighWatermarks)
    frozen = hand.now_ms + 1_000
    hand.answers[ReadClock] = lambda _: Moment(frozen, frozen - NOW_MS)
    assert isinstance(hand.until(Commit, Abort), Commit)


@pytest.mark.parametrize("moment", [Moment(1_700, 200), Moment(1_200, 700)])
def test_of_two_clocks_the_one_that_shows_more_time_counts(moment: Moment) -> None:
    # One stands still while the machine is suspended, the other may be set.
    assert moment.since_ms(Moment(1_000, 0)) == 700


def test_waiting_for_content_is_no_exposure() -> None:
    hand = working(max_exposure_ms=1_000)
    hand.now_ms += 60_000
    hand.past(Fetch)
    assert isinstance(hand.until(Commit, Abort), Commit)


def test_one_record_that_takes_too_long_stalls_until_it_does_not() -> None:
    hand = working(1)
    slow(hand, 6_000)
    for _ in range(3):
        hand.past(Abort)
    phases = [hand.partition.phase]
    assert [hand.partition.stalled_because] == hand.whys(Stalled)
    slow(hand, 0)
    hand.past(Commit)
    hand.until(Fetch)
    assert [*phases, hand.partition.phase] == [Phase.STALLED, Phase.READY]
    assert hand.partition.stalled_because is None


def test_a_smaller_batch_is_followed_by_larger_ones() -> None:
    hand = working(4)
    hand.answers[AwaitFrontier] = withdrawing(hand, *(SUBJECTS[n % 4] for n in (100, 101)))
    hand.past(Commit)
    limits = [hand.past(Fetch).records_max]
    for _ in range(2):
        hand.publish(batch(1, hand.content_end))
        limits.append(hand.past(Fetch).records_max)
        hand.past(Commit)
    assert limits == [4, 8, 16]


# Stalling.


def test_a_view_that_does_not_catch_up_stalls_without_deciding() -> None:
    hand = working()
    hand.past(Fetch)
    hand.answers[AwaitFrontier] = lambda _: BEHIND
    for _ in range(4):
        hand.past(AwaitFrontier)
    assert names(hand.done) == ["Fetch", *["ReadHighWatermarks", "AwaitFrontier"] * 4]
    assert hand.partition.phase is Phase.STALLED
    assert hand.whys(Stalled) == [BEHIND]
    assert hand.partition.stalled_because == hand.whys(Stalled)[0]


def test_a_stalled_partition_goes_on_with_the_same_batch_when_the_view_has_caught_up() -> None:
    hand = working()
    hand.past(Fetch)
    hand.answers[AwaitFrontier] = lambda _: BEHIND
    for _ in range(2):
        hand.past(AwaitFrontier)
    del hand.answers[AwaitFrontier]
    hand.changes(b"m1", WITHDRAWN)
    hand.past(AwaitFrontier)
    assert hand.partition.phase is Phase.READY
    assert hand.partition.stalled_because is None
    assert reasons(hand.until(Send).outcome).count(Reason.WITHDRAWN) == 1


def test_time_spent_stalled_is_no_exposure() -> None:
    hand = working(max_exposure_ms=1_000)
    hand.past(Fetch)

    def too_late(step: AwaitFrontier) -> str:
        hand.now_ms += 3_000
        return BEHIND

    hand.answers[AwaitFrontier] = too_late
    hand.past(AwaitFrontier)
    del hand.answers[AwaitFrontier]
    assert isinstance(hand.until(Commit, Abort), Commit)


def test_a_view_that_falls_behind_before_the_commit_stalls_and_exposes() -> None:
    hand = working(max_exposure_ms=1_000)
    hand.past(SendOffset)

    def too_late(step: AwaitFrontier) -> str:
        hand.now_ms += 3_000
        return BEHIND

    hand.answers[AwaitFrontier] = too_late
    hand.past(AwaitFrontier)
    assert hand.partition.phase is Phase.STALLED
    del hand.answers[AwaitFrontier]
    assert isinstance(hand.until(Commit, Abort), Abort)


# Failures, at every step of a life that takes over, catches up, and commits a batch at second try.


def newborn() -> Hand:
    hand = catching_up(b"m0", policy=REDACTING)
    hand.publish(batch())
    barriers = 0

    def passed(step: AwaitFrontier) -> None:
        nonlocal barriers
        barriers += 1
        if barriers == 3:  # The first is of the take-over, the second comes before judging.
            hand.changes(b"m1", WITHDRAWN)

    hand.answers[AwaitFrontier] = passed
    return hand


def lifetime() -> list[str]:
    """Every step up to the first fetch after the batch."""
    hand = newborn()
    hand.past(Fetch)
    hand.until(Fetch)
    return [type(step).__name__ for step in hand.done]


LIFETIME = lifetime()
EVERY_STEP = [pytest.param(n, id=f"{n}-{name}") for n, name in enumerate(LIFETIME)]


def interrupted(number: int) -> Hand:
    """A life that is about to perform the step of this number."""
    hand = newborn()
    for _ in range(number):
        hand.perform()
    assert type(hand.step).__name__ == LIFETIME[number]
    return hand


def test_a_lifetime_has_every_kind_of_step() -> None:
    assert set(LIFETIME) == {step.__name__ for step in Step.__subclasses__()} - {"Retire", "Pause"}


@pytest.mark.parametrize("number", EVERY_STEP)
@pytest.mark.parametrize("timed_out", [False, True])
def test_a_failure_at_any_step_drops_the_producer_and_begins_anew(
    number: int, timed_out: bool
) -> None:
    hand = interrupted(number)
    hand.throw(StepFailed("broken", timed_out=timed_out))
    assert hand.whys(Recycled) == ["broken"]
    assert hand.partition.stalled_because == "broken"
    kept, phases = len(hand.kept), [hand.partition.phase]
    hand.done.clear()
    hand.until(ReadPosition)
    assert names(hand.done) == ["Retire", "Pause", "Fence"]
    assert [*phases, hand.partition.phase] == [Phase.RECYCLING, Phase.FENCING]
    # Nothing of before is committed any more, and nothing is sent before the position is known.
    hand.until(Send, Fetch)
    assert not {"Commit", "SendOffset"} & set(names(hand.done))
    assert len(hand.kept) == kept


@pytest.mark.parametrize("number", EVERY_STEP)
@pytest.mark.parametrize("took_effect", [False, True])
def test_every_record_and_every_change_is_committed_once_whatever_fails(
    number: int, took_effect: bool
) -> None:
    hand = interrupted(number)
    step = hand.step
    assert step is not None
    if took_effect and type(step) in hand.world:
        hand.world[type(step)](step)
    hand.throw(StepFailed("broken"))
    for _ in range(3):
        hand.past(Fetch)
    assert hand.partition.phase is Phase.READY
    assert hand.partition.stalled_because is None
    entries = [read_entry(outcome.entry.value) for outcome in hand.kept]
    firsts = [entry.source.first for entry in entries]
    assert firsts == [FIRST, *(entry.source.last + 1 for entry in entries[:-1])]
    assert entries[-1].source.last == FIRST + 3
    assert [e.previous for e in entries] == [GENESIS, *(e.hash for e in entries[:-1])]
    retracted = [change for outcome in hand.kept for change in outcome.retracted]
    assert retracted == hand.history
    withdrawn = {b"m0"} if len(hand.history) == 1 else {b"m0", b"m1"}
    left = {output.key for outcome in hand.kept for output in outcome.training}
    assert left == set(SUBJECTS) - withdrawn


@pytest.mark.parametrize("number", EVERY_STEP)
def test_after_a_failure_the_position_that_is_read_counts_and_no_other(number: int) -> None:
    hand = interrupted(number)
    hand.answers.clear()
    hand.throw(StepFailed("broken"))
    hand.position = Position(FIRST + 2, "cd" * 32, dict(hand.table.frontier))
    hand.done.clear()
    assert hand.until(Fetch).first == FIRST + 2
    assert [step for step in hand.done if isinstance(step, Seek)] == [Seek(FIRST + 2)]
    outcome = hand.until(Send).outcome
    assert outcome.batch.first == FIRST + 2
    assert read_entry(outcome.entry.value).previous == "cd" * 32


@pytest.mark.parametrize("number", EVERY_STEP)
def test_a_failure_at_any_step_while_recycling_recycles_again(number: int) -> None:
    hand = interrupted(number)
    for _ in range(3):
        hand.throw(StepFailed("broken"))
        hand.until(Fence)
    assert len(hand.whys(Recycled)) == 3


@pytest.mark.parametrize("kind", [Retire, Pause])
def test_a_failure_of_the_recycling_itself_ends_nothing(kind: type[Step[None]]) -> None:
    hand = working()
    hand.throw(StepFailed("broken"))
    hand.until(kind)
    hand.throw(StepFailed("too long", timed_out=True))
    hand.past(Fence)
    hand.past(Commit)
    assert len(hand.whys(Recycled)) == 1


def test_a_partition_that_fails_pauses_longer_each_time_up_to_a_limit() -> None:
    hand = Hand()
    pauses = []
    for _ in range(8):
        hand.throw(StepFailed("broken"))
        pauses.append(hand.past(Pause).duration_ms)
    assert pauses == [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]
    assert (pauses[0], pauses[-1]) == (BACKOFF_MS_MIN, BACKOFF_MS_MAX)


def test_a_commit_ends_the_longer_pauses() -> None:
    hand = working()
    for _ in range(3):
        hand.throw(StepFailed("broken"))
        hand.past(Pause)
    hand.past(Commit)
    hand.until(Fetch)
    hand.throw(StepFailed("broken"))
    assert hand.past(Pause).duration_ms == BACKOFF_MS_MIN


def test_a_time_out_halves_the_batches_and_other_failures_do_not() -> None:
    hand = taken_over()
    limits = []
    for timed_out in (False, True, True):
        limits.append(hand.until(Fetch).records_max)
        hand.throw(StepFailed("broken", timed_out=timed_out))
    limits.append(hand.until(Fetch).records_max)
    assert limits == [BATCH_RECORDS_MAX, *(BATCH_RECORDS_MAX // n for n in (1, 2, 4))]


def test_batches_are_never_smaller_than_one_record_nor_larger_than_the_limit() -> None:
    hand = taken_over()
    for _ in range(20):
        hand.until(Fetch)
        hand.throw(StepFailed("broken", timed_out=True))
    assert hand.until(Fetch).records_max == 1
    for _ in range(20):
        hand.publish(batch(1, hand.content_end))
        hand.past(Commit)
    assert hand.until(Fetch).records_max == BATCH_RECORDS_MAX


# Doubt: a reply that came over a second connection.


def in_doubt(hand: Hand, kind: type[Step[Any]]) -> None:
    """The next step of this kind succeeds, and leaves a producer that may not be used again."""

    def once(step: Step[Any]) -> bool:
        del hand.answers[kind]
        if kind in hand.world:
            hand.world[kind](step)
        return True

    hand.answers[kind] = once


def lose_the_answer(hand: Hand) -> BatchOutcome:
    """The next commit succeeds, but its answer is lost; what it committed."""
    hand.world[Commit](hand.until(Commit))
    hand.throw(StepFailed("the answer was lost"))
    return hand.kept[-1]


def test_a_commit_whose_answer_was_lost_is_reported_when_it_is_found() -> None:
    hand = working()
    kept = lose_the_answer(hand)
    assert hand.committed() == []
    hand.until(Fetch)
    (event,) = (event for event in hand.events if isinstance(event, Committed))
    assert (event.outcome, event.advanced) == (kept, 4)
    assert event.committed.unix_ms > event.sent.unix_ms
    # Once, and the batch is not decided again.
    hand.publish(batch(1, FIRST + 4))
    hand.past(Commit)
    hand.until(Fetch)
    assert hand.committed() == hand.kept


def test_a_commit_whose_answer_was_lost_while_catching_up_is_reported_when_it_is_found() -> None:
    hand = catching_up(b"m0", b"m1")
    lose_the_answer(hand)
    hand.until(Fetch)
    assert hand.committed() == hand.kept
    assert [len(each.retracted) for each in hand.committed()] == [1, 1]


def test_a_commit_that_failed_is_not_reported() -> None:
    hand = working()
    hand.until(Commit)
    hand.throw(StepFailed("it was fenced"))
    hand.past(Commit)
    hand.until(Fetch)
    assert hand.committed() == hand.kept
    assert len(hand.kept) == 1


def test_what_is_reported_adds_up_to_how_far_the_position_moved() -> None:
    hand = working()
    hand.past(Commit)
    # Markers, which no record stands at, come between.
    hand.publish(Batch(FIRST + 4, FIRST + 9, batch(2, FIRST + 6).records))
    hand.past(Commit)
    hand.past(Fetch)
    hand.changes(b"m1", WITHDRAWN)
    hand.past(Commit)
    hand.until(Fetch)
    advanced = [event.advanced for event in hand.events if isinstance(event, Committed)]
    assert advanced == [4, 5, 0]
    assert hand.partition.next_offset == FIRST + sum(advanced)


def test_the_oldest_change_that_no_commit_covers_is_told() -> None:
    hand = taken_over()
    assert hand.partition.uncovered_since_ms is None
    hand.past(Fetch)
    hand.changes(b"m1", WITHDRAWN)
    assert hand.partition.uncovered_since_ms == NOW_MS
    hand.past(Commit)
    hand.until(Fetch)
    assert hand.partition.uncovered_since_ms is None


def test_a_producer_in_doubt_is_not_used_after_its_commit() -> None:
    hand = working()
    in_doubt(hand, Commit)
    hand.past(Commit)
    assert names([hand.past(Retire, Send, Fetch)]) == ["Retire"]
    assert len(hand.committed()) == len(hand.kept) == 1
    # Nothing is sent twice, for it was committed.
    hand.publish(batch(1, FIRST + 4))
    hand.past(Fence)
    assert hand.until(Send).outcome.batch.first == FIRST + 4


def test_a_producer_in_doubt_is_not_used_after_its_abort() -> None:
    hand = working()
    hand.answers[AwaitFrontier] = withdrawing(hand, b"m1")
    in_doubt(hand, Abort)
    hand.past(Abort)
    assert names([hand.past(Retire, Send, Fetch)]) == ["Retire"]
    hand.until(Fetch)
    # The withdrawal was caught up with, before the batch is decided anew.
    assert [outcome.frontier for outcome in hand.kept] == [{3: 51}]
    assert reasons(hand.until(Send).outcome).count(Reason.WITHDRAWN) == 1


def test_a_producer_in_doubt_is_not_used_to_catch_up_further() -> None:
    hand = catching_up(b"m0", b"m1")
    in_doubt(hand, Commit)
    hand.past(Commit)
    assert names([hand.past(Retire, Send)]) == ["Retire"]
    hand.until(Fetch)
    assert [[change.subject for change in each.retracted] for each in hand.kept] == [
        [b"m0"],
        [b"m1"],
    ]


# Giving the partition up.


@pytest.mark.parametrize("number", EVERY_STEP)
def test_a_revocation_at_any_step_ends_with_the_producer_dropped(number: int) -> None:
    hand = interrupted(number)
    hand.throw(Revoked())
    assert hand.partition.phase is Phase.REVOKED
    assert hand.to_the_end() == ["Retire"]


@pytest.mark.parametrize("step", [Retire, Pause, Fence, ReadPosition])
def test_a_revocation_while_recycling_ends_with_the_producer_dropped(
    step: type[Step[Any]],
) -> None:
    hand = working()
    hand.until(Commit)
    hand.throw(StepFailed("broken"))
    hand.until(step)
    hand.throw(Revoked())
    assert hand.to_the_end() == ["Retire"]


@pytest.mark.parametrize("problem", [Revoked(), StepFailed("broken")])
def test_nothing_that_happens_while_the_producer_is_dropped_at_last_matters(
    problem: Exception,
) -> None:
    hand = taken_over()
    hand.throw(Revoked())
    assert isinstance(hand.step, Retire)
    hand.throw(problem)
    assert hand.step is None


@pytest.mark.parametrize("number", EVERY_STEP)
def test_stopping_at_any_step_ends_after_the_transaction_in_hand(number: int) -> None:
    hand = interrupted(number)
    hand.partition.stop()
    before = len(hand.done)
    hand.to_the_end()
    steps = names(hand.done)
    assert steps[-1] == "Retire"
    assert steps.count("Retire") == 1
    # Whatever was begun is committed or aborted, and nothing is begun after the one in hand.
    assert steps.count("Send") == steps.count("Commit") + steps.count("Abort")
    after = names(hand.done[before + 1 :])
    assert after.count("Send") <= 1
    assert "Fetch" not in after
    assert hand.partition.phase is Phase.REVOKED


def test_a_partition_that_is_stopped_before_its_first_step_only_drops_the_producer() -> None:
    hand = taken_over()
    hand.partition.stop()
    fresh = Partition(hand.partition.gate, hand.events.append, 5_000)
    fresh.stop()
    assert list(fresh.life()) == [Retire()]


def test_stopping_ends_a_stall() -> None:
    hand = working()
    hand.past(Fetch)
    hand.answers[AwaitFrontier] = lambda _: BEHIND
    hand.past(AwaitFrontier)
    hand.partition.stop()
    assert hand.to_the_end() == ["ReadHighWatermarks", "AwaitFrontier", "Retire"]


def test_stopping_ends_a_bootstrap() -> None:
    hand = Hand()
    hand.answers[AwaitFrontier] = lambda _: BEHIND
    hand.past(AwaitFrontier)
    hand.partition.stop()
    assert hand.to_the_end() == ["ReadHighWatermarks", "AwaitFrontier", "Retire"]


def test_stopping_ends_catching_up_after_the_transaction_in_hand() -> None:
    hand = catching_up(b"m0", b"m1", b"m2")
    hand.until(Send)
    hand.partition.stop()
    assert hand.to_the_end() == ["Send", "SendOffset", "Commit", "Retire"]


def test_stopping_ends_a_row_of_aborted_attempts() -> None:
    hand = working(1)
    slow(hand, 6_000)
    for _ in range(5):
        hand.past(Abort)
    hand.partition.stop()
    assert hand.to_the_end()[-2:] == ["Abort", "Retire"]
    assert hand.committed() == []


def test_stopping_ends_recycling() -> None:
    hand = Hand()
    hand.throw(StepFailed("broken"))
    hand.partition.stop()
    assert hand.to_the_end() == ["Retire", "Pause", "Retire"]


# What a rule makes of records.


def test_what_is_to_be_redacted_is_redacted_before_the_barrier_and_once() -> None:
    hand = newborn()  # A withdrawal before the commit has the batch decided anew.
    hand.past(Fetch)
    hand.until(Fetch)
    steps = names(hand.done)
    assert steps.count("Transform") == 1
    assert steps.count("Abort") == 1
    at = steps.index("Transform")
    assert "AwaitFrontier" in steps[at:]
    (outcome,) = hand.committed()[-1:]
    assert len(outcome.training) == 2


def test_what_could_not_be_redacted_is_withheld() -> None:
    hand = Hand(policy=REDACTING)
    hand.answers[Transform] = lambda step: [None for _ in step.works]
    hand.publish(batch())
    hand.past(Commit)
    hand.until(Fetch)
    (outcome,) = hand.committed()
    assert not outcome.training
    assert {str(made.reason) for made in outcome.decisions} == {"redaction-failed"}


def test_the_next_batch_is_redacted_itself() -> None:
    hand = Hand(policy=REDACTING)
    for first in (FIRST, FIRST + 4):
        hand.publish(batch(first=first))
        works = hand.past(Transform).works
        assert [json.loads(work.value)["subject"] for work in works] == [
            record.key.decode() for record in batch(first=first).records
        ]
        hand.past(Commit)


def test_what_was_foreseen_before_a_rule_ended_is_foreseen_anew() -> None:
    hand = Hand(policy=REDACTING)
    hand.now_ms = PAUSE_MS - 1_000
    hand.publish(batch())
    hand.past(Transform)
    hand.now_ms = PAUSE_MS
    hand.past(Commit)
    hand.until(Fetch)
    steps = names(hand.done)
    # Nobody may be used by then, so there is nothing to transform; the barrier was asked for again.
    assert steps.count("Transform") == 1
    assert steps[steps.index("Transform") :].count("AwaitFrontier") == 3
    (outcome,) = hand.committed()
    assert not outcome.training
