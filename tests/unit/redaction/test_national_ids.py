"""The numbers of persons, by the country of the subject."""

import pytest

from consentgate.redaction.national_ids import national_ids


def found(text: str, jurisdiction: str | None) -> list[str]:
    return [text[start:end] for start, end in national_ids(text, jurisdiction)]


# From the documentation of the checks, or invented; all with right check digits.
NUMBERS = [
    ("AT", "1237 010180"),
    ("AU", "123 456 782"),
    ("BE", "85.07.30-033.28"),
    ("BG", "7523169263"),
    ("BR", "390.533.447-05"),
    ("CA", "123-456-782"),
    ("CH", "756.9217.0769.85"),
    ("CY", "10259033P"),
    ("CZ", "710319/2745"),
    ("DE", "36 574 261 809"),
    ("DE", "36/574/261/809"),
    ("DK", "211062-5629"),
    ("EE", "36805280109"),
    ("ES", "54362315K"),
    ("ES", "54.362.315-K"),
    ("ES", "X-2482300W"),
    ("FI", "131052-308T"),
    ("FR", "2 95 10 99 126 111 93"),
    ("GB", "943 476 5870"),
    ("GB", "AB 12 34 56 C"),
    ("GR", "01013099997"),
    ("IE", "6433435F"),
    ("IN", "2341 2341 2346"),
    ("IN", "ACUPA7085R"),
    ("IS", "120174-3399"),
    ("IT", "RCCMNL83S18D969H"),
    ("LT", "33309240064"),
    ("LV", "161175-19997"),
    ("MX", "BOXW310820HNERXN09"),
    ("NL", "1112.22.333"),
    ("NO", "151086 95088"),
    ("PL", "44051401359"),
    ("PT", "00000000 0 ZZ4"),
    ("RO", "1630615123457"),
    ("SE", "880320-0016"),
    ("SI", "0101006500006"),
    ("SK", "710319/2745"),
    ("TR", "17291716060"),
    ("US", "536-90-4399"),
    ("ZA", "7503305044089"),
]


@pytest.mark.parametrize(("jurisdiction", "number"), NUMBERS)
def test_a_number_is_found_in_texts_from_its_country(jurisdiction: str, number: str) -> None:
    assert number in found(f"They wanted my number ({number}), again.", jurisdiction)


@pytest.mark.parametrize(("jurisdiction", "number"), NUMBERS)
def test_a_number_is_not_found_within_another_token(jurisdiction: str, number: str) -> None:
    assert found(f"x{number}", jurisdiction) == []
    assert number not in found(f"#{number}", jurisdiction)
    assert number not in found(f"{number}77", jurisdiction)


@pytest.mark.parametrize(
    ("jurisdiction", "number"),
    [
        ("AT", "1238 010180"),
        ("CH", "756.9217.0769.84"),
        ("DE", "36 574 261 808"),
        ("FI", "131052-308U"),
        ("FR", "2 95 10 99 126 111 94"),
        ("GB", "943 476 5871"),
        ("IE", "6433435E"),
        ("NL", "1112.22.334"),
        ("NO", "151086 95089"),
        ("PL", "44051401358"),
        ("US", "666-90-4399"),
    ],
)
def test_a_number_needs_its_check_digits_or_range(jurisdiction: str, number: str) -> None:
    assert found(f"number {number}", jurisdiction) == []


@pytest.mark.parametrize("jurisdiction", [None, "DE", "ZZ"])
def test_what_no_other_number_looks_like_is_found_everywhere(jurisdiction: str | None) -> None:
    for number in ("756.9217.0769.85", "RCCMNL83S18D969H", "131052-308T", "536-90-4399"):
        assert found(number, jurisdiction) == [number]


def test_what_other_numbers_look_like_is_found_in_its_country_only() -> None:
    assert found("943 476 5870", "GB") == ["943 476 5870"]
    assert found("943 476 5870", "DE") == []
    assert found("943 476 5870", None) == []


@pytest.mark.parametrize(
    ("jurisdiction", "word", "number"),
    [
        ("AU", "TFN", "123456782"),
        ("CA", "my SIN is", "123456782"),
        ("GB", "NHS no.", "9434765870"),
        ("HR", "OIB", "33392005961"),
        ("NL", "BSN:", "111222333"),
        ("PT", "NIF", "501 964 843"),
        ("US", "social security", "536904399"),
        ("US", "SSN", "536 90 4399"),
    ],
)
def test_bare_digits_take_a_word_that_announces_them(
    jurisdiction: str, word: str, number: str
) -> None:
    assert number in found(f"{word} {number}", jurisdiction)
    assert found(f"order {number}", jurisdiction) == []


def test_small_letters_are_no_national_insurance_number() -> None:
    assert found("at 10 20 30 a", "GB") == []
