"""Timelines as they are printed: in terminals of several widths, and as JSON."""

import io

import pytest
from rich.console import Console

from consentgate.core.policyfile import parse_policy
from consentgate.policies import load_policy, preset_names
from consentgate.tools.timeline import timeline_json, timeline_text

NOON_MS = 1726833600000  # 2024-09-20T12:00:00Z

OWN = """\
name: own
purpose: ai-training
groups: {NORDIC: [DK, FI, IS, NO, SE]}
rules:
  - jurisdictions: [NORDIC, CH]
    until: 2026-01-01T09:30:00Z
    basis: suspended
  - jurisdictions: [NORDIC]
    from: 2026-01-01T09:30:00Z
    basis: opt-in
    adults_only: true
    visibility: [public, friends]
    kinds: [post]
    created_from: 2024-11-20T00:00:00Z
    created_until: 2025-11-20T00:00:00Z
    fields: [text]
    redact: [phone, email]
    pseudonymize: true
"""

LINKEDIN = """\
linkedin@31529b625a40 for ai-training; times are in UTC

                                      2024-09-20           2025-11-03
EEA, CA, CH, HK  suspended ─────────────────────────────── opt-out ────────────
GB               opt-out ──────────── suspended ────────── opt-out ────────────
everywhere else  opt-out ──────────────────────────────────────────────────────

where            when                      basis      if    line
────────────────────────────────────────────────────────────────
EEA, CA, CH, HK  until 2025-11-03          suspended      24, 38
                 from 2025-11-03           opt-out            43
GB               until 2024-09-20          opt-out            28
                 2024-09-20 to 2025-11-03  suspended          32
                 from 2025-11-03           opt-out            43
everywhere else  always                    opt-out            47
"""

OWN_PRINTED = """\
own@7a3498009d93 for ai-training; times are in UTC

                                           2026-01-01 09:30
NORDIC           suspended ─────────────── opt-in ──────────────────
CH               suspended ─────────────── no rule ─────────────────
everywhere else  no rule ───────────────────────────────────────────

where            when                    basis      if                      line
────────────────────────────────────────────────────────────────────────────────
NORDIC           until 2026-01-01 09:30  suspended                             5
                 from 2026-01-01 09:30   opt-in     adults only                8
                                                    pseudonymized
                                                    visibility: friends,
                                                    public
                                                    kinds: post
                                                    fields: text
                                                    redacted: email, phone
                                                    created from
                                                    2024-11-20
                                                    created before
                                                    2025-11-20
CH               until 2026-01-01 09:30  suspended                             5
                 from 2026-01-01 09:30   no rule
everywhere else  always                  no rule
"""

ONE_MOMENT = """\
linkedin@31529b625a40 for ai-training at 2024-09-20T12:00:00Z; times are in UTC

where            when                      basis      if    line
────────────────────────────────────────────────────────────────
EEA, CA, CH, HK  until 2025-11-03          suspended      24, 38
GB               2024-09-20 to 2025-11-03  suspended          32
everywhere else  always                    opt-out            47
"""


def printed(policy: str, width: int, at_ms: int | None = None, encoding: str = "utf-8") -> str:
    parsed = parse_policy(OWN, "own.yaml") if policy == "own" else load_policy(policy)
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    Console(file=file, width=width, highlight=False).print(timeline_text(parsed, at_ms))
    file.seek(0)
    return "\n".join(line.rstrip() for line in file.read().splitlines()) + "\n"


def test_a_preset_in_a_terminal_of_80_columns() -> None:
    assert printed("linkedin", 80) == LINKEDIN


def test_every_condition_is_told() -> None:
    assert printed("own", 80) == OWN_PRINTED


def test_one_moment_has_a_table_only() -> None:
    assert printed("linkedin", 80, NOON_MS) == ONE_MOMENT


@pytest.mark.parametrize("preset", [*preset_names(), "own"])
@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(preset: str, width: int) -> None:
    assert max(map(len, printed(preset, width).splitlines())) <= width


@pytest.mark.parametrize("preset", [*preset_names(), "own"])
@pytest.mark.parametrize("width", [80, 120])
def test_a_policy_is_never_cut_short(preset: str, width: int) -> None:
    assert "…" not in printed(preset, width)


def test_a_terminal_without_unicode_gets_other_bars() -> None:
    assert "opt-out ---" in printed("linkedin", 80, encoding="ascii")


def test_a_narrow_terminal_gets_the_table_alone() -> None:
    assert "─── " not in printed("x-grok", 50).split("where")[0]
    assert "prohibited" in printed("x-grok", 50)


def test_the_json_has_every_stretch_with_its_conditions() -> None:
    found = timeline_json(parse_policy(OWN, "own.yaml"))
    assert [course["jurisdictions"] for course in found["courses"]] == [
        ("NORDIC",),
        ("CH",),
        ("*",),
    ]
    nordic, swiss, rest = found["courses"]
    moment = "2026-01-01T09:30:00.000Z"
    before = {
        "from": None,
        "until": moment,
        "basis": "suspended",
        "conditions": {},
        "lines": (5,),
    }
    assert nordic["countries"] == ["DK", "FI", "IS", "NO", "SE"]
    assert nordic["stretches"] == [
        before,
        {
            "from": moment,
            "until": None,
            "basis": "opt-in",
            "conditions": {
                "adults_only": True,
                "pseudonymize": True,
                "visibility": ["friends", "public"],
                "kinds": ["post"],
                "fields": ["text"],
                "redact": ["email", "phone"],
                "created_from": "2024-11-20T00:00:00.000Z",
                "created_until": "2025-11-20T00:00:00.000Z",
            },
            "lines": (8,),
        },
    ]
    none = {"basis": None, "conditions": {}, "lines": ()}
    assert swiss["stretches"] == [before, {"from": moment, "until": None, **none}]
    assert rest["stretches"] == [{"from": None, "until": None, **none}]
    assert len(rest["countries"]) == 243


def test_the_json_of_one_moment_has_what_holds_then() -> None:
    found = timeline_json(load_policy("linkedin"), NOON_MS)
    assert found["at"] == "2024-09-20T12:00:00.000Z"
    assert [[each["basis"] for each in course["stretches"]] for course in found["courses"]] == [
        ["suspended"],
        ["suspended"],
        ["opt-out"],
    ]
