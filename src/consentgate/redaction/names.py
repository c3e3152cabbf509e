"""Names of persons behind a mark that says so, by presidio's pattern recognizers.

There is no language model: what is found is a name behind a title, behind a phrase such as "my name
is", or below a greeting. All other names are left. The module takes seconds to import, and comes
with the extra `[presidio]`.
"""

import re
import time
from collections.abc import Iterator
from importlib.metadata import version

from consentgate.errors import ConfigError
from consentgate.redaction.detectors import Found

try:
    from presidio_analyzer import Pattern, PatternRecognizer, pattern_recognizer
except ImportError as error:
    raise ConfigError(
        f"policy: a rule redacts names, and presidio-analyzer cannot be used ({error}): run "
        'pip install "consentgate[presidio]", or take `name` out of the policy'
    ) from None

# The patterns are for the module `regex`, which presidio uses: what stands before `\K` has to be
# there and is no part of what is found. Each repetition is bounded, so that no place of a text
# takes more than a fixed time.

_PARTICLE = (
    r"(?i:von der|von dem|von|vom|van den|van der|van de|van|ten|ter|de la|de los|de|du|des|della"
    r"|del|di|da|dos|la|le|el|al|bin|ibn|af)[ -]"
)
# What begins with a capital behind a title and is no name: the words with which sentences begin,
# offices, and what signs letters.
_NO_NAME = (
    r"(?:I|He|She|It|We|They|You|A|An|The|This|That|These|There|In|On|At|If|When|My|Your|Our|His"
    r"|Her|But|And|So|Not|No|Ich|Er|Sie|Es|Wir|Ihr|Ihre|Du|Der|Die|Das|Den|Dem|Ein|Eine|Wenn|Im|Am"
    r"|Und|Aber|Mein|Meine|Unser|Euer|Dein|Je|Tu|Il|Elle|Nous|Vous|Un|Une|Les|Ce|Cette|Mais|Et"
    r"|Votre|Notre|Personne|Too|First|Team|Support|Service|Customer|Kundendienst|Kundenservice"
    r"|Geschäftsführung|Redaktion|Direction|Équipe|Rédaction|Gott|Ober|Wirt|Nachbar(?:in)?"
    r"|Vorsitzende[rn]?|Kolleg(?:e|en|in)|Right|President|Speaker|Chair(?:man|woman|person)?"
    r"|Chancellor|Secretary|Prime|Minister(?:in|präsident(?:in)?)?|Mayor|Präsident(?:in)?|Judge"
    r"|(?:Bundes)?[Kk]anzler(?:in)?|(?:Ober)?[Bb]ürgermeister(?:in)?|Pfarrer(?:in)?|Pastor(?:in)?"
    r"|Richter(?:in)?|Direktor(?:in)?|Rektor(?:in)?|Lehrer(?:in)?|Abgeordnete[rn]?|Président(?:e)?"
    r"|Maire|Ministre|Juge|Proviseure?|Directeur|Directrice|Préfète?)(?![\p{L}\p{N}'\u2019-])"
)
_LONG_TITLE = (
    r"(?:(?i:frau|herrn?|fräulein|madame?|monsieur|mademoiselle|ma[îi]tre|professor(?:in)?"
    r"|professeure?|doctor|doktor|docteure?)|Miss|MISS|Messrs) {1,2}"
)
_SHORT_TITLE = r"(?:(?i:mr|mrs|dr|prof|mme|mlle)|Ms|Mx)(?:\. {0,2}| {1,2})"
_DEGREE = r"(?:med|phil|jur|nat|rer|h\. ?c|Ing|Dipl\.-(?:Ing|Psych|Kfm))\.? {1,2}"
_MORE_TITLES = rf"(?:{_LONG_TITLE}|{_SHORT_TITLE}|{_DEGREE}){{0,4}}"
# The last two have other meanings: "3 M. Personne", "Follow Me Home".
_TITLE = (
    rf"(?<![\p{{L}}\p{{M}}\p{{N}}_@])(?:{_LONG_TITLE}|{_SHORT_TITLE}"
    r"|(?<!\p{N} )(?<!\p{Lu}\. ?)MM?\. {1,2}|(?<!\p{Lu}[\p{L}'\u2019]{0,20} )Me {1,2})"
    rf"(?:(?:and|und|et|&) (?={_LONG_TITLE}|{_SHORT_TITLE}))?{_MORE_TITLES}"
)
# Tales and brands that begin like a person; whoever is called like that is left, too.
_NO_PERSON = (
    r"(?i:frau (?:holle|antje)|herr der|(?:dr\.?|doctor|doktor) (?:oetker|pepper|martens|best"
    r"|hauschka|scholl|who|no|dre|house|strange|jekyll|congo|kongo)|mr\.? (?:bean|spex|whippy"
    r"|proper|muscle|robot|hyde|right|potato)|mrs\.? (?:dalloway|doubtfire)"
    r"|ms\.? (?:pac-man|marvel)"
    r"|miss (?:world|universe|earth|germany|deutschland|france|monde|univers|marple|piggy|saigon)"
    r"|madame (?:bovary|tussauds?|butterfly)|monsieur (?:propre|madame)|me (?:too|before|and))"
    r"(?![\p{L}\p{N}])"
)
# A letter behind an apostrophe belongs to the name, but for the English genitive.
_LETTERS = r"(?:[\p{L}\p{M}]|['\u2019](?![sS]\b)(?=\p{L})){0,30}+"
_WORD = (
    rf"(?!{_NO_NAME}|{_LONG_TITLE}|{_SHORT_TITLE})(?:[dDlL]['\u2019])?\p{{Lu}}"
    rf"(?:\.(?=[ -]?\p{{Lu}})|{_LETTERS}(?:-\p{{L}}{_LETTERS}){{0,3}}+)(?![\p{{L}}\p{{N}}_@])"
)
_NAME = rf"(?:{_PARTICLE}){{0,3}}{_WORD}(?: ?(?<=[. ])(?:{_PARTICLE}){{0,3}}{_WORD}){{0,2}}"
_INTRODUCTION = (
    r"(?<![\p{L}\p{N}])(?i:my (?:full |first |last )?name(?: is|['\u2019]s)|i am called"
    r"|ich hei(?:ß|ss)e|mein(?: voller)? name (?:ist|lautet)|je m['\u2019]appelle|mon nom est"
    r"|je me nomme):? {1,2}"
)
_GREETING = (
    r"(?<![\p{L}\p{N}])(?:(?i:(?:(?:kind(?:est)?|best|warm(?:est)?|with kind) )?regards|best wishes"
    r"|(?:yours )?sincerely(?: yours)?|yours (?:faithfully|truly)|all the best"
    r"|(?:mit )?(?:freundlich|herzlich|best|lieb|viel|schön)en? gr(?:ü|ue)(?:ß|ss)en?"
    r"|hochachtungsvoll|gr(?:ü|ue)(?:ß|ss)e|(?:bien )?(?:cordialement|amicalement)"
    r"|bien à (?:vous|toi)|amitiés|(?:grosses )?bises"
    r"|salutations distinguées)|LG|VG|MfG)[,.!]?\s{1,4}"
    r"|(?<![\p{L}\p{N}])(?i:best|thanks|thank you|many thanks|cheers|yours|love"
    r"|danke(?: dir| euch)?|merci)[,.!]? ?[\r\n]\s{0,3}"
)
_NO_MORE_WORDS = r"(?=[ \t]*(?:[^\p{L}\p{N} \t]|\Z))"
_OTHERS = rf"(?: (?:and|und|et|&|\+) {_NAME})?"

# None of the flags that presidio has by default: a name begins with a capital.
_RECOGNIZER = PatternRecognizer(
    "PERSON",
    name="consentgate",
    patterns=[
        Pattern("title", rf"(?!{_NO_PERSON})(?>{_TITLE}(?:{_NO_NAME} )?)\K{_NAME}", 1.0),
        Pattern("introduction", rf"(?>{_INTRODUCTION}{_MORE_TITLES})\K{_NAME}", 1.0),
        Pattern(
            "signature",
            rf"(?>(?:{_GREETING}){_MORE_TITLES})\K{_NAME}{_OTHERS}{_NO_MORE_WORDS}",
            1.0,
        ),
    ],
    global_regex_flags=0,
)


def find_names(text: str) -> Iterator[Found]:
    """Each name without its mark; the same name in other case has the same key.

    Raises:
        TimeoutError: if the text cannot be searched to its end.
    """
    started = time.process_time()
    results = _RECOGNIZER.analyze(text, _RECOGNIZER.supported_entities)
    # A pattern that takes too long is left out by presidio, which says so only in a log. Its clock
    # is the same as here.
    if time.process_time() - started >= pattern_recognizer.REGEX_TIMEOUT_SECONDS:
        raise TimeoutError("the search for names took longer than REGEX_TIMEOUT_SECONDS")
    for result in results:
        written = text[result.start : result.end]
        key = " ".join(re.findall(r"[^\W_]+", written.casefold()))
        yield Found(result.start, result.end, "name", key)


def versions_of_names() -> dict[str, str]:
    """The versions of what decides which names are found, by name."""
    return {name: version(name) for name in ("presidio-analyzer", "regex")}
