"""`make redaction-report`: what the redaction finds in the labelled corpus, and what it costs.

Recall is the share of the labelled identifiers that are found with exactly these bounds and this
kind; precision is the share of what is found that is labelled like that. Names have a corpus of
their own, and are measured where presidio is installed.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import msgspec
from msgspec.structs import replace as replaced
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from consentgate.core.policy import DETECTORS
from consentgate.redaction.redact import Redactor, engine_versions

CORPUS = Path(__file__).parent / "corpus"
NAMES = Path(__file__).parent / "names"
PARTS = ("tuned", "frozen")
STRUCTURED = tuple(name for name in DETECTORS if name != "name")
RECORD_BYTES = 550
TIMED_RECORDS = 2_000


class Text(msgspec.Struct, frozen=True):
    """A text of the corpus; `spans` are kind, start and the exact text of each identifier."""

    id: str
    language: str
    jurisdiction: str
    text: str
    spans: list[tuple[str, int, str]]


@dataclass(frozen=True, slots=True)
class Score:
    """What became of one kind of identifier, or of all, in one part of the corpus."""

    labelled: int
    found: int
    right: int

    @property
    def recall(self) -> float:
        """1.0 where there is nothing to find."""
        return self.right / self.labelled if self.labelled else 1.0

    @property
    def precision(self) -> float:
        """1.0 where nothing was found."""
        return self.right / self.found if self.found else 1.0


def read_part(part: str, corpus: Path = CORPUS) -> list[Text]:
    """The texts of `tuned` or `frozen`."""
    lines = (corpus / f"{part}.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Text) for line in lines]


def found_in(text: Text, redactor: Redactor) -> list[tuple[str, int, str]]:
    """What is found, in the form of the labels."""
    spans = redactor.find(text.text, text.jurisdiction)
    return [(span.kind, span.start, text.text[span.start : span.end]) for span in spans]


def scores(texts: Sequence[Text], detectors: Collection[str] = STRUCTURED) -> dict[str, Score]:
    """The score of each kind, and of `all`."""
    redactor = Redactor(detectors)
    labelled, found, right = Counter[str](), Counter[str](), Counter[str]()
    for text in texts:
        labels, spans = set(text.spans), set(found_in(text, redactor))
        for counter, these in ((labelled, labels), (found, spans), (right, labels & spans)):
            counter.update(kind for kind, _, _ in these)
            counter["all"] += len(these)
    return {kind: Score(labelled[kind], found[kind], right[kind]) for kind in (*detectors, "all")}


def name_scores(texts: Sequence[Text]) -> dict[str, Score]:
    """The score of the names behind a mark, and of all names."""
    alike = [replaced(text, spans=[("name", *span[1:]) for span in text.spans]) for text in texts]
    marked = [replaced(text, spans=[s for s in text.spans if s[0] == "name"]) for text in texts]
    return {
        "marked": scores(marked, ["name"])["name"],
        "all": scores(alike, ["name"])["name"],
    }


@dataclass(frozen=True, slots=True)
class Names:
    """What is measured of the detector of names."""

    texts: dict[str, int]
    scores: dict[str, dict[str, Score]]
    """By the part of the corpus: `marked`, and `all`."""
    microseconds: dict[str, float]
    versions: dict[str, str]


def has_presidio() -> bool:
    """Whether names can be found here."""
    return find_spec("presidio_analyzer") is not None


def measured_names(prose: Sequence[Text]) -> Names:
    """Score the detector of names on its own corpus, and time it there and on `prose`."""
    parts = {part: read_part(part, NAMES) for part in PARTS}
    named = [text for texts in parts.values() for text in texts if text.spans]
    return Names(
        {part: len(texts) for part, texts in parts.items()},
        {part: name_scores(texts) for part, texts in parts.items()},
        {
            "with names": microseconds(named, ["name"]),
            "without, prose": microseconds(prose, ["name"]),
        },
        engine_versions(["name"]),
    )


def is_prose(text: Text) -> bool:
    """Whether hardly any digits are in it, as in most posts."""
    return sum(map(str.isdigit, text.text)) < 6


def records(texts: Sequence[Text]) -> list[tuple[str, str]]:
    """Texts strung together to records of `RECORD_BYTES` or more, each with a jurisdiction."""
    made = []
    text = ""
    for part in texts:
        text += part.text + "\n"
        if len(text.encode()) >= RECORD_BYTES:
            made.append((text, part.jurisdiction))
            text = ""
    return made


def microseconds(texts: Sequence[Text], detectors: Collection[str] = STRUCTURED) -> float:
    """The time for a record of `RECORD_BYTES`, the best of five rounds."""
    redactor = Redactor(detectors)
    made = records(texts)
    bytes_once = sum(len(text.encode()) for text, _ in made)
    times = []
    for _ in range(5):
        started = time.process_time()
        for number in range(TIMED_RECORDS):
            text, jurisdiction = made[number % len(made)]
            redactor.redact([text], jurisdiction)
        times.append(time.process_time() - started)
    mean_bytes = bytes_once / len(made)
    return min(times) / TIMED_RECORDS * 1e6 * RECORD_BYTES / mean_bytes


def misses(texts: Sequence[Text], detectors: Collection[str] = STRUCTURED) -> None:
    """Print what was missed, and what was found wrongly."""
    redactor = Redactor(detectors)
    for text in texts:
        labels = {span for span in text.spans if span[0] in detectors}
        spans = set(found_in(text, redactor))
        for sign, these in (("missed", labels - spans), ("wrong", spans - labels)):
            for kind, _, written in sorted(these):
                print(f"{text.id} {text.jurisdiction} {sign} {kind}: {written!r}")


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument(
        "--errors", action="store_true", help="list the errors in the tuned part, and nothing else"
    )
    args = parser.parse_args()
    if args.errors:
        misses(read_part("tuned"))
        if has_presidio():
            misses(read_part("tuned", NAMES), ["name"])
        return
    parts = {part: read_part(part) for part in PARTS}
    scored = {part: scores(texts) for part, texts in parts.items()}
    everything = [text for texts in parts.values() for text in texts]
    without = [text for text in everything if not text.spans]
    costs = {
        "with identifiers": microseconds([text for text in everything if text.spans]),
        "without, full of look-alikes": microseconds([t for t in without if not is_prose(t)]),
        "without, prose": microseconds([text for text in without if is_prose(text)]),
    }
    names = measured_names([t for t in without if is_prose(t)]) if has_presidio() else None
    if args.format == "json":
        print_json(parts, scored, costs, names)
        return
    print_tables(parts, scored, costs)
    if names:
        print_names(names)


def as_json(scored: dict[str, dict[str, Score]]) -> dict[str, dict[str, dict[str, float]]]:
    """The scores with what follows from them."""
    return {
        part: {
            kind: asdict(score) | {"recall": score.recall, "precision": score.precision}
            for kind, score in kinds.items()
        }
        for part, kinds in scored.items()
    }


def print_json(
    parts: dict[str, list[Text]],
    scored: dict[str, dict[str, Score]],
    costs: dict[str, float],
    names: Names | None,
) -> None:
    """One object: `texts`, `scores`, `microseconds`, `versions`; the same of `names`, or null."""
    value = {
        "texts": {part: len(texts) for part, texts in parts.items()},
        "scores": as_json(scored),
        "microseconds": costs,
        "versions": engine_versions(STRUCTURED),
        "names": names and asdict(names) | {"scores": as_json(names.scores)},
    }
    print(json.dumps(value, indent=2))


def print_tables(
    parts: dict[str, list[Text]], scored: dict[str, dict[str, Score]], costs: dict[str, float]
) -> None:
    """The same for people."""
    console = Console()
    title = "Found with exactly the labelled bounds and kind"
    table = Table(Column("kind", min_width=11), title=title, box=SIMPLE)
    for part, texts in parts.items():
        for column in (f"{part}, {len(texts)} texts", "recall", "precision"):
            table.add_column(column, justify="right")
    for kind in (*STRUCTURED, "all"):
        cells = [
            cell
            for part in parts
            for score in (scored[part][kind],)
            for cell in (str(score.labelled), f"{score.recall:.3f}", f"{score.precision:.3f}")
        ]
        table.add_row(kind, *cells, end_section=kind == STRUCTURED[-1])
    console.print(table)
    for kind, cost in costs.items():
        console.print(f"{cost:6.0f} µs a record of {RECORD_BYTES} bytes {kind}")
    versions = ", ".join(f"{name} {v}" for name, v in engine_versions(STRUCTURED).items())
    console.print(f"versions: {versions}")


def print_names(names: Names) -> None:
    """The same of the detector of names."""
    console = Console()
    table = Table(Column("names", min_width=11), title="Names of persons", box=SIMPLE)
    for part, texts in names.texts.items():
        for column in (f"{part}, {texts} texts", "recall", "precision"):
            table.add_column(column, justify="right")
    for kind in ("marked", "all"):
        chosen = [kinds[kind] for kinds in names.scores.values()]
        rows = [(str(s.labelled), f"{s.recall:.3f}", f"{s.precision:.3f}") for s in chosen]
        table.add_row(kind, *(cell for row in rows for cell in row))
    console.print(table)
    for kind, cost in names.microseconds.items():
        console.print(f"{cost:6.0f} µs a record of {RECORD_BYTES} bytes {kind}")
    console.print("versions: " + ", ".join(f"{name} {v}" for name, v in names.versions.items()))


if __name__ == "__main__":
    main()
