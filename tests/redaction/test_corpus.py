"""The labelled corpus: what is in it, and how much of it must be found."""

import hashlib
from collections import Counter

import pytest

from redaction_report import NAMES, PARTS, STRUCTURED, Score, read_part, scores

RECALL_MIN = 0.97
PRECISION_MIN = 0.95


@pytest.mark.parametrize("part", PARTS)
def test_the_labels_are_where_they_say(part: str) -> None:
    for text in read_part(part):
        for kind, start, written in text.spans:
            assert kind in STRUCTURED, text.id
            assert text.text[start : start + len(written)] == written, text.id


@pytest.mark.parametrize("part", PARTS)
def test_a_template_is_in_the_part_that_its_hash_says(part: str) -> None:
    for text in read_part(part):
        template = text.id.rpartition("-")[0]
        frozen = hashlib.sha256(template.encode()).digest()[0] % 3 == 0
        assert part == ("frozen" if frozen else "tuned")


def test_the_corpus_is_large_and_various() -> None:
    texts = [text for part in PARTS for text in read_part(part)]
    assert len({text.text for text in texts}) == len(texts) >= 450
    assert len({text.id.rpartition("-")[0] for text in texts}) >= 150
    assert Counter(text.language for text in texts).keys() == {"en", "de", "fr"}
    assert sum(not text.spans for text in texts) >= 100


def test_the_corpus_of_names_is_labelled_where_it_says_and_has_look_alikes() -> None:
    parts = {part: read_part(part, NAMES) for part in PARTS}
    texts = [text for part in parts.values() for text in part]
    assert len({text.text for text in texts}) == len(texts) >= 60
    for text in texts:
        for kind, start, written in text.spans:
            assert kind in ("name", "unmarked"), text.id
            assert text.text[start : start + len(written)] == written, text.id
    assert Counter(text.language for text in texts).keys() == {"en", "de", "fr"}
    assert sum(not text.spans for text in texts) >= 20
    by_hash = sorted(texts, key=lambda text: hashlib.sha256(text.id.encode()).digest())
    frozen = {text.id for text in by_hash[: len(texts) // 3]}
    assert {text.id for text in parts["frozen"]} == frozen


@pytest.mark.parametrize("part", PARTS)
def test_enough_is_found_and_little_else(part: str) -> None:
    scored = scores(read_part(part))
    assert {kind for kind, score in scored.items() if score.recall < RECALL_MIN} == set()
    assert {kind for kind, score in scored.items() if score.precision < PRECISION_MIN} == set()


def test_a_score_of_nothing_is_perfect() -> None:
    assert (Score(0, 0, 0).recall, Score(0, 0, 0).precision) == (1.0, 1.0)
    assert (Score(4, 2, 1).recall, Score(4, 2, 1).precision) == (0.25, 0.5)
