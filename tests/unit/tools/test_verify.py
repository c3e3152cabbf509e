"""What `verify` prints."""

from consentgate.core.verify import Verification
from consentgate.tools.verify import verification_lines


def test_it_says_that_nobody_was_exposed() -> None:
    line = verification_lines(Verification())[-1]
    assert line == "exposure: no record found that was committed after its owner's withdrawal"


def test_it_says_between_which_numbers_the_exposed_records_are() -> None:
    line = verification_lines(Verification(exposed_records_max=2, exposure_ms_max=46_790))[-1]
    assert line == (
        "exposure: at least 0 and at most 2 records were committed after their owners' "
        "withdrawals were appended, at most 46,790 ms after"
    )
