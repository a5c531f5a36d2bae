"""Where text comes from, and how a bad text is reported."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from byte_tokenizer import ByteTokenizer

from effcompress.data import needs, sources
from effcompress.data.sources import Fields, files_source, stdlib_source
from effcompress.errors import SourceError
from effcompress.spec import DataSpec, DomainSpec


def read(source, skip=0):
    return [record.text for record in source.records(skip)]


def test_jsonl_txt_and_parquet_give_the_same_documents(tmp_path, jsonl):
    documents = ["one", "two\nlines", "träumen"]
    txt, parquet = tmp_path / "a.txt", tmp_path / "a.parquet"
    txt.write_text("\n\none\n\n\ntwo\nlines\n \nträumen\n", encoding="utf-8")
    pq.write_table(pa.table({"text": documents, "other": [1, 2, 3]}), parquet)
    for kind, path in (
        ("jsonl", jsonl("a.jsonl", documents)),
        ("txt", txt),
        ("parquet", parquet),
    ):
        source = files_source("d", kind, (path,), Fields("text"))
        assert read(source) == documents
        assert read(source, skip=2) == documents[2:]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "not valid JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"body": "x", "id": 1}', "no field 'text'; fields here: body, id"),
        ('{"text": ["a"]}', "field 'text' holds list, not text"),
        ('{"text": true}', "field 'text' holds True, not text"),
        ('{"text": NaN}', "field 'text' holds nan, not text"),
        ('{"text": "x", "id": ' + "9" * 5000 + "}", "not usable JSON: a number with too many"),
        ('{"text": ' + "[" * 100_000, "not usable JSON: nested too deeply"),
    ],
)
def test_bad_jsonl_line_has_an_address(tmp_path, make, line, problem):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(SourceError) as caught:
        make({"d": DomainSpec(jsonl=(path,))})
    assert str(caught.value).startswith(f"{path}:2: {problem}")


@pytest.mark.parametrize(
    ("text", "select"),
    [
        ('[{"text": "a"}, {"text": "b"}]', "'.[]'"),
        ('[\n {"text": "a"}\n]', "'.[]'"),
        ('{\n "text": "a"\n}', "'.'"),
    ],
)
def test_one_array_or_object_over_lines_is_told_how_to_become_lines(tmp_path, make, text, select):
    path = tmp_path / "all.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"all\.json:1: .*(JSON)") as error:
        make({"d": DomainSpec(jsonl=(path,))})
    assert f"jq -c {select} all.json > all.lines.jsonl" in str(error.value)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("codec", ["gzip", "zstd", "bz2"])
def test_compressed_files_read_as_their_text(tmp_path, make, codec):
    """Whatever they are called; several members in one file, as log rotation leaves them."""

    def packed(text: str) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(text.encode())
        return sink.getvalue().to_pybytes()

    for kind, texts in (
        ("jsonl", [json.dumps({"text": t}) + "\n" for t in ("träumen", "zwei")]),
        ("txt", ["träumen\n\n", "zwei\n"]),
    ):
        path = tmp_path / f"a.{kind}.packed"
        path.write_bytes(b"".join(map(packed, texts)))
        assert read(files_source("d", kind, (path,), Fields("text"))) == ["träumen", "zwei"]
        whole = packed("".join(texts) * 900)
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SourceError, match=r"a\..*packed: cannot be read"):
            make({"d": DomainSpec(**{kind: (path,)})}, cache=tmp_path / kind)


def test_a_line_without_end_is_refused(tmp_path, make, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + b"x" * (1 << 20) + b"\n")
    with pytest.raises(SourceError, match=r"a\.jsonl:2: a line of more than 1 MiB"):
        make({"d": DomainSpec(jsonl=(path,))})


def test_no_line_or_document_may_need_gigabytes(tmp_path):
    """Tokenising one takes about 40 times its size, whatever file it is in."""
    assert sources.LONGEST << 6 <= 1 << 32


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "parquet", "jsonl"])
def test_a_document_without_end_is_refused(tmp_path, make, monkeypatch, kind):
    monkeypatch.setattr(sources, "LONGEST", 1 << 16)
    path, line = tmp_path / f"a.{kind}", "words " * 100
    text = "\n".join([line] * 200)
    if kind == "parquet":
        pq.write_table(pa.table({"text": ["fine", text]}), path)
    elif kind == "jsonl":
        row = json.dumps({"text": text[: 1 << 15], "question": text[: 1 << 15] + "more"})
        path.write_text(row.replace(" ", "\t") + "\n")
    else:
        made = f"fine\n\n{text}\n".encode()
        path.write_bytes(gzip.compress(made) if kind.endswith("gz") else made)
    spec = DomainSpec(**{kind.partition(".")[0]: (path,)})
    said = r"a\.[\w.]+:(row )?\d+: a (document|line) of more"
    with pytest.raises(SourceError, match=said) as refused:
        make({"d": spec})
    assert "blank lines" in str(refused.value.fix)


def test_parquet_text_that_is_not_utf8_is_named(tmp_path, make):
    path = tmp_path / "a.parquet"
    bad = pa.array([b"\xff\xfe"], pa.binary()).view(pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": bad}), path)
    with pytest.raises(SourceError, match="not a readable parquet file"):
        make({"d": DomainSpec(parquet=(path,))})


def test_bytes_that_are_not_utf8_and_half_characters_have_an_address(tmp_path, make):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"fine\n\n\xff\xfe\n")
    with pytest.raises(SourceError, match=r"bad\.txt:3: not UTF-8"):
        make({"d": DomainSpec(txt=(path,))})
    path = tmp_path / "half.jsonl"
    path.write_text('{"text": "\\ud800"}\n')
    with pytest.raises(SourceError, match=r"half\.jsonl:1: .*not valid Unicode"):
        make({"d": DomainSpec(jsonl=(path,))})


def test_parquet_names_the_columns_there_are(tmp_path, make):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), path)
    with pytest.raises(SourceError, match="no field 'text'; fields here: body, id"):
        make({"d": DomainSpec(parquet=(path,))})
    path.write_text("not parquet at all, whatever its name says")
    with pytest.raises(SourceError, match="not a readable parquet file"):
        make({"d": DomainSpec(parquet=(path,))})


def test_missing_and_empty_files_are_named(tmp_path, make):
    with pytest.raises(SourceError, match=r"data\.domains\.d: .*nowhere\.txt: does not exist"):
        make({"d": DomainSpec(txt=(tmp_path / "nowhere.txt",))})
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(SourceError, match=r"data\.domains\.d: .*empty\.txt is an empty file"):
        make({"d": DomainSpec(txt=(empty,))})
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    with pytest.raises(SourceError, match=r"data\.domains\.d: there is no training text"):
        make({"d": DomainSpec(txt=(blank,))})


def test_empty_texts_are_counted_and_named(tmp_path, make, texts):
    path = tmp_path / "gaps.jsonl"
    lines = [json.dumps({"text": text}) for text in texts(50)]
    path.write_text("\n".join([lines[0], "", '{"text": null}', '{"text": " "}', *lines[1:]]) + "\n")
    make({"d": DomainSpec(jsonl=(path,))})
    assert any("3 of 53" in n and "gaps.jsonl:2" in n for n in make.notices)


def test_contradictory_domains(tmp_path, make, jsonl, texts):
    path = jsonl("a.jsonl", texts(50))
    for domain, problem in (
        (DomainSpec(), "names no source"),
        (DomainSpec(jsonl=(path,), stdlib="code"), "names several: jsonl, stdlib"),
        (DomainSpec(stdlib="code", validation=(path,)), "domain is stdlib"),
        (DomainSpec(jsonl=(path,), validation_split="test"), "needs a hub data set"),
        (DomainSpec(jsonl=(path,), validation=(path,)), "same content as a training file"),
        (DomainSpec(jsonl=(path,), weight=0.0), r"data\.domains\.d: weight 0\.0"),
        (DomainSpec(hub="a/b", validation_split="train"), "both training and held-out"),
    ):
        with pytest.raises(SourceError, match=problem):
            make({"d": domain})


@pytest.mark.parametrize(("which", "words"), [("prose", "statement"), ("code", "def ")])
def test_stdlib_gives_real_text_in_a_fixed_order(which, words):
    source = stdlib_source("d", which)
    documents = read(source)
    assert len(documents) > 50
    assert sum(map(len, documents)) > 200_000
    assert sum(words in document for document in documents) > len(documents) / 4
    assert read(stdlib_source("d", which), skip=7) == documents[7:]
    wheres = [record.where for record in source.records(0)]
    assert wheres == sorted(wheres)
    assert not any({"test", "site-packages"} & set(where.split("/")) for where in wheres)


@pytest.fixture
def fake_hub(monkeypatch):
    """sources.open_stream without the hub: real streaming of a local file, as the real one does."""
    import datasets

    calls = []

    def install(paths):
        def load_dataset(path, *, split, streaming, **options):
            calls.append((path, split, options))
            files = {split: str(paths[split])}
            return load("json", data_files=files, split=split, streaming=streaming)

        load = datasets.load_dataset
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return install


def test_hub_streams_then_works_offline(make, jsonl, texts, fake_hub, monkeypatch):
    calls = fake_hub(
        {"train": jsonl("t.jsonl", texts(80)), "test": jsonl("v.jsonl", texts(9, "v"))}
    )
    domain = DomainSpec(hub="some/set", config="en", revision="abc", validation_split="test")
    with pytest.raises(SourceError, match=r"'some/set'.*\n.*effcompress fetch RECIPE"):
        make({"d": domain})
    assert not calls
    online = make({"d": domain}, offline=False, heldout_sequences=2)
    assert calls == [
        ("some/set", "train", {"name": "en", "revision": "abc"}),
        ("some/set", "test", {"name": "en", "revision": "abc"}),
    ]

    def no_network(*_args, **_kwargs):
        raise AssertionError("asked the network")

    monkeypatch.setattr(sources, "open_stream", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    offline = make({"d": domain}, heldout_sequences=2)
    assert offline.fingerprint == online.fingerprint
    assert offline.heldout("d", 2).equal(online.heldout("d", 2))


def test_hub_goes_on_from_where_it_was(make, jsonl, texts, fake_hub, tmp_path, monkeypatch):
    from effcompress.data import tokens

    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 500)
    fake_hub({"train": jsonl("t.jsonl", texts(200))})
    domain = DomainSpec(hub="some/set")
    first, rest = ByteTokenizer(), ByteTokenizer()
    make({"d": domain}, first, offline=False, train_tokens=500)
    assert first.encoded, "the first call tokenises some of it"
    grown = make({"d": domain}, rest, offline=False, train_tokens=8000)
    assert any("no `revision`" in n for n in make.notices)
    whole = ByteTokenizer()
    fresh = make({"d": domain}, whole, offline=False, train_tokens=8000, cache=tmp_path / "other")
    assert grown.fingerprint == fresh.fingerprint
    # Nothing is tokenised twice.
    assert first.encoded + rest.encoded == whole.encoded


def test_hub_errors_name_the_data_set(make, monkeypatch):
    def refuse(*_args):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(sources, "open_stream", refuse)
    with pytest.raises(SourceError, match=r"'some/set' .*cannot be read: no route to host\n"):
        make({"d": DomainSpec(hub="some/set", revision="abc")}, offline=False)


def test_needs_lists_hub_data_sets():
    spec = DataSpec(
        domains={
            "web": DomainSpec(hub="some/set", config="en", revision="abc", validation_split="test"),
            "code": DomainSpec(stdlib="code"),
        }
    )
    assert needs(spec) == [
        {
            "domain": "web",
            "hub": "some/set",
            "config": "en",
            "revision": "abc",
            "splits": ["train", "test"],
        }
    ]


LINES = "".join(json.dumps({"text": f"word {i}"}) + "\n" for i in range(9))


@pytest.mark.parametrize(
    ("kind", "name", "content", "said", "fix"),
    [
        ("jsonl", "a.jsonl", LINES.encode("utf-16"), "UTF-16", "iconv -f UTF-16"),
        ("txt", "a.txt", LINES.encode("utf-16"), "UTF-16", "iconv -f UTF-16"),
        ("txt", "a.txt", b"na\xefve\n", "codec", "iconv -f latin1"),
        ("jsonl", "a.jsonl", b"PK\x03\x04\xff\xff", "a zip file", "unzip it"),
        ("jsonl", "a.jsonl.gz", gzip.compress(b"PK\x03\x04\xff\xff"), "a zip file", "unzip it"),
        ("txt", "a.parquet", b"PAR1\xff\xff", "a parquet file", "`parquet:`"),
        ("jsonl", "a.arrow", b"ARROW1\x00\x00\xff", "an Arrow file", "write_table"),
        ("parquet", "a.jsonl", LINES.encode(), "parquet", "`jsonl:`"),
        ("jsonl", "a.csv", b"text,label\nx,1\n", "not valid JSON", "read_csv('a.csv').to_json("),
        ("jsonl", "a.jsonl", b'{"text": "a"} {"text": "b"}', "Extra data", "one JSON object per"),
        ("jsonl", "a.jsonl.gz", gzip.compress(LINES.encode())[:-9], "cannot be read", "cut short"),
        ("jsonl", "a.jsonl", b'{"text": "\\ud800"}', "not valid Unicode", "remove"),
    ],
)
def test_files_of_another_kind(
    tmp_path: Path, make: Any, kind: str, name: str, content: bytes, said: str, fix: str
) -> None:
    (tmp_path / name).write_bytes(content)
    given: dict[str, Any] = {kind: (tmp_path / name,)}
    with pytest.raises(SourceError, match=said) as error:
        make({"d": DomainSpec(**given)})
    assert fix in str(error.value.fix) and len(str(error.value).splitlines()) <= 3


def test_a_column_of_lists_has_no_fields(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"turns": [{"text": "x"}], "id": 1}]), path)
    with pytest.raises(SourceError, match=r"no field 'turns.text'; fields here: id, turns"):
        make({"d": DomainSpec(parquet=(path,), text="turns.text")})
