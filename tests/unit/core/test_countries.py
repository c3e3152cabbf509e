"""The set of countries."""

from consentgate.core.countries import COUNTRIES


def test_there_are_249_officially_assigned_codes() -> None:
    assert len(COUNTRIES) == 249


def test_every_code_is_two_upper_case_letters() -> None:
    assert all(len(code) == 2 and code.isascii() and code.isupper() for code in COUNTRIES)


def test_territories_count_as_themselves() -> None:
    assert {"RE", "GF", "GI", "HK", "IM", "PR", "AX", "SJ"} <= COUNTRIES


def test_reserved_withdrawn_and_private_codes_are_no_countries() -> None:
    assert COUNTRIES.isdisjoint({"UK", "EU", "EL", "XK", "AN", "SU", "YU", "CS", "AA", "QM", "ZZ"})
