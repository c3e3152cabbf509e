"""National identity, insurance and tax numbers of persons, country by country.

How a number is written is a pattern of this module; whether it can be one - check digits, dates,
ranges - is for python-stdnum to say. Where the check lets every tenth number pass and many numbers
are written like that, it counts only behind a word that announces it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module

CUE_CHARS = 40
"""How far before a number the word that announces it may begin."""

# Where a number may begin: at a digit with five more to come, or with up to six letters before a
# digit. Both are looked for from the digit, because a search is quick where a pattern begins with
# few characters.
_DIGITS_FIRST = re.compile(r"[0-9](?<![\w#].)(?<![\w#][-./_=].)(?=(?:[ ./-]{0,2}\d){5})")
_DIGIT_AFTER_LETTER = re.compile(r"[0-9](?:(?<=[A-Za-z].)|(?<=[A-Za-z][ -].))")
_LETTERS_BEFORE = re.compile(r"(?<![\w#])(?<![\w#][-./_=])[A-Za-z]{1,6}[ -]?$")
# Hyphens stay: the checks know where they belong, and in some numbers they mean something.
_SEPARATORS = re.compile("[ ./]")
_END = r"(?!\w)(?![-./_]\w)"


@dataclass(frozen=True, slots=True)
class NationalId:
    """One kind of number as the people of one country write it."""

    written: re.Pattern[str]
    is_valid: Callable[[str], bool]
    cue: re.Pattern[str] | None
    """What must stand in the `CUE_CHARS` before it; None: nothing."""

    def end(self, text: str, start: int) -> int | None:
        """Where the number ends that begins at `start`; None where none does."""
        match = self.written.match(text, start)
        if match and self._announced(text, start) and self.is_valid(_SEPARATORS.sub("", match[0])):
            return match.end()
        return None

    def _announced(self, text: str, start: int) -> bool:
        return self.cue is None or bool(self.cue.search(text, max(0, start - CUE_CHARS), start))


def national_ids(text: str, jurisdiction: str | None) -> Iterator[tuple[int, int]]:
    """Start and end of each number in a text of somebody who lives in `jurisdiction`.

    That is an ISO alpha-2 code. The numbers are the country's own, and those of other countries
    that no other number looks like; only the latter where nobody knows the country.
    """
    any_kind, kinds = _kinds(jurisdiction)
    for start in _starts(text):
        if any_kind.match(text, start):
            for kind in kinds:
                end = kind.end(text, start)
                if end:
                    yield start, end


@cache
def _kinds(jurisdiction: str | None) -> tuple[re.Pattern[str], tuple[NationalId, ...]]:
    """What is looked for in a country, and a pattern that matches where one of it is written."""
    kinds = (*_OWN.get(jurisdiction or "", ()), *_UNMISTAKABLE)
    # The pattern has no groups: where a kind repeats a separator, any one will do.
    shapes = "|".join(kind.written.pattern.replace(r"\1", "[ .-]?") for kind in kinds)
    return re.compile(shapes, re.IGNORECASE), kinds


def _starts(text: str) -> Iterator[int]:
    for digit in _DIGITS_FIRST.finditer(text):
        yield digit.start()
    for digit in _DIGIT_AFTER_LETTER.finditer(text):
        letters = _LETTERS_BEFORE.search(text, max(0, digit.start() - 7), digit.start())
        if letters:
            yield letters.start()


def _id(written: str, check: str | None = None, cue: str | None = None) -> NationalId:
    """`check` is a module of python-stdnum; None where there are no check digits."""
    return NationalId(
        re.compile(f"(?:{written}){_END}", re.IGNORECASE),
        import_module(f"stdnum.{check}").is_valid if check else _always,
        re.compile(rf"(?<!\w)(?:{cue})", re.IGNORECASE) if cue else None,
    )


def _always(_number: str) -> bool:
    return True


_DDMM = r"(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])"
_THREES = r"\d{3}([ -])\d{3}\1\d{3}"

_AHV = _id(r"756([. -]?)\d{4}\1\d{4}\1\d{2}", "ch.ssn")
_CODICE_FISCALE = _id(r"[a-z]{6}[\da-z]{2}[a-z][\da-z]{2}[a-z][\da-z]{3}[a-z]", "it.codicefiscale")
_CPF = _id(r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf")
_CURP = _id(r"[a-z]{4}\d{6}[hm][a-z]{5}[\da-z]\d", "mx.curp")
_HETU = _id(rf"{_DDMM}\d{{2}}[-+a-fu-y]\d{{3}}[\da-y]", "fi.hetu")
_NIE = _id(r"[xyz]-?\d{7}-?[a-z]", "es.nie")
_NIR = _id(
    r"[12][ .]?\d{2}[ .]?(?:0[1-9]|1[0-2]|[2-9]\d)[ .]?(?:\d{2}|2[ab])"
    r"[ .]?\d{3}[ .]?\d{3}[ .]?\d{2}",
    "fr.nir",
)
_RIJKSREGISTER = _id(r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", "be.ssn")
_SSN = _id(r"\d{3}-\d{2}-\d{4}", "us.ssn")

_UNMISTAKABLE = (
    _AHV,
    _CODICE_FISCALE,
    _CPF,
    _CURP,
    _HETU,
    _NIE,
    _NIR,
    _RIJKSREGISTER,
    _SSN,
)

_RODNE_CISLO = r"\d{6}/\d{3,4}|\d{10}"
_NINO = (
    # Capitals only: "at 10 20 30 a" is none.
    r"(?-i:(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PRSTW-Z][A-CEGHJ-NPRSTW-Z](?: ?\d{2}){3} ?[A-D])"
)

_OWN: dict[str, tuple[NationalId, ...]] = {
    "AT": (_id(rf"\d{{4}}[ /-]?{_DDMM}\d{{2}}", "at.vnr"),),
    "AU": (_id(_THREES, "au.tfn"), _id(r"\d{8,9}", "au.tfn", "tfn|tax file")),
    "BE": (_id(r"(?:\d{2}[. ]?){3}[- ]?\d{3}[. -]?\d{2}", "be.ssn"),),
    "BG": (_id(r"\d{10}", "bg.egn"),),
    "BR": (_id(r"\d{11}", "br.cpf"),),
    "CA": (_id(_THREES, "ca.sin"), _id(r"\d{9}", "ca.sin", "sin|nas|social insurance")),
    "CY": (_id(r"\d{8}[a-z]", "cy.vat"),),
    "CZ": (_id(_RODNE_CISLO, "cz.rc"),),
    "DE": (_id(r"[1-9]\d[ ./]?\d{3}[ ./]?\d{3}[ ./]?\d{3}", "de.idnr"),),
    "DK": (_id(r"\d{6}-\d{4}", "dk.cpr"), _id(r"\d{6} ?\d{4}", "dk.cpr", "cpr|person")),
    "EE": (_id(r"[1-8]\d{10}", "ee.ik"),),
    "ES": (_id(r"(?:\d{8}|\d{2}\.\d{3}\.\d{3})-?[a-z]", "es.dni"),),
    "FR": (_id(r"[0-3]\d ?\d{2} ?\d{3} ?\d{3} ?\d{3}", "fr.nif"),),
    "GB": (
        _id(_NINO),
        _id(r"\d{3}([ -])\d{3}\1\d{4}", "gb.nhs"),
        _id(r"\d{10}", "gb.nhs", "nhs"),
        _id(r"\d{10}|\d{5} \d{5}", "gb.utr", "utr|unique taxpayer"),
    ),
    "GR": (_id(rf"{_DDMM}\d{{7}}", "gr.amka"), _id(r"\d{9}", "gr.vat", "\u03b1\u03c6\u03bc|afm")),
    "HR": (_id(r"\d{11}", "hr.oib", "oib"),),
    "IE": (_id(r"\d{7}[a-w][a-iw]?", "ie.pps"),),
    "IN": (
        _id(r"[2-9]\d{3}([ -])\d{4}\1\d{4}", "in_.aadhaar"),
        _id(r"\d{12}", "in_.aadhaar", "aadhaar|aadhar|uid"),
        _id(r"[a-z]{3}[abcfghljpt][a-z]\d{4}[a-z]", "in_.pan"),
    ),
    "IS": (_id(r"\d{6}-?\d{4}", "is_.kennitala"),),
    "IT": (),
    "LT": (_id(r"[1-6]\d{10}", "lt.asmens"),),
    "LV": (_id(r"\d{6}-\d{5}", "lv.pvn"), _id(r"\d{11}", "lv.pvn", "person")),
    "NL": (
        _id(r"\d{4}\.\d{2}\.\d{3}", "nl.bsn"),
        _id(r"\d{8,9}", "nl.bsn", "bsn|burgerservice|sofi"),
    ),
    "NO": (_id(r"[0-7]\d(?:[048]\d|[159][0-2])\d{2}[ -]?\d{5}", "no.fodselsnummer"),),
    "PL": (_id(r"\d{11}", "pl.pesel"),),
    "PT": (
        _id(r"\d{8} ?\d ?[\da-z]{2}\d", "pt.cc"),
        _id(r"\d{3} ?\d{3} ?\d{3}", "pt.nif", "nif|contribuinte"),
    ),
    "RO": (_id(r"[1-9]\d{12}", "ro.cnp"),),
    "SE": (_id(r"(?:19|20)?\d{6}[-+]?\d{4}", "se.personnummer"),),
    "SI": (_id(rf"{_DDMM}\d{{9}}", "si.emso"),),
    "SK": (_id(_RODNE_CISLO, "sk.rc"),),
    "TR": (_id(r"[1-9]\d{10}", "tr.tckimlik"),),
    "US": (
        _id(r"\d{3}-\d{2}-\d{4}", "us.itin"),
        _id(r"\d{3} ?\d{2} ?\d{4}", "us.ssn", "ssn|social"),
    ),
    "ZA": (_id(r"\d{6} ?\d{4} ?\d{3}", "za.idnr"),),
}
