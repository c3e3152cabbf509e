"""What finds identifiers in a text: one function for each of the policy's detectors.

The text is a folded one (see `redact.fold`): all digits are ASCII.

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

MAX_PHONE_CHECKS = 2_000
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

# Not all that may stand there: `=`, `/`, `?` and `&` rather begin an address than belong to it.
_LOCAL_REVERSED = re.compile(r"[\w%'+~.-]{1,64}")
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
            written = local[0][::-1].lstrip("%'~.-")
            if written:
                start, end = at - len(written), domain.end()
                yield Found(start, end, "email", text[start:end].casefold())
        at = text.find("@", at + 1)


# Telephone numbers.

_SEPARATOR = r"(?: ?[/-] ?|[ -]?\(| ?\)[ /-]?|[ .])"
# What stands before is looked at behind the first character, because a search is quick where a
# pattern begins with few characters. A group has two digits at least, but for the first two, the
# zero of "+44 (0)20" and an extension: so there are few groups to try.
_PHONE = re.compile(
    r"[+(0-9](?<!\w.)(?<![\w#§$£€][-./_=,].)(?<!\d:.)(?<![#§$£€&=+.,].)"
    r"(?:(?<=\+) ?\(?\d|(?<=\()\+?\d|(?<=\d))\d{0,14}(?:[ .-]\d(?=[ .-]\d\d))?"
    rf"(?:{_SEPARATOR}(?:\d{{2,15}}|0(?=\))|(?<=0\))\d|(?<=0\) )\d)){{0,8}}(?:-\d)?(?!\w)"
)
_OTHER_NUMBER = re.compile(
    r"\d{1,3}(?:\.\d{1,3}){3}(?![./ -]?\d)"  # An IP address.
    r"|[1-9]\d{3}(?:[ -]\d{4}){2,}+"  # A payment card, or what looks like one.
)
_DATE = re.compile(
    r"(?:(?:0?[1-9]|[12]\d|3[01])([./-])(?:0?[1-9]|[12]\d|3[01])\1(?:19|20)?\d{2}"
    r"|(?:19|20)\d{2}([./-])(?:0?[1-9]|1[0-2])\2(?:0?[1-9]|[12]\d|3[01]))(?![./-]?\d)"
)
_DIGITS = re.compile("[0-9]+")
_AMOUNT_AFTER = re.compile(r"[,.:]\d| ?(?:[€$£%°]|EUR|USD|CHF|GBP|Euro|euros?|zł)")
_PHONE_CUE = re.compile(
    r"(?<![^\W_])(?:tel|fon|phone|telephone|telefon|t[eé]l[eé]phone|mobile?|mob|handy|natel|cell|fax|"
    r"whatsapp|signal|sms|chiam|ll[aá]m|call|ring|text|dial|contact|reach|appel|compose|joindre|portable|ruf|anruf|"
    r"wähl|durchwahl|erreich)",
    re.IGNORECASE,
)
_CUE_CHARS = 24
# Where a number of another place or of a mobile telephone is never written without its zero.
_ZERO_FIRST = frozenset(
    {
        *("AT", "BE", "BG", "CH", "DE", "FI", "FR", "GB", "HR", "HU", "IE", "LI", "NL", "RO", "SE"),
        *("SI", "SK", "ZA"),
    }
)


def phones(text: str, record: Record) -> Iterator[Found]:
    """International numbers, and those of the subject's country as they are written there."""
    match = _PHONE.search(text)
    while match:
        other = _OTHER_NUMBER.match(text, match.start())
        found = None if other or _DATE.match(text, match.start()) else _phone(text, match, record)
        if found:
            yield found
            after = found.end
        elif other:
            after = other.end()
        else:
            first = _DIGITS.search(text, match.start())
            assert first, "there is a digit in every match"
            after = first.end()
        match = _PHONE.search(text, after)


def _phone(text: str, match: re.Match[str], record: Record) -> Found | None:
    """The longest number that the match begins with, group by group."""
    start = match.start()
    if match[0].startswith("(") and match[0].count("(") > match[0].count(")"):
        start += 1
    ends = []
    digits = 0
    for group in _DIGITS.finditer(text, start, match.end()):
        digits += len(group[0])
        if 7 <= digits <= 17 and not _AMOUNT_AFTER.match(text, group.end()):
            ends.append(group.end())
    if not ends:
        return None
    cue = bool(_PHONE_CUE.search(text, max(0, start - _CUE_CHARS), start))
    if not cue and text[start] not in "+(0" and record.jurisdiction in _ZERO_FIRST:
        return None
    for end in reversed(ends):
        key = _phone_key(text[start:end], cue, record)
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
    if not bare.startswith(("+", "0")):
        return _checked_without_prefix(bare, cue, region)
    if bare.startswith("0") and region is None:
        return None
    number = _parsed(bare, region)
    if number is None:
        return None
    guessed = (cue or bare.startswith("+")) and _could_be(number)
    return _e164(number) if guessed or phonenumbers.is_valid_number(number) else None


def _checked_without_prefix(written: str, cue: bool, region: str | None) -> str | None:
    """The same for what begins with no `+` and no zero.

    Many numbers have eight to ten digits: it takes a word before this one, or the groups in which
    the country writes telephone numbers.
    """
    if region is None or (not cue and (region in _ZERO_FIRST or written.isdigit())):
        return None
    if cue:
        number = _parsed(written, region)
        return _e164(number) if number and phonenumbers.is_valid_number(number) else None
    strict = phonenumbers.Leniency.STRICT_GROUPING
    matches = PhoneNumberMatcher(written, region, strict, max_tries=1)
    return _e164(matches.next().number) if matches.has_next() else None


def _parsed(written: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(written, region)
    except NumberParseException:
        return None


def _e164(number: phonenumbers.PhoneNumber) -> str:
    return phonenumbers.format_number(number, PhoneNumberFormat.E164)


def _could_be(number: phonenumbers.PhoneNumber) -> bool:
    """Whether the length is right; numbers for examples and fiction are not assigned."""
    reason = phonenumbers.is_possible_number_with_reason(number)
    digits = len(f"{number.country_code}{number.national_number}")
    return digits >= 10 and reason == phonenumbers.ValidationResult.IS_POSSIBLE


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
_IBAN_CHECK_DIGITS = re.compile(
    r"[0-9]\d(?:(?<=[A-Za-z]\d\d)|(?<=[A-Za-z][ -]\d\d))(?=[ .-]{0,2}[\dA-Za-z]{2})"
)
_IBAN_COUNTRY = re.compile(r"(?<![^\W_])([A-Za-z]{2})[ -]?$")


@cache
def _iban_rest(length: int) -> re.Pattern[str]:
    return re.compile(rf"(?:[ .-]{{0,2}}[\da-z]){{{length - 4}}}(?![^\W_])", re.IGNORECASE)


def ibans(text: str, _record: Record) -> Iterator[Found]:
    """IBANs of all countries that have them, in groups or in one piece."""
    for digits in _IBAN_CHECK_DIGITS.finditer(text):
        country = _IBAN_COUNTRY.search(text, max(0, digits.start() - 4), digits.start())
        length = _IBAN_LENGTHS.get(country[1].upper()) if country else None
        rest = _iban_rest(length).match(text, digits.end()) if length else None
        if country and rest:
            key = re.sub("[ .-]", "", text[country.start() : rest.end()]).upper()
            if _mod_97(key) == 1 and iban_check.is_valid(key):
                yield Found(country.start(), rest.end(), "iban", key)


def _mod_97(iban: str) -> int:
    """What the check digits see to, for being quick where they are wrong."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97


# Groups of digits that belong together; not the later ones of an IBAN.
_DIGIT_GROUPS = re.compile(r"[0-9](?<!\w.)(?<!\d[ .].)(?<!\w[-/].)\d*(?:[ .-]{1,2}\d+)*+")
_CARDS = tuple(
    re.compile(rf"(?:{written})(?!\w|[-.]\d)")
    for written in (
        r"\d{13,19}",
        r"\d{4}([ .-]{1,2})\d{4}\1\d{4}\1\d{4}",
        r"\d{4}([ .-]{1,2})\d{4}\1\d{4}\1\d{4}\1\d{1,3}",
        r"3\d{3}([ .-]{1,2})\d{6}\1\d{4,5}",
    )
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
    for groups in _DIGIT_GROUPS.finditer(text):
        group = _DIGITS.search(text, groups.start())
        while group and group.start() < groups.end():
            end = _card_end(text, group.start())
            if end:
                key = re.sub("[ .-]", "", text[group.start() : end])
                yield Found(group.start(), end, "card", key)
            group = _DIGITS.search(text, end or group.end())


def _card_end(text: str, start: int) -> int | None:
    """Where the card ends that begins at `start`; None where none does."""
    for written in _CARDS:
        match = written.match(text, start)
        number = re.sub("[ .-]", "", match[0]) if match else ""
        if match and _ISSUER.fullmatch(number) and luhn.is_valid(number):
            return match.end()
    return None


# IP addresses.

_IPV4 = re.compile(r"[0-9](?<![\w.].)(?<!\w[-/].)\d{0,2}(?:\.\d{1,3}){3}(?!\w|\.\d|-\w)")
_VERSION_BEFORE = re.compile(
    r"(?:\bv|version|release|build|firmware|fassung|ausgabe|update|kapitel|chapter|section|[§#])[\s.:=]{0,3}$",
    re.IGNORECASE,
)
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[\da-f]{0,4}:[\da-f]{0,4}:)[\da-f:]{2,39}(?:\.\d{1,3}){0,3}(?![\w:])",
    re.IGNORECASE,
)
_HEX_GROUP = re.compile("[0-9a-f]{3}", re.IGNORECASE)
# Those that are the same in every house and say nothing about anybody.
_NOBODYS = tuple(
    (network.version, int(network.network_address), int(network.netmask))
    for network in map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.168.0.0/16", "224.0.0.0/3"),
            *("::/127", "fc00::/7", "fe80::/10", "ff00::/8"),
        ),
    )
)


def ips(text: str, _record: Record) -> Iterator[Found]:
    """IPv4 and IPv6 addresses that are not private, local or reserved; no version numbers."""
    for match in _IPV4.finditer(text):
        # One address in 4,000 has fewer long numbers; most versions and sections have.
        long_numbers = sum(len(number) > 1 for number in match[0].split("."))
        version = _VERSION_BEFORE.search(text, max(0, match.start() - 12), match.start())
        if long_numbers >= 2 and not version:
            yield from _ip(match)
    if ":" in text:
        for match in _IPV6.finditer(text):
            if _HEX_GROUP.search(match[0]) and _DIGITS.search(match[0]):
                yield from _ip(match)


def _ip(match: re.Match[str]) -> Iterator[Found]:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return
    for version, network, mask in _NOBODYS:
        if address.version == version and int(address) & mask == network:
            return
    yield Found(*match.span(), "ip", str(address))


# National ids.


def ids(text: str, record: Record) -> Iterator[Found]:
    """Numbers of persons: those of the subject's country, and those that are unmistakable."""
    for start, end in national_ids(text, record.jurisdiction):
        yield Found(start, end, "national-id", re.sub(r"\W", "", text[start:end]).upper())


# URLs that name a person.

_WITH_USER = re.compile(
    r"(?<![a-z\d+.-])[a-z][a-z\d+.-]{1,20}://[^\s/?#<>\"]{1,256}@[^\s<>\"@]+", re.IGNORECASE
)
_PROFILE = re.compile(
    r"""(?:https?://)?(?:[a-z\d-]{1,63}\.){0,3}(?:
      linkedin\.com/(?:in|pub)/ | xing\.com/profile/ | bsky\.app/profile/
    | (?:x|twitter|instagram|facebook|fb|github|gitlab|soundcloud|vk|pinterest)\.com/(?!\W)
    | bitbucket\.org/ | codeberg\.org/ | t\.me/ | twitch\.tv/ | keybase\.io/ | paypal\.me/
    | (?:tiktok|youtube|medium)\.com/@ | threads\.(?:net|com)/@ | snapchat\.com/add/
    | reddit\.com/u(?:ser)?/ | youtube\.com/user/ | orcid\.org/(?=\d) | about\.me/
    )@?(?P<name>[\w.%-]{1,100})""",
    re.IGNORECASE | re.VERBOSE,
)
_HOST_END = re.compile(r"\.[A-Za-z\d-]{2,24}(?::\d{1,5})?/")
_HOST_REVERSED = re.compile(r"[\w.-]{0,255}(?://:s?ptth)?", re.IGNORECASE)
_REST_OF_URL = re.compile(r"[^\s<>\"]*")
_PERSON_PATH = re.compile(
    r"https?://[^\s/<>\"@]{1,255}/(?:[@~](?=[^\W\d])|(?:u|users?|profiles?|people)/@?)"
    r"(?P<name>[^\W_][\w.-]{0,100}(?:@[\w.-]{1,255})?)",
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
            yield _url(text, *match.span())
    done = 0
    for end in _HOST_END.finditer(text):
        if end.start() < done:
            continue
        host = _HOST_REVERSED.match(text[max(0, end.start() - 264) : end.start()][::-1])
        start = end.start() - (host.end() if host else 0)
        page = _PROFILE.match(text, start) or _PERSON_PATH.match(text, start)
        if page and text[start - 1 : start] != "@" and not _is_no_name(page["name"]):
            rest = _REST_OF_URL.match(text, page.end())
            done = rest.end() if rest else page.end()
            yield _url(text, start, done)


def _is_no_name(name: str) -> bool:
    return name.rstrip(".-").casefold() in _NO_NAMES


def _url(text: str, start: int, end: int) -> Found:
    written = text[start:end].rstrip(".,;:!?'\u2019»”*_")
    if "(" not in written:
        written = written.rstrip(").,;:!?]}'")
    key = re.sub(r"^https?://(?:www\.)?", "", written.casefold()).rstrip("/")
    return Found(start, start + len(written), "url", key)


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
_TOKEN_CHARS_MIN = 15
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:"
    r"(?:[^-]|-(?!-))*+-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:\s+[A-Za-z0-9+/=]{16,})*)"
)
_AUTHORIZATION = re.compile(
    r"\b(?:bearer|basic)\s{1,3}((?=[a-z.~+/=-]*+\d)[\w.~+/=-]{16,})", re.IGNORECASE
)
# One of these is in whatever `_ASSIGNED` matches.
_NAMES_OF_SECRETS = ("pass", "kennwort", "mdp", "pw", "secret", "key", "token", "schl", "jeton")
_ASSIGNED = re.compile(
    r"(?:(?P<pass>passwor[dt]|passwd|passphrase|kennwort|mot de passe|\b(?:mdp|pass|pw)|pwd)"
    r"|secret(?:[_-]?key)?|(?:api|access|private)[_-]?key|token|schlüssel|jeton)[s\d]{0,2}[\"'`]?"
    r"(?:(?:\sis|\sist|\sest)?\s{0,3}(?P<sign>:=|=>|[:=])"
    r"|\s(?P<word>is|was|ist|war|lautet|est|était)\s)\s{0,3}"
    r"(?P<quote>[\"'`«„“]?)\s?(?P<value>[^\s\"'`«»“”]{4,})",
    re.IGNORECASE,
)
_AFTER_A_VALUE = ".,;:)]}>"
_STANDS_FOR_ONE = re.compile(r"\$\{?\w+\}?$|%\w+%$|[<{\[(]|[a-zA-Z_][\w.]*[(\[]|(.)\1*$|https?://")
_NO_VALUES = frozenset({"false", "none", "null", "required", "true", "undefined"})


def secrets(text: str, _record: Record) -> Iterator[Found]:
    """Keys and tokens with the marks of their makers, private keys, and assigned passwords."""
    yield from _marked_tokens(text)
    if "-----BEGIN" in text:
        for match in _PRIVATE_KEY.finditer(text):
            yield Found(*match.span(), "secret", match[0])
    lowered = text.lower()
    if "bearer " in lowered or "basic " in lowered:
        for match in _AUTHORIZATION.finditer(text):
            yield _value(match.start(1), match[1])
    if any(word in lowered for word in _NAMES_OF_SECRETS):
        for match in _ASSIGNED.finditer(text):
            if _is_secret(match):
                yield _value(match.start("value"), match["value"])


def _marked_tokens(text: str) -> Iterator[Found]:
    end = 0
    for word in text.split():
        if len(word) >= _TOKEN_CHARS_MIN:
            start = text.index(word, end)
            end = start + len(word)
            for match in _SECRETS.finditer(text, start, end):
                yield Found(*match.span(), "secret", match[0])


def _value(start: int, written: str) -> Found:
    value = written.rstrip(_AFTER_A_VALUE)
    return Found(start, start + len(value), "secret", value)


def _is_secret(match: re.Match[str]) -> bool:
    """Whether an assigned value is one itself, and not a word of the sentence that goes on."""
    value = match["value"].rstrip(_AFTER_A_VALUE)
    if (
        len(value) < (4 if match["pass"] else 6)
        or _STANDS_FOR_ONE.match(value)
        or value.casefold() in _NO_VALUES
    ):
        return False
    digits = bool(_DIGITS.search(value))
    if match["word"]:
        return digits and not value.isdigit() and len(value) >= 6
    capitals = value[1:] != value[1:].lower()
    return digits or capitals or match["sign"] == "=" or bool(match["quote"])


# Names of persons.


def names(text: str, _record: Record) -> Iterator[Found]:
    """Names behind a title, "my name is" and the like, or below a greeting."""
    # It takes seconds to import, and needs an extra of its own.
    from consentgate.redaction.names import find_names  # noqa: PLC0415

    yield from find_names(text)


DETECT: dict[str, Detector] = {
    "secret": secrets,
    "url": urls,
    "iban": ibans,
    "email": emails,
    "card": cards,
    "national-id": ids,
    "ip": ips,
    "phone": phones,
    "name": names,
}
"""All detectors by their names, the most specific first."""

NEEDS = {
    "secret": re.compile(""),
    "url": re.compile(r"\.[\w-]+(?::\d+)?/|://"),
    "iban": re.compile(r"[0-9]\d[ .-]{0,2}[\dA-Za-z]{2}"),
    "email": re.compile("@"),
    "card": re.compile(r"[0-9](?:[ .-]{0,2}\d){12}"),
    "national-id": re.compile(
        r"[0-9](?:(?:[ ./-]{0,2}\d){5}|\d{3}[A-Za-z]|\d[A-Za-z]\d\d[A-Za-z]\d{3}[A-Za-z])"
    ),
    "ip": re.compile(r"[0-9:](?:(?<=\d)\.\d{1,3}\.\d|[\da-fA-F]{0,4}:)"),
    "phone": re.compile(r"[0-9](?:[ ./()-]{0,4}\d){6}"),
    "name": re.compile(""),
}
"""What a text without is not worth a detector's time. Each of them finds this in what it finds, and
begins with few characters, so that it is fast."""
