"""`consentgate explain`: why one record was or was not forwarded, and what would change it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from consentgate.config import Config
from consentgate.core.consent import ConsentTable
from consentgate.core.decode import ConsentDecoder, consent_decoder
from consentgate.core.document import shown
from consentgate.core.explain import (
    Explanation,
    Outlook,
    explain,
    explain_unreadable,
    moment_text,
)
from consentgate.core.ledger import LedgerRecord, read_codes
from consentgate.core.model import UNREADABLE, Reason, Verdict
from consentgate.core.policy import Policy, Rule
from consentgate.engines import gate_of
from consentgate.errors import ConfigError, NoSuchRecord
from consentgate.kafka.clock import read_clock
from consentgate.kafka.cursor import open_cursor
from consentgate.kafka.layout import Layout, read_layout
from consentgate.kafka.ledger import entry_covering
from consentgate.kafka.reader import count_offsets
from consentgate.kafka.settings import KafkaSettings, kafka_settings
from consentgate.kafka.unreadable import UnreadableRecord, placed, read_state
from consentgate.tools.fixtures import ClockLine, FixtureRecord, read_fixture
from consentgate.tools.lookback import aligned, at_any_moment, subject_in
from consentgate.tools.replay import Replay

_RECORD = re.compile(r"(?P<topic>[a-zA-Z0-9._-]+)-(?P<partition>\d{1,9})@(?P<offset>\d{1,18})")
_PLAIN_WORD = re.compile(r"[\w-]{1,60}")
_LINE = re.compile(r"(?P<path>.+):(?P<line>\d{1,9})", re.DOTALL)

_WITHOUT_A_STATE = (Reason.NO_CONSENT_RECORD, Reason.ERROR, Reason.TOMBSTONE)

OnProgress = Callable[[int, int], None]
"""Gets the offsets that were read, and how many there are to read."""


@dataclass(frozen=True, slots=True)
class Question:
    """By what a record is to be explained."""

    config: Config
    policy: Policy
    policy_file: str  # for the places of rules
    now_ms: int | None = None  # decide as of this moment; None: as of its own

    @property
    def deciding(self) -> Config:
        """The configuration to decide with."""
        return self.config if self.now_ms is None else at_any_moment(self.config)


@dataclass(frozen=True, slots=True)
class FixtureLine:
    """A line of a fixture file; lines are counted from 1."""

    path: Path
    line: int


@dataclass(frozen=True, slots=True)
class Place:
    """A record's place in a topic."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}@{self.offset}"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the ledger says of the record."""

    entry: str  # topic-partition@offset
    reason: Reason | None  # None: that there is no record
    decided_at_ms: int
    policy: str  # name@hash, the first 12 hex digits


@dataclass(frozen=True, slots=True)
class Answer:
    """An explanation with the places of everything that it rests on. No payload, no subject id."""

    record: str
    policy: Policy
    policy_file: str
    explanation: Explanation
    consent: tuple[str, ...]  # where the person's consent records stand that counted
    frontier: tuple[str, ...]  # up to where the consent topic counted; none for a fixture
    consent_problem: str | None  # what is wrong with an unreadable consent record, in a word
    recorded: Recorded | None
    notes: tuple[str, ...]


def parse_place(text: str) -> FixtureLine | Place:
    """What a user asks about.

    Raises:
        NoSuchRecord: if it is neither a fixture's line nor the place of a record.
    """
    if found := _RECORD.fullmatch(text):
        return Place(found["topic"], int(found["partition"]), int(found["offset"]))
    if found := _LINE.fullmatch(text):
        return FixtureLine(Path(found["path"]), int(found["line"]))
    raise NoSuchRecord(
        f"{text!r} is no place: write FIXTURE.jsonl:LINE for a line of a fixture, or "
        "TOPIC-PARTITION@OFFSET for a record, such as content-events-3@1234"
    )


def explain_line(question: Question, place: FixtureLine) -> Answer:
    """Explain a content line of a fixture, as `replay` decides it, or as of another moment.

    Raises:
        FixtureError: if a line up to this one cannot be read.
        NoSuchRecord: if there is no such line, or it is no content line.
    """
    config, policy, now_ms = question.config, question.policy, question.now_ms
    memory = Replay(question.deciding, policy, place.path)
    consents: dict[bytes | None, FixtureRecord] = {}
    last = 0
    for line in read_fixture(place.path):
        last = line.line
        if line.line >= place.line:
            break
        if isinstance(line, FixtureRecord) and line.topic == config.topics.content:
            continue
        memory.feed(line)
        if isinstance(line, FixtureRecord):
            consents[line.key] = line
    asked = f"{place.path}:{place.line}"
    if last != place.line:
        raise NoSuchRecord(f"{asked}: there is nothing but a comment, or no such line")
    if isinstance(line, ClockLine) or line.topic != config.topics.content:
        what = "sets the clock" if isinstance(line, ClockLine) else f"is of topic {line.topic}"
        raise NoSuchRecord(
            f"{asked}: the line {what}; only what is of topic {config.topics.content} is decided on"
        )
    if now_ms is not None:
        memory.feed(ClockLine(0, now_ms))
    explanation = memory.explain(line)
    consent = consents.get(subject_in(config, line) or None)
    problem = None
    if consent is not None:
        _, problem = _consent_decoder(config, policy)(consent.key, consent.value)
    return Answer(
        record=asked,
        policy=policy,
        policy_file=question.policy_file,
        explanation=explanation,
        consent=(f"{place.path}:{consent.line}",) if consent else (),
        frontier=(),
        consent_problem=problem,
        recorded=None,
        notes=_moment_note(now_ms),
    )


async def explain_record(question: Question, place: Place, on_progress: OnProgress) -> Answer:
    """Explain a record of the content topic as of the ledger entry that accounts for it.

    Where none does, it is explained as of now.

    Raises:
        BrokerUnavailable: if no broker answers.
        ConfigError: if topics are missing, or if the ledger was changed.
        NoSuchRecord: if no content record stands there.
    """
    config, policy, now_ms = question.config, question.policy, question.now_ms
    settings = kafka_settings(config.kafka)
    layout = await read_layout(config)
    if place.topic != config.topics.content:
        raise NoSuchRecord(
            f"{place}: only records of the content topic, {config.topics.content}, are decided on; "
            "a training record names the one that it came of in its header consentgate.source"
        )
    if place.partition not in layout.content_partitions:
        count = len(layout.content_partitions)
        raise NoSuchRecord(f"{place}: the topic has the partitions 0 to {count - 1}")
    record = await _record_at(settings, place)
    ledger = layout.outputs(place.partition).decisions
    key = f"{config.group}/{place.topic}-{place.partition}".encode()
    try:
        covering = await entry_covering(settings, ledger, key, place.offset)
    except ValueError as error:
        raise ConfigError(
            f"the ledger {ledger.topic}-{ledger.partition} cannot be read: {error}. "
            "consentgate verify says where"
        ) from None
    recorded = None
    frontier: dict[int, int | None] = dict.fromkeys(layout.consent_partitions(place.partition))
    moment_ms = read_clock().unix_ms
    if covering is not None:
        offset, entry = covering
        recorded = _recorded(f"{ledger.topic}-{ledger.partition}@{offset}", entry, place.offset)
        frontier = {int(partition): end for partition, end in entry.consent.items()}
        moment_ms = entry.decided_at
    seen = _Seen(config, layout, policy, subject_in(config, record), frontier)
    await seen.walk(on_progress)
    if isinstance(record, UnreadableRecord):
        explanation = explain_unreadable(moment_ms if now_ms is None else now_ms)
    else:
        gate = gate_of(question.deciding, policy, place.partition, seen.table)
        explanation = explain(gate, record, moment_ms if now_ms is None else now_ms)
    return Answer(
        record=str(place),
        policy=policy,
        policy_file=question.policy_file,
        explanation=explanation,
        consent=seen.places,
        frontier=seen.frontier,
        consent_problem=seen.problem,
        recorded=recorded,
        notes=(
            *_ledger_notes(config, policy, recorded),
            *seen.notes(recorded, key_is_subject=config.content.key_is_subject),
            *_moment_note(now_ms),
            *_disagreement(policy, recorded, explanation, now_ms),
        ),
    )


async def _record_at(settings: KafkaSettings, place: Place) -> Any:
    async with open_cursor(settings, place.topic, place.partition, place.offset) as cursor:
        if cursor.start > place.offset:
            raise NoSuchRecord(
                f"{place}: the partition begins at {cursor.start}, what was before has expired"
            )
        record = await cursor.peek()
        stable = cursor.end
    if record is not None and record.offset == place.offset:
        return record
    if place.offset < stable:
        raise NoSuchRecord(
            f"{place}: there is no record at this offset: it is a transaction's marker, or its "
            "record was aborted, or was compacted away"
        )
    async with AIOKafkaConsumer(group_id=None, **settings.client) as everything:
        tp = TopicPartition(place.topic, place.partition)
        high = (await everything.end_offsets([tp]))[tp]
    if place.offset >= high:
        raise NoSuchRecord(f"{place}: not appended yet, the partition ends at {high}")
    raise NoSuchRecord(
        f"{place}: not committed yet: from {stable} on a transaction is open that has not ended"
    )


def _recorded(place: str, entry: LedgerRecord, offset: int) -> Recorded:
    reason = read_codes(entry.outcomes)[offset - entry.source.first]
    return Recorded(place, reason, entry.decided_at, entry.policy)


def _consent_decoder(config: Config, policy: Policy) -> ConsentDecoder:
    return consent_decoder(config.consent.fields, policy.purpose, config.limits.max_depth)


class _Seen:
    """What the consent topic holds of one person below a frontier."""

    def __init__(
        self,
        config: Config,
        layout: Layout,
        policy: Policy,
        subject: bytes,
        frontier: Mapping[int, int | None],  # consent partition to frontier; None: its end now
    ) -> None:
        self.table = ConsentTable(frontier)
        self._topic = config.topics.consent
        self._settings = kafka_settings(config.kafka)
        self._layout = layout
        self._subject = subject
        self._decode = _consent_decoder(config, policy)
        self._frontier = frontier
        self._last: dict[int, tuple[int, str | None]] = {}  # partition to offset and problem
        self._later: list[str] = []

    async def walk(self, on_progress: OnProgress) -> None:
        """Read the partitions to their ends: what came later tells what may have gone."""
        total = await count_offsets(self._settings, self._topic, self._frontier)
        done = 0
        for partition, frontier in self._frontier.items():
            async with open_cursor(self._settings, self._topic, partition) as cursor:
                end = cursor.end if frontier is None else frontier
                async for record in cursor.up_to(cursor.end):
                    done += 1
                    if done % 10_000 == 0:
                        on_progress(done, total)
                    if record.key != self._subject or record.key is None:
                        continue
                    if record.offset < end:
                        self._take(partition, record)
                    else:
                        self._later.append(cursor.place(record))
                self.table.advance(partition, end)
        on_progress(total, total)

    def _take(self, partition: int, record: Any) -> None:
        state, problem = read_state(self._decode, record)
        is_misplaced = bool(self._layout.misplaced(partition, [self._subject]))
        self.table.apply(partition, self._subject, placed(state, is_misplaced))
        self._last[partition] = record.offset, problem or ("misplaced" if is_misplaced else None)

    @property
    def places(self) -> tuple[str, ...]:
        """Where the records stand that counted: the last one of each partition."""
        return tuple(f"{self._topic}-{p}@{offset}" for p, (offset, _) in sorted(self._last.items()))

    @property
    def problem(self) -> str | None:
        """What is wrong with the record, where one is all that there is."""
        problems = [problem for _, problem in self._last.values()]
        return problems[0] if len(problems) == 1 else None

    @property
    def frontier(self) -> tuple[str, ...]:
        """The frontier of each partition."""
        return tuple(f"{self._topic}-{p}@{end}" for p, end in sorted(self.table.frontier.items()))

    def notes(self, recorded: Recorded | None, *, key_is_subject: bool) -> list[str]:
        """What has become of the person's state since, and what is not there any more."""
        notes = []
        if self._later:
            notes.append(f"the person's consent record has changed since, at {self._later[-1]}")
        reason = recorded.reason if recorded else None
        if not self._last and self._rests_on_a_state(reason, key_is_subject=key_is_subject):
            notes.append(
                f"the decision rested on a consent record that {self._topic} does not hold any "
                "more: compaction has removed it, as a later one came. What follows is what would "
                "be decided without it"
            )
        return notes

    def _rests_on_a_state(self, reason: Reason | None, *, key_is_subject: bool) -> bool:
        """Whether the outcome can only be that of somebody with a consent record.

        Where the person is judged before the record is read, what is wrong with it says so, too.
        """
        if not self._subject or reason in (None, *_WITHOUT_A_STATE):
            return False
        return key_is_subject or reason.verdict is not Verdict.QUARANTINE


def _ledger_notes(config: Config, policy: Policy, recorded: Recorded | None) -> list[str]:
    if recorded is None:
        return [
            f"no ledger entry of group {config.group} accounts for it: it is not decided yet, and "
            "is explained as of now"
        ]
    if recorded.policy != policy.reference:
        return [
            f"it was decided under {recorded.policy}, and is explained under {policy.reference}; "
            "name the other with --policy"
        ]
    return []


def _moment_note(now_ms: int | None) -> tuple[str, ...]:
    if now_ms is None:
        return ()
    return (
        f"explained as of {moment_text(now_ms)}, as --now says; the record's own timestamp is not "
        "held against it",
    )


def _disagreement(
    policy: Policy, recorded: Recorded | None, explanation: Explanation, now_ms: int | None
) -> list[str]:
    """For the same policy and moment there is no good reason to come to another outcome."""
    if recorded is None or now_ms is not None or recorded.policy != policy.reference:
        return []
    if recorded.reason is explanation.decision.reason:
        return []
    return [
        "the ledger has another outcome: the topics do not hold any more what it rested on, or "
        "limits or fields are configured otherwise; consentgate verify tells"
    ]


def answer_json(answer: Answer) -> dict[str, Any]:
    """What `explain --format json` prints."""
    why, recorded, state = answer.explanation, answer.recorded, answer.explanation.consent
    readable = state if state is not UNREADABLE else None
    words = {None: "none", UNREADABLE: "unreadable"}
    return {
        "record": answer.record,
        **_decision_json(why.decision.reason),
        "label": why.decision.label,
        "moment": why.now_ms,
        "policy": answer.policy.reference,
        "recorded": None
        if recorded is None
        else {
            "entry": recorded.entry,
            **_decision_json(recorded.reason),
            "moment": recorded.decided_at_ms,
            "policy": recorded.policy,
        },
        "consent": {
            "records": list(answer.consent),
            "frontier": list(answer.frontier),
            "state": words.get(state, "readable"),
            "problem": answer.consent_problem,
            "jurisdiction": readable.jurisdiction if readable else None,
            "adult": readable.adult if readable else None,
            "choice": readable.choice if readable else None,
        },
        "rule": _rule_json(answer, why.rule),
        "content": {
            "kind": why.kind,
            "visibility": why.visibility,
            "created_at": why.created_at_ms,
        },
        "conditions": [
            {"name": c.name, "wanted": c.wanted, "found": c.found, "met": c.met}
            for c in why.conditions
        ],
        "remedies": list(why.remedies),
        "threats": list(why.threats),
        "outlook": [
            {
                "from": ahead.from_ms,
                "rule": _rule_json(answer, ahead.rule),
                **_decision_json(ahead.decision.reason),
            }
            for ahead in why.outlook
        ],
        "notes": list(answer.notes),
    }


def _decision_json(reason: Reason | None) -> dict[str, str | None]:
    if reason is None:
        return {"verdict": None, "reason": None}
    return {"verdict": str(reason.verdict), "reason": str(reason)}


def _rule_json(answer: Answer, rule: Rule | None) -> dict[str, Any] | None:
    if rule is None:
        return None
    return {
        "place": f"{answer.policy_file}:{rule.line}",
        "jurisdictions": list(rule.jurisdictions),
        "basis": str(rule.basis),
        "from": rule.from_ms,
        "until": rule.until_ms,
        "fields": None if rule.fields is None else list(rule.fields),
        "redact": list(rule.redact),
        "pseudonymize": rule.pseudonymize,
    }


def answer_lines(answer: Answer) -> list[str]:
    """What `explain` prints for people."""
    why, recorded = answer.explanation, answer.recorded
    lines = [f"{answer.record}: {_decided(why.decision.reason)}"]
    lines += [f"note: {note}" for note in answer.notes]
    lines += ["", *_titled("decided", [f"{moment_text(why.now_ms)}, {answer.policy.reference}"])]
    if recorded is not None:
        by = f"{_decided(recorded.reason)}, by {recorded.entry}"
        at = f"at {moment_text(recorded.decided_at_ms)} under {recorded.policy}"
        lines += _titled("ledger", [by, at])
    lines += _titled("consent", _consent_lines(answer))
    lines += _titled("rule", _rule_lines(answer, why.rule))
    if why.kind is not None and why.visibility is not None and why.created_at_ms is not None:
        content = (
            f"kind {_word(why.kind)}, visibility {_word(why.visibility)}, created at "
            f"{moment_text(why.created_at_ms)}"
        )
        lines += _titled("content", [content])
    lines += ["", *_condition_lines(why)]
    if why.remedies:
        together = "this" if len(why.remedies) == 1 else "all of this"
        lines += ["", f"For it to be forwarded, {together} is needed:"]
        lines += [f"- {remedy}" for remedy in why.remedies]
    if why.threats:
        lines += ["", "Any of this would stop it:"]
        lines += [f"- {threat}" for threat in why.threats]
    if why.outlook:
        lines += ["", "Time alone will change this:"]
        lines += [f"- {_ahead(ahead)}" for ahead in why.outlook]
    return lines


def _titled(title: str, texts: list[str]) -> list[str]:
    """Lines beside a title, which stands before the first one."""
    return [f"{'' if number else title:<10}{text}" for number, text in enumerate(texts)]


def _decided(reason: Reason | None) -> str:
    return "no record" if reason is None else f"{reason.verdict}: {reason}"


def _consent_lines(answer: Answer) -> list[str]:
    state = answer.explanation.consent
    below = f", below {', '.join(answer.frontier)}" if answer.frontier else ""
    where = f"{', '.join(answer.consent) or 'no record'}{below}"
    if state is None:
        return [where, "no consent record of the person counts"] if answer.consent else [where]
    if state is UNREADABLE:
        problem = f": {answer.consent_problem}" if answer.consent_problem else ""
        return [where, f"cannot be read{problem}"]
    adult = {True: "yes", False: "no", None: "not known"}[state.adult]
    country = state.jurisdiction or "not known"
    choice = f"choice for {answer.policy.purpose} {state.choice or 'none'}"
    return [where, f"country {country}, adult {adult}, {choice}"]


def _rule_lines(answer: Answer, rule: Rule | None) -> list[str]:
    if rule is None:
        return ["none"]
    transforms = []
    if rule.fields is not None:
        transforms.append(f"of the body only {', '.join(rule.fields)} is forwarded")
    if rule.redact:
        transforms.append(f"redacted: {', '.join(rule.redact)}")
    if rule.pseudonymize:
        transforms.append("the subject is pseudonymized")
    named = ", ".join(rule.jurisdictions)
    return [
        f"{answer.policy_file}:{rule.line}",
        f"{rule.basis} for {named}, {_window(rule)}",
        *transforms,
    ]


def _window(rule: Rule) -> str:
    start = "in force" if rule.from_ms is None else f"in force from {moment_text(rule.from_ms)}"
    return start if rule.until_ms is None else f"{start} until {moment_text(rule.until_ms)}"


def _condition_lines(why: Explanation) -> list[str]:
    marks = {True: "met", False: "NOT MET", None: "open"}
    rows = [(marks[c.met], c.name, c.found, f"wanted: {c.wanted}") for c in why.conditions]
    return aligned(rows)


def _ahead(ahead: Outlook) -> str:
    rule = "no rule holds"
    if ahead.rule is not None:
        rule = f"the rule of line {ahead.rule.line} ({ahead.rule.basis}) holds"
    return f"from {moment_text(ahead.from_ms)} {rule}: {_decided(ahead.decision.reason)}"


def _word(text: str) -> str:
    """A word of a record, which may be anything, as a message shows it."""
    return text if _PLAIN_WORD.fullmatch(text) else shown(text)
