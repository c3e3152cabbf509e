"""What each detector finds, and what looks like it and is left."""

import pytest

from consentgate.redaction.redact import Redactor


def found(detector: str, text: str, jurisdiction: str | None = "DE") -> list[str]:
    spans = Redactor([detector]).find(text, jurisdiction)
    assert {span.kind for span in spans} <= {detector}
    return [text[span.start : span.end] for span in spans]


@pytest.mark.parametrize(
    "address",
    [
        "anna@example.org",
        "Anna.Huber+news@mail.example.co.uk",
        "o'neill@example.org",
        "jürgen@müller.example",
        "a@xn--mller-kva.example",
    ],
)
def test_an_email_address_is_found_in_a_sentence(address: str) -> None:
    assert found("email", f"Write to <{address}>, or not.") == [address]
    assert found("email", f"mailto:{address}.") == [address]


def test_a_fediverse_handle_counts_as_an_email_address() -> None:
    assert found("email", "Follow @anna@social.example!") == ["anna@social.example"]


@pytest.mark.parametrize(
    "text",
    ["@anna says hi", "2 @ 3.50", "anna @ example.org", "anna@localhost", "a@b", "@", "x@.de"],
)
def test_what_only_has_an_at_sign_is_no_email_address(text: str) -> None:
    assert found("email", text) == []


@pytest.mark.parametrize(
    ("written", "jurisdiction"),
    [
        ("+49 30 23125 123", None),
        ("+44 (0)20 7946 0123", None),
        ("+44 7700 900123", None),  # Reserved for fiction, so of the right length only.
        ("+49-(0)171-3920012", None),
        ("+33 (0)6 12 34 56 78", None),
        ("0033 1 99 00 12 34", "DE"),
        ("030/23125-123", "DE"),
        ("(030) 23125 123", "DE"),
        ("0171-3920012", "DE"),
        ("06.12.34.56.78", "FR"),
        ("020 7946 0123", "GB"),
        ("(202) 555-0123", "US"),
        ("202.555.0123", "US"),
        ("612 34 56 78", "ES"),
        ("98765 43210", "IN"),
    ],
)
def test_a_telephone_number_is_found_as_it_is_written(
    written: str, jurisdiction: str | None
) -> None:
    assert found("phone", f"After six, please: {written}.", jurisdiction) == [written]
    assert found("phone", f"({written})", jurisdiction) == [written]


@pytest.mark.parametrize("jurisdiction", [None, "US", "AQ", "ZZ"])
def test_national_numbers_are_those_of_the_subject_s_country(jurisdiction: str | None) -> None:
    assert found("phone", "Tel. 030 23125 123 or 612 34 56 78", jurisdiction) == []


@pytest.mark.parametrize("before", ["Tel.:", "Tel:", "Mobil/Fax: ", "Tel. ", "\u260e", "T "])
def test_a_number_may_follow_its_label_at_once(before: str) -> None:
    assert found("phone", f"{before}0171 3920012") == ["0171 3920012"]


def test_digits_without_groups_take_a_word_before_them() -> None:
    assert found("phone", "order 2025550123", "US") == []
    assert found("phone", "call 2025550123", "US") == ["2025550123"]


def test_two_numbers_in_a_row_are_two() -> None:
    text = "0171 3920012 0171 3920013, 0171 3920014/0171 3920015"
    assert len(found("phone", text)) == 4


@pytest.mark.parametrize(
    "text",
    [
        "02.03.2024",
        "2024-03-02 12:30",
        "01/02/2024",
        "ISBN 978-3-16-148410-0",
        "RE-2024-03017",
        "#0301234567",
        "0301234,56 €",
        "5555 5555 5555",
        "4111 0111 1111 1112",
        "52.520008, 13.404954",
        "1.250.000",
        "192.168.178.1",
        "version 10.0.5209.140",
        "00340434292135100186",
        "018842",
    ],
)
@pytest.mark.parametrize("jurisdiction", ["DE", "FR", "GB", "US"])
def test_other_numbers_are_no_telephone_numbers(text: str, jurisdiction: str) -> None:
    assert found("phone", text, jurisdiction) == []


@pytest.mark.parametrize(
    "written",
    [
        "DE89 3704 0044 0532 0130 00",
        "DE89370400440532013000",
        "de89-3704-0044-0532-0130-00",
        "GB82 WEST 1234 5698 7654 32",
        "NO93 8601 1117 947",
        "DE 89 3704 0044 0532 0130 00",
        "DE89  3704  0044  0532  0130  00",
    ],
)
def test_an_iban_is_found_in_groups_and_in_one_piece(written: str) -> None:
    assert found("iban", f"IBAN:{written} Herzlichen Dank 2024") == [written]


@pytest.mark.parametrize(
    "text",
    ["DE88 3704 0044 0532 0130 00", "DE89 3704 0044 0532 0130", "XX89370400440532013000", "DE 12"],
)
def test_an_iban_needs_its_check_digits_and_its_length(text: str) -> None:
    assert found("iban", text) == []


@pytest.mark.parametrize(
    "written",
    [
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "5555555555554444",
        "3782 822463 10005",
        "378282246310005",
        "6011 1111 1111 1117",
        "4111.1111.1111.1111",
        "4111  1111  1111  1111",
    ],
)
def test_a_payment_card_is_found(written: str) -> None:
    assert found("card", f"my card {written}, exp 04/27") == [written]
    assert found("card", f"Card:{written} 04/27 123") == [written]
    assert found("card", f"{written} {written}") == [written, written]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # The check digit.
        "1111 1111 1111 1117",  # No issuer.
        "411111 1111111 111",  # No groups of a card.
        "a4111111111111111",
        "FR93 4111 1111 1111 1111 123",
        "41111111111111110000000",
    ],
)
def test_other_long_numbers_are_no_cards(text: str) -> None:
    assert found("card", text) == []


@pytest.mark.parametrize(
    "written", ["203.0.113.7", "2001:db8::8a2e:370:7334", "2001:DB8:0:0:8:800:200C:417A"]
)
def test_an_ip_address_is_found(written: str) -> None:
    assert found("ip", f"from [{written}], twice") == [written]
    assert found("ip", f"{written}.") == [written]


def test_the_port_is_no_part_of_the_address() -> None:
    assert found("ip", "203.0.113.7:8080") == ["203.0.113.7"]


@pytest.mark.parametrize(
    "text",
    [
        "1.2.3.4",
        "3.11.7.1",
        "a::b",
        "12::30",
        "version 10.20.30.40",
        "v10.20.30.40",
        "203.0.113.256",
        "203.0.113.7.1",
        "127.0.0.1",
        "192.168.178.1",
        "10.0.0.1",
        "255.255.255.0",
        "12:30:45",
        "::1",
        "fe80::1ff:fe23:4567:890a",
        "00:1a:2b:3c:4d:5e",
        "std::vector",
    ],
)
def test_versions_times_and_addresses_of_nobody_are_left(text: str) -> None:
    assert found("ip", text) == []


@pytest.mark.parametrize(
    "written",
    [
        "https://anna:geheim@git.example.org/repo.git",
        "postgresql://anna:p@ss@db.example.com:5432/shop",
        "https://www.linkedin.com/in/anna-huber-1234b2/",
        "linkedin.com/in/anna-huber",
        "https://x.com/annahuber/status/123",
        "https://github.com/annahuber",
        "https://mastodon.example/@anna",
        "https://gist.github.com/annahuber/0123abcd",
        "https://example.org/users/anna",
        "https://example.org/users/1234/anna",
        "https://example.org/~anna/cv.html",
    ],
)
def test_a_url_with_a_user_is_found_as_a_whole(written: str) -> None:
    assert found("url", f"Look ({written}), here.") == [written]


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/articles/2024",
        "https://www.linkedin.com/company/example/",
        "https://github.com/features/actions",
        "https://netflix.com/title",
        "https://maps.example.com/@52.5,13.4",
        "https://x.com/search?q=cats",
        "and/or",
        "http://",
        "linkedin.com/in/",
    ],
)
def test_a_url_without_a_user_is_left(text: str) -> None:
    assert found("url", text) == []


# Put together here, so that no scanner of sources takes them for leaked ones.
TOKENS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2" * 15,
    "glpat-" + "a1B2" * 5,
    "sk-" + "a1B2" * 12,
    "sk_live_" + "a1B2" * 6,
    "xoxb-" + "123456789012-abcdefABCDEF",
    "AIza" + "a1B2c" * 7,
    "npm_" + "a1B2" * 9,
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxIn0." + "c2lnbmF0dXJl" * 3,
    "-----BEGIN RSA PRIVATE KEY-----\n" + "a1B2" * 16 + "\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_found_by_the_mark_of_its_maker(token: str) -> None:
    assert found("secret", f"I leaked {token}. Sorry!") == [token]


def test_a_private_key_that_is_cut_off_is_found() -> None:
    key = "-----BEGIN PRIVATE KEY-----\n" + "a1B2" * 16
    assert found("secret", f"{key}\n\nThat is all.") == [key]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Password: tulip-rivet-42", "tulip-rivet-42"),
        ("Passwort: Sommer2034!.", "Sommer2034!"),
        ("Mot de passe : hiver-bleu-7, merci", "hiver-bleu-7"),
        ("DB_PASSWORD=correcthorse", "correcthorse"),
        ("api_key = 'abcd1234'", "abcd1234"),
        ('"password": "tulip"', "tulip"),
        ("my password is hunter2", "hunter2"),
        ("The passwords are two. pass: tulip42", "tulip42"),
        ("password is: tulip42", "tulip42"),
        ("Authorization: Bearer abcdef0123456789abcdef", "abcdef0123456789abcdef"),
    ],
)
def test_an_assigned_secret_is_found_without_its_name(text: str, value: str) -> None:
    assert found("secret", text) == [value]


@pytest.mark.parametrize(
    "text",
    [
        "My password is terrible and I know it.",
        "Passwort: siehe Aushang",
        "Mot de passe : demandez à l'accueil",
        "PASSWORD=$DB_PASSWORD",
        "token = next(tokens)",
        "password = os.environ['PASSWORD']",
        "API_KEY=<your key>",
        "password: ********",
        "api_key: xxxxxxxx",
        "token of appreciation",
        "Token: 2024 in review",
        "9f2c41d07a3b9f2c41d07a3b9f2c41d07a3b9f2c",
        "864e574d-cc3d-418e-ad1e-6f04249b119f",
        "risk-averse-people-are-not-secrets",
    ],
)
def test_talk_of_secrets_and_hashes_are_none(text: str) -> None:
    assert found("secret", text) == []
