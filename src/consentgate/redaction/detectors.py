"""What finds identifiers in a text: one function for each of the policy's detectors.

Each pattern takes time in proportion to the text. It begins only where a token begins, or is led by
a fixed string, and what it may repeat is bounded or excludes what comes next.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, TypeAlias

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumberFormat, PhoneNumberMatcher
from stdnum import iban as iban_check
from stdnum import luhn, numdb

from consentgate.redaction.national_ids import national_ids

MAX_PHONE_CHECKS = 10_000
"""How many different rows of digits of one record are checked for being a telephone number.

A check takes some 30 µs. What comes beyond is taken for a telephone number unchecked, because a
record that has more is a table of numbers, and nobody knows whose.
"""


class Found(NamedTuple):
    """An identifier in a text."""

    start: int
    end: int
    kind: str
    """The detector."""
    key: str
    """The identifier without what people write in different ways: the same for the same one."""


@dataclass(slots=True)
class Record:
    """What detectors know beside the text, the same for all texts of one record."""

    jurisdiction: str | None
    """Where the subject lives: an ISO alpha-2 code, or None where nobody knows."""
    phones: dict[tuple[str, bool], str | None] = field(default_factory=dict)
    """What was checked so far, and whether with a cue: the number's key, None for no number."""


Detector: TypeAlias = Callable[[str, Record], Iterator[Found]]


# E-mail addresses: from each @ to both sides.

_LOCAL_REVERSED = re.compile(r"[\w!#$%&'*+/=?^`{|}~.-]{1,64}")
_DOMAIN = re.compile(
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,10}"
    r"(?:xn--[a-z\d-]{2,59}|[^\W\d_]{2,63})"
)


def emails(text: str, _record: Record) -> Iterator[Found]:
    """`anna@example.org`, also with other letters than ASCII, and within `@anna@example.org`."""
    at = text.find("@")
    while at != -1:
        domain = _DOMAIN.match(text, at + 1)
        local = _LOCAL_REVERSED.match(text[max(0, at - 64) : at][::-1]) if domain else None
        if domain and local:
            written = local[0][::-1].lstrip("!#$%&'*/=?^`{|}~.-")
            if written:
                start, end = at - len(written), domain.end()
                yield Found(start, end, "email", text[start:end].casefold())
        at = text.find("@", at + 1)


# Telephone numbers.

_SEPARATOR = r"(?: ?[-./()]{1,2} ?| )"
_PHONE = re.compile(
    r"(?<!\w)(?<![\w#§$£€][-./_=:,])(?<![#§$£€&=+.,])"
    # The later groups of a card or an IBAN that is none after all.
    r"(?!(?<=\d{4}[ -])\d{4}[ -]\d{4}(?!\d))"
    rf"(?:\+ ?)?\(?\+?\d{{1,15}}(?:{_SEPARATOR}\d{{1,15}}){{0,8}}"
    r"(?!\w)"
)
_DATE = re.compile(
    r"(?:(?:0?[1-9]|[12]\d|3[01])([./-])(?:0?[1-9]|[12]\d|3[01])\1(?:19|20)?\d{2}"
    r"|(?:19|20)\d{2}([./-])(?:0?[1-9]|1[0-2])\2(?:0?[1-9]|[12]\d|3[01]))(?![./-]?\d)"
)
_DIGITS = re.compile(r"\d+")
_AMOUNT_AFTER = re.compile(r"[,.:]\d| ?(?:[€$£%°]|EUR|USD|CHF|GBP|Euro|euros?|zł)")
_PHONE_CUE = re.compile(
    r"(?<![^\W_])(?:tel|fon|phone|telephone|telefon|t[eé]l[eé]phone|mobile?|mob|handy|natel|cell|fax|"
    r"whatsapp|signal|sms|call|ring|text|dial|contact|reach|appel|compose|joindre|portable|ruf|anruf|"
    r"wähl|durchwahl|erreich)",
    re.IGNORECASE,
)
_CUE_CHARS = 24


def phones(text: str, record: Record) -> Iterator[Found]:
    """International numbers, and those of the subject's country as they are written there."""
    match = _PHONE.search(text)
    while match:
        found = None if _DATE.match(text, match.start()) else _phone(text, match, record)
        if found:
            yield found
            after = found.end
        else:
            first = _DIGITS.search(text, match.start())
            assert first, "there is a digit in every match"
            after = first.end()
        match = _PHONE.search(text, after)


def _phone(text: str, match: re.Match[str], record: Record) -> Found | None:
    """The longest number that the match begins with, group by group."""
    start = match.start()
    if match[0].startswith("(") and ")" not in match[0]:
        start += 1
    cue = bool(_PHONE_CUE.search(text, max(0, start - _CUE_CHARS), start))
    for end in reversed([group.end() for group in _DIGITS.finditer(text, start, match.end())]):
        written = text[start:end]
        digits = sum(map(len, _DIGITS.findall(written)))
        if digits < 7:
            return None
        if digits <= 17 and not _AMOUNT_AFTER.match(text, end):
            key = _phone_key(written, cue, record)
            if key:
                return Found(start, end, "phone", key)
    return None


def _phone_key(written: str, cue: bool, record: Record) -> str | None:
    asked = written, cue
    if asked not in record.phones:
        if len(record.phones) >= MAX_PHONE_CHECKS:
            return "".join(_DIGITS.findall(written))
        record.phones[asked] = _checked_phone(written, cue, record.jurisdiction)
    return record.phones[asked]


def _checked_phone(written: str, cue: bool, region: str | None) -> str | None:
    """The number in the form E.164, or None where it is no telephone number."""
    bare = written.lstrip("(")
    if bare.startswith("00"):
        bare = "+" + bare[2:].lstrip()
    international = bare.startswith("+")
    if not international and region is None:
        return None
    try:
        number = phonenumbers.parse(bare, None if international else region)
    except NumberParseException:
        return None
    if international:
        known = phonenumbers.is_valid_number(number) or _could_be(number, 10)
    elif bare.startswith("0"):
        known = phonenumbers.is_valid_number(number) or (cue and _could_be(number, 9))
    else:
        known = phonenumbers.is_valid_number(number) and (cue or _grouped_as_usual(written, region))
    return phonenumbers.format_number(number, PhoneNumberFormat.E164) if known else None


def _could_be(number: phonenumbers.PhoneNumber, digits_min: int) -> bool:
    """Whether the length is right; numbers for examples and fiction are not assigned."""
    reason = phonenumbers.is_possible_number_with_reason(number)
    return (
        reason == phonenumbers.ValidationResult.IS_POSSIBLE
        and len(f"{number.country_code}{number.national_number}") >= digits_min
    )


def _grouped_as_usual(written: str, region: str | None) -> bool:
    """Whether a number without prefix is written in the country's groups; many numbers have eight
    to ten digits, and few are written like that."""
    if written.isdigit():
        return False
    strict = phonenumbers.Leniency.STRICT_GROUPING
    return PhoneNumberMatcher(written, region, leniency=strict, max_tries=1).has_next()


# Bank accounts and payment cards.


def _iban_lengths() -> dict[str, int]:
    registry = numdb.get("iban")
    lengths = {}
    for country in (a + b for a in _ALPHABET for b in _ALPHABET):
        properties = registry.info(country)[0][1]
        if properties:
            lengths[country] = 4 + sum(map(int, re.findall(r"\d+", properties["bban"])))
    return lengths


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_IBAN_LENGTHS = _iban_lengths()
_IBAN_HEAD = re.compile(r"(?<![^\W_])([a-z]{2})[ -]?\d{2}(?=[ -]?[\da-z])", re.IGNORECASE)


@cache
def _iban_rest(length: int) -> re.Pattern[str]:
    return re.compile(rf"(?:[ .-]?[\da-z]){{{length - 4}}}(?![^\W_])", re.IGNORECASE)


def ibans(text: str, _record: Record) -> Iterator[Found]:
    """IBANs of all countries that have them, in groups or in one piece."""
    for head in _IBAN_HEAD.finditer(text):
        length = _IBAN_LENGTHS.get(head[1].upper())
        rest = _iban_rest(length).match(text, head.end()) if length else None
        if rest:
            key = re.sub("[ .-]", "", text[head.start() : rest.end()]).upper()
            if iban_check.is_valid(key):
                yield Found(head.start(), rest.end(), "iban", key)


_CARD = re.compile(
    r"(?<![\w.])(?<!\w[-/])(?<!\d\d )"
    r"(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|3\d{3}([ -])\d{6}\2\d{4,5})"
    r"(?!\w|[ -]\d{4}(?!\d)|[-./]\d)"
)
# Issuers by the first digits, and their lengths.
_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]\d|[689]\d{2})\d{10}(?:\d{2,5})?"  # Diners Club
    r"|(?:6011|64[4-9]\d|65\d{2})\d{12}(?:\d{3})?"  # Discover
    r"|35(?:2[89]|[3-8]\d)\d{12}(?:\d{3})?"  # JCB
    r"|62\d{14}(?:\d{3})?"  # UnionPay
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15}"  # Maestro
)


def cards(text: str, _record: Record) -> Iterator[Found]:
    """Payment cards: an issuer's digits and length, the usual groups, and the check digit."""
    for match in _CARD.finditer(text):
        key = match[0].replace(" ", "").replace("-", "")
        if _ISSUER.fullmatch(key) and luhn.is_valid(key):
            yield Found(*match.span(), "card", key)


# IP addresses.

_IPV4 = re.compile(r"(?<![\w.])(?<![\w][-/])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d|-\w)")
_VERSION_BEFORE = re.compile(
    r"(?:\bv|version|release|build|firmware|fassung|ausgabe|update|[§#])[\s.:=]{0,3}$",
    re.IGNORECASE,
)
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[\da-f]{0,4}:[\da-f]{0,4}:)[\da-f:]{2,39}(?:\.\d{1,3}){0,3}(?![\w:])",
    re.IGNORECASE,
)
# Those that are the same in every house and say nothing about anybody.
_NOBODYS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "224.0.0.0/3",
        "::/127",
        "fc00::/7",
        "fe80::/10",
        "ff00::/8",
    )
)


def ips(text: str, _record: Record) -> Iterator[Found]:
    """IPv4 and IPv6 addresses that are not private, local or reserved; no version numbers."""
    for match in _IPV4.finditer(text):
        one_digit_each = len(match[0]) == 7
        version = _VERSION_BEFORE.search(text, max(0, match.start() - 12), match.start())
        if not one_digit_each and not version:
            yield from _ip(match)
    if ":" in text:
        for match in _IPV6.finditer(text):
            if len(match[0]) >= 6 and _DIGITS.search(match[0]):
                yield from _ip(match)


def _ip(match: re.Match[str]) -> Iterator[Found]:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return
    if not any(address in network for network in _NOBODYS):
        yield Found(*match.span(), "ip", str(address))


# National ids.


def ids(text: str, record: Record) -> Iterator[Found]:
    """Numbers of persons: those of the subject's country, and those that are unmistakable."""
    for kind in national_ids(record.jurisdiction):
        for start, end in kind.find(text):
            yield Found(start, end, "national-id", re.sub(r"\W", "", text[start:end]).upper())


# URLs that name a person.

_WITH_USER = re.compile(
    r"(?<![a-z\d+.-])[a-z][a-z\d+.-]{1,20}://[^\s/?#<>\"]{1,256}@[^\s<>\"@]+", re.IGNORECASE
)
_PROFILE = re.compile(
    r"""(?<![\w@.-])(?:https?://)?(?:[a-z\d-]{1,63}\.){0,3}(?:
      linkedin\.com/(?:in|pub)/ | xing\.com/profile/ | bsky\.app/profile/
    | (?:x|twitter|instagram|facebook|fb|github|gitlab|soundcloud|vk|pinterest)\.com/(?!\W)
    | bitbucket\.org/ | codeberg\.org/ | t\.me/ | twitch\.tv/ | keybase\.io/ | paypal\.me/
    | (?:tiktok|youtube|medium)\.com/@ | threads\.(?:net|com)/@ | snapchat\.com/add/
    | reddit\.com/u(?:ser)?/ | youtube\.com/user/ | orcid\.org/(?=\d) | about\.me/
    )@?(?P<name>[\w.%-]{1,100})[^\s<>"]*""",
    re.IGNORECASE | re.VERBOSE,
)
_PERSON_PATH = re.compile(
    r"https?://[^\s/<>\"@]{1,255}/(?:@|~|(?:u|users?|profiles?|people)/@?)"
    r"(?P<name>[^\W\d_][\w.-]{0,100}(?:@[\w.-]{1,255})?)[^\s<>\"]*",
    re.IGNORECASE,
)
# Pages of the sites themselves, where a name would stand.
_NO_NAMES = frozenset(
    {
        "about",
        "account",
        "apps",
        "blog",
        "collections",
        "company",
        "contact",
        "dashboard",
        "docs",
        "edit",
        "enterprise",
        "events",
        "explore",
        "features",
        "groups",
        "guide",
        "hashtag",
        "help",
        "home",
        "i",
        "index",
        "intent",
        "issues",
        "jobs",
        "join",
        "legal",
        "login",
        "logout",
        "marketplace",
        "messages",
        "new",
        "notifications",
        "orgs",
        "p",
        "pages",
        "pricing",
        "privacy",
        "pulls",
        "reel",
        "reels",
        "register",
        "search",
        "security",
        "settings",
        "share",
        "sharer",
        "signin",
        "signup",
        "site",
        "sponsors",
        "stories",
        "support",
        "team",
        "terms",
        "topics",
        "trending",
        "tv",
        "watch",
        "web",
    }
)


def urls(text: str, _record: Record) -> Iterator[Found]:
    """URLs with a user before the host, and pages of persons on sites that have such."""
    if "://" in text and "@" in text:
        for match in _WITH_USER.finditer(text):
            yield _url(match)
    for pattern in (_PROFILE, _PERSON_PATH):
        for match in pattern.finditer(text):
            if match["name"].rstrip(".-").casefold() not in _NO_NAMES:
                yield _url(match)


def _url(match: re.Match[str]) -> Found:
    written = match[0].rstrip(".,;:!?'\u2019»”*_")
    if "(" not in written:
        written = written.rstrip(").,;:!?]}'")
    key = re.sub(r"^https?://(?:www\.)?", "", written.casefold()).rstrip("/")
    return Found(match.start(), match.start() + len(written), "url", key)


# Secrets.

_SECRETS = re.compile(
    r"""(?<![A-Za-z0-9])(?:
      eyJ[\w-]{8,4000}\.eyJ[\w-]{4,8000}\.[\w-]{10,2000}         # JSON web tokens
    | (?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}                         # AWS
    | (?:gh[oprsu]_[A-Za-z0-9]{36,255}|github_pat_\w{40,255})     # GitHub
    | (?:glpat|gldt|glrt)-[\w-]{20,64}                            # GitLab
    | sk-(?:proj-|ant-|or-|svcacct-)?[\w-]{20,255}                # OpenAI, Anthropic and others
    | [rs]k_(?:live|test)_[A-Za-z0-9]{16,255}                     # Stripe
    | whsec_[A-Za-z0-9+/=]{16,100}
    | xox[a-z]-[\w-]{10,255} | xapp-\d-[\w-]{10,255}              # Slack
    | AIza[\w-]{35} | ya29\.[\w-]{20,500} | GOCSPX-[\w-]{28}      # Google
    | npm_[A-Za-z0-9]{36} | pypi-[\w-]{50,500}
    | hf_[A-Za-z]{30,40} | dop_v1_[a-f0-9]{64} | shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}
    | SG\.[\w-]{16,32}\.[\w-]{16,64} | key-[a-f0-9]{32} | AGE-SECRET-KEY-1[A-Z0-9]{58}
    | \d{8,10}:AA[\w-]{33}                                        # Telegram
    )(?![A-Za-z0-9])""",
    re.VERBOSE,
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:"
    r"(?:[^-]|-(?!-))*+-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:\s+[A-Za-z0-9+/=]{16,})*)"
)
_AUTHORIZATION = re.compile(r"\b(?:bearer|basic)\s{1,3}([\w.~+/=-]{16,})", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"(?:passwor[dt]|passwd|passphrase|kennwort|mot de passe|\bmdp|pwd|secret(?:[_-]?key)?"
    r"|api[_-]?key|access[_-]?key|private[_-]?key|token|schlüssel|jeton)\d{0,2}[\"'`]?"
    r"(?:\s{0,3}(?P<sign>:=|=>|[:=])|\s(?P<word>is|was|ist|war|lautet|est|était)\s)\s{0,3}"
    r"(?P<quote>[\"'`«„“]?)\s?(?P<value>[^\s\"'`«»“”]{4,})",
    re.IGNORECASE,
)
_STANDS_FOR_ONE = re.compile(r"\$\{?\w+\}?$|%\w+%$|[<{\[(]|(.)\1*$|https?://")
_NO_VALUES = frozenset({"false", "none", "null", "required", "true", "undefined"})


def secrets(text: str, _record: Record) -> Iterator[Found]:
    """Keys and tokens with the marks of their makers, private keys, and assigned passwords."""
    for match in _SECRETS.finditer(text):
        yield Found(*match.span(), "secret", match[0])
    if "-----BEGIN" in text:
        for match in _PRIVATE_KEY.finditer(text):
            yield Found(*match.span(), "secret", match[0])
    for match in _AUTHORIZATION.finditer(text):
        if _DIGITS.search(match[1]):
            yield _value(match.start(1), match[1])
    for match in _ASSIGNED.finditer(text):
        value = match["value"].rstrip(".,;:)]}>")
        if len(value) >= 4 and _is_secret(value, match):
            yield _value(match.start("value"), value)


def _value(start: int, value: str) -> Found:
    value = value.rstrip(".,;")
    return Found(start, start + len(value), "secret", value)


def _is_secret(value: str, match: re.Match[str]) -> bool:
    """Whether an assigned value is one itself, and not a word of the sentence that goes on."""
    if _STANDS_FOR_ONE.match(value) or value.casefold() in _NO_VALUES:
        return False
    mixed = bool(_DIGITS.search(value)) or (
        value != value.lower() and value[1:] != value[1:].lower()
    )
    if match["word"]:
        return len(value) >= 6 and bool(_DIGITS.search(value)) and not value.isdigit()
    return mixed or match["sign"] == "=" or bool(match["quote"])


DETECT: dict[str, Detector] = {
    "secret": secrets,
    "url": urls,
    "iban": ibans,
    "email": emails,
    "card": cards,
    "national-id": ids,
    "ip": ips,
    "phone": phones,
}
"""All detectors by their names, the most specific first."""

NEEDS = {
    "secret": re.compile(r"[\w-]{4}"),
    "url": re.compile("/"),
    "iban": re.compile(r"\d\d"),
    "email": re.compile("@"),
    "card": re.compile(r"\d{4}"),
    "national-id": re.compile(r"\d\d"),
    "ip": re.compile(r"\d\.\d|:[\da-fA-F]*:"),
    "phone": re.compile(r"\d\d"),
}
"""What a text without is not worth a detector's time."""
