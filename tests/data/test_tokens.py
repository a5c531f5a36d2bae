"""The token cache: lazy, resumable, safe beside others, never half right."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import ByteTokenizer

from effcompress.data import tokens
from effcompress.errors import RunError, SourceError
from effcompress.spec import DomainSpec

CHILD = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from byte_tokenizer import SlowTokenizer
from effcompress.data import prepare, tokens
from effcompress.spec import DataSpec, DomainSpec
tokens.CHUNK_CHARACTERS = 400
corpus = prepare(
    DataSpec(domains={{"d": DomainSpec(jsonl=(Path({source!r}),))}}, sequence_length=32),
    SlowTokenizer(Path({log!r}), {seconds}), Path({cache!r}),
    train_tokens=10**9, heldout_sequences=10**6, offline=True, seed=0,
    progress=lambda phrase, share: None, notice=lambda text: None,
)
print(corpus.fingerprint)
"""


def child(source, log, cache, seconds):
    script = CHILD.format(
        here=str(Path(__file__).parent),
        source=str(source),
        log=str(log),
        cache=str(cache),
        seconds=seconds,
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def finish(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.strip()


def only_folder(cache) -> Path:
    (folder,) = (cache / "tokens").iterdir()
    return folder


def counted(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())["passes"]["training"]


def content(cache) -> dict[str, bytes]:
    """Each token file up to what its manifest counts, and the names of all files."""
    folder = only_folder(cache)
    state = counted(folder)
    sizes = {f"{part}.bin": 2 * n for part, n in state["tokens"].items()}
    for kind in ("ends", "hashes"):
        sizes |= {f"{part}.{kind}": 8 * n for part, n in state["documents"].items()}
    assert {file.name for file in folder.iterdir()} == {*sizes, "manifest.json"}
    return {name: (folder / name).read_bytes()[:size] for name, size in sizes.items()}


def test_killed_halfway_and_restarted(tmp_path, jsonl, texts):
    source, log, cache = jsonl("a.jsonl", texts(400)), tmp_path / "log", tmp_path / "cache"
    process = child(source, log, cache, seconds=0.005)
    while not log.exists() or len(log.read_text().splitlines()) < 200:
        time.sleep(0.002)
        assert process.poll() is None
    process.kill()
    process.communicate()
    done = len(log.read_text().splitlines())
    resumed = finish(child(source, log, cache, seconds=0))
    again = len(log.read_text().splitlines()) - done
    assert again <= 0.55 * 400
    assert done + again <= 1.05 * 400
    assert resumed == finish(child(source, tmp_path / "log2", tmp_path / "fresh", seconds=0))
    assert content(cache) == content(tmp_path / "fresh")


def test_two_processes_at_once(tmp_path, jsonl, texts):
    source, cache = jsonl("a.jsonl", texts(300)), tmp_path / "cache"
    shared = Path("/dev/shm")
    before = set(shared.iterdir()) if shared.exists() else set()
    both = [child(source, tmp_path / f"log{n}", cache, seconds=0.001) for n in range(2)]
    prints = {finish(process) for process in both}
    prints.add(finish(child(source, tmp_path / "log2", tmp_path / "fresh", seconds=0)))
    assert len(prints) == 1
    assert content(cache) == content(tmp_path / "fresh")
    after = set(shared.iterdir()) if shared.exists() else set()
    assert not {path for path in after - before if "effcompress" in path.name}


def test_tokenises_only_what_is_needed_and_only_once(make, jsonl, texts, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 1000)
    domain = DomainSpec(jsonl=(jsonl("a.jsonl", texts(500)),))
    first = ByteTokenizer()
    make({"d": domain}, first, train_tokens=2000, heldout_sequences=0)
    assert 10 < len(first.encoded) < 60
    second = ByteTokenizer()
    make({"d": domain}, second, train_tokens=2000, heldout_sequences=0)
    assert not second.encoded
    third = ByteTokenizer()
    make({"d": domain}, third, train_tokens=4000, heldout_sequences=0)
    assert third.encoded
    assert not set(third.encoded) & set(first.encoded)


def test_a_run_does_not_depend_on_what_was_cached_before(make, jsonl, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 1000)
    domain = {"d": DomainSpec(jsonl=(jsonl("a.jsonl", texts(500)),))}
    make(domain, train_tokens=30_000)
    full = make(domain, train_tokens=2000)
    lean = make(domain, train_tokens=2000, cache=tmp_path / "lean")
    assert full.summary() == lean.summary()
    assert full.fingerprint == lean.fingerprint
    assert full.stream(1).next(99).ids_BT.equal(lean.stream(1).next(99).ids_BT)
    assert full.calibration(5, 0).equal(lean.calibration(5, 0))


def test_documents_are_joined_by_eos_and_no_bos_occurs(make, jsonl, tmp_path):
    source = jsonl("a.jsonl", ["abcdef", "<s>gh</s>" * 9])
    make({"d": DomainSpec(jsonl=(source,), holdout=0.0)}, heldout_sequences=0)
    folder = only_folder(tmp_path / "cache")
    ids = np.fromfile(folder / "train.bin", dtype="<u2")
    expected = [b + 3 for b in b"abcdef"] + [2] + [b + 3 for b in b"<s>gh</s>" * 9] + [2]
    assert ids.tolist() == expected
    assert np.fromfile(folder / "train.ends", dtype="<u8").tolist() == [7, len(expected)]
    assert 1 not in ids


def test_another_tokenizer_or_text_is_another_key(make, jsonl, texts, tmp_path):
    source = jsonl("a.jsonl", texts(50))
    prints = {make({"d": DomainSpec(jsonl=(source,))}).fingerprint}
    other = ByteTokenizer(fingerprint="other bytes")
    prints.add(make({"d": DomainSpec(jsonl=(source,))}, other).fingerprint)
    source.write_text('{"text": "one more"}\n' + source.read_text())
    prints.add(make({"d": DomainSpec(jsonl=(source,))}).fingerprint)
    make({"d": DomainSpec(jsonl=(source,), holdout=0.5)})
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 4
    assert len(prints) == 3


def test_large_vocabularies_and_lying_tokenizers(make, jsonl, texts, tmp_path):
    big = ByteTokenizer()
    big.vocab_size = 100_000
    domain = {"d": DomainSpec(jsonl=(jsonl("a.jsonl", texts(50)),))}
    wide = make(domain, big)
    assert np.fromfile(only_folder(tmp_path / "cache") / "train.bin", dtype="<u4").max() < 259
    assert wide.heldout("d", 1).equal(make(domain).heldout("d", 1))
    small = ByteTokenizer(fingerprint="small")
    small.vocab_size = 60
    with pytest.raises(SourceError, match="vocabulary has 60 entries"):
        make(domain, small)


@pytest.mark.parametrize("damage", ["short", "missing", "unhashed", "garbled"])
def test_damaged_cache_is_rebuilt_and_said_so(make, jsonl, texts, tmp_path, damage):
    domain = {"d": DomainSpec(jsonl=(jsonl("a.jsonl", texts(100)),))}
    good = make(domain).fingerprint
    folder = only_folder(tmp_path / "cache")
    if damage == "short":
        os.truncate(folder / "train.bin", 100)
    elif damage == "missing":
        (folder / "heldout.ends").unlink()
    elif damage == "unhashed":
        (folder / "train.hashes").unlink()
    else:
        (folder / "manifest.json").write_text('{"facts": ')
    assert make(domain).fingerprint == good
    assert [n for n in make.notices if "rebuilding" in n and str(folder) in n]
    make.notices.clear()
    make(domain)
    assert not [n for n in make.notices if "rebuilding" in n]


def test_manifests_left_behind_are_swept_and_a_swept_writer_tries_again(
    make, jsonl, texts, tmp_path, monkeypatch
):
    domain = {"d": DomainSpec(jsonl=(jsonl("a.jsonl", texts(100)),))}
    replace, tries = Path.replace, []

    def swept_once(self, target):
        tries.append(self)
        if len(tries) == 1:
            self.unlink()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", swept_once)
    good = make(domain).fingerprint
    assert len(tries) >= 2
    folder = only_folder(tmp_path / "cache")
    (folder / ".manifest-0123").write_text("{")
    assert make(domain).fingerprint == good
    assert not list(folder.glob(".manifest-*"))


def test_full_disk_leaves_nothing_half_counted(make, jsonl, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 1000)
    domain = {"d": DomainSpec(jsonl=(jsonl("a.jsonl", texts(100)),))}
    left, fsync = [25], os.fsync

    def fill(number):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(RunError) as caught:
        make(domain, train_tokens=10**6)
    folder = only_folder(tmp_path / "cache")
    assert str(caught.value).startswith(f"{folder}: the disk is full")
    records = counted(folder)["records"]
    assert 0 < records < 100
    monkeypatch.setattr(os, "fsync", fsync)
    rest = ByteTokenizer()
    resumed = make(domain, rest, train_tokens=10**6)
    assert len(rest.encoded) == 100 - records
    fresh = make(domain, train_tokens=10**6, cache=tmp_path / "fresh")
    assert resumed.fingerprint == fresh.fingerprint


def test_progress_ends_at_one(make, jsonl, texts, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 1000)
    seen = []
    domain = {"d": DomainSpec(jsonl=(jsonl("a.jsonl", texts(100)),))}
    make(domain, progress=lambda phrase, share: seen.append((phrase, share)))
    assert {phrase for phrase, _ in seen} == {"tokenising d"}
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize(("strange", "said"), [(2, ""), (20, "% of its"), (200, "all ")])
def test_text_that_the_tokenizer_cannot_spell(make, jsonl, texts, strange, said):
    """What is unknown becomes one token, which is soon predicted: nothing is learned of the text,
    and its perplexity is good.
    """

    class Blind(ByteTokenizer):
        unknown_id = 5

        def encode(self, texts):
            return [
                [5] * len(x) if "strange" in x else ids
                for x, ids in zip(texts, super().encode(texts), strict=True)
            ]

    documents = [*texts(200 - strange), *texts(strange, "strange")]
    spec = DomainSpec(jsonl=(jsonl("x.jsonl", documents),), holdout=0.2)
    if said == "all ":
        with pytest.raises(SourceError, match=r"all .* training tokens are the unknown token"):
            make({"d": spec}, Blind())
        return
    make({"d": spec}, Blind())
    warned = [notice for notice in make.notices if "unknown token" in notice]
    assert bool(warned) == bool(said) and all(said in notice for notice in warned)
