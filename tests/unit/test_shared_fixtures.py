"""The shared fixtures in memory: each outcome as expected, and every reason among them."""

from pathlib import Path

import pytest

from consentgate.core.model import Reason
from consentgate.policies import preset_names
from consentgate.tools.fixtures import FixtureRecord, read_fixture
from consentgate.tools.replay import difference, replay
from shared import DIRECTORY, FILES, name_of, settings_of

UNREACHABLE = {
    Reason.ERROR,  # Nothing is known that makes the decision fail.
}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_outcome_is_the_expected_one(path: Path) -> None:
    config, policy = settings_of(path)
    outcomes = [outcome for _, outcome in replay(config, policy, [path])]
    assert all(outcome.expect for outcome in outcomes), "each line says what it expects"
    assert [difference(each, policy) for each in outcomes if not each.matches] == []


def test_the_fixtures_reach_every_reason_that_can_be_reached() -> None:
    expected = [
        line.expect
        for path in FILES
        for line in read_fixture(path)
        if isinstance(line, FixtureRecord) and line.expect is not None
    ]
    assert len(expected) >= 150
    reasons = {expect.partition(":")[2] for expect in expected} - {""}
    assert reasons == {str(reason) for reason in Reason} - UNREACHABLE


def test_every_preset_has_fixtures() -> None:
    presets = {path.parent.name for path in FILES if path.parent.parent.name == "presets"}
    assert presets == set(preset_names())
    for path in (DIRECTORY / "presets").rglob("*.jsonl"):
        assert settings_of(path)[1].name == path.parent.name
