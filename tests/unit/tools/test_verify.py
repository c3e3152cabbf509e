"""What `verify` prints, and what it refuses before it asks a broker."""

import pytest

from consentgate.config import Config, ContentConfig
from consentgate.core.decode import ContentFields
from consentgate.core.verify import Verification
from consentgate.errors import ConfigError
from consentgate.policies import load_policy
from consentgate.tools.verify import verification_lines, verify


class Asked(Exception):
    """A broker would have been asked."""


@pytest.mark.parametrize(
    ("now", "before", "refused"),
    [
        (ContentConfig(), ContentConfig(key_is_subject=False), True),
        (
            ContentConfig(key_is_subject=False),
            ContentConfig(key_is_subject=False, fields=ContentFields(subject="author")),
            True,
        ),
        (ContentConfig(), ContentConfig(fields=ContentFields(subject="author")), False),
        (ContentConfig(), ContentConfig(fields=ContentFields(kind="sort")), False),
    ],
)
async def test_whose_content_is_must_not_have_changed(
    now: ContentConfig, before: ContentConfig, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(_: Config) -> None:
        raise Asked

    monkeypatch.setattr("consentgate.tools.verify.read_layout", ask)
    with pytest.raises(ConfigError if refused else Asked):
        await verify(
            Config(content=now),
            [load_policy("opt-in")],
            lambda done, total: None,
            None,
            [Config(content=before)],
        )


def test_it_says_that_nobody_was_exposed() -> None:
    line = verification_lines(Verification())[-1]
    assert line == "exposure: no record found that was committed after its owner's withdrawal"


def test_it_says_between_which_numbers_the_exposed_records_are() -> None:
    line = verification_lines(Verification(exposed_records_max=2, exposure_ms_max=46_790))[-1]
    assert line == (
        "exposure: at least 0 and at most 2 records were committed after their owners' "
        "withdrawals were appended, at most 46,790 ms after"
    )
