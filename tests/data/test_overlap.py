"""Held-out text that is also training text is named, with its share."""

from __future__ import annotations

from pathlib import Path

import pytest

from effcompress import load_recipe, run
from effcompress.data import corpus as module
from effcompress.data import tokens
from effcompress.data.sources import Record
from effcompress.data.tokens import text_hash
from effcompress.spec import DomainSpec
from tests.runner.toys import events, recipe

READ_ALL = {"train_tokens": 10**6, "heldout_sequences": 10**6}


def overlaps(make) -> list[str]:
    return [n.partition(":")[0] for n in make.notices if "held-out documents of" in n]


def told(found: int, of: int, name: str = "d", source: str = "d") -> str:
    return (
        f"{found} of {of} held-out documents of '{name}' are also in the training text of "
        f"'{source}'"
    )


@pytest.mark.parametrize("at_once", [1 << 22, 7])
def test_the_same_lines_in_another_order(jsonl, texts, make, monkeypatch, at_once):
    monkeypatch.setattr(module, "HASHED_AT_ONCE", at_once)
    documents = texts(40)
    train = jsonl("a.jsonl", documents)
    validation = jsonl("b.jsonl", [*reversed(documents[:12]), *texts(28, "new")])
    make({"d": DomainSpec(jsonl=(train,), validation=(validation,))}, **READ_ALL)
    assert overlaps(make) == [told(12, 40)]


def test_a_text_file_of_lines_in_another_order(tmp_path, texts, make):
    """Without blank lines the file is one document."""
    lines = texts(40)
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "b.txt").write_text("\r\n".join(reversed(lines)))
    spec = DomainSpec(txt=(tmp_path / "a.txt",), validation=(tmp_path / "b.txt",))
    make({"d": spec}, **READ_ALL)
    assert overlaps(make) == [told(1, 1)]


def test_one_file_trains_one_domain_and_evaluates_another(jsonl, texts, make):
    file, other = jsonl("a.jsonl", texts(40)), jsonl("b.jsonl", texts(40, "b"))
    domains = {
        "wiki": DomainSpec(jsonl=(file,), validation=(other,)),
        "web": DomainSpec(jsonl=(jsonl("c.jsonl", texts(40, "c")),), validation=(file,)),
    }
    make(domains, **READ_ALL)
    assert overlaps(make) == [told(40, 40, "web", "wiki")]


def test_one_file_in_two_domains_that_hold_out_differently(jsonl, texts, make):
    file = jsonl("a.jsonl", texts(400))
    domains = {
        "few": DomainSpec(jsonl=(file,), holdout=0.1),
        "many": DomainSpec(jsonl=(file,), holdout=0.5),
    }
    corpus = make(domains, **READ_ALL)
    sizes = {name: facts["heldout_documents"] for name, facts in corpus.summary().items()}
    # What `few` holds out is held out by `many` too.
    assert overlaps(make) == [told(sizes["many"] - sizes["few"], sizes["many"], "many", "few")]


def test_a_copy_with_blanks_at_its_ends_on_the_other_side(jsonl, texts, make):
    documents = texts(200)
    make({"d": DomainSpec(jsonl=(jsonl("a.jsonl", documents),), holdout=0.5)}, **READ_ALL)
    assert overlaps(make) == []
    copies = jsonl("b.jsonl", [*documents, *(f"{text} \n" for text in documents)])
    make({"d": DomainSpec(jsonl=(copies,), holdout=0.5)}, **READ_ALL)
    (line,) = overlaps(make)
    found, of = (int(word) for word in line.split()[0:3:2])
    assert 60 < found < 140 < of < 260


def test_text_that_calibration_reads_counts_too(jsonl, texts, make, monkeypatch):
    """Of a long training file, a short run tokenises the beginning."""
    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 400)
    documents = texts(200)
    train, validation = jsonl("a.jsonl", documents), jsonl("b.jsonl", documents[150:])
    domain = {"d": DomainSpec(jsonl=(train,), validation=(validation,))}
    corpus = make(domain, train_tokens=640, heldout_sequences=1000)
    assert overlaps(make) == []
    corpus.calibration(80)
    corpus.calibration(80)
    (line,) = overlaps(make)  # once
    assert 0 < int(line.split()[0]) <= 50
    make.notices.clear()
    make(domain, train_tokens=0, heldout_sequences=1000)  # as `eval` does
    assert overlaps(make) == [line]


def test_a_document_hash_ignores_what_editors_change():
    def hashed(text: str, prompt: str = "") -> int:
        return text_hash(Record(text, "here", prompt))

    same = {hashed(text) for text in ("a\nb", " a\r\nb\n", "b\na", "\n\na  \n  b", "A\nb")}
    assert len(same) == 1 and 0 <= same.pop() < 2**64
    for one, other in (("a b", "a\u00a0  b"), ("\u00e9", "E\u0301"), ("\ufb01n", "FIN")):
        assert hashed(one) == hashed(other)
    others = {hashed(t) for t in ("a\nb", "ab", "a b", "a\n\nb", "b a")}
    assert len(others) == 5
    assert hashed("answer", "one?") != hashed("answer", "two?")


def test_hashes_stand_beside_the_tokens(jsonl, texts, make):
    documents = texts(30)
    corpus = make({"d": DomainSpec(jsonl=(jsonl("a.jsonl", documents),), holdout=0.3)}, **READ_ALL)
    folder = corpus._domains["d"].store.folder
    kept = {int(h) for part in ("train", "heldout") for h in folder.hashes(part)}
    assert kept == {text_hash(Record(text, "")) for text in documents}


def test_a_run_says_so_in_record_and_report(tmp_path: Path):
    path, out = recipe(tmp_path), tmp_path / "out"
    lines = (tmp_path / "letters.jsonl").read_text().splitlines()
    (tmp_path / "shuffled.jsonl").write_text("\n".join(sorted(lines, key=lambda x: x[::-1])))
    change = f"data.domains.letters.validation={tmp_path / 'shuffled.jsonl'}"
    run(load_recipe(path, ["prune=null", "train.tokens=256", change]), output=out)
    phrase = "documents of 'letters' are also in the training text of 'letters'"
    assert [e for e in events(out, "warning") if phrase in e["text"]]
    assert "held-out documents of" in (out / "report.html").read_text()
